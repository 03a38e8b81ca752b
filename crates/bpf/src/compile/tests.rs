use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::time::Duration;

use netd_model::{Affinity, ObjectName, Pool, PoolScope, ServicePortName, VerdictBySource};

use super::*;

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

fn name(protocol: Protocol) -> ServicePortName {
    ServicePortName { service: ObjectName::new("default", "web"), port: "http".into(), protocol }
}

fn pool_id(protocol: Protocol) -> PoolId {
    PoolId { port: name(protocol), scope: PoolScope::Cluster }
}

fn key(address: FrontendAddress, protocol: Protocol) -> FrontendKey {
    FrontendKey { address, protocol, port: port(80) }
}

fn vip() -> FrontendAddress {
    FrontendAddress::Ip("10.96.0.10".parse().unwrap())
}

fn balance(masquerade: Masquerade) -> Verdict {
    Verdict::Balance { pool: pool_id(Protocol::Tcp), masquerade, affinity: None }
}

fn frontend(kind: FrontendKind, verdicts: VerdictBySource) -> Frontend {
    Frontend { port: name(Protocol::Tcp), kind, allowed_sources: None, verdicts }
}

fn cluster_ip(verdicts: VerdictBySource) -> Frontend {
    frontend(FrontendKind::ClusterIP, verdicts)
}

/// An IPv4 plan with one frontend and a pool of one endpoint.
fn plan(key: FrontendKey, frontend: Frontend) -> ServicePlan {
    let endpoint = PoolEndpoint { address: "172.16.1.2".parse().unwrap(), port: port(8080), local: true };
    let mut plan = ServicePlan::empty();
    plan.v4.frontends.insert(key, frontend);
    plan.v4.pools.insert(pool_id(Protocol::Tcp), Pool { endpoints: vec![endpoint] });
    plan.v4.local_pods = LocalPods::Prefixes(vec!["172.16.0.0/16".parse().unwrap()]);
    plan
}

fn reason(plan: &ServicePlan) -> String {
    let wanted = compile(plan);
    assert!(wanted.services.is_empty());
    assert_eq!(wanted.refused.len(), 1);
    wanted.refused[0].reason.clone()
}

#[test]
fn a_cluster_address_balances_pods_and_the_host() {
    let verdicts = VerdictBySource {
        pod: balance(Masquerade::Hairpin),
        host: balance(Masquerade::Always),
        other: balance(Masquerade::Always),
    };
    let wanted = compile(&plan(key(vip(), Protocol::Tcp), cluster_ip(verdicts)));
    assert_eq!(wanted.refused, []);
    let service = ServiceKey {
        address: address("10.96.0.10".parse().unwrap()),
        port: 80_u16.to_be(),
        protocol: 6,
        reserved: 0,
    };
    let pool = (Family::V4, pool_id(Protocol::Tcp));
    let side = |masquerade| WantedSide::Balance { pool: pool.clone(), masquerade, affinity_seconds: 0 };
    assert_eq!(wanted.services, BTreeMap::from([(service, [side(true), side(false)])]));
    let endpoint =
        Peer { address: address("172.16.1.2".parse().unwrap()), port: 8080_u16.to_be(), reserved: 0 };
    assert_eq!(wanted.pools, BTreeMap::from([(pool, vec![endpoint])]));
}

#[test]
fn without_pod_detection_pods_are_other_sources() {
    let verdicts = VerdictBySource {
        pod: balance(Masquerade::Hairpin),
        host: balance(Masquerade::Hairpin),
        other: Verdict::Reject,
    };
    let mut plan = plan(key(vip(), Protocol::Tcp), cluster_ip(verdicts));
    plan.v4.local_pods = LocalPods::None;
    let wanted = compile(&plan);
    let sides = wanted.services.values().next().unwrap();
    assert_eq!(sides[netd_ebpf_abi::POD], WantedSide::Reject);
}

#[test]
fn no_endpoints_is_a_refusal_at_the_socket_and_not_a_refused_frontend() {
    let wanted =
        compile(&plan(key(vip(), Protocol::Tcp), cluster_ip(VerdictBySource::same(Verdict::Reject))));
    assert_eq!(wanted.refused, []);
    assert_eq!(wanted.services.values().next().unwrap(), &[WantedSide::Reject, WantedSide::Reject]);
    assert!(wanted.pools.is_empty());
}

#[test]
fn affinity_is_kept_in_seconds_and_never_zero() {
    let verdict = |timeout| Verdict::Balance {
        pool: pool_id(Protocol::Tcp),
        masquerade: Masquerade::Hairpin,
        affinity: Some(Affinity { timeout }),
    };
    for (timeout, seconds) in [(Duration::from_secs(10_800), 10_800), (Duration::ZERO, 1)] {
        let wanted =
            compile(&plan(key(vip(), Protocol::Tcp), cluster_ip(VerdictBySource::same(verdict(timeout)))));
        let WantedSide::Balance { affinity_seconds, .. } = &wanted.services.values().next().unwrap()[0]
        else {
            panic!("not balanced")
        };
        assert_eq!(*affinity_seconds, seconds);
    }
}

#[test]
fn what_a_socket_hook_cannot_do_is_refused_by_name() {
    let same = || VerdictBySource::same(balance(Masquerade::Hairpin));
    let tcp = key(vip(), Protocol::Tcp);
    assert!(
        reason(&plan(
            key(FrontendAddress::NodePort, Protocol::Tcp),
            frontend(FrontendKind::NodePort, same())
        ))
        .contains("node port")
    );
    assert!(reason(&plan(tcp, frontend(FrontendKind::LoadBalancer, same()))).contains("load balancer"));
    assert!(reason(&plan(tcp, frontend(FrontendKind::ExternalIP, same()))).contains("external"));
    assert!(reason(&plan(key(vip(), Protocol::Sctp), cluster_ip(same()))).contains("SCTP"));
    assert!(reason(&plan(tcp, cluster_ip(VerdictBySource::same(Verdict::Drop)))).contains("drop"));
    let always = VerdictBySource::same(balance(Masquerade::Always));
    assert!(reason(&plan(tcp, cluster_ip(always))).contains("masquerading"));
    let ranges = Frontend { allowed_sources: Some(Vec::new()), ..cluster_ip(same()) };
    assert!(reason(&plan(tcp, ranges)).contains("source ranges"));
}

#[test]
fn a_refusal_names_the_frontend_and_the_service() {
    let same = VerdictBySource::same(balance(Masquerade::Hairpin));
    let wanted =
        compile(&plan(key(FrontendAddress::NodePort, Protocol::Tcp), frontend(FrontendKind::NodePort, same)));
    assert_eq!(wanted.refused[0].frontend, "node:80/TCP");
    assert_eq!(wanted.refused[0].service, "default/web:http");
}

#[test]
fn addresses_survive_the_way_into_the_maps_and_back() {
    for text in ["10.96.0.1", "fd00::1", "::1"] {
        let ip_address: IpAddr = text.parse().unwrap();
        assert_eq!(ip(address(ip_address)), ip_address);
    }
}
