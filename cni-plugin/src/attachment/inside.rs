//! The pod's end: addresses, routes, neighbours.

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use netd_kernel::link::Ifindex;
use netd_kernel::netlink::{Batch, Route, RouteKind};
use netd_kernel::{Clock, Error, Netlink, SystemClock, sysctl};

use super::Attachment;
use crate::call::Container;
use crate::config::{ExtraRoute, Mode};

/// The loopback link of every namespace (`include/net/flow.h:LOOPBACK_IFINDEX`).
const LOOPBACK: Ifindex = Ifindex(1);
/// How long duplicate detection may take; a second or two with the kernel's defaults.
const DETECTION: Duration = Duration::from_secs(10);
/// The metric of a route that another interface of the pod has already is more than this; IPv6's own is 1024.
const BEHIND: u32 = 2048;
/// What the kernel answers to a gateway that it cannot use (`asm-generic/errno-base.h`).
const EINVAL: i32 = 22;

impl Attachment<'_> {
    /// Configures the pod's end.
    pub(super) fn wire_inside(
        &self,
        namespace: &Container,
        netlink: &mut Netlink,
        link: Ifindex,
    ) -> netd_kernel::Result<()> {
        let name = self.lease.owner.interface.as_str();
        if !self.wiring.enabled {
            return Ok(());
        }
        if self.wiring.addressed {
            namespace.visit(|| self.set_parameters(name))??;
        }
        let mut batch = Batch::new();
        batch.set_up(LOOPBACK).set_up(link);
        for address in self.prefixed() {
            batch.add_address(link, address, !self.detect_duplicates);
        }
        if self.wiring.mode == Mode::Routed {
            for gateway in self.gateways.iter().map(|gateway| self.wiring.next_hop(gateway)) {
                batch.add_neighbour(link, gateway, self.host_mac, true);
            }
        }
        add_routes(netlink, batch, &self.routes_over(link))?;
        if self.detect_duplicates {
            await_addresses(netlink, link)?;
        }
        let last = self.lease.addresses.iter().rev().find(|address| address.is_ipv6());
        last.map_or(Ok(()), |address| await_delivery(netlink, *address))
    }

    /// Whether the pod gets a default route through this gateway: the first of its family, unless a route says otherwise.
    pub fn wants_default(&self, gateway: &IpNetwork) -> bool {
        self.default_route && default_gateways(self.gateways, self.routes).any(|wanted| wanted == gateway)
    }

    /// The addresses with the prefix that the pod's link has them with.
    pub fn prefixed(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        self.lease.addresses.iter().zip(self.gateways).map(|(address, gateway)| {
            let prefix = self.wiring.on_link.then(|| IpNetwork::new(*address, gateway.prefix()).ok());
            prefix.flatten().unwrap_or_else(|| IpNetwork::from(*address))
        })
    }

    fn routes_over(&self, link: Ifindex) -> Vec<Route> {
        let mut routes: Vec<Route> = Vec::new();
        for gateway in self.gateways {
            let next = self.wiring.next_hop(gateway);
            let own = (!self.wiring.on_link).then(|| Route::to(IpNetwork::from(next)));
            // Without a default route the other pods of the subnet are still reached, through the gateway.
            let subnet = IpNetwork::new(gateway.network(), gateway.prefix()).unwrap_or(*gateway);
            let onward = if self.wants_default(gateway) {
                Some(Route::default_via(next))
            } else {
                (!self.wiring.on_link).then(|| Route::to(subnet).via(next))
            };
            let wanted = own.into_iter().chain(onward).map(|route| route.dev(link));
            let missing: Vec<Route> = wanted.filter(|route| !routes.contains(route)).collect();
            routes.extend(missing);
        }
        routes.extend(self.routes_with_gateway().map(|route| route.over(link)));
        routes
    }

    /// Whoever sends router advertisements or redirects in the pod's network is not believed (CVE-2020-10749); IPv6 is
    /// switched on where the pod has an address of it.
    fn set_parameters(&self, name: &str) -> netd_kernel::Result<()> {
        if self.lease.addresses.iter().any(IpAddr::is_ipv6) {
            sysctl::write(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
            if !self.detect_duplicates {
                // The link-local address too is there at once, for programs that listen on it.
                sysctl::write(&format!("net/ipv6/conf/{name}/accept_dad"), "0")?;
            }
        }
        sysctl::set_if_present(&format!("net/ipv6/conf/{name}/accept_ra"), "0")?;
        sysctl::set_if_present(&format!("net/ipv6/conf/{name}/accept_redirects"), "0")?;
        if !self.keeps_mac() {
            // The pod tells its neighbours when its MAC address changes (Documentation/networking/ip-sysctl.rst).
            sysctl::set_if_present(&format!("net/ipv4/conf/{name}/arp_notify"), "1")?;
            sysctl::set_if_present(&format!("net/ipv6/conf/{name}/ndisc_notify"), "1")?;
        }
        Ok(())
    }

    /// The extra routes, each with a gateway where it is not on the link: its own, else the pod's of the same family.
    pub fn routes_with_gateway(&self) -> impl Iterator<Item = ExtraRoute> + '_ {
        let of_family = |v4| {
            self.gateways.iter().map(|g| self.wiring.next_hop(g)).find(|gateway| gateway.is_ipv4() == v4)
        };
        self.routes.iter().filter_map(move |route| {
            if route.is_on_link() {
                return Some(*route);
            }
            let gateway = route.gw.or_else(|| of_family(route.dst.is_ipv4()))?;
            Some(ExtraRoute { gw: Some(gateway), ..*route })
        })
    }
}

