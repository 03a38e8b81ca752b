//! Who is measured: one daemon, with its configuration, on a machine.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::meter::Meter;
use crate::binaries::Binaries;
use crate::control_plane::{CLUSTER_CIDR, ControlPlane};
use crate::machine::Machine;

/// What the daemon is called on its machine.
pub(super) const DAEMON: &str = "contender";
const CONFIG: &str = "/etc/contender.yaml";
/// A directory with `iptables` and its like, as links to one of the variants.
const LINKS: &str = "/opt/variant";

/// A daemon and the way it programs the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contender {
    daemon: Daemon,
    way: Way,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Daemon {
    Netd,
    KubeProxy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    IptablesNft,
    IptablesLegacy,
    Nftables,
}

impl Contender {
    /// Everybody, each of netd beside the kube-proxy it is compared with.
    pub const ALL: [Contender; 5] = [
        Contender { daemon: Daemon::Netd, way: Way::IptablesNft },
        Contender { daemon: Daemon::KubeProxy, way: Way::IptablesNft },
        Contender { daemon: Daemon::Netd, way: Way::IptablesLegacy },
        Contender { daemon: Daemon::KubeProxy, way: Way::IptablesLegacy },
        Contender { daemon: Daemon::KubeProxy, way: Way::Nftables },
    ];

    /// Writes the configuration.
    pub(super) fn prepare(self, machine: &Machine, plane: &ControlPlane, binaries: &Binaries) -> Result<()> {
        match self.daemon {
            Daemon::Netd => {
                machine.install(&binaries.netd("netd"), "/usr/local/bin/netd")?;
                machine.write(CONFIG, &self.netd(machine, plane)?.to_string())
            }
            Daemon::KubeProxy => {
                if let Some(variant) = self.variant() {
                    link(machine, variant)?;
                }
                machine.write(CONFIG, &self.kube_proxy(machine, plane).to_string())
            }
        }
    }

    fn netd(self, machine: &Machine, plane: &ControlPlane) -> Result<serde_json::Value> {
        let variant = self.variant().context("netd programs iptables")?;
        Ok(json!({
            "apiVersion": "netd.io/v1alpha1",
            "kind": "NetdConfiguration",
            "nodeName": machine.name(),
            "clusterCIDRs": [CLUSTER_CIDR],
            "source": {"kubeconfig": plane.kubeconfig("admin")},
            "parts": {"fabric": false, "cni": false, "dns": false},
            "proxy": {"dataplane": "iptables", "iptables": {"variant": variant}},
        }))
    }

    fn kube_proxy(self, machine: &Machine, plane: &ControlPlane) -> serde_json::Value {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": if self.way == Way::Nftables { "nftables" } else { "iptables" },
            "hostnameOverride": machine.name(),
            "clusterCIDR": CLUSTER_CIDR,
            "clientConnection": {"kubeconfig": plane.kubeconfig("admin")},
            // The limit is not the machine's own, so it is left alone.
            "conntrack": {"maxPerCore": 0, "min": 0},
        })
    }

    fn variant(self) -> Option<&'static str> {
        match self.way {
            Way::IptablesNft => Some("nft"),
            Way::IptablesLegacy => Some("legacy"),
            Way::Nftables => None,
        }
    }

    /// Starts the daemon in the meter's cgroup.
    pub(super) fn start(self, machine: &Machine, binaries: &Binaries, meter: &Meter) -> Result<()> {
        let program = match self.daemon {
            Daemon::Netd => "/usr/local/bin/netd run".to_owned(),
            Daemon::KubeProxy => binaries.kubernetes("kube-proxy"),
        };
        let path = std::env::var("PATH").unwrap_or_default();
        let env = BTreeMap::from([("PATH".to_owned(), format!("{LINKS}:{path}"))]);
        let script = format!("echo 0 > {}/cgroup.procs; exec {program} --config {CONFIG}", meter.cgroup());
        machine.spawn_with(DAEMON, &["sh", "-c", &script], &env)
    }

    /// Counts rules and elements in the kernel.
    pub(super) fn rules(self, machine: &Machine) -> Result<usize> {
        let dump = match self.way {
            Way::IptablesNft => "iptables-nft-save; ip6tables-nft-save",
            Way::IptablesLegacy => "iptables-legacy-save; ip6tables-legacy-save",
            Way::Nftables => "nft list ruleset",
        };
        let count = match self.way {
            // An element is a line of its own, or several are, separated by commas.
            Way::Nftables => format!(
                "({dump}) | grep -cE ' : (goto|jump|drop|reject)|^\\s+(ip|ip6|ct|meta|fib|numgen|tcp|udp|sctp|mark|counter|jump|goto|drop|reject|accept|return|dnat|masquerade) '"
            ),
            Way::IptablesNft | Way::IptablesLegacy => format!("({dump}) | grep -c '^-A'"),
        };
        let text = machine.check(&["sh", "-c", &count], "")?;
        text.trim().parse().with_context(|| format!("a number, not {text:?}"))
    }
}

fn link(machine: &Machine, variant: &str) -> Result<()> {
    let mut script = format!("set -e; mkdir -p {LINKS}");
    for family in ["iptables", "ip6tables"] {
        for part in ["", "-save", "-restore"] {
            script += &format!("; ln -sf $(command -v {family}-{variant}{part}) {LINKS}/{family}{part}");
        }
    }
    machine.check(&["sh", "-c", &script], "").map(drop)
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.daemon, self.way) {
            (Daemon::Netd, Way::IptablesNft) => "netd-nft",
            (Daemon::Netd, Way::IptablesLegacy) => "netd-legacy",
            (Daemon::Netd, Way::Nftables) => "netd-nftables",
            (Daemon::KubeProxy, Way::IptablesNft) => "kube-proxy-nft",
            (Daemon::KubeProxy, Way::IptablesLegacy) => "kube-proxy-legacy",
            (Daemon::KubeProxy, Way::Nftables) => "kube-proxy-nftables",
        })
    }
}

impl FromStr for Contender {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Contender> {
        let found = Contender::ALL.into_iter().find(|contender| contender.to_string() == text);
        let Some(found) = found else {
            bail!("no contender {text}; there are: {}", Contender::ALL.map(|c| c.to_string()).join(", "));
        };
        Ok(found)
    }
}
