//! Plans for tests.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use netd_model::{
    Affinity, Family, FamilyPlan, Flow, Frontend, FrontendAddress, FrontendKey, FrontendKind, LocalPods,
    Masquerade, ObjectName, Origin, Pool, PoolEndpoint, PoolId, PoolScope, Protocol, ServicePlan,
    ServicePortName, Verdict, VerdictBySource,
};

use crate::compile::Settings;

pub(crate) const SETTINGS: Settings =
    Settings { mark: 0x1000, random_fully: true, affinity: true, same_address: true };

pub(crate) fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

pub(crate) fn name(service: &str, protocol: Protocol) -> ServicePortName {
    ServicePortName { service: ObjectName::new("default", service), port: "p".into(), protocol }
}

pub(crate) fn pool_id(service: &str, protocol: Protocol, scope: PoolScope) -> PoolId {
    PoolId { port: name(service, protocol), scope }
}

pub(crate) fn endpoints(addresses: &[&str]) -> Pool {
    let endpoint =
        |address: &&str| PoolEndpoint { address: address.parse().unwrap(), port: port(8080), local: false };
    Pool { endpoints: addresses.iter().map(endpoint).collect() }
}

pub(crate) fn balance(pool: PoolId, masquerade: Masquerade) -> Verdict {
    Verdict::Balance { pool, masquerade, affinity: None }
}

pub(crate) fn sticky(pool: PoolId) -> Verdict {
    let affinity = Some(Affinity { timeout: Duration::from_secs(10800) });
    Verdict::Balance { pool, masquerade: Masquerade::Hairpin, affinity }
}

pub(crate) fn at(address: &str, protocol: Protocol, number: u16) -> FrontendKey {
    let address = FrontendAddress::Ip(address.parse().unwrap());
    FrontendKey { address, protocol, port: port(number) }
}

pub(crate) fn node_port(protocol: Protocol, number: u16) -> FrontendKey {
    FrontendKey { address: FrontendAddress::NodePort, protocol, port: port(number) }
}

pub(crate) fn frontend(name: ServicePortName, kind: FrontendKind, verdicts: VerdictBySource) -> Frontend {
    Frontend { port: name, kind, allowed_sources: None, verdicts }
}

/// A family plan in the making.
pub(crate) struct PlanBuilder(FamilyPlan);

impl PlanBuilder {
    pub(crate) fn new(family: Family) -> Self {
        let prefix = match family {
            Family::V4 => "172.16.0.0/16",
            Family::V6 => "fd00:10::/48",
        };
        let local_pods = LocalPods::Prefixes(vec![prefix.parse().unwrap()]);
        Self(FamilyPlan { local_pods, ..FamilyPlan::empty(family) })
    }

    pub(crate) fn change(mut self, change: impl FnOnce(&mut FamilyPlan)) -> Self {
        change(&mut self.0);
        self
    }

    pub(crate) fn pool(mut self, id: PoolId, addresses: &[&str]) -> Self {
        self.0.pools.insert(id, endpoints(addresses));
        self
    }

    pub(crate) fn frontend(mut self, key: FrontendKey, frontend: Frontend) -> Self {
        self.0.frontends.insert(key, frontend);
        self
    }

    pub(crate) fn build(self) -> FamilyPlan {
        self.0
    }

    /// As the part of a whole plan.
    pub(crate) fn whole(self) -> ServicePlan {
        match self.0.family {
            Family::V4 => ServicePlan { v4: self.0, ..ServicePlan::empty() },
            Family::V6 => ServicePlan { v6: self.0, ..ServicePlan::empty() },
        }
    }
}

/// One text for IPv4 and one for IPv6.
fn pick(family: Family, four: &'static str, six: &'static str) -> &'static str {
    if family == Family::V4 { four } else { six }
}

const TCP: Protocol = Protocol::Tcp;

fn cluster(service: &str) -> PoolId {
    pool_id(service, TCP, PoolScope::Cluster)
}

fn local(service: &str) -> PoolId {
    pool_id(service, TCP, PoolScope::Local)
}

fn hairpin(pool: PoolId) -> Verdict {
    balance(pool, Masquerade::Hairpin)
}

fn always(pool: PoolId) -> Verdict {
    balance(pool, Masquerade::Always)
}

/// Every feature a frontend can have, in one plan.
pub(crate) fn everything(family: Family) -> PlanBuilder {
    let a = pick(family, "172.16.1.2", "fd00:10:0:1::2");
    let b = pick(family, "172.16.2.2", "fd00:10:0:2::2");
    let c = pick(family, "172.16.2.3", "fd00:10:0:2::3");
    let builder = PlanBuilder::new(family)
        .pool(cluster("web"), &[a, b, c])
        .pool(cluster("lb"), &[a, b])
        .pool(local("lb"), &[a])
        .pool(cluster("sticky"), &[a, b])
        .pool(pool_id("dns", Protocol::Udp, PoolScope::Cluster), &[a])
        .pool(pool_id("sigtran", Protocol::Sctp, PoolScope::Cluster), &[b]);
    external(family, internal(family, builder))
}

