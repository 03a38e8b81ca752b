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
use netd_kernel::{Clock, Mac, Namespace, Netlink, SystemClock, sysctl};

use crate::config::ExtraRoute;
use crate::naming;
use crate::node::Bridge;

/// The pod's own loopback link.
const LOOPBACK: &str = "lo";
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
    /// Wires the pod; on an error some of it may be done: see [`unwire`].
    ///
    /// # Errors
    /// What the kernel refused, with its object.
    pub fn wire(
        &self,
        netlink: &mut Netlink,
        bridge: &Bridge,
        namespace: &Namespace,
    ) -> netd_kernel::Result<Wired> {
        let host_name = naming::host_link(&self.lease.owner);
        let first = self.first_address();
        let alias = naming::alias(self.network, self.lease);
        let index = netlink.add_veth(&VethSpec {
            name: &host_name,
            mac: Some(naming::host_mac(first)),
            mtu: Some(bridge.mtu),
            master: Some(bridge.index),
            alias: Some(&alias),
            peer_name: &self.lease.owner.interface,
            peer_mac: Some(self.mac),
            peer_namespace: Some(namespace.fd()),
        })?;
        let mut batch = Batch::new();
        for address in &self.lease.addresses {
            batch.add_neighbour(bridge.index, *address, self.mac, true);
        }
        if self.hairpin {
            batch.set_hairpin(index, true);
        }
        batch.set_up(index);
        netlink.send(&batch)?;
        namespace.run(|| self.wire_inside())??;
        // The kernel learns with a delay of up to a second that the other end is up, and only then does the bridge
        // forward. Reading the link makes newer ones look at once (`net/core/rtnetlink.c:rtnl_getlink`).
        netlink.link_by_index(index)?;
        Ok(Wired { host_name })
    }

    /// Configures the pod's end; runs in the pod's namespace.
    fn wire_inside(&self) -> netd_kernel::Result<()> {
        let name = self.lease.owner.interface.as_str();
        let mut netlink = Netlink::open()?;
        let missing = |what: &str| netd_kernel::Error::NotFound { what: format!("link {what} in the pod") };
        let link = netlink.link(name)?.ok_or_else(|| missing(name))?;
        let loopback = netlink.link(LOOPBACK)?.ok_or_else(|| missing(LOOPBACK))?;
        self.set_parameters(name)?;
        let mut batch = Batch::new();
        if !loopback.up {
            batch.set_up(loopback.index);
        }
        batch.set_up(link.index);
        for address in &self.lease.addresses {
            batch.add_address(link.index, IpNetwork::from(*address), !self.detect_duplicates);
        }
        netlink.send(&batch)?;
        add_routes(&mut netlink, &self.routes_over(link.index))?;
        if self.detect_duplicates { await_addresses(&mut netlink, link.index) } else { Ok(()) }
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
            return Err(netd_kernel::Error::Protocol { action: action(), detail });
        }
        if !addresses.iter().any(|address| address.tentative) {
            return Ok(());
        }
        if SystemClock.now() >= deadline {
            return Err(netd_kernel::Error::Timeout { action: action(), limit: DETECTION, hint: None });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Adds routes; one that another interface of the pod has already stays that interface's, as with other plugins.
fn add_routes(netlink: &mut Netlink, routes: &[Route]) -> netd_kernel::Result<()> {
    let mut batch = Batch::new();
    for route in routes {
        batch.add_route(route);
    }
    match netlink.send(&batch) {
        Err(error) if error.is_exists() => {}
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

/// Finds the host's end of an attachment; a link of that name that says it is another's is left out.
pub fn host_link(netlink: &mut Netlink, owner: &Owner) -> netd_kernel::Result<Option<Link>> {
    let link = netlink.link(&naming::host_link(owner))?;
    // Without an alias it is ours as well: the call was killed between two changes.
    let ours = |link: &Link| {
        link.kind.as_deref() == Some("veth") && link.alias.as_deref().is_none_or(naming::is_alias)
    };
    Ok(link.filter(ours))
}

/// Removes an attachment's link and neighbour entries; what is absent is no error.
///
/// # Errors
/// Every removal that failed; the others are done.
pub fn unwire(
    netlink: &mut Netlink,
    bridge: &str,
    owner: &Owner,
    addresses: &[IpAddr],
) -> Vec<netd_kernel::Error> {
    let mut errors = Vec::new();
    let mut note = |outcome: netd_kernel::Result<()>| match outcome {
        Err(error) if !error.is_not_found() => errors.push(error),
        Ok(()) | Err(_) => {}
    };
    // The entries first: while the link is there, deleting it may take tens of milliseconds.
    match netlink.link(bridge) {
        Ok(Some(bridge)) => {
            for address in addresses {
                note(netlink.delete_neighbour(bridge.index, *address));
            }
        }
        Ok(None) => {}
        Err(error) => note(Err(error)),
    }
    match host_link(netlink, owner) {
        Ok(Some(link)) => note(netlink.delete_link(link.index)),
        Ok(None) => {}
        Err(error) => note(Err(error)),
    }
    errors
}
