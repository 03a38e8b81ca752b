//! What a child used, as wait4(2) tells it.

use std::io;
use std::time::Duration;

use super::run::{pidfd_open, wait_for_end};
use super::spawn::Child;
use crate::clock::Deadline;
use crate::process::Signal;
use crate::{Error, Result};

/// How a child ended and what it, with the children it waited for, used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// The exit status; 128 + the signal's number when a signal ended it.
    pub status: i32,
    /// The most memory that one of the processes had, in bytes.
    ///
    /// The kernel (`fs/exec.c:exec_mmap`) counts what the child was before it became the program as well: never less
    /// than what *our* process has had.
    pub peak_memory: u64,
    /// Processor time of all of the processes, in user and kernel mode.
    pub processor: Duration,
}

impl Child {
    /// Waits for its end up to `limit` and returns what it used; kills it, but nothing it started, after that.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it was killed.
    pub fn finish(mut self, limit: Duration) -> Result<Usage> {
        let failed = |name: &str, e| Error::io(format!("wait for {name}"), e);
        let deadline = Deadline::after(limit);
        let pidfd = pidfd_open(self.pid()).map_err(|e| failed(&self.name, e))?;
        loop {
            if let Some(usage) = try_wait4(self.pid()).map_err(|e| failed(&self.name, e))? {
                return Ok(usage);
            }
            if deadline.passed() {
                self.kill(Signal::Kill)?;
                self.wait()?;
                return Err(Error::Timeout { action: format!("run {}", self.name), limit, hint: None });
            }
            wait_for_end(&pidfd, deadline.left()).map_err(|e| failed(&self.name, e))?;
        }
    }
}

/// wait4(2) without waiting; `None` while the child runs.
fn try_wait4(pid: u32) -> io::Result<Option<Usage>> {
    let raw = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let mut status: libc::c_int = 0;
    // SAFETY: a rusage is plain numbers, for which all bits zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to variables that live longer than the call.
    let waited = unsafe { libc::wait4(raw, &raw mut status, libc::WNOHANG, &raw mut usage) };
    match waited {
        0 => Ok(None),
        done if done == raw => Ok(Some(Usage {
            status: shell_status(status),
            // Linux counts in KiB.
            peak_memory: u64::try_from(usage.ru_maxrss).unwrap_or_default() * 1024,
            processor: duration(usage.ru_utime) + duration(usage.ru_stime),
        })),
        _ => Err(io::Error::last_os_error()),
    }
}

fn shell_status(status: libc::c_int) -> i32 {
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) }
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let microseconds = u64::try_from(time.tv_usec).unwrap_or_default();
    Duration::from_secs(seconds) + Duration::from_micros(microseconds)
}

#[cfg(test)]
mod tests {
    use super::super::{Spawn, find_program};
    use super::*;

    fn shell(script: &str) -> Child {
        Spawn::new(find_program("sh").unwrap(), ["-c", script]).start().unwrap()
    }

    #[test]
    fn what_a_child_used_is_told_with_its_status() {
        let usage = shell("exit 7").finish(Duration::from_secs(30)).unwrap();
        assert_eq!(usage.status, 7);
        assert!(usage.peak_memory > 0);
        assert_eq!(shell("kill -9 $$").finish(Duration::from_secs(30)).unwrap().status, 128 + 9);
    }

    #[test]
    fn a_child_that_does_not_end_is_killed() {
        let child = shell("exec sleep 300");
        let pid = child.pid();
        assert!(child.finish(Duration::from_millis(50)).unwrap_err().is_timeout());
        assert!(!crate::process::exists(pid));
    }
}
