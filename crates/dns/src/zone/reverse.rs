//! Reverse lookups: addresses of Services and of the endpoints of headless ones.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netd_model::{ObjectName, Snapshot};

use super::{Reply, Resolution, View, Zone, endpoint_label, ready_endpoints};
use crate::entropy::shuffle;
use crate::wire::{Data, Name, Record, rcode, rtype};

/// Services by the addresses that point back to them.
pub(super) fn owners(snapshot: &Snapshot) -> HashMap<IpAddr, Vec<ObjectName>> {
    let mut owners: HashMap<IpAddr, Vec<ObjectName>> = HashMap::new();
    for (name, service) in &snapshot.services {
        for address in super::service_addresses(snapshot, service) {
            owners.entry(address).or_default().push(name.clone());
        }
    }
    owners
}

/// A name below `in-addr.arpa` or `ip6.arpa`.
struct ReverseName {
    /// The address whose leading part the name gives; the rest is zero.
    address: IpAddr,
    /// How many labels of the address the name gives.
    known: usize,
    /// How many labels a whole address has.
    whole: usize,
    /// Bits a label.
    bits: usize,
    /// True when labels stand in front of a whole address.
    extra: bool,
}

impl ReverseName {
    fn parse(name: &Name, zone: &Zone) -> Option<Self> {
        if let Some(labels) = name.within(&zone.in_addr) {
            let mut octets = [0; 4];
            for (octet, label) in octets.iter_mut().zip(&labels) {
                *octet = decimal(label)?;
            }
            return Some(Self::new(IpAddr::V4(Ipv4Addr::from(octets)), labels.len(), (4, 8)));
        }
        let labels = name.within(&zone.ip6)?;
        let mut octets = [0; 16];
        for (index, label) in labels.iter().take(32).enumerate() {
            let [digit] = label else { return None };
            let nibble = u8::try_from(char::from(*digit).to_digit(16)?).ok()?;
            let octet = octets.get_mut(index / 2)?;
            *octet |= if index % 2 == 0 { nibble << 4 } else { nibble };
        }
        Some(Self::new(IpAddr::V6(Ipv6Addr::from(octets)), labels.len(), (32, 4)))
    }

    fn new(address: IpAddr, labels: usize, (whole, bits): (usize, usize)) -> Self {
        Self { address, known: labels.min(whole), whole, bits, extra: labels > whole }
    }

    /// Labels of the address that the zone for `prefix` has: the prefix rounded up to a label.
    fn zone_labels(&self, prefix: &IpNetwork) -> usize {
        usize::from(prefix.prefix()).div_ceil(self.bits)
    }

    /// True when the name is within the zone for `prefix`.
    fn is_within(&self, prefix: &IpNetwork) -> bool {
        self.known >= self.zone_labels(prefix) && prefix.contains(self.address)
    }
}

/// An octet as reverse names write it: decimal, without leading zeros.
fn decimal(label: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// The last `labels` labels of a reverse name and the two of its tree: the zone it is in.
fn zone_apex(name: &Name, labels: usize) -> Option<Name> {
    let count = name.labels().count();
    let keep = (labels + 2).min(count);
    Name::from_labels(name.labels().skip(count - keep)).ok()
}

impl View {
    /// Answers a name of the reverse trees where the address is the cluster's.
    pub(super) fn resolve_reverse(&self, name: &Name, qtype: u16, seed: u64) -> Resolution {
        let Some(reverse) = ReverseName::parse(name, &self.zone) else { return Resolution::Elsewhere };
        let prefix = self.zone.cidrs.iter().find(|prefix| reverse.is_within(prefix));
        let exact = reverse.known == reverse.whole && !reverse.extra;
        let owners = self.owners.get(&reverse.address).filter(|_| exact);
        let labels = match (prefix, owners) {
            (Some(prefix), _) => reverse.zone_labels(prefix),
            (None, Some(_)) => reverse.whole,
            (None, None) => return Resolution::Elsewhere,
        };
        if !self.is_synced() {
            return Resolution::Unsynced;
        }
        let Some(apex) = zone_apex(name, labels) else { return Resolution::Elsewhere };
        let reply = match owners {
            Some(owners) if qtype == rtype::PTR => {
                let mut records = self.pointers(name, reverse.address, owners);
                shuffle(&mut records, seed);
                self.positive(records, Vec::new(), &apex)
            }
            Some(_) => self.negative(rcode::NOERROR, &apex),
            None if reverse.extra || exact => self.negative(rcode::NXDOMAIN, &apex),
            None => self.inner(name, qtype, &apex),
        };
        Resolution::Ours(reply)
    }

    /// A name above whole addresses: the zone's apex or an empty name.
    fn inner(&self, name: &Name, qtype: u16, apex: &Name) -> Reply {
        let answer = match qtype {
            rtype::SOA if name == apex => vec![self.soa(apex)],
            rtype::NS if name == apex => vec![self.record(apex, Data::Ns(self.zone.primary.clone()))],
            _ => Vec::new(),
        };
        self.positive(answer, Vec::new(), apex)
    }

    /// PTR records of an address: Services by their name, endpoints of headless ones by theirs.
    fn pointers(&self, owner: &Name, address: IpAddr, services: &[ObjectName]) -> Vec<Record> {
        let Some(snapshot) = &self.snapshot else { return Vec::new() };
        let mut targets = Vec::new();
        for key in services {
            let Some(parent) = self.service_name(key) else { continue };
            if snapshot.services.get(key).is_some_and(|s| !s.headless) {
                targets.push(parent);
                continue;
            }
            let endpoints = ready_endpoints(snapshot, key).filter(|(_, e)| e.address == address);
            let names = endpoints.filter_map(|(_, e)| parent.child(&endpoint_label(e)).ok());
            for name in names {
                if !targets.contains(&name) {
                    targets.push(name);
                }
            }
        }
        targets.into_iter().map(|target| self.record(owner, Data::Ptr(target))).collect()
    }
}
