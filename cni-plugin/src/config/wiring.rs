//! How pods hang on the node: over a bridge or routed, with or without addresses, in VLANs, apart from each other.
//!
//! The keys and their meaning are the reference bridge plugin's, `mode` is netd's own.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnetwork::IpNetwork;
use netd_kernel::netlink::{PortFlags, VlanTagging};
use serde::Deserialize;

use super::document::{Document, Ipam};
use super::{REFERENCE, invalid};
use crate::error::CniError;
use crate::version::Version;

/// The node, to a routed pod: an address of the link alone (RFC 3927) that the pod knows the MAC address of.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// As [`GATEWAY_V4`] (RFC 4291, section 2.5.6).
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The highest VLAN: 4095 is reserved (IEEE 802.1Q).
const LAST_VLAN: u16 = 4094;

/// What pods' links are attached to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A bridge, whose ports they are.
    #[default]
    Bridge,
    /// Nothing: the node has a route to each of them.
    Routed,
}

/// How a network's pods hang on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wiring {
    /// What their links are attached to.
    pub mode: Mode,
    /// Whether the node is their gateway; without one they reach what is on their own LAN.
    pub gateway: bool,
    /// Whether they have addresses.
    pub addressed: bool,
    /// Whether addresses keep their subnet's prefix, so that pods of one node reach each other past the node's IP layer.
    pub on_link: bool,
    /// Whether the pod's end is switched on.
    pub enabled: bool,
    /// Whether the node's pods of this kind cannot reach each other over the bridge.
    pub isolated: bool,
    /// Whether a pod's frames are dropped that have another Ethernet address than its own.
    pub pinned: bool,
    /// The VLANs of their ports.
    pub vlans: Vlans,
    /// Whether the result repeats the routes of the configuration as they are written, like the reference plugin's.
    pub verbatim: bool,
}

/// VLANs of a bridge port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vlans {
    /// The VLAN of frames without a tag that the configuration names.
    pub access: Option<u16>,
    /// VLANs of frames with a tag.
    pub trunk: Vec<RangeInclusive<u16>>,
    /// Whether the port stays in the bridge's own VLAN as well.
    pub keep_default: bool,
}

/// One item of `vlanTrunk`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TrunkDocument {
    id: Option<i64>,
    #[serde(rename = "minID")]
    first: Option<i64>,
    #[serde(rename = "maxID")]
    last: Option<i64>,
}

impl Vlans {
    /// Whether no VLAN is asked for.
    pub fn is_empty(&self) -> bool {
        self.access.is_none() && self.trunk.is_empty()
    }

    /// The key of the configuration that asks for them, for messages.
    pub fn key(&self) -> &'static str {
        if self.access.is_some() { "vlan" } else { "vlanTrunk" }
    }

    /// What a port is to be a member of, in this order; a trunk without an access VLAN has VLAN 1 for frames without a
    /// tag.
    pub fn memberships(&self) -> Vec<(RangeInclusive<u16>, VlanTagging)> {
        let access = self.access.map(|vlan| (vlan..=vlan, VlanTagging::Native));
        let default =
            (self.access.is_none() && !self.trunk.is_empty()).then_some((1..=1, VlanTagging::Native));
        let trunk = self.trunk.iter().map(|range| (range.clone(), VlanTagging::Tagged));
        access.into_iter().chain(trunk).chain(default).collect()
    }

    fn read(document: &Document) -> Result<Self, CniError> {
        let access = match document.vlan {
            0 => None,
            vlan => Some(vlan_number("vlan", vlan)?),
        };
        let mut all = BTreeSet::new();
        for (place, item) in document.vlan_trunk.iter().flatten().enumerate() {
            let path = |key: &str| format!("vlanTrunk[{place}].{key}");
            match (item.first, item.last) {
                (None, None) => {}
                (Some(first), Some(last)) => {
                    let (first, last) =
                        (vlan_number(&path("minID"), first)?, vlan_number(&path("maxID"), last)?);
                    if first > last {
                        return Err(invalid(format!(
                            "{} {first} is greater than maxID {last}",
                            path("minID")
                        )));
                    }
                    all.extend(first..=last);
                }
                (Some(_), None) => return Err(invalid(format!("{} has no maxID", path("minID")))),
                (None, Some(_)) => return Err(invalid(format!("{} has no minID", path("maxID")))),
            }
            if let Some(id) = item.id {
                all.insert(vlan_number(&path("id"), id)?);
            }
        }
        Ok(Self { access, trunk: runs(&all), keep_default: document.preserve_default_vlan })
    }
}

