//! Field by field.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde_json::Value;

use super::{
    ClientConnection, Conntrack, DetectLocal, Iptables, Ipvs, KubeProxyConfiguration, Nftables, Winkernel,
    duration,
};
use crate::config::{Config, DataplaneChoice, LocalPodsChoice, PartsConfig};

const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// kube-proxy's flags that netd knows; those given win over the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags {
    /// `--hostname-override`.
    pub(crate) hostname_override: Option<String>,
    /// `--proxy-mode`.
    pub(crate) proxy_mode: Option<String>,
    /// `--cluster-cidr`.
    pub(crate) cluster_cidr: Option<String>,
    /// `--nodeport-addresses`.
    pub(crate) node_port_addresses: Option<Vec<String>>,
    /// `--masquerade-all`.
    pub(crate) masquerade_all: Option<bool>,
    /// `--healthz-bind-address`.
    pub(crate) healthz_bind_address: Option<String>,
    /// `--metrics-bind-address`.
    pub(crate) metrics_bind_address: Option<String>,
    /// `--kubeconfig`.
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// A configuration in the making.
#[derive(Default)]
struct Work {
    config: Config,
    /// Fields without effect, each with the reason.
    notes: Vec<String>,
    wrong: Vec<String>,
}

/// What a file of kube-proxy's means for netd, with the fields that have no effect; or all that is wrong with it.
pub(crate) fn convert(file: KubeProxyConfiguration) -> Result<(Config, Vec<String>), Vec<String>> {
    let mut work = Work::default();
    // It configures a service proxy and nothing else.
    work.config.parts = PartsConfig { proxy: true, fabric: false, cni: false, dns: false };
    work.node_port_addresses("nodePortAddresses", &file.node_port_addresses.unwrap_or_default());
    if let Some(name) = given(file.hostname_override) {
        work.config.node_name = Some(name);
    }
    if let Some(mode) = file.mode {
        work.mode("mode", &mode);
    }
    work.iptables(file.iptables.unwrap_or_default());
    work.local_pods(file.detect_local_mode, file.detect_local.unwrap_or_default(), file.cluster_cidr);
    let addresses = [file.bind_address, file.healthz_bind_address, file.metrics_bind_address];
    work.addresses(addresses);
    work.client(file.client_connection.unwrap_or_default());
    work.ipvs(&file.ipvs.unwrap_or_default());
    work.nftables(&file.nftables.unwrap_or_default());
    work.winkernel(&file.winkernel.unwrap_or_default());
    work.conntrack(&file.conntrack.unwrap_or_default());
    for (field, value, reason) in [
        (
            "featureGates",
            &file.feature_gates,
            "netd has none of these gates; external addresses are allowed by proxy.allowedExternalIPs",
        ),
        ("logging", &file.logging, "use --log and --log-format"),
        ("enableProfiling", &file.enable_profiling, "netd serves no profiles"),
        ("showHiddenMetricsForVersion", &file.show_hidden_metrics_for_version, "netd hides no metrics"),
        (
            "oomScoreAdj",
            &file.oom_score_adj,
            "set it where netd is started; kubelet does, by the pod's priority class",
        ),
        ("configSyncPeriod", &file.config_sync_period, "netd watches and never lists without cause"),
        ("portRange", &file.port_range, "kube-proxy does not use it either"),
        ("windowsRunAsService", &file.windows_run_as_service, "netd is for Linux"),
    ] {
        work.without_effect(field, value, reason);
    }
    if work.wrong.is_empty() { Ok((work.config, work.notes)) } else { Err(work.wrong) }
}

/// Applies kube-proxy's flags; tells what is wrong with them.
pub(crate) fn apply_flags(config: &mut Config, flags: &Flags) -> Vec<String> {
    let mut work = Work { config: std::mem::take(config), ..Work::default() };
    if let Some(name) = given(flags.hostname_override.clone()) {
        work.config.node_name = Some(name);
    }
    if let Some(mode) = &flags.proxy_mode {
        work.mode("--proxy-mode", mode);
    }
    if let Some(cidrs) = &flags.cluster_cidr {
        work.cluster_cidr("--cluster-cidr", cidrs);
    }
    if let Some(addresses) = &flags.node_port_addresses {
        work.config.proxy.node_port_addresses.clear();
        work.node_port_addresses("--nodeport-addresses", addresses);
    }
    if let Some(all) = flags.masquerade_all {
        work.config.proxy.masquerade_all = all;
    }
    if let Some(text) = &flags.healthz_bind_address {
        work.config.http.health = work.address("--healthz-bind-address", text, HEALTHZ_PORT);
    }
    if let Some(text) = &flags.metrics_bind_address {
        work.config.http.metrics = work.address("--metrics-bind-address", text, METRICS_PORT);
    }
    if let Some(path) = &flags.kubeconfig {
        work.config.source.kubeconfig = Some(path.clone());
        work.config.source.manifests = None;
    }
    *config = work.config;
    work.wrong
}

// === impl Work ===

impl Work {
    /// Names a field that says something.
    fn without_effect(&mut self, field: &str, value: &Value, reason: &str) {
        if !says_nothing(value) {
            self.notes.push(format!("{field}: {value} has no effect: {reason}"));
        }
    }

