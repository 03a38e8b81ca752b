//! core/v1 Endpoints, for servers without discovery.k8s.io/v1 (before 1.21).

use std::sync::Arc;

use netd_model::{Endpoint, EndpointSlice, Family, ObjectName};

use super::address::parse_routable;
use super::slice::{hostname, pod, ports};
use super::{Decoded, Interner, Report, key_of, object_name};
use crate::wire::endpoints::{self as wire, Address, Subset};
use crate::wire::{Body, LABEL_HEADLESS};

/// Decodes Endpoints into the slices that the EndpointSlice controller would give their Service: one for each
/// subset and family, addresses that are not ready with `ready` and `serving` false.
pub(crate) fn endpoints(wire: &wire::Endpoints, strings: &mut Interner) -> Decoded<Vec<EndpointSlice>> {
    let key = key_of(&wire.metadata);
    let mut report = Report::new(wire::Endpoints::KIND, &key);
    let name = object_name(&wire.metadata, strings);
    let object = report.accept(name).map(|service| {
        let proxied = wire.metadata.label(LABEL_HEADLESS).is_none();
        let mut slices = Vec::new();
        for (index, subset) in wire.subsets.iter().enumerate() {
            let named = SubsetName { service: &service, index, proxied };
            slices.extend(decode_subset(&named, subset, &mut report, strings));
        }
        slices
    });
    Decoded { key, object, problems: report.finish() }
}

struct SubsetName<'a> {
    service: &'a ObjectName,
    index: usize,
    proxied: bool,
}

fn decode_subset(
    named: &SubsetName<'_>,
    subset: &Subset,
    report: &mut Report,
    strings: &mut Interner,
) -> Vec<EndpointSlice> {
    // Endpoints leave an unnamed port's name out where slices have it empty.
    let named_ports: Vec<wire::Port> = subset
        .ports
        .iter()
        .map(|port| wire::Port { name: Some(port.name.clone().unwrap_or_default()), ..port.clone() })
        .collect();
    let ports = ports(&named_ports, report, strings);
    let ready = subset.addresses.iter().map(|address| (address, true));
    let not_ready = subset.not_ready_addresses.iter().map(|address| (address, false));
    let endpoints: Vec<Endpoint> = ready
        .chain(not_ready)
        .filter_map(|(address, ready)| decode_address(address, ready, report, strings))
        .collect();
    let slice = |family: Family| {
        let endpoints: Vec<Endpoint> =
            endpoints.iter().filter(|e| Family::of(e.address) == family).cloned().collect();
        let suffix = family.to_string().to_ascii_lowercase();
        let name: Arc<str> = format!("{}-{}-{suffix}", named.service.name, named.index).into();
        (!endpoints.is_empty()).then(|| EndpointSlice {
            name: ObjectName { namespace: Arc::clone(&named.service.namespace), name },
            service: named.service.clone(),
            family,
            ports: ports.clone(),
            endpoints,
            proxied: named.proxied,
        })
    };
    Family::ALL.into_iter().filter_map(slice).collect()
}

fn decode_address(
    wire: &Address,
    ready: bool,
    report: &mut Report,
    strings: &mut Interner,
) -> Option<Endpoint> {
    let address = parse_routable("subsets[].addresses[].ip", &wire.ip);
    let address = report.accept(address)?;
    Some(Endpoint {
        address,
        ready,
        serving: ready,
        terminating: false,
        node: strings.intern_some(wire.node_name.as_deref()),
        hostname: hostname(wire.hostname.as_deref(), report),
        zone: None,
        for_zones: Vec::new(),
        for_nodes: Vec::new(),
        pod: pod(wire.target_ref.as_ref(), strings),
    })
}
