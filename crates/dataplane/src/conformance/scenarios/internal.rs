//! Cluster addresses.

use std::time::Duration;

use netd_model::{Family, FrontendAddress, FrontendKey, LocalPods, NodeView, Protocol};

use super::{
    Backs, CLIENT, EVERYBODY, TCP_8080, To, UDP_5353, back, back_as, both, cluster, dual, each, internal,
    masqueraded, plain, row, scenario, standard, step, undetected,
};
use crate::conformance::site::{self, Actor};
use crate::conformance::{Feature, Row, Scenario, Sketch};

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        one_port(),
        several_ports(),
        no_endpoints(),
        hairpin(),
        source_address(),
        interface_detection(),
        internal_policy_local(),
        affinity(),
        draining(),
        topology(),
        refused_endpoint(),
        sctp(),
        answered_here(),
    ]
}

const THREE: Backs<'static> = Backs { ports: TCP_8080, local: &[1, 2], remote: &[1] };

fn one_port() -> Scenario {
    let tcp = back(cluster().service(dual("web", 1).tcp(80)), "web", &THREE);
    let udp_backs = Backs { ports: UDP_5353, local: &[1, 2], remote: &[1] };
    let udp = back(cluster().service(dual("dns", 2).udp(53)), "dns", &udp_backs);
    scenario(
        "cluster address",
        [
            step(
                "TCP",
                tcp,
                standard(),
                both(|family| {
                    each(&EVERYBODY, |from| row(from, To::cluster_ip(1, family, 80), internal(from, 3)))
                }),
            ),
            step(
                "UDP",
                udp,
                standard(),
                both(|family| {
                    let to = To::cluster_ip(2, family, 53).by(Protocol::Udp);
                    each(&EVERYBODY, |from| row(from, to, internal(from, 3)))
                }),
            ),
        ],
    )
}

fn several_ports() -> Scenario {
    let service = dual("many", 3)
        .port("http", Protocol::Tcp, 80)
        .port("admin", Protocol::Tcp, 81)
        .port("dns", Protocol::Udp, 53)
        .port("dns-tcp", Protocol::Tcp, 53);
    let ports = [
        ("http", Protocol::Tcp, 8080),
        ("admin", Protocol::Tcp, 9090),
        ("dns", Protocol::Udp, 5353),
        ("dns-tcp", Protocol::Tcp, 5353),
    ];
    let backs = Backs { ports: &ports, local: &[1], remote: &[2] };
    let rows = both(|family| {
        let to = |port, protocol| To::cluster_ip(3, family, port).by(protocol);
        vec![
            row(CLIENT, to(80, Protocol::Tcp), plain(2)),
            row(CLIENT, to(81, Protocol::Tcp), plain(2)),
            row(CLIENT, to(53, Protocol::Udp), plain(2)),
            row(CLIENT, to(53, Protocol::Tcp), plain(2)),
            row(CLIENT, to(82, Protocol::Tcp), Sketch::Pass),
            row(CLIENT, to(80, Protocol::Udp), Sketch::Pass),
        ]
    });
    scenario(
        "several ports",
        [step("all", back(cluster().service(service), "many", &backs), standard(), rows)],
    )
}

fn no_endpoints() -> Scenario {
    let empty = cluster().service(dual("void", 4).tcp(80).port("u", Protocol::Udp, 53));
    let ports = [("", Protocol::Tcp, 8080), ("u", Protocol::Udp, 5353)];
    let backs = Backs { ports: &ports, local: &[1], remote: &[1] };
    let unready = back_as(empty.clone(), "void", &backs, |_, endpoint| endpoint.not_ready());
    let rows = || {
        both(|family| {
            let tcp = To::cluster_ip(4, family, 80);
            let udp = To::cluster_ip(4, family, 53).by(Protocol::Udp);
            let mut rows = each(&EVERYBODY, |from| row(from, tcp, Sketch::Reject));
            rows.extend(each(&EVERYBODY, |from| row(from, udp, Sketch::Reject)));
            rows
        })
    };
    scenario(
        "no endpoints",
        [step("none", empty, standard(), rows()), step("none ready", unready, standard(), rows())],
    )
}

