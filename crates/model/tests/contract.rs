//! The contract a second time, written from the client's side: for one Service and one flow, read what must
//! happen straight off the objects, and compare with what planner and oracle say together.

use std::collections::BTreeSet;
use std::sync::Arc;

use netd_model::build::{EndpointBuilder, endpoint, ip, net, node_view, port, service, slice, snapshot};
use netd_model::{
    Endpoint, Expected, Flow, LocalPods, Masquerade, NodeView, Origin, PoolEndpoint, Protocol, Service,
    TrafficPolicy, plan, verdict,
};
use proptest::prelude::*;

const NODE: &str = "192.168.1.101";
const VIP: &str = "192.0.2.10";
const EXTERNAL: &str = "203.0.113.10";
const CLUSTER_IP: &str = "10.96.0.10";
const NODE_PORT: u16 = 30080;

/// What a person with the objects in front of them expects.
fn expected(service: &Service, endpoints: &[Endpoint], node: &NodeView, flow: &Flow) -> Expected {
    let to = flow.destination.to_string();
    let is_internal = to == CLUSTER_IP && flow.port == port(80);
    let is_vip = to == VIP && flow.port == port(80) && !service.load_balancer.is_empty();
    let is_external = to == EXTERNAL
        && flow.port == port(80)
        && !service.external_ips.is_empty()
        && node.allowed_external_ips.iter().any(|prefix| prefix.contains(flow.destination));
    let is_node_port = to == NODE && flow.port == port(NODE_PORT) && service.ports[0].node_port.is_some();
    if !(is_internal || is_vip || is_external || is_node_port) {
        return Expected::Pass;
    }
    let ranges = &service.source_ranges;
    if is_vip && !ranges.is_empty() && !ranges.iter().any(|range| range.contains(flow.source)) {
        return Expected::Drop;
    }

    let ready: Vec<&Endpoint> = endpoints.iter().filter(|one| one.ready).collect();
    let draining: Vec<&Endpoint> = endpoints.iter().filter(|one| one.serving && one.terminating).collect();
    if ready.is_empty() && draining.is_empty() {
        return Expected::Reject;
    }
    let detected = node.local_pods != LocalPods::None;
    let is_pod = detected && flow.source.to_string().starts_with("172.16.");
    let is_host = flow.origin == Origin::Host;
    let (stays_here, masquerade) = if is_internal {
        let hide = node.masquerade_all || (detected && !is_pod);
        (service.internal_traffic_policy == TrafficPolicy::Local, hide)
    } else if service.external_traffic_policy == TrafficPolicy::Cluster {
        (false, true)
    } else if is_pod {
        (false, false)
    } else {
        (!is_host, is_host)
    };

    let here = |one: &&Endpoint| one.node.as_deref() == Some("here");
    let chosen: Vec<&Endpoint> = if stays_here {
        let ready: Vec<_> = ready.into_iter().filter(here).collect();
        if ready.is_empty() { draining.into_iter().filter(here).collect() } else { ready }
    } else if ready.is_empty() {
        draining
    } else {
        ready
    };
    if chosen.is_empty() {
        return Expected::Drop;
    }
    let endpoints: BTreeSet<PoolEndpoint> = chosen
        .iter()
        .map(|one| PoolEndpoint { address: one.address, port: port(8080), local: here(one) })
        .collect();
    let masquerade = if masquerade { Masquerade::Always } else { Masquerade::Hairpin };
    Expected::Balance { endpoints, masquerade }
}

prop_compose! {
    fn any_service()(
        policies in any::<(bool, bool)>(),
        kinds in any::<(bool, bool, bool)>(),
        ranges in 0u8..3,
    ) -> Service {
        let mut made = service("web").cluster_ip(CLUSTER_IP).tcp(80);
        if kinds.0 { made = made.node_port(NODE_PORT); }
        if kinds.1 { made = made.vip(VIP); }
        if kinds.2 { made = made.external_ip(EXTERNAL); }
        if policies.0 { made = made.internal_local(); }
        if policies.1 { made = made.external_local(); }
        match ranges {
            0 => made,
            1 => made.source_range("198.51.100.0/24"),
            _ => made.source_range("198.51.100.0/24").source_range("0.0.0.0/0"),
        }.build()
    }
}

/// Endpoints of distinct addresses in every state, here and elsewhere.
fn any_endpoints() -> impl Strategy<Value = Vec<Endpoint>> {
    let state = (any::<bool>(), 0u8..4);
    prop::collection::vec(state, 0..5).prop_map(|states| {
        let made = states.into_iter().zip(5u8..).map(|((is_here, state), last)| {
            let made: EndpointBuilder = endpoint(&format!("172.16.1.{last}"));
            let made = made.node(if is_here { "here" } else { "there" });
            match state {
                0 => made.not_ready(),
                1 => made.draining(),
                2 => made.gone(),
                _ => made,
            }
            .build()
        });
        made.collect()
    })
}

fn any_flow() -> impl Strategy<Value = Flow> {
    let origins = prop_oneof![
        Just((Origin::LocalPod, "172.16.1.5")),
        Just((Origin::Host, NODE)),
        Just((Origin::Remote, "198.51.100.7")),
        Just((Origin::Remote, "203.0.113.99")),
    ];
    let targets = prop::sample::select(vec![
        (CLUSTER_IP, 80),
        (CLUSTER_IP, 81),
        (NODE, NODE_PORT),
        (NODE, 80),
        (VIP, 80),
        (EXTERNAL, 80),
        ("192.168.1.102", NODE_PORT),
    ]);
    (origins, targets).prop_map(|((origin, source), (destination, number))| Flow {
        origin,
        in_interface: None,
        source: ip(source),
        destination: ip(destination),
        destination_is_local: destination == NODE,
        protocol: Protocol::Tcp,
        port: port(number),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn planner_and_oracle_keep_the_contract(
        service in any_service(),
        endpoints in any_endpoints(),
        flow in any_flow(),
        settings in any::<(bool, bool, bool)>(),
    ) {
        let (detect, masquerade_all, allow) = settings;
        let node = NodeView {
            local_pods: if detect { LocalPods::Prefixes(vec![net("172.16.0.0/16")]) } else { LocalPods::None },
            masquerade_all,
            allowed_external_ips: if allow { vec![net("203.0.113.0/24")] } else { Vec::new() },
            ..node_view("here")
        };
        // The node's own address is in no range here: that exception has a test of its own.
        let mut cluster = snapshot().node("here", &[NODE]).build();
        let mut backs = slice("web").tcp(8080).build();
        backs.endpoints.clone_from(&endpoints);
        cluster.slices.insert(service.name.clone(), vec![Arc::new(backs)]);
        cluster.services.insert(service.name.clone(), Arc::new(service.clone()));

        let planned = plan(&cluster, &node);
        let found = verdict(&planned, &flow);
        prop_assert_eq!(&found, &expected(&service, &endpoints, &node, &flow));
    }
}
