//! Flows to endpoints that have left, with real packets.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use netd_kernel::clock::eventually;
use netd_kernel::conntrack::{Conntrack, TrackedFlow, Transport};
use netd_kernel::exec::{Spawn, find_program};
use netd_kernel::netlink::Family;
use netd_lab::Place as _;
use socket2::{Domain, Socket, Type};

use crate::node::TestNode;

const PATIENCE: Duration = Duration::from_secs(30);
/// On the LAN: packets to port 8080 vanish, 8081 is a server's.
const LAN: &str = "192.168.1.1";

/// Services `(name, protocol, address, endpoint)` of one port, in one document.
fn services(all: &[(&str, &str, &str, &str)]) -> String {
    let mut text = String::new();
    for (name, protocol, cluster_ip, endpoint) in all {
        let (address, port) = endpoint.split_once(':').unwrap();
        write!(
            text,
            "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec: {{clusterIP: {cluster_ip}, ports: [{{port: 80, protocol: {protocol}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: '', protocol: {protocol}, port: {port}}}]
endpoints: [{{addresses: [{address}]}}]
"
        )
        .unwrap();
    }
    text
}

/// A TCP socket with a port of its own whose first packet is on its way.
fn knock(node: &TestNode, port: u16, to: &str) -> Socket {
    let to: SocketAddr = to.parse().unwrap();
    let knock = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.bind(&SocketAddr::from(([192, 168, 1, 10], port)).into()).unwrap();
        // EINPROGRESS.
        assert!(socket.connect(&to.into()).is_err());
        socket
    };
    node.place().run(knock).unwrap()
}

fn flows_from(node: &TestNode, port: u16) -> Vec<TrackedFlow> {
    let read = || Conntrack::open().unwrap().flows(Family::V4, |flow| flow.client.port() == port).unwrap();
    node.place().run(read).unwrap()
}

/// Where the one flow of a port leads to, and whether it was answered.
fn leads_to(node: &TestNode, port: u16) -> Option<(String, bool)> {
    let flows = flows_from(node, port);
    assert!(flows.len() < 2, "{flows:?}");
    flows.first().map(|flow| (flow.answers.to_string(), flow.answered))
}

fn drop_on_the_lan(node: &TestNode, port: &str) {
    let program = find_program("iptables").expect("iptables is installed");
    let args = ["-A", "INPUT", "-p", "tcp", "--dport", port, "-j", "DROP"];
    let spawn = Spawn { netns: Some(node.lan().netns().to_owned()), ..Spawn::new(program, args) };
    let output = spawn.output(b"", PATIENCE).unwrap();
    assert!(output.success(), "{}", output.complaint());
}

#[test]
fn a_syn_to_an_endpoint_that_left_is_sent_again_to_a_live_one_and_made_connections_stay() {
    let node = TestNode::new("unanswered");
    drop_on_the_lan(&node, "8080");
    let dead = format!("{LAN}:8080");
    let alive = format!("{LAN}:8081");
    node.manifest(
        "services.yaml",
        &services(&[
            ("dying", "TCP", "10.96.1.1", &dead),
            ("slow", "TCP", "10.96.1.2", &dead),
            ("leaving", "TCP", "10.96.1.3", &alive),
        ]),
    );
    let mut daemon = node.start("");
    daemon.wait_ready();
    let listener = node.lan().run(|| TcpListener::bind(&alive).unwrap()).unwrap();
    let _server = node.serve(8080);

    let dying = knock(&node, 40_001, "10.96.1.1:80");
    let _slow = knock(&node, 40_002, "10.96.1.2:80");
    let _direct = knock(&node, 40_003, &dead);
    let held = knock(&node, 40_004, "10.96.1.3:80");
    listener.set_nonblocking(true).unwrap();
    let far = eventually(PATIENCE, || listener.accept().ok());
    let (mut far, _) = far.expect("the connection arrives");
    far.set_nonblocking(false).unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    let to_dead = Some((dead.clone(), false));
    let before = [40_001, 40_002, 40_003].map(|port| leads_to(&node, port));
    assert_eq!(before, [to_dead.clone(), to_dead.clone(), to_dead.clone()]);
    let answered = eventually(PATIENCE, || leads_to(&node, 40_004).filter(|(_, answered)| *answered));
    assert_eq!(answered, Some((alive.clone(), true)));

    node.manifest(
        "services.yaml",
        &services(&[
            ("dying", "TCP", "10.96.1.1", "192.168.1.10:8080"),
            ("slow", "TCP", "10.96.1.2", &dead),
            ("leaving", "TCP", "10.96.1.3", "192.168.1.10:8080"),
        ]),
    );
    // The entry went, and what the kernel sends again finds the endpoint that is there.
    let wanted = Some(("192.168.1.10:8080".to_owned(), true));
    let moved = eventually(PATIENCE, || (leads_to(&node, 40_001) == wanted).then_some(()));
    assert!(moved.is_some(), "{:?}\n{}", flows_from(&node, 40_001), daemon.log());
    assert!(dying.take_error().unwrap().is_none() && dying.peer_addr().is_ok());
    assert!(!node.rules().contains(&alive), "{}", node.rules());
    assert_eq!(leads_to(&node, 40_002), to_dead, "its endpoint is still one");
    assert_eq!(leads_to(&node, 40_003), to_dead, "not through a Service");
    assert_eq!(leads_to(&node, 40_004), Some((alive, true)), "a connection that was made");
    held.set_nonblocking(false).unwrap();
    held.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..3 {
        (&held).write_all(b"still there?").unwrap();
        let mut heard = [0; 12];
        far.read_exact(&mut heard).unwrap();
        far.write_all(&heard).unwrap();
        (&held).read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"still there?");
    }
}

#[test]
fn datagrams_to_a_deleted_service_go_to_its_old_endpoint_no_longer() {
    let node = TestNode::new("deleted");
    let far = format!("{LAN}:8081");
    node.manifest(
        "services.yaml",
        &services(&[("gone", "UDP", "10.96.1.1", &far), ("stays", "UDP", "10.96.1.2", &far)]),
    );
    let mut daemon = node.start("");
    daemon.wait_ready();
    let server = node.lan().run(|| UdpSocket::bind(&far).unwrap()).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let open = || {
        [40_001, 40_002].map(|port| {
            let socket = UdpSocket::bind(("192.168.1.10", port)).unwrap();
            socket.send_to(b"first", format!("10.96.1.{}:80", port - 40_000)).unwrap();
            socket
        })
    };
    let [gone, stays] = node.place().run(open).unwrap();
    let mut buffer = [0; 16];
    for _ in 0..2 {
        assert_eq!(server.recv(&mut buffer).unwrap(), 5);
    }
    assert_eq!([40_001, 40_002].map(|p| flows_from(&node, p)[0].transport), [Transport::Udp; 2]);
    node.manifest("services.yaml", &services(&[("stays", "UDP", "10.96.1.2", &far)]));
    let forgotten = eventually(PATIENCE, || flows_from(&node, 40_001).is_empty().then_some(()));
    assert!(forgotten.is_some(), "{:?}\n{}", flows_from(&node, 40_001), daemon.log());
    // Through the default route to nobody; only the other one arrives.
    let _ = gone.send_to(b"stray", "10.96.1.1:80");
    stays.send_to(b"second", "10.96.1.2:80").unwrap();
    assert_eq!(server.recv(&mut buffer).unwrap(), 6);
}
