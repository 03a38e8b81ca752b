//! What a node needs before it may have pods.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use netd_kernel::file::atomic_write;
use netd_kernel::masquerade::{self, Masquerade, MasqueradedRange};
use netd_kernel::{Netlink, hostport, sysctl};
use netd_model::Family;
use serde::Serialize;
use tracing::debug;

use crate::error::Error;

/// A node's part of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeNet {
    /// Name of the network that the daemon configures.
    pub network: String,
    /// Prefixes of this node's pods, at most one a family.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Prefixes that this node had before and that may still have pods: they are masqueraded as well.
    pub former_pod_cidrs: Vec<IpNetwork>,
    /// Prefixes of all pods.
    pub cluster_cidrs: Vec<IpNetwork>,
    /// Other destinations that see a pod's own address.
    pub non_masquerade_cidrs: Vec<IpNetwork>,
    /// Largest packet of a pod in bytes, see [`crate::Report::pod_mtu`]; `None` lets the plugin find it out.
    pub mtu: Option<u32>,
    /// Whether what pods send out of the cluster gets the node's address.
    pub masquerade: bool,
    /// The file in which the CNI plugin finds all this.
    pub ranges_file: PathBuf,
}

/// The file's content; the plugin reads it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Ranges<'a> {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: &'a [IpNetwork],
    /// For a restarted daemon; the plugin hands none of these out.
    #[serde(rename = "formerPodCIDRs", skip_serializing_if = "<[_]>::is_empty")]
    former_pod_cidrs: &'a [IpNetwork],
    #[serde(rename = "clusterCIDRs")]
    cluster_cidrs: &'a [IpNetwork],
    #[serde(rename = "nonMasqueradeCIDRs", skip_serializing_if = "<[_]>::is_empty")]
    non_masquerade_cidrs: &'a [IpNetwork],
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
}

/// Ensures forwarding, masquerade and the plugin's file; returns what it changed, a few words each. Nothing
/// is written that is right already, so calling it every other second is cheap.
///
/// # Errors
/// The first failure, after everything that could be ensured has been.
pub fn ensure_node(node: &NodeNet) -> Result<Vec<String>, Error> {
    let mut changed = Vec::new();
    let mut first = None;
    let mut note = |result: Result<Option<String>, Error>| match result {
        Ok(change) => changed.extend(change),
        Err(error) => {
            first.get_or_insert(error);
        }
    };
    for family in Family::ALL {
        if node.pod_cidrs.iter().any(|prefix| Family::of_prefix(prefix) == family) {
            note(forward(family));
        }
    }
    if node.pod_cidrs.is_empty() {
        // The node has no prefix yet: no pod can be, so neither rules nor file.
    } else {
        note(masquerade(node));
        note(host_ports());
        note(write_ranges(node));
    }
    for change in &changed {
        debug!(change, "changed the node's network set-up");
    }
    first.map_or(Ok(changed), Err)
}

/// Puts back flushed rules of the plugin's host ports.
fn host_ports() -> Result<Option<String>, Error> {
    let repaired = hostport::repair().map_err(Error::kernel("repair host ports"))?;
    Ok(repaired.then(|| "repaired the rules of host ports".to_owned()))
}

/// Removes the masquerade rules and the plugin's file. Forwarding stays on: others may need it by now.
///
/// # Errors
/// The first failure, after everything that could be removed has been.
pub fn remove_node(ranges_file: &Path) -> Result<(), Error> {
    let rules = masquerade::remove().map_err(Error::kernel("remove masquerade"));
    let file = remove_file(ranges_file);
    rules.map(|_| ()).and(file)
}

/// The node's own rules; those of networks are the plugin's, but where masquerade is switched off for the node's
/// network it has none either.
fn masquerade(node: &NodeNet) -> Result<Option<String>, Error> {
    let pods = [node.pod_cidrs.as_slice(), &node.former_pod_cidrs].concat();
    let network = masquerade::owner_of(&node.network);
    let stale = |range: &&MasqueradedRange| {
        let node_own = range.owner == masquerade::NODE;
        (node_own && !pods.contains(&range.pods))
            || (!node.masquerade && (node_own || range.owner == network))
    };
    let mut changed = false;
    for range in masquerade::list().map_err(Error::kernel("list masquerade"))?.iter().filter(stale) {
        changed |= masquerade::remove_range(&range.owner, &range.pods)
            .map_err(Error::kernel("remove masquerade"))?;
    }
    if node.masquerade {
        let keep = [node.cluster_cidrs.as_slice(), &node.non_masquerade_cidrs].concat();
        let rules = Masquerade { owner: masquerade::NODE.to_owned(), pod_cidrs: pods, keep };
        changed |= masquerade::ensure(&rules).map_err(Error::kernel("ensure masquerade"))?;
    }
    Ok(changed.then(|| "masquerade".to_owned()))
}

/// Turns forwarding on.
fn forward(family: Family) -> Result<Option<String>, Error> {
    let key = match family {
        Family::V4 => "net/ipv4/ip_forward",
        Family::V6 => "net/ipv6/conf/all/forwarding",
    };
    let failed = Error::kernel("turn forwarding on");
    match sysctl::read(key) {
        Ok(value) if value == "1" => return Ok(None),
        Ok(_) => {}
        Err(error) => return Err(failed(error)),
    }
    if family == Family::V6 {
        keep_router_advertisements()?;
    }
    sysctl::write(key, "1").map_err(failed)?;
    Ok(Some(format!("{key} = 1")))
}

/// A forwarding host ignores router advertisements unless `accept_ra` is 2
/// (Documentation/networking/ip-sysctl.rst): without this a node would lose its default route.
fn keep_router_advertisements() -> Result<(), Error> {
    let mut netlink = Netlink::open().map_err(Error::kernel("open netlink"))?;
    for link in netlink.links().map_err(Error::kernel("list links"))? {
        let key = format!("net/ipv6/conf/{}/accept_ra", link.name);
        // A link may be gone by now, or have no IPv6.
        if sysctl::read(&key).is_ok_and(|value| value == "1") {
            sysctl::write_if_present(&key, "2").map_err(Error::kernel("keep router advertisements"))?;
        }
    }
    Ok(())
}

fn write_ranges(node: &NodeNet) -> Result<Option<String>, Error> {
    let ranges = Ranges {
        pod_cidrs: &node.pod_cidrs,
        former_pod_cidrs: &node.former_pod_cidrs,
        cluster_cidrs: &node.cluster_cidrs,
        non_masquerade_cidrs: &node.non_masquerade_cidrs,
        mtu: node.mtu,
    };
    let path = &node.ranges_file;
    let mut text = serde_json::to_string(&ranges).map_err(|e| Error::file("write", path, e))?;
    text.push('\n');
    let written = write_if_different(path, text.as_bytes())?;
    Ok(written.then(|| path.display().to_string()))
}

/// Replaces a file in one step, unless it has these bytes already; missing directories are made.
pub(crate) fn write_if_different(path: &Path, bytes: &[u8]) -> Result<bool, Error> {
    if fs::read(path).is_ok_and(|found| found == bytes) {
        return Ok(false);
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|e| Error::file("make directory", parent, e))?;
    }
    atomic_write(path, bytes, 0o644).map_err(|e| Error::file("write", path, e))?;
    Ok(true)
}

/// Removes a file; absent is success.
pub(crate) fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::file("remove", path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
