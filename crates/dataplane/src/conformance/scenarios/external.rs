//! Node ports, load balancer and external addresses.

use netd_model::build::{ServiceBuilder, net};
use netd_model::{Family, NodePortAddresses, NodeView, Protocol};

use super::{
    Backs, CLIENT, EVERYBODY, TCP_8080, To, back, back_as, both, cluster, dual, each, internal, masqueraded,
    plain, row, scenario, standard, step, undetected,
};
use crate::conformance::site::{self, Actor};
use crate::conformance::{Feature, Row, Scenario, Sketch};

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        node_port(),
        node_port_addresses(),
        node_port_without_endpoints(),
        external_policy_local(),
        load_balancer(),
        source_ranges(),
        external_ip(),
        conflict(),
    ]
}

const TCP_AND_UDP: &[(&str, Protocol, u16)] = &[("", Protocol::Tcp, 8080), ("u", Protocol::Udp, 5353)];
const THREE: Backs<'static> = Backs { ports: TCP_AND_UDP, local: &[1, 2], remote: &[1] };

/// A Service with node ports for TCP and UDP.
fn exposed(name: &str, number: u8) -> ServiceBuilder {
    dual(name, number).tcp(80).node_port(30080).port("u", Protocol::Udp, 53).node_port(30053)
}

fn with_vips(service: ServiceBuilder, number: u8) -> ServiceBuilder {
    Family::ALL.iter().fold(service, |service, family| service.vip(&site::vip(number, *family).to_string()))
}

fn node_port() -> Scenario {
    let snapshot = || back(cluster().service(exposed("np", 20)), "np", &THREE);
    let rows = || {
        both(|family| {
            let tcp = To::node_port(family, 30080);
            let udp = To::node_port(family, 30053).by(Protocol::Udp);
            let mut rows = each(&EVERYBODY, |from| row(from, tcp, masqueraded(3)));
            rows.extend(each(&EVERYBODY, |from| row(from, udp, masqueraded(3))));
            rows.push(row(CLIENT, tcp.at(site::gateway(family)), masqueraded(3)));
            rows.push(row(CLIENT, tcp.at(site::other_node(family)), Sketch::Pass));
            rows.push(row(CLIENT, To::node_port(family, 30081), Sketch::Pass));
            rows
        })
    };
    scenario(
        "node port",
        [
            step("pods told by prefix", snapshot(), standard(), rows()),
            step("pods not told", snapshot(), undetected(), rows()),
        ],
    )
}

fn node_port_addresses() -> Scenario {
    let snapshot = back(cluster().service(exposed("np", 21)), "np", &THREE);
    let prefixes = Family::ALL.map(site::lan).to_vec();
    let node = NodeView { node_port_addresses: NodePortAddresses::Prefixes(prefixes), ..standard() };
    let rows = both(|family| {
        let to = To::node_port(family, 30080);
        let gateway = to.at(site::gateway(family));
        let rows = [row(Actor::Outside, to, masqueraded(3)), row(CLIENT, gateway, Sketch::Pass)];
        rows.map(|row| row.needs([Feature::NodePortAddresses])).into()
    });
    scenario("node port addresses", [step("of the LAN only", snapshot, node, rows)])
}

fn node_port_without_endpoints() -> Scenario {
    let rows = both(|family| {
        let tcp = To::node_port(family, 30080);
        let udp = To::node_port(family, 30053).by(Protocol::Udp);
        let mut rows = each(&EVERYBODY, |from| row(from, tcp, Sketch::Reject));
        rows.extend(each(&EVERYBODY, |from| row(from, udp, Sketch::Reject)));
        rows
    });
    let snapshot = cluster().service(exposed("np", 22));
    scenario("node port without endpoints", [step("none", snapshot, standard(), rows)])
}

/// What an actor experiences under `externalTrafficPolicy: Local` with so many endpoints here and in all.
fn external_local(actor: Actor, here: usize, all: usize) -> Sketch {
    match actor {
        Actor::Pod(_) => plain(all),
        Actor::Host => masqueraded(all),
        Actor::Outside if here == 0 => Sketch::Drop,
        Actor::Outside => plain(here),
    }
}

fn external_policy_local() -> Scenario {
    let snapshot = |backs: &Backs<'_>| {
        let service = with_vips(exposed("ext", 23), 23).external_local();
        back(cluster().service(service), "ext", backs)
    };
    let elsewhere = Backs { ports: TCP_AND_UDP, local: &[], remote: &[1, 2] };
    let rows = |here: usize, all: usize| {
        both(|family| {
            let targets = [
                To::node_port(family, 30080),
                To::node_port(family, 30053).by(Protocol::Udp),
                To::load_balancer(23, family, 80),
            ];
            let mut rows: Vec<Row> = Vec::new();
            for to in targets {
                rows.extend(each(&EVERYBODY, |from| {
                    row(from, to, external_local(from, here, all)).needs([Feature::ExternalLocal])
                }));
            }
            rows.push(row(CLIENT, To::cluster_ip(23, family, 80), internal(CLIENT, all)));
            rows
        })
    };
    let draining = back_as(
        cluster().service(with_vips(exposed("ext", 23), 23).external_local()),
        "ext",
        &THREE,
        |local, endpoint| if local { endpoint.draining() } else { endpoint },
    );
    scenario(
        "external policy Local",
        [
            step("endpoints here and elsewhere", snapshot(&THREE), standard(), rows(2, 3)),
            step("endpoints elsewhere only", snapshot(&elsewhere), standard(), rows(0, 2)),
            step(
                "local endpoints drain",
                draining,
                standard(),
                both(|family| {
                    let to = To::node_port(family, 30080);
                    [row(Actor::Outside, to, plain(2)), row(CLIENT, to, plain(1))]
                        .map(|row| row.needs([Feature::ExternalLocal]))
                        .into()
                }),
            ),
        ],
    )
}

