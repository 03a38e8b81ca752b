//! What load balancers ask a node: `/healthz`, `/livez` and the health checks of Services, over real sockets.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use netd_kernel::clock::eventually;
use netd_lab::Place as _;

use crate::node::TestNode;

const PATIENCE: Duration = Duration::from_secs(20);

/// A Service with health checks on `port`, and its endpoints on this node.
fn balanced(name: &str, number: u8, port: u16, endpoints: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: {port}
  clusterIP: 10.96.2.{number}
  clusterIPs: [10.96.2.{number}, 'fd00:10:96::{number}']
  ipFamilies: [IPv4, IPv6]
  ports: [{{port: 80}}]
status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.{number}}}]}}}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: '', protocol: TCP, port: 8080}}]
endpoints: {endpoints}
"
    )
}

const TWO_READY: &str = "[{addresses: [172.16.0.2], nodeName: n1}, {addresses: [172.16.0.3], nodeName: n1}, \
                         {addresses: [172.16.9.3], nodeName: n2}]";
const DRAINING: &str = "[{addresses: [172.16.0.2], nodeName: n1, conditions: {ready: false, serving: true, \
                        terminating: true}}, {addresses: [172.16.9.3], nodeName: n2}]";

/// The whole answer, or why there is none.
fn ask(node: &TestNode, address: &str, request: &str) -> Result<String, std::io::Error> {
    let address: SocketAddr = address.parse().unwrap();
    let talk = || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "{request} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    node.place().run(talk).unwrap()
}

/// Waits for an answer with this status; returns its headers and body.
fn answer(node: &TestNode, address: &str, request: &str, status: u16) -> (String, String) {
    let mut last = String::new();
    let found = eventually(PATIENCE, || {
        last = ask(node, address, request).unwrap_or_else(|error| error.to_string());
        last.starts_with(&format!("HTTP/1.1 {status} ")).then_some(())
    });
    assert!(found.is_some(), "{request} of {address}: wanted {status}, got {last}");
    let (head, body) = last.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

fn told(service: &str, local: usize) -> String {
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"{service}\"\n\t}},\n\t\
         \"localEndpoints\": {local},\n\t\"serviceProxyHealthy\": true\n}}"
    )
}

#[test]
fn health_checks_of_a_service_tell_the_ready_endpoints_of_this_node() {
    let node = TestNode::new("hcnp");
    node.manifest("web.yaml", &balanced("web", 1, 32_001, TWO_READY));
    let mut daemon = node.start("");
    daemon.wait_ready();
    for request in ["GET /", "POST /any/path"] {
        let (head, body) = answer(&node, "127.0.0.1:32001", request, 200);
        for header in [
            "content-type: application/json",
            "x-content-type-options: nosniff",
            "x-load-balancing-endpoint-weight: 2",
        ] {
            assert!(head.lines().any(|line| line == header), "{header}: {head}");
        }
        assert_eq!(body, told("web", 2));
    }
    // Each family has a server of its own; there is no IPv6 endpoint.
    assert_eq!(answer(&node, "[::1]:32001", "GET /", 503).1, told("web", 0));

    node.manifest("web.yaml", &balanced("web", 1, 32_001, DRAINING));
    let (head, body) = answer(&node, "127.0.0.1:32001", "GET /", 503);
    assert!(head.contains("x-load-balancing-endpoint-weight: 0"), "{head}");
    assert_eq!(body, told("web", 0), "a node that drains asks for no new traffic");
    assert!(node.rules().contains("172.16.0.2:8080"), "and still serves: {}", node.rules());

    node.manifest("web.yaml", &balanced("web", 1, 32_002, TWO_READY));
    answer(&node, "127.0.0.1:32002", "GET /", 200);
    let closed = eventually(PATIENCE, || ask(&node, "127.0.0.1:32001", "GET /").err());
    assert!(closed.is_some(), "the old port is still open");
    std::fs::remove_file(node.manifests().join("web.yaml")).unwrap();
    let closed = eventually(PATIENCE, || ask(&node, "127.0.0.1:32002", "GET /").err());
    assert!(closed.is_some(), "the Service is gone, its port is not");
}

#[test]
fn a_taken_health_check_port_is_named_and_blocks_no_other() {
    let node = TestNode::new("hcnp-taken");
    node.manifest("taken.yaml", &balanced("a-taken", 1, 32_001, TWO_READY));
    node.manifest("web.yaml", &balanced("web", 2, 32_002, TWO_READY));
    let holder = node.serve(32_001);
    let mut daemon = node.start("");
    daemon.wait_ready();
    assert_eq!(answer(&node, "127.0.0.1:32002", "GET /", 200).1, told("web", 2));
    let state = daemon.wait_for("a notice", |state| {
        state["notices"]
            .as_array()
            .is_some_and(|notices| notices.iter().any(|n| n["reason"] == "FailedToStartServiceHealthcheck"))
    });
    assert!(state["notices"].to_string().contains("0.0.0.0:32001"), "{}", state["notices"]);
    assert!(daemon.status(&[]).stdout.contains("a-taken"), "{}", daemon.status(&[]).stdout);
    drop(holder);
    assert_eq!(answer(&node, "127.0.0.1:32001", "GET /", 200).1, told("a-taken", 2));
    daemon.wait_for("no notice", |state| state["notices"].as_array().is_none_or(Vec::is_empty));
    // A port that goes from one Service to another is served by the new one.
    std::fs::remove_file(node.manifests().join("taken.yaml")).unwrap();
    node.manifest("web.yaml", &balanced("web", 2, 32_001, TWO_READY));
    let moved = eventually(PATIENCE, || {
        let text = ask(&node, "127.0.0.1:32001", "GET /").ok()?;
        text.ends_with(&told("web", 2)).then_some(())
    });
    assert!(moved.is_some(), "{}", daemon.log());
}

