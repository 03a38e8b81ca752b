use netd_model::{Expected, Family, LocalPods, ServicePlan, verdict};

use super::*;
use crate::compile::Settings;
use crate::testing::{PlanBuilder, SETTINGS, everything, flows, installed, installed_with};

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
        protocol: netd_model::Protocol::Tcp,
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