fn hairpin() -> Scenario {
    let service = dual("self", 5).tcp(80).port("u", Protocol::Udp, 53);
    let ports = [("", Protocol::Tcp, 8080), ("u", Protocol::Udp, 5353)];
    let alone = Backs { ports: &ports, local: &[1], remote: &[] };
    let pair = Backs { ports: &ports, local: &[1, 2], remote: &[1] };
    let rows = |endpoints| {
        both(|family| {
            let tcp = To::cluster_ip(5, family, 80);
            let udp = To::cluster_ip(5, family, 53).by(Protocol::Udp);
            [tcp, udp].map(|to| row(Actor::Pod(1), to, plain(endpoints)).needs([Feature::Hairpin])).into()
        })
    };
    let snapshot = |backs| back(cluster().service(service.clone()), "self", backs);
    scenario(
        "hairpin",
        [
            step("alone", snapshot(&alone), standard(), rows(1)),
            step("among others", snapshot(&pair), standard(), rows(3)),
            step("without detection", snapshot(&alone), undetected(), rows(1)),
        ],
    )
}

fn source_address() -> Scenario {
    let snapshot = || back(cluster().service(dual("web", 6).tcp(80)), "web", &THREE);
    let rows = |sketch: fn(Actor) -> Sketch| {
        both(|family| each(&EVERYBODY, |from| row(from, To::cluster_ip(6, family, 80), sketch(from))))
    };
    let all = NodeView { masquerade_all: true, ..standard() };
    let all_rows: Vec<Row> =
        rows(|_| masqueraded(3)).into_iter().map(|row| row.needs([Feature::Masquerade])).collect();
    let outside_only_v4 =
        NodeView { local_pods: LocalPods::Prefixes(vec![site::cluster_cidr(Family::V4)]), ..standard() };
    scenario(
        "source address",
        [
            step("pods told by prefix", snapshot(), standard(), rows(|from| internal(from, 3))),
            step("pods not told", snapshot(), undetected(), rows(|_| plain(3))),
            step("masquerade all", snapshot(), all, all_rows),
            step(
                "pods told in one family",
                snapshot(),
                outside_only_v4,
                both(|family| {
                    let sketch = if family == Family::V4 { masqueraded(3) } else { plain(3) };
                    vec![row(Actor::Outside, To::cluster_ip(6, family, 80), sketch)]
                }),
            ),
        ],
    )
}

fn interface_detection() -> Scenario {
    let snapshot = || back(cluster().service(dual("web", 7).tcp(80)), "web", &THREE);
    let rows = || {
        both(|family| {
            let to = To::cluster_ip(7, family, 80);
            each(&EVERYBODY, |from| row(from, to, internal(from, 3)).needs([Feature::InterfaceDetection]))
        })
    };
    let bridge = NodeView { local_pods: LocalPods::BridgeInterface(site::BRIDGE.to_owned()), ..standard() };
    let prefix = NodeView { local_pods: LocalPods::InterfaceNamePrefix("lab".to_owned()), ..standard() };
    scenario(
        "pods told by interface",
        [step("bridge", snapshot(), bridge, rows()), step("name prefix", snapshot(), prefix, rows())],
    )
}

fn internal_policy_local() -> Scenario {
    let service = dual("local", 8).tcp(80).internal_local();
    let snapshot = |local, remote| {
        back(cluster().service(service.clone()), "local", &Backs { ports: TCP_8080, local, remote })
    };
    let rows = |sketch: fn(Actor) -> Sketch| {
        both(|family| {
            let to = To::cluster_ip(8, family, 80);
            each(&[CLIENT, Actor::Host], |from| row(from, to, sketch(from)).needs([Feature::InternalLocal]))
        })
    };
    scenario(
        "internal policy Local",
        [
            step(
                "endpoints here and elsewhere",
                snapshot(&[1, 2], &[1]),
                standard(),
                rows(|from| internal(from, 2)),
            ),
            step("endpoints elsewhere only", snapshot(&[], &[1, 2]), standard(), rows(|_| Sketch::Drop)),
            step("no endpoints", snapshot(&[], &[]), standard(), rows(|_| Sketch::Reject)),
        ],
    )
}

fn affinity() -> Scenario {
    let service = dual("sticky", 9).tcp(80).port("u", Protocol::Udp, 53).affinity(Duration::from_secs(600));
    let ports = [("", Protocol::Tcp, 8080), ("u", Protocol::Udp, 5353)];
    let backs = Backs { ports: &ports, local: &[1, 2, 3], remote: &[1] };
    let rows = both(|family| {
        let tcp = To::cluster_ip(9, family, 80);
        let udp = To::cluster_ip(9, family, 53).by(Protocol::Udp);
        let sticky = |from, to| row(from, to, internal(from, 4)).needs([Feature::Affinity]);
        vec![
            sticky(CLIENT, tcp),
            sticky(Actor::Pod(3), tcp),
            sticky(Actor::Outside, tcp),
            sticky(CLIENT, udp),
        ]
    });
    let snapshot = back(cluster().service(service), "sticky", &backs);
    scenario("session affinity", [step("four endpoints", snapshot, standard(), rows)])
}

