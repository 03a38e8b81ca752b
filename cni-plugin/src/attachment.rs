//! One pod's attachment: a veth pair, an address, routes, a neighbour entry.
//!
//! A pod's address has a host prefix (/32, /128) and its routes lead to the gateway, so that packets between two pods
//! of one node pass the host's IP layer as those between nodes do: replies of a Service's endpoint are translated
//! back whether or not `br_netfilter` is loaded, and there is one place to filter.
//!
//! Everything is found again by the attachment alone: the host's end by its name, the lease by its owner.

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use netd_ipam::{Lease, Owner};
use netd_kernel::link::{Ifindex, Link};
use netd_kernel::netlink::{Batch, Route, VethSpec};
use netd_kernel::reap::{GROUP, Reaper};
use netd_kernel::{Clock, Error, Mac, Namespace, Netlink, SystemClock, sysctl};

use crate::config::ExtraRoute;
use crate::naming;
use crate::node::Bridge;

/// The loopback link of every namespace (`include/net/flow.h:LOOPBACK_IFINDEX`).
const LOOPBACK: Ifindex = Ifindex(1);
/// How long duplicate detection may take; a second or two with the kernel's defaults.
const DETECTION: Duration = Duration::from_secs(10);

/// What is to be wired.
#[derive(Debug)]
pub struct Attachment<'a> {
    /// The network's name.
    pub network: &'a str,
    /// The owner and its addresses.
    pub lease: &'a Lease,
    /// The MAC address of the pod's end.
    pub mac: Mac,
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
        bridge: &Bridge,
        (namespace, inside): (&Namespace, &mut Netlink),
    ) -> netd_kernel::Result<Wired> {
        let host_name = naming::host_link(&self.lease.owner);
        let first = self.first_address();
        let spec = VethSpec {
            name: &host_name,
            mac: Some(naming::host_mac(first)),
            mtu: Some(bridge.mtu),
            master: Some(bridge.index),
            alias: None,
            up: true,
            peer_name: &self.lease.owner.interface,
            peer_mac: Some(self.mac),
            peer_namespace: Some(namespace.fd()),
        };
        make_pair(netlink, &spec)?;
        let mut batch = Batch::new();
        batch.configure_port(&host_name, &naming::alias(self.network, self.lease), self.hairpin);
        for address in &self.lease.addresses {
            batch.add_neighbour(bridge.index, *address, self.mac, true);
        }
        netlink.send(&batch)?;
        self.wire_inside(namespace, inside)?;
        // The kernel learns with a delay of up to a second that the other end is up, and only then does the bridge
        // forward. Reading the link makes newer ones look at once (`net/core/rtnetlink.c:rtnl_getlink`).
        netlink.link(&host_name)?;
        Ok(Wired { host_name })
    }

    /// Configures the pod's end.
    fn wire_inside(&self, namespace: &Namespace, netlink: &mut Netlink) -> netd_kernel::Result<()> {
        let name = self.lease.owner.interface.as_str();
        let missing = || Error::NotFound { what: format!("link {name} in the pod") };
        let link = netlink.link(name)?.ok_or_else(missing)?;
        namespace.run(|| self.set_parameters(name))??;
        let mut batch = Batch::new();
        batch.set_up(LOOPBACK).set_up(link.index);
        for address in &self.lease.addresses {
            batch.add_address(link.index, IpNetwork::from(*address), !self.detect_duplicates);
        }
        add_routes(netlink, batch, &self.routes_over(link.index))?;
        if self.detect_duplicates { await_addresses(netlink, link.index) } else { Ok(()) }
    }

    /// Whether the pod gets a default route through its own gateway in this one's family.
    pub fn wants_default(&self, gateway: &IpNetwork) -> bool {
        let named = |route: &ExtraRoute| route.dst.prefix() == 0 && route.dst.is_ipv4() == gateway.is_ipv4();
        self.default_route && !self.routes.iter().any(named)
    }

    fn routes_over(&self, link: Ifindex) -> Vec<Route> {
        let own = self.gateways.iter().flat_map(|gateway| {
            // Without a default route the other pods of the subnet are still reached, through the gateway.
            let subnet = IpNetwork::new(gateway.network(), gateway.prefix()).unwrap_or(*gateway);
            let onward = if self.wants_default(gateway) {
                Route::default_via(gateway.ip())
            } else {
                Route::to(subnet).via(gateway.ip())
            };
            [Route::to(IpNetwork::from(gateway.ip())).dev(link), onward.dev(link)]
        });
        let extra = self.routes_with_gateway();
        own.chain(extra.map(|(to, gateway)| Route::to(to).via(gateway).dev(link).onlink())).collect()
    }

    /// Whoever sends router advertisements or redirects in the pod's network is not believed (CVE-2020-10749); IPv6 is
    /// switched on where the pod has an address of it.
    fn set_parameters(&self, name: &str) -> netd_kernel::Result<()> {
        if self.lease.addresses.iter().any(IpAddr::is_ipv6) {
            sysctl::write(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
        }
        sysctl::write_if_present(&format!("net/ipv6/conf/{name}/accept_ra"), "0")?;
        sysctl::write_if_present(&format!("net/ipv6/conf/{name}/accept_redirects"), "0")?;
        Ok(())
    }

    /// The extra routes, each with a gateway: its own, else the pod's of the same family.
    pub fn routes_with_gateway(&self) -> impl Iterator<Item = (IpNetwork, IpAddr)> + '_ {
        let of_family = |v4| self.gateways.iter().map(IpNetwork::ip).find(|gateway| gateway.is_ipv4() == v4);
        self.routes
            .iter()
            .filter_map(move |route| Some((route.dst, route.gw.or_else(|| of_family(route.dst.is_ipv4()))?)))
    }

    fn first_address(&self) -> IpAddr {
        first_address(self.lease)
    }
}

