use std::collections::btree_map::Entry;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use proptest::prelude::*;

use super::*;
use crate::build::{ServiceBuilder, endpoint, name, net, node_port_key, node_view, service, slice, snapshot};
use crate::object::{Protocol, TrafficPolicy};
use crate::plan::{LocalPods, Verdict, plan};

const HERE: &str = "here";
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// One thing that happens in a cluster.
#[derive(Clone, Debug)]
enum Event {
    Service(usize, Option<Shape>),
    Slices(usize, Vec<SliceShape>),
    /// Zone, and whether the node has an address in the source ranges.
    Node(Option<u8>, bool),
}

/// A Service that gets in others' way: few addresses, ports and ages for all.
#[derive(Clone, Debug)]
struct Shape {
    cluster_ip: u8,
    dual: bool,
    ports: Vec<(u8, bool, Option<u8>)>,
    external_ip: Option<u8>,
    vip: Option<u8>,
    ranges: bool,
    created: Option<i64>,
    local: (bool, bool),
    /// Whether dataplanes program it.
    proxied: bool,
}

#[derive(Clone, Debug)]
struct SliceShape {
    v6: bool,
    port: u8,
    udp: bool,
    /// Last byte, whether here, condition, zone hint.
    endpoints: Vec<(u8, bool, u8, Option<u8>)>,
}

prop_compose! {
    fn any_shape()(
        cluster_ip in 0u8..4,
        dual in any::<bool>(),
        ports in prop::collection::vec((0u8..3, any::<bool>(), prop::option::of(0u8..3)), 1..3),
        external_ip in prop::option::weighted(0.3, 0u8..6),
        vip in prop::option::weighted(0.3, 0u8..3),
        ranges in any::<bool>(),
        created in prop::option::of(0i64..3),
        local in any::<(bool, bool)>(),
        proxied in prop::bool::weighted(0.9),
    ) -> Shape {
        Shape { cluster_ip, dual, ports, external_ip, vip, ranges, created, local, proxied }
    }
}

