//! What all pods of a node share: the bridge with its gateway addresses, forwarding, masquerade.
//!
//! Every ADD ensures it: a few reads where all is right, and writes only for what is not. Two calls that do so at the
//! same moment come to the same end.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netd_ipam::Owner;
use netd_kernel::link::{Ifindex, Link};
use netd_kernel::masquerade::{self, Masquerade, State};
use netd_kernel::netlink::{Address, Batch, BridgeSpec};
use netd_kernel::{Mac, Netlink, sysctl};

use crate::config::{Config, Mode};
use crate::error::{CniError, Code};
use crate::naming;
use crate::ranges::NodeRanges;

mod vlan;

pub(crate) use vlan::join as join_vlans;

const FORWARDING_V4: &str = "net/ipv4/ip_forward";
const FORWARDING_V6: &str = "net/ipv6/conf/all/forwarding";
/// The loopback link of every namespace (`include/net/flow.h:LOOPBACK_IFINDEX`).
const LOOPBACK: Ifindex = Ifindex(1);
/// The MTU where no default route tells one: Ethernet's.
const ETHERNET_MTU: u32 = 1500;

/// The node, ready for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ground {
    /// The largest packet of a pod in bytes.
    pub mtu: u32,
    /// The bridge that pods' links are ports of; `None` where they are routed.
    pub bridge: Option<Anchor>,
    /// The link with the gateway addresses of a VLAN, beside the bridge.
    pub vlan_gateway: Option<Anchor>,
    /// Ranges of which addresses that no pod has are answered as unreachable; of routed pods.
    pub ranges: Vec<IpNetwork>,
}

/// A link of the node that pods hang on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: Ifindex,
    /// Its MAC address.
    pub mac: Mac,
    /// Whether netd made it, with a MAC address that stays; another's follows its ports.
    pub own: bool,
}

impl Anchor {
    fn of(link: Link) -> Self {
        let own = link.alias.as_deref() == Some(naming::BRIDGE_ALIAS);
        Self { name: link.name, index: link.index, mac: link.mac.unwrap_or(Mac([0; 6])), own }
    }
}

impl Ground {
    /// Reads the MAC address of a bridge that is not netd's once more: its ports choose it.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn read_mac_again(&mut self, netlink: &mut Netlink) -> netd_kernel::Result<()> {
        if let Some(bridge) = self.bridge.as_mut().filter(|bridge| !bridge.own)
            && let Some(mac) = netlink.link_by_index(bridge.index)?.and_then(|link| link.mac)
        {
            bridge.mac = mac;
        }
        Ok(())
    }

    /// The link with the node's gateway addresses, where there is a bridge.
    pub fn gateway(&self) -> Option<&Anchor> {
        self.vlan_gateway.as_ref().or(self.bridge.as_ref())
    }
}

/// Makes the node ready for a pod.
///
/// # Errors
/// Code 100 with the part that the kernel refused, 105 for masquerade, 7 when the bridge's name is another link's.
pub fn prepare(netlink: &mut Netlink, config: &Config, ranges: &NodeRanges) -> Result<Ground, CniError> {
    let mtu = match ranges.mtu {
        Some(mtu) => mtu,
        None => uplink_mtu(netlink).map_err(|e| wiring("the MTU of the uplink cannot be found out", &e))?,
    };
    let mut ground = Ground { mtu, bridge: None, vlan_gateway: None, ranges: Vec::new() };
    match config.wiring.mode {
        Mode::Routed => ground.ranges = ranges.subnets(),
        Mode::Bridge => stand_on_bridge(netlink, config, ranges, &mut ground)?,
    }
    set_parameters(netlink, config, ranges, &ground)
        .map_err(|e| wiring("a kernel parameter cannot be set", &e))?;
    if config.masquerade {
        masquerade::ensure(&masquerade_of(config, ranges)).map_err(|e| {
            CniError::new(Code::Masquerade, "masquerade for pods cannot be installed")
                .because(e)
                .and("the kernel needs nf_tables with nat; \"ipMasq\": false does without")
        })?;
    }
    Ok(ground)
}

