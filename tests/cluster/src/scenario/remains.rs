//! What is left on a node when the cluster's objects are gone.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::web::{NAMESPACE, Web};
use crate::cluster::Cluster;
use crate::machine::Machine;
use crate::netd;
use crate::tool::eventually;

pub(super) fn nothing(cluster: &Cluster) -> Result<()> {
    let web = Web::up(cluster)?;
    let (service, pods) = (web.cluster_ip.clone(), web.pods()?);
    for node in &cluster.workers {
        // Two pods of the Deployment and a probe: what is looked for later is there now.
        ensure!(links(node)?.len() == 3 && leases(node)? == 3, "{:?} on {}", links(node)?, node.name());
    }
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=true", "--timeout=60s"])?;
    for node in &cluster.workers {
        eventually("nothing is left of the pods", Duration::from_secs(20), || {
            let (links, leases) = (links(node)?, leases(node)?);
            ensure!(links.is_empty() && leases == 0, "{}: {links:?}, {leases} leases", node.name());
            let rules = node.check(&["iptables-save"], "")?;
            let mentions = |address: &str| rules.lines().any(|line| line.contains(&format!("{address}/32")));
            ensure!(!mentions(&service), "{}: rules for the Service {service} are left", node.name());
            for pod in &pods {
                ensure!(
                    !mentions(&pod.address),
                    "{}: rules for the pod {} are left",
                    node.name(),
                    pod.address
                );
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// The host's ends of the pods' links, that is all links of a bridge.
fn links(node: &Machine) -> Result<Vec<String>> {
    let links: Value =
        serde_json::from_str(&node.check(&["ip", "-j", "link", "show", "type", "bridge_slave"], "")?)?;
    let names = links.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// Addresses that netd takes for in use.
fn leases(node: &Machine) -> Result<usize> {
    Ok(netd::status(node)?["ipam"]["leases"].as_array().map_or(0, Vec::len))
}
