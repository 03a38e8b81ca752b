//! What a call starts and asks of the kernel, from strace; such calls are not timed.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use netd_kernel::exec::{Spawn, find_program};
use tempfile::TempDir;

use crate::probe::Around;

/// What a chain of calls did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traced {
    /// Processes it started, threads not counted; the plugins that the runtime starts are not among them.
    pub(crate) processes: usize,
    /// System calls of all processes.
    pub(crate) system_calls: usize,
}

/// A strace whose output is kept.
#[derive(Debug)]
pub(crate) struct Trace {
    strace: std::path::PathBuf,
    directory: TempDir,
}

impl Trace {
    pub(crate) fn new() -> Result<Self> {
        let strace = find_program("strace").context("strace is missing: install the package strace")?;
        Ok(Self {
            strace,
            directory: TempDir::with_prefix("nd-bench-").context("make a directory for traces")?,
        })
    }

    /// Returns what was written since the last time.
    pub(crate) fn take(&self) -> Result<Traced> {
        let text = fs::read(self.file()).context("read the output of strace")?;
        fs::remove_file(self.file()).context("remove the output of strace")?;
        Ok(read(&String::from_utf8_lossy(&text)))
    }

    fn file(&self) -> std::path::PathBuf {
        self.directory.path().join("strace")
    }
}

impl Around for Trace {
    fn around(&self, program: &Path) -> Spawn {
        let mut arguments: Vec<OsString> = ["-f", "-qq", "-A", "-s", "0", "-o"].map(OsString::from).to_vec();
        arguments.push(self.file().into_os_string());
        arguments.push(program.as_os_str().to_owned());
        Spawn::new(&self.strace, arguments)
    }
}

/// Counts lines of `strace -f`: `<pid> <call>(<arguments>) = <result>`, where a call that others interrupted has a
/// second line `<pid> <... <call> resumed>`.
fn read(text: &str) -> Traced {
    let mut traced = Traced::default();
    for line in text.lines() {
        let call = line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
        if !call.starts_with(|c: char| c.is_ascii_lowercase()) {
            continue;
        }
        traced.system_calls += 1;
        let starts = ["fork(", "vfork(", "clone(", "clone3("].iter().any(|name| call.starts_with(name));
        if starts && !call.contains("CLONE_THREAD") {
            traced.processes += 1;
        }
    }
    traced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_no_processes_and_halves_of_a_call_are_one() {
        let text = "\
10 execve(\"/p\", [\"/p\"], 0x7ffc /* 7 vars */) = 0
10 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_THREAD) = 11
11 clone3({flags=CLONE_VM|CLONE_VFORK, exit_signal=SIGCHLD} <unfinished ...>
12 execve(\"/usr/sbin/iptables\", [\"iptables\"], 0x7ffc /* 7 vars */) = 0
11 <... clone3 resumed>) = 12
12 --- SIGCHLD {si_signo=SIGCHLD} ---
12 +++ exited with 0 +++
10 vfork( <unfinished ...>
";
        assert_eq!(read(text), Traced { processes: 2, system_calls: 5 });
    }
}
