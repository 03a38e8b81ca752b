use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::build::{EndpointBuilder, ServiceBuilder, endpoint, ip, service, slice};

const HERE: &str = "here";

/// One row: what the law is, the Service, the endpoints and the sets by last byte of the address.
struct Case {
    law: &'static str,
    service: ServiceBuilder,
    zone: Option<&'static str>,
    endpoints: Vec<EndpointBuilder>,
    cluster: &'static [u8],
    local: &'static [u8],
    all: &'static [u8],
    any: bool,
}

fn ep(last: u8) -> EndpointBuilder {
    endpoint(&format!("10.0.0.{last}"))
}

fn here(last: u8) -> EndpointBuilder {
    ep(last).node(HERE)
}

fn there(last: u8) -> EndpointBuilder {
    ep(last).node("there")
}

fn cluster_ip() -> ServiceBuilder {
    service("web").cluster_ip("10.96.0.1").tcp(80)
}

fn internal_local() -> ServiceBuilder {
    cluster_ip().internal_local()
}

fn external_local() -> ServiceBuilder {
    cluster_ip().node_port(30080).external_local()
}

fn select(service: ServiceBuilder, zone: Option<&str>, slices: &[Arc<EndpointSlice>]) -> EndpointSets {
    let service = service.build();
    let port = &service.ports[0];
    let selector = Selector {
        family: Family::V4,
        port: &port.name,
        protocol: port.protocol,
        policies: Policies::of(&service, port, Family::V4),
        node: HERE,
        zone,
    };
    categorize(&selector, slices)
}