fn stand_on_bridge(
    netlink: &mut Netlink,
    config: &Config,
    ranges: &NodeRanges,
    ground: &mut Ground,
) -> Result<(), CniError> {
    let (link, made) = bridge(netlink, config, ranges, ground.mtu)?;
    let failed = |e| wiring(&format!("bridge {} cannot be made ready", config.bridge), &e);
    if !config.wiring.vlans.is_empty() {
        vlan::filter(netlink, config, &link).map_err(|error| {
            match made.then(|| netlink.delete_link(link.index)) {
                Some(Err(cause)) => error.and(format!("and the bridge was not deleted: {cause}")),
                Some(Ok(())) | None => error,
            }
        })?;
    }
    let own_gateways = if vlan::has_gateway(config) { Vec::new() } else { gateways(config, ranges) };
    bring_up(netlink, config, &link, &own_gateways).map_err(failed)?;
    if vlan::has_gateway(config) {
        let link = vlan::gateway(netlink, config, &link, ground.mtu)?;
        bring_up(netlink, config, &link, &gateways(config, ranges)).map_err(failed)?;
        ground.vlan_gateway = Some(Anchor::of(link));
    }
    ground.bridge = Some(Anchor::of(link));
    Ok(())
}

/// The name of the link by which packets come from a pod to the node.
pub fn incoming_link(config: &Config, owner: &Owner) -> String {
    match config.wiring.mode {
        Mode::Bridge => gateway_link(config),
        Mode::Routed => naming::host_link(owner),
    }
}

/// The name of the link with the gateway addresses, of pods on a bridge.
pub fn gateway_link(config: &Config) -> String {
    vlan::gateway_name(config).unwrap_or_else(|| config.bridge.clone())
}

/// The gateway addresses that the node has on a link of its own.
fn gateways(config: &Config, ranges: &NodeRanges) -> Vec<IpNetwork> {
    if config.wiring.gateway && config.wiring.mode == Mode::Bridge { ranges.gateways() } else { Vec::new() }
}

