//! Running a command to its end, with a deadline.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::{Exec, Output, PROGRAM_PATH};
use crate::clock::Deadline;
use crate::{Error, Result};

/// Runs programs of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemExec;

impl Exec for SystemExec {
    fn run(&self, program: &Path, args: &[&str], stdin: &[u8], timeout: Duration) -> Result<Output> {
        let child =
            start(program, args).map_err(|cause| Error::Exec { program: program.to_owned(), cause })?;
        converse(program, child, stdin, timeout)
    }
}

/// Runs a started child with three pipes, the leader of a process group, to its end.
pub(super) fn converse(program: &Path, mut child: Child, stdin: &[u8], timeout: Duration) -> Result<Output> {
    let deadline = Deadline::after(timeout);
    let ran = Conversation::new(&mut child).and_then(|mut talk| talk.run(&mut child, stdin, deadline));
    let error = match ran {
        Ok(Some(output)) => return Ok(output),
        Ok(None) => {
            Error::Timeout { action: format!("run {}", program.display()), limit: timeout, hint: None }
        }
        Err(cause) => Error::io(format!("run {}", program.display()), cause),
    };
    end_group(&mut child);
    Err(error)
}

#[expect(clippy::disallowed_methods, reason = "this module is where processes are started")]
fn start(program: &Path, args: &[&str]) -> io::Result<Child> {
    Command::new(program)
        .args(args)
        .env_clear()
        .env("PATH", PROGRAM_PATH)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
}

/// Kills the child and all it started (its process group), and reaps the child.
fn end_group(child: &mut Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// The exit status as a shell tells it.
pub(super) fn code_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// The three pipes of a running command and a descriptor that becomes readable when it ends.
struct Conversation {
    stdin: Option<std::process::ChildStdin>,
    stdout: Option<std::process::ChildStdout>,
    stderr: Option<std::process::ChildStderr>,
    ended: OwnedFd,
    output: Output,
}

impl Conversation {
    fn new(child: &mut Child) -> io::Result<Self> {
        let ended = pidfd_open(child.id())?;
        let talk = Self {
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            ended,
            output: Output::default(),
        };
        // Reads go on until they would block, so a write that would block must not stop them.
        if let Some(pipe) = &talk.stdin {
            set_nonblocking(pipe)?;
        }
        if let Some(pipe) = &talk.stdout {
            set_nonblocking(pipe)?;
        }
        if let Some(pipe) = &talk.stderr {
            set_nonblocking(pipe)?;
        }
        Ok(talk)
    }

    /// Feeds and reads the command until it has ended; `None` when the deadline comes first.
    ///
    /// A process that the command left running may hold the pipes open: the command's own end is what counts, and
    /// what was written until then is returned.
    fn run(&mut self, child: &mut Child, mut stdin: &[u8], deadline: Deadline) -> io::Result<Option<Output>> {
        loop {
            self.write(&mut stdin)?;
            self.read()?;
            if let Some(status) = child.try_wait()? {
                self.read()?;
                let mut output = std::mem::take(&mut self.output);
                output.status = code_of(status);
                return Ok(Some(output));
            }
            if deadline.passed() {
                return Ok(None);
            }
            self.wait(deadline.left())?;
        }
    }

    fn write(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        while let Some(pipe) = &mut self.stdin {
            if rest.is_empty() {
                self.stdin = None;
                break;
            }
            match pipe.write(rest) {
                Ok(count) => *rest = rest.get(count..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // The command does not want its input; its status will say whether that was right.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.stdin = None,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<()> {
        read_ready(&mut self.stdout, &mut self.output.stdout)?;
        read_ready(&mut self.stderr, &mut self.output.stderr)
    }

    /// Sleeps until something can be done or `left` has passed.
    fn wait(&self, left: Duration) -> io::Result<()> {
        let mut slots = vec![slot(self.ended.as_raw_fd(), libc::POLLIN)];
        slots.extend(self.stdin.as_ref().map(|pipe| slot(pipe.as_raw_fd(), libc::POLLOUT)));
        slots.extend(self.stdout.as_ref().map(|pipe| slot(pipe.as_raw_fd(), libc::POLLIN)));
        slots.extend(self.stderr.as_ref().map(|pipe| slot(pipe.as_raw_fd(), libc::POLLIN)));
        poll(&mut slots, left)
    }
}

/// Reads what is there; forgets the pipe at its end.
fn read_ready<P: Read>(pipe: &mut Option<P>, into: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    while let Some(open) = pipe {
        match open.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(count) => into.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn set_nonblocking(pipe: &impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(pipe, FcntlArg::F_GETFL)?);
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn slot(fd: i32, events: i16) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

/// poll(2); an interruption counts as something having happened.
pub(super) fn poll(slots: &mut [libc::pollfd], left: Duration) -> io::Result<()> {
    // One millisecond more than is left, so that the deadline has passed when nothing else woke us.
    let milliseconds = i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX);
    let count = libc::nfds_t::try_from(slots.len()).unwrap_or_default();
    // SAFETY: `slots` is a valid array of `count` entries for the whole call.
    let result = unsafe { libc::poll(slots.as_mut_ptr(), count, milliseconds) };
    if result >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        e if e.kind() == io::ErrorKind::Interrupted => Ok(()),
        e => Err(e),
    }
}

/// Opens a descriptor that becomes readable when process `pid`, an unreaped child, ends (pidfd_open(2), Linux 5.3).
pub(super) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
    match i32::try_from(result) {
        // SAFETY: the kernel has just opened this descriptor for us and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Sleeps until the process behind `pidfd` has ended or `left` has passed.
pub(super) fn wait_for_end(pidfd: &OwnedFd, left: Duration) -> io::Result<()> {
    poll(&mut [slot(pidfd.as_raw_fd(), libc::POLLIN)], left)
}
