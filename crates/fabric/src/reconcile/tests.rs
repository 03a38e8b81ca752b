//! In network namespaces of the test's own.

use std::io::Read as _;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use netd_kernel::clock::eventually;
use netd_kernel::exec::{Exec as _, SystemExec, find_program};
use netd_kernel::netlink::{BridgeSpec, POD_ROUTE_PROTOCOL, VethSpec};
use netd_kernel::{Mac, Namespace, ROUTE_PROTOCOL};
use netd_model::Node;

use super::*;

static NEXT: AtomicUsize = AtomicUsize::new(0);

pub(crate) struct Own(pub(crate) Namespace);

impl Own {
    pub(crate) fn new() -> Self {
        assert!(netd_kernel::process::is_root(), "this test needs root: it makes network namespaces");
        let name = format!("nd-fab-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self(Namespace::create(&Path::new(netd_kernel::netns::NETNS_DIR).join(name)).unwrap())
    }

    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.0.run(work).unwrap()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = Namespace::remove(self.0.path());
    }
}

fn node(number: u8) -> Arc<Node> {
    let internal: Vec<IpAddr> =
        vec![format!("192.168.1.{number}").parse().unwrap(), format!("2001:db8::{number}").parse().unwrap()];
    Arc::new(Node {
        name: format!("w{number}").into(),
        addresses: internal.clone(),
        internal_addresses: internal,
        pod_cidrs: vec![
            format!("172.16.{number}.0/24").parse().unwrap(),
            format!("fd00:10:0:{number}::/64").parse().unwrap(),
        ],
        zone: None,
        leaving: false,
    })
}

fn snapshot(numbers: &[u8]) -> Snapshot {
    let nodes = numbers.iter().map(|number| node(*number)).map(|node| (Arc::clone(&node.name), node));
    Snapshot { nodes: nodes.collect(), ..Snapshot::default() }
}

/// Two nodes on a LAN, each with a bridge for its pods that has the gateway's address.
fn two_nodes() -> [Own; 2] {
    let nodes = [Own::new(), Own::new()];
    nodes[0].run(|| {
        let mut netlink = Netlink::open().unwrap();
        let spec = VethSpec {
            name: "eth0",
            peer_name: "eth0",
            peer_namespace: Some(nodes[1].0.fd()),
            ..VethSpec::default()
        };
        netlink.add_veth(&spec).unwrap();
    });
    for (own, number) in nodes.iter().zip([1_u8, 2]) {
        own.run(|| {
            let mut netlink = Netlink::open().unwrap();
            let link = netlink.link("eth0").unwrap().unwrap().index;
            let spec = BridgeSpec {
                name: "netd0",
                mac: Some(Mac([2, 0, 0, 0, 0, number])),
                ..BridgeSpec::default()
            };
            let bridge = netlink.add_bridge(&spec).unwrap();
            netlink.set_up(link).unwrap();
            netlink.set_up(bridge).unwrap();
            for (index, prefix) in [
                (link, format!("192.168.1.{number}/24")),
                (link, format!("2001:db8::{number}/64")),
                (bridge, format!("172.16.{number}.1/24")),
                (bridge, format!("fd00:10:0:{number}::1/64")),
            ] {
                netlink.add_address(index, prefix.parse().unwrap(), true).unwrap();
            }
        });
    }
    nodes
}

fn counts(report: &Report) -> (usize, usize, usize) {
    assert_eq!(report.problems, [], "problems");
    (report.added, report.removed, report.kept)
}

pub(crate) fn run_ip(args: &[&str]) {
    let ip = find_program("ip").expect("ip is missing: apt-get install iproute2");
    let output = SystemExec.run(&ip, args, b"", Duration::from_secs(10)).unwrap();
    assert!(output.success(), "ip {args:?}: {}", output.complaint());
}

#[test]
fn pods_of_two_nodes_reach_each_other_in_both_families() {
    let [first, second] = two_nodes();
    for (own, name) in [(&first, "w1"), (&second, "w2")] {
        let report =
            own.run(|| Fabric::new(name, Settings::default()).reconcile(&snapshot(&[1, 2])).unwrap());
        assert_eq!(counts(&report), (2, 0, 0));
    }
    for (from, to) in [("172.16.1.1", "172.16.2.1"), ("fd00:10:0:1::1", "fd00:10:0:2::1")] {
        let to: IpAddr = to.parse().unwrap();
        let listener = second.run(|| TcpListener::bind((to, 0)).unwrap());
        let target = SocketAddr::new(to, listener.local_addr().unwrap().port());
        let said = first.run(|| {
            let mut client = connect_from(from, target);
            let (mut server, peer) = listener.accept().unwrap();
            assert_eq!(peer.ip(), from.parse::<IpAddr>().unwrap());
            server.write_all(b"hi").unwrap();
            drop(server);
            let mut said = String::new();
            client.read_to_string(&mut said).unwrap();
            said
        });
        assert_eq!(said, "hi");
    }
}