/// Says what of the node's part is missing or different, a sentence each.
pub fn faults(
    netlink: &mut Netlink,
    config: &Config,
    ranges: &NodeRanges,
) -> netd_kernel::Result<Vec<String>> {
    let mut faults = Vec::new();
    if config.wiring.mode == Mode::Bridge {
        faults.extend(bridge_faults(netlink, config, ranges)?);
    }
    for (key, value) in forwarding(config, ranges) {
        let found = sysctl::read(key).unwrap_or_default();
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

fn bridge_faults(
    netlink: &mut Netlink,
    config: &Config,
    ranges: &NodeRanges,
) -> netd_kernel::Result<Vec<String>> {
    let mut faults = Vec::new();
    let with_gateway = vlan::gateway_name(config);
    for name in [Some(config.bridge.clone()), with_gateway.clone()].into_iter().flatten() {
        let Some(link) = netlink.link(&name)? else {
            faults.push(format!("bridge {name} is missing"));
            continue;
        };
        if !link.up {
            faults.push(format!("bridge {name} is down"));
        }
        if with_gateway.as_ref().is_none_or(|gateway| *gateway == name) {
            let present = netlink.addresses(Some(link.index))?;
            let missing = missing_among(&present, &gateways(config, ranges));
            faults.extend(
                missing.iter().map(|gateway| format!("bridge {name} has lost its address {gateway}")),
            );
        }
    }
    Ok(faults)
}

fn masquerade_of(config: &Config, ranges: &NodeRanges) -> Masquerade {
    let owner = masquerade::owner_of(&config.network);
    Masquerade { owner, pod_cidrs: ranges.subnets(), keep: ranges.keep.clone() }
}

/// Finds the bridge or makes it, and says which.
fn bridge(
    netlink: &mut Netlink,
    config: &Config,
    ranges: &NodeRanges,
    mtu: u32,
) -> Result<(Link, bool), CniError> {
    let name = config.bridge.as_str();
    let failed = |e: netd_kernel::Error| wiring(&format!("bridge {name} cannot be made"), &e);
    if let Some(link) = netlink.link(name).map_err(failed)? {
        return is_bridge(link).map(|link| (link, false));
    }
    let mac = match gateways(config, ranges).first() {
        Some(gateway) => naming::bridge_mac(gateway.ip()),
        None => naming::named_bridge_mac(name),
    };
    let spec = BridgeSpec { name, mac: Some(mac), mtu: Some(mtu), alias: Some(naming::BRIDGE_ALIAS) };
    let made = match netlink.add_bridge(&spec) {
        Ok(_) => true,
        // Another call was quicker.
        Err(error) if error.is_exists() => false,
        Err(error) => return Err(failed(error)),
    };
    match netlink.link(name).map_err(failed)? {
        Some(link) => is_bridge(link).map(|link| (link, made)),
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
    gateways: &[IpNetwork],
) -> netd_kernel::Result<()> {
    if gateways.iter().any(IpNetwork::is_ipv6) {
        sysctl::write(&format!("net/ipv6/conf/{}/disable_ipv6", link.name), "0")?;
    }
    let mut batch = Batch::new();
    if !gateways.is_empty() {
        let present = netlink.addresses(Some(link.index))?;
        for address in in_the_way(&present, config, gateways) {
            if !config.force_address && link.alias.as_deref() != Some(naming::BRIDGE_ALIAS) {
                let what = format!("address {address} of the bridge; forceAddress replaces it");
                return Err(netd_kernel::Error::Invalid { what });
            }
            if config.force_address {
                batch.delete_address(link.index, address);
            }
        }
        for gateway in missing_among(&present, gateways) {
            batch.add_address(link.index, gateway, true);
        }
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

fn missing_among(present: &[Address], gateways: &[IpNetwork]) -> Vec<IpNetwork> {
    let missing = |gateway: &&IpNetwork| !present.iter().any(|address| address.prefix == **gateway);
    gateways.iter().filter(missing).copied().collect()
}

/// Addresses of the bridge in the subnet of a gateway that it lacks; with `forceAddress` every other IPv4 address, as
/// with the reference plugin.
fn in_the_way(present: &[Address], config: &Config, gateways: &[IpNetwork]) -> Vec<IpNetwork> {
    let missing = missing_among(present, gateways);
    let others = present.iter().filter(|a| !a.link_local && !gateways.contains(&a.prefix)).map(|a| a.prefix);
    let blocks = |address: &IpNetwork, gateway: &IpNetwork| {
        address.is_ipv4() == gateway.is_ipv4()
            && (address.contains(gateway.ip())
                || gateway.contains(address.ip())
                || (config.force_address && address.is_ipv4()))
    };
    others.filter(|address| missing.iter().any(|gateway| blocks(address, gateway))).collect()
}

/// Forwarding, of the families that pods have, where the node is their gateway.
fn forwarding(config: &Config, ranges: &NodeRanges) -> Vec<(&'static str, &'static str)> {
    let wanted = [(ranges.has_ipv4(), FORWARDING_V4), (ranges.has_ipv6(), FORWARDING_V6)];
    let wanted = wanted.into_iter().filter(|(has, _)| *has && config.wiring.gateway);
    wanted.map(|(_, key)| (key, "1")).collect()
}

/// Forwarding on; no redirects, since pods of one node are to reach each other through the host (see `attachment`);
/// router advertisements of pods are not believed.
fn set_parameters(
    netlink: &mut Netlink,
    config: &Config,
    ranges: &NodeRanges,
    ground: &Ground,
) -> netd_kernel::Result<()> {
    let anchor = ground.gateway().map(|anchor| anchor.name.as_str());
    // Without IPv6 ranges too: a node that does not forward IPv6 believes routers, and here they are pods.
    if let Some(name) = anchor {
        sysctl::write_if_present(&format!("net/ipv6/conf/{name}/accept_ra"), "0")?;
    }
    for (key, value) in forwarding(config, ranges) {
        if key == FORWARDING_V6 && sysctl::read(key)? != value {
            keep_router_advertisements(netlink, anchor)?;
        }
        sysctl::write(key, value)?;
        if key == FORWARDING_V4 {
            // A link sends redirects when either says so, so the one for all links must not; others keep their own.
            sysctl::write("net/ipv4/conf/all/send_redirects", "0")?;
            if let Some(name) = anchor {
                sysctl::write(&format!("net/ipv4/conf/{name}/send_redirects"), "0")?;
            }
        }
    }
    Ok(())
}

/// A host that forwards believes router advertisements only where `accept_ra` is 2
/// (Documentation/networking/ip-sysctl.rst): without this the node could lose its default route.
fn keep_router_advertisements(netlink: &mut Netlink, bridge: Option<&str>) -> netd_kernel::Result<()> {
    for link in netlink.links()? {
        let ours = bridge == Some(link.name.as_str()) || link.alias.as_deref().is_some_and(naming::is_alias);
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
        if let Some(index) = index.filter(|index| *index != LOOPBACK)
            && let Some(mtu) = netlink.link_mtu(index)?
        {
            return Ok(mtu.clamp(68, 65_535));
        }
    }
    Ok(ETHERNET_MTU)
}

fn wiring(msg: &str, cause: &netd_kernel::Error) -> CniError {
    CniError::new(Code::Wiring, msg).because(cause)
}
