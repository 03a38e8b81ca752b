//! What somebody else took away from running pods is put back: the bridge, its addresses, neighbour entries, host ports,
//! masquerade rules of networks, kernel parameters.
//!
//! All of it follows from ledgers and links, or from what was there at an earlier look; nothing is invented for a pod
//! that is going away: what a DEL removes one after the other must be missing at two looks, a tenth of a second apart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use ipnetwork::IpNetwork;
use netd_ipam::PortMapping;
use netd_kernel::hostport::{self, HostPort};
use netd_kernel::link::{Ifindex, Link};
use netd_kernel::masquerade::{self, Masquerade, MasqueradedRange};
use netd_kernel::netlink::{Batch, Neighbour, NeighbourState};
use netd_kernel::{Mac, Netlink, sysctl};

use super::bridge::Bridges;
use super::inventory::{Leased, Ledgers, PodLink, is_own_bridge, pod_links};

/// How long something must be missing that a DEL may just be removing.
pub(in crate::daemon) const CONFIRM: Duration = Duration::from_millis(100);

/// What a look found and did.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Kept {
    /// What was put back: a word for the metric, and in words.
    pub(in crate::daemon) repaired: Vec<(&'static str, String)>,
    /// What could not be.
    pub(in crate::daemon) problems: Vec<String>,
    /// Something is missing and to be looked at again after [`CONFIRM`].
    pub(in crate::daemon) unsure: bool,
    /// Pods whose largest packet is larger than what new pods get.
    pub(in crate::daemon) wide: Vec<String>,
}

impl Kept {
    /// Sets a kernel parameter that has another value; one that this kernel does not have is left out.
    pub(super) fn set(&mut self, key: &str, value: &str) {
        match sysctl::write_if_present(key, value) {
            Ok(true) => self.repaired.push(("sysctls", format!("{key} = {value}"))),
            Ok(false) => {}
            Err(error) => self.problems.push(error.to_string()),
        }
    }
}

/// Pods as ledgers and links show them.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Pods {
    pub(super) links: Vec<Link>,
    pub(super) pods: Vec<PodLink>,
    pub(super) ledgers: Ledgers,
}

impl Pods {
    /// Reads ledgers and links.
    ///
    /// # Errors
    /// When the directory of the ledgers or the links cannot be read.
    pub(in crate::daemon) fn read(directory: &Path) -> Result<Self> {
        let ledgers = Ledgers::read(directory)?;
        let links = Netlink::open()?.links()?;
        Ok(Self { pods: pod_links(&links), links, ledgers })
    }

    /// Whether a pod has an address of the range, or may have: a ledger that cannot be read tells nothing.
    pub(in crate::daemon) fn any_in(&self, range: &IpNetwork) -> bool {
        !self.ledgers.unreadable.is_empty() || self.addresses().any(|address| range.contains(address))
    }

    /// How many pods have an address of the range.
    pub(in crate::daemon) fn count_in(&self, range: &IpNetwork) -> usize {
        self.addresses().filter(|address| range.contains(*address)).collect::<BTreeSet<_>>().len()
    }

    /// Who has an address, in words.
    pub(in crate::daemon) fn holder(&self, address: IpAddr) -> Option<String> {
        let leased = self.ledgers.leases.iter().find(|leased| leased.lease.addresses.contains(&address));
        let of_lease = leased.map(|leased| match &leased.lease.pod {
            Some(pod) => format!("pod {pod}"),
            None => leased.lease.owner.to_string(),
        });
        let of_link = || self.pods.iter().find(|pod| pod.alias.lease.addresses.contains(&address));
        of_lease.or_else(|| of_link().map(|pod| pod.alias.lease.owner.to_string()))
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let wired = self.pods.iter().flat_map(|pod| pod.alias.lease.addresses.iter().copied());
        self.ledgers.addresses().chain(wired)
    }

    /// The pods on a bridge.
    pub(super) fn on(&self, bridge: Ifindex) -> impl Iterator<Item = &PodLink> {
        self.pods.iter().filter(move |pod| pod.link.master == Some(bridge))
    }
}

