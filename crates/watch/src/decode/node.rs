//! Nodes and Namespaces.

use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use netd_model::{Family, Node};

use super::address::{parse_prefix, parse_unicast};
use super::{Decoded, Interner, Refusal, Report, checked_name, key_of};
use crate::wire::node as wire;
use crate::wire::{Body, Meta};

/// The zone's label, and its name before 1.17.
const LABELS_ZONE: [&str; 2] = ["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"];

/// Set by the cluster autoscaler before it deletes a node (`utils/taints`).
const TAINT_TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Decodes a Node.
pub(crate) fn node(wire: &wire::Node, strings: &mut Interner) -> Decoded<Node> {
    let key = key_of(&wire.metadata);
    let mut report = Report::new(wire::Node::KIND, &key);
    let header = cluster_name(&wire.metadata).and_then(|name| Ok((name, pod_cidrs(&wire.spec)?)));
    let object = report.accept(header).map(|(name, pod_cidrs)| {
        let internal_addresses = addresses(wire, "InternalIP", &mut report);
        let mut addresses_all = internal_addresses.clone();
        for address in addresses(wire, "ExternalIP", &mut report) {
            if !addresses_all.contains(&address) {
                addresses_all.push(address);
            }
        }
        Node {
            name: strings.intern(name),
            addresses: addresses_all,
            internal_addresses,
            pod_cidrs,
            zone: LABELS_ZONE
                .into_iter()
                .find_map(|label| wire.metadata.label(label))
                .filter(|zone| !zone.is_empty())
                .map(|zone| strings.intern(zone)),
            leaving: is_leaving(wire),
        }
    });
    Decoded { key, object, problems: report.finish() }
}

/// Being deleted, or about to be by the cluster autoscaler.
fn is_leaving(wire: &wire::Node) -> bool {
    wire.metadata.deletion_timestamp.is_some()
        || wire.spec.taints.iter().any(|taint| taint.key == TAINT_TO_BE_DELETED)
}

/// Decodes a Namespace: its name.
pub(crate) fn namespace(wire: &wire::Namespace, strings: &mut Interner) -> Decoded<Arc<str>> {
    let key = key_of(&wire.metadata);
    let mut report = Report::new(wire::Namespace::KIND, &key);
    let object = report.accept(cluster_name(&wire.metadata)).map(|name| strings.intern(name));
    Decoded { key, object, problems: report.finish() }
}

fn cluster_name(meta: &Meta) -> Result<&str, Refusal> {
    checked_name("metadata.name", meta.name.as_deref())
}

/// Servers before 1.16 have only `podCIDR`.
fn pod_cidrs(spec: &wire::NodeSpec) -> Result<Vec<IpNetwork>, Refusal> {
    let single = spec.pod_cidr.as_deref().filter(|cidr| !cidr.is_empty() && spec.pod_cidrs.is_empty());
    let mut cidrs: Vec<IpNetwork> = Vec::new();
    for text in single.into_iter().chain(spec.pod_cidrs.iter().map(String::as_str)) {
        let cidr = parse_prefix("spec.podCIDRs", text)?;
        let family = Family::of_prefix(&cidr);
        if cidrs.iter().any(|other| Family::of_prefix(other) == family) {
            return Err(format!("spec.podCIDRs has a second {family} prefix {text:?}; keep one"));
        }
        cidrs.push(cidr);
    }
    Ok(cidrs)
}

fn addresses(wire: &wire::Node, address_type: &str, report: &mut Report) -> Vec<IpAddr> {
    let mut decoded = Vec::new();
    for entry in wire.status.addresses.iter().filter(|entry| entry.address_type == address_type) {
        let address = parse_unicast("status.addresses", &entry.address);
        if let Some(address) = report.accept(address)
            && !decoded.contains(&address)
        {
            decoded.push(address);
        }
    }
    decoded
}
