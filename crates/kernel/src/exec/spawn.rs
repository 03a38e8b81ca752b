//! Long-lived children.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::run::{code_of, converse, pidfd_open, wait_for_end};
use super::{Output, PROGRAM_PATH};
use crate::clock::Deadline;
use crate::netns::Namespace;
use crate::process::{self, Signal};
use crate::{Error, Result};

/// Where one of a child's standard streams goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Stream {
    /// To nowhere; nothing comes from there.
    #[default]
    Null,
    /// Where ours goes.
    Inherit,
    /// Through a pipe that [`Child`] has the other end of.
    Pipe,
    /// To the end of a file, made with mode 0600 if absent; as input, from the start of that file.
    File(PathBuf),
}

/// A program to start.
#[derive(Debug, Clone, Default)]
pub struct Spawn {
    /// The program's path; it is not searched for.
    pub program: PathBuf,
    /// Its arguments, without its own name.
    pub args: Vec<OsString>,
    /// Its whole environment: nothing is inherited, and `PATH` is [`PROGRAM_PATH`] unless set here.
    pub env: Vec<(OsString, OsString)>,
    /// The directory to start in; ours if `None`.
    pub directory: Option<PathBuf>,
    /// The network namespace to start in; that of the calling thread if `None`.
    pub netns: Option<PathBuf>,
    /// The cgroup (v2) directory to start in; ours if `None`. The program's first instruction runs inside it.
    pub cgroup: Option<PathBuf>,
    /// Standard input.
    pub stdin: Stream,
    /// Standard output.
    pub stdout: Stream,
    /// Standard error.
    pub stderr: Stream,
    /// Kill the child when the *thread* that starts it ends (`PR_SET_PDEATHSIG`): only for threads that live long.
    pub die_with_thread: bool,
    /// Start it as the leader of a process group of its own: Ctrl-C at our terminal does not reach it.
    pub own_group: bool,
}

