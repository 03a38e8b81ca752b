use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::build::{
    ServiceBuilder, endpoint, ip, key, name, net, node_port_key, node_view, service, slice, snapshot,
};
use crate::object::{EndpointSlice, Protocol};
use crate::plan::Masquerade;

const HERE: &str = "here";
const VIP: &str = "192.0.2.10";

fn make(snapshot: &Snapshot, node: &NodeView) -> ServicePlan {
    plan(snapshot, node)
}

fn detecting() -> NodeView {
    NodeView { local_pods: LocalPods::Prefixes(vec![net("172.16.0.0/16")]), ..node_view(HERE) }
}

fn web() -> ServiceBuilder {
    service("web").cluster_ip("10.96.0.10").tcp(80)
}

/// The Service with one endpoint here and one elsewhere.
fn with_both(service: ServiceBuilder) -> Snapshot {
    snapshot()
        .service(service)
        .slice(slice("web").tcp(8080).on(HERE, "172.16.1.5").on("there", "172.16.2.5"))
        .build()
}

/// The Service with one endpoint elsewhere.
fn with_remote(service: ServiceBuilder) -> Snapshot {
    snapshot().service(service).slice(slice("web").tcp(8080).on("there", "172.16.2.5")).build()
}

fn verdicts(plan: &ServicePlan, key: &FrontendKey) -> VerdictBySource {
    plan.v4.frontends.get(key).unwrap_or_else(|| panic!("no frontend {key}")).verdicts.clone()
}

fn cluster_ip() -> FrontendKey {
    key("10.96.0.10", Protocol::Tcp, 80)
}

fn node_port() -> FrontendKey {
    node_port_key(Protocol::Tcp, 30080)
}

fn vip() -> FrontendKey {
    key(VIP, Protocol::Tcp, 80)
}

fn balance(scope: PoolScope, masquerade: Masquerade) -> Verdict {
    let port = ServicePortName { service: name("web"), port: "".into(), protocol: Protocol::Tcp };
    Verdict::Balance { pool: PoolId { port, scope }, masquerade, affinity: None }
}

fn reasons(plan: &ServicePlan) -> Vec<&str> {
    plan.notices.iter().map(|notice| notice.reason.as_str()).collect()
}

// === cluster addresses ===

#[test]
fn a_cluster_address_keeps_the_source_when_pods_cannot_be_told() {
    let plan = make(&with_both(web()), &node_view(HERE));
    let expected = VerdictBySource::same(balance(PoolScope::Cluster, Masquerade::Hairpin));
    assert_eq!(verdicts(&plan, &cluster_ip()), expected);
    assert_eq!(plan.v4.frontends.len(), 1);
    assert_eq!(plan.v4.pools.len(), 1);
    assert_eq!(plan.generation, 1);
    assert!(plan.v6.frontends.is_empty() && plan.notices.is_empty());
}

#[test]
fn a_cluster_address_masquerades_what_is_not_a_local_pod() {
    let plan = make(&with_both(web()), &detecting());
    let always = balance(PoolScope::Cluster, Masquerade::Always);
    let expected = VerdictBySource {
        pod: balance(PoolScope::Cluster, Masquerade::Hairpin),
        host: always.clone(),
        other: always,
    };
    assert_eq!(verdicts(&plan, &cluster_ip()), expected);
}

#[test]
fn masquerade_all_masquerades_every_source_of_a_cluster_address() {
    let node = NodeView { masquerade_all: true, ..detecting() };
    let plan = make(&with_both(web().node_port(30080).external_local()), &node);
    let expected = VerdictBySource::same(balance(PoolScope::Cluster, Masquerade::Always));
    assert_eq!(verdicts(&plan, &cluster_ip()), expected);
    let external = verdicts(&plan, &node_port());
    assert_eq!(external.other, balance(PoolScope::Local, Masquerade::Hairpin), "and of nothing else");
}

#[test]
fn internal_policy_local_stays_on_the_node() {
    let plan = make(&with_both(web().internal_local()), &detecting());
    let found = verdicts(&plan, &cluster_ip());
    assert_eq!(found.pod, balance(PoolScope::Local, Masquerade::Hairpin));
    assert_eq!(found.host, balance(PoolScope::Local, Masquerade::Always));
    let pools: Vec<_> = plan.v4.pools.values().map(|pool| pool.endpoints.len()).collect();
    assert_eq!(pools, [1], "only the pool that is named");
}

