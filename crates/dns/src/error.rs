//! What can go wrong around the servers; a bad packet is never an error.

use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::wire::NameError;

/// An error of the DNS part; its text is one line that says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The cluster domain is not a domain name.
    #[error("cluster domain {domain:?} is not a domain name; write it like cluster.local")]
    ClusterDomain {
        /// The text that was given.
        domain: String,
        /// What is wrong with it.
        #[source]
        source: NameError,
    },
    /// The time to live is out of range.
    #[error("dns ttl {ttl} is out of range; use 0 to 3600 seconds")]
    Ttl {
        /// The value that was given, in seconds.
        ttl: u32,
    },
    /// No address to listen on.
    #[error("dns has no address to listen on; give it the cluster DNS address of the node")]
    NoListenAddress,
    /// A wildcard address: replies could leave with another source address than the query came to.
    #[error("dns cannot listen on {address}: name each address, such as the cluster DNS address")]
    Wildcard {
        /// The address that was given.
        address: SocketAddr,
    },
    /// Another process has the port.
    #[error(
        "port {port} on {address} is taken by another process: stop it (`ss -lntup 'sport = :{port}'` names it) \
         or give netd another dns listen address"
    )]
    PortTaken {
        /// Address that was asked for.
        address: IpAddr,
        /// Port that was asked for.
        port: u16,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The address is not on this node.
    #[error(
        "address {address} is not on this node: add it to an interface or allow binding before it exists"
    )]
    AddressMissing {
        /// Address that was asked for.
        address: IpAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The port needs a privilege the process does not have.
    #[error("port {port} on {address} needs root or CAP_NET_BIND_SERVICE")]
    Privilege {
        /// Address that was asked for.
        address: IpAddr,
        /// Port that was asked for.
        port: u16,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Any other failure to open a socket.
    #[error("open {transport} socket on {address}")]
    Bind {
        /// `udp` or `tcp`.
        transport: &'static str,
        /// Address that was asked for.
        address: SocketAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A receiving socket failed for good.
    #[error("receive on {transport} {address}")]
    Receive {
        /// `udp` or `tcp`.
        transport: &'static str,
        /// Address it is bound to.
        address: SocketAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A task of the server ended although nobody asked it to.
    #[error("dns task for {what} ended: {reason}")]
    TaskEnded {
        /// What the task did.
        what: String,
        /// How it ended.
        reason: String,
    },
}

impl Error {
    /// Sorts a bind failure by what the operator has to do.
    pub(crate) fn bind(transport: &'static str, address: SocketAddr, source: io::Error) -> Self {
        let (ip, port) = (address.ip(), address.port());
        let kind = source.kind();
        if kind == io::ErrorKind::AddrInUse {
            Self::PortTaken { address: ip, port, source }
        } else if kind == io::ErrorKind::AddrNotAvailable {
            Self::AddressMissing { address: ip, source }
        } else if kind == io::ErrorKind::PermissionDenied {
            Self::Privilege { address: ip, port, source }
        } else {
            Self::Bind { transport, address, source }
        }
    }
}
