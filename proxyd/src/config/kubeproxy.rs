//! kube-proxy's configuration file, `kubeproxy.config.k8s.io/v1alpha1`, and its flags, as configuration of netd.
//!
//! Every field is taken over, accepted without effect (and named, with the reason), or refused by name; none is
//! silently dropped. docs/configuration.md has the table.

mod convert;
mod duration;

use serde::Deserialize;
use serde_json::Value;

pub(crate) use convert::Flags;
pub(super) use convert::{apply_flags, convert};

/// The API group of kube-proxy's configuration.
const GROUP: &str = "kubeproxy.config.k8s.io/";
/// `apiVersion` this version reads.
pub(super) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// `kind` this version reads.
pub(super) const KIND: &str = "KubeProxyConfiguration";

/// The two lines that say what a file is.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Header {
    api_version: String,
    kind: String,
}

/// Whether a file is kube-proxy's; what is wrong if it is one that this version does not read.
pub(super) fn is_kube_proxys(text: &str) -> Result<bool, String> {
    // Text that is no YAML is told by whoever reads it as netd's.
    let header: Header = serde_saphyr::from_str(text).unwrap_or_default();
    if !header.api_version.starts_with(GROUP) && header.kind != KIND {
        return Ok(false);
    }
    if header.api_version != API_VERSION || header.kind != KIND {
        return Err(format!(
            "apiVersion {:?}, kind {:?}: of kube-proxy's configuration this version reads {API_VERSION}, {KIND}",
            header.api_version, header.kind
        ));
    }
    Ok(true)
}

/// The whole file. Fields that can have no effect are kept as they are, to tell whether they say something.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct KubeProxyConfiguration {
    /// Checked before.
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    feature_gates: Value,
    client_connection: Option<ClientConnection>,
    logging: Value,
    hostname_override: Option<String>,
    bind_address: Option<String>,
    healthz_bind_address: Option<String>,
    metrics_bind_address: Option<String>,
    /// netd ends whenever it cannot listen.
    #[serde(rename = "bindAddressHardFail")]
    _bind_address_hard_fail: Value,
    enable_profiling: Value,
    show_hidden_metrics_for_version: Value,
    mode: Option<String>,
    iptables: Option<Iptables>,
    ipvs: Option<Ipvs>,
    nftables: Option<Nftables>,
    winkernel: Option<Winkernel>,
    detect_local_mode: Option<String>,
    detect_local: Option<DetectLocal>,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: Option<String>,
    node_port_addresses: Option<Vec<String>>,
    oom_score_adj: Value,
    conntrack: Option<Conntrack>,
    config_sync_period: Value,
    port_range: Value,
    windows_run_as_service: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct ClientConnection {
    kubeconfig: Option<String>,
    accept_content_types: Value,
    content_type: Value,
    qps: Value,
    burst: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Iptables {
    masquerade_bit: Option<u8>,
    masquerade_all: Option<bool>,
    localhost_node_ports: Option<bool>,
    sync_period: Option<String>,
    min_sync_period: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Ipvs {
    sync_period: Value,
    min_sync_period: Value,
    scheduler: Value,
    #[serde(rename = "excludeCIDRs")]
    exclude_cidrs: Value,
    #[serde(rename = "strictARP")]
    strict_arp: Value,
    tcp_timeout: Value,
    tcp_fin_timeout: Value,
    udp_timeout: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Nftables {
    masquerade_bit: Value,
    masquerade_all: Value,
    sync_period: Value,
    min_sync_period: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Winkernel {
    network_name: Value,
    source_vip: Value,
    #[serde(rename = "enableDSR")]
    enable_dsr: Value,
    root_hns_endpoint_name: Value,
    forward_health_check_vip: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct DetectLocal {
    bridge_interface: Option<String>,
    interface_name_prefix: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Conntrack {
    max_per_core: Value,
    min: Value,
    tcp_established_timeout: Value,
    tcp_close_wait_timeout: Value,
    tcp_be_liberal: Value,
    udp_timeout: Value,
    udp_stream_timeout: Value,
}

#[cfg(test)]
mod tests;
