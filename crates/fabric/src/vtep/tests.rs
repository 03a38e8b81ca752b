//! Three nodes with a pod each: two on one LAN, the third on another, with a router between that knows no pods.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use netd_kernel::clock::eventually;
use netd_kernel::netlink::{Route, RouteFilter};
use netd_kernel::sysctl;
use netd_model::{Node, Snapshot};

use super::*;
use crate::overlay::{Mode, vtep_mac};
use crate::reconcile::tests::{Own, run_ip};
use crate::reconcile::{Fabric, Report};

const WAIT: Duration = Duration::from_secs(10);

struct Site {
    router: Own,
    /// w1 and w3 on the first LAN, w2 on the second.
    nodes: [Own; 3],
    pods: [Own; 3],
}

fn ip(line: &str) {
    run_ip(&line.split_whitespace().collect::<Vec<_>>());
}

fn name(own: &Own) -> String {
    own.0.path().file_name().unwrap().to_str().unwrap().to_owned()
}

impl Site {
    fn new() -> Self {
        let three = || [Own::new(), Own::new(), Own::new()];
        let site = Self { router: Own::new(), nodes: three(), pods: three() };
        site.router.run(|| {
            ip("link add lan1 type bridge");
            for (number, node) in (1..).zip(&site.nodes) {
                ip(&format!("link add port{number} type veth peer name eth0 netns {}", name(node)));
                ip(&format!("link set port{number} up"));
            }
            ip("link set lan1 up");
            ip("link set port1 master lan1");
            ip("link set port3 master lan1");
            ip("address add 192.168.1.254/24 dev lan1");
            ip("address add 192.168.2.254/24 dev port2");
            sysctl::write("net/ipv4/ip_forward", "1").unwrap();
        });
        for ((number, node), pod) in (1..).zip(&site.nodes).zip(&site.pods) {
            node.run(|| set_up_node(number, pod));
            pod.run(|| {
                ip("link set eth0 up");
                ip(&format!("address add 172.16.{number}.10/24 dev eth0"));
                ip(&format!("address add fd00:10:0:{number}::10/64 dev eth0 nodad"));
                ip(&format!("route add default via 172.16.{number}.1"));
                ip(&format!("-6 route add default via fd00:10:0:{number}::1"));
            });
        }
        site
    }

    fn reconcile_all(&self, mode: Mode) {
        for (number, node) in (1..).zip(&self.nodes) {
            let report = node.run(|| fabric(number, mode).reconcile(&snapshot(&[1, 2, 3])).unwrap());
            assert_eq!(report.problems, [], "w{number}");
            assert_eq!((report.added, report.pod_mtu), (4, Some(1450)), "w{number}");
        }
        for pod in &self.pods {
            pod.run(|| ip("link set eth0 mtu 1450"));
        }
    }

    /// Packets as large as a pod may send pass both ways, and so does a stream.
    fn exchange(&self, from: &Own, source: &str, to: &Own, target: &str) {
        let overhead = if target.contains(':') { 48 } else { 28 };
        let server = to.run(|| UdpSocket::bind(SocketAddr::new(target.parse().unwrap(), 0)).unwrap());
        let client = from.run(|| UdpSocket::bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap());
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        }
        let large = vec![7_u8; 1450 - overhead];
        let passed = eventually(WAIT, || {
            client.send_to(&large, server.local_addr().unwrap()).ok()?;
            let mut buffer = [0; 2000];
            let (length, peer) = server.recv_from(&mut buffer).ok()?;
            assert_eq!((length, peer), (large.len(), client.local_addr().unwrap()));
            server.send_to(&large, peer).unwrap();
            (client.recv(&mut buffer).ok()? == large.len()).then_some(())
        });
        assert!(passed.is_some(), "{source} to {target}");
        self.stream(from, source, to, target);
    }

    fn stream(&self, from: &Own, source: &str, to: &Own, target: &str) {
        let listener = to.run(|| TcpListener::bind(SocketAddr::new(target.parse().unwrap(), 0)).unwrap());
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut server, peer) = listener.accept().unwrap();
            server.write_all(&vec![1; 1 << 20]).unwrap();
            peer
        });
        let mut client = from.run(|| TcpStream::connect_timeout(&address, WAIT).unwrap());
        client.set_read_timeout(Some(WAIT)).unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 1 << 20);
        assert_eq!(server.join().unwrap().ip(), source.parse::<IpAddr>().unwrap());
    }

    /// No packet had to be cut, on a node or on the way.
    fn assert_nothing_fragmented(&self) {
        for machine in self.nodes.iter().chain([&self.router]) {
            let table = machine.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
            let mut lines = table.lines().filter(|line| line.starts_with("Ip:"));
            let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
            let created = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "FragCreates");
            assert_eq!(created.unwrap().1, "0", "{table}");
        }
    }
}

