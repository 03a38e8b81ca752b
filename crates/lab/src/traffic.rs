//! Servers that say who they are, and clients that say who answered.
//!
//! Sockets belong to the network namespace of the thread that opens them: call these inside [`crate::Place::run`], or
//! have an [`crate::agent`] call them in a process of the pod's cgroup.

mod counts;
mod loader;
mod probe;
mod server;

use std::io;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

pub use counts::Counts;
pub use loader::{Load, Loader};
pub use probe::{connect_once, probe_once, udp_once, udp_unconnected_once};
pub use server::{Serve, Server};

/// How a client talks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP: a connection for each probe.
    Tcp,
    /// UDP through connect(2): an ICMP error is told to the client.
    Udp,
    /// UDP through sendto(2) and recvfrom(2), as DNS clients often do.
    UdpUnconnected,
}

/// How a probe ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// A server answered.
    Answered {
        /// The name the server gave itself.
        server: String,
        /// The client's address as the server sees it.
        peer: SocketAddr,
        /// The server's address as the client sees it: getpeername(2), or where the datagram came from.
        remote: SocketAddr,
    },
    /// The other side said that nobody listens: TCP reset of the first packet, or ICMP.
    Refused,
    /// Nothing came in time.
    TimedOut,
    /// The connection was made and then reset.
    Reset,
    /// Something else, in the system's words.
    Other(String),
}

impl Outcome {
    /// The name of the server that answered.
    pub fn server(&self) -> Option<&str> {
        match self {
            Self::Answered { server, .. } => Some(server),
            Self::Refused | Self::TimedOut | Self::Reset | Self::Other(_) => None,
        }
    }

    /// Whether a server answered.
    pub fn is_answered(&self) -> bool {
        self.server().is_some()
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the kinds of I/O errors are many and foreign")]
    pub(crate) fn of_error(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::TimedOut,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
                Self::Reset
            }
            _ => Self::Other(error.to_string()),
        }
    }
}

/// Makes an IPv4 address of one that was mapped into IPv6 by a dual-stack socket.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests;
