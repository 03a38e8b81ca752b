//! What all pods of a node share: the bridge with its gateway addresses, forwarding, masquerade.
//!
//! Every ADD ensures it: a few reads where all is right, and writes only for what is not. Two calls that do so at the
//! same moment come to the same end.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netd_kernel::link::{Ifindex, Link};
use netd_kernel::masquerade::{self, Masquerade, State};
use netd_kernel::netlink::{Address, Batch, BridgeSpec};
use netd_kernel::{Mac, Netlink, sysctl};

use crate::config::Config;
use crate::error::{CniError, Code};
use crate::naming;
use crate::ranges::NodeRanges;

const FORWARDING_V6: &str = "net/ipv6/conf/all/forwarding";
/// The MTU where no default route tells one: Ethernet's.
const ETHERNET_MTU: u32 = 1500;

/// The bridge, ready for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bridge {
    /// Its number.
    pub index: Ifindex,
    /// Its MAC address.
    pub mac: Mac,
    /// The largest packet of a pod in bytes.
    pub mtu: u32,
}

/// Makes the node ready for a pod.
///
/// # Errors
/// Code 100 with the part that the kernel refused, 105 for masquerade, 7 when the bridge's name is another link's.
pub fn prepare(netlink: &mut Netlink, config: &Config, ranges: &NodeRanges) -> Result<Bridge, CniError> {
    let mtu = match ranges.mtu {
        Some(mtu) => mtu,
        None => uplink_mtu(netlink).map_err(|e| wiring("the MTU of the uplink cannot be found out", &e))?,
    };
    let link = bridge(netlink, config, ranges, mtu)?;
    bring_up(netlink, config, &link, ranges)
        .map_err(|e| wiring(&format!("bridge {} cannot be made ready", config.bridge), &e))?;
    set_parameters(netlink, config, ranges).map_err(|e| wiring("a kernel parameter cannot be set", &e))?;
    if config.masquerade {
        masquerade::ensure(&masquerade_of(config, ranges)).map_err(|e| {
            CniError::new(Code::Masquerade, "masquerade for pods cannot be installed")
                .because(e)
                .and("the kernel needs nf_tables with nat; \"ipMasq\": false does without")
        })?;
    }
    Ok(Bridge { index: link.index, mac: link.mac.unwrap_or(Mac([0; 6])), mtu })
}

/// Says what of the node's part is missing or different, a sentence each.
pub fn faults(
    netlink: &mut Netlink,
    config: &Config,
    ranges: &NodeRanges,
) -> netd_kernel::Result<Vec<String>> {
    let mut faults = Vec::new();
    let name = &config.bridge;
    match netlink.link(name)? {
        None => faults.push(format!("bridge {name} is missing")),
        Some(link) => {
            if !link.up {
                faults.push(format!("bridge {name} is down"));
            }
            let missing = missing_gateways(netlink, &link, ranges)?;
            faults.extend(
                missing.iter().map(|gateway| format!("bridge {name} has lost its address {gateway}")),
            );
        }
    }
    for (key, value) in parameters(name, ranges)
        .into_iter()
        .filter(|(key, _)| key.ends_with("forward") || key.ends_with("forwarding"))
    {
        let found = sysctl::read(&key).unwrap_or_default();
        if found != value {
            faults.push(format!("forwarding is off: {key} is {found:?}"));
        }
    }
    if config.masquerade {
        match masquerade::check(&masquerade_of(config, ranges))? {
            State::Installed => {}
            State::Absent => faults.push(format!("masquerade is gone: no table {}", masquerade::TABLE)),
            State::Different => {
                faults.push(format!("masquerade is not as configured: table {}", masquerade::TABLE))
            }
        }
    }
    Ok(faults)
}

fn masquerade_of(config: &Config, ranges: &NodeRanges) -> Masquerade {
    let owner = masquerade::owner_of(&config.network);
    Masquerade { owner, pod_cidrs: ranges.subnets(), keep: ranges.keep.clone() }
}

/// Finds the bridge or makes it.
fn bridge(netlink: &mut Netlink, config: &Config, ranges: &NodeRanges, mtu: u32) -> Result<Link, CniError> {
    let name = config.bridge.as_str();
    let failed = |e: netd_kernel::Error| wiring(&format!("bridge {name} cannot be made"), &e);
    if let Some(link) = netlink.link(name).map_err(failed)? {
        return is_bridge(link);
    }
    let mac = ranges.gateways().first().map(|gateway| naming::bridge_mac(gateway.ip()));
    let spec = BridgeSpec { name, mac, mtu: Some(mtu), alias: Some(naming::BRIDGE_ALIAS) };
    match netlink.add_bridge(&spec) {
        // Another call was quicker.
        Err(error) if !error.is_exists() => return Err(failed(error)),
        Ok(_) | Err(_) => {}
    }
    match netlink.link(name).map_err(failed)? {
        Some(link) => is_bridge(link),
        None => Err(CniError::new(Code::Wiring, format!("bridge {name} was deleted while it was made"))),
    }
}

fn is_bridge(link: Link) -> Result<Link, CniError> {
    if link.kind.as_deref() == Some("bridge") {
        return Ok(link);
    }
    let kind = link.kind.as_deref().unwrap_or("device");
    Err(CniError::new(Code::InvalidConfig, format!("link {} is a {kind}, not a bridge", link.name))
        .and("name another bridge in the configuration, or rename the link"))
}