fn set_up_node(number: u8, pod: &Own) {
    let lan = if number == 2 { 2 } else { 1 };
    ip("link set lo up");
    ip("link set eth0 up");
    ip(&format!("address add 192.168.{lan}.{number}/24 dev eth0"));
    if lan == 1 {
        ip(&format!("address add 2001:db8:1::{number}/64 dev eth0 nodad"));
    }
    ip(&format!("route add default via 192.168.{lan}.254"));
    ip(&format!("link add pod0 type veth peer name eth0 netns {}", name(pod)));
    ip("link set pod0 up");
    ip(&format!("address add 172.16.{number}.1/24 dev pod0"));
    ip(&format!("address add fd00:10:0:{number}::1/64 dev pod0 nodad"));
    sysctl::write("net/ipv4/ip_forward", "1").unwrap();
    sysctl::write("net/ipv6/conf/all/forwarding", "1").unwrap();
}

fn fabric(number: u8, mode: Mode) -> Fabric {
    Fabric::new(format!("w{number}"), Settings { mode, ..Settings::default() })
}

fn node(number: u8) -> Node {
    let lan = if number == 2 { 2 } else { 1 };
    let mut internal: Vec<IpAddr> = vec![format!("192.168.{lan}.{number}").parse().unwrap()];
    if lan == 1 {
        internal.push(format!("2001:db8:1::{number}").parse().unwrap());
    }
    Node {
        name: format!("w{number}").into(),
        addresses: internal.clone(),
        internal_addresses: internal,
        pod_cidrs: vec![
            format!("172.16.{number}.0/24").parse().unwrap(),
            format!("fd00:10:0:{number}::/64").parse().unwrap(),
        ],
        zone: None,
        leaving: false,
    }
}

fn snapshot(numbers: &[u8]) -> Snapshot {
    let nodes = numbers.iter().map(|number| Arc::new(node(*number)));
    Snapshot { nodes: nodes.map(|node| (Arc::clone(&node.name), node)).collect(), ..Snapshot::default() }
}

/// Routes added, removed and right; changes to the device.
fn counts(report: &Report) -> (usize, usize, usize, usize) {
    assert_eq!(report.problems, [], "problems");
    (report.added, report.removed, report.kept, report.written)
}

fn pod_routes(netlink: &mut Netlink) -> Vec<Route> {
    netlink.routes(RouteFilter::own()).unwrap()
}

fn device(netlink: &mut Netlink) -> Vxlan {
    netlink.vxlan(DEVICE).unwrap().expect("the device is there")
}

