//! One pod's attachment: a veth pair, an address, routes, a neighbour entry.
//!
//! A pod's address has a host prefix (/32, /128) and its routes lead to the gateway, so that packets between two pods
//! of one node pass the host's IP layer as those between nodes do: replies of a Service's endpoint are translated
//! back whether or not `br_netfilter` is loaded, and there is one place to filter. Where the configuration asks for a
//! LAN ([`Wiring::on_link`]) the address keeps its subnet's prefix; where it asks for no bridge, the node has a route
//! to each pod.
//!
//! Everything is found again by the attachment alone: the host's end by its name, the lease by its owner.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netd_ipam::{Lease, Owner};
use netd_kernel::link::{Ifindex, Link};
use netd_kernel::netlink::{Batch, VethSpec};
use netd_kernel::reap::{GROUP, Reaper};
use netd_kernel::{Error, Mac, Netlink};

use crate::bandwidth::{self, Limits};
use crate::call::Container;
use crate::config::{ExtraRoute, Wiring};
use crate::naming;
use crate::node::Ground;

mod host;
mod inside;

pub use inside::default_gateways;

/// What is to be wired.
#[derive(Debug)]
pub struct Attachment<'a> {
    /// The network's name.
    pub network: &'a str,
    /// The owner and its addresses.
    pub lease: &'a Lease,
    /// How pods hang on the node.
    pub wiring: &'a Wiring,
    /// The MAC address of the pod's end.
    pub mac: Mac,
    /// The MAC address of the host's end.
    pub host_mac: Mac,
    /// The gateway of each address with the subnet's prefix, in the same order.
    pub gateways: &'a [IpNetwork],
    /// Whether there is to be a default route that `routes` does not name.
    pub default_route: bool,
    /// Routes besides the default routes.
    pub routes: &'a [ExtraRoute],
    /// Whether frames may leave by the port they came in by.
    pub hairpin: bool,
    /// Whether IPv6 addresses wait for duplicate detection.
    pub detect_duplicates: bool,
    /// Whether the pod may send in its own name only.
    pub guarded: bool,
    /// How fast it may receive and send.
    pub limits: Limits,
}

/// A link of a pod as it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wired {
    /// The name of the host's end.
    pub host_name: String,
}

impl Attachment<'_> {
    /// Wires the pod; on an error some of it may be done: see [`unwire`]. `inside` is a conversation in the pod's
    /// namespace.
    ///
    /// # Errors
    /// What the kernel refused, with its object.
    pub fn wire(
        &self,
        netlink: &mut Netlink,
        ground: &Ground,
        (namespace, inside): (&Container, &mut Netlink),
    ) -> netd_kernel::Result<Wired> {
        let host_name = naming::host_link(&self.lease.owner);
        let spec = VethSpec {
            name: &host_name,
            mac: Some(self.host_mac),
            mtu: Some(ground.mtu),
            master: ground.bridge.as_ref().map(|bridge| bridge.index),
            alias: None,
            up: true,
            peer_name: &self.lease.owner.interface,
            peer_mac: Some(self.mac),
            peer_namespace: Some(namespace.fd()),
        };
        make_pair(netlink, &spec)?;
        let (host, end) = self.ends(netlink, inside)?;
        match &ground.bridge {
            Some(_) => self.plug_in(netlink, ground, (&host_name, host))?,
            None => self.route_to_pod(netlink, ground, (&host_name, host))?,
        }
        let attachment = (self.network, &self.lease.owner);
        bandwidth::add(netlink, attachment, (host, ground.mtu), &self.limits, self.guarded)?;
        self.wire_inside(namespace, inside, end)?;
        // The kernel learns with a delay of up to a second that the other end is up, and only then does the bridge
        // forward.
        netlink.refresh_carrier(&host_name)?;
        Ok(Wired { host_name })
    }
}

/// Makes the pair, also where an attachment of the same name was put aside and is not deleted yet.
fn make_pair(netlink: &mut Netlink, spec: &VethSpec<'_>) -> netd_kernel::Result<()> {
    match netlink.make_veth(spec) {
        Err(error) if error.is_exists() => {
            delete_aside(netlink)?;
            netlink.make_veth(spec)
        }
        done => done,
    }
}

/// Deletes what was put aside and is there still.
///
/// # Errors
/// When the kernel refuses.
pub fn delete_aside(netlink: &mut Netlink) -> netd_kernel::Result<()> {
    match netlink.delete_group(GROUP) {
        Err(error) if !error.is_not_found() => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Finds the host's end of an attachment; a link of that name that says it is another's, or that was put aside, is left
/// out.
pub fn host_link(netlink: &mut Netlink, owner: &Owner) -> netd_kernel::Result<Option<Link>> {
    let aside = |link: &Link| link.alias.as_deref().is_some_and(naming::is_aside);
    Ok(own_link(netlink, owner)?.filter(|link| !aside(link)))
}

/// As [`host_link`], and with one that was put aside.
fn own_link(netlink: &mut Netlink, owner: &Owner) -> netd_kernel::Result<Option<Link>> {
    let link = netlink.link(&naming::host_link(owner))?;
    let known = |alias: &str| naming::is_alias(alias) || naming::is_aside(alias);
    // Without an alias it is ours as well: the call was killed between two changes.
    let ours = |link: &Link| link.kind.as_deref() == Some("veth") && link.alias.as_deref().is_none_or(known);
    Ok(link.filter(ours))
}

/// Removes an attachment's links and its neighbour entries on `bridge`; what is absent is no error. With a `reaper` the
/// links are only switched off, put aside and left to it.
///
/// # Errors
/// Every removal that failed; the others are done.
pub fn unwire(
    netlink: &mut Netlink,
    bridge: &str,
    owner: &Owner,
    addresses: &[IpAddr],
    reaper: Option<&Reaper>,
) -> Vec<Error> {
    let mut errors = Vec::new();
    let link = own_link(netlink, owner).unwrap_or_else(|error| {
        errors.push(error);
        None
    });
    // The entries first: while the link is there, deleting it may take tens of milliseconds. Those of a link without a
    // bridge go with it.
    if link.as_ref().is_none_or(|link| link.master.is_some()) && !addresses.is_empty() {
        match netlink.link_index(bridge) {
            Ok(Some(bridge)) => {
                let deleted = addresses.iter().map(|address| netlink.delete_neighbour(bridge, *address));
                errors.extend(deleted.filter_map(unless_gone));
            }
            Ok(None) => {}
            Err(error) => errors.push(error),
        }
    }
    let shaper = bandwidth::find(netlink, owner).unwrap_or_else(|error| {
        errors.push(error);
        None
    });
    let links: Vec<Ifindex> = link.iter().chain(&shaper).map(|link| link.index).collect();
    if links.is_empty() {
        return errors;
    }
    if let Some(reaper) = reaper {
        let mut batch = Batch::new();
        for link in &links {
            batch.put_aside(*link, GROUP, &naming::aside_alias(owner));
        }
        let aside = netlink.send(&batch);
        // A daemon that ended just now deletes nothing.
        if aside.is_ok() && reaper.wake() {
            return errors;
        }
    }
    errors.extend(links.into_iter().filter_map(|link| unless_gone(netlink.delete_link(link))));
    errors
}

fn unless_gone(outcome: netd_kernel::Result<()>) -> Option<Error> {
    outcome.err().filter(|error| !error.is_not_found())
}