#[test]
fn internal_policy_local_without_local_endpoint_drops() {
    let plan = make(&with_remote(web().internal_local()), &detecting());
    assert_eq!(verdicts(&plan, &cluster_ip()), VerdictBySource::same(Verdict::Drop));
    assert!(plan.v4.pools.is_empty());
}

#[test]
fn no_endpoint_anywhere_is_refused_on_every_frontend() {
    let all = web().node_port(30080).vip(VIP).external_ip("203.0.113.1").internal_local().external_local();
    let node = NodeView { allowed_external_ips: vec![net("203.0.113.0/24")], ..detecting() };
    let plan = make(&snapshot().service(all).build(), &node);
    assert_eq!(plan.v4.frontends.len(), 4);
    for frontend in plan.v4.frontends.values() {
        assert_eq!(frontend.verdicts, VerdictBySource::same(Verdict::Reject), "{:?}", frontend.kind);
    }
}

#[test]
fn both_families_are_planned_apart() {
    let dual = web().cluster_ip("fd96::10").node_port(30080);
    let snapshot = snapshot()
        .service(dual)
        .slice(slice("web").named("v4").tcp(8080).on(HERE, "172.16.1.5"))
        .slice(slice("web").named("v6").tcp(8080).on(HERE, "fd00:1::5"))
        .build();
    let plan = make(&snapshot, &detecting());
    for (family, vip, endpoint) in
        [(Family::V4, "10.96.0.10", "172.16.1.5"), (Family::V6, "fd96::10", "fd00:1::5")]
    {
        let plan = plan.family(family);
        let keys: Vec<_> = plan.frontends.keys().copied().collect();
        assert_eq!(keys, [key(vip, Protocol::Tcp, 80), node_port()]);
        let members: Vec<_> = plan.pools.values().flat_map(|pool| &pool.endpoints).collect();
        assert_eq!(members.len(), 1);
        assert_eq!(members[0].address, ip(endpoint));
    }
    assert_eq!(plan.v6.local_pods, LocalPods::None, "no prefix of IPv6, no detection");
    let v6 = &plan.v6.frontends[&key("fd96::10", Protocol::Tcp, 80)];
    assert_eq!(v6.verdicts.uniform(), Some(&balance(PoolScope::Cluster, Masquerade::Hairpin)));
}

#[test]
fn a_family_without_cluster_address_has_no_frontend() {
    let single = web().node_port(30080).vip("2001:db8::10");
    let plan = make(&with_both(single), &node_view(HERE));
    assert!(plan.v6.frontends.is_empty());
}

#[test]
fn every_port_is_a_unit_of_its_own() {
    let dns = service("dns")
        .cluster_ip("10.96.0.10")
        .port("dns", Protocol::Udp, 53)
        .port("dns-tcp", Protocol::Tcp, 53)
        .port("sctp", Protocol::Sctp, 53);
    let slice = slice("dns").port("dns", Protocol::Udp, 5353).port("dns-tcp", Protocol::Tcp, 5354);
    let plan = make(&snapshot().service(dns).slice(slice.on(HERE, "172.16.1.5")).build(), &node_view(HERE));
    assert_eq!(plan.v4.frontends.len(), 3);
    assert_eq!(plan.v4.pools.len(), 2);
    let sctp = &plan.v4.frontends[&key("10.96.0.10", Protocol::Sctp, 53)];
    assert_eq!(sctp.verdicts, VerdictBySource::same(Verdict::Reject));
}

#[test]
fn affinity_is_on_every_balance() {
    let timeout = Duration::from_secs(10_800);
    let plan = make(&with_both(web().node_port(30080).external_local().affinity(timeout)), &detecting());
    for frontend in plan.v4.frontends.values() {
        let VerdictBySource { pod, host, other } = &frontend.verdicts;
        for verdict in [pod, host, other] {
            assert!(
                matches!(verdict, Verdict::Balance { affinity: Some(affinity), .. } if affinity.timeout == timeout)
            );
        }
    }
}

// === external traffic ===