/// Remembers what there was, so that it can be put back.
#[derive(Debug)]
pub(in crate::daemon) struct Upkeep {
    bridges: Bridges,
    neighbours: BTreeMap<(String, IpAddr), Mac>,
    masquerade: Vec<MasqueradedRange>,
    /// Since when something is missing.
    missing: BTreeMap<String, Instant>,
    /// Owners whose host ports were put back, until their pod is seen to be there still.
    restored: BTreeSet<String>,
}

impl Upkeep {
    /// Nothing is known yet.
    pub(in crate::daemon) fn new(bridge: &str) -> Self {
        Self {
            bridges: Bridges::new(bridge),
            neighbours: BTreeMap::new(),
            masquerade: Vec::new(),
            missing: BTreeMap::new(),
            restored: BTreeSet::new(),
        }
    }

    /// Puts back what is missing; `ranges` are the node's, now and before, `mtu` what new pods get.
    ///
    /// # Errors
    /// When the kernel cannot be read; what could not be put back is in the result.
    pub(in crate::daemon) fn ensure(
        &mut self,
        pods: &Pods,
        ranges: &[IpNetwork],
        mtu: Option<u32>,
        now: Instant,
    ) -> Result<Kept> {
        let mut netlink = Netlink::open()?;
        let mut kept = Kept { wide: wide(pods, mtu), ..Kept::default() };
        let mut absent = Absent { before: std::mem::take(&mut self.missing), now, seen: BTreeMap::new() };
        // Both before anything is written: a bridge that was down has lost them.
        let (addresses, neighbours) = (netlink.addresses(None)?, netlink.neighbours(None)?);
        self.bridges.keep(&mut netlink, pods, (&addresses, ranges), (&mut absent, &mut kept));
        for bridge in pods.links.iter().filter(|link| is_own_bridge(link)) {
            self.keep_neighbours(&mut netlink, (pods, bridge), (&neighbours, &mut absent), &mut kept);
        }
        super::routes::keep(&mut netlink, pods, &mut absent, &mut kept);
        self.forget_pods_that_left(pods);
        self.keep_ports(pods, &mut absent, &mut kept);
        keep_loopback_ports(pods, &mut kept);
        self.keep_masquerade(pods, &mut kept);
        kept.unsure = absent.seen.values().any(|since| *since == now);
        self.missing = absent.seen;
        Ok(kept)
    }