/// Waits until the kernel knows that nobody else has the link's addresses (RFC 4862, section 5.4).
fn await_addresses(netlink: &mut Netlink, link: Ifindex) -> netd_kernel::Result<()> {
    let action = || "wait for duplicate address detection".to_owned();
    let deadline = SystemClock.now() + DETECTION;
    loop {
        let addresses = netlink.addresses(Some(link))?;
        if let Some(taken) = addresses.iter().find(|address| address.duplicate) {
            let detail = format!("{} is in use by another machine", taken.prefix);
            return Err(Error::Protocol { action: action(), detail });
        }
        if !addresses.iter().any(|address| address.tentative) {
            return Ok(());
        }
        if SystemClock.now() >= deadline {
            return Err(Error::Timeout { action: action(), limit: DETECTION, hint: None });
        }
        std::thread::sleep(Duration::from_millis(10));
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

/// Does other changes and adds routes; a route that another interface of the pod has already stays that interface's, as
/// with other plugins.
fn add_routes(netlink: &mut Netlink, mut batch: Batch, routes: &[Route]) -> netd_kernel::Result<()> {
    let others = batch.len();
    for route in routes {
        batch.add_route(route);
    }
    match netlink.send(&batch) {
        // The first that was refused: all before it is done.
        Err(error)
            if error.is_exists() && matches!(error, Error::Netlink { index, .. } if index >= others) => {}
        done => return done,
    }
    // One exists: one by one, so that no other refusal is hidden behind it.
    for route in routes {
        // The route to the gateway may be the other interface's.
        match netlink.add_route(&Route { onlink: route.gateway.is_some(), ..route.clone() }) {
            Err(error) if !error.is_exists() => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// The address that the pod's MAC address follows from.
pub fn first_address(lease: &Lease) -> IpAddr {
    // A lease always has an address.
    lease.addresses.first().copied().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
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

/// Removes an attachment's link and neighbour entries; what is absent is no error. With a `reaper` the link is only
/// switched off, put aside and left to it.
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
    // The entries first: while the link is there, deleting it may take tens of milliseconds.
    match netlink.link(bridge) {
        Ok(Some(bridge)) => {
            let deleted = addresses.iter().map(|address| netlink.delete_neighbour(bridge.index, *address));
            errors.extend(deleted.filter_map(unless_gone));
        }
        Ok(None) => {}
        Err(error) => errors.push(error),
    }
    let link = match own_link(netlink, owner) {
        Ok(Some(link)) => link,
        Ok(None) => return errors,
        Err(error) => {
            errors.push(error);
            return errors;
        }
    };
    if let Some(reaper) = reaper {
        let aside = netlink.send(Batch::new().put_aside(link.index, GROUP, &naming::aside_alias(owner)));
        // A daemon that ended just now deletes nothing.
        if aside.is_ok() && reaper.wake() {
            return errors;
        }
    }
    errors.extend(unless_gone(netlink.delete_link(link.index)));
    errors
}

fn unless_gone(outcome: netd_kernel::Result<()>) -> Option<Error> {
    outcome.err().filter(|error| !error.is_not_found())
}
