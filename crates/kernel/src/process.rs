//! Processes by their number.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::{Error, Result};

/// What can be told to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Signal {
    /// `SIGTERM`: end in an orderly way.
    Terminate,
    /// `SIGKILL`: end now; cannot be caught.
    Kill,
    /// `SIGINT`: what Ctrl-C sends.
    Interrupt,
    /// `SIGHUP`.
    Hangup,
    /// `SIGUSR1`.
    User1,
    /// `SIGSTOP`: halt until [`Signal::Continue`]; cannot be caught.
    Stop,
    /// `SIGCONT`.
    Continue,
}

/// Sends `signal` to the process `pid`.
///
/// # Errors
/// [`Error::is_not_found`] when there is no such process.
pub fn kill(pid: u32, signal: Signal) -> Result<()> {
    let target = pid_of(pid)?;
    nix::sys::signal::kill(target, number(signal))
        .map_err(|errno| Error::sys(format!("send {signal:?} to process {pid}"), errno))
}

/// Whether a process with this number exists; a zombie counts.
pub fn exists(pid: u32) -> bool {
    match pid_of(pid) {
        Ok(target) => !matches!(nix::sys::signal::kill(target, None), Err(Errno::ESRCH)),
        Err(_) => false,
    }
}

/// Does what the standard library does before `main`, for a program whose `main` the C library calls: a pipe that nobody
/// reads is an error and no signal, and each standard stream is open, so that no file takes its place.
///
/// What is left out is the handler that names an overflow of the stack: that ends the program without a word.
pub fn prepare_start() {
    // SAFETY: nothing else of this process cares for the signal yet, and ignoring it runs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let mut streams = [0, 1, 2].map(|fd| libc::pollfd { fd, events: 0, revents: 0 });
    // SAFETY: the pointer is to three of these, and the kernel writes only to them.
    let told = unsafe { libc::poll(streams.as_mut_ptr(), 3, 0) };
    let closed = streams.iter().filter(|stream| told > 0 && stream.revents & libc::POLLNVAL != 0);
    for _ in closed {
        // SAFETY: the path ends with a zero. The lowest number that is free is the closed stream's.
        unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
    }
}

/// Becomes this program anew with other arguments: same process, environment and standard streams, no other thread.
///
/// Every thread stops where it is, as after SIGKILL, and no destructor runs. So a thread that hears of a signal can undo
/// what another one is in the middle of making.
///
/// # Errors
/// [`Error::Io`] when the kernel refuses; it returns in no other case.
#[expect(clippy::disallowed_methods, reason = "starts no process, but replaces this one")]
pub fn restart_with<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Error {
    // The link works when the file was replaced or removed meanwhile.
    Error::io("start this program anew", Command::new("/proc/self/exe").args(args).exec())
}

/// Makes `signal` do nothing from now on, in this process and in what it becomes by [`restart_with`].
///
/// # Errors
/// When the kernel refuses: for a signal that cannot be ignored.
pub fn ignore(signal: Signal) -> Result<()> {
    use nix::sys::signal::{SigHandler, signal as dispose};
    // SAFETY: no handler is installed, so no code of ours runs in a signal's context.
    let before = unsafe { dispose(number(signal), SigHandler::SigIgn) };
    before.map(|_| ()).map_err(|errno| Error::sys(format!("ignore {signal:?}"), errno))
}

/// Whether the effective user is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Refuses 0 and what would be negative: kill(2) takes those as groups of processes.
fn pid_of(pid: u32) -> Result<Pid> {
    match i32::try_from(pid) {
        Ok(raw) if raw > 0 => Ok(Pid::from_raw(raw)),
        Ok(_) | Err(_) => Err(Error::Invalid { what: format!("process id {pid}") }),
    }
}

fn number(signal: Signal) -> nix::sys::signal::Signal {
    use nix::sys::signal::Signal as Nix;
    match signal {
        Signal::Terminate => Nix::SIGTERM,
        Signal::Kill => Nix::SIGKILL,
        Signal::Interrupt => Nix::SIGINT,
        Signal::Hangup => Nix::SIGHUP,
        Signal::User1 => Nix::SIGUSR1,
        Signal::Stop => Nix::SIGSTOP,
        Signal::Continue => Nix::SIGCONT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_mean_groups_are_refused() {
        for pid in [0, u32::MAX, i32::MAX as u32 + 1] {
            assert!(matches!(kill(pid, Signal::Continue), Err(Error::Invalid { .. })));
        }
        assert!(exists(std::process::id()));
    }
}