#[test]
fn external_policy_cluster_masquerades_everybody() {
    let plan = make(&with_both(web().node_port(30080).vip(VIP)), &detecting());
    let expected = VerdictBySource::same(balance(PoolScope::Cluster, Masquerade::Always));
    assert_eq!(verdicts(&plan, &node_port()), expected);
    assert_eq!(verdicts(&plan, &vip()), expected);
}

#[test]
fn external_policy_local_tells_three_sources_apart() {
    let plan = make(&with_both(web().node_port(30080).vip(VIP).external_local()), &detecting());
    let expected = VerdictBySource {
        pod: balance(PoolScope::Cluster, Masquerade::Hairpin),
        host: balance(PoolScope::Cluster, Masquerade::Always),
        other: balance(PoolScope::Local, Masquerade::Hairpin),
    };
    assert_eq!(verdicts(&plan, &node_port()), expected);
    assert_eq!(verdicts(&plan, &vip()), expected);
    assert_eq!(plan.v4.pools.len(), 2);
}

#[test]
fn external_policy_local_treats_pods_as_others_when_they_cannot_be_told() {
    let plan = make(&with_both(web().node_port(30080).external_local()), &node_view(HERE));
    let found = verdicts(&plan, &node_port());
    assert_eq!(found.pod, found.other);
    assert_eq!(found.other, balance(PoolScope::Local, Masquerade::Hairpin));
    assert_eq!(found.host, balance(PoolScope::Cluster, Masquerade::Always));
}

#[test]
fn external_policy_local_without_local_endpoint_drops_only_what_comes_from_outside() {
    let plan = make(&with_remote(web().node_port(30080).external_local()), &detecting());
    let found = verdicts(&plan, &node_port());
    assert_eq!(found.pod, balance(PoolScope::Cluster, Masquerade::Hairpin));
    assert_eq!(found.host, balance(PoolScope::Cluster, Masquerade::Always));
    assert_eq!(found.other, Verdict::Drop);
    let internal = verdicts(&plan, &cluster_ip());
    assert_eq!(internal.pod, balance(PoolScope::Cluster, Masquerade::Hairpin), "the policies are apart");
}

#[test]
fn draining_local_endpoints_serve_external_traffic() {
    let snapshot = snapshot()
        .service(web().node_port(30080).external_local())
        .slice(
            slice("web")
                .tcp(8080)
                .endpoint(endpoint("172.16.1.5").node(HERE).draining())
                .on("there", "172.16.2.5"),
        )
        .build();
    let plan = make(&snapshot, &detecting());
    let members = |scope| {
        let id = plan.v4.pools.keys().find(|id| id.scope == scope).unwrap();
        plan.v4.pools[id].endpoints.iter().map(|endpoint| endpoint.address).collect::<Vec<_>>()
    };
    assert_eq!(members(PoolScope::Local), [ip("172.16.1.5")]);
    assert_eq!(members(PoolScope::Cluster), [ip("172.16.2.5")]);
}

#[test]
fn proxy_mode_load_balancers_are_not_short_circuited() {
    let plan = make(&with_both(web().proxy_ingress(VIP)), &node_view(HERE));
    assert_eq!(plan.v4.frontends.len(), 1);
}

#[test]
fn a_load_balancer_without_node_port_still_has_its_address() {
    let plan = make(&with_both(web().vip(VIP)), &node_view(HERE));
    assert_eq!(plan.v4.frontends[&vip()].kind, FrontendKind::LoadBalancer);
    assert!(!plan.v4.frontends.contains_key(&node_port()));
}

// === source ranges ===

fn allowed(service: ServiceBuilder, node_addresses: &[&str]) -> (Option<Vec<IpNetwork>>, ServicePlan) {
    let both = with_both(service);
    let node = snapshot().node(HERE, node_addresses).build().nodes;
    let plan = make(&Snapshot { nodes: node, ..both }, &detecting());
    (plan.v4.frontends[&vip()].allowed_sources.clone(), plan)
}

#[test]
fn source_ranges_bind_the_load_balancer_address_only() {
    let service =
        web().node_port(30080).vip(VIP).source_range("198.51.100.9/24").source_range("198.51.100.0/24");
    let (sources, plan) = allowed(service, &["192.168.1.101"]);
    assert_eq!(sources, Some(vec![net("198.51.100.0/24")]), "once, without host bits");
    assert_eq!(plan.v4.frontends[&node_port()].allowed_sources, None);
    assert_eq!(plan.v4.frontends[&cluster_ip()].allowed_sources, None);
}

