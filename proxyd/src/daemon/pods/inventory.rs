//! What there is on this node that the CNI plugin made, read at one moment.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use netd_ipam::{Alias, EXTENSION, Lease, Ledger, Moment, Owner};
use netd_kernel::hostport::{self, HostPort};
use netd_kernel::link::{Ifindex, Link};
use netd_kernel::masquerade::{self, MasqueradedRange};
use netd_kernel::netlink::{Neighbour, NeighbourState, POD_ROUTE_PROTOCOL, Route, RouteFilter};
use netd_kernel::reap::GROUP;
use netd_kernel::{Mac, Netlink};

use super::BRIDGE_ALIAS;

/// A pod's link on the host.
#[derive(Clone, Debug)]
pub(super) struct PodLink {
    pub(super) link: Link,
    pub(super) alias: Alias,
}

/// A lease with its network, and for how long, where that is known.
#[derive(Clone, Debug)]
pub(super) struct Leased {
    pub(super) network: String,
    pub(super) lease: Lease,
    pub(super) age: Option<Duration>,
}

/// The networks of the ledgers in a directory and their leases.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledgers {
    pub(super) networks: BTreeSet<String>,
    pub(super) leases: Vec<Leased>,
    /// Why a ledger could not be read: then nothing is known of its network.
    pub(super) unreadable: Vec<String>,
}

/// Links of pods and what belongs to them in the kernel.
#[derive(Clone, Debug, Default)]
pub(super) struct Inventory {
    pub(super) links: Vec<Link>,
    pub(super) pods: Vec<PodLink>,
    pub(super) ledgers: Ledgers,
    pub(super) neighbours: Vec<Neighbour>,
    /// Routes that lead to one pod's address over its link.
    pub(super) routes: Vec<Route>,
    pub(super) ports: Vec<(String, HostPort)>,
    pub(super) masquerade: Vec<MasqueradedRange>,
}

impl Ledgers {
    /// Reads every ledger of the directory; none where there is no directory.
    pub(super) fn read(directory: &Path) -> Result<Self> {
        let now = Moment::now()?.uptime;
        let mut all = Self::default();
        for path in paths(directory)? {
            let network = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            match Ledger::inspect(&path) {
                Ok(contents) => all.leases.extend(contents.leases(now).map(|(lease, age)| Leased {
                    network: network.clone(),
                    lease: lease.clone(),
                    age,
                })),
                Err(error) => all.unreadable.push(error.to_string()),
            }
            all.networks.insert(network);
        }
        Ok(all)
    }

    /// All addresses that are leased.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.leases.iter().flat_map(|leased| leased.lease.addresses.iter().copied())
    }
}

/// Paths of the ledgers in a directory, ordered; none where there is no directory.
pub(super) fn paths(directory: &Path) -> Result<Vec<PathBuf>> {
    let failed = || format!("read the directory of the ledgers, {}", directory.display());
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(failed),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.with_context(failed)?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

impl Inventory {
    /// Reads all of it. The links come last: a pod that is made meanwhile has its link here or is not in the rest.
    pub(super) fn read(directory: &Path) -> Result<Self> {
        let mut netlink = Netlink::open()?;
        let neighbours = netlink.neighbours(None)?;
        let routes = netlink.routes(pod_routes())?.into_iter().filter(leads_to_a_pod).collect();
        let (ports, masquerade) = (hostport::list()?, masquerade::list()?);
        let ledgers = Ledgers::read(directory)?;
        let links = netlink.links()?;
        let pods = pod_links(&links);
        Ok(Self { links, pods, ledgers, neighbours, routes, ports, masquerade })
    }

    /// The link of an attachment.
    pub(super) fn link_of(&self, network: &str, owner: &Owner) -> Option<&PodLink> {
        self.pods.iter().find(|pod| pod.alias.network == network && pod.alias.is_of(owner))
    }

    /// The addresses that links of pods have.
    pub(super) fn wired(&self) -> BTreeSet<IpAddr> {
        self.pods.iter().flat_map(|pod| pod.alias.lease.addresses.iter().copied()).collect()
    }

    /// Bridges that the plugin made.
    pub(super) fn bridges(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(|link| is_own_bridge(link))
    }

    /// Addresses that somebody answers for whom netd did not wire: perhaps a pod of another plugin.
    pub(super) fn answering(&self) -> BTreeSet<IpAddr> {
        let heard = |entry: &&Neighbour| {
            entry.mac.is_some() && matches!(entry.state, NeighbourState::Reachable | NeighbourState::Unsure)
        };
        self.neighbours.iter().filter(heard).map(|entry| entry.ip).collect()
    }
}

/// A bridge by the alias that the plugin gives it.
pub(super) fn is_own_bridge(link: &Link) -> bool {
    link.kind.as_deref() == Some("bridge") && link.alias.as_deref() == Some(BRIDGE_ALIAS)
}

/// Links that say that they are a pod's; those put aside say something else.
pub(super) fn pod_links(links: &[Link]) -> Vec<PodLink> {
    let pod =
        |link: &Link| Some(PodLink { alias: Alias::parse(link.alias.as_deref()?)?, link: link.clone() });
    links.iter().filter_map(pod).collect()
}

/// Whether an Ethernet address is one that the plugin gives to pods (docs/cni.md): `02:42` and four bytes.
pub(super) fn is_pod_mac(mac: Mac) -> bool {
    let Mac([first, second, ..]) = mac;
    (first, second) == (0x02, 0x42)
}

/// Routes to pods that hang on no bridge.
pub(super) fn pod_routes() -> RouteFilter {
    RouteFilter { protocol: Some(POD_ROUTE_PROTOCOL), ..RouteFilter::default() }
}

fn leads_to_a_pod(route: &Route) -> bool {
    let host = if route.destination.is_ipv4() { 32 } else { 128 };
    route.gateway.is_none() && route.link.is_some() && route.destination.prefix() == host
}

/// Deletes the links that were put aside and are there still; says whether there were any.
pub(super) fn delete_aside(netlink: &mut Netlink) -> netd_kernel::Result<bool> {
    match netlink.delete_group(GROUP) {
        Ok(()) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// The name of a link, else its number.
pub(super) fn name_of(links: &[Link], index: Ifindex) -> String {
    links.iter().find(|link| link.index == index).map_or_else(|| index.to_string(), |link| link.name.clone())
}
