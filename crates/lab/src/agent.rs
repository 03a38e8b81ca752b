//! Servers and clients as child processes.
//!
//! A socket hook (eBPF) belongs to a cgroup, and a cgroup holds processes, not threads: traffic that such a hook is to
//! see must come from a process in the pod's cgroup. A program that calls [`main`] on some hidden subcommand can be its
//! own agent; [`crate::LabSpec::agent`] says how to start it. It gets its command as one JSON argument and writes what
//! it has to say as JSON lines to standard output.

mod handle;
mod program;

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::dns::{DnsRecord, Lookup, LookupAnswer};
use crate::traffic::{Counts, Outcome, Protocol};
pub use crate::traffic::{Load, Serve};
pub use handle::AgentHandle;
pub use program::main;

/// What an agent is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AgentCommand {
    /// Serve until told to end.
    Serve(Serve),
    /// Probe some times and end.
    Connect(Connect),
    /// Load until told to end.
    Load(Load),
    /// Keep one connection open and talk on it until told to end.
    Hold(Hold),
    /// Ask a DNS server and end.
    Lookup(Lookup),
}

/// Probes to make, one after the other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Connect {
    /// How to talk.
    pub protocol: Protocol,
    /// Whom to.
    pub target: SocketAddr,
    /// How often.
    pub count: u32,
    /// How long each may take.
    pub timeout: Duration,
    /// How long to rest between two.
    pub pause: Duration,
}

impl Connect {
    /// Returns one TCP connection with two seconds.
    pub fn tcp(target: SocketAddr) -> Self {
        Self::by(Protocol::Tcp, target)
    }

    /// Returns one question on a connected UDP socket with two seconds.
    pub fn udp(target: SocketAddr) -> Self {
        Self::by(Protocol::Udp, target)
    }

    /// Returns one question on an unconnected UDP socket with two seconds.
    pub fn udp_unconnected(target: SocketAddr) -> Self {
        Self::by(Protocol::UdpUnconnected, target)
    }

    /// Returns one probe with two seconds.
    pub fn by(protocol: Protocol, target: SocketAddr) -> Self {
        Self { protocol, target, count: 1, timeout: Duration::from_secs(2), pause: Duration::ZERO }
    }

    /// Asks `count` times.
    #[must_use]
    pub fn times(mut self, count: u32) -> Self {
        self.count = count;
        self
    }

    /// Gives each probe this long.
    #[must_use]
    pub fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The longest that all of it can take: connecting and reading may each take the timeout.
    pub(crate) fn limit(&self) -> Duration {
        (self.timeout * 2 + self.pause) * self.count
    }
}

/// A connection to hold.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hold {
    /// Whom to connect to, over TCP.
    pub target: SocketAddr,
    /// How often to say something and wait for its echo.
    pub every: Duration,
    /// How long an echo may take.
    pub timeout: Duration,
}

/// A line that an agent writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Report {
    /// It serves, loads or holds from now on.
    Ready,
    /// How a probe ended.
    Outcome(Outcome),
    /// What it has counted so far.
    Counts(Counts),
    /// What a DNS server answered.
    Answer(LookupAnswer),
    /// It cannot do what it was started for.
    Failed {
        /// Why.
        message: String,
    },
}
