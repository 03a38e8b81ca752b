//! The one configuration file: versioned, strict, with the defaults of a kubeadm cluster.

mod check;
mod kubeproxy;
mod load;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

pub(crate) use kubeproxy::Flags;
pub(crate) use load::{ConfigError, Overrides, load, load_with_notes};

/// `apiVersion` this version reads.
pub(crate) const API_VERSION: &str = "netd.io/v1alpha1";
/// `kind` this version reads.
pub(crate) const KIND: &str = "NetdConfiguration";

/// Everything an operator can decide. An absent key has the default shown by `netd config`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Config {
    /// `netd.io/v1alpha1`.
    pub(crate) api_version: String,
    /// `NetdConfiguration`.
    pub(crate) kind: String,
    /// This node's name, as in its Node object. Default: `NODE_NAME` of the environment, then the host name.
    #[serde(default)]
    pub(crate) node_name: Option<String>,
    /// Prefixes of all pods of the cluster; traffic within them is not masqueraded.
    #[serde(default = "default_cluster_cidrs", rename = "clusterCIDRs")]
    pub(crate) cluster_cidrs: Vec<IpNetwork>,
    /// Where objects come from.
    #[serde(default)]
    pub(crate) source: SourceConfig,
    /// Which parts run.
    #[serde(default)]
    pub(crate) parts: PartsConfig,
    /// The service proxy.
    #[serde(default)]
    pub(crate) proxy: ProxyConfig,
    /// Pod routes between nodes.
    #[serde(default)]
    pub(crate) fabric: FabricConfig,
    /// What the CNI plugin is told.
    #[serde(default)]
    pub(crate) cni: CniConfig,
    /// Cluster DNS.
    #[serde(default)]
    pub(crate) dns: DnsConfig,
    /// Listening addresses of the HTTP endpoints.
    #[serde(default)]
    pub(crate) http: HttpConfig,
    /// Directories.
    #[serde(default)]
    pub(crate) paths: PathsConfig,
}

/// Where objects come from: the API server (default) or a directory of manifests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct SourceConfig {
    /// A directory of Service, EndpointSlice, Endpoints, Node and Namespace manifests, re-read on change.
    /// Excludes the keys of the API server.
    pub(crate) manifests: Option<PathBuf>,
    /// Kubeconfig file. Without it and without `server` the pod's service account is used.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// URL of the API server, e.g. `https://192.168.1.10:6443`: overrides the kubeconfig's and the
    /// ClusterIP of the service account, so that netd needs no Service to start.
    pub(crate) server: Option<String>,
    /// File with the bearer token for `server`.
    pub(crate) token_file: Option<PathBuf>,
    /// File with the certificate authority of `server`.
    pub(crate) ca_file: Option<PathBuf>,
}

/// Each part can be switched off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct PartsConfig {
    /// Service load balancing (kube-proxy's work).
    pub(crate) proxy: bool,
    /// Routes to the pods of other nodes.
    pub(crate) fabric: bool,
    /// The CNI configuration, its address ranges and the masquerade rules.
    pub(crate) cni: bool,
    /// Cluster DNS (CoreDNS's work).
    pub(crate) dns: bool,
}

impl Default for PartsConfig {
    fn default() -> Self {
        Self { proxy: true, fabric: true, cni: true, dns: true }
    }
}

/// Which dataplane programs Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DataplaneChoice {
    /// eBPF where the kernel can, else iptables; the reason is in `netd status`.
    #[default]
    Auto,
    /// Socket load balancing, with iptables beside it for what a socket hook cannot see.
    Ebpf,
    /// iptables alone.
    Iptables,
}

/// Which iptables is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum IptablesVariant {
    /// The variant that already holds rules, else the host's default.
    #[default]
    Auto,
    /// iptables over nftables.
    Nft,
    /// The old kernel interface.
    Legacy,
}

/// Which sources count as pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum LocalPodsChoice {
    /// Those within `clusterCIDRs`.
    #[default]
    #[serde(rename = "clusterCIDRs")]
    ClusterCidrs,
    /// Those within this node's pod ranges.
    #[serde(rename = "nodeCIDRs")]
    NodeCidrs,
    /// Those that arrive on this bridge.
    BridgeInterface(String),
    /// Those that arrive on an interface whose name begins like this.
    InterfaceNamePrefix(String),
    /// None.
    None,
}

