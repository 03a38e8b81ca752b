//! What this node has: ledgers in a directory, links in the kernel, ranges from the daemon's file.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use ipnetwork::IpNetwork;
use netd_ipam::{Alias, Contents, EXTENSION, Lease, Ledger, Pool, Range};
use netd_kernel::Netlink;
use netd_kernel::netlink::{Neighbour, NeighbourState};
use serde::Deserialize;

use crate::config::Config;

/// A network's ledger.
pub(super) struct Network {
    pub(super) name: String,
    pub(super) ledger: PathBuf,
    /// What the ledger says, or why it cannot be read.
    pub(super) contents: Result<Contents, netd_ipam::Error>,
}

impl Network {
    /// Every lease, and for how long at the uptime `now`; none where the ledger cannot be read.
    pub(super) fn leases(&self, now: Duration) -> impl Iterator<Item = (&Lease, Option<Duration>)> {
        self.contents.as_ref().ok().into_iter().flat_map(move |contents| contents.leases(now))
    }
}

/// A pod's link.
pub(super) struct PodLink {
    pub(super) name: String,
    pub(super) alias: Alias,
}

/// Reads every ledger of the directory, ordered by name; none where there is no directory.
pub(super) fn networks(directory: &Path) -> Result<Vec<Network>> {
    let failed = || format!("read the directory of the ledgers, {}", directory.display());
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(failed),
    };
    let mut networks = Vec::new();
    for entry in entries {
        let ledger = entry.with_context(failed)?.path();
        if ledger.extension().is_none_or(|extension| extension != EXTENSION) {
            continue;
        }
        let name = ledger.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        networks.push(Network { name, contents: Ledger::inspect(&ledger), ledger });
    }
    networks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(networks)
}

/// The links of pods in this network namespace.
pub(super) fn links() -> Result<Vec<PodLink>> {
    let links = Netlink::open().and_then(|mut netlink| netlink.links()).context("list the kernel's links")?;
    let pods = links.into_iter().filter_map(|link| {
        let alias = Alias::parse(link.alias.as_deref()?)?;
        Some(PodLink { name: link.name, alias })
    });
    Ok(pods.collect())
}

/// Addresses of neighbours that the kernel has heard of. A pod's own entry, which netd makes, is permanent and tells
/// nothing.
pub(super) fn answering() -> Result<Vec<IpAddr>> {
    let neighbours = Netlink::open().and_then(|mut netlink| netlink.neighbours(None));
    let neighbours = neighbours.context("list the kernel's neighbours")?;
    let heard = |entry: &Neighbour| {
        entry.mac.is_some() && matches!(entry.state, NeighbourState::Reachable | NeighbourState::Unsure)
    };
    Ok(neighbours.into_iter().filter(heard).map(|entry| entry.ip).collect())
}

#[derive(Deserialize)]
struct RangesFile {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<IpNetwork>,
}

/// The ranges that the plugin hands out where its configuration names none: the daemon's, else the configuration's.
pub(super) fn ranges(config: &Config) -> Vec<Pool> {
    let told = fs::read(&config.cni.ranges_file).ok();
    let told = told.and_then(|bytes| serde_json::from_slice::<RangesFile>(&bytes).ok());
    let cidrs = told.map_or_else(|| config.cni.pod_cidrs.clone(), |file| file.pod_cidrs);
    let pool = |cidr| Pool::new(vec![Range::new(cidr, None, None, None)?]);
    cidrs.into_iter().filter_map(|cidr| pool(cidr).ok()).collect()
}