#[test]
fn a_range_of_length_zero_allows_all() {
    for all in ["0.0.0.0/0", "::/0"] {
        let (sources, _) = allowed(web().vip(VIP).source_range("198.51.100.0/24").source_range(all), &[]);
        assert_eq!(sources, None, "{all}");
    }
}

#[test]
fn a_range_with_the_node_admits_the_address_itself() {
    let (sources, _) = allowed(web().vip(VIP).source_range("192.168.0.0/16"), &["192.168.1.101"]);
    assert_eq!(sources, Some(vec![net("192.0.2.10/32"), net("192.168.0.0/16")]));
}

#[test]
fn ranges_of_one_family_close_the_other() {
    let (sources, plan) = allowed(web().vip(VIP).source_range("2001:db8::/32"), &[]);
    assert_eq!(sources, Some(Vec::new()));
    assert_eq!(reasons(&plan), ["SourceRangesIncomplete"]);
}

// === external addresses ===

#[test]
fn external_addresses_need_leave() {
    let service = web().external_ip("203.0.113.1").external_ip("10.0.0.1");
    let refused = make(&with_both(service.clone()), &node_view(HERE));
    assert_eq!(refused.v4.frontends.len(), 1);
    assert_eq!(reasons(&refused), ["ExternalIPIgnored", "ExternalIPIgnored"]);

    let node = NodeView { allowed_external_ips: vec![net("203.0.113.0/24")], ..detecting() };
    let plan = make(&with_both(service), &node);
    let frontend = &plan.v4.frontends[&key("203.0.113.1", Protocol::Tcp, 80)];
    assert_eq!(frontend.kind, FrontendKind::ExternalIP);
    assert_eq!(frontend.verdicts, VerdictBySource::same(balance(PoolScope::Cluster, Masquerade::Always)));
    assert_eq!(reasons(&plan), ["ExternalIPIgnored"]);
    assert!(plan.notices[0].message.contains("10.0.0.1"));
}

#[test]
fn addresses_that_would_take_the_nodes_own_traffic_are_refused() {
    let node = NodeView { allowed_external_ips: vec![net("0.0.0.0/0")], ..node_view(HERE) };
    let service =
        web().external_ip("127.0.0.1").vip("0.0.0.0").vip("224.0.0.1").external_ip("255.255.255.255");
    let plan = make(&with_both(service), &node);
    assert_eq!(plan.v4.frontends.len(), 1);
    assert_eq!(reasons(&plan), ["AddressRefused"; 4]);
}

#[test]
fn an_address_that_is_both_keeps_its_source_ranges() {
    let node = NodeView { allowed_external_ips: vec![net("0.0.0.0/0")], ..node_view(HERE) };
    let service = web().vip(VIP).external_ip(VIP).source_range("198.51.100.0/24");
    let plan = make(&with_both(service), &node);
    assert_eq!(plan.v4.frontends[&vip()].allowed_sources, Some(vec![net("198.51.100.0/24")]));
    assert!(plan.notices.is_empty());
}

// === what is left out ===

#[test]
fn names_only_and_other_proxies_are_left_out() {
    let left_out = [
        service("headless").tcp(80).headless(),
        service("alias").cluster_ip("10.96.0.11").tcp(80).external_name("example.org"),
        service("other").cluster_ip("10.96.0.12").tcp(80).not_proxied(),
        service("pending").tcp(80).node_port(30081),
    ];
    let snapshot =
        left_out.into_iter().fold(snapshot(), |snapshot, service| snapshot.service(service)).build();
    let plan = make(&snapshot, &node_view(HERE));
    assert_eq!(plan, ServicePlan { generation: 1, ..ServicePlan::empty() });
}

#[test]
fn destinations_answered_on_the_node_are_left_to_it() {
    let mut node = node_view(HERE);
    node.answered_here.insert(cluster_ip());
    let plan = make(&with_both(web().node_port(30080)), &node);
    let keys: Vec<_> = plan.v4.frontends.keys().copied().collect();
    assert_eq!(keys, [node_port()]);
}