/// The service proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct ProxyConfig {
    /// Which dataplane.
    pub(crate) dataplane: DataplaneChoice,
    /// Masquerade everything that goes to a Service.
    pub(crate) masquerade_all: bool,
    /// Which sources count as pods, where that makes a difference (`detectLocalMode`).
    pub(crate) local_pods: LocalPodsChoice,
    /// Prefixes of the node's addresses that serve node ports; empty means all.
    pub(crate) node_port_addresses: Vec<IpNetwork>,
    /// Prefixes within which `spec.externalIPs` are honoured; empty ignores them (CVE-2020-8554).
    #[serde(rename = "allowedExternalIPs")]
    pub(crate) allowed_external_ips: Vec<IpNetwork>,
    /// iptables backend.
    pub(crate) iptables: IptablesOptions,
    /// eBPF backend.
    pub(crate) ebpf: EbpfOptions,
}

/// iptables backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct IptablesOptions {
    /// Which iptables.
    pub(crate) variant: IptablesVariant,
    /// Seconds to wait for the xtables lock.
    pub(crate) lock_wait_seconds: u32,
    /// Seconds between looks for rules that another program flushed.
    pub(crate) check_seconds: u32,
    /// Bit of the packet mark that asks for masquerade, 0 to 31.
    pub(crate) masquerade_bit: u8,
}

impl Default for IptablesOptions {
    fn default() -> Self {
        Self {
            variant: IptablesVariant::Auto,
            lock_wait_seconds: 5,
            check_seconds: 1,
            masquerade_bit: netd_iptables::DEFAULT_MASQUERADE_BIT,
        }
    }
}

/// eBPF backend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct EbpfOptions {
    /// The cgroup v2 directory whose sockets are balanced. Default: the root of the cgroup2 mount.
    pub(crate) cgroup_root: Option<PathBuf>,
    /// Where programs and maps are pinned; a bpffs is mounted there if it is not on one. Default:
    /// `/sys/fs/bpf/netd`, or `/run/netd/bpf` where `/sys/fs/bpf` is no bpffs.
    pub(crate) pin_dir: Option<PathBuf>,
}

/// How pods of other nodes are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FabricMode {
    /// By routes where the node shares the LAN, by VXLAN elsewhere.
    #[default]
    Auto,
    /// By routes through the LAN alone.
    HostGw,
    /// By VXLAN, all of them.
    Vxlan,
}

/// VXLAN between nodes; the same on all of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct VxlanConfig {
    /// Number of the virtual network, 1 to 16777215.
    pub(crate) vni: u32,
    /// UDP port.
    pub(crate) port: u16,
}

impl Default for VxlanConfig {
    fn default() -> Self {
        let netd_fabric::Settings { vni, port, .. } = netd_fabric::Settings::default();
        Self { vni, port }
    }
}

/// Pod routes between nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct FabricConfig {
    /// How pods of other nodes are reached.
    pub(crate) mode: FabricMode,
    /// VXLAN between nodes.
    pub(crate) vxlan: VxlanConfig,
    /// Prefixes beside the cluster's that pods reach with their own address.
    #[serde(rename = "nonMasqueradeCIDRs")]
    pub(crate) non_masquerade_cidrs: Vec<IpNetwork>,
    /// Masquerade what pods send out of the cluster.
    pub(crate) masquerade: bool,
}

impl Default for FabricConfig {
    fn default() -> Self {
        Self {
            mode: FabricMode::default(),
            vxlan: VxlanConfig::default(),
            non_masquerade_cidrs: Vec::new(),
            masquerade: true,
        }
    }
}

/// What pods of this node hang on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CniMode {
    /// A bridge.
    #[default]
    Bridge,
    /// Nothing: the node has a route to each of them.
    Routed,
}

