//! EndpointSlices.

use std::sync::Arc;

use netd_model::{Endpoint, EndpointPort, EndpointSlice, Family, ObjectName};

use super::address::parse_routable;
use super::{
    Decoded, Interner, Refusal, Report, checked_name, checked_port, checked_port_name, checked_protocol,
    is_label, key_of, object_name,
};
use crate::wire::endpoints::{self as wire, Conditions, ObjectReference};
use crate::wire::{Body, LABEL_HEADLESS, LABEL_SERVICE_NAME};

/// Decodes an EndpointSlice. One of no Service, and one of type FQDN, is no object and no problem.
pub(crate) fn slice(wire: &wire::EndpointSlice, strings: &mut Interner) -> Decoded<EndpointSlice> {
    let key = key_of(&wire.metadata);
    let mut report = Report::new(wire::EndpointSlice::KIND, &key);
    let header = report.accept(header(wire, strings)).flatten();
    let object = header.map(|(name, service, family)| EndpointSlice {
        name,
        service,
        family,
        ports: ports(&wire.ports, &mut report, strings),
        endpoints: wire
            .endpoints
            .iter()
            .filter_map(|endpoint| {
                let endpoint = decode_endpoint(endpoint, family, &mut report, strings);
                report.accept(endpoint)
            })
            .collect(),
        proxied: wire.metadata.label(LABEL_HEADLESS).is_none(),
    });
    Decoded { key, object, problems: report.finish() }
}

type Header = (ObjectName, ObjectName, Family);

/// Name, Service and family; `None` when the slice is not for us.
fn header(wire: &wire::EndpointSlice, strings: &mut Interner) -> Result<Option<Header>, Refusal> {
    let Some(service) = wire.metadata.label(LABEL_SERVICE_NAME).filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let family = match wire.address_type.as_deref() {
        Some("IPv4") => Family::V4,
        Some("IPv6") => Family::V6,
        Some("FQDN") => return Ok(None),
        Some(other) => return Err(format!("addressType {other:?} is unknown; use IPv4 or IPv6")),
        None => return Err("addressType is missing; use IPv4 or IPv6".to_owned()),
    };
    let name = object_name(&wire.metadata, strings)?;
    let service = checked_name("label kubernetes.io/service-name", Some(service))?;
    let service = ObjectName { namespace: Arc::clone(&name.namespace), name: strings.intern(service) };
    Ok(Some((name, service, family)))
}

/// Ports with a name and a number; the API means "all ports" by a missing number, which no Service port can
/// ask for.
pub(super) fn ports(ports: &[wire::Port], report: &mut Report, strings: &mut Interner) -> Vec<EndpointPort> {
    let mut decoded: Vec<EndpointPort> = Vec::with_capacity(ports.len());
    for port in ports {
        let (Some(name), Some(number)) = (port.name.as_deref(), port.port.filter(|number| *number != 0))
        else {
            continue;
        };
        let port = decode_port(name, number, port.protocol.as_deref(), strings);
        let Some(port) = report.accept(port) else { continue };
        let twice = decoded.iter().any(|o| (&o.name, o.protocol) == (&port.name, port.protocol));
        if twice {
            report.add(format!("ports: {:?} is there twice; the first counts, remove one", &*port.name));
        } else {
            decoded.push(port);
        }
    }
    decoded
}

fn decode_port(
    name: &str,
    number: i64,
    protocol: Option<&str>,
    strings: &mut Interner,
) -> Result<EndpointPort, Refusal> {
    Ok(EndpointPort {
        name: checked_port_name("ports[].name", Some(name), strings)?,
        protocol: checked_protocol("ports[].protocol", protocol)?,
        port: checked_port("ports[].port", number)?,
    })
}

/// One endpoint; only its first address counts.
fn decode_endpoint(
    wire: &wire::Endpoint,
    family: Family,
    report: &mut Report,
    strings: &mut Interner,
) -> Result<Endpoint, Refusal> {
    let text = wire.addresses.first().ok_or("endpoints[].addresses is empty; remove the endpoint")?;
    let address = parse_routable("endpoints[].addresses", text)?;
    if Family::of(address) != family {
        return Err(format!(
            "endpoints[].addresses {text:?} is not {family}; put it in a slice of its family"
        ));
    }
    let Conditions { ready, serving, terminating } = wire.conditions;
    Ok(Endpoint {
        address,
        ready: ready.unwrap_or(true),
        serving: serving.unwrap_or(true),
        terminating: terminating.unwrap_or(false),
        node: strings.intern_some(wire.node_name.as_deref()),
        hostname: hostname(wire.hostname.as_deref(), report),
        zone: strings.intern_some(wire.zone.as_deref()),
        for_zones: wire.hints.for_zones.iter().map(|zone| strings.intern(&zone.name)).collect(),
        for_nodes: wire.hints.for_nodes.iter().map(|node| strings.intern(&node.name)).collect(),
        pod: pod(wire.target_ref.as_ref(), strings),
    })
}

/// A host name that DNS can answer for.
pub(super) fn hostname(hostname: Option<&str>, report: &mut Report) -> Option<Arc<str>> {
    let hostname = hostname.filter(|h| !h.is_empty())?;
    if is_label(hostname) {
        return Some(hostname.into());
    }
    report.add(format!("hostname {hostname:?} is not a DNS label and left out; use a-z, 0-9 and '-'"));
    None
}

/// The Pod behind an endpoint.
pub(super) fn pod(target: Option<&ObjectReference>, strings: &mut Interner) -> Option<ObjectName> {
    let target = target.filter(|target| target.kind.as_deref() == Some("Pod"))?;
    let namespace = target.namespace.as_deref().filter(|n| !n.is_empty())?;
    let name = target.name.as_deref().filter(|n| !n.is_empty())?;
    Some(ObjectName { namespace: strings.intern(namespace), name: name.into() })
}
