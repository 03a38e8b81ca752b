//! CHECK: says whether everything that ADD made is still there, and what is not.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netd_ipam::{Lease, Ledger};
use netd_kernel::netlink::RouteFilter;
use netd_kernel::{Mac, Namespace, Netlink};

use crate::add::gateways_of;
use crate::attachment;
use crate::call::Call;
use crate::config::Config;
use crate::error::{CniError, Code};
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
    let (ranges, lease) = match &config.delegate {
        None => (NodeRanges::of(config)?, lease(call, config)?),
        Some(delegate) => {
            faults.extend(delegate.pass(call, "CHECK").err().map(|error| error.to_string()));
            let addresses: Vec<IpAddr> = previous.addresses.iter().map(IpNetwork::ip).collect();
            let lease = Lease { owner: call.owner.clone(), pod: None, addresses };
            let known = (!lease.addresses.is_empty()).then_some(lease);
            (NodeRanges::granted(config, previous.gateways.clone()), known)
        }
    };
    match lease {
        None => faults.push(format!("{} has no address in the ledger", call.owner)),
        Some(lease) => {
            faults.extend(pod_faults(call, config, &ranges, &lease, &previous, &namespace)?);
            faults.extend(ports::faults(config, &lease)?);
        }
    }
    let mut netlink = Netlink::open().map_err(|e| unusable(&e))?;
    faults.extend(host_faults(&mut netlink, call, config).map_err(|e| unusable(&e))?);
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

fn lease(call: &Call, config: &Config) -> Result<Option<Lease>, CniError> {
    let path = Ledger::path_of(&config.directory, &config.network);
    let leases = Ledger::read(&path).map_err(|e| crate::leases::failed(&e))?;
    Ok(leases.iter().find(|lease| lease.owner == call.owner).cloned())
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
    let routes: Vec<IpNetwork> = config.routes.iter().map(|route| route.dst).collect();
    let named = |gateway: &IpNetwork| {
        config.routes.iter().any(|r| r.dst.prefix() == 0 && r.dst.is_ipv4() == gateway.is_ipv4())
    };
    let defaults = gateways.iter().filter(|gateway| config.default_route && !named(gateway));
    let wanted = Wanted {
        mac: previous.mac.unwrap_or_else(|| naming::pod_mac(attachment::first_address(lease))),
        defaults: defaults.map(IpNetwork::ip).collect(),
    };
    let inside = namespace.run(|| inside_faults(&call.owner.interface, lease, &wanted, &routes));
    faults.extend(inside.and_then(|found| found).map_err(|e| unusable(&e))?);
    Ok(faults)
}

/// What the pod's end is to have besides its addresses.
struct Wanted {
    mac: Mac,
    /// Gateways of default routes.
    defaults: Vec<IpAddr>,
}

fn inside_faults(
    name: &str,
    lease: &Lease,
    wanted: &Wanted,
    routes: &[IpNetwork],
) -> netd_kernel::Result<Vec<String>> {
    let mut netlink = Netlink::open()?;
    let Some(link) = netlink.link(name)? else {
        return Ok(vec!["it is missing in the container".to_owned()]);
    };
    let mut faults = Vec::new();
    if !link.up {
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
            |r: &netd_kernel::netlink::Route| r.destination.prefix() == 0 && r.gateway == Some(*gateway);
        if !table.iter().any(default) {
            faults.push(format!("the default route through {gateway} is gone"));
        }
    }
    for route in routes.iter().filter(|dst| !table.iter().any(|r| r.destination == **dst)) {
        faults.push(format!("the route to {route} is gone"));
    }
    Ok(faults)
}

fn host_faults(netlink: &mut Netlink, call: &Call, config: &Config) -> netd_kernel::Result<Vec<String>> {
    let name = naming::host_link(&call.owner);
    let Some(link) = attachment::host_link(netlink, &call.owner)? else {
        return Ok(vec![format!("its host end {name} is missing")]);
    };
    let bridge = netlink.link(&config.bridge)?.map(|bridge| bridge.index);
    let mut faults = Vec::new();
    if !link.up {
        faults.push(format!("its host end {name} is down"));
    }
    if link.master.is_none() || link.master != bridge {
        faults.push(format!("its host end {name} is no port of bridge {}", config.bridge));
    }
    if config.hairpin && link.hairpin == Some(false) {
        faults.push(format!("hairpin mode of {name} is off"));
    }
    Ok(faults)
}

fn unusable(cause: &netd_kernel::Error) -> CniError {
    CniError::new(Code::Wiring, "the kernel cannot be asked").because(cause)
}
