//! From the thing that a name names to the records of the asked type.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netd_model::{Endpoint, EndpointPort, Protocol, Service, ServicePort, Snapshot};

use super::lookup::Node;
use super::{Reply, View, endpoint_label, ready_endpoints, service_addresses};
use crate::entropy::shuffle;
use crate::wire::{Data, Name, Record, rcode, rtype};

/// The version of the specification that is followed.
const SCHEMA_VERSION: &str = "1.1.0";
/// Time to live of the version record in seconds: the only fixed one.
const SCHEMA_TTL: u32 = 28800;
/// How many aliases within the zone are followed.
const MAX_ALIASES: usize = 8;

/// Selects the port of SRV records: all of them, or one by protocol and name.
type PortChoice<'p> = Option<(Protocol, &'p str)>;

impl View {
    /// Answers a name within the cluster domain.
    pub(super) fn resolve_forward(
        &self,
        snapshot: &Snapshot,
        name: &Name,
        labels: &[&[u8]],
        (qtype, seed): (u16, u64),
    ) -> Reply {
        let mut node = self.find(snapshot, labels);
        let mut owner = name.clone();
        let mut aliases: Vec<Record> = Vec::new();
        let mut chase = None;
        while let Node::Alias(target) = &node {
            let target = target.clone();
            if aliases.iter().any(|r| r.owner == target) || target == owner || aliases.len() >= MAX_ALIASES {
                // Aliases that lead nowhere carry no data.
                return self.negative(rcode::NOERROR, self.zone.apex());
            }
            aliases.push(self.record(&owner, Data::Cname(target.clone())));
            if matches!(qtype, rtype::CNAME | rtype::ANY) {
                return Reply { answer: aliases, ..Reply::default() };
            }
            match target.within(self.zone.apex()) {
                Some(labels) => node = self.find(snapshot, &labels),
                None => chase = Some(target.clone()),
            }
            owner = target;
            if chase.is_some() {
                return Reply { answer: aliases, chase, ..Reply::default() };
            }
        }
        let mut reply = self.records(snapshot, &node, &owner, (qtype, seed));
        aliases.append(&mut reply.answer);
        reply.answer = aliases;
        reply
    }

    /// The records of one type at a node that is no alias.
    fn records(
        &self,
        snapshot: &Snapshot,
        node: &Node<'_>,
        owner: &Name,
        (qtype, seed): (u16, u64),
    ) -> Reply {
        let apex = self.zone.apex();
        let (answer, additional) = match node {
            Node::Missing | Node::Alias(_) => return self.negative(rcode::NXDOMAIN, apex),
            Node::Empty => Default::default(),
            _ if qtype == rtype::ANY => (vec![self.record(owner, Data::MinimalAny)], Vec::new()),
            Node::Apex => self.apex_records(qtype),
            Node::Version => {
                let record = Record { ttl: SCHEMA_TTL, ..self.record(owner, Data::Txt(SCHEMA_VERSION)) };
                (if qtype == rtype::TXT { vec![record] } else { Vec::new() }, Vec::new())
            }
            Node::NameServer => (self.addresses(owner, &self.zone.addresses, qtype), Vec::new()),
            Node::Addresses(addresses) => (self.addresses(owner, addresses, qtype), Vec::new()),
            Node::Service(service) if qtype == rtype::SRV => self.srv(snapshot, service, None, owner),
            Node::Service(service) => {
                (self.addresses(owner, &service_addresses(snapshot, service), qtype), Vec::new())
            }
            Node::Port(service, protocol, port) if qtype == rtype::SRV => {
                self.srv(snapshot, service, Some((*protocol, port)), owner)
            }
            Node::Port(..) => Default::default(),
        };
        let mut answer = answer;
        shuffle(&mut answer, seed);
        self.positive(answer, additional, apex)
    }

    fn apex_records(&self, qtype: u16) -> (Vec<Record>, Vec<Record>) {
        let zone = &self.zone;
        match qtype {
            rtype::SOA => (vec![self.soa(&zone.apex)], Vec::new()),
            rtype::NS => {
                let servers = self.name_servers();
                let answer = servers.iter().map(|s| self.record(&zone.apex, Data::Ns(s.clone()))).collect();
                let glue = servers.iter().flat_map(|s| self.both_families(s, &zone.addresses));
                (answer, glue.collect())
            }
            _ => Default::default(),
        }
    }