fn last_bytes(endpoints: &[PoolEndpoint]) -> Vec<u8> {
    let last = |endpoint: &PoolEndpoint| match endpoint.address {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    endpoints.iter().map(last).collect()
}

fn check(cases: Vec<Case>) {
    for case in cases {
        let slice = case.endpoints.into_iter().fold(slice("web").tcp(8080), |slice, ep| slice.endpoint(ep));
        let sets = select(case.service, case.zone, &[Arc::new(slice.build())]);
        assert_eq!(last_bytes(&sets.cluster), case.cluster, "cluster set: {}", case.law);
        assert_eq!(last_bytes(&sets.local), case.local, "local set: {}", case.law);
        assert_eq!(last_bytes(&sets.all), case.all, "all: {}", case.law);
        assert_eq!(sets.any, case.any, "any: {}", case.law);
    }
}

#[test]
fn readiness_and_termination_decide_the_cluster_set() {
    let case = |law, endpoints, cluster, any| Case {
        law,
        service: cluster_ip(),
        zone: None,
        endpoints,
        cluster,
        local: &[],
        all: cluster,
        any,
    };
    check(vec![
        case("no endpoint at all", vec![], &[], false),
        case("ready endpoints of every node are used", vec![here(1), there(2)], &[1, 2], true),
        case("an endpoint without a node is used", vec![ep(1)], &[1], true),
        case("what is not ready is left out", vec![here(1), there(2).not_ready()], &[1], true),
        case("nothing ready and nothing draining is nothing", vec![here(1).not_ready()], &[], false),
        case("draining endpoints wait behind ready ones", vec![here(1).draining(), there(2)], &[2], true),
        case(
            "without ready ones all draining ones serve, wherever they are",
            vec![here(1).draining(), there(2).draining(), there(3).gone()],
            &[1, 2],
            true,
        ),
        case("terminating without serving never serves", vec![here(1).gone(), there(2).gone()], &[], false),
        case(
            "serving without terminating and without ready never serves",
            vec![here(1).conditions(false, true, false)],
            &[],
            false,
        ),
    ]);
}

#[test]
fn internal_policy_local_uses_this_node_only() {
    let case = |law, endpoints, local, any| Case {
        law,
        service: internal_local(),
        zone: Some("a"),
        endpoints,
        cluster: &[],
        local,
        all: local,
        any,
    };
    check(vec![
        case("no endpoint at all", vec![], &[], false),
        case("the endpoint of this node", vec![here(1), there(2)], &[1], true),
        case("none here, some elsewhere", vec![there(2)], &[], true),
        case("none here, only draining elsewhere", vec![there(2).draining()], &[], true),
        case("none here, elsewhere not ready", vec![there(2).not_ready()], &[], false),
        case("draining here serves when none is ready here", vec![here(1).draining(), there(2)], &[1], true),
        case("draining here waits behind ready here", vec![here(1).draining(), here(2)], &[2], true),
        case("gone here is not used", vec![here(1).gone(), there(2)], &[], true),
        case("an endpoint without a node is not here", vec![ep(1)], &[], true),
        case(
            "hints never narrow the local set",
            vec![here(1).for_zone("b").for_node("there"), there(2).for_zone("a").for_node(HERE)],
            &[1],
            true,
        ),
    ]);
}

#[test]
fn external_policy_local_keeps_both_sets() {
    let case = |law, endpoints, cluster, local, all, any| Case {
        law,
        service: external_local(),
        zone: Some("a"),
        endpoints,
        cluster,
        local,
        all,
        any,
    };
    check(vec![
        case("no endpoint at all", vec![], &[], &[], &[], false),
        case("both kinds of endpoints", vec![here(1), there(2)], &[1, 2], &[1], &[1, 2], true),
        case("none here", vec![there(2)], &[2], &[], &[2], true),
        case(
            "draining here serves external traffic though the cluster has ready ones",
            vec![here(1).draining(), there(2)],
            &[2],
            &[1],
            &[1, 2],
            true,
        ),
        case(
            "draining everywhere",
            vec![here(1).draining(), there(2).draining()],
            &[1, 2],
            &[1],
            &[1, 2],
            true,
        ),
        case("nothing usable", vec![here(1).gone(), there(2).not_ready()], &[], &[], &[], false),
        case(
            "hints narrow the cluster set and the local set has what they left out",
            vec![here(1).for_zone("b"), there(2).for_zone("a")],
            &[2],
            &[1],
            &[1, 2],
            true,
        ),
    ]);
}

#[test]
fn policies_decide_which_sets_exist() {
    check(vec![
        Case {
            law: "without an external address the policy means nothing",
            service: cluster_ip().external_local(),
            zone: None,
            endpoints: vec![here(1), there(2)],
            cluster: &[1, 2],
            local: &[],
            all: &[1, 2],
            any: true,
        },
        Case {
            law: "internal Local with an external address under policy Cluster needs both",
            service: internal_local().node_port(30080),
            zone: None,
            endpoints: vec![here(1), there(2)],
            cluster: &[1, 2],
            local: &[1],
            all: &[1, 2],
            any: true,
        },
        Case {
            law: "both Local with an external address need both",
            service: internal_local().node_port(30080).external_local(),
            zone: None,
            endpoints: vec![here(1).draining(), there(2).not_ready()],
            cluster: &[1],
            local: &[1],
            all: &[1],
            any: true,
        },
    ]);
}

#[test]
fn zone_hints_are_all_or_nothing() {
    let case = |law, zone, endpoints, cluster| Case {
        law,
        service: cluster_ip(),
        zone,
        endpoints,
        cluster,
        local: &[],
        all: cluster,
        any: true,
    };
    let hinted = || vec![here(1).for_zone("a"), there(2).for_zone("b"), there(3).for_zone("a").for_zone("b")];
    check(vec![
        case("my zone only", Some("a"), hinted(), &[1, 3]),
        case("the other zone", Some("b"), hinted(), &[2, 3]),
        case("a zone nobody names uses all", Some("c"), hinted(), &[1, 2, 3]),
        case("a node without zone uses all", None, hinted(), &[1, 2, 3]),
        case(
            "an empty zone label is no zone",
            Some(""),
            vec![ep(1).for_zone(""), ep(2).for_zone("a")],
            &[1, 2],
        ),
        case("one ready endpoint without hint ends it", Some("a"), vec![ep(1).for_zone("a"), ep(2)], &[1, 2]),
        case(
            "an endpoint without hint that is not ready ends nothing",
            Some("a"),
            vec![ep(1).for_zone("a"), ep(2).for_zone("b"), ep(3).not_ready()],
            &[1],
        ),
        case(
            "my zone's endpoint is not ready: all zones",
            Some("a"),
            vec![ep(1).for_zone("a").not_ready(), ep(2).for_zone("b")],
            &[2],
        ),
        case(
            "draining endpoints are used without regard to hints",
            Some("a"),
            vec![ep(1).for_zone("a").draining(), ep(2).for_zone("b").draining()],
            &[1, 2],
        ),
    ]);
}

#[test]
fn node_hints_come_before_zone_hints() {
    let case = |law, endpoints, cluster| Case {
        law,
        service: cluster_ip(),
        zone: Some("a"),
        endpoints,
        cluster,
        local: &[],
        all: cluster,
        any: true,
    };
    check(vec![
        case(
            "my node only",
            vec![here(1).for_node(HERE).for_zone("a"), there(2).for_node("there").for_zone("a")],
            &[1],
        ),
        case(
            "a remote endpoint may be hinted for my node",
            vec![here(1).for_node("there"), there(2).for_node(HERE)],
            &[2],
        ),
        case(
            "no endpoint for my node: my zone",
            vec![
                there(1).for_node("there").for_zone("a"),
                there(2).for_node("there").for_zone("b"),
                there(3).for_node("there").for_zone("a"),
            ],
            &[1, 3],
        ),
        case(
            "one endpoint without node hint: zones decide",
            vec![here(1).for_node(HERE).for_zone("b"), there(2).for_zone("a")],
            &[2],
        ),
        case(
            "neither names this place: all",
            vec![there(1).for_node("there").for_zone("b"), there(2).for_node("there").for_zone("b")],
            &[1, 2],
        ),
        case(
            "my node's endpoint is draining: my zone",
            vec![
                here(1).for_node(HERE).for_zone("a").draining(),
                there(2).for_node("there").for_zone("a"),
                there(3).for_node("there").for_zone("b"),
            ],
            &[2],
        ),
    ]);
}

#[test]
fn only_ports_of_the_same_name_and_protocol_count() {
    let slices = [
        Arc::new(slice("web").named("a").tcp(8080).udp(5353).on(HERE, "10.0.0.1").build()),
        Arc::new(slice("web").named("b").port("admin", Protocol::Tcp, 9000).on(HERE, "10.0.0.2").build()),
        Arc::new(slice("web").named("c").tcp(8081).on(HERE, "10.0.0.1").build()),
        Arc::new(slice("web").named("d").tcp(8080).on(HERE, "10.0.0.9").not_proxied().build()),
        Arc::new(slice("web").named("e").tcp(8080).on(HERE, "fd00::1").build()),
    ];
    let sets = select(cluster_ip(), None, &slices);
    let found: Vec<(String, u16)> =
        sets.cluster.iter().map(|endpoint| (endpoint.address.to_string(), endpoint.port.get())).collect();
    assert_eq!(found, [("10.0.0.1".to_owned(), 8080), ("10.0.0.1".to_owned(), 8081)]);
}

#[test]
fn an_address_used_again_belongs_to_the_endpoint_that_is_not_terminating() {
    let old = Arc::new(slice("web").named("old").tcp(8080).endpoint(there(1).draining()).build());
    let new = Arc::new(slice("web").named("new").tcp(8080).endpoint(here(1)).build());
    for slices in [[Arc::clone(&old), Arc::clone(&new)], [Arc::clone(&new), Arc::clone(&old)]] {
        let sets = select(external_local(), None, &slices);
        assert_eq!(last_bytes(&sets.cluster), [1]);
        assert_eq!(last_bytes(&sets.local), [1], "the local one is the one that lives");
    }

    let starting = Arc::new(slice("web").named("new").tcp(8080).endpoint(here(1).not_ready()).build());
    let sets = select(cluster_ip(), None, &[old, starting]);
    assert!(!sets.any, "the old pod's drain must not send traffic to the new pod before it is ready");
}

#[test]
fn an_endpoint_in_two_slices_counts_once_and_ready_wins() {
    let slices = [
        Arc::new(slice("web").named("a").tcp(8080).endpoint(here(1).not_ready()).endpoint(there(2)).build()),
        Arc::new(slice("web").named("b").tcp(8080).endpoint(here(1)).endpoint(there(2)).build()),
    ];
    assert_eq!(last_bytes(&select(cluster_ip(), None, &slices).cluster), [1, 2]);
}

#[test]
fn endpoints_are_ascending_by_address_and_port() {
    let slices = [Arc::new(
        slice("web").tcp(9000).tcp(80).endpoint(here(20)).endpoint(there(3)).endpoint(there(3)).build(),
    )];
    let sets = select(cluster_ip(), None, &slices);
    assert!(sets.cluster.is_sorted());
    assert_eq!(last_bytes(&sets.cluster), [3, 3, 20, 20]);
}

#[test]
fn ready_of_a_terminating_endpoint_counts_as_the_controller_says() {
    // publishNotReadyAddresses: the controller writes ready=true, the proxy needs to know nothing.
    let published = here(1).conditions(true, true, true);
    let slices = [Arc::new(slice("web").tcp(8080).endpoint(published).build())];
    assert_eq!(last_bytes(&select(cluster_ip().publish_not_ready(), None, &slices).cluster), [1]);
    let slices = [Arc::new(slice("web").tcp(8080).endpoint(here(1).not_ready()).build())];
    assert!(!select(cluster_ip().publish_not_ready(), None, &slices).any);
}

#[test]
fn addresses_of_the_node_itself_or_of_many_are_refused() {
    let bad_v4 = ["127.0.0.1", "169.254.1.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"];
    let bad_v6 = ["::1", "fe80::1", "::", "ff02::1", "::ffff:10.0.0.1"];
    for (good, bad) in [("10.0.0.1", bad_v4), ("fd00::1", bad_v6)] {
        let mut web = slice("web").tcp(8080).on(HERE, good);
        for address in bad {
            web = web.on(HERE, address);
        }
        let slices = [Arc::new(web.build())];
        let found: Vec<IpAddr> = refused(&slices).into_iter().map(|refused| refused.address).collect();
        let mut expected: Vec<IpAddr> = bad.into_iter().map(ip).collect();
        expected.sort();
        assert_eq!(found, expected);
        if good == "10.0.0.1" {
            assert_eq!(last_bytes(&select(cluster_ip(), None, &slices).cluster), [1]);
        }
    }
    let mixed = [Arc::new(slice("web").tcp(8080).on(HERE, "10.0.0.1").on(HERE, "fd00::1").build())];
    assert_eq!(refused(&mixed).len(), 1, "an address of the other family");
    let hidden = [Arc::new(slice("web").tcp(8080).on(HERE, "127.0.0.1").not_proxied().build())];
    assert!(refused(&hidden).is_empty(), "slices for DNS only are not the proxy's business");
}

#[test]
fn external_access_is_decided_for_each_family() {
    let dual = service("web").cluster_ip("10.96.0.1").cluster_ip("fd96::1").tcp(80).external_local();
    let uses_local = |service: ServiceBuilder, family| {
        let service = service.build();
        Policies::of(&service, &service.ports[0], family).uses_local()
    };
    assert!(!uses_local(dual.clone(), Family::V4));
    assert!(uses_local(dual.clone().vip("192.0.2.1"), Family::V4));
    assert!(!uses_local(dual.clone().vip("192.0.2.1"), Family::V6));
    assert!(uses_local(dual.clone().external_ip("2001:db8::1"), Family::V6));
    assert!(!uses_local(dual.clone().proxy_ingress("192.0.2.1"), Family::V4), "ipMode Proxy is not ours");
    assert!(uses_local(dual.node_port(30080), Family::V6));
}

prop_compose! {
    fn any_endpoint()(
        last in 1u8..6,
        flags in any::<(bool, bool, bool, bool)>(),
        zone in 0u8..3,
        node in 0u8..3,
    ) -> Endpoint {
        let mut made = if flags.3 { here(last) } else { there(last) };
        for (count, name) in [(zone, ["a", "b"]), (node, [HERE, "there"])] {
            for hint in name.iter().take(usize::from(count)) {
                made = if *hint == HERE || *hint == "there" { made.for_node(hint) } else { made.for_zone(hint) };
            }
        }
        let mut made = made.build();
        (made.ready, made.serving, made.terminating) = (flags.0, flags.1, flags.2);
        made
    }
}

proptest! {
    #[test]
    fn the_sets_hold_together(
        endpoints in prop::collection::vec(any_endpoint(), 0..12),
        split in 0usize..12,
        internal in any::<bool>(),
        external in any::<bool>(),
        node_port in any::<bool>(),
        zone in prop::option::of("[ab]"),
    ) {
        let mut web = cluster_ip();
        if internal { web = web.internal_local(); }
        if external { web = web.external_local(); }
        if node_port { web = web.node_port(30080); }
        let slices_of = |endpoints: &[Endpoint], split: usize| -> Vec<Arc<EndpointSlice>> {
            let (a, b) = endpoints.split_at(split.min(endpoints.len()));
            [a, b].into_iter().zip(["a", "b"]).map(|(part, name)| {
                let mut made = slice("web").named(name).tcp(8080).build();
                made.endpoints = part.to_vec();
                Arc::new(made)
            }).collect()
        };
        let sets = select(web.clone(), zone.as_deref(), &slices_of(&endpoints, split));

        let union: BTreeSet<_> = sets.cluster.iter().chain(&sets.local).copied().collect();
        prop_assert_eq!(&sets.all, &union.into_iter().collect::<Vec<_>>());
        prop_assert!(sets.local.iter().all(|endpoint| endpoint.local));
        prop_assert!(sets.any || sets.all.is_empty());
        let policies = { let web = web.clone().build(); Policies::of(&web, &web.ports[0], Family::V4) };
        if sets.any && policies.uses_cluster() {
            prop_assert!(!sets.cluster.is_empty(), "whoever may go anywhere finds somebody");
        }
        if policies.uses_local() && sets.cluster.iter().any(|endpoint| endpoint.local) {
            prop_assert!(!sets.local.is_empty());
        }

        let mut turned = endpoints;
        turned.reverse();
        let again = select(web, zone.as_deref(), &slices_of(&turned, split / 2));
        prop_assert_eq!(sets, again, "order and slicing do not matter");
    }
}