#[test]
fn health_checks_are_answered_on_the_addresses_of_node_ports_only() {
    let node = TestNode::new("hcnp-addresses");
    node.manifest("web.yaml", &balanced("web", 1, 32_001, TWO_READY));
    let mut daemon = node.start_with("", "nodePortAddresses: [192.168.1.0/24]");
    daemon.wait_ready();
    answer(&node, "192.168.1.10:32001", "GET /", 200);
    assert!(ask(&node, "127.0.0.1:32001", "GET /").is_err());
    assert!(ask(&node, "[::1]:32001", "GET /").is_err());
}

#[test]
fn a_node_about_to_be_deleted_fails_healthz_and_not_livez() {
    let node = TestNode::new("healthz");
    let object = |taint: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: n1}}\nspec: {{podCIDR: 172.16.0.0/24, taints: \
             [{taint}]}}\nstatus: {{addresses: [{{type: InternalIP, address: 192.168.1.10}}]}}\n"
        )
    };
    let mut daemon = node.start("");
    daemon.wait_ready();
    let (head, body) = answer(&node, "127.0.0.1:10256", "GET /healthz", 200);
    assert!(head.contains("content-type: application/json") && head.contains("nosniff"), "{head}");
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&body["healthy"], &body["nodeEligible"]), (&true.into(), &true.into()));
    assert_eq!(body["status"]["IPv4"]["healthy"], true);
    assert_eq!(body["lastUpdated"], body["currentTime"]);

    node.manifest("node.yaml", &object("{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}"));
    let body = answer(&node, "127.0.0.1:10256", "GET /healthz", 503).1;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&body["healthy"], &body["nodeEligible"]), (&true.into(), &false.into()));
    let body = answer(&node, "127.0.0.1:10256", "GET /livez", 200).1;
    assert!(!body.contains("nodeEligible"), "{body}");

    node.manifest("node.yaml", &object("{key: other, effect: NoSchedule}"));
    answer(&node, "127.0.0.1:10256", "GET /healthz", 200);
    std::fs::remove_file(node.manifests().join("node.yaml")).unwrap();
    answer(&node, "127.0.0.1:10256", "GET /healthz", 503);
    answer(&node, "127.0.0.1:10256", "GET /livez", 200);
    let metrics = node.get("127.0.0.1:10249", "/metrics");
    for sample in ["kubeproxy_proxy_healthz_total{code=\"503\"}", "kubeproxy_proxy_livez_total{code=\"200\"}"]
    {
        assert!(metrics.contains(sample), "{sample}: {metrics}");
    }
}

#[test]
fn a_change_that_does_not_reach_the_kernel_fails_healthz_livez_and_health_checks() {
    let node = TestNode::new("healthz-late");
    // With affinity each endpoint has a chain, which goes with it.
    let sticky = |endpoints| {
        let ports = "  ports: [{port: 80}]";
        balanced("web", 1, 32_001, endpoints).replace(ports, &format!("{ports}\n  sessionAffinity: ClientIP"))
    };
    node.manifest("web.yaml", &sticky(TWO_READY));
    let mut daemon = node.start("http: {healthWindowSeconds: 1}");
    daemon.wait_ready();
    answer(&node, "127.0.0.1:32001", "GET /", 200);
    // Somebody else's map leads to a chain of ours, which the kernel then refuses to delete.
    let rules = node.rules();
    let chain =
        rules.lines().find(|line| line.starts_with("-A NETD-SEP") && line.ends_with("172.16.0.3:8080"));
    let chain = chain.and_then(|line| line.split_whitespace().nth(1)).expect("the chain of an endpoint");
    node.nft("add map ip nat nd-holder { type mark : verdict ; }");
    node.nft(&format!("add element ip nat nd-holder {{ 1 : jump {chain} }}"));
    node.manifest("web.yaml", &sticky(DRAINING));
    answer(&node, "127.0.0.1:10256", "GET /healthz", 503);
    let body = answer(&node, "127.0.0.1:10256", "GET /livez", 503).1;
    assert!(body.contains("\"healthy\":false"), "{body}");
    let body = answer(&node, "127.0.0.1:32001", "GET /", 503).1;
    assert_eq!(body, told("web", 2).replace("true", "false"), "counts change with the rules, not before");
    node.nft("delete map ip nat nd-holder");
    answer(&node, "127.0.0.1:10256", "GET /healthz", 200);
    assert_eq!(answer(&node, "127.0.0.1:32001", "GET /", 503).1, told("web", 0));
}
