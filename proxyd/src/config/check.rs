//! Values and combinations that cannot work, found before anything starts.

use std::collections::BTreeSet;

use super::{API_VERSION, Config, KIND, LocalPodsChoice};

/// Seconds; a longer time to live would hide changes of the cluster (CoreDNS allows no more either).
const MAX_TTL: u32 = 3600;
/// A VXLAN's number has 24 bits (RFC 7348).
const MAX_VNI: u32 = 0xff_ffff;

/// Everything that is wrong with `config`, each with its key.
pub(super) fn mistakes(config: &Config) -> Vec<String> {
    let mut wrong = Vec::new();
    if config.api_version != API_VERSION {
        wrong.push(format!("apiVersion {:?}: this version reads {API_VERSION}", config.api_version));
    }
    if config.kind != KIND {
        wrong.push(format!("kind {:?}: must be {KIND}", config.kind));
    }
    let parts = &config.parts;
    let counts =
        parts.fabric || parts.cni || parts.dns || config.proxy.local_pods == LocalPodsChoice::ClusterCidrs;
    if config.cluster_cidrs.is_empty() && counts {
        wrong.push("clusterCIDRs is empty: name the prefix of all pods, e.g. 172.16.0.0/16".to_owned());
    }
    source(config, &mut wrong);
    dns(config, &mut wrong);
    if config.proxy.iptables.check_seconds == 0 {
        wrong.push("proxy.iptables.checkSeconds is 0: must be at least 1".to_owned());
    }
    let bit = config.proxy.iptables.masquerade_bit;
    if bit > 31 {
        wrong.push(format!("proxy.iptables.masqueradeBit {bit}: must be from 0 to 31"));
    }
    if config.http.health_window_seconds == 0 {
        wrong.push("http.healthWindowSeconds is 0: must be at least 1".to_owned());
    }
    let vxlan = &config.fabric.vxlan;
    if vxlan.vni == 0 || vxlan.vni > MAX_VNI {
        wrong.push(format!("fabric.vxlan.vni {}: must be from 1 to {MAX_VNI}", vxlan.vni));
    }
    if vxlan.port == 0 {
        wrong.push("fabric.vxlan.port is 0: must be a UDP port, e.g. 8472".to_owned());
    }
    // IFNAMSIZ is 16 with the final NUL.
    if config.cni.bridge.is_empty()
        || config.cni.bridge.len() > 15
        || config.cni.bridge.contains(['/', ' ', ':', '%'])
    {
        wrong.push(format!("cni.bridge {:?}: not an interface name", config.cni.bridge));
    }
    wrong
}

fn source(config: &Config, wrong: &mut Vec<String>) {
    let source = &config.source;
    if source.manifests.is_some() && (source.kubeconfig.is_some() || source.server.is_some()) {
        wrong.push("source.manifests excludes source.kubeconfig and source.server: choose one".to_owned());
    }
    if source.server.is_none() && (source.token_file.is_some() || source.ca_file.is_some()) {
        wrong.push("source.tokenFile and source.caFile belong to source.server, which is not set".to_owned());
    }
}

fn dns(config: &Config, wrong: &mut Vec<String>) {
    let dns = &config.dns;
    if dns.ttl > MAX_TTL {
        wrong.push(format!("dns.ttl {}: at most {MAX_TTL} seconds", dns.ttl));
    }
    let labels: Vec<&str> = dns.domain.trim_end_matches('.').split('.').collect();
    if dns.domain.len() > 200 || labels.iter().any(|label| label.is_empty() || label.len() > 63) {
        wrong.push(format!("dns.domain {:?}: not a domain name", dns.domain));
    }
    if config.parts.dns && dns.addresses.is_empty() {
        wrong.push("dns.addresses is empty: name the cluster DNS address or set parts.dns: false".to_owned());
    }
    let unique: BTreeSet<_> = dns.addresses.iter().collect();
    if unique.len() != dns.addresses.len() {
        wrong.push("dns.addresses names an address twice".to_owned());
    }
    if let Some(address) = dns.addresses.iter().find(|a| a.is_unspecified() || a.is_multicast()) {
        wrong.push(format!("dns.addresses: {address} is not an address a pod can ask"));
    }
}
