//! What names mean: the Kubernetes DNS specification 1.1.0 over one immutable snapshot.

mod lookup;
mod records;
mod reverse;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ipnetwork::IpNetwork;
use netd_model::{Endpoint, ObjectName, Service, Snapshot};

use crate::Error;
use crate::wire::{Data, Name, Record, rcode};

/// The longest time to live that may be configured, in seconds (as CoreDNS).
const MAX_TTL: u32 = 3600;
/// The longest time to live of answers out of a stale snapshot, in seconds.
const STALE_TTL: u32 = 5;

/// Settings of the cluster zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneConfig {
    /// Cluster domain, with or without trailing dot.
    pub cluster_domain: String,
    /// Time to live of cluster records and of negative answers, in seconds, at most 3600.
    ///
    /// Low by default: an answer out of the snapshot costs microseconds, a stale one costs connections.
    pub ttl: u32,
    /// What `ns.dns.<zone>` answers: the cluster DNS addresses of the node.
    pub addresses: Vec<IpAddr>,
    /// Service and pod prefixes: reverse lookups within them are never forwarded.
    pub cidrs: Vec<IpNetwork>,
}

impl Default for ZoneConfig {
    fn default() -> Self {
        Self { cluster_domain: "cluster.local".to_owned(), ttl: 5, addresses: Vec::new(), cidrs: Vec::new() }
    }
}

/// A checked [`ZoneConfig`].
#[derive(Clone, Debug)]
pub struct Zone {
    apex: Name,
    primary: Name,
    mailbox: Name,
    services: Name,
    in_addr: Name,
    ip6: Name,
    ttl: u32,
    addresses: Vec<IpAddr>,
    cidrs: Vec<IpNetwork>,
}

