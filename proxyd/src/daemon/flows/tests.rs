use std::collections::BTreeSet;

use netd_model::build::{key, name, node_port_key, node_view, service, slice, snapshot};
use netd_model::{Dirty, FrontendKey, Planner, Protocol, ServicePlan, Snapshot, plan};

use super::*;

const A: &str = "172.16.1.2";
const B: &str = "172.16.1.3";

fn cluster(endpoints: &[&str]) -> Snapshot {
    let mut all = snapshot();
    for (at, protocol) in [("10.96.0.20", Protocol::Udp), ("10.96.0.21", Protocol::Tcp)] {
        let name = format!("{}-service", protocol.lower());
        let mut slice = slice(&name).port("", protocol, 8080);
        for endpoint in endpoints {
            slice = slice.on("n1", endpoint);
        }
        all = all.service(service(&name).cluster_ip(at).port("", protocol, 80).node_port(30080)).slice(slice);
    }
    all.service(service("other").cluster_ip("10.96.0.22").tcp(80))
        .slice(slice("other").tcp(8080).on("n1", A))
        .build()
}

fn planned(endpoints: &[&str]) -> ServicePlan {
    plan(&cluster(endpoints), &node_view("n1"))
}

fn flow(transport: Transport, destination: &str, answers: &str) -> TrackedFlow {
    TrackedFlow {
        transport,
        client: "172.16.1.9:40000".parse().unwrap(),
        destination: destination.parse().unwrap(),
        answers: answers.parse().unwrap(),
        answered: transport == Transport::Udp,
    }
}

/// What a change of all destinations makes stale.
fn change(before: &ServicePlan, now: &ServicePlan) -> Wanted {
    Flows { looked: Some(before.clone()), touched: Touched::All }.wanted(Family::V4, now)
}

#[test]
fn only_flows_of_a_frontend_to_none_of_its_endpoints_are_stale() {
    let now = planned(&[A]);
    for (destination, answers, stale) in [
        ("10.96.0.20:80", "172.16.1.2:8080", false),
        ("10.96.0.20:80", "172.16.1.3:8080", true),
        ("10.96.0.20:80", "172.16.1.2:8081", true),
        // Sent before there were rules, and so not translated.
        ("10.96.0.20:80", "10.96.0.20:80", true),
        ("10.96.0.20:81", "172.16.1.3:8080", false),
        ("192.168.1.101:30080", "172.16.1.3:8080", true),
        ("192.168.1.101:30080", "172.16.1.2:8080", false),
        // Another machine's port of that number.
        ("203.0.113.9:30080", "203.0.113.9:30080", false),
    ] {
        for transport in [Transport::Udp, Transport::Tcp] {
            let destination = match transport {
                Transport::Tcp => destination.replace("0.20:", "0.21:"),
                Transport::Udp | Transport::Sctp => destination.to_owned(),
            };
            let answers =
                answers.replace("0.20:", if transport == Transport::Tcp { "0.21:" } else { "0.20:" });
            let flow = flow(transport, &destination, &answers);
            assert_eq!(Wanted::default().is_stale(&now.v4, &flow), stale, "{flow:?}");
        }
    }
}

#[test]
fn a_connection_that_was_made_stays_with_its_endpoint() {
    let now = planned(&[A]);
    let unanswered = flow(Transport::Tcp, "10.96.0.21:80", "172.16.1.3:8080");
    assert!(Wanted::default().is_stale(&now.v4, &unanswered));
    let made = TrackedFlow { answered: true, ..unanswered };
    assert!(!Wanted::default().is_stale(&now.v4, &made));
}

#[test]
fn flows_of_a_deleted_service_are_stale_and_those_of_nobody_are_not() {
    let before = planned(&[A]);
    let now = ServicePlan::empty();
    let wanted = change(&before, &now);
    assert!(wanted.udp && wanted.unanswered);
    for (destination, answers, stale) in [
        ("10.96.0.20:80", "172.16.1.2:8080", true),
        ("192.168.1.101:30080", "172.16.1.2:8080", true),
        ("10.96.0.20:80", "10.96.0.20:80", false),
        ("10.96.0.99:80", "172.16.1.2:8080", false),
    ] {
        let flow = flow(Transport::Udp, destination, answers);
        assert_eq!(wanted.is_stale(&now.v4, &flow), stale, "{flow:?}");
    }
}

#[test]
fn flows_are_looked_through_only_when_one_can_be_stale() {
    let (none, one, two) = (planned(&[]), planned(&[A]), planned(&[A, B]));
    let nothing = ServicePlan::empty();
    let asked = |before: &ServicePlan, now: &ServicePlan| {
        let wanted = change(before, now);
        (wanted.udp, wanted.unanswered)
    };
    assert_eq!(asked(&two, &one), (true, true), "an endpoint left");
    assert_eq!(asked(&one, &none), (true, true), "the last one left");
    assert_eq!(asked(&nothing, &one), (true, false), "what was sent before the frontend was there");
    assert_eq!(asked(&one, &two), (false, false), "an endpoint came");
    assert_eq!(asked(&none, &one), (false, false), "the first one came");
    assert_eq!(asked(&one, &one), (false, false));
    assert_eq!(
        asked(&none, &nothing),
        (false, true),
        "a TCP Service with an endpoint went; one for UDP had none"
    );
    let first = Flows::default().wanted(Family::V4, &one);
    assert!(first.udp && first.unanswered, "after a start everything is looked at");
    assert_eq!(Flows::default().wanted(Family::V6, &one), Wanted::default(), "no frontend, no flow");
}

#[test]
fn a_change_touches_the_destinations_of_its_services_only() {
    let view = node_view("n1");
    let mut planner = Planner::new(view.clone());
    let (before, _) = planner.update(&cluster(&[A, B]), &view, &Dirty::All);
    let mut flows = Flows { looked: Some(before), touched: Touched::default() };
    let dirty = Dirty::Services(BTreeSet::from([name("tcp-service")]));
    flows.before(&planner, &dirty);
    let (now, scope) = planner.update(&cluster(&[A]), &view, &dirty);
    flows.after(&planner, &scope);
    let Touched::Some(touched) = &flows.touched else { panic!("{:?}", flows.touched) };
    let wanted: BTreeSet<(Family, FrontendKey)> = [
        (Family::V4, key("10.96.0.21", Protocol::Tcp, 80)),
        (Family::V4, node_port_key(Protocol::Tcp, 30080)),
    ]
    .into();
    assert_eq!(touched, &wanted);
    let wanted = flows.wanted(Family::V4, &now);
    assert!(wanted.unanswered && !wanted.udp && wanted.gone.is_empty(), "{wanted:?}");

    // A Service that is deleted had its destinations before.
    let empty = snapshot().build();
    flows.before(&planner, &dirty);
    let (now, scope) = planner.update(&empty, &view, &dirty);
    flows.after(&planner, &scope);
    assert_eq!(flows.wanted(Family::V4, &now).gone.len(), 2);
}
