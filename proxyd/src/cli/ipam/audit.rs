//! Leases compared with links: pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use netd_ipam::{Lease, Owner};
use serde::Serialize;

use super::node::{Network, PodLink};

/// What does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Kind {
    /// An address that nobody uses is not handed out.
    LeaseWithoutLink,
    /// An address that is in use may be handed out again.
    LinkWithoutLease,
    /// Two have one address.
    Duplicate,
    /// A ledger that cannot be read.
    Ledger,
}

/// Something that does not fit, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Problem {
    pub(super) kind: Kind,
    pub(super) network: String,
    pub(super) address: Option<IpAddr>,
    /// The finding in words.
    pub(super) message: String,
    /// The next command to run.
    pub(super) next: String,
}

/// What was compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Audit {
    pub(super) leases: usize,
    pub(super) links: usize,
    pub(super) problems: Vec<Problem>,
    /// What is worth knowing and no problem.
    pub(super) notes: Vec<String>,
}

/// Compares every lease with the links, and the other way.
pub(super) fn audit(networks: &[Network], links: &[PodLink]) -> Audit {
    let mut audit = Audit { links: links.len(), ..Audit::default() };
    for network in networks {
        let own: Vec<&PodLink> = links.iter().filter(|link| link.alias.network == network.name).collect();
        match &network.contents {
            Ok(_) => audit.compare(network, &own),
            Err(error) => audit.problems.push(Problem {
                kind: Kind::Ledger,
                network: network.name.clone(),
                address: None,
                message: error.to_string(),
                next:
                    "start a pod on this node: its ADD puts the file aside and makes a new one from the links"
                        .to_owned(),
            }),
        }
    }
    audit.find_duplicates(networks, links);
    audit.note_unknown(networks, links);
    audit.problems.sort();
    audit.problems.dedup();
    audit
}

impl Audit {
    fn compare(&mut self, network: &Network, links: &[&PodLink]) {
        let mut by_address: BTreeMap<IpAddr, Vec<&PodLink>> = BTreeMap::new();
        for link in links {
            link.alias.lease.addresses.iter().for_each(|a| by_address.entry(*a).or_default().push(link));
        }
        let mut leased = BTreeMap::new();
        for (lease, held) in network.leases(Duration::MAX) {
            self.leases += 1;
            leased.extend(lease.addresses.iter().map(|address| (*address, &lease.owner)));
            let has_link = |address: &IpAddr| {
                by_address.get(address).is_some_and(|links| links.iter().any(|l| l.alias.is_of(&lease.owner)))
            };
            if let Some(missing) = lease.addresses.iter().find(|address| !has_link(address)) {
                let imported = held.is_none() && lease.pod.is_none();
                self.problems.push(lease_without_link(&network.name, lease, *missing, imported));
            }
        }
        for link in links {
            let theirs =
                |address: &&IpAddr| leased.get(*address).is_some_and(|owner| link.alias.is_of(owner));
            for address in link.alias.lease.addresses.iter().filter(|address| !theirs(address)) {
                self.problems.push(link_without_lease(link, *address, leased.get(address).copied()));
            }
        }
    }

    fn find_duplicates(&mut self, networks: &[Network], links: &[PodLink]) {
        let mut leases: BTreeMap<IpAddr, Vec<(&str, &Lease)>> = BTreeMap::new();
        for network in networks {
            for (lease, _) in network.leases(Duration::MAX) {
                lease
                    .addresses
                    .iter()
                    .for_each(|a| leases.entry(*a).or_default().push((&network.name, lease)));
            }
        }
        for (address, holders) in leases.iter().filter(|(_, holders)| holders.len() > 1) {
            let who: Vec<String> = holders
                .iter()
                .map(|(network, lease)| format!("{} in network {network}", whose(lease)))
                .collect();
            self.problems.push(Problem {
                kind: Kind::Duplicate,
                network: holders.first().map(|(network, _)| (*network).to_owned()).unwrap_or_default(),
                address: Some(*address),
                message: format!("{address} is leased {} times: {}", holders.len(), who.join("; ")),
                next: "give the networks ranges that do not overlap, and restart one of the pods".to_owned(),
            });
        }
        let mut wired: BTreeMap<IpAddr, Vec<&PodLink>> = BTreeMap::new();
        for link in links {
            link.alias.lease.addresses.iter().for_each(|a| wired.entry(*a).or_default().push(link));
        }
        for (address, holders) in wired.iter().filter(|(_, holders)| holders.len() > 1) {
            let who: Vec<String> = holders.iter().map(|link| described(link)).collect();
            self.problems.push(Problem {
                kind: Kind::Duplicate,
                network: holders.first().map(|link| link.alias.network.clone()).unwrap_or_default(),
                address: Some(*address),
                message: format!("{address} is on {} links: {}", holders.len(), who.join("; ")),
                next: format!("netd ipam ls | grep -w -F {address}   # restart the pods of the other links"),
            });
        }
    }

    /// Links of a network that has no ledger here belong to another IPAM plugin, or to another directory.
    fn note_unknown(&mut self, networks: &[Network], links: &[PodLink]) {
        let mut unknown: BTreeMap<&str, usize> = BTreeMap::new();
        for link in links {
            if !networks.iter().any(|network| network.name == link.alias.network) {
                *unknown.entry(link.alias.network.as_str()).or_default() += 1;
            }
        }
        self.notes.extend(unknown.iter().map(|(network, count)| {
            format!(
                "network {network} has {count} links and no ledger here: another IPAM plugin hands its addresses out, or \
                 --data-dir is another"
            )
        }));
    }
}

/// A lease that was taken over from host-local may be of a pod that another plugin wired: that has no link of ours.
fn lease_without_link(network: &str, lease: &Lease, address: IpAddr, imported: bool) -> Problem {
    let release = format!("netd ipam release --network {network} {address}");
    let next = if imported {
        let container = &lease.owner.container;
        format!("crictl inspectp {container}   # perhaps a pod of before netd; where it is gone: {release}")
    } else {
        release
    };
    Problem {
        kind: Kind::LeaseWithoutLink,
        network: network.to_owned(),
        address: Some(address),
        message: format!("{address} is leased to {}, and no link has it", whose(lease)),
        next,
    }
}

fn link_without_lease(link: &PodLink, address: IpAddr, holder: Option<&Owner>) -> Problem {
    let lease = match holder {
        Some(owner) => format!("the lease is of {owner}"),
        None => "nobody has a lease of it".to_owned(),
    };
    let container = &link.alias.lease.owner.container;
    Problem {
        kind: Kind::LinkWithoutLease,
        network: link.alias.network.clone(),
        address: Some(address),
        message: format!("{address} is on {}, and {lease}", described(link)),
        next: format!(
            "crictl stopp {container}   # restarts the pod; `ip link delete dev {}` where it is gone",
            link.name
        ),
    }
}

fn whose(lease: &Lease) -> String {
    match &lease.pod {
        Some(pod) => format!("pod {pod} ({})", lease.owner),
        None => lease.owner.to_string(),
    }
}

fn described(link: &PodLink) -> String {
    format!("link {} of {}", link.name, link.alias.lease.owner)
}

#[cfg(test)]
mod tests;
