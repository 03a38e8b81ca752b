//! What nothing live owns: pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use netd_ipam::Owner;
use netd_kernel::link::{Ifindex, Link};
use netd_kernel::netlink::NeighbourState;

use super::inventory::{Inventory, Leased, PodLink, is_pod_mac, name_of};

/// How often something must be seen before it is taken for garbage.
const OBSERVATIONS: u32 = 2;
/// The kernel's kind of a veth, and of the device that limits what comes out of a pod.
const VETH: &str = "veth";
const IFB: &str = "ifb";

/// Something that nothing live owns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Item {
    /// A lease whose pod has no link.
    Lease { network: String, owner: Owner, addresses: Vec<IpAddr> },
    /// A pod's link without a lease whose other end came back to the host.
    Link { index: Ifindex, name: String },
    /// A device that limits the bandwidth of a pod that is gone.
    Ifb { index: Ifindex, name: String },
    /// All host ports of an attachment.
    HostPorts { owner: String },
    /// A pod's neighbour entry on a bridge.
    Neighbour { link: Ifindex, device: String, ip: IpAddr },
    /// A route to a pod's address.
    Route { destination: IpNetwork, link: Ifindex },
    /// Masquerade rules of a network's range in which no pod has an address.
    Masquerade { owner: String, pods: IpNetwork },
}

impl Item {
    /// The kind in status, metrics and log.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Lease { .. } => "lease",
            Self::Link { .. } => "link",
            Self::Ifb { .. } => "ifb",
            Self::HostPorts { .. } => "host-ports",
            Self::Neighbour { .. } => "neighbour",
            Self::Route { .. } => "route",
            Self::Masquerade { .. } => "masquerade",
        }
    }
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lease { network, owner, addresses } => {
                let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
                write!(f, "{} of {owner} in network {network}", addresses.join(", "))
            }
            Self::Link { name, .. } | Self::Ifb { name, .. } => write!(f, "link {name}"),
            Self::HostPorts { owner } => write!(f, "host ports of {owner}"),
            Self::Neighbour { device, ip, .. } => write!(f, "neighbour {ip} on {device}"),
            Self::Route { destination, .. } => write!(f, "route to {destination}"),
            Self::Masquerade { owner, pods } => write!(f, "masquerade of {pods} for {owner}"),
        }
    }
}

/// Everything that nothing live owns at this moment; `ours` are the ranges of the node, now and before.
///
/// Nothing while a ledger cannot be read: what its pods have is not known.
pub(super) fn find(inventory: &Inventory, ours: &[IpNetwork]) -> Vec<Item> {
    if !inventory.ledgers.unreadable.is_empty() {
        return Vec::new();
    }
    let mut all = leases(inventory);
    all.extend(links(inventory));
    all.extend(host_ports(inventory));
    all.extend(neighbours(inventory, ours));
    all.extend(routes(inventory));
    all.extend(masquerade(inventory));
    all
}

/// Leases without a link. One of unknown age may be a pod's that another plugin wired (it was taken over from
/// host-local) and stays, and so does one whose address is in use in another way.
fn leases(inventory: &Inventory) -> Vec<Item> {
    let (wired, answering) = (inventory.wired(), inventory.answering());
    let used = |address: &IpAddr| wired.contains(address) || answering.contains(address);
    let leaked = |leased: &&Leased| {
        leased.age.is_some()
            && inventory.link_of(&leased.network, &leased.lease.owner).is_none()
            && !leased.lease.addresses.iter().any(used)
    };
    let item = |leased: &Leased| Item::Lease {
        network: leased.network.clone(),
        owner: leased.lease.owner.clone(),
        addresses: leased.lease.addresses.clone(),
    };
    inventory.ledgers.leases.iter().filter(leaked).map(item).collect()
}

/// Links without a lease, of a network that has a ledger here, whose other end is no more in a pod; and devices whose
/// pod's link is gone.
fn links(inventory: &Inventory) -> Vec<Item> {
    let leased = |pod: &PodLink| {
        let is_own =
            |leased: &Leased| leased.network == pod.alias.network && pod.alias.is_of(&leased.lease.owner);
        inventory.ledgers.leases.iter().any(is_own)
    };
    let alone = |pod: &&PodLink| {
        pod.link.kind.as_deref() == Some(VETH)
            && pod.link.peer_namespace.is_none()
            && inventory.ledgers.networks.contains(&pod.alias.network)
            && !leased(pod)
    };
    let strays = inventory
        .pods
        .iter()
        .filter(alone)
        .map(|pod| Item::Link { index: pod.link.index, name: pod.link.name.clone() });
    let orphans = inventory
        .links
        .iter()
        .filter(|link| is_orphan(inventory, link))
        .map(|link| Item::Ifb { index: link.index, name: link.name.clone() });
    strays.chain(orphans).collect()
}