#[test]
fn refused_endpoints_are_told_once_and_never_used() {
    let snapshot = snapshot()
        .service(web().port("admin", Protocol::Tcp, 81))
        .slice(
            slice("web")
                .tcp(8080)
                .port("admin", Protocol::Tcp, 9000)
                .on(HERE, "127.0.0.1")
                .on(HERE, "172.16.1.5"),
        )
        .build();
    let plan = make(&snapshot, &node_view(HERE));
    assert_eq!(reasons(&plan), ["EndpointRefused"]);
    assert!(plan.notices[0].message.contains("127.0.0.1"), "{}", plan.notices[0].message);
    assert!(plan.v4.pools.values().all(|pool| pool.endpoints.len() == 1));
}

#[test]
fn node_port_addresses_are_split_by_family() {
    let prefixes = NodePortAddresses::Prefixes(vec![net("192.168.1.7/24")]);
    let plan = make(&snapshot().build(), &NodeView { node_port_addresses: prefixes, ..node_view(HERE) });
    assert_eq!(plan.v4.node_port_addresses, NodePortAddresses::Prefixes(vec![net("192.168.1.0/24")]));
    assert_eq!(plan.v6.node_port_addresses, NodePortAddresses::Prefixes(Vec::new()), "not a wildcard");
}

// === conflicts ===

fn owner(plan: &ServicePlan, key: &FrontendKey) -> String {
    plan.v4.frontends[key].port.service.to_string()
}

#[test]
fn the_older_service_wins_a_destination() {
    let snapshot = snapshot()
        .service(service("a").cluster_ip("10.96.0.1").tcp(80).node_port(30080))
        .service(service("b").cluster_ip("10.96.0.2").tcp(80).node_port(30080).created(200))
        .service(service("c").cluster_ip("10.96.0.3").tcp(80).node_port(30080).created(100))
        .service(service("d").cluster_ip("10.96.0.4").tcp(80).node_port(30080).created(100))
        .build();
    let plan = make(&snapshot, &node_view(HERE));
    assert_eq!(owner(&plan, &node_port()), "default/c", "the older, then the lower name");
    let losers: Vec<String> = plan.notices.iter().map(|notice| notice.service.to_string()).collect();
    assert_eq!(losers, ["default/a", "default/b", "default/d"]);
    assert!(plan.notices.iter().all(|notice| notice.reason == "FrontendConflict"));
    assert!(plan.notices[0].message.contains("node:30080/TCP"), "{}", plan.notices[0].message);
}

#[test]
fn nobody_takes_a_cluster_address_by_claiming_it_as_external() {
    let snapshot = snapshot()
        .service(service("thief").cluster_ip("10.96.0.1").tcp(80).external_ip("10.96.0.10").created(1))
        .service(web().created(2))
        .build();
    let node = NodeView { allowed_external_ips: vec![net("0.0.0.0/0")], ..node_view(HERE) };
    let plan = make(&snapshot, &node);
    assert_eq!(owner(&plan, &cluster_ip()), "default/web");
    assert_eq!(plan.notices.len(), 1);
    assert_eq!(plan.notices[0].service, name("thief"));
}

#[test]
fn the_same_port_number_with_another_protocol_is_no_conflict() {
    let snapshot = snapshot()
        .service(web().port("u", Protocol::Udp, 80))
        .service(service("b").cluster_ip("10.96.0.11").tcp(80))
        .build();
    let plan = make(&snapshot, &node_view(HERE));
    assert_eq!(plan.v4.frontends.len(), 3);
    assert!(plan.notices.is_empty());
}

// === laws over many snapshots ===

prop_compose! {
    fn any_service()(
        index in 0u8..6,
        address in 0u8..4,
        dual in any::<bool>(),
        node_port in prop::option::of(0u16..3),
        external in prop::option::of(0u8..3),
        vip in prop::option::of(0u8..3),
        locals in any::<(bool, bool)>(),
        created in prop::option::of(0i64..3),
        ranged in any::<bool>(),
    ) -> ServiceBuilder {
        let mut made = service(&format!("s{index}")).cluster_ip(&format!("10.96.0.{address}"));
        if dual { made = made.cluster_ip(&format!("fd96::{address}")); }
        made = made.tcp(80);
        if let Some(number) = node_port { made = made.node_port(30000 + number); }
        made = made.port("dns", Protocol::Udp, 53);
        if let Some(last) = external { made = made.external_ip(&format!("203.0.113.{last}")); }
        if let Some(last) = vip { made = made.vip(&format!("192.0.2.{last}")).vip(&format!("2001:db8::{last}")); }
        if locals.0 { made = made.internal_local(); }
        if locals.1 { made = made.external_local(); }
        if let Some(seconds) = created { made = made.created(seconds); }
        if ranged { made = made.source_range("198.51.100.0/24"); }
        made
    }
}

