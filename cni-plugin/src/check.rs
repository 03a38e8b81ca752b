//! CHECK: says whether everything that ADD made is still there, and what is not.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netd_ipam::{Lease, Ledger};
use netd_kernel::link::Link;
use netd_kernel::netlink::{POD_ROUTE_PROTOCOL, PortFlags, Route, RouteFilter, TABLE_MAIN};
use netd_kernel::{Mac, Namespace, Netlink};

use crate::add::gateways_of;
use crate::attachment;
use crate::bandwidth;
use crate::call::Call;
use crate::config::{Config, ExtraRoute, GATEWAY_V4, GATEWAY_V6, Mode, Wiring};
use crate::error::{CniError, Code};
use crate::guard;
use crate::naming;
use crate::node;
use crate::ports;
use crate::ranges::NodeRanges;
use crate::result::Previous;

/// Does a CHECK: everything is looked at, and everything wrong is told at once.
///
/// What later plugins of the list add to the interface is no fault.
///
/// # Errors
/// Code 103 with all that was found wrong; 7 without a prevResult.
pub fn check(call: &Call, config: &Config) -> Result<(), CniError> {
    let Some(previous) = &config.previous else {
        return Err(CniError::new(Code::InvalidConfig, "CHECK needs the prevResult of the ADD"));
    };
    let previous = Previous::read(previous, &call.owner.interface)?;
    let namespace = call.open_namespace()?;
    let mut faults = Vec::new();
    let config = &as_it_was_made(config, &previous);
    let bare = || Lease { owner: call.owner.clone(), ..Lease::default() };
    let (ranges, lease) = match &config.delegate {
        None if !config.wiring.addressed => (NodeRanges::granted(config, Vec::new()), Some(bare())),
        None => (NodeRanges::of(config)?, lease(call, config)?),
        Some(delegate) => {
            faults.extend(delegate.pass(call, "CHECK").err().map(|error| error.to_string()));
            let addresses: Vec<IpAddr> = previous.addresses.iter().map(IpNetwork::ip).collect();
            let lease = Lease { addresses, ..bare() };
            let known = (!lease.addresses.is_empty()).then_some(lease);
            let granted = match config.wiring.mode {
                Mode::Bridge => previous.gateways.clone(),
                // The gateway is of no subnet; only the subnets count then.
                Mode::Routed => previous.addresses.clone(),
            };
            (NodeRanges::granted(config, granted), known)
        }
    };
    match lease {
        None => {
            faults.push(format!("{} has no address in the ledger", call.owner));
            let mut netlink = Netlink::open().map_err(|e| unusable(&e))?;
            faults.extend(host_faults(&mut netlink, config, &bare()).map_err(|e| unusable(&e))?);
        }
        Some(lease) => {
            faults.extend(pod_faults(call, config, &ranges, &lease, &previous, &namespace)?);
            faults.extend(ports::faults(config, &lease)?);
            let mut netlink = Netlink::open().map_err(|e| unusable(&e))?;
            faults.extend(host_faults(&mut netlink, config, &lease).map_err(|e| unusable(&e))?);
            faults.extend(traffic_faults(&mut netlink, call, config, (&lease, previous.mac))?);
        }
    }
    let mut netlink = Netlink::open().map_err(|e| unusable(&e))?;
    faults.extend(node::faults(&mut netlink, config, &ranges).map_err(|e| unusable(&e))?);
    if faults.is_empty() {
        return Ok(());
    }
    Err(CniError::new(
        Code::CheckFailed,
        format!("interface {}: {}", call.owner.interface, faults.join("; ")),
    )
    .and("netd repairs the node's part; a pod's own part needs the pod to be made again"))
}

/// The configuration in the mode of the time when the pod was made: others may have another by now.
fn as_it_was_made(config: &Config, previous: &Previous) -> Config {
    let linked =
        |gateway: &IpNetwork| [IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6)].contains(&gateway.ip());
    let mode = if previous.gateways.iter().any(linked) { Mode::Routed } else { Mode::Bridge };
    Config { wiring: Wiring { mode, ..config.wiring.clone() }, ..config.clone() }
}

fn lease(call: &Call, config: &Config) -> Result<Option<Lease>, CniError> {
    let path = Ledger::path_of(&config.directory, &config.network);
    Ledger::find(&path, &call.owner).map_err(|e| crate::leases::failed(&e))
}

#[expect(clippy::too_many_arguments, reason = "one comparison of six things")]
fn pod_faults(
    call: &Call,
    config: &Config,
    ranges: &NodeRanges,
    lease: &Lease,
    previous: &Previous,
    namespace: &Namespace,
) -> Result<Vec<String>, CniError> {
    let mut faults = Vec::new();
    for address in &previous.addresses {
        if !lease.addresses.contains(&address.ip()) {
            faults.push(format!("address {} is not the one in the ledger", address.ip()));
        }
    }
    let gateways =
        if ranges.granted.is_empty() { gateways_of(lease, ranges) } else { ranges.granted.clone() };
    if gateways.len() < lease.addresses.len() {
        faults.push("an address lies outside the node's ranges".to_owned());
    }
    let defaults = attachment::default_gateways(&gateways, &config.routes).filter(|_| config.default_route);
    let wanted = Wanted {
        mac: previous.mac.unwrap_or_else(|| naming::link_macs(lease).1),
        up: config.wiring.enabled,
        defaults: defaults.map(|gateway| config.wiring.next_hop(gateway)).collect(),
    };
    let inside = namespace.run(|| inside_faults(&call.owner.interface, lease, &wanted, &config.routes));
    faults.extend(inside.and_then(|found| found).map_err(|e| unusable(&e))?);
    Ok(faults)
}