fn load_balancer() -> Scenario {
    let service = with_vips(dual("lb", 24).tcp(80), 24).proxy_ingress("203.0.113.99");
    let full =
        back(cluster().service(service.clone()), "lb", &Backs { ports: TCP_8080, local: &[1], remote: &[1] });
    let empty = cluster().service(service);
    let rows = |sketch: Sketch| {
        both(|family| each(&EVERYBODY, |from| row(from, To::load_balancer(24, family, 80), sketch)))
    };
    let mut full_rows = rows(masqueraded(2));
    full_rows.push(row(CLIENT, To::load_balancer(99, Family::V4, 80), Sketch::Pass));
    scenario(
        "load balancer address",
        [
            step("two endpoints", full, standard(), full_rows),
            step("no endpoints", empty, standard(), rows(Sketch::Reject)),
        ],
    )
}

fn source_ranges() -> Scenario {
    let snapshot = |ranges: &[String]| {
        let service = with_vips(exposed("fw", 25), 25);
        let service = ranges.iter().fold(service, |service, range| service.source_range(range));
        back(cluster().service(service), "fw", &THREE)
    };
    let rows = |outside: Sketch, pod: Sketch| {
        both(|family| {
            let to = To::load_balancer(25, family, 80);
            [
                row(Actor::Outside, to, outside),
                row(CLIENT, to, pod),
                // Node ports know no source ranges.
                row(Actor::Outside, To::node_port(family, 30080), masqueraded(3)),
            ]
            .map(|row| row.needs([Feature::SourceRanges]))
            .into()
        })
    };
    let both_families =
        |prefix: fn(Family) -> ipnetwork::IpNetwork| Family::ALL.map(|family| prefix(family).to_string());
    scenario(
        "source ranges",
        [
            step(
                "the LAN",
                snapshot(&both_families(site::lan)),
                standard(),
                rows(masqueraded(3), Sketch::Drop),
            ),
            step(
                "the pods",
                snapshot(&both_families(site::cluster_cidr)),
                standard(),
                rows(Sketch::Drop, masqueraded(3)),
            ),
            step(
                "everybody",
                snapshot(&[net("192.0.2.0/24").to_string(), net("0.0.0.0/0").to_string()]),
                standard(),
                rows(masqueraded(3), masqueraded(3)),
            ),
            step(
                "one family closes the other",
                snapshot(&[site::lan(Family::V4).to_string()]),
                standard(),
                both(|family| {
                    let sketch = if family == Family::V4 { masqueraded(3) } else { Sketch::Drop };
                    vec![
                        row(Actor::Outside, To::load_balancer(25, family, 80), sketch)
                            .needs([Feature::SourceRanges]),
                    ]
                }),
            ),
        ],
    )
}

fn external_ip() -> Scenario {
    let service = Family::ALL.iter().fold(dual("ext-ip", 26).tcp(80), |service, family| {
        service.external_ip(&site::vip(26, *family).to_string())
    });
    let snapshot = || {
        let backs = Backs { ports: TCP_8080, local: &[1], remote: &[1] };
        back(cluster().service(service.clone()), "ext-ip", &backs)
    };
    let rows = |sketch: Sketch| {
        both(|family| each(&EVERYBODY, |from| row(from, To::external_ip(26, family, 80), sketch)))
    };
    let strict = NodeView { allowed_external_ips: Vec::new(), ..standard() };
    scenario(
        "external address",
        [
            step("allowed", snapshot(), standard(), rows(masqueraded(2))),
            step("not allowed", snapshot(), strict, rows(Sketch::Pass)),
        ],
    )
}

fn conflict() -> Scenario {
    let older = exposed("older", 27).created(1);
    let younger = exposed("younger", 28).created(2);
    let one = Backs { ports: TCP_AND_UDP, local: &[1], remote: &[] };
    let two = Backs { ports: TCP_AND_UDP, local: &[2, 3], remote: &[] };
    let snapshot =
        back(back(cluster().service(older).service(younger.clone()), "older", &one), "younger", &two);
    let alone = back(cluster().service(younger), "younger", &two);
    let rows = |endpoints| {
        both(|family| vec![row(Actor::Outside, To::node_port(family, 30080), masqueraded(endpoints))])
    };
    scenario(
        "two Services with one node port",
        [
            step("the older wins", snapshot, standard(), rows(1)),
            step("the younger inherits", alone, standard(), rows(2)),
        ],
    )
}
