//! Links, addresses, routes and neighbours over rtnetlink, blocking.
//!
//! A [`Netlink`] is one conversation with the kernel in the network namespace of the thread that opened it; it stays
//! in that namespace wherever it is used later. Every change is also a method of [`Batch`], which sends several in one
//! system call; the single methods of [`Netlink`] are batches of one.

mod addresses;
mod batch;
mod fdb;
mod links;
mod neighbours;
mod ports;
mod routes;
mod socket;
mod traffic;
mod vxlan;
mod wire;

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::AddressFamily;

use crate::Result;
use crate::link::{Ifindex, Mac};
use crate::netns::Namespace;

pub use addresses::Address;
#[cfg(feature = "monitor")]
pub(crate) use addresses::read_address;
pub use batch::Batch;
pub use fdb::FdbEntry;
#[cfg(feature = "monitor")]
pub(crate) use links::read_link;
pub use links::{BridgeSpec, VethSpec};
pub use neighbours::{Neighbour, NeighbourState};
pub use ports::{PortFlags, VlanTagging};
#[cfg(feature = "monitor")]
pub(crate) use routes::read_route;
pub use routes::{
    POD_ROUTE_PROTOCOL, ROUTE_PROTOCOL, Route, RouteFilter, RouteKind, Scope, TABLE_LOCAL, TABLE_MAIN,
};
pub use traffic::{Bucket, IngressFilter, TokenBucket, Verdict};
pub use vxlan::{Vxlan, VxlanSpec, VxlanTunnel};

use socket::Socket;

/// The two families of the Internet protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(crate) fn wire(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

/// One conversation with the kernel's rtnetlink.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
}

impl Netlink {
    /// Opens a conversation in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open()? })
    }

    /// Opens a conversation in another network namespace; it may be used from any thread.
    pub fn open_in(namespace: &Namespace) -> Result<Self> {
        namespace.run(Self::open)?
    }

    /// Sends all changes of a batch, in order, and waits until the kernel has answered each.
    ///
    /// The kernel does not undo anything: when one fails, those before *and after* it may have happened.
    ///
    /// # Errors
    /// [`crate::Error::Netlink`] of the first change that was refused, with its place in the batch.
    pub fn send(&mut self, batch: &Batch) -> Result<()> {
        self.socket.change(batch.requests())
    }

    /// Switches a link on.
    pub fn set_up(&mut self, link: Ifindex) -> Result<()> {
        self.send(Batch::new().set_up(link))
    }

    /// Switches a link off.
    pub fn set_down(&mut self, link: Ifindex) -> Result<()> {
        self.send(Batch::new().set_down(link))
    }

    /// Makes a link a port of a bridge, or of none.
    pub fn set_master(&mut self, link: Ifindex, master: Option<Ifindex>) -> Result<()> {
        self.send(Batch::new().set_master(link, master))
    }

    /// Lets frames leave, or not, by the bridge port they came in by.
    pub fn set_hairpin(&mut self, port: Ifindex, on: bool) -> Result<()> {
        self.send(Batch::new().set_hairpin(port, on))
    }

    /// Sets the largest packet in bytes.
    pub fn set_mtu(&mut self, link: Ifindex, mtu: u32) -> Result<()> {
        self.send(Batch::new().set_mtu(link, mtu))
    }

    /// Sets the Ethernet address.
    pub fn set_mac(&mut self, link: Ifindex, mac: Mac) -> Result<()> {
        self.send(Batch::new().set_mac(link, mac))
    }

    /// Sets the text that says whose a link is, at most 255 bytes.
    pub fn set_alias(&mut self, link: Ifindex, alias: &str) -> Result<()> {
        self.send(Batch::new().set_alias(link, alias))
    }

    /// Deletes a link; takes tens of milliseconds, as the kernel waits until nobody uses it.
    pub fn delete_link(&mut self, link: Ifindex) -> Result<()> {
        self.send(Batch::new().delete_link(link))
    }

    /// Moves a link to another namespace under a new name; it is down there and has another [`Ifindex`].
    pub fn move_to(&mut self, link: Ifindex, namespace: &Namespace, new_name: &str) -> Result<()> {
        self.send(Batch::new().move_to(link, namespace.fd(), new_name))
    }

    /// Gives a link an address; see [`Batch::add_address`].
    pub fn add_address(&mut self, link: Ifindex, prefix: IpNetwork, nodad: bool) -> Result<()> {
        self.send(Batch::new().add_address(link, prefix, nodad))
    }

    /// Takes an address from a link.
    pub fn delete_address(&mut self, link: Ifindex, prefix: IpNetwork) -> Result<()> {
        self.send(Batch::new().delete_address(link, prefix))
    }

    /// Adds a route.
    ///
    /// # Errors
    /// [`crate::Error::is_exists`] when there is one to that destination with the same table and metric.
    pub fn add_route(&mut self, route: &Route) -> Result<()> {
        self.send(Batch::new().add_route(route))
    }

    /// Adds a route or replaces the one with the same destination, table and metric.
    pub fn replace_route(&mut self, route: &Route) -> Result<()> {
        self.send(Batch::new().replace_route(route))
    }

    /// Deletes the route that has all that `route` says.
    ///
    /// # Errors
    /// [`crate::Error::is_not_found`] when there is none.
    pub fn delete_route(&mut self, route: &Route) -> Result<()> {
        self.send(Batch::new().delete_route(route))
    }

    /// Tells the kernel a neighbour's Ethernet address; see [`Batch::add_neighbour`].
    pub fn add_neighbour(&mut self, link: Ifindex, ip: IpAddr, mac: Mac, permanent: bool) -> Result<()> {
        self.send(Batch::new().add_neighbour(link, ip, mac, permanent))
    }

    /// Makes the kernel forget a neighbour.
    pub fn delete_neighbour(&mut self, link: Ifindex, ip: IpAddr) -> Result<()> {
        self.send(Batch::new().delete_neighbour(link, ip))
    }
}

#[cfg(test)]
mod tests;
