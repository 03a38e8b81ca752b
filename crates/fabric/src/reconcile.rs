//! Making the kernel have exactly the routes that the nodes ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use netd_kernel::link::Link;
use netd_kernel::netlink::{Route, RouteFilter, RouteKind, TABLE_MAIN};
use netd_kernel::{Ifindex, Netlink};
use netd_model::{Problem, Snapshot};
use tracing::debug;

use crate::error::Error;
use crate::overlay::{DEVICE, Overlay, Settings, Vtep};
use crate::routes::{Attached, RouteSpec, desired};
use crate::vtep;

/// What one reconciliation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Routes added or put back.
    pub added: usize,
    /// Routes removed: of nodes that are gone or moved, of an earlier run too.
    pub removed: usize,
    /// Routes that were right.
    pub kept: usize,
    /// Changes to the VXLAN device: it, its addresses, neighbours and forwarding entries.
    pub written: usize,
    /// Largest packet of a pod in bytes, where the VXLAN makes it smaller than the uplink's.
    pub pod_mtu: Option<u32>,
    /// Nodes that are not reachable, and why.
    pub problems: Vec<Problem>,
}

/// Pod routes to the other nodes, by direct routing ("host-gw") or VXLAN.
///
/// Recognises its routes by their protocol number ([`netd_kernel::ROUTE_PROTOCOL`]) and a gateway, its VXLAN device by
/// its name ([`DEVICE`]), so it needs no memory of an earlier run. Acts on the network namespace of the calling thread.
#[derive(Clone, Debug)]
pub struct Fabric {
    node: Arc<str>,
    settings: Settings,
}

impl Fabric {
    /// The fabric as seen from the node with this name.
    pub fn new(node: impl Into<Arc<str>>, settings: Settings) -> Self {
        Self { node: node.into(), settings }
    }

    /// Makes the routes equal what the snapshot's nodes ask for: missing ones are added, whoever removed
    /// them; stale ones of this or an earlier run go. One bad node costs its own routes only.
    ///
    /// Nothing is removed for a snapshot without nodes: sources that know no nodes exist.
    ///
    /// # Errors
    /// When links, addresses or routes cannot be read.
    pub fn reconcile(&self, snapshot: &Snapshot) -> Result<Report, Error> {
        let mut netlink = Netlink::open().map_err(Error::kernel("open netlink"))?;
        let attached = attached(&mut netlink)?;
        let wanted = desired(&snapshot.nodes, &self.node, &attached, self.settings.mode);
        let mut report = Report { problems: wanted.problems, ..Report::default() };
        if snapshot.nodes.is_empty() {
            report.pod_mtu = vtep::find(&mut netlink)?.map(|device| device.mtu);
            return Ok(report);
        }
        let mut routes = wanted.routes;
        let held = self.overlay(&mut netlink, &wanted.overlay, &mut routes, &mut report);
        let installed = own_routes(&mut netlink)?;
        let mut stale = Vec::new();
        let mut right = BTreeSet::new();
        for route in installed {
            match routes.get(&route.destination) {
                Some(spec) if is_installed(spec, &route) => {
                    right.insert(route.destination);
                }
                None if held.is_some() && route.link == held => {}
                _ => stale.push(route),
            }
        }
        report.kept = right.len();
        let missing: Vec<_> = routes.values().filter(|spec| !right.contains(&spec.destination)).collect();
        change(&mut netlink, &missing, &mut stale, &mut report);
        for route in stale {
            remove(&mut netlink, &route, &mut report);
        }
        report.problems.sort();
        report.problems.dedup();
        if report.added + report.removed > 0 {
            debug!(added = report.added, removed = report.removed, kept = report.kept, "changed pod routes");
        }
        Ok(report)
    }

    /// Makes the VXLAN device what it should be and adds its routes to `routes`. Returns the device whose routes are to
    /// stay as they are, because it is not known what they should be.
    fn overlay(
        &self,
        netlink: &mut Netlink,
        overlay: &Overlay,
        routes: &mut BTreeMap<IpNetwork, RouteSpec>,
        report: &mut Report,
    ) -> Option<Ifindex> {
        let result = match overlay {
            Overlay::Unused => vtep::remove(netlink).map(|removed| {
                report.written += usize::from(removed);
                None
            }),
            Overlay::Unknown => vtep::find(netlink).map(|device| {
                report.pod_mtu = device.as_ref().map(|device| device.mtu);
                device.map(|device| device.index)
            }),
            Overlay::Used(vtep) => {
                report.pod_mtu = Some(vtep.mtu);
                self.tunnel(netlink, vtep, routes, report).map(|()| None)
            }
        };
        result.unwrap_or_else(|error| {
            report.problems.push(device_problem(error.to_string()));
            vtep::find(netlink).unwrap_or_default().map(|device| device.index)
        })
    }

    fn tunnel(
        &self,
        netlink: &mut Netlink,
        vtep: &Vtep,
        routes: &mut BTreeMap<IpNetwork, RouteSpec>,
        report: &mut Report,
    ) -> Result<(), Error> {
        let ensured = vtep::ensure(netlink, vtep, self.settings)?;
        report.written += ensured.written;
        report.problems.extend(ensured.problems.into_iter().map(device_problem));
        routes.extend(vtep.routes(ensured.device).map(|spec| (spec.destination, spec)));
        Ok(())
    }