/// Permanent neighbours and forwarding entries of the device.
fn listed(netlink: &mut Netlink) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let link = device(netlink).link.index;
    let permanent = |entry: &netd_kernel::netlink::Neighbour| {
        entry.state == NeighbourState::Permanent && !is_group(entry.ip)
    };
    let found = netlink.neighbours(Some(link)).unwrap();
    let mut neighbours: Vec<_> =
        found.iter().filter(|entry| permanent(entry)).map(|entry| entry.ip).collect();
    neighbours.sort();
    let mut forwarding: Vec<_> =
        netlink.fdb(link).unwrap().into_iter().map(|entry| entry.destination).collect();
    forwarding.sort();
    (neighbours, forwarding)
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn pods_reach_each_other_across_lans_and_directly_on_one() {
    let site = Site::new();
    site.reconcile_all(Mode::Auto);
    let [n1, n2, _] = &site.nodes;
    let [p1, p2, p3] = &site.pods;
    for (from, to) in [("172.16.1.10", "172.16.2.10"), ("fd00:10:0:1::10", "fd00:10:0:2::10")] {
        site.exchange(p1, from, p2, to);
        site.exchange(p2, to, p1, from);
    }
    for (from, to) in [("172.16.1.10", "172.16.3.10"), ("fd00:10:0:1::10", "fd00:10:0:3::10")] {
        site.exchange(p1, from, p3, to);
    }
    // What a node itself sends comes from its end of the tunnel, so the answer takes the same way.
    site.stream(n1, "172.16.1.0", p2, "172.16.2.10");
    site.stream(n1, "fd00:10:0:1::", p2, "fd00:10:0:2::10");
    site.assert_nothing_fragmented();
    // Pods of before the tunnel was needed are told the smaller size by their node.
    for pod in [p1, p2] {
        pod.run(|| ip("link set eth0 mtu 1500"));
    }
    for (one, other) in [("172.16.1.10", "172.16.2.10"), ("fd00:10:0:1::10", "fd00:10:0:2::10")] {
        site.stream(p1, one, p2, other);
        site.stream(p2, other, p1, one);
    }
    site.assert_nothing_fragmented();
    n1.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let (eth0, tunnel) = (netlink.link("eth0").unwrap().unwrap().index, device(&mut netlink));
        assert_eq!(tunnel.link.mac, Some(vtep_mac([192, 168, 1, 1].into())));
        assert_eq!((tunnel.link.mtu, tunnel.tunnel.port, tunnel.tunnel.learning), (1450, 8472, false));
        let mut ways: Vec<_> = pod_routes(&mut netlink)
            .into_iter()
            .map(|route| {
                (route.destination.to_string(), route.gateway.unwrap().to_string(), route.link.unwrap())
            })
            .collect();
        ways.sort();
        let way = |to: &str, via: &str, link| (to.to_owned(), via.to_owned(), link);
        assert_eq!(
            ways,
            [
                way("172.16.2.0/24", "172.16.2.0", tunnel.link.index),
                way("172.16.3.0/24", "192.168.1.3", eth0),
                way("fd00:10:0:2::/64", "fd00:10:0:2::", tunnel.link.index),
                way("fd00:10:0:3::/64", "2001:db8:1::3", eth0),
            ]
        );
        assert_eq!(listed(&mut netlink), (ips(&["172.16.2.0", "fd00:10:0:2::"]), ips(&["192.168.2.2"])));
    });
    n2.run(|| {
        let both = ips(&["192.168.1.1", "192.168.1.3"]);
        assert_eq!(listed(&mut Netlink::open().unwrap()).1, both);
    });
}

#[test]
fn in_vxlan_mode_the_same_lan_is_tunnelled_too() {
    let site = Site::new();
    site.reconcile_all(Mode::Vxlan);
    let [p1, _, p3] = &site.pods;
    for (from, to) in [("172.16.1.10", "172.16.3.10"), ("fd00:10:0:1::10", "fd00:10:0:3::10")] {
        site.exchange(p1, from, p3, to);
    }
    site.assert_nothing_fragmented();
}