    fn all_without_effect(&mut self, section: &str, fields: &[(&str, &Value)], reason: &str) {
        for (field, value) in fields {
            self.without_effect(&format!("{section}.{field}"), value, reason);
        }
    }

    fn mode(&mut self, field: &str, mode: &str) {
        match mode {
            // "The best-available proxy for the platform."
            "" => self.config.proxy.dataplane = DataplaneChoice::Auto,
            "iptables" => self.config.proxy.dataplane = DataplaneChoice::Iptables,
            other => self.wrong.push(format!(
                "{field} {other:?}: netd has no such dataplane; use \"iptables\" (over nf_tables where the host's \
                 iptables is), or \"\" to have netd choose"
            )),
        }
    }

    fn iptables(&mut self, iptables: Iptables) {
        let Iptables { masquerade_bit, masquerade_all, localhost_node_ports, sync_period, min_sync_period } =
            iptables;
        if let Some(bit) = masquerade_bit {
            self.config.proxy.iptables.masquerade_bit = bit;
        }
        self.config.proxy.masquerade_all = masquerade_all.unwrap_or_default();
        if localhost_node_ports == Some(true) {
            self.notes.push(
                "iptables.localhostNodePorts: true has no effect: node ports are not served on 127.0.0.1, which \
                 takes route_localnet (CVE-2020-8558); use another address of the node"
                    .to_owned(),
            );
        }
        let period = given(sync_period).map(|text| duration::parse(&text)).transpose();
        match period {
            // kube-proxy is unhealthy when a change waits for two of them.
            Ok(Some(period)) if !period.is_zero() => {
                let seconds = (period * 2).as_secs_f64().ceil().clamp(1.0, f64::from(u32::MAX));
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to u32")]
                let seconds = seconds as u32;
                self.config.http.health_window_seconds = seconds;
            }
            Ok(_) => {}
            Err(error) => self.wrong.push(format!("iptables.syncPeriod: {error}")),
        }
        let reason = "netd writes each change at once, and as many together as arrive meanwhile";
        self.without_effect("iptables.minSyncPeriod", &min_sync_period, reason);
    }

    fn local_pods(&mut self, mode: Option<String>, detect: DetectLocal, cluster_cidr: Option<String>) {
        let cidrs = given(cluster_cidr);
        let DetectLocal { bridge_interface, interface_name_prefix } = detect;
        let mode = given(mode);
        let choice = match mode.as_deref() {
            None | Some("ClusterCIDR") if cidrs.is_some() => Ok(LocalPodsChoice::ClusterCidrs),
            // As kube-proxy without a detector.
            None | Some("ClusterCIDR") => {
                self.notes.push(
                    "clusterCIDR is empty: no source counts as a pod, and what comes to a ClusterIP from outside of \
                     the cluster keeps its address"
                        .to_owned(),
                );
                Ok(LocalPodsChoice::None)
            }
            Some("NodeCIDR") => Ok(LocalPodsChoice::NodeCidrs),
            Some("BridgeInterface") => given(bridge_interface)
                .map(LocalPodsChoice::BridgeInterface)
                .ok_or("detectLocal.bridgeInterface is empty: name the bridge of the pods".to_owned()),
            Some("InterfaceNamePrefix") => {
                given(interface_name_prefix).map(LocalPodsChoice::InterfaceNamePrefix).ok_or(
                    "detectLocal.interfaceNamePrefix is empty: name what the pods' interfaces begin with"
                        .to_owned(),
                )
            }
            Some(other) => Err(format!(
                "detectLocalMode {other:?} is unknown; use ClusterCIDR, NodeCIDR, BridgeInterface or \
                 InterfaceNamePrefix"
            )),
        };
        self.config.cluster_cidrs.clear();
        match choice {
            Ok(choice) => self.config.proxy.local_pods = choice,
            Err(error) => self.wrong.push(error),
        }
        if let Some(cidrs) = cidrs {
            self.cluster_cidr("clusterCIDR", &cidrs);
        }
    }

    /// One prefix, or one of each family with a comma.
    fn cluster_cidr(&mut self, field: &str, text: &str) {
        let prefixes = text.split(',').map(|prefix| self.prefix(field, prefix.trim())).collect::<Vec<_>>();
        self.config.cluster_cidrs = prefixes.into_iter().flatten().collect();
    }

    fn node_port_addresses(&mut self, field: &str, addresses: &[String]) {
        for address in addresses {
            if address == "primary" {
                self.wrong.push(format!(
                    "{field} \"primary\": name the prefixes of the nodes' addresses instead, e.g. 192.168.1.0/24"
                ));
            } else if let Some(prefix) = self.prefix(field, address) {
                self.config.proxy.node_port_addresses.push(prefix);
            }
        }
    }

    fn prefix(&mut self, field: &str, text: &str) -> Option<IpNetwork> {
        let prefix = text.parse().ok().filter(|_| text.contains('/'));
        if prefix.is_none() {
            self.wrong.push(format!("{field} {text:?}: not a prefix such as 10.244.0.0/16"));
        }
        prefix
    }