fn draining() -> Scenario {
    let snapshot = || cluster().service(dual("drain", 10).tcp(80));
    let partly = back_as(
        snapshot(),
        "drain",
        &THREE,
        |local, endpoint| {
            if local { endpoint.draining() } else { endpoint }
        },
    );
    let wholly = back_as(snapshot(), "drain", &THREE, |_, endpoint| endpoint.draining());
    let gone = back_as(snapshot(), "drain", &THREE, |_, endpoint| endpoint.gone());
    let rows = |sketch: Sketch| both(|family| vec![row(CLIENT, To::cluster_ip(10, family, 80), sketch)]);
    scenario(
        "draining endpoints",
        [
            step("others are ready", partly, standard(), rows(plain(1))),
            step("all drain and serve", wholly, standard(), rows(plain(3))),
            step("all are gone", gone, standard(), rows(Sketch::Reject)),
        ],
    )
}

fn topology() -> Scenario {
    let snapshot = || cluster().service(dual("near", 11).tcp(80));
    let zones = back_as(snapshot(), "near", &THREE, |local, endpoint| {
        endpoint.for_zone(if local { "zone-a" } else { "zone-b" })
    });
    let other_zones = back_as(snapshot(), "near", &THREE, |_, endpoint| endpoint.for_zone("zone-b"));
    let nodes = back_as(snapshot(), "near", &THREE, |local, endpoint| {
        endpoint.for_node(if local { super::ELSEWHERE } else { super::HERE })
    });
    let rows = |endpoints: usize| -> Vec<Row> {
        both(|family| vec![row(CLIENT, To::cluster_ip(11, family, 80), plain(endpoints))])
    };
    scenario(
        "topology hints",
        [
            step("my zone", zones, standard(), rows(2)),
            step("not my zone", other_zones, standard(), rows(3)),
            step("my node", nodes, standard(), rows(1)),
        ],
    )
}

fn refused_endpoint() -> Scenario {
    let mut snapshot = back(cluster().service(dual("trap", 12).tcp(80)), "trap", &THREE);
    for (name, address) in
        [("loop", "127.0.0.1"), ("link", "169.254.169.254"), ("loop6", "::1"), ("link6", "fe80::1")]
    {
        let slice = super::slice("trap").named(name).tcp(8080).on(super::HERE, address);
        snapshot = snapshot.slice(slice);
    }
    let rows = both(|family| vec![row(CLIENT, To::cluster_ip(12, family, 80), plain(3))]);
    scenario("endpoints that are never used", [step("loopback and link-local", snapshot, standard(), rows)])
}

fn sctp() -> Scenario {
    let service = dual("sctp", 13).port("", Protocol::Sctp, 3868);
    let backs = Backs { ports: &[("", Protocol::Sctp, 3868)], local: &[1], remote: &[1] };
    let rows =
        both(|family| vec![row(CLIENT, To::cluster_ip(13, family, 3868).by(Protocol::Sctp), plain(2))]);
    scenario(
        "SCTP",
        [step("two endpoints", back(cluster().service(service), "sctp", &backs), standard(), rows)],
    )
}

fn answered_here() -> Scenario {
    let snapshot = || back(cluster().service(dual("dns", 14).tcp(53)), "dns", &THREE);
    let mut node = standard();
    for family in Family::ALL {
        let address = FrontendAddress::Ip(site::cluster_ip(14, family));
        node.answered_here.insert(FrontendKey { address, protocol: Protocol::Tcp, port: super::port(53) });
    }
    let rows = |sketch: fn(Actor) -> Sketch| {
        both(|family| each(&EVERYBODY, |from| row(from, To::cluster_ip(14, family, 53), sketch(from))))
    };
    scenario(
        "answered on the node",
        [
            step("by a Service", snapshot(), standard(), rows(|from| internal(from, 3))),
            step("by netd itself", snapshot(), node, rows(|_| Sketch::Pass)),
        ],
    )
}