prop_compose! {
    fn any_slice()(
        v6 in prop::bool::weighted(0.3),
        port in 0u8..3,
        udp in any::<bool>(),
        endpoints in prop::collection::vec((0u8..6, any::<bool>(), 0u8..4, prop::option::of(0u8..2)), 0..4),
    ) -> SliceShape {
        SliceShape { v6, port, udp, endpoints }
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    let index = 0..NAMES.len();
    prop_oneof![
        5 => (index.clone(), prop::option::weighted(0.8, any_shape())).prop_map(|(i, s)| Event::Service(i, s)),
        5 => (index, prop::collection::vec(any_slice(), 0..3)).prop_map(|(i, s)| Event::Slices(i, s)),
        1 => (prop::option::of(0u8..2), any::<bool>()).prop_map(|(zone, near)| Event::Node(zone, near)),
    ]
}

fn make_service(i: usize, shape: &Shape) -> Service {
    let mut made: ServiceBuilder = service(NAMES[i]).cluster_ip(&format!("10.96.0.{}", shape.cluster_ip));
    if shape.dual {
        made = made.cluster_ip(&format!("fd00:96::{}", shape.cluster_ip));
    }
    let mut names = BTreeSet::new();
    // As in the API, the names of a Service's ports are unique.
    for (number, udp, node_port) in shape.ports.iter().filter(|(number, ..)| names.insert(*number)) {
        let protocol = if *udp { Protocol::Udp } else { Protocol::Tcp };
        made = made.port(&format!("p{number}"), protocol, 80 + u16::from(number % 2));
        if let Some(node_port) = node_port {
            made = made.node_port(30_000 + u16::from(*node_port));
        }
    }
    if let Some(last) = shape.external_ip {
        made = made.external_ip(&format!("10.96.0.{last}"));
    }
    if let Some(last) = shape.vip {
        made = made.vip(&format!("203.0.113.{last}"));
    }
    let mut made = made.build();
    let policy = |local| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
    made.created = shape.created;
    made.internal_traffic_policy = policy(shape.local.0);
    made.external_traffic_policy = policy(shape.local.1);
    made.proxied = shape.proxied;
    if shape.ranges {
        made.source_ranges = vec![net("198.51.100.0/24")];
    }
    made
}

fn happen(cluster: &mut Snapshot, view: &mut NodeView, dirty: &mut BTreeSet<ObjectName>, event: &Event) {
    match event {
        Event::Service(i, shape) => {
            let name = name(NAMES[*i]);
            match shape {
                Some(shape) => cluster.services.insert(name.clone(), Arc::new(make_service(*i, shape))),
                None => cluster.services.remove(&name),
            };
            dirty.insert(name);
        }
        Event::Slices(i, shapes) => {
            let name = name(NAMES[*i]);
            let slices = shapes.iter().enumerate().map(|(number, shape)| {
                let protocol = if shape.udp { Protocol::Udp } else { Protocol::Tcp };
                let mut made = slice(NAMES[*i]).named(&format!("{}-{number}", NAMES[*i])).port(
                    &format!("p{}", shape.port),
                    protocol,
                    8080,
                );
                for (last, here, state, hint) in &shape.endpoints {
                    let address =
                        if shape.v6 { format!("fd00::1:{last}") } else { format!("172.16.0.{}", last + 1) };
                    let member = endpoint(&address).node(if *here { HERE } else { "there" });
                    let member = match state {
                        0 => member.not_ready(),
                        1 => member.draining(),
                        _ => member,
                    };
                    made = made.endpoint(match hint {
                        Some(zone) => member.for_zone(&format!("z{zone}")),
                        None => member,
                    });
                }
                Arc::new(made.build())
            });
            let slices: Vec<_> = slices.collect();
            if slices.is_empty() {
                cluster.slices.remove(&name);
            } else {
                cluster.slices.insert(name.clone(), slices);
            }
            dirty.insert(name);
        }
        Event::Node(zone, near) => {
            let address = if *near { "198.51.100.7" } else { "192.0.2.7" };
            cluster.nodes = snapshot().node(HERE, &[address]).build().nodes;
            view.zone = zone.map(|zone| format!("z{zone}").into());
        }
    }
}

/// Who has which destination, settled the simple way: all claims in order, the first one has it.
fn settled(cluster: &Snapshot, view: &NodeView, family: Family) -> BTreeMap<FrontendKey, Frontend> {
    let mut services: Vec<&Arc<Service>> = cluster.services.values().collect();
    services.sort_by_key(|service| age(service));
    let claims =
        services.iter().flat_map(|s| build::claims(cluster, view, &s.name).family(family).frontends.clone());
    let (cluster_ips, others): (Vec<_>, Vec<_>) = claims.partition(|(_, claim)| !is_secondary(claim));
    let mut held = BTreeMap::new();
    for (key, claim) in cluster_ips.into_iter().chain(others) {
        if let Entry::Vacant(free) = held.entry(key) {
            free.insert(claim);
        }
    }
    held
}

/// No frontend leads to what is not there: each pool exists, and its endpoints are in the slices.
fn assert_leads_somewhere(cluster: &Snapshot, plan: &FamilyPlan) -> Result<(), TestCaseError> {
    for frontend in plan.frontends.values() {
        for id in build::named_pools(frontend) {
            let pool = plan.pools.get(id);
            prop_assert!(pool.is_some_and(|pool| !pool.endpoints.is_empty()), "{:?} has no endpoints", id);
            let known: BTreeSet<IpAddr> = cluster
                .slices_of(&id.port.service)
                .iter()
                .flat_map(|slice| &slice.endpoints)
                .filter(|endpoint| endpoint.ready || endpoint.serving)
                .map(|endpoint| endpoint.address)
                .collect();
            let endpoints = pool.into_iter().flat_map(|pool| &pool.endpoints);
            prop_assert!(endpoints.map(|e| e.address).all(|address| known.contains(&address)));
        }
    }
    Ok(())
}

/// Services whose frontends or pools are not the same in both plans.
fn differing(before: &FamilyPlan, after: &FamilyPlan) -> BTreeSet<ObjectName> {
    let frontends = |a: &FamilyPlan, b: &FamilyPlan| -> Vec<ObjectName> {
        let changed = a.frontends.iter().filter(|(key, frontend)| b.frontends.get(*key) != Some(frontend));
        changed.map(|(_, frontend)| frontend.port.service.clone()).collect()
    };
    let pools = |a: &FamilyPlan, b: &FamilyPlan| -> Vec<ObjectName> {
        let changed = a.pools.iter().filter(|(id, pool)| b.pools.get(*id) != Some(pool));
        changed.map(|(id, _)| id.port.service.clone()).collect()
    };
    let both =
        [frontends(before, after), frontends(after, before), pools(before, after), pools(after, before)];
    both.into_iter().flatten().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// The law of this module: whatever happens in whatever order, the plan is the one made from scratch, the
    /// scope names all that differs, and no step leads a frontend to what is not there.
    #[test]
    fn a_plan_that_follows_events_equals_one_from_scratch(
        events in prop::collection::vec(any_event(), 1..40),
        batch in 1usize..4,
    ) {
        let mut view = NodeView {
            local_pods: LocalPods::Prefixes(vec![net("172.16.0.0/16")]),
            allowed_external_ips: vec![net("10.96.0.0/30")],
            ..node_view(HERE)
        };
        let mut cluster = Snapshot::default();
        let mut planner = Planner::new(view.clone());
        planner.update(&cluster, &view, &Dirty::All);
        for events in events.chunks(batch) {
            let before = planner.current().clone();
            let mut dirty = BTreeSet::new();
            for event in events {
                happen(&mut cluster, &mut view, &mut dirty, event);
            }
            cluster.generation += 1;
            let (planned, scope) = planner.update(&cluster, &view, &Dirty::Services(dirty));
            prop_assert_eq!(&planned, &plan(&cluster, &view));
            for family in Family::ALL {
                let (old, new) = (before.family(family), planned.family(family));
                let held: BTreeMap<_, _> = new.frontends.iter().map(|(k, f)| (*k, f.clone())).collect();
                prop_assert_eq!(held, settled(&cluster, &view, family));
                assert_leads_somewhere(&cluster, new)?;
                if let Scope::Services(named) = &scope {
                    prop_assert!(differing(old, new).is_subset(named));
                }
            }
        }
    }
}

fn lb(service_name: &str, number: u8, created: i64) -> ServiceBuilder {
    service(service_name).cluster_ip(&format!("10.96.0.{number}")).tcp(80).node_port(30_080).created(created)
}

#[test]
fn a_destination_goes_to_the_next_claimant_and_both_are_in_scope() {
    let backs = |service: &str| slice(service).tcp(8080).on(HERE, "172.16.0.5");
    let cluster = snapshot()
        .service(lb("older", 1, 1))
        .service(lb("younger", 2, 2))
        .service(lb("other", 3, 3).tcp(81))
        .slice(backs("older"))
        .slice(backs("younger"))
        .build();
    let view = node_view(HERE);
    let mut planner = Planner::new(view.clone());
    let (first, scope) = planner.update(&cluster, &view, &Dirty::All);
    assert_eq!(scope, Scope::Full);
    assert_eq!(first.notices.len(), 2, "{:?}", first.notices);
    let key = node_port_key(Protocol::Tcp, 30_080);
    assert_eq!(first.v4.frontends[&key].port.service, name("older"));

    let mut gone = cluster.clone();
    gone.services.remove(&name("older"));
    let (second, scope) = planner.update(&gone, &view, &Dirty::Services([name("older")].into()));
    assert_eq!(second.v4.frontends[&key].port.service, name("younger"));
    assert_eq!(scope, Scope::Services([name("older"), name("younger")].into()));
    assert_eq!(second.notices.len(), 1);
    let (third, scope) = planner.update(&cluster, &view, &Dirty::Services([name("older")].into()));
    assert_eq!(ServicePlan { generation: first.generation, ..third }, first);
    assert_eq!(scope, Scope::Services([name("older"), name("younger")].into()));
}

#[test]
fn what_concerns_the_whole_node_is_planned_in_full_and_nothing_else_is() {
    let web = lb("web", 1, 1).vip("203.0.113.1");
    let mut cluster =
        snapshot().service(web).node(HERE, &["192.168.1.10"]).node("there", &["192.168.1.11"]).build();
    let mut view = node_view(HERE);
    let mut planner = Planner::new(view.clone());
    let none = Dirty::Services(BTreeSet::new());
    assert_eq!(planner.update(&cluster, &view, &none).1, Scope::Full, "the first plan");
    assert_eq!(planner.update(&cluster, &view, &none).1, Scope::Services(BTreeSet::new()));
    cluster.nodes.remove("there");
    assert_eq!(planner.update(&cluster, &view, &none).1, Scope::Services(BTreeSet::new()), "another node");
    cluster.nodes.remove(HERE);
    assert_eq!(planner.update(&cluster, &view, &none).1, Scope::Full, "the node's addresses");
    view.zone = Some("z1".into());
    assert_eq!(planner.update(&cluster, &view, &none).1, Scope::Full, "its zone");
    let ranges: Vec<IpNetwork> = vec![net("172.16.0.0/16")];
    view.local_pods = LocalPods::Prefixes(ranges);
    assert_eq!(planner.update(&cluster, &view, &none).1, Scope::Full, "its pods");
}

#[test]
fn a_change_of_one_service_leaves_all_else_where_it_is() {
    let mut cluster = snapshot();
    for number in 0..200 {
        let name = format!("s{number}");
        cluster = cluster
            .service(service(&name).cluster_ip(&format!("10.96.1.{number}")).tcp(80))
            .slice(slice(&name).tcp(8080).on(HERE, "172.16.0.5"));
    }
    let mut cluster = cluster.build();
    let view = node_view(HERE);
    let mut planner = Planner::new(view.clone());
    let (before, _) = planner.update(&cluster, &view, &Dirty::All);
    let more = slice("s7").tcp(8080).on(HERE, "172.16.0.5").on(HERE, "172.16.0.6").build();
    cluster.slices.insert(name("s7"), vec![Arc::new(more)]);
    let (after, scope) = planner.update(&cluster, &view, &Dirty::Services([name("s7")].into()));
    assert_eq!(scope, Scope::Services([name("s7")].into()));
    assert!(after.v4.frontends.is_same(&before.v4.frontends), "no frontend changed");
    let moved = |verdict: &Verdict| matches!(verdict, Verdict::Balance { .. });
    assert!(after.v4.frontends.values().all(|frontend| moved(&frontend.verdicts.pod)));
    assert_eq!(differing(&before.v4, &after.v4), BTreeSet::from([name("s7")]));
}
