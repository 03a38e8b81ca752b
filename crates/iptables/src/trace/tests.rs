use netd_model::{
    Expected, Family, FrontendKind, LocalPods, PoolScope, Protocol, ServicePlan, Verdict, VerdictBySource,
    verdict,
};

use super::*;
use crate::compile::Settings;
use crate::testing::*;

fn plan_of(builder: PlanBuilder) -> ServicePlan {
    builder.whole()
}

/// What the oracle says, in the words of a trace.
fn expected(plan: &ServicePlan, flow: &Flow) -> Outcome {
    match verdict(plan, flow) {
        Expected::Balance { endpoints, masquerade } => Outcome::Balance {
            endpoints: endpoints.into_iter().map(|e| PoolEndpoint { local: false, ..e }).collect(),
            masquerade,
        },
        Expected::Reject => Outcome::Reject,
        Expected::Drop => Outcome::Drop,
        Expected::Pass => Outcome::Pass,
    }
}

fn agrees(plan: &ServicePlan, family: Family) {
    let plan_part = plan.family(family);
    for same_address in [true, false] {
        let ruleset = installed_with(plan_part, Settings { same_address, ..SETTINGS });
        for flow in flows(plan_part) {
            let trace = walk(&ruleset, &flow).unwrap();
            assert_eq!(trace.outcome, expected(plan, &flow), "{flow:?}\n{}", trace.steps.join("\n"));
        }
    }
}

#[test]
fn every_flow_ends_where_the_oracle_says() {
    for family in Family::ALL {
        agrees(&plan_of(everything(family)), family);
    }
}

#[test]
fn every_way_to_recognise_pods_agrees_with_the_oracle() {
    let ways = [
        LocalPods::None,
        LocalPods::Prefixes(Vec::new()),
        LocalPods::Prefixes(vec!["172.16.1.0/24".parse().unwrap(), "192.168.1.101/32".parse().unwrap()]),
        LocalPods::BridgeInterface("netd0".into()),
        LocalPods::InterfaceNamePrefix("nd".into()),
    ];
    for way in ways {
        agrees(&plan_of(everything(Family::V4).change(|plan| plan.local_pods = way)), Family::V4);
    }
}

#[test]
fn node_ports_are_not_served_on_loopback() {
    let plan = everything(Family::V4).build();
    let flow = Flow {
        origin: Origin::Host,
        in_interface: None,
        source: "127.0.0.1".parse().unwrap(),
        destination: "127.0.0.1".parse().unwrap(),
        destination_is_local: true,
        protocol: Protocol::Tcp,
        port: NonZeroU16::new(30080).unwrap(),
    };
    assert_eq!(walk(&installed(&plan), &flow).unwrap().outcome, Outcome::Pass);
}

#[test]
fn a_foreign_rule_in_our_chain_is_named_not_guessed() {
    let plan = everything(Family::V4).build();
    let mut ruleset = installed(&plan);
    let services = ChainKey::new(Table::Nat, names::SERVICES);
    let foreign = Line::Foreign("-m limit --limit 1/sec -j ACCEPT".to_owned());
    ruleset.chains.get_mut(&services).unwrap().insert(0, foreign);
    let error = walk(&ruleset, &flows(&plan)[0]).unwrap_err();
    assert!(error.to_string().contains("--limit"), "{error}");
}

/// A number below `limit` that looks random and is the same in every run.
fn below(seed: &mut u64, limit: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % limit
}

/// One Service with up to five destinations, each with any verdict for each class of sources.
fn any_service(seed: &mut u64) -> PlanBuilder {
    let tcp = Protocol::Tcp;
    let pools = [PoolScope::Cluster, PoolScope::Local].map(|scope| pool_id("web", tcp, scope));
    let mut builder = PlanBuilder::new(Family::V4)
        .pool(pools[0].clone(), &["172.16.1.2", "172.16.2.2"])
        .pool(pools[1].clone(), &["172.16.1.2"]);
    let places = [
        (at("10.96.0.1", tcp, 80), FrontendKind::ClusterIP),
        (at("10.96.0.2", tcp, 80), FrontendKind::ClusterIP),
        (node_port(tcp, 30080), FrontendKind::NodePort),
        (at("203.0.113.7", tcp, 80), FrontendKind::LoadBalancer),
        (at("192.168.1.101", tcp, 30080), FrontendKind::ExternalIP),
    ];
    let any = |seed: &mut u64| match below(seed, 10) {
        0 => Verdict::Reject,
        1 => Verdict::Drop,
        2 => balance(pools[1].clone(), Masquerade::Hairpin),
        3 => balance(pools[1].clone(), Masquerade::Always),
        4..7 => balance(pools[0].clone(), Masquerade::Hairpin),
        _ => balance(pools[0].clone(), Masquerade::Always),
    };
    for (key, kind) in places {
        let (pod, other) = (any(seed), any(seed));
        let host = if below(seed, 3) > 0 { other.clone() } else { any(seed) };
        if below(seed, 5) > 0 {
            builder =
                builder.frontend(key, frontend(name("web", tcp), kind, VerdictBySource { pod, host, other }));
        }
    }
    let ways = [
        LocalPods::Prefixes(vec!["172.16.0.0/16".parse().unwrap()]),
        LocalPods::Prefixes(vec!["172.16.1.0/24".parse().unwrap(), "192.0.2.0/24".parse().unwrap()]),
        LocalPods::Prefixes(vec!["0.0.0.0/0".parse().unwrap()]),
        LocalPods::InterfaceNamePrefix("nd".into()),
        LocalPods::None,
    ];
    let way = ways.into_iter().nth(usize::try_from(below(seed, 5)).unwrap()).unwrap();
    builder.change(|plan| plan.local_pods = way)
}

#[test]
fn whatever_the_verdicts_of_a_service_are_the_oracle_agrees() {
    let mut seed = 7;
    for _ in 0..500 {
        agrees(&plan_of(any_service(&mut seed)), Family::V4);
    }
}