    /// Removes every route of the fabric and its VXLAN device, and says how many routes; none is success.
    ///
    /// # Errors
    /// The first failure, after all routes that could be removed have been.
    pub fn cleanup(&self) -> Result<usize, Error> {
        let mut netlink = Netlink::open().map_err(Error::kernel("open netlink"))?;
        let mut removed = 0;
        let mut first = None;
        for route in own_routes(&mut netlink)? {
            match netlink.delete_route(&route) {
                Ok(()) => removed += 1,
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        let device = vtep::remove(&mut netlink);
        match first {
            Some(source) => Err(Error::Kernel { action: "remove pod routes", source }),
            None => device.map(|_| removed),
        }
    }
}

/// Networks this node is attached to by links with a broadcast or point-to-point neighbour; loopback out.
fn attached(netlink: &mut Netlink) -> Result<Vec<Attached>, Error> {
    let links = netlink.links().map_err(Error::kernel("list links"))?;
    let links: BTreeMap<Ifindex, Link> = links.into_iter().map(|link| (link.index, link)).collect();
    let addresses = netlink.addresses(None).map_err(Error::kernel("list addresses"))?;
    let attached = addresses.into_iter().filter_map(|address| {
        let link = links.get(&address.link)?;
        let usable = !address.link_local && !address.prefix.ip().is_loopback() && link.name != DEVICE;
        usable.then(|| Attached {
            link: address.link,
            name: link.name.clone(),
            address: address.prefix,
            up: link.up,
            mtu: link.mtu,
        })
    });
    Ok(attached.collect())
}

/// Routes of the fabric, of any run of netd.
fn own_routes(netlink: &mut Netlink) -> Result<Vec<Route>, Error> {
    let filter = RouteFilter { table: Some(TABLE_MAIN), ..RouteFilter::own() };
    let routes = netlink.routes(filter).map_err(Error::kernel("list routes"))?;
    let ours = |route: &Route| route.gateway.is_some() && route.kind == RouteKind::Unicast;
    Ok(routes.into_iter().filter(ours).collect())
}

fn is_installed(spec: &RouteSpec, route: &Route) -> bool {
    route.gateway == Some(spec.gateway) && route.link == Some(spec.link)
}

fn to_route(spec: &RouteSpec) -> Route {
    let route = Route::to(spec.destination).via(spec.gateway).dev(spec.link);
    if spec.onlink { route.onlink() } else { route }
}

/// Adds what is missing. Where an old route of ours leads elsewhere it is replaced in one step, so that the
/// pods are never without a route; it is then taken out of `stale`.
fn change(netlink: &mut Netlink, missing: &[&RouteSpec], stale: &mut Vec<Route>, report: &mut Report) {
    for spec in missing {
        let route = to_route(spec);
        let old: Vec<usize> = stale
            .iter()
            .enumerate()
            .filter(|(_, old)| old.destination == spec.destination)
            .map(|(place, _)| place)
            .collect();
        let result =
            if old.is_empty() { netlink.add_route(&route) } else { swap(netlink, stale, &old, &route) };
        match result {
            Ok(()) => {
                debug!(%route, "added a pod route");
                report.added += 1;
                if let Some(place) = old.first() {
                    stale.remove(*place);
                    report.removed += 1;
                }
            }
            Err(error) if error.is_exists() => {
                let message = format!(
                    "a route to {} that is not netd's is in the way: remove it (ip route show {})",
                    spec.destination, spec.destination
                );
                report.problems.push(named(spec.destination, message));
            }
            Err(error) => report.problems.push(named(spec.destination, error.to_string())),
        }
    }
}

/// Puts a route in the place of an old one. IPv6 refuses a gateway that another link's route leads to
/// (`net/ipv6/route.c:ip6_route_check_nh_onlink`), as the old route to the prefix does: there it goes first.
fn swap(netlink: &mut Netlink, stale: &[Route], old: &[usize], route: &Route) -> netd_kernel::Result<()> {
    if route.onlink && route.destination.is_ipv6() {
        for other in old.iter().filter_map(|place| stale.get(*place)) {
            netlink.delete_route(other)?;
        }
        return netlink.add_route(route);
    }
    netlink.replace_route(route)
}

fn device_problem(message: String) -> Problem {
    Problem { kind: "Link".to_owned(), object: DEVICE.to_owned(), message }
}

fn remove(netlink: &mut Netlink, route: &Route, report: &mut Report) {
    match netlink.delete_route(route) {
        Ok(()) => {
            debug!(%route, "removed a pod route");
            report.removed += 1;
        }
        Err(error) if error.is_not_found() => {}
        Err(error) => report.problems.push(named(route.destination, error.to_string())),
    }
}

fn named(destination: IpNetwork, message: String) -> Problem {
    Problem { kind: "Route".to_owned(), object: destination.to_string(), message }
}

#[cfg(test)]
pub(crate) mod tests;
