//! Services.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use k8s_openapi::jiff;
use netd_model::{Family, LoadBalancerIngress, Service, ServicePort, ServiceType, TrafficPolicy};

use super::address::{parse_prefix, parse_routable, parse_unicast};
use super::{
    Decoded, Interner, Refusal, Report, checked_name, checked_optional_port, checked_port, checked_port_name,
    checked_protocol, key_of, object_name,
};
use crate::wire::service::{self as wire, Ingress, Spec};
use crate::wire::{Body, LABEL_PROXY_NAME};

/// `timeoutSeconds` of ClientIP affinity when absent: three hours.
const DEFAULT_AFFINITY_SECONDS: i64 = 10_800;
/// The longest affinity that the API accepts: a day.
const MAX_AFFINITY_SECONDS: i64 = 86_400;

/// Decodes a Service.
pub(crate) fn service(wire: &wire::Service, strings: &mut Interner) -> Decoded<Service> {
    let key = key_of(&wire.metadata);
    let mut report = Report::new(wire::Service::KIND, &key);
    let object = report.accept(decode(wire, strings)).map(|mut service| {
        service.load_balancer = load_balancer(&wire.status.load_balancer.ingress, &mut report);
        service
    });
    Decoded { key, object, problems: report.finish() }
}

/// All but the status.
fn decode(wire: &wire::Service, strings: &mut Interner) -> Result<Service, Refusal> {
    let spec = &wire.spec;
    let name = object_name(&wire.metadata, strings)?;
    let service_type = service_type(spec.service_type.as_deref())?;
    let (headless, cluster_ips) = match service_type {
        ServiceType::ExternalName => (false, Vec::new()),
        ServiceType::ClusterIP | ServiceType::NodePort | ServiceType::LoadBalancer => cluster_ips(spec)?,
    };
    Ok(Service {
        name,
        uid: wire.metadata.uid.as_deref().unwrap_or_default().into(),
        created: created(wire.metadata.creation_timestamp.as_deref())?,
        service_type,
        headless,
        cluster_ips,
        external_name: external_name(service_type, spec)?,
        ports: ports(service_type, &spec.ports, strings)?,
        external_ips: external_ips(&spec.external_ips)?,
        load_balancer: Vec::new(),
        source_ranges: source_ranges(&spec.load_balancer_source_ranges)?,
        internal_traffic_policy: policy(
            "spec.internalTrafficPolicy",
            spec.internal_traffic_policy.as_deref(),
        )?,
        external_traffic_policy: policy(
            "spec.externalTrafficPolicy",
            spec.external_traffic_policy.as_deref(),
        )?,
        health_check_node_port: checked_optional_port(
            "spec.healthCheckNodePort",
            spec.health_check_node_port,
        )?,
        session_affinity: session_affinity(spec)?,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        proxied: wire.metadata.label(LABEL_PROXY_NAME).is_none(),
    })
}

fn service_type(text: Option<&str>) -> Result<ServiceType, Refusal> {
    match text {
        None | Some("" | "ClusterIP") => Ok(ServiceType::ClusterIP),
        Some("NodePort") => Ok(ServiceType::NodePort),
        Some("LoadBalancer") => Ok(ServiceType::LoadBalancer),
        Some("ExternalName") => Ok(ServiceType::ExternalName),
        Some(other) => Err(format!(
            "spec.type {other:?} is unknown; use ClusterIP, NodePort, LoadBalancer or ExternalName"
        )),
    }
}

/// `metadata.creationTimestamp` in seconds since the epoch.
fn created(text: Option<&str>) -> Result<Option<i64>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    match text.parse::<jiff::Timestamp>() {
        Ok(timestamp) => Ok(Some(timestamp.as_second())),
        Err(error) => Err(format!("metadata.creationTimestamp {text:?} is not a time ({error}); remove it")),
    }
}

/// Whether the Service is headless, and its addresses. Servers before 1.20 have only `clusterIP`.
fn cluster_ips(spec: &Spec) -> Result<(bool, Vec<IpAddr>), Refusal> {
    let single = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty());
    if single == Some("None") || spec.cluster_ips.first().is_some_and(|ip| ip == "None") {
        return Ok((true, Vec::new()));
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    let listed = spec.cluster_ips.iter().map(String::as_str);
    for text in single.into_iter().filter(|_| spec.cluster_ips.is_empty()).chain(listed) {
        let address = parse_unicast("spec.clusterIPs", text)?;
        if addresses.iter().any(|other| Family::of(*other) == Family::of(address)) {
            return Err(format!(
                "spec.clusterIPs has a second {} address {text:?}; keep one",
                Family::of(address)
            ));
        }
        addresses.push(address);
    }
    Ok((false, addresses))
}