    fn addresses(&mut self, [bind, healthz, metrics]: [Option<String>; 3]) {
        let bind = given(bind);
        let own = bind.as_deref().map_or(Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), |text| text.parse().ok());
        let Some(own) = own else {
            self.wrong.push(format!("bindAddress {:?}: not an address", bind.unwrap_or_default()));
            return;
        };
        if !own.is_unspecified() {
            let reason = "the addresses of this node are those of its Node object";
            self.notes.push(format!("bindAddress: {own} has no effect: {reason}"));
        }
        let (everywhere, here) = match own {
            IpAddr::V4(_) => (IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv4Addr::LOCALHOST)),
            IpAddr::V6(_) => (IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::LOCALHOST)),
        };
        self.config.http.health = match given(healthz) {
            Some(text) => self.address("healthzBindAddress", &text, HEALTHZ_PORT),
            None => Some(SocketAddr::new(everywhere, HEALTHZ_PORT)),
        };
        self.config.http.metrics = match given(metrics) {
            Some(text) => self.address("metricsBindAddress", &text, METRICS_PORT),
            None => Some(SocketAddr::new(here, METRICS_PORT)),
        };
    }

    /// An address, which may lack its port; empty is none.
    fn address(&mut self, field: &str, text: &str, port: u16) -> Option<SocketAddr> {
        if text.is_empty() {
            return None;
        }
        let bare = || text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, port));
        let address = text.parse().ok().or_else(bare).filter(|address| address.port() != 0);
        if address.is_none() {
            self.wrong.push(format!("{field} {text:?}: not an address and port such as 0.0.0.0:{port}"));
        }
        address
    }

    fn client(&mut self, client: ClientConnection) {
        let ClientConnection { kubeconfig, accept_content_types, content_type, qps, burst } = client;
        self.config.source.kubeconfig = given(kubeconfig).map(PathBuf::from);
        let fields = [
            ("acceptContentTypes", &accept_content_types),
            ("contentType", &content_type),
            ("qps", &qps),
            ("burst", &burst),
        ];
        let reason = "netd asks for four kinds as JSON, spaced when the API server is busy";
        self.all_without_effect("clientConnection", &fields, reason);
    }

    fn ipvs(&mut self, ipvs: &Ipvs) {
        let fields = [
            ("syncPeriod", &ipvs.sync_period),
            ("minSyncPeriod", &ipvs.min_sync_period),
            ("scheduler", &ipvs.scheduler),
            ("excludeCIDRs", &ipvs.exclude_cidrs),
            ("strictARP", &ipvs.strict_arp),
            ("tcpTimeout", &ipvs.tcp_timeout),
            ("tcpFinTimeout", &ipvs.tcp_fin_timeout),
            ("udpTimeout", &ipvs.udp_timeout),
        ];
        self.all_without_effect("ipvs", &fields, "netd does not use IPVS");
    }

    fn nftables(&mut self, nftables: &Nftables) {
        let fields = [
            ("masqueradeBit", &nftables.masquerade_bit),
            ("masqueradeAll", &nftables.masquerade_all),
            ("syncPeriod", &nftables.sync_period),
            ("minSyncPeriod", &nftables.min_sync_period),
        ];
        self.all_without_effect("nftables", &fields, "the mode is another one");
    }

    fn winkernel(&mut self, winkernel: &Winkernel) {
        let fields = [
            ("networkName", &winkernel.network_name),
            ("sourceVip", &winkernel.source_vip),
            ("enableDSR", &winkernel.enable_dsr),
            ("rootHnsEndpointName", &winkernel.root_hns_endpoint_name),
            ("forwardHealthCheckVip", &winkernel.forward_health_check_vip),
        ];
        self.all_without_effect("winkernel", &fields, "netd is for Linux");
    }

    fn conntrack(&mut self, conntrack: &Conntrack) {
        for (field, value, sysctl) in [
            ("maxPerCore", &conntrack.max_per_core, "nf_conntrack_max"),
            ("min", &conntrack.min, "nf_conntrack_max"),
            (
                "tcpEstablishedTimeout",
                &conntrack.tcp_established_timeout,
                "nf_conntrack_tcp_timeout_established",
            ),
            ("tcpCloseWaitTimeout", &conntrack.tcp_close_wait_timeout, "nf_conntrack_tcp_timeout_close_wait"),
            ("tcpBeLiberal", &conntrack.tcp_be_liberal, "nf_conntrack_tcp_be_liberal"),
            ("udpTimeout", &conntrack.udp_timeout, "nf_conntrack_udp_timeout"),
            ("udpStreamTimeout", &conntrack.udp_stream_timeout, "nf_conntrack_udp_timeout_stream"),
        ] {
            let reason =
                format!("netd leaves the node's parameter as it is; set net.netfilter.{sysctl} in sysctl.d");
            self.without_effect(&format!("conntrack.{field}"), value, &reason);
        }
    }
}

/// A text that is there and not empty.
fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// Whether a value is what a field has that nobody set: the API's zero values, also as texts (`0s`).
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.values().all(says_nothing),
    }
}