prop_compose! {
    fn any_slice()(
        index in 0u8..6,
        name in "[a-d]",
        v6 in any::<bool>(),
        members in prop::collection::vec((0u8..5, any::<bool>(), 0u8..4), 0..5),
    ) -> EndpointSlice {
        let mut made = slice(&format!("s{index}")).named(&name).tcp(8080).port("dns", Protocol::Udp, 5353);
        for (last, is_here, state) in members {
            let address = if v6 { format!("fd00::{last}") } else { format!("172.16.0.{last}") };
            let member = endpoint(&address).node(if is_here { HERE } else { "there" });
            made = made.endpoint(match state {
                0 => member.not_ready(),
                1 => member.draining(),
                _ => member,
            });
        }
        made.build()
    }
}

/// Puts objects into a snapshot in the given order, as a watch that saw them in that order would.
fn assemble(services: &[ServiceBuilder], slices: &[EndpointSlice]) -> Snapshot {
    let mut made = snapshot().node(HERE, &["198.51.100.1"]);
    for service in services {
        made = made.service(service.clone());
    }
    let mut made = made.build();
    for slice in slices {
        let mut slices = made.slices.remove(&slice.service).unwrap_or_default();
        slices.push(Arc::new(slice.clone()));
        made.slices.insert(slice.service.clone(), slices);
    }
    made
}

fn assert_sound(plan: &FamilyPlan) -> Result<(), TestCaseError> {
    let mut named = BTreeSet::new();
    for (key, frontend) in &plan.frontends {
        if let FrontendAddress::Ip(address) = key.address {
            prop_assert_eq!(Family::of(address), plan.family);
        }
        prop_assert_eq!(key.protocol, frontend.port.protocol);
        named.extend(named_pools(frontend).cloned());
    }
    let pools: BTreeSet<PoolId> = plan.pools.keys().cloned().collect();
    prop_assert_eq!(named, pools, "pools are those that frontends name");
    for (id, pool) in &plan.pools {
        prop_assert!(!pool.endpoints.is_empty());
        prop_assert!(pool.endpoints.windows(2).all(|pair| pair[0] < pair[1]), "ascending, each once");
        prop_assert!(pool.endpoints.iter().all(|endpoint| Family::of(endpoint.address) == plan.family));
        prop_assert!(id.scope == PoolScope::Cluster || pool.endpoints.iter().all(|endpoint| endpoint.local));
    }
    Ok(())
}

proptest! {
    #[test]
    fn plans_are_sound_and_independent_of_order(
        services in prop::collection::vec(any_service(), 0..6),
        slices in prop::collection::vec(any_slice(), 0..8),
        detect in any::<bool>(),
        masquerade_all in any::<bool>(),
    ) {
        let mut unique: BTreeMap<_, _> = BTreeMap::new();
        for service in services {
            unique.insert(service.clone().build().name, service);
        }
        let mut services: Vec<ServiceBuilder> = unique.into_values().collect();
        let mut slices = slices;
        let local_pods = if detect { detecting().local_pods } else { LocalPods::None };
        let node = NodeView {
            local_pods,
            masquerade_all,
            allowed_external_ips: vec![net("203.0.113.0/31")],
            ..node_view(HERE)
        };
        let first = make(&assemble(&services, &slices), &node);
        assert_sound(&first.v4)?;
        assert_sound(&first.v6)?;
        prop_assert!(first.notices.is_sorted());

        services.reverse();
        slices.reverse();
        for slice in &mut slices {
            slice.endpoints.reverse();
            slice.ports.reverse();
        }
        prop_assert_eq!(first, make(&assemble(&services, &slices), &node));
    }
}