/// Cluster addresses.
fn internal(family: Family, builder: PlanBuilder) -> PlanBuilder {
    let off_cluster = VerdictBySource {
        pod: hairpin(cluster("web")),
        host: always(cluster("web")),
        other: always(cluster("web")),
    };
    let udp = hairpin(pool_id("dns", Protocol::Udp, PoolScope::Cluster));
    let sctp = hairpin(pool_id("sigtran", Protocol::Sctp, PoolScope::Cluster));
    let same = VerdictBySource::same;
    let rows = [
        ("10.96.0.10", "fd00:96::10", TCP, 80, "web", off_cluster),
        ("10.96.0.11", "fd00:96::11", TCP, 80, "lb", same(hairpin(cluster("lb")))),
        ("10.96.0.12", "fd00:96::12", TCP, 80, "sticky", same(sticky(cluster("sticky")))),
        ("10.96.0.53", "fd00:96::53", Protocol::Udp, 53, "dns", same(udp)),
        ("10.96.0.54", "fd00:96::54", Protocol::Sctp, 2905, "sigtran", same(sctp)),
        ("10.96.0.66", "fd00:96::66", TCP, 80, "empty", same(Verdict::Reject)),
        ("10.96.0.66", "fd00:96::66", Protocol::Udp, 80, "empty", same(Verdict::Reject)),
        ("10.96.0.67", "fd00:96::67", TCP, 80, "remote", same(Verdict::Drop)),
    ];
    rows.into_iter().fold(builder, |builder, (four, six, protocol, number, service, verdicts)| {
        let key = at(pick(family, four, six), protocol, number);
        builder.frontend(key, frontend(name(service, protocol), FrontendKind::ClusterIP, verdicts))
    })
}

/// Node ports, load balancer and external addresses.
fn external(family: Family, builder: PlanBuilder) -> PlanBuilder {
    let local_only = VerdictBySource {
        pod: hairpin(cluster("lb")),
        host: always(cluster("lb")),
        other: hairpin(local("lb")),
    };
    let dropped = VerdictBySource { other: Verdict::Drop, ..local_only.clone() };
    let ranges = vec![pick(family, "198.51.100.0/24", "2001:db8:1::/48").parse().unwrap()];
    let same = VerdictBySource::same;
    let web = frontend(name("web", TCP), FrontendKind::NodePort, same(always(cluster("web"))));
    let balancer = frontend(name("lb", TCP), FrontendKind::LoadBalancer, local_only.clone());
    let outside = frontend(name("lb", TCP), FrontendKind::ExternalIP, same(always(cluster("lb"))));
    builder
        .frontend(node_port(TCP, 30080), web)
        .frontend(node_port(TCP, 30081), frontend(name("lb", TCP), FrontendKind::NodePort, local_only))
        .frontend(node_port(TCP, 30082), frontend(name("far", TCP), FrontendKind::NodePort, dropped))
        .frontend(
            at(pick(family, "203.0.113.7", "2001:db8::7"), TCP, 80),
            Frontend { allowed_sources: Some(ranges), ..balancer },
        )
        .frontend(at(pick(family, "192.0.2.9", "2001:db8:9::9"), TCP, 80), outside)
}

/// Flows from every kind of source to every frontend of a plan, and to a stranger.
pub(crate) fn flows(plan: &FamilyPlan) -> Vec<Flow> {
    let v4 = plan.family == Family::V4;
    let parse = |four: &str, six: &str| -> IpAddr { if v4 { four } else { six }.parse().unwrap() };
    let node = parse("192.168.1.101", "2001:db8:ffff::101");
    let stranger = at(if v4 { "10.96.9.9" } else { "fd00:96::9:9" }, Protocol::Tcp, 81);
    let sources = [
        (Origin::LocalPod, parse("172.16.1.2", "fd00:10:0:1::2")),
        (Origin::LocalPod, parse("172.16.1.9", "fd00:10:0:1::9")),
        (Origin::Host, node),
        (Origin::Remote, parse("198.51.100.7", "2001:db8:1::7")),
        (Origin::Remote, parse("192.0.2.77", "2001:db8:2::77")),
    ];
    let mut flows = Vec::new();
    for key in plan.frontends.keys().chain([&stranger]) {
        for (origin, source) in &sources {
            let (destination, destination_is_local) = match key.address {
                FrontendAddress::Ip(address) => (address, address == node),
                FrontendAddress::NodePort => (node, true),
            };
            flows.push(Flow {
                origin: origin.clone(),
                in_interface: None,
                source: *source,
                destination,
                destination_is_local,
                protocol: key.protocol,
                port: key.port,
            });
        }
    }
    flows
}

/// A ruleset as the kernel would have it.
pub(crate) fn installed(plan: &FamilyPlan) -> crate::ruleset::Ruleset {
    installed_with(plan, SETTINGS)
}

/// The same with other settings.
pub(crate) fn installed_with(plan: &FamilyPlan, settings: Settings) -> crate::ruleset::Ruleset {
    let chains = crate::compile::compile(plan, settings).1;
    let jumps = crate::ruleset::wanted_jumps().into_iter().map(Into::into).collect();
    crate::ruleset::Ruleset { chains, jumps }
}

/// Chains and rules as text, sorted by table and name.
pub(crate) fn text(chains: &BTreeMap<crate::ruleset::ChainKey, Vec<crate::ruleset::Line>>) -> String {
    let mut text = String::new();
    for (key, lines) in chains {
        text.push_str(&format!("{} {}\n", key.table.name(), key.name));
        for line in lines {
            text.push_str(&format!("  {line}\n"));
        }
    }
    text
}
