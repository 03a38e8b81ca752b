//! Running programs, and a list of steps with their times and outcomes.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The root of the work tree.
pub(crate) fn root() -> PathBuf {
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    path.pop();
    path
}

/// Where caches outside of the work tree live: `NETD_CACHE`, else `~/.cache/netd`.
pub(crate) fn cache() -> PathBuf {
    if let Some(path) = std::env::var_os("NETD_CACHE") {
        return PathBuf::from(path);
    }
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    home.join(".cache/netd")
}

/// The target directory of the workspace.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where `netd` and `netd-cni` are put side by side for the demo and the tests.
pub(crate) fn programs() -> PathBuf {
    target().join("programs")
}

/// A command that runs in the root of the work tree.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// `cargo` with arguments, in the root of the work tree.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}

/// Runs a command to its end; an exit status other than 0 is an error that shows the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    let status = command.status().with_context(|| format!("start {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

/// Runs a command and returns its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command.output().with_context(|| format!("start {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).with_context(|| format!("read the output of {shown}"))
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Steps that were run; one that fails does not stop the next.
#[derive(Default)]
pub(crate) struct Report {
    steps: Vec<(String, Duration, Option<String>)>,
}

impl Report {
    /// Runs a step and notes how it went.
    pub(crate) fn step(&mut self, name: &str, work: impl FnOnce() -> Result<()>) {
        eprintln!("\n=== {name}");
        let start = Instant::now();
        let outcome = work().err().map(|error| format!("{error:#}"));
        if let Some(message) = &outcome {
            eprintln!("=== {name} FAILED: {message}");
        }
        self.steps.push((name.to_owned(), start.elapsed(), outcome));
    }

    /// Ends here if a step has failed: the next ones could not work.
    pub(crate) fn stop_on_failure(&self) -> Result<()> {
        if let Some((name, _, Some(message))) = self.steps.iter().find(|step| step.2.is_some()) {
            bail!("{name}: {message}");
        }
        Ok(())
    }

    /// Prints the list and fails if a step failed.
    pub(crate) fn finish(self) -> Result<()> {
        println!();
        for (name, time, outcome) in &self.steps {
            let word = if outcome.is_none() { "ok    " } else { "FAILED" };
            println!("{word} {:>7.1}s  {name}", time.as_secs_f64());
        }
        let failed = self.steps.iter().filter(|step| step.2.is_some()).count();
        println!("steps: {} passed, {failed} failed", self.steps.len() - failed);
        if failed > 0 {
            bail!("{failed} of {} steps failed", self.steps.len());
        }
        Ok(())
    }
}
