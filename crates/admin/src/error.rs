//! What can go wrong between the daemon and whoever asks it.

use std::io;
use std::path::PathBuf;

/// An error of the state API; its text is one line that says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another daemon has the socket.
    #[error(
        "another netd is running{}: it answers on {}; stop it first, or give this one another socket",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(),
        path.display()
    )]
    Running {
        /// The socket.
        path: PathBuf,
        /// The process that listens, where the kernel tells.
        pid: Option<i32>,
    },
    /// Something else is where the socket belongs.
    #[error("{} exists and is no socket: move it away or give netd another socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("{action} {}", path.display())]
    Socket {
        /// What was being done.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The server ended by itself.
    #[error("serve the state api on {}", path.display())]
    Serve {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Nobody listens on the socket.
    #[error(
        "no netd answers on {}: start it with `netd run`, or look why it ended (`systemctl status netd`, \
         `kubectl -n kube-system logs ds/netd`)",
        path.display()
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The socket may not be opened.
    #[error("netd on {} answers root only: run this with sudo", path.display())]
    Forbidden {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The daemon took too long.
    #[error("netd on {} does not answer: it hangs or the node is overloaded; see its log", path.display())]
    Timeout {
        /// The socket.
        path: PathBuf,
    },
    /// The conversation broke off.
    #[error("ask netd on {} for {request}", path.display())]
    Exchange {
        /// The socket.
        path: PathBuf,
        /// What was asked.
        request: &'static str,
        /// The cause.
        #[source]
        source: hyper::Error,
    },
    /// The daemon answered something unexpected.
    #[error("netd on {} answered {status} to {request}", path.display())]
    Status {
        /// The socket.
        path: PathBuf,
        /// What was asked.
        request: &'static str,
        /// HTTP status.
        status: u16,
    },
    /// The answer is no document of this API.
    #[error("the answer of netd to {request} is not understood: are both of the same version?")]
    Document {
        /// What was asked.
        request: &'static str,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    /// True when no daemon could be asked at all, which has an exit code of its own.
    pub const fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Forbidden { .. } | Self::Timeout { .. })
    }
}