impl Wiring {
    /// Reads the wiring.
    ///
    /// # Errors
    /// Code 7 when keys contradict each other, or have no meaning together.
    pub(super) fn read(document: &Document, version: Version) -> Result<Self, CniError> {
        let reference = document.kind == REFERENCE;
        let ours = !reference;
        // An absent `ipam` is the daemon's ranges for netd, and no addresses for the reference plugin.
        let empty = document.ipam == Ipam::default();
        let addressed = !empty || (ours && !document.disable_container_interface);
        let vlans = Vlans::read(document)?;
        let asked = document.is_gateway.unwrap_or(ours);
        let default = document.is_default_gateway.unwrap_or(false);
        let wiring = Self {
            mode: document.mode.unwrap_or_default(),
            gateway: (asked || default) && addressed,
            addressed,
            on_link: reference || !(asked || default) || document.port_isolation || !vlans.is_empty(),
            enabled: !document.disable_container_interface,
            isolated: document.port_isolation,
            pinned: document.macspoofchk,
            vlans,
            verbatim: reference,
        };
        wiring.refuse_impossible(document)?;
        if !addressed && version < Version::V0_3_0 {
            return Err(invalid(format!("cniVersion {} has no result without addresses", version.name()))
                .and("0.3.0 and later have"));
        }
        Ok(wiring)
    }

    /// The address that a pod's packets leave by: the gateway's own, or the node's, whatever its addresses are.
    pub fn next_hop(&self, gateway: &IpNetwork) -> IpAddr {
        match (self.mode, gateway) {
            (Mode::Bridge, _) => gateway.ip(),
            (Mode::Routed, IpNetwork::V4(_)) => IpAddr::V4(GATEWAY_V4),
            (Mode::Routed, IpNetwork::V6(_)) => IpAddr::V6(GATEWAY_V6),
        }
    }

    /// What a pod's bridge port does.
    pub fn port_flags(&self, hairpin: bool) -> PortFlags {
        PortFlags { hairpin, isolated: self.isolated, locked: self.pinned }
    }

    fn refuse_impossible(&self, document: &Document) -> Result<(), CniError> {
        if self.mode == Mode::Routed {
            refuse_with_routed(document)?;
        }
        if document.promisc_mode && document.hairpin_mode == Some(true) {
            return Err(invalid("hairpinMode with promiscMode is not possible").and("switch one of them off"));
        }
        if let Some(backend) = document.ip_masq_backend.as_deref()
            && !matches!(backend, "iptables" | "nftables")
        {
            return Err(invalid(format!("ipMasqBackend {backend:?} is not known"))
                .and("\"nftables\" and \"iptables\" are, and mean the same"));
        }
        if !self.enabled && self.addressed {
            return Err(invalid("disableContainerInterface with ipam is not possible")
                .and("an interface that is switched off has no addresses: leave one of them out"));
        }
        if document.kind == REFERENCE && document.ipam.kind.is_none() && self.addressed {
            return Err(invalid("ipam has keys but no type").and("leave ipam out, or name the type"));
        }
        Ok(())
    }
}

/// Keys that say something about a bridge.
fn refuse_with_routed(document: &Document) -> Result<(), CniError> {
    let of_a_bridge = [
        (document.kind == REFERENCE, "type \"bridge\""),
        (document.is_gateway == Some(false), "isGateway false"),
        (document.hairpin_mode == Some(false), "hairpinMode false"),
        (document.promisc_mode, "promiscMode"),
        (document.force_address, "forceAddress"),
        (document.vlan != 0, "vlan"),
        (document.vlan_trunk.as_ref().is_some_and(|items| !items.is_empty()), "vlanTrunk"),
        (document.preserve_default_vlan, "preserveDefaultVlan"),
        (document.port_isolation, "portIsolation"),
        (document.macspoofchk, "macspoofchk"),
        (document.disable_container_interface, "disableContainerInterface"),
    ];
    if let Some((_, key)) = of_a_bridge.into_iter().find(|(set, _)| *set) {
        return Err(invalid(format!("{key} has no meaning with mode \"routed\""))
            .and("it is about a bridge, and there is none: leave one of them out"));
    }
    match document.ipam.routes.iter().find(|route| route.gw.is_some()) {
        Some(route) => Err(invalid(format!("ipam.routes: {} has a gw, with mode \"routed\"", route.dst))
            .and("the node is the pod's only neighbour: leave gw out")),
        None => Ok(()),
    }
}

fn vlan_number(path: &str, number: i64) -> Result<u16, CniError> {
    u16::try_from(number)
        .ok()
        .filter(|vlan| (1..=LAST_VLAN).contains(vlan))
        .ok_or_else(|| invalid(format!("{path} {number} is no VLAN")).and(format!("1 to {LAST_VLAN} are")))
}

/// Numbers that follow each other, as ranges.
fn runs(numbers: &BTreeSet<u16>) -> Vec<RangeInclusive<u16>> {
    let mut runs: Vec<RangeInclusive<u16>> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some(run) if run.end().checked_add(1) == Some(*number) => *run = *run.start()..=*number,
            _ => runs.push(*number..=*number),
        }
    }
    runs
}

#[cfg(test)]
mod tests;