    /// Names of this server: the Service that owns the DNS address, or `ns.dns` when none does.
    fn name_servers(&self) -> Vec<Name> {
        let owners = self.zone.addresses.iter().filter_map(|a| self.owners.get(a)).flatten();
        let names: Vec<Name> = owners.filter_map(|service| self.service_name(service)).take(1).collect();
        if names.is_empty() { vec![self.zone.primary.clone()] } else { names }
    }

    /// Address records of the asked type.
    fn addresses(&self, owner: &Name, addresses: &[IpAddr], qtype: u16) -> Vec<Record> {
        self.both_families(owner, addresses).filter(|r| r.data.kind() == qtype).collect()
    }

    fn both_families<'a>(&'a self, owner: &'a Name, addresses: &'a [IpAddr]) -> impl Iterator<Item = Record> {
        addresses.iter().map(|address| self.record(owner, address_data(*address)))
    }

    /// SRV records of a Service and the addresses of their targets.
    fn srv(
        &self,
        snapshot: &Snapshot,
        service: &Service,
        choice: PortChoice<'_>,
        owner: &Name,
    ) -> (Vec<Record>, Vec<Record>) {
        let targets = if service.headless {
            self.headless_targets(snapshot, service, choice)
        } else {
            self.cluster_targets(service, choice)
        };
        let weight = u16::try_from(100 / targets.len().max(1)).unwrap_or(1).max(1);
        let answer = targets.iter().map(|(target, port, _)| {
            self.record(owner, Data::Srv { priority: 0, weight, port: *port, target: target.clone() })
        });
        let answer = answer.collect();
        let mut seen = BTreeSet::new();
        let mut glue = Vec::new();
        for (target, _, addresses) in &targets {
            for address in addresses {
                if seen.insert((target.as_wire().to_vec(), *address)) {
                    glue.push(self.record(target, address_data(*address)));
                }
            }
        }
        (answer, glue)
    }

    fn cluster_targets(&self, service: &Service, choice: PortChoice<'_>) -> Vec<(Name, u16, Vec<IpAddr>)> {
        let Some(name) = self.service_name(&service.name) else { return Vec::new() };
        let chosen = |p: &&ServicePort| choice.is_none_or(|(proto, n)| p.protocol == proto && *p.name == *n);
        let ports = service.ports.iter().filter(chosen);
        ports.map(|p| (name.clone(), p.port.get(), service.cluster_ips.clone())).collect()
    }

    /// Targets of a headless Service: each host name and port once, with all addresses of the name.
    fn headless_targets(
        &self,
        snapshot: &Snapshot,
        service: &Service,
        choice: PortChoice<'_>,
    ) -> Vec<(Name, u16, Vec<IpAddr>)> {
        let Some(parent) = self.service_name(&service.name) else { return Vec::new() };
        let chosen = |p: &&EndpointPort| choice.is_none_or(|(proto, n)| p.protocol == proto && *p.name == *n);
        let mut targets = std::collections::BTreeMap::<(String, u16), Vec<IpAddr>>::new();
        for (ports, endpoint) in ready_endpoints(snapshot, &service.name) {
            for port in ports.iter().filter(chosen) {
                let addresses = targets.entry((endpoint_label(endpoint), port.port.get())).or_default();
                push_new(addresses, endpoint);
            }
        }
        let named = targets
            .into_iter()
            .map(|((label, port), addresses)| (parent.child(&label).ok(), port, addresses));
        named.filter_map(|(name, port, addresses)| Some((name?, port, addresses))).collect()
    }
}

fn push_new(addresses: &mut Vec<IpAddr>, endpoint: &Endpoint) {
    if !addresses.contains(&endpoint.address) {
        addresses.push(endpoint.address);
    }
}

const fn address_data(address: IpAddr) -> Data {
    match address {
        IpAddr::V4(v4) => Data::A(v4),
        IpAddr::V6(v6) => Data::Aaaa(v6),
    }
}
