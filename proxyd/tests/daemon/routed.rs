//! Pods without a bridge, and a daemon that serves them.

use std::path::Path;
use std::time::Duration;

use netd_kernel::Netlink;
use netd_kernel::clock::eventually;
use netd_kernel::netlink::{POD_ROUTE_PROTOCOL, Route, RouteFilter, RouteKind};
use netd_lab::agent::{Connect, Serve};
use netd_lab::traffic::Outcome;
use netd_lab::{CniRuntime, Place, Pod, PodSpec};

use crate::node::{NETD, TestNode};

const WAIT: Duration = Duration::from_secs(20);
const PARTS: &str = "parts: {dns: false}\n";
const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.96.1.7, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: '', protocol: TCP, port: 8080}]
endpoints: [{addresses: [172.16.0.2]}]
";

/// A configuration with a mode of pods.
fn config(node: &TestNode, mode: &str) -> &'static str {
    let path = node.config_file(PARTS);
    let text = std::fs::read_to_string(path).unwrap();
    std::fs::write(path, text.replace("cni: {", &format!("cni: {{mode: {mode}, "))).unwrap();
    path
}

/// The plugin that is built beside the daemon, and the list that the daemon wrote once it says `mode`.
fn runtime(node: &TestNode, routed: bool) -> CniRuntime {
    let plugin = Path::new(NETD).with_file_name("netd-cni");
    assert!(plugin.is_file(), "build it first: cargo build -p netd-cni");
    let path = node.manifests().parent().unwrap().join("00-netd.conflist");
    let list = || {
        let list: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
        (list["plugins"][0]["mode"].as_str() == routed.then_some("routed")).then_some(list)
    };
    CniRuntime { plugin, conflist: eventually(WAIT, list).expect("the list says the mode") }
}

fn add(node: &TestNode, cni: &CniRuntime, name: &str) -> Pod {
    let spec = PodSpec { name: name.to_owned(), namespace: "default".to_owned(), cni };
    node.place().add_pod(&spec).unwrap()
}

/// The address that whoever answers sees.
fn seen(place: &impl Place, target: &str) -> Option<String> {
    let connect = Connect::tcp(target.parse().unwrap()).within(Duration::from_millis(500));
    let outcomes = eventually(WAIT, || {
        let outcomes = place.connect(connect.clone()).unwrap();
        outcomes.iter().all(Outcome::is_answered).then_some(outcomes)
    });
    match outcomes?.pop() {
        Some(Outcome::Answered { peer, .. }) => Some(peer.ip().to_string()),
        _ => None,
    }
}

fn pod_routes(node: &TestNode) -> Vec<Route> {
    let filter = RouteFilter { protocol: Some(POD_ROUTE_PROTOCOL), ..RouteFilter::default() };
    node.place().run(|| Netlink::open().unwrap().routes(filter).unwrap()).unwrap()
}

fn serve(name: &str, port: u16) -> Serve {
    Serve { name: name.to_owned(), tcp: vec![port], udp: vec![], stay: false }
}

#[test]
fn routed_pods_have_services_routes_that_come_back_and_outlive_a_change_of_mode() {
    let node = TestNode::new("routed");
    node.manifest("service.yaml", SERVICE);
    let mut daemon = node.start_by(config(&node, "routed"));
    daemon.wait_ready();
    let cni = runtime(&node, true);
    let (web, other) = (add(&node, &cni, "web"), add(&node, &cni, "other"));
    let _servers = [web.serve(serve("web", 8080)).unwrap(), node.lan().serve(serve("lan", 9000)).unwrap()];
    let other_ip = other.addresses()[0].to_string();
    assert!(!node.links().iter().any(|name| name == "netd0"), "{:?}", node.links());
    assert_eq!(seen(&other, "172.16.0.2:8080").as_deref(), Some(other_ip.as_str()), "{}", daemon.log());
    assert_eq!(seen(&other, "10.96.1.7:80").as_deref(), Some(other_ip.as_str()), "a Service, from a pod");
    assert_eq!(seen(&web, "10.96.1.7:80").as_deref(), Some("192.168.1.10"), "its own Service");
    assert!(seen(node.place(), "10.96.1.7:80").is_some(), "a Service, from the node");
    assert_eq!(seen(&other, "192.168.1.1:9000").as_deref(), Some("192.168.1.10"), "the LAN sees the node");

    // The daemon has seen both; then a network manager sweeps what it did not make.
    let before = pod_routes(&node).len();
    assert_eq!(before, 3, "{:?}", pod_routes(&node));
    node.place()
        .run(|| {
            let mut netlink = Netlink::open().unwrap();
            let filter = RouteFilter { protocol: Some(POD_ROUTE_PROTOCOL), ..RouteFilter::default() };
            for route in netlink.routes(filter).unwrap().iter().filter(|r| r.kind == RouteKind::Unicast) {
                netlink.delete_route(route).unwrap();
            }
        })
        .unwrap();
    let back = eventually(WAIT, || (pod_routes(&node).len() == before).then_some(()));
    assert!(back.is_some(), "{:?}\n{}", pod_routes(&node), daemon.log());
    assert!(seen(&other, "172.16.0.2:8080").is_some());
    web.check().unwrap();

    // New pods get the new mode, old ones go on.
    assert_eq!(daemon.terminate(), 0, "{}", daemon.log());
    let mut daemon = node.start_by(config(&node, "bridge"));
    daemon.wait_ready();
    let young = add(&node, &runtime(&node, false), "young");
    let young_ip = young.addresses()[0].to_string();
    assert!(node.links().iter().any(|name| name == "netd0"), "{:?}", node.links());
    for target in ["172.16.0.2:8080", "10.96.1.7:80"] {
        assert_eq!(seen(&young, target).as_deref(), Some(young_ip.as_str()), "{target}");
        assert_eq!(seen(&other, target).as_deref(), Some(other_ip.as_str()), "{target}");
    }
    for pod in [&web, &other, &young] {
        pod.check().unwrap();
    }
    young.remove().unwrap();
    other.remove().unwrap();
    assert_eq!(daemon.terminate(), 0, "{}", daemon.log());
    let cleaned = node.run(&["cleanup", "--config", node.config_file(PARTS)], WAIT);
    assert_eq!(cleaned.code, 0, "{}{}", cleaned.stdout, cleaned.stderr);
    let left = pod_routes(&node);
    assert!(matches!(left.as_slice(), [route] if route.kind == RouteKind::Unicast), "{left:?}");
    assert!(seen(node.place(), "172.16.0.2:8080").is_some(), "a running pod outlives the cleanup");
    web.remove().unwrap();
    assert_eq!(pod_routes(&node), Vec::<Route>::new());
}
