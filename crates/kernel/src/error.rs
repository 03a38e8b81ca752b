//! What can fail when talking to the kernel.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A failed conversation with the kernel or with another program.
///
/// The message carries the cause (`"add route 10.0.0.0/8: No such device"`), so a cause is not repeated through
/// [`std::error::Error::source`]: a printed chain tells each fact once.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a netlink request.
    #[error("{action}: {}{}", errno_text(*errno), extack_text(message.as_deref()))]
    Netlink {
        /// What was asked, with its object: `"add route 10.1.0.0/24 via 192.168.1.2"`.
        action: String,
        /// Place of the refused request in its batch, from 0.
        index: usize,
        /// The positive error number.
        errno: i32,
        /// The kernel's own words (extended acknowledgement), where it gave any.
        message: Option<String>,
    },
    /// The kernel answered with something that is not the netlink we know.
    #[error("{action}: unexpected netlink answer: {detail}")]
    Protocol {
        /// What was asked.
        action: String,
        /// What was wrong with the answer.
        detail: String,
    },
    /// A system call or file operation failed.
    #[error("{action}: {cause}")]
    Io {
        /// What was tried, with its object: `"open /run/netns/w1"`.
        action: String,
        /// What the system said.
        cause: io::Error,
    },
    /// A program could not be started.
    #[error("start {}: {cause}", program.display())]
    Exec {
        /// The program's path.
        program: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Something did not happen in time.
    #[error("{action}: not done within {limit:?}{}", hint_text(hint.as_deref()))]
    Timeout {
        /// What was waited for.
        action: String,
        /// How long.
        limit: Duration,
        /// What may help to find out why, such as the holder of a lock.
        hint: Option<String>,
    },
    /// Something that must be there is not.
    #[error("{what} not found")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// The caller passed something that cannot be meant.
    #[error("invalid {what}")]
    Invalid {
        /// What was wrong, with its value.
        what: String,
    },
}

impl Error {
    /// Wraps what an operation on files or a system call said.
    pub fn io(action: impl Into<String>, cause: io::Error) -> Self {
        Self::Io { action: action.into(), cause }
    }

    /// Wraps an error number returned by a system call.
    pub(crate) fn sys(action: impl Into<String>, errno: nix::errno::Errno) -> Self {
        Self::Io { action: action.into(), cause: io::Error::from_raw_os_error(errno as i32) }
    }

    /// The positive error number the kernel gave, if it gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Netlink { errno, .. } => Some(*errno),
            Self::Io { cause, .. } | Self::Exec { cause, .. } => cause.raw_os_error(),
            Self::Protocol { .. } | Self::Timeout { .. } | Self::NotFound { .. } | Self::Invalid { .. } => {
                None
            }
        }
    }

    /// Whether the object is absent: what a deletion may take as success.
    ///
    /// `ENOENT`, `ENODEV`, `ESRCH` (a route or neighbour that is not there), `EADDRNOTAVAIL` (an address that is not
    /// there) and `ENXIO`.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
            || matches!(
                self.errno(),
                Some(libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENXIO)
            )
    }

    /// Whether the object is there already: what a creation may take as success.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// Whether the caller lacks a privilege: not root, or a capability is missing.
    pub fn is_denied(&self) -> bool {
        matches!(self.errno(), Some(libc::EPERM | libc::EACCES))
    }

    /// Whether something took longer than allowed.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }
}

fn errno_text(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

fn extack_text(message: Option<&str>) -> String {
    message.map(|text| format!(" ({text})")).unwrap_or_default()
}

fn hint_text(hint: Option<&str>) -> String {
    hint.map(|text| format!(" ({text})")).unwrap_or_default()
}
