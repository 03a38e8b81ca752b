//! What changes while traffic flows: endpoints come and go, ports move, Services change and vanish.

use netd_model::Protocol;

use super::{
    Backs, CLIENT, TCP_8080, To, back, both, cluster, dual, internal, masqueraded, plain, row, scenario,
    standard, step,
};
use crate::conformance::site::Actor;
use crate::conformance::{Row, Scenario, Sketch};

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        endpoints_come_and_go(),
        target_port_moves(),
        service_changes_type(),
        service_moves_and_vanishes(),
        many(),
    ]
}

fn web_rows(number: u8, sketch: fn(Actor, usize) -> Sketch, endpoints: usize) -> Vec<Row> {
    both(|family| {
        let to = To::cluster_ip(number, family, 80);
        [CLIENT, Actor::Host].map(|from| row(from, to, sketch(from, endpoints))).into()
    })
}

fn endpoints_come_and_go() -> Scenario {
    let with = |local, remote| {
        back(cluster().service(dual("cycle", 40).tcp(80)), "cycle", &Backs { ports: TCP_8080, local, remote })
    };
    scenario(
        "endpoints come and go",
        [
            step("three", with(&[1, 2], &[1]), standard(), web_rows(40, internal, 3)),
            step("one leaves", with(&[2], &[1]), standard(), web_rows(40, internal, 2)),
            step("one is left", with(&[2], &[]), standard(), web_rows(40, internal, 1)),
            step("none is left", with(&[], &[]), standard(), web_rows(40, |_, _| Sketch::Reject, 0)),
            step("others come", with(&[1, 3], &[2]), standard(), web_rows(40, internal, 3)),
        ],
    )
}

fn target_port_moves() -> Scenario {
    let with = |number| {
        let ports = [("", Protocol::Tcp, number)];
        back(
            cluster().service(dual("move", 41).tcp(80)),
            "move",
            &Backs { ports: &ports, local: &[1], remote: &[1] },
        )
    };
    scenario(
        "target port moves",
        [
            step("8080", with(8080), standard(), web_rows(41, internal, 2)),
            step("9090", with(9090), standard(), web_rows(41, internal, 2)),
        ],
    )
}

fn service_changes_type() -> Scenario {
    let backs = Backs { ports: TCP_8080, local: &[1], remote: &[] };
    let rows = |node_port: Sketch| {
        both(|family| {
            let port = To::node_port(family, 30090);
            vec![
                row(CLIENT, To::cluster_ip(42, family, 80), plain(1)),
                row(CLIENT, port, node_port),
                row(Actor::Outside, port, node_port),
            ]
        })
    };
    let internal_only = || back(cluster().service(dual("typed", 42).tcp(80)), "typed", &backs);
    let exposed = back(cluster().service(dual("typed", 42).tcp(80).node_port(30090)), "typed", &backs);
    let alias = cluster().service(dual("typed", 42).tcp(80).external_name("example.org"));
    scenario(
        "Service changes its type",
        [
            step("ClusterIP", internal_only(), standard(), rows(Sketch::Pass)),
            step("NodePort", exposed, standard(), rows(masqueraded(1))),
            step("ClusterIP again", internal_only(), standard(), rows(Sketch::Pass)),
            step(
                "ExternalName",
                alias,
                standard(),
                both(|family| vec![row(CLIENT, To::cluster_ip(42, family, 80), Sketch::Pass)]),
            ),
        ],
    )
}

fn service_moves_and_vanishes() -> Scenario {
    let backs = Backs { ports: TCP_8080, local: &[1], remote: &[1] };
    let at = |number| back(cluster().service(dual("nomad", number).tcp(80)), "nomad", &backs);
    let rows = |number, old| {
        both(|family| {
            vec![
                row(CLIENT, To::cluster_ip(number, family, 80), plain(2)),
                row(CLIENT, To::cluster_ip(old, family, 80), Sketch::Pass),
            ]
        })
    };
    scenario(
        "Service moves and vanishes",
        [
            step("at one address", at(43), standard(), rows(43, 44)),
            step("at another", at(44), standard(), rows(44, 43)),
            step(
                "gone",
                cluster(),
                standard(),
                both(|family| {
                    [43, 44].map(|n| row(CLIENT, To::cluster_ip(n, family, 80), Sketch::Pass)).into()
                }),
            ),
        ],
    )
}

/// Enough Services that a mix-up between neighbours shows.
fn many() -> Scenario {
    let mut snapshot = cluster();
    for number in 50..70u8 {
        let name = format!("s{number}");
        snapshot = snapshot.service(dual(&name, number).tcp(80));
        let local = [1 + number % 3];
        let remote: &[u8] = if number % 2 == 0 { &[1] } else { &[] };
        if number % 5 != 0 {
            snapshot = back(snapshot, &name, &Backs { ports: TCP_8080, local: &local, remote });
        }
    }
    let rows = both(|family| {
        let expect = |number: u8| match number {
            n if n % 5 == 0 => Sketch::Reject,
            n if n % 2 == 0 => plain(2),
            _ => plain(1),
        };
        (50..70u8).step_by(3).map(|n| row(CLIENT, To::cluster_ip(n, family, 80), expect(n))).collect()
    });
    scenario("twenty Services", [step("all", snapshot, standard(), rows)])
}