/// What the CNI plugin is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct CniConfig {
    /// The network configuration list that is written when the node is ready; null writes none.
    pub(crate) conflist: Option<PathBuf>,
    /// The node's address ranges for the plugin.
    pub(crate) ranges_file: PathBuf,
    /// What pods hang on.
    pub(crate) mode: CniMode,
    /// Name of the bridge.
    pub(crate) bridge: String,
    /// Directory of the address ledger.
    pub(crate) data_dir: PathBuf,
    /// Pod ranges of this node, where no Node object gives them.
    #[serde(rename = "podCIDRs")]
    pub(crate) pod_cidrs: Vec<IpNetwork>,
    /// What becomes of what pods left behind that are gone.
    pub(crate) garbage: GarbageConfig,
}

/// Collection of what pods left behind that are gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct GarbageConfig {
    /// Seconds between two looks; what is to be collected must be seen at two of them. 0 switches it off.
    pub(crate) interval_seconds: u32,
    /// Seconds for which something must be garbage, and the least age of a lease. The default is more than twice what
    /// kubelet gives a runtime to start a pod (`runtimeRequestTimeout`, 2 minutes).
    pub(crate) grace_seconds: u32,
}

impl Default for GarbageConfig {
    fn default() -> Self {
        Self { interval_seconds: 60, grace_seconds: 300 }
    }
}

impl Default for CniConfig {
    fn default() -> Self {
        Self {
            conflist: Some(PathBuf::from("/etc/cni/net.d/00-netd.conflist")),
            ranges_file: PathBuf::from("/run/netd/podcidrs.json"),
            mode: CniMode::Bridge,
            bridge: "netd0".to_owned(),
            data_dir: PathBuf::from("/var/lib/netd/ipam"),
            pod_cidrs: Vec::new(),
            garbage: GarbageConfig::default(),
        }
    }
}

/// Cluster DNS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct DnsConfig {
    /// Addresses that pods use as their name server; netd gives them to an interface of its own.
    pub(crate) addresses: Vec<IpAddr>,
    /// The cluster's domain.
    pub(crate) domain: String,
    /// Seconds that answers about the cluster may be cached.
    pub(crate) ttl: u32,
    /// Name servers for all other names, `address` or `address:port`. Empty: those of `resolvConf`.
    pub(crate) upstreams: Vec<String>,
    /// The node's resolver configuration.
    pub(crate) resolv_conf: PathBuf,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            addresses: vec![IpAddr::from([10, 96, 0, 10])],
            domain: "cluster.local".to_owned(),
            ttl: 5,
            upstreams: Vec::new(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
        }
    }
}

/// HTTP endpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct HttpConfig {
    /// `/healthz`, `/livez`, `/readyz`. Null switches it off.
    pub(crate) health: Option<SocketAddr>,
    /// Seconds that a change may wait for the kernel before `/healthz` and `/livez` fail.
    pub(crate) health_window_seconds: u32,
    /// `/metrics`. Null switches it off.
    pub(crate) metrics: Option<SocketAddr>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            health: Some(SocketAddr::from(([0, 0, 0, 0], 10256))),
            health_window_seconds: 60,
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], 10249))),
        }
    }
}

/// Directories.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct PathsConfig {
    /// Survives a reboot: the last snapshot.
    pub(crate) state_dir: PathBuf,
    /// Emptied by a reboot: the socket of the state API (`netd.sock`, mode 0600).
    pub(crate) run_dir: PathBuf,
}

impl Default for PathsConfig {
    fn default() -> Self {
        Self { state_dir: PathBuf::from("/var/lib/netd"), run_dir: PathBuf::from("/run/netd") }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            node_name: None,
            cluster_cidrs: default_cluster_cidrs(),
            source: SourceConfig::default(),
            parts: PartsConfig::default(),
            proxy: ProxyConfig::default(),
            fabric: FabricConfig::default(),
            cni: CniConfig::default(),
            dns: DnsConfig::default(),
            http: HttpConfig::default(),
            paths: PathsConfig::default(),
        }
    }
}

impl Config {
    /// The socket of the state API.
    pub(crate) fn socket(&self) -> PathBuf {
        self.paths.run_dir.join("netd.sock")
    }
}

fn default_cluster_cidrs() -> Vec<IpNetwork> {
    vec![IpNetwork::V4(
        ipnetwork::Ipv4Network::new_checked([172, 16, 0, 0].into(), 16).expect("16 is a valid prefix length"),
    )]
}