/// What the pod's end is to have besides its addresses.
struct Wanted {
    mac: Mac,
    up: bool,
    /// Gateways of default routes.
    defaults: Vec<IpAddr>,
}

fn inside_faults(
    name: &str,
    lease: &Lease,
    wanted: &Wanted,
    routes: &[ExtraRoute],
) -> netd_kernel::Result<Vec<String>> {
    let mut netlink = Netlink::open()?;
    let Some(link) = netlink.link(name)? else {
        return Ok(vec!["it is missing in the container".to_owned()]);
    };
    let mut faults = Vec::new();
    if wanted.up && !link.up {
        faults.push("it is down".to_owned());
    }
    if link.mac != Some(wanted.mac) {
        faults.push(format!("its MAC address is not {}", wanted.mac));
    }
    let present = netlink.addresses(Some(link.index))?;
    for address in lease.addresses.iter().filter(|a| !present.iter().any(|p| p.prefix.ip() == **a)) {
        faults.push(format!("it has lost its address {address}"));
    }
    // Over whatever link: of two interfaces with one gateway the first has the routes.
    let table = netlink.routes(RouteFilter::default())?;
    for gateway in &wanted.defaults {
        let default =
            |r: &Route| r.destination.prefix() == 0 && r.gateway == Some(*gateway) && r.table == TABLE_MAIN;
        if !table.iter().any(default) {
            faults.push(format!("the default route through {gateway} is gone"));
        }
    }
    for route in routes.iter().filter(|route| !route.is_among(&table)) {
        let same = table.iter().any(|found| found.destination == route.dst);
        let how = if same { "not as configured" } else { "gone" };
        faults.push(format!("the route to {} is {how}", route.dst));
    }
    Ok(faults)
}

fn host_faults(netlink: &mut Netlink, config: &Config, lease: &Lease) -> netd_kernel::Result<Vec<String>> {
    let name = naming::host_link(&lease.owner);
    let Some(link) = attachment::host_link(netlink, &lease.owner)? else {
        return Ok(vec![format!("its host end {name} is missing")]);
    };
    let mut faults = Vec::new();
    if !link.up {
        faults.push(format!("its host end {name} is down"));
    }
    match config.wiring.mode {
        Mode::Bridge => faults.extend(port_faults(netlink, config, &link)?),
        Mode::Routed => {
            let filter = RouteFilter { protocol: Some(POD_ROUTE_PROTOCOL), ..RouteFilter::default() };
            let routes = netlink.routes(RouteFilter { link: Some(link.index), ..filter })?;
            let lost = lease.addresses.iter().filter(|a| !routes.iter().any(|r| r.destination.ip() == **a));
            faults.extend(lost.map(|address| format!("the node's route to {address} is gone")));
        }
    }
    Ok(faults)
}

fn port_faults(netlink: &mut Netlink, config: &Config, link: &Link) -> netd_kernel::Result<Vec<String>> {
    let (name, wiring) = (&link.name, &config.wiring);
    let bridge = netlink.link(&config.bridge)?.map(|bridge| bridge.index);
    let mut faults = Vec::new();
    if link.master.is_none() || link.master != bridge {
        faults.push(format!("its host end {name} is no port of bridge {}", config.bridge));
    }
    if config.hairpin && link.hairpin == Some(false) {
        faults.push(format!("hairpin mode of {name} is off"));
    }
    if wiring.isolated || wiring.pinned {
        let PortFlags { isolated, locked, .. } = netlink.port_flags(name)?.unwrap_or_default();
        if wiring.isolated && !isolated {
            faults.push(format!("portIsolation of {name} is off"));
        }
        if wiring.pinned && !locked {
            faults.push(format!("macspoofchk of {name} is off: the port is not locked"));
        }
    }
    Ok(faults)
}

/// What of the guard and of the limits is missing; nothing where the link is.
fn traffic_faults(
    netlink: &mut Netlink,
    call: &Call,
    config: &Config,
    (lease, mac): (&Lease, Option<Mac>),
) -> Result<Vec<String>, CniError> {
    let Some(host) = attachment::host_link(netlink, &lease.owner).map_err(|e| unusable(&e))? else {
        return Ok(Vec::new());
    };
    let limits = config.bandwidth.limits()?;
    let mut faults =
        bandwidth::faults(netlink, &lease.owner, host.index, &limits).map_err(|e| unusable(&e))?;
    if guard::is_wanted(call, config)? {
        let mac = mac.unwrap_or_else(|| naming::link_macs(lease).1);
        let fault = guard::fault(netlink, host.index, mac, &lease.addresses).map_err(|e| unusable(&e))?;
        faults.extend(fault.map(str::to_owned));
    }
    Ok(faults)
}

fn unusable(cause: &netd_kernel::Error) -> CniError {
    CniError::new(Code::Wiring, "the kernel cannot be asked").because(cause)
}