fn external_name(service_type: ServiceType, spec: &Spec) -> Result<Option<Arc<str>>, Refusal> {
    if service_type != ServiceType::ExternalName {
        return Ok(None);
    }
    let name = spec.external_name.as_deref().unwrap_or_default();
    let lower = name.trim_end_matches('.').to_ascii_lowercase();
    // Underscores are no host names, but people alias service records with them.
    checked_name("spec.externalName", Some(&lower.replace('_', "x")))?;
    Ok(Some(lower.into()))
}

fn ports(
    service_type: ServiceType,
    ports: &[wire::Port],
    strings: &mut Interner,
) -> Result<Vec<ServicePort>, Refusal> {
    let mut decoded: Vec<ServicePort> = Vec::with_capacity(ports.len());
    for (index, port) in ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let number = port.port.ok_or_else(|| format!("{} is missing; set it", field("port")))?;
        let port = ServicePort {
            name: checked_port_name(&field("name"), port.name.as_deref(), strings)?,
            protocol: checked_protocol(&field("protocol"), port.protocol.as_deref())?,
            port: checked_port(&field("port"), number)?,
            node_port: checked_optional_port(&field("nodePort"), port.node_port)?,
        };
        check_port(service_type, &port, &decoded, &field)?;
        decoded.push(port);
    }
    Ok(decoded)
}

/// What a port must be beside the ports before it.
fn check_port(
    service_type: ServiceType,
    port: &ServicePort,
    before: &[ServicePort],
    field: &dyn Fn(&str) -> String,
) -> Result<(), Refusal> {
    if before.iter().any(|other| other.name == port.name) {
        return Err(format!("{} {:?} is not unique; name each port", field("name"), &*port.name));
    }
    if before.iter().any(|other| (other.protocol, other.port) == (port.protocol, port.port)) {
        return Err(format!(
            "{} {}/{} is there twice; remove one",
            field("port"),
            port.port,
            port.protocol.lower()
        ));
    }
    let on_nodes = matches!(service_type, ServiceType::NodePort | ServiceType::LoadBalancer);
    if port.node_port.is_some() && !on_nodes {
        return Err(format!("{} needs spec.type NodePort or LoadBalancer", field("nodePort")));
    }
    Ok(())
}

fn external_ips(texts: &[String]) -> Result<Vec<IpAddr>, Refusal> {
    texts.iter().map(|text| parse_routable("spec.externalIPs", text)).collect()
}

/// Both families are kept; the planner compares within one.
fn source_ranges(texts: &[String]) -> Result<Vec<IpNetwork>, Refusal> {
    texts.iter().map(|text| parse_prefix("spec.loadBalancerSourceRanges", text)).collect()
}

fn policy(field: &str, text: Option<&str>) -> Result<TrafficPolicy, Refusal> {
    match text {
        None | Some("" | "Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => Err(format!("{field} {other:?} is unknown; use Cluster or Local")),
    }
}

fn session_affinity(spec: &Spec) -> Result<Option<Duration>, Refusal> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return Ok(None),
        Some("ClientIP") => {}
        Some(other) => {
            return Err(format!("spec.sessionAffinity {other:?} is unknown; use None or ClientIP"));
        }
    }
    let seconds = spec.session_affinity_config.client_ip.timeout_seconds.unwrap_or(DEFAULT_AFFINITY_SECONDS);
    match u64::try_from(seconds) {
        Ok(timeout) if (1..=MAX_AFFINITY_SECONDS).contains(&seconds) => {
            Ok(Some(Duration::from_secs(timeout)))
        }
        Ok(_) | Err(_) => Err(format!(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds {seconds} is out of range; use 1 to \
             {MAX_AFFINITY_SECONDS}"
        )),
    }
}

/// Entries with an address; those with only a host name are of no use to a node.
fn load_balancer(ingress: &[Ingress], report: &mut Report) -> Vec<LoadBalancerIngress> {
    let mut addresses = Vec::new();
    for entry in ingress {
        let Some(text) = entry.ip.as_deref().filter(|ip| !ip.is_empty()) else { continue };
        let vip = match entry.ip_mode.as_deref() {
            None | Some("" | "VIP") => true,
            Some("Proxy") => false,
            Some(other) => {
                report.add(format!(
                    "status.loadBalancer.ingress[].ipMode {other:?} is unknown and taken as Proxy; use VIP \
                     or Proxy"
                ));
                false
            }
        };
        let address = parse_routable("status.loadBalancer.ingress[].ip", text);
        if let Some(address) = report.accept(address) {
            addresses.push(LoadBalancerIngress { address, vip });
        }
    }
    addresses
}