    /// Takes the gateway of a range without pods from the node's bridge; none there is success.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(in crate::daemon) fn retire(&mut self, range: &IpNetwork) -> netd_kernel::Result<()> {
        self.bridges.retire(range)
    }

    /// Permanent entries that were there and are gone while their pod is not.
    fn keep_neighbours(
        &mut self,
        netlink: &mut Netlink,
        (pods, bridge): (&Pods, &Link),
        (neighbours, absent): (&[Neighbour], &mut Absent),
        kept: &mut Kept,
    ) {
        let present: BTreeMap<IpAddr, Mac> = neighbours
            .iter()
            .filter(|entry| entry.link == bridge.index && entry.state == NeighbourState::Permanent)
            .filter_map(|entry| Some((entry.ip, entry.mac?)))
            .collect();
        let mut batch = Batch::new();
        for address in pods.on(bridge.index).flat_map(|pod| &pod.alias.lease.addresses) {
            let key = (bridge.name.clone(), *address);
            match (present.get(address), self.neighbours.get(&key)) {
                (Some(mac), _) => {
                    self.neighbours.insert(key, *mac);
                }
                // Without an entry the kernel asks the pod itself.
                (None, None) => {}
                (None, Some(mac)) => {
                    if absent.confirmed(format!("neighbour {} {address}", bridge.name)) {
                        batch.add_neighbour(bridge.index, *address, *mac, true);
                    }
                }
            }
        }
        if batch.is_empty() {
            return;
        }
        match netlink.send(&batch) {
            Ok(()) => {
                kept.repaired.push(("neighbours", format!("{} neighbours on {}", batch.len(), bridge.name)));
            }
            Err(error) => kept.problems.push(error.to_string()),
        }
    }

    fn forget_pods_that_left(&mut self, pods: &Pods) {
        let wired: BTreeSet<IpAddr> =
            pods.pods.iter().flat_map(|pod| pod.alias.lease.addresses.iter().copied()).collect();
        self.neighbours.retain(|(_, address), _| wired.contains(address));
    }

    /// Host ports of running pods: the ledger knows them.
    fn keep_ports(&mut self, pods: &Pods, absent: &mut Absent, kept: &mut Kept) {
        match self.try_keep_ports(pods, absent) {
            Ok(restored) if restored.is_empty() => {}
            Ok(restored) => kept.repaired.push(("host-ports", format!("{} host ports", restored.len()))),
            Err(error) => kept.problems.push(error.to_string()),
        }
    }

    fn try_keep_ports(
        &mut self,
        pods: &Pods,
        absent: &mut Absent,
    ) -> netd_kernel::Result<Vec<(String, HostPort)>> {
        let wanted = wanted_ports(pods);
        // A pod that left while its ports were put back: nobody else would take them away at once.
        let live: BTreeSet<&String> = wanted.iter().map(|(owner, _)| owner).collect();
        let orphans: Vec<String> =
            self.restored.iter().filter(|owner| !live.contains(owner)).cloned().collect();
        for owner in orphans {
            hostport::remove(&owner)?;
            self.restored.remove(&owner);
        }
        let missing = hostport::missing(&wanted)?;
        let confirmed: Vec<(String, HostPort)> = missing
            .into_iter()
            .filter(|(owner, port)| absent.confirmed(format!("port {owner} {port:?}")))
            .collect();
        let restored = hostport::restore(&confirmed)?;
        self.restored.extend(restored.iter().map(|(owner, _)| owner.clone()));
        Ok(restored)
    }

    /// Rules of networks that were whole and are not, while pods have addresses of their range.
    fn keep_masquerade(&mut self, pods: &Pods, kept: &mut Kept) {
        let found = match masquerade::list() {
            Ok(found) => found,
            Err(error) => return kept.problems.push(error.to_string()),
        };
        let network = |range: &MasqueradedRange| range.owner.strip_prefix("net=").map(str::to_owned);
        let in_use = |range: &MasqueradedRange| {
            network(range).is_some_and(|network| {
                let mut own = pods.pods.iter().filter(|pod| pod.alias.network == network);
                own.any(|pod| pod.alias.lease.addresses.iter().any(|address| range.pods.contains(*address)))
            })
        };
        let same = |a: &MasqueradedRange, b: &MasqueradedRange| a.owner == b.owner && a.pods == b.pods;
        let is_whole = |one: &MasqueradedRange| found.iter().any(|other| other.whole && same(one, other));
        for lost in self.masquerade.iter().filter(|range| !is_whole(range) && in_use(range)) {
            let rules =
                Masquerade { owner: lost.owner.clone(), pod_cidrs: vec![lost.pods], keep: lost.keep.clone() };
            match masquerade::ensure(&rules) {
                Ok(true) => {
                    let what = format!("masquerade of {} for {}", lost.pods, lost.owner);
                    kept.repaired.push(("masquerade", what));
                }
                Ok(false) => {}
                Err(error) => kept.problems.push(error.to_string()),
            }
        }
        self.masquerade.retain(|range| !is_whole(range) && in_use(range));
        self.masquerade.extend(found.into_iter().filter(|range| range.whole));
    }
}

/// The largest packet of the link of the default route, as the plugin finds it out; `None` where nobody can tell.
pub(in crate::daemon) fn uplink_mtu() -> Option<u32> {
    // Addresses for documentation (RFC 5737, RFC 3849): nobody has a route to them but the default route.
    let world = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])];
    let mut netlink = Netlink::open().ok()?;
    world.into_iter().find_map(|destination| {
        let index = netlink.route_to(destination).ok()?.link?;
        netlink.link_by_index(index).ok()?.filter(|link| !link.loopback).map(|link| link.mtu)
    })
}