impl Zone {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::ClusterDomain`] and [`Error::Ttl`].
    pub fn new(config: ZoneConfig) -> Result<Self, Error> {
        if config.ttl > MAX_TTL {
            return Err(Error::Ttl { ttl: config.ttl });
        }
        let domain = config.cluster_domain;
        let name = |prefix: &str| {
            Name::parse(&format!("{prefix}{domain}"))
                .map_err(|source| Error::ClusterDomain { domain: domain.clone(), source })
        };
        let apex = name("")?;
        let fixed = |text: &str| {
            Name::parse(text).map_err(|source| Error::ClusterDomain { domain: domain.clone(), source })
        };
        if apex.labels().next().is_none() {
            let source = crate::wire::NameError::EmptyLabel;
            return Err(Error::ClusterDomain { domain, source });
        }
        Ok(Self {
            primary: name("ns.dns.")?,
            mailbox: name("hostmaster.")?,
            services: name("svc.")?,
            in_addr: fixed("in-addr.arpa")?,
            ip6: fixed("ip6.arpa")?,
            apex,
            ttl: config.ttl,
            addresses: config.addresses,
            cidrs: config.cidrs,
        })
    }

    /// The cluster domain.
    pub const fn apex(&self) -> &Name {
        &self.apex
    }
}

/// One snapshot as the zone sees it, with the index that reverse lookups need.
#[derive(Clone, Debug)]
pub struct View {
    zone: Arc<Zone>,
    snapshot: Option<Arc<Snapshot>>,
    serial: u32,
    ttl: u32,
    owners: HashMap<IpAddr, Vec<ObjectName>>,
}

/// What a name and type resolve to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The zone's own answer.
    Ours(Reply),
    /// A name of another zone.
    Elsewhere,
    /// A name of this zone while no snapshot is there: nothing may be said about it.
    Unsynced,
}

/// The records of an authoritative answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Response code.
    pub code: u16,
    /// Answer section.
    pub answer: Vec<Record>,
    /// Authority section: the SOA of a negative answer.
    pub authority: Vec<Record>,
    /// Additional section.
    pub additional: Vec<Record>,
    /// The target of an alias in another zone, whose records complete the answer.
    pub chase: Option<Name>,
}

impl View {
    /// The view before the first snapshot: cluster names are answered SERVFAIL.
    pub fn unsynced(zone: Arc<Zone>) -> Self {
        Self { zone, snapshot: None, serial: 0, ttl: 0, owners: HashMap::new() }
    }

    /// The view of a snapshot that changed at `changed`, which becomes the zone's serial number.
    ///
    /// Costs one pass over the Services and the endpoints of headless ones.
    pub fn new(zone: Arc<Zone>, snapshot: Arc<Snapshot>, changed: SystemTime) -> Self {
        let seconds = changed.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        // Serial numbers wrap (RFC 1982), so the low 32 bits are the right ones.
        let serial = u32::try_from(seconds & u64::from(u32::MAX)).unwrap_or(0);
        let owners = reverse::owners(&snapshot);
        let ttl = if snapshot.stale { zone.ttl.min(STALE_TTL) } else { zone.ttl };
        Self { zone, snapshot: Some(snapshot), serial, ttl, owners }
    }

    /// True when a snapshot is there.
    pub const fn is_synced(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Generation of the snapshot; 0 without one.
    pub fn generation(&self) -> u64 {
        self.snapshot.as_ref().map_or(0, |s| s.generation)
    }

    /// The zone's settings.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// Resolves a name; `seed` decides the order of equal records.
    pub fn resolve(&self, name: &Name, qtype: u16, seed: u64) -> Resolution {
        if let Some(labels) = name.within(&self.zone.apex) {
            return match &self.snapshot {
                Some(snapshot) => {
                    Resolution::Ours(self.resolve_forward(snapshot, name, &labels, (qtype, seed)))
                }
                None => Resolution::Unsynced,
            };
        }
        self.resolve_reverse(name, qtype, seed)
    }

    /// A record of the zone.
    fn record(&self, owner: &Name, data: Data) -> Record {
        Record { owner: owner.clone(), ttl: self.ttl, data }
    }

    /// The SOA record that `owner` has.
    fn soa(&self, owner: &Name) -> Record {
        let zone = &self.zone;
        let data = Data::Soa {
            primary: zone.primary.clone(),
            mailbox: zone.mailbox.clone(),
            serial: self.serial,
            minimum: self.ttl,
        };
        self.record(owner, data)
    }

    /// A negative answer: NXDOMAIN, or NODATA with code NOERROR.
    fn negative(&self, code: u16, apex: &Name) -> Reply {
        Reply { code, authority: vec![self.soa(apex)], ..Reply::default() }
    }

    /// The answer that holds `answer`, or NODATA when there is none.
    fn positive(&self, answer: Vec<Record>, additional: Vec<Record>, apex: &Name) -> Reply {
        if answer.is_empty() {
            return self.negative(rcode::NOERROR, apex);
        }
        Reply { answer, additional, ..Reply::default() }
    }

    /// `<service>.<namespace>.svc.<zone>`.
    fn service_name(&self, service: &ObjectName) -> Option<Name> {
        self.zone.services.child(&service.namespace).ok()?.child(&service.name).ok()
    }
}

/// Endpoints of a Service that DNS publishes, with their slice's ports; each address once a slice.
fn ready_endpoints<'s>(
    snapshot: &'s Snapshot,
    service: &ObjectName,
) -> impl Iterator<Item = (&'s [netd_model::EndpointPort], &'s Endpoint)> {
    snapshot
        .slices_of(service)
        .iter()
        .flat_map(|slice| slice.endpoints.iter().filter(|e| e.ready).map(|e| (slice.ports.as_slice(), e)))
}

/// The label of an endpoint below its Service: its hostname, or else its address with dashes.
fn endpoint_label(endpoint: &Endpoint) -> String {
    if let Some(hostname) = endpoint.hostname.as_ref().filter(|h| !h.is_empty()) {
        return hostname.to_ascii_lowercase();
    }
    let mut label = endpoint.address.to_string().replace(['.', ':'], "-");
    if label.ends_with('-') {
        // "fd00::" would end in a dash, which no host name may (as CoreDNS).
        label.push('0');
    }
    label
}

/// Addresses that the Service's own name has, each once.
fn service_addresses(snapshot: &Snapshot, service: &Service) -> Vec<IpAddr> {
    if !service.headless {
        return service.cluster_ips.clone();
    }
    let endpoints = ready_endpoints(snapshot, &service.name);
    let mut addresses: Vec<IpAddr> = endpoints.map(|(_, endpoint)| endpoint.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

#[cfg(test)]
pub(crate) mod tests;