/// Switches the bridge on and gives it the gateway addresses that it lacks.
fn bring_up(
    netlink: &mut Netlink,
    config: &Config,
    link: &Link,
    ranges: &NodeRanges,
) -> netd_kernel::Result<()> {
    if ranges.has_ipv6() {
        sysctl::write(&format!("net/ipv6/conf/{}/disable_ipv6", link.name), "0")?;
    }
    let mut batch = Batch::new();
    let present = netlink.addresses(Some(link.index))?;
    for address in in_the_way(&present, config, ranges) {
        if !config.force_address && link.alias.as_deref() != Some(naming::BRIDGE_ALIAS) {
            let what = format!("address {address} of the bridge; forceAddress replaces it");
            return Err(netd_kernel::Error::Invalid { what });
        }
        if config.force_address {
            batch.delete_address(link.index, address);
        }
    }
    for gateway in missing_among(&present, ranges) {
        batch.add_address(link.index, gateway, true);
    }
    if !link.up {
        batch.set_up(link.index);
    }
    if config.promiscuous {
        batch.set_promiscuous(link.index, true);
    }
    match netlink.send(&batch) {
        // Another call gave it the address meanwhile.
        Err(error) if !error.is_exists() => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn missing_gateways(
    netlink: &mut Netlink,
    link: &Link,
    ranges: &NodeRanges,
) -> netd_kernel::Result<Vec<IpNetwork>> {
    Ok(missing_among(&netlink.addresses(Some(link.index))?, ranges))
}

fn missing_among(present: &[Address], ranges: &NodeRanges) -> Vec<IpNetwork> {
    let missing = |gateway: &IpNetwork| !present.iter().any(|address| address.prefix == *gateway);
    ranges.gateways().into_iter().filter(missing).collect()
}

/// Addresses of the bridge in the subnet of a gateway that it lacks; with `forceAddress` every other IPv4 address, as
/// with the reference plugin.
fn in_the_way(present: &[Address], config: &Config, ranges: &NodeRanges) -> Vec<IpNetwork> {
    let (gateways, missing) = (ranges.gateways(), missing_among(present, ranges));
    let others = present.iter().filter(|a| !a.link_local && !gateways.contains(&a.prefix)).map(|a| a.prefix);
    let blocks = |address: &IpNetwork, gateway: &IpNetwork| {
        address.is_ipv4() == gateway.is_ipv4()
            && (address.contains(gateway.ip())
                || gateway.contains(address.ip())
                || (config.force_address && address.is_ipv4()))
    };
    others.filter(|address| missing.iter().any(|gateway| blocks(address, gateway))).collect()
}

/// Forwarding on; no redirects, since pods of one node are to reach each other through the host (see `attachment`);
/// router advertisements of pods are not believed.
fn parameters(bridge: &str, ranges: &NodeRanges) -> Vec<(String, &'static str)> {
    let mut all = Vec::new();
    if ranges.has_ipv4() {
        all.push(("net/ipv4/ip_forward".to_owned(), "1"));
        // A link sends redirects when either says so, so the one for all links must not; other links keep their own.
        all.push(("net/ipv4/conf/all/send_redirects".to_owned(), "0"));
        all.push((format!("net/ipv4/conf/{bridge}/send_redirects"), "0"));
    }
    if ranges.has_ipv6() {
        all.push((format!("net/ipv6/conf/{bridge}/accept_ra"), "0"));
        all.push((FORWARDING_V6.to_owned(), "1"));
    }
    all
}

fn set_parameters(netlink: &mut Netlink, config: &Config, ranges: &NodeRanges) -> netd_kernel::Result<()> {
    for (key, value) in parameters(&config.bridge, ranges) {
        if key == FORWARDING_V6 && sysctl::read(&key)? != value {
            keep_router_advertisements(netlink, &config.bridge)?;
        }
        sysctl::write(&key, value)?;
    }
    Ok(())
}

/// A host that forwards believes router advertisements only where `accept_ra` is 2
/// (Documentation/networking/ip-sysctl.rst): without this the node could lose its default route.
fn keep_router_advertisements(netlink: &mut Netlink, bridge: &str) -> netd_kernel::Result<()> {
    for link in netlink.links()? {
        let ours = link.name == bridge || link.alias.as_deref().is_some_and(naming::is_alias);
        let key = format!("net/ipv6/conf/{}/accept_ra", link.name);
        // A link may be gone by now, or have no IPv6.
        if !ours && sysctl::read(&key).is_ok_and(|value| value == "1") {
            sysctl::write_if_present(&key, "2")?;
        }
    }
    Ok(())
}

/// The MTU of the link that packets to the rest of the world leave by; one look-up, however long the routing table is.
fn uplink_mtu(netlink: &mut Netlink) -> netd_kernel::Result<u32> {
    // Addresses for documentation (RFC 5737, RFC 3849): nobody has a route to them but the default route.
    let world = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])];
    for destination in world {
        let index = match netlink.route_to(destination) {
            Ok(route) => route.link,
            // No way out in this family.
            Err(error) if error.errno().is_some() => None,
            Err(error) => return Err(error),
        };
        if let Some(index) = index
            && let Some(link) = netlink.link_by_index(index)?
            && !link.loopback
        {
            return Ok(link.mtu.clamp(68, 65_535));
        }
    }
    Ok(ETHERNET_MTU)
}

fn wiring(msg: &str, cause: &netd_kernel::Error) -> CniError {
    CniError::new(Code::Wiring, msg).because(cause)
}
