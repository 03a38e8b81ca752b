//! From the labels of a name to the thing it names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use netd_model::{ObjectName, Protocol, Service, ServiceType, Snapshot};

use super::{View, endpoint_label, ready_endpoints};
use crate::wire::Name;

/// What a name of the cluster zone is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node<'s> {
    /// Nothing: NXDOMAIN.
    Missing,
    /// A name without records of its own, such as a namespace: NODATA.
    Empty,
    /// The cluster domain itself.
    Apex,
    /// `dns-version`.
    Version,
    /// `ns.dns`.
    NameServer,
    /// A Service with addresses: its own, or its endpoints' when headless.
    Service(&'s Service),
    /// One named port of a Service.
    Port(&'s Service, Protocol, &'s str),
    /// Addresses of the endpoints of one host name.
    Addresses(Vec<IpAddr>),
    /// ExternalName.
    Alias(Name),
}

impl View {
    /// Finds what the labels in front of the cluster domain name, rightmost label first.
    pub(super) fn find<'s>(&self, snapshot: &'s Snapshot, labels: &[&[u8]]) -> Node<'s> {
        let mut texts = [""; 6];
        if labels.len() > texts.len() {
            return Node::Missing;
        }
        for (text, label) in texts.iter_mut().zip(labels) {
            let Ok(valid) = std::str::from_utf8(label) else { return Node::Missing };
            *text = valid;
        }
        // An absent label is "", which no name on the wire has.
        match texts {
            ["", ..] => Node::Apex,
            ["dns-version", "", ..] => Node::Version,
            ["dns" | "svc" | "pod", "", ..] => Node::Empty,
            ["dns", "ns", "", ..] => Node::NameServer,
            ["svc" | "pod", namespace, "", ..] => namespace_node(snapshot, namespace),
            ["pod", namespace, address, "", ..] => pod_node(snapshot, namespace, address),
            ["svc", namespace, service, below @ ..] => service_node(snapshot, (namespace, service), below),
            _ => Node::Missing,
        }
    }
}

fn namespace_node<'s>(snapshot: &Snapshot, namespace: &str) -> Node<'s> {
    if snapshot.namespaces.contains(namespace) { Node::Empty } else { Node::Missing }
}

/// `a-b-c-d.<namespace>.pod`: any address in an existing namespace (CoreDNS' `pods insecure`).
fn pod_node<'s>(snapshot: &Snapshot, namespace: &str, label: &str) -> Node<'s> {
    if !snapshot.namespaces.contains(namespace) {
        return Node::Missing;
    }
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    let address = v4.or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6));
    address.map_or(Node::Missing, |a| Node::Addresses(vec![a]))
}

fn service_node<'s>(snapshot: &'s Snapshot, (namespace, name): (&str, &str), below: [&str; 3]) -> Node<'s> {
    let key = ObjectName::new(namespace, name);
    let Some(service) = snapshot.services.get(&key).map(Arc::as_ref) else { return Node::Missing };
    if service.service_type == ServiceType::ExternalName {
        return if below[0].is_empty() { alias(service) } else { Node::Missing };
    }
    if service.headless && ready_endpoints(snapshot, &key).next().is_none() {
        return Node::Missing;
    }
    match below {
        ["", ..] => Node::Service(service),
        [label, "", _] => match protocol(label) {
            Some(protocol) => protocol_node(snapshot, service, protocol),
            None => endpoint_node(snapshot, &key, label),
        },
        [proto, port, ""] => match (protocol(proto), port.strip_prefix('_')) {
            (Some(protocol), Some(port)) => port_node(snapshot, service, protocol, port),
            _ => Node::Missing,
        },
        _ => Node::Missing,
    }
}

/// The target of an ExternalName Service; one that is an address or no name is NXDOMAIN.
fn alias<'s>(service: &Service) -> Node<'s> {
    let target = service.external_name.as_deref().filter(|n| n.parse::<IpAddr>().is_err());
    match target.map(Name::parse) {
        Some(Ok(name)) if name.labels().next().is_some() => Node::Alias(name),
        _ => Node::Missing,
    }
}

fn protocol(label: &str) -> Option<Protocol> {
    match label {
        "_tcp" => Some(Protocol::Tcp),
        "_udp" => Some(Protocol::Udp),
        "_sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// Names of the ports that have SRV records.
fn named_ports<'s>(
    snapshot: &'s Snapshot,
    service: &'s Service,
    protocol: Protocol,
) -> impl Iterator<Item = &'s str> {
    let own = service.ports.iter().filter(|_| !service.headless);
    let own = own.filter(move |p| p.protocol == protocol).map(|p| p.name.as_ref());
    let headless = snapshot.slices_of(&service.name).iter().filter(|_| service.headless);
    let headless = headless
        .filter(|slice| slice.endpoints.iter().any(|e| e.ready))
        .flat_map(|slice| slice.ports.iter())
        .filter(move |p| p.protocol == protocol)
        .map(|p| p.name.as_ref());
    own.chain(headless).filter(|name| !name.is_empty())
}

fn protocol_node<'s>(snapshot: &'s Snapshot, service: &'s Service, protocol: Protocol) -> Node<'s> {
    match named_ports(snapshot, service, protocol).next() {
        Some(_) => Node::Empty,
        None => Node::Missing,
    }
}

fn port_node<'s>(snapshot: &'s Snapshot, service: &'s Service, protocol: Protocol, port: &str) -> Node<'s> {
    match named_ports(snapshot, service, protocol).find(|name| name.eq_ignore_ascii_case(port)) {
        Some(name) => Node::Port(service, protocol, name),
        None => Node::Missing,
    }
}

fn endpoint_node<'s>(snapshot: &Snapshot, service: &ObjectName, label: &str) -> Node<'s> {
    let mut addresses: Vec<IpAddr> = ready_endpoints(snapshot, service)
        .filter(|(_, endpoint)| endpoint_label(endpoint) == label)
        .map(|(_, endpoint)| endpoint.address)
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() { Node::Missing } else { Node::Addresses(addresses) }
}
