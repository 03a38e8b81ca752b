//! One machine of the cluster: a set of namespaces, held by its first process ([`crate::inside`]), which
//! starts and ends programs in it on request.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::inside;
use crate::lan;
use crate::run::Run;
use crate::tool::{eventually, tail};

/// A machine that is up.
#[derive(Debug)]
pub struct Machine {
    name: String,
    address: String,
    run: Run,
    dir: PathBuf,
    cgroup: PathBuf,
    first: Child,
    /// The first process ends, and every process of the machine with it, when this is closed, also by our
    /// death.
    lifeline: Option<ChildStdin>,
}

/// What a program that was run to its end did.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i64,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// The standard output of a program that exited with 0.
    ///
    /// # Errors
    /// When it did not; standard error is quoted.
    pub fn success(self, machine: &str, argv: &[&str]) -> Result<String> {
        if self.code != 0 {
            bail!("{machine}: {argv:?}: exit {}: {}", self.code, self.stderr.trim());
        }
        Ok(self.stdout)
    }
}

impl Machine {
    /// Makes the namespaces and cgroups of a machine and its first process.
    ///
    /// # Errors
    /// When one of them cannot be made; the log of the first process says more.
    pub fn start(run: &Run, name: &str, address: &str) -> Result<Machine> {
        let dir = run.dir().join(name);
        fs::create_dir_all(&dir)?;
        lan::plug(run, name, address)?;
        let cgroup = run.create_cgroups(name)?;
        let spec = json!({
            "name": name,
            "dir": dir,
            "cgroup": inside_cgroup(&cgroup)?,
        });
        let log = run.log(name, "first");
        let mut first = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", run.netns(name)))
            .args(["unshare", "-m", "-u", "-i", "-p", "-f", "--kill-child", "--mount-proc"])
            .arg(env::current_exe()?)
            .arg(inside::ARGUMENT)
            .arg(spec.to_string())
            .stdin(Stdio::piped())
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?)
            .spawn()
            .context("start nsenter")?;
        let lifeline = first.stdin.take();
        let machine = Machine {
            name: name.into(),
            address: address.into(),
            run: run.clone(),
            dir,
            cgroup,
            first,
            lifeline,
        };
        eventually("first process of a machine", Duration::from_secs(20), || {
            machine.ask(&json!({"op": "ping"}))
        })
        .with_context(|| format!("start machine {name}: {}", tail(&log, 10)))?;
        Ok(machine)
    }

    /// Host name, and name of the Kubernetes node.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Address on the LAN.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Directory for files of this machine, seen by the machine and by the test under the same path.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The version 2 cgroup all processes of the machine are in, pods included.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Log file of a daemon of this machine.
    #[must_use]
    pub fn log(&self, daemon: &str) -> PathBuf {
        self.run.log(&self.name, daemon)
    }

    /// Writes a file into the machine's own view of the file system.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &str, content: &str) -> Result<()> {
        self.ask(&json!({"op": "write", "path": path, "content": content})).map(drop)
    }

    /// Copies a program from the host into the machine's own view of the file system.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn install(&self, from: &Path, to: &str) -> Result<()> {
        self.ask(&json!({"op": "copy", "from": from, "path": to})).map(drop)
    }

    /// Starts a daemon; its output is appended to its log file.
    ///
    /// # Errors
    /// When the program cannot be started, or a daemon of that name runs already.
    pub fn spawn(&self, daemon: &str, argv: &[&str]) -> Result<()> {
        self.spawn_with(daemon, argv, &BTreeMap::new())
    }

    /// Starts a daemon with additional environment variables.
    ///
    /// # Errors
    /// As [`Machine::spawn`].
    pub fn spawn_with(&self, daemon: &str, argv: &[&str], env: &BTreeMap<String, String>) -> Result<()> {
        let request =
            json!({"op": "spawn", "name": daemon, "argv": argv, "env": env, "log": self.log(daemon)});
        self.ask(&request).map(drop)
    }

    /// Tells whether a daemon runs; when it has ended, how.
    ///
    /// # Errors
    /// When no daemon of that name was ever started.
    pub fn alive(&self, daemon: &str) -> Result<bool> {
        Ok(self.ask(&json!({"op": "alive", "name": daemon}))?["alive"] == json!(true))
    }

    /// Sends a signal to a daemon and waits until it is gone.
    ///
    /// # Errors
    /// When it still runs after `deadline`.
    pub fn end(&self, daemon: &str, signal: Signal, deadline: Duration) -> Result<()> {
        let deadline_ms = u64::try_from(deadline.as_millis())?;
        let request =
            json!({"op": "end", "name": daemon, "signal": signal as i32, "deadline_ms": deadline_ms});
        self.ask(&request).map(drop)
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// When it cannot be started. A non-zero exit is not an error; see [`Machine::check`].
    pub fn run(&self, argv: &[&str], stdin: &str) -> Result<Finished> {
        self.run_within(argv, stdin, Duration::from_secs(120))
    }

    /// Runs a program that may take long to its end.
    ///
    /// # Errors
    /// When it cannot be started, or still runs after `deadline`.
    pub fn run_within(&self, argv: &[&str], stdin: &str, deadline: Duration) -> Result<Finished> {
        let deadline_ms = u64::try_from(deadline.as_millis())?;
        let reply =
            self.ask(&json!({"op": "run", "argv": argv, "stdin": stdin, "deadline_ms": deadline_ms}))?;
        let text = |field: &str| reply[field].as_str().unwrap_or_default().to_owned();
        Ok(Finished {
            code: reply["code"].as_i64().context("reply has a code")?,
            stdout: text("stdout"),
            stderr: text("stderr"),
        })
    }

    /// Runs a program to its end and returns its standard output.
    ///
    /// # Errors
    /// When it exits with anything but 0; standard error is quoted.
    pub fn check(&self, argv: &[&str], stdin: &str) -> Result<String> {
        self.run(argv, stdin)?.success(&self.name, argv)
    }

    /// Ends the machine with all its processes, at once, as a power failure does.
    ///
    /// # Errors
    /// When the first process does not end.
    pub fn power_off(&mut self) -> Result<()> {
        self.lifeline.take();
        eventually("power off", Duration::from_secs(20), || match self.first.try_wait()? {
            Some(_) => Ok(()),
            None => bail!("the first process of {} still runs", self.name),
        })
    }

    fn ask(&self, request: &Value) -> Result<Value> {
        let socket = self.dir.join(inside::SOCKET);
        let mut stream =
            UnixStream::connect(&socket).with_context(|| format!("connect to {}", socket.display()))?;
        writeln!(stream, "{request}")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let reply: Value =
            serde_json::from_str(&line).with_context(|| format!("{} answered {line:?}", self.name))?;
        match reply["error"].as_str() {
            Some(error) => bail!("{}: {error}", self.name),
            None => Ok(reply),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.power_off() {
            eprintln!("{error:#}");
        }
    }
}

/// Where only version 2 cgroups exist, a cgroup with children has no processes of its own, so daemons get a
/// child.
fn inside_cgroup(cgroup: &Path) -> Result<PathBuf> {
    if !crate::run::only_version_2() {
        return Ok(cgroup.into());
    }
    let daemons = cgroup.join("daemons");
    fs::create_dir_all(&daemons)?;
    Ok(daemons)
}