/// Connects from an address of a pod's bridge; polls while the links come up.
fn connect_from(from: &str, target: SocketAddr) -> std::net::TcpStream {
    // The route back is by the source, so ask the kernel for it with a route of the test's own.
    let source: IpAddr = from.parse().unwrap();
    let mut netlink = Netlink::open().unwrap();
    let mut route = netlink
        .routes(RouteFilter::own())
        .unwrap()
        .into_iter()
        .find(|route| route.destination.contains(target.ip()))
        .unwrap();
    route.source = Some(source);
    netlink.replace_route(&route).unwrap();
    eventually(Duration::from_secs(10), || {
        std::net::TcpStream::connect_timeout(&target, Duration::from_secs(1)).ok()
    })
    .expect("the other node's pod answers")
}

#[test]
fn routes_follow_the_nodes_and_foreign_ones_stay() {
    let [first, _second] = two_nodes();
    first.run(|| {
        let fabric = Fabric::new("w1", Settings::default());
        run_ip(&["route", "add", "10.55.0.0/16", "via", "192.168.1.2", "proto", "static"]);
        // Of an earlier run: a node that is gone, and one that has moved.
        for (to, via) in [("172.16.9.0/24", "192.168.1.9"), ("172.16.3.0/24", "192.168.1.99")] {
            run_ip(&["route", "add", to, "via", via, "proto", &ROUTE_PROTOCOL.to_string()]);
        }
        // Not a pod route although of our number: nobody's business here.
        run_ip(&["route", "add", "10.66.0.0/16", "dev", "netd0", "proto", &ROUTE_PROTOCOL.to_string()]);
        // To this node's own pods, and the answer for addresses without one: the CNI plugin's.
        let pods = POD_ROUTE_PROTOCOL.to_string();
        run_ip(&["route", "add", "172.16.1.9", "dev", "netd0", "proto", &pods]);
        run_ip(&["route", "add", "unreachable", "172.16.2.0/24", "proto", &pods, "metric", "2147483647"]);

        assert_eq!(counts(&fabric.reconcile(&snapshot(&[1, 2, 3])).unwrap()), (4, 2, 0));
        assert_eq!(counts(&fabric.reconcile(&snapshot(&[1, 2, 3])).unwrap()), (0, 0, 4));
        run_ip(&["route", "del", "172.16.2.0/24"]);
        run_ip(&["-6", "route", "del", "fd00:10:0:3::/64"]);
        assert_eq!(counts(&fabric.reconcile(&snapshot(&[1, 2, 3])).unwrap()), (2, 0, 2));
        assert_eq!(counts(&fabric.reconcile(&snapshot(&[1, 2])).unwrap()), (0, 2, 2));
        assert_eq!(counts(&fabric.reconcile(&Snapshot::default()).unwrap()), (0, 0, 0));

        assert_eq!(fabric.cleanup().unwrap(), 2);
        assert_eq!(fabric.cleanup().unwrap(), 0);
        let left = Netlink::open().unwrap().routes(RouteFilter::default()).unwrap();
        for prefix in ["10.55.0.0/16", "10.66.0.0/16"] {
            let prefix: IpNetwork = prefix.parse().unwrap();
            assert!(left.iter().any(|route| route.destination == prefix), "{prefix} is gone");
        }
        let of_pods = left.iter().filter(|route| route.protocol == POD_ROUTE_PROTOCOL);
        assert_eq!(of_pods.count(), 2, "{left:?}");
    });
}

#[test]
fn a_foreign_route_in_the_way_is_named_and_others_are_added() {
    let [first, _second] = two_nodes();
    first.run(|| {
        run_ip(&["route", "add", "172.16.2.0/24", "via", "192.168.1.77", "proto", "static"]);
        let report = Fabric::new("w1", Settings::default()).reconcile(&snapshot(&[1, 2, 3])).unwrap();
        assert_eq!((report.added, report.removed), (3, 0));
        let [problem] = &report.problems[..] else { panic!("{:?}", report.problems) };
        assert_eq!(problem.object, "172.16.2.0/24");
        assert!(problem.message.contains("is in the way"), "{}", problem.message);
    });
}