impl Spawn {
    /// Returns a program to be started with these arguments, standard streams to nowhere and all else as ours.
    pub fn new<A: Into<OsString>>(program: impl Into<PathBuf>, args: impl IntoIterator<Item = A>) -> Self {
        Self { program: program.into(), args: args.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Starts it.
    ///
    /// # Errors
    /// [`Error::Exec`] when the program cannot be started; an absent namespace or cgroup is named.
    pub fn start(&self) -> Result<Child> {
        Ok(Child { inner: self.launch()?, name: self.program.display().to_string() })
    }

    /// Starts it and runs it to its end like [`super::Exec::run`], but where and with what environment this value says.
    ///
    /// What this value says about the standard streams and the process group does not count.
    pub fn output(&self, stdin: &[u8], timeout: Duration) -> Result<Output> {
        let mut spawn = self.clone();
        (spawn.stdin, spawn.stdout, spawn.stderr) = (Stream::Pipe, Stream::Pipe, Stream::Pipe);
        spawn.own_group = true;
        converse(&self.program, spawn.launch()?, stdin, timeout)
    }

    fn launch(&self) -> Result<std::process::Child> {
        let mut command = self.command()?;
        let namespace = self.netns.as_deref().map(Namespace::open).transpose()?;
        let cgroup = self.cgroup.as_ref().map(|path| open_procs(path)).transpose()?;
        let die_with_thread = self.die_with_thread;
        let failed = |cause| Error::Exec { program: self.program.clone(), cause };
        if namespace.is_none() && cgroup.is_none() && !die_with_thread {
            // Nothing to prepare: the standard library starts it without a copy of our memory (posix_spawn).
            return command.spawn().map_err(failed);
        }
        let prepare = move || {
            if let Some(mut procs) = cgroup.as_ref() {
                procs.write_all(b"0")?;
            }
            if let Some(namespace) = &namespace {
                enter(namespace)?;
            }
            if die_with_thread {
                die_with_parent()?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes only write, setns and prctl calls on memory and descriptors
        // that were prepared before; it takes no lock and allocates nothing.
        unsafe { command.pre_exec(prepare) };
        command.spawn().map_err(failed)
    }

    #[expect(clippy::disallowed_methods, reason = "this module is where processes are started")]
    fn command(&self) -> Result<Command> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().env("PATH", PROGRAM_PATH);
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command.stdin(input(&self.stdin)?).stdout(output(&self.stdout)?).stderr(output(&self.stderr)?);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        if self.own_group {
            command.process_group(0);
        }
        Ok(command)
    }
}

/// A started program. Dropping this value neither ends nor reaps it.
#[derive(Debug)]
pub struct Child {
    inner: std::process::Child,
    pub(super) name: String,
}

impl Child {
    /// Its process number, valid until it has been waited for.
    pub fn pid(&self) -> u32 {
        self.inner.id()
    }

    /// Returns the exit status if it has ended; 128 + the signal's number when a signal ended it.
    pub fn try_wait(&mut self) -> Result<Option<i32>> {
        let status = self.inner.try_wait().map_err(|e| Error::io(format!("wait for {}", self.name), e))?;
        Ok(status.map(code_of))
    }

    /// Waits for its end, however long that takes.
    pub fn wait(&mut self) -> Result<i32> {
        self.inner.wait().map(code_of).map_err(|e| Error::io(format!("wait for {}", self.name), e))
    }

    /// Waits for its end up to `limit`; `None` when it still runs.
    pub fn wait_timeout(&mut self, limit: Duration) -> Result<Option<i32>> {
        let deadline = Deadline::after(limit);
        if let Some(status) = self.try_wait()? {
            return Ok(Some(status));
        }
        let failed = |e| Error::io(format!("wait for {}", self.name), e);
        let pidfd = pidfd_open(self.pid()).map_err(failed)?;
        while !deadline.passed() {
            wait_for_end(&pidfd, deadline.left()).map_err(failed)?;
            if let Some(status) = self.inner.try_wait().map_err(failed)? {
                return Ok(Some(code_of(status)));
            }
        }
        Ok(None)
    }

    /// Sends it a signal; success if it has ended already.
    pub fn kill(&mut self, signal: Signal) -> Result<()> {
        if self.try_wait()?.is_some() {
            return Ok(());
        }
        process::kill(self.pid(), signal)
    }

    /// Asks it to end, kills it when it has not after `grace`, and returns its exit status.
    pub fn stop(&mut self, grace: Duration) -> Result<i32> {
        self.kill(Signal::Terminate)?;
        if let Some(status) = self.wait_timeout(grace)? {
            return Ok(status);
        }
        self.kill(Signal::Kill)?;
        self.wait()
    }

    /// Takes the pipe to its standard input, if there is one.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.inner.stdin.take()
    }

    /// Takes the pipe from its standard output, if there is one.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.inner.stdout.take()
    }

    /// Takes the pipe from its standard error, if there is one.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.inner.stderr.take()
    }
}

fn open_procs(cgroup: &std::path::Path) -> Result<File> {
    let path = cgroup.join("cgroup.procs");
    OpenOptions::new().write(true).open(&path).map_err(|e| Error::io(format!("open {}", path.display()), e))
}

fn input(stream: &Stream) -> Result<Stdio> {
    match stream {
        Stream::Null => Ok(Stdio::null()),
        Stream::Inherit => Ok(Stdio::inherit()),
        Stream::Pipe => Ok(Stdio::piped()),
        Stream::File(path) => {
            File::open(path).map(Stdio::from).map_err(|e| Error::io(format!("open {}", path.display()), e))
        }
    }
}

fn output(stream: &Stream) -> Result<Stdio> {
    match stream {
        Stream::Null => Ok(Stdio::null()),
        Stream::Inherit => Ok(Stdio::inherit()),
        Stream::Pipe => Ok(Stdio::piped()),
        Stream::File(path) => OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map(Stdio::from)
            .map_err(|e| Error::io(format!("open {}", path.display()), e)),
    }
}

/// Moves the calling process, which has one thread, to `namespace`.
fn enter(namespace: &Namespace) -> io::Result<()> {
    // SAFETY: the descriptor is open; the call touches no memory of ours.
    let result = unsafe { libc::setns(namespace.fd().as_raw_fd(), libc::CLONE_NEWNET) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn die_with_parent() -> io::Result<()> {
    // SAFETY: this option takes one number; no memory is touched.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