/// Whether a device limits the bandwidth of a pod whose link is gone: their names have the same end (docs/cni.md).
fn is_orphan(inventory: &Inventory, link: &Link) -> bool {
    const ALIAS: &str = "netd-bw net=";
    const NAME: &str = "ndif";
    const POD: &str = "netd";
    let end = link.name.strip_prefix(NAME);
    link.kind.as_deref() == Some(IFB)
        && link.alias.as_deref().is_some_and(|alias| alias.starts_with(ALIAS))
        && end.is_some_and(|end| {
            let of = |pod: &PodLink| pod.link.name.strip_prefix(POD) == Some(end);
            !inventory.pods.iter().any(of)
        })
}

/// Host ports are owned by the name of the pod's link and the network.
fn host_ports(inventory: &Inventory) -> Vec<Item> {
    let is_live = |owner: &str| {
        let named = |(link, network): (&str, &str)| {
            inventory.pods.iter().any(|pod| pod.link.name == link && pod.alias.network == network)
        };
        // What is written in another way is not ours to judge.
        owner.split_once(' ').is_none_or(named)
    };
    let mut owners: Vec<&String> = inventory.ports.iter().map(|(owner, _)| owner).collect();
    owners.sort_unstable();
    owners.dedup();
    let dead = owners.into_iter().filter(|owner| !is_live(owner));
    dead.map(|owner| Item::HostPorts { owner: owner.clone() }).collect()
}

fn neighbours(inventory: &Inventory, ours: &[IpNetwork]) -> Vec<Item> {
    let wired = inventory.wired();
    let leased: std::collections::BTreeSet<IpAddr> = inventory.ledgers.addresses().collect();
    let bridges: Vec<Ifindex> = inventory.bridges().map(|bridge| bridge.index).collect();
    let made_by_us = |ip: IpAddr, mac| is_pod_mac(mac) || ours.iter().any(|range| range.contains(ip));
    let entries = inventory.neighbours.iter().filter(|entry| {
        entry.state == NeighbourState::Permanent
            && bridges.contains(&entry.link)
            && entry.mac.is_some_and(|mac| made_by_us(entry.ip, mac))
            && !wired.contains(&entry.ip)
            && !leased.contains(&entry.ip)
    });
    let item = |ip, link| Item::Neighbour { link, device: name_of(&inventory.links, link), ip };
    entries.map(|entry| item(entry.ip, entry.link)).collect()
}

/// Routes to one address over a link that is no pod's with that address.
fn routes(inventory: &Inventory) -> Vec<Item> {
    let leased: std::collections::BTreeSet<IpAddr> = inventory.ledgers.addresses().collect();
    let wired = inventory.wired();
    let alone = |ip: IpAddr| !wired.contains(&ip) && !leased.contains(&ip);
    let dead = inventory.routes.iter().filter(|route| alone(route.destination.ip()));
    dead.filter_map(|route| Some(Item::Route { destination: route.destination, link: route.link? })).collect()
}

/// Rules of networks (not those of the node itself) for ranges without pods. The next ADD makes them again.
fn masquerade(inventory: &Inventory) -> Vec<Item> {
    let in_use = |network: &str, pods: &IpNetwork| {
        let leases = inventory.ledgers.leases.iter().filter(|leased| leased.network == network);
        let links = inventory.pods.iter().filter(|pod| pod.alias.network == network);
        let addresses = leases.flat_map(|leased| &leased.lease.addresses);
        addresses.chain(links.flat_map(|pod| &pod.alias.lease.addresses)).any(|a| pods.contains(*a))
    };
    // Without a ledger another plugin hands out the addresses, and nobody tells when one of its ADDs is under way.
    let known = |network: &str| inventory.ledgers.networks.contains(network);
    let dead = inventory.masquerade.iter().filter(|range| {
        let network = range.owner.strip_prefix("net=");
        network.is_some_and(|network| known(network) && !in_use(network, &range.pods))
    });
    dead.map(|range| Item::Masquerade { owner: range.owner.clone(), pods: range.pods }).collect()
}

/// What was seen when: only what is seen twice, and for a while, is garbage.
#[derive(Debug, Default)]
pub(super) struct Observations {
    seen: BTreeMap<Item, Seen>,
}

#[derive(Debug)]
struct Seen {
    first: Instant,
    times: u32,
}

impl Observations {
    /// Notes what is there now and returns what has been for as long as `grace`, in two observations at least.
    pub(super) fn note(&mut self, found: Vec<Item>, now: Instant, grace: Duration) -> Vec<Item> {
        let before = std::mem::take(&mut self.seen);
        for item in found {
            let (first, times) = before.get(&item).map_or((now, 0), |seen| (seen.first, seen.times));
            self.seen.insert(item, Seen { first, times: times + 1 });
        }
        let due = self.seen.iter().filter(|(_, seen)| {
            seen.times >= OBSERVATIONS && now.saturating_duration_since(seen.first) >= grace
        });
        due.map(|(item, _)| item.clone()).collect()
    }

    /// How much is observed.
    pub(super) fn waiting(&self) -> usize {
        self.seen.len()
    }

    /// Forgets what has been collected.
    pub(super) fn forget(&mut self, item: &Item) {
        self.seen.remove(item);
    }
}
