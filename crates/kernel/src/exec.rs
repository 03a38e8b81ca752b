//! Other programs.
//!
//! [`Exec`] runs a short command to its end and is a trait, so that a caller's logic can be tested without the program.
//! [`Spawn`] starts a long-lived child, in a network namespace and cgroup of its own if wanted.

mod run;
mod spawn;
mod usage;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use run::SystemExec;
pub use spawn::{Child, Spawn, Stream};
pub use usage::Usage;

use crate::Result;

/// The search path given to children, and the only directories programs are looked for in.
pub const PROGRAM_PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// Runs programs to their end.
pub trait Exec: Send + Sync {
    /// Runs `program` with `stdin` on its standard input and returns what it said and how it ended.
    ///
    /// The child sees an environment of nothing but `PATH` and `LC_ALL=C`. It is killed, with all it started, when it
    /// has not ended after `timeout`.
    ///
    /// # Errors
    /// [`crate::Error::Exec`] when it cannot be started, [`crate::Error::Timeout`] when it was killed. A status other
    /// than 0 is not an error here.
    fn run(&self, program: &Path, args: &[&str], stdin: &[u8], timeout: Duration) -> Result<Output>;
}

/// How a program ended and what it wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// The exit status; 128 + the signal's number when a signal ended it, as a shell says.
    pub status: i32,
    /// All of standard output.
    pub stdout: Vec<u8>,
    /// All of standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Whether the exit status is 0.
    pub fn success(&self) -> bool {
        self.status == 0
    }

    /// The text of standard error, trimmed: what belongs in an error message.
    pub fn complaint(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_owned()
    }
}

/// Finds `name` in the directories of [`PROGRAM_PATH`], whatever the caller's `PATH` is.
pub fn find_program(name: &str) -> Option<PathBuf> {
    if name.is_empty() || name.contains('/') {
        return None;
    }
    PROGRAM_PATH.split(':').map(|directory| Path::new(directory).join(name)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}

#[cfg(test)]
mod tests;