/// What is missing at this look, and since when.
pub(super) struct Absent {
    before: BTreeMap<String, Instant>,
    seen: BTreeMap<String, Instant>,
    now: Instant,
}

impl Absent {
    /// Notes that something is missing; says whether it has been for long enough.
    pub(super) fn confirmed(&mut self, what: String) -> bool {
        let since = self.before.get(&what).copied().unwrap_or(self.now);
        let confirmed = self.now.saturating_duration_since(since) >= CONFIRM;
        self.seen.insert(what, since);
        confirmed
    }
}

/// Ports that 127.0.0.1 is to reach need a parameter of the bridge; the rules that guard it come with the ports.
fn keep_loopback_ports(pods: &Pods, kept: &mut Kept) {
    let listed = match hostport::list() {
        Ok(listed) => listed,
        Err(error) => return kept.problems.push(error.to_string()),
    };
    let from_loopback = |port: &HostPort| port.to.is_ipv4() && port.host_ip.is_none_or(|ip| ip.is_loopback());
    let owners = listed.iter().filter(|(_, port)| from_loopback(port)).map(|(owner, _)| owner);
    let devices: BTreeSet<&str> = owners.filter_map(|owner| device_of(pods, owner)).collect();
    for device in devices {
        kept.set(&format!("net/ipv4/conf/{device}/route_localnet"), "1");
    }
}

/// The device that packets to a pod leave by: its bridge, or its own link. Ports are owned by link and network.
fn device_of<'a>(pods: &'a Pods, owner: &str) -> Option<&'a str> {
    let link = owner.split(' ').next()?;
    let pod = pods.pods.iter().find(|pod| pod.link.name == link)?;
    let bridge = pods.links.iter().find(|link| Some(link.index) == pod.link.master);
    Some(bridge.map_or(pod.link.name.as_str(), |bridge| bridge.name.as_str()))
}

/// The ports of pods that have a link which is up, with their owners.
fn wanted_ports(pods: &Pods) -> Vec<(String, HostPort)> {
    let mut wanted = Vec::new();
    for pod in pods.pods.iter().filter(|pod| pod.link.up) {
        let own =
            |leased: &&Leased| leased.network == pod.alias.network && pod.alias.is_of(&leased.lease.owner);
        let Some(leased) = pods.ledgers.leases.iter().filter(|l| !l.lease.ports.is_empty()).find(own) else {
            continue;
        };
        let owner = format!("{} {}", pod.link.name, leased.network);
        let ports = leased.lease.ports.iter().flat_map(|wish| host_ports(wish, &leased.lease.addresses));
        wanted.extend(ports.map(|port| (owner.clone(), port)));
    }
    wanted
}

/// One port a family of the pod, or of the node's address that was wished.
fn host_ports(wish: &PortMapping, addresses: &[IpAddr]) -> Vec<HostPort> {
    let fits = |v4: bool| wish.host_ip.is_none_or(|ip| ip.is_ipv4() == v4);
    let of_family = |v4: bool| addresses.iter().find(|address| address.is_ipv4() == v4).filter(|_| fits(v4));
    let port = |pod: &IpAddr| HostPort {
        transport: wish.transport,
        host_ip: wish.host_ip.filter(|ip| !ip.is_unspecified()),
        port: wish.host_port,
        to: (*pod, wish.container_port).into(),
    };
    [true, false].into_iter().filter_map(of_family).map(port).collect()
}

/// Pods whose link takes larger packets than new ones get.
fn wide(pods: &Pods, mtu: Option<u32>) -> Vec<String> {
    let Some(mtu) = mtu else { return Vec::new() };
    let wide = pods.pods.iter().filter(|pod| pod.link.mtu > mtu);
    wide.map(|pod| format!("{} ({})", pod.alias.lease.owner.container, pod.link.mtu)).collect()
}