#[test]
fn entries_are_put_back_swept_and_never_rewritten() {
    let site = Site::new();
    let [n1, ..] = &site.nodes;
    n1.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let all = snapshot(&[1, 2, 3]);
        let mode = Mode::Vxlan;
        // The device, its alias, on; two addresses; two neighbours and one forwarding entry a peer.
        assert_eq!(counts(&fabric(1, mode).reconcile(&all).unwrap()), (4, 0, 0, 3 + 2 + 2 * 3));
        let link = device(&mut netlink).link.index;
        // A new process.
        assert_eq!(counts(&fabric(1, mode).reconcile(&all).unwrap()), (0, 0, 4, 0));
        assert_eq!(device(&mut netlink).link.index, link);

        // Lost, changed and left over: all is made right; another's device is not looked at.
        ip("link add other0 type vxlan id 7 dstport 4789 nolearning");
        ip("link set other0 up");
        let other = netlink.link("other0").unwrap().unwrap().index;
        let (peer, stranger) = (vtep_mac([192, 168, 2, 2].into()), Mac([0x0a, 0x8d, 9, 9, 9, 9]));
        let [gone, left] = ["172.16.2.0", "172.16.9.0"].map(|text| text.parse::<IpAddr>().unwrap());
        let mut batch = Batch::new();
        batch.delete_neighbour(link, gone).delete_fdb(link, peer);
        batch.add_neighbour(link, "fd00:10:0:3::".parse().unwrap(), stranger, true);
        batch.add_neighbour(link, left, stranger, true).add_fdb(link, stranger, left);
        batch.add_neighbour(other, left, stranger, true).add_fdb(other, stranger, left);
        batch.add_address(link, "172.16.9.9/32".parse().unwrap(), true).set_mtu(link, 1400);
        netlink.send(&batch).unwrap();
        ip("route del 172.16.2.0/24");
        assert_eq!(counts(&fabric(1, mode).reconcile(&all).unwrap()), (1, 0, 3, 7));
        assert_eq!(counts(&fabric(1, mode).reconcile(&all).unwrap()), (0, 0, 4, 0));
        assert_eq!(device(&mut netlink).link.mtu, 1450);
        assert_eq!(netlink.fdb(other).unwrap().len(), 1);

        // A node leaves: its route, neighbour and forwarding entries go, the other's stay.
        assert_eq!(counts(&fabric(1, mode).reconcile(&snapshot(&[1, 3])).unwrap()), (0, 2, 2, 3));
        assert_eq!(listed(&mut netlink), (ips(&["172.16.3.0", "fd00:10:0:3::"]), ips(&["192.168.1.3"])));
        // Nothing known of any node: nothing is touched.
        assert_eq!(counts(&fabric(1, mode).reconcile(&Snapshot::default()).err_free()), (0, 0, 0, 0));
        assert_eq!(listed(&mut netlink).1.len(), 1);

        // Off and deleted by somebody.
        ip("link set netd-vxlan down");
        let report = fabric(1, mode).reconcile(&snapshot(&[1, 3])).unwrap();
        assert_eq!((report.added, report.problems), (2, vec![]));
        ip("link del netd-vxlan");
        let report = fabric(1, mode).reconcile(&snapshot(&[1, 3])).unwrap();
        assert_eq!((report.added, report.problems), (2, vec![]));

        assert_eq!(fabric(1, mode).cleanup().unwrap(), 2);
        assert_eq!(netlink.vxlan(DEVICE).unwrap(), None);
        assert!(netlink.link("other0").unwrap().is_some());
        assert_eq!(fabric(1, mode).cleanup().unwrap(), 0);
    });
}