/// The first gateway of each family that has no default route among `routes`.
pub fn default_gateways<'a>(
    gateways: &'a [IpNetwork],
    routes: &'a [ExtraRoute],
) -> impl Iterator<Item = &'a IpNetwork> {
    let first = |v4| gateways.iter().find(|gateway| gateway.is_ipv4() == v4);
    let named = |v4| routes.iter().any(|route| route.is_default() && route.dst.is_ipv4() == v4);
    [true, false].into_iter().filter(move |v4| !named(*v4)).filter_map(first)
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

/// Waits until packets to an IPv6 address are taken. The kernel arranges for that behind the caller's back
/// (`net/ipv6/addrconf.c:addrconf_dad_work`), one address after the other, and drops what comes before: a packet that is
/// lost is sent again after a second.
fn await_delivery(netlink: &mut Netlink, address: IpAddr) -> netd_kernel::Result<()> {
    let deadline = SystemClock.now() + DETECTION;
    loop {
        // Until then the way leads out.
        if netlink.route_to(address).is_ok_and(|route| route.kind == RouteKind::Local) {
            return Ok(());
        }
        if SystemClock.now() >= deadline {
            let action = format!("wait until {address} can be used");
            return Err(Error::Timeout { action, limit: DETECTION, hint: None });
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Does other changes and adds routes; a route that another interface of the pod has already stays that interface's, and
/// is added behind it.
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
        add_shared_route(netlink, route)?;
    }
    Ok(())
}

/// Adds a route that another interface of the pod may have already: then behind it, so that each stands alone when the other
/// goes.
fn add_shared_route(netlink: &mut Netlink, route: &Route) -> netd_kernel::Result<()> {
    let behind = Route { metric: BEHIND + route.link.map_or(0, |link| link.0), ..route.clone() };
    // IPv6 takes no gateway "on the link" that has a route over another one (`net/ipv6/route.c:ip6_validate_gw`).
    let direct = Route { onlink: false, ..behind.clone() };
    for route in [route, &behind] {
        match netlink.add_route(route) {
            Err(error) if error.is_exists() || error.errno() == Some(EINVAL) => {}
            done => return done,
        }
    }
    match netlink.add_route(&direct) {
        Err(error) if !error.is_exists() => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