#[test]
fn a_node_that_is_made_anew_with_another_address_is_reached_there() {
    let site = Site::new();
    let [n1, ..] = &site.nodes;
    n1.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let mut nodes = snapshot(&[1, 2]);
        fabric(1, Mode::Auto).reconcile(&nodes).unwrap();
        let link = device(&mut netlink).link.index;
        assert_eq!(listed(&mut netlink).1, ips(&["192.168.2.2"]));
        let mut moved = node(2);
        moved.internal_addresses = ips(&["192.168.2.22"]);
        nodes.nodes.insert("w2".into(), Arc::new(moved));
        let report = fabric(1, Mode::Auto).reconcile(&nodes).unwrap();
        // Two neighbours get the new Ethernet address; one forwarding entry goes and one comes; routes stay.
        assert_eq!((counts(&report), report.problems), ((0, 0, 2, 4), vec![]));
        assert_eq!(listed(&mut netlink), (ips(&["172.16.2.0", "fd00:10:0:2::"]), ips(&["192.168.2.22"])));
        let new = Some(vtep_mac([192, 168, 2, 22].into()));
        let entries = netlink.neighbours(Some(link)).unwrap();
        let ours = entries.iter().filter(|e| e.state == NeighbourState::Permanent && !is_group(e.ip));
        assert!(ours.clone().count() == 2 && ours.clone().all(|entry| entry.mac == new), "{entries:?}");
        assert_eq!(device(&mut netlink).link.index, link, "the device stays");
    });
}

/// A snapshot without nodes tells of this node's missing Node object; here that does not matter.
trait ErrFree {
    fn err_free(self) -> Report;
}

impl ErrFree for Result<Report, Error> {
    fn err_free(self) -> Report {
        Report { problems: Vec::new(), ..self.unwrap() }
    }
}

#[test]
fn modes_and_addresses_change_without_a_trace() {
    let site = Site::new();
    let [n1, ..] = &site.nodes;
    n1.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let all = snapshot(&[1, 2, 3]);
        let report = fabric(1, Mode::Auto).reconcile(&snapshot(&[1, 3])).unwrap();
        assert_eq!((counts(&report), report.pod_mtu), ((2, 0, 0, 0), None));
        assert_eq!(netlink.vxlan(DEVICE).unwrap(), None);
        // From direct to tunnelled and back, in place.
        let report = fabric(1, Mode::Vxlan).reconcile(&all).unwrap();
        assert_eq!((report.added, report.removed, report.problems), (4, 2, vec![]));
        let report = fabric(1, Mode::Auto).reconcile(&all).unwrap();
        assert_eq!(counts(&report), (2, 2, 2, 3));

        // This node's Node object is gone for a while: the tunnel's routes stay, and so does the device.
        let report = fabric(1, Mode::Auto).reconcile(&snapshot(&[2, 3])).unwrap();
        assert_eq!((report.added, report.removed, report.written, report.problems.len()), (0, 0, 0, 1));
        assert_eq!(report.pod_mtu, Some(1450));
        assert_eq!(pod_routes(&mut netlink).len(), 4);

        // The uplink carries less; the node gets another address.
        ip("link set eth0 mtu 1400");
        let report = fabric(1, Mode::Auto).reconcile(&all).unwrap();
        assert_eq!((counts(&report), report.pod_mtu), ((0, 0, 4, 1), Some(1350)));
        ip("address add 192.168.1.11/24 dev eth0");
        let mut moved = node(1);
        moved.internal_addresses = ips(&["192.168.1.11"]);
        let mut moved_all = all.clone();
        moved_all.nodes.insert("w1".into(), Arc::new(moved));
        let report = fabric(1, Mode::Auto).reconcile(&moved_all).unwrap();
        assert_eq!((report.added, report.problems), (2, vec![]));
        let found = device(&mut netlink);
        assert_eq!(found.link.mac, Some(vtep_mac([192, 168, 1, 11].into())));
        assert_eq!(found.tunnel.local, Some([192, 168, 1, 11].into()));

        // Nobody is far any more; and where VXLAN is not wanted, the far node is named.
        let report = fabric(1, Mode::Auto).reconcile(&snapshot(&[1, 3])).unwrap();
        assert_eq!(counts(&report), (0, 0, 2, 1));
        let report = fabric(1, Mode::HostGw).reconcile(&all).unwrap();
        assert_eq!((report.kept, report.problems.len(), report.pod_mtu), (2, 2, None));
        assert_eq!(netlink.vxlan(DEVICE).unwrap(), None);
    });
}
