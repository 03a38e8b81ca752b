//! Conversations with the real kernel, each in namespaces of its own. They need root.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::clock::eventually;
use crate::{Error, process};

/// A namespace of this test alone, removed when dropped.
pub(super) struct TestNs {
    namespace: Namespace,
    path: PathBuf,
}

impl TestNs {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(process::is_root(), "this test makes network namespaces and needs root");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("{}/nd-{}-k{number}", crate::netns::NETNS_DIR, std::process::id()));
        Self { namespace: Namespace::create(&path).unwrap(), path }
    }

    pub(super) fn netlink(&self) -> Netlink {
        Netlink::open_in(&self.namespace).unwrap()
    }
}

impl Drop for TestNs {
    fn drop(&mut self) {
        Namespace::remove(&self.path).unwrap();
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn bridge(netlink: &mut Netlink, name: &str) -> Ifindex {
    netlink.add_bridge(&BridgeSpec { name, ..BridgeSpec::default() }).unwrap()
}

#[test]
fn a_new_namespace_has_loopback_only() {
    let ns = TestNs::new();
    let links = ns.netlink().links().unwrap();
    let [lo] = links.as_slice() else { panic!("{links:?}") };
    assert!(lo.loopback && !lo.up && lo.index == Ifindex(1), "{lo:?}");
    assert!(!ns.namespace.is_same(&Namespace::current().unwrap()).unwrap());
    assert!(ns.namespace.is_same(&Namespace::open(&ns.path).unwrap()).unwrap());
}

#[test]
fn creating_a_namespace_twice_says_that_it_exists() {
    let ns = TestNs::new();
    assert!(Namespace::create(&ns.path).unwrap_err().is_exists());
    assert!(Namespace::open(&ns.path).is_ok(), "the first one must survive");
}

#[test]
fn what_is_no_network_namespace_is_refused() {
    assert!(matches!(Namespace::open("/dev/null".as_ref()), Err(Error::Invalid { .. })));
    assert!(matches!(Namespace::open("/proc/self/ns/mnt".as_ref()), Err(Error::Invalid { .. })));
    assert!(Namespace::open("/run/netns/nd-none".as_ref()).unwrap_err().is_not_found());
    Namespace::remove("/run/netns/nd-none".as_ref()).unwrap();
}

#[test]
fn a_bridge_has_what_was_asked_for() {
    let ns = TestNs::new();
    let mut netlink = ns.netlink();
    let mac = Mac([2, 0, 0, 0, 0, 7]);
    let spec = BridgeSpec { name: "br0", mac: Some(mac), mtu: Some(1400), alias: Some("netd: test") };
    let index = netlink.add_bridge(&spec).unwrap();
    let link = netlink.link("br0").unwrap().unwrap();
    assert_eq!((link.index, link.mac, link.mtu), (index, Some(mac), 1400));
    assert_eq!((link.kind.as_deref(), link.alias.as_deref()), (Some("bridge"), Some("netd: test")));
    assert!(netlink.add_bridge(&spec).unwrap_err().is_exists());
    netlink.delete_link(index).unwrap();
    assert_eq!(netlink.link("br0").unwrap(), None);
    assert_eq!(netlink.link_by_index(index).unwrap(), None);
    assert!(netlink.delete_link(index).unwrap_err().is_not_found());
}

#[test]
fn a_veth_goes_from_a_bridge_port_to_another_namespace() {
    let (host, pod) = (TestNs::new(), TestNs::new());
    let mut netlink = host.netlink();
    let master = bridge(&mut netlink, "br0");
    let spec = VethSpec {
        name: "veth1",
        mtu: Some(1400),
        master: Some(master),
        alias: Some("pod one"),
        peer_name: "eth0",
        peer_mac: Some(Mac([2, 0, 0, 0, 0, 9])),
        peer_namespace: Some(pod.namespace.fd()),
        ..VethSpec::default()
    };
    let port = netlink.add_veth(&spec).unwrap();
    netlink.set_hairpin(port, true).unwrap();
    let link = netlink.link_by_index(port).unwrap().unwrap();
    assert_eq!(
        (link.master, link.hairpin, link.alias.as_deref()),
        (Some(master), Some(true), Some("pod one"))
    );
    let inner = pod.netlink().link("eth0").unwrap().unwrap();
    assert_eq!((inner.mac, inner.mtu), (Some(Mac([2, 0, 0, 0, 0, 9])), 1400));
    assert_eq!((inner.peer, link.peer), (Some(port), Some(inner.index)));
    netlink.set_hairpin(port, false).unwrap();
    netlink.set_master(port, None).unwrap();
    let link = netlink.link_by_index(port).unwrap().unwrap();
    assert_eq!((link.master, link.hairpin), (None, None));
}

#[test]
fn a_link_moves_to_another_namespace() {
    let (from, to) = (TestNs::new(), TestNs::new());
    let mut netlink = from.netlink();
    let index = bridge(&mut netlink, "br0");
    // A bridge may not move; a veth end may.
    assert!(netlink.move_to(index, &to.namespace, "x").is_err());
    let index = netlink.add_veth(&VethSpec { name: "a", peer_name: "b", ..VethSpec::default() }).unwrap();
    netlink.move_to(index, &to.namespace, "moved").unwrap();
    assert_eq!(netlink.link("a").unwrap(), None);
    assert!(to.netlink().link("moved").unwrap().is_some());
}

#[test]
fn addresses_come_and_go() {
    let ns = TestNs::new();
    let mut netlink = ns.netlink();
    let index = bridge(&mut netlink, "br0");
    netlink.set_up(index).unwrap();
    for prefix in ["10.9.0.1/24", "fd00:9::1/64"] {
        netlink.add_address(index, net(prefix), true).unwrap();
        assert!(netlink.add_address(index, net(prefix), true).unwrap_err().is_exists());
    }
    let found = netlink.addresses(Some(index)).unwrap();
    let six = found.iter().find(|a| a.prefix == net("fd00:9::1/64")).unwrap();
    assert!(six.permanent && !six.tentative, "{six:?}");
    assert!(found.iter().any(|a| a.prefix == net("10.9.0.1/24")));
    assert!(netlink.addresses(Some(Ifindex(1))).unwrap().is_empty(), "the loopback link is down");
    netlink.delete_address(index, net("10.9.0.1/24")).unwrap();
    assert!(netlink.delete_address(index, net("10.9.0.1/24")).unwrap_err().is_not_found());
}

#[test]
fn routes_are_read_as_they_were_written() {
    let ns = TestNs::new();
    let mut netlink = ns.netlink();
    let index = bridge(&mut netlink, "br0");
    let mut setup = Batch::new();
    setup.set_up(index).add_address(index, net("10.9.0.1/24"), true).add_address(
        index,
        net("fd00:9::1/64"),
        true,
    );
    netlink.send(&setup).unwrap();
    let wanted = [
        Route::to(net("10.1.1.0/24")).via(ip("10.9.0.2")).dev(index),
        Route::to(net("10.1.2.0/24")).dev(index).from_source(ip("10.9.0.1")),
        Route::to(net("10.1.3.0/24")).via(ip("10.77.0.1")).dev(index).onlink(),
        Route::default_via(ip("10.9.0.3")).dev(index),
        Route::to(net("fd00:1::/64")).via(ip("fd00:9::2")).dev(index),
        Route::default_via(ip("fd00:9::3")).dev(index),
        Route { table: 1000, ..Route::to(net("10.1.4.0/24")).via(ip("10.9.0.2")).dev(index) },
        Route { mtu: 1400, ..Route::to(net("10.1.5.0/24")).via(ip("10.9.0.2")).dev(index) },
        Route {
            mtu: 1300,
            advertised_mss: 1200,
            ..Route::to(net("fd00:2::/64")).via(ip("fd00:9::2")).dev(index)
        },
    ];
    for route in &wanted {
        netlink.add_route(route).unwrap();
        assert!(netlink.add_route(route).unwrap_err().is_exists(), "{route}");
        netlink.replace_route(route).unwrap();
    }
    let own = netlink.routes(RouteFilter::own()).unwrap();
    for route in &wanted {
        assert!(own.contains(route), "{route:?} is not among {own:#?}");
    }
    assert_eq!(own.len(), wanted.len());
    assert_eq!(netlink.route_to(ip("10.1.1.7")).unwrap().gateway, Some(ip("10.9.0.2")));
    assert_eq!(netlink.route_to(ip("fd00:1::7")).unwrap().gateway, Some(ip("fd00:9::2")));
    for route in &own {
        netlink.delete_route(route).unwrap();
        assert!(netlink.delete_route(route).unwrap_err().is_not_found(), "{route}");
    }
    assert!(netlink.routes(RouteFilter::own()).unwrap().is_empty());
    assert_eq!(netlink.route_to(ip("10.1.1.7")).unwrap_err().errno(), Some(libc::ENETUNREACH));
}

#[test]
fn replacing_a_route_moves_its_gateway() {
    let ns = TestNs::new();
    let mut netlink = ns.netlink();
    let index = bridge(&mut netlink, "br0");
    netlink.set_up(index).unwrap();
    for (own, destination, first, second) in [
        ("10.9.0.1/24", "10.1.0.0/16", "10.9.0.2", "10.9.0.3"),
        ("fd00:9::1/64", "fd00:1::/64", "fd00:9::2", "fd00:9::3"),
    ] {
        netlink.add_address(index, net(own), true).unwrap();
        for gateway in [first, second] {
            netlink.replace_route(&Route::to(net(destination)).via(ip(gateway)).dev(index)).unwrap();
        }
        let family = Some(Family::of(ip(first)));
        let found = netlink.routes(RouteFilter { family, ..RouteFilter::own() }).unwrap();
        let [route] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(route.gateway, Some(ip(second)));
    }
}

#[test]
fn a_batch_names_the_first_that_failed_and_does_the_rest() {
    let ns = TestNs::new();
    let mut netlink = ns.netlink();
    let index = bridge(&mut netlink, "br0");
    let mut batch = Batch::new();
    batch.set_up(index).set_up(Ifindex(4711)).set_mtu(index, 1300).set_up(Ifindex(4712));
    let error = netlink.send(&batch).unwrap_err();
    assert!(matches!(&error, Error::Netlink { index: 1, .. }) && error.is_not_found(), "{error}");
    assert!(error.to_string().contains("4711"), "{error}");
    let link = netlink.link_by_index(index).unwrap().unwrap();
    assert!(link.up && link.mtu == 1300);
}

#[test]
fn a_large_batch_is_applied_whole_and_read_whole() {
    let ns = TestNs::new();
    let mut netlink = ns.netlink();
    let index = bridge(&mut netlink, "br0");
    netlink.set_up(index).unwrap();
    netlink.add_address(index, net("10.9.0.1/24"), true).unwrap();
    let mut batch = Batch::new();
    for number in 0..2000_u32 {
        let destination =
            IpNetwork::new(IpAddr::from([10, 100 + (number >> 8) as u8, number as u8, 0]), 24).unwrap();
        batch.add_route(&Route::to(destination).via(ip("10.9.0.2")).dev(index));
    }
    netlink.send(&batch).unwrap();
    assert_eq!(netlink.routes(RouteFilter::own()).unwrap().len(), 2000);
    let again = netlink.send(&batch).unwrap_err();
    assert!(again.is_exists() && matches!(again, Error::Netlink { index: 0, .. }));
}

#[test]
fn neighbours_come_and_go() {
    let ns = TestNs::new();
    let mut netlink = ns.netlink();
    let index = bridge(&mut netlink, "br0");
    netlink.set_up(index).unwrap();
    let mac = Mac([2, 0, 0, 0, 0, 5]);
    for address in ["10.9.0.7", "fd00:9::7"] {
        netlink.add_neighbour(index, ip(address), mac, true).unwrap();
        netlink.add_neighbour(index, ip(address), mac, true).unwrap();
        let all = netlink.neighbours(Some(index)).unwrap();
        let found = all.iter().find(|n| n.ip == ip(address)).unwrap();
        assert_eq!((found.mac, found.state), (Some(mac), NeighbourState::Permanent));
        netlink.delete_neighbour(index, ip(address)).unwrap();
        assert!(!netlink.neighbours(Some(index)).unwrap().iter().any(|n| n.ip == ip(address)));
    }
}

#[test]
fn the_kernels_own_words_are_in_the_error() {
    let ns = TestNs::new();
    let mut netlink = ns.netlink();
    let index = bridge(&mut netlink, "br0");
    netlink.set_up(index).unwrap();
    let unreachable = Route::to(net("10.1.0.0/16")).via(ip("10.200.0.1")).dev(index);
    let error = netlink.add_route(&unreachable).unwrap_err();
    assert!(error.to_string().contains("gateway"), "{error}");
}

#[test]
fn a_dump_is_whole_although_the_table_changes() {
    let ns = TestNs::new();
    let mut netlink = ns.netlink();
    let index = bridge(&mut netlink, "br0");
    netlink.set_up(index).unwrap();
    for number in 0..=200_u8 {
        netlink
            .add_address(index, IpNetwork::new(IpAddr::from([10, 8, number, 1]), 24).unwrap(), true)
            .unwrap();
    }
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            let mut other = ns.netlink();
            for _ in 0..200 {
                other.add_address(index, net("10.9.0.1/24"), true).unwrap();
                other.delete_address(index, net("10.9.0.1/24")).unwrap();
            }
        });
        while !changes.is_finished() {
            let found = match netlink.addresses(Some(index)) {
                Ok(found) => found,
                Err(error) if error.errno() == Some(libc::EINTR) => continue,
                Err(error) => panic!("{error}"),
            };
            let steady = found.iter().filter(|a| a.prefix.ip().to_string().starts_with("10.8.")).count();
            assert_eq!(steady, 201);
        }
    });
}

#[test]
fn names_the_kernel_would_refuse_are_refused_here() {
    let ns = TestNs::new();
    let mut netlink = ns.netlink();
    for name in ["", ".", "..", "a/b", "a b", "sixteen-bytes-xx"] {
        assert!(matches!(netlink.link(name), Err(Error::Invalid { .. })), "{name:?}");
    }
}

#[test]
fn a_sysctl_belongs_to_its_namespace() {
    let ns = TestNs::new();
    let key = "net/ipv4/ip_forward";
    let outside = crate::sysctl::read(key).unwrap();
    let value = if crate::sysctl::read_in(&ns.namespace, key).unwrap() == "1" { "0" } else { "1" };
    assert!(crate::sysctl::write_in(&ns.namespace, key, value).unwrap());
    assert!(!crate::sysctl::write_in(&ns.namespace, key, value).unwrap(), "written again although equal");
    assert_eq!(crate::sysctl::read_in(&ns.namespace, key).unwrap(), value);
    assert_eq!(crate::sysctl::read(key).unwrap(), outside);
}

#[test]
fn a_child_starts_in_its_namespace_and_cgroup() {
    let ns = TestNs::new();
    let root = crate::mount::cgroup2_root().unwrap();
    let cgroup = root.join(format!("nd-{}-spawn", std::process::id()));
    assert!(crate::cgroup::create(&cgroup).unwrap());
    let mut spawn = crate::exec::Spawn::new("/bin/sleep", ["1000"]);
    spawn.netns = Some(ns.path.clone());
    spawn.cgroup = Some(cgroup.clone());
    let mut child = spawn.start().unwrap();
    let inside = Namespace::open(format!("/proc/{}/ns/net", child.pid()).as_ref()).unwrap();
    assert!(inside.is_same(&ns.namespace).unwrap());
    assert_eq!(crate::cgroup::processes(&cgroup).unwrap(), [child.pid()]);
    // Reaping is ours, so the cgroup can only empty while somebody waits for the child.
    std::thread::scope(|scope| {
        let removed = scope.spawn(|| crate::cgroup::remove(&cgroup).unwrap());
        assert_eq!(child.wait().unwrap(), 128 + 9);
        assert_eq!(removed.join().unwrap(), (1, 1));
    });
    assert!(eventually(std::time::Duration::from_secs(1), || (!cgroup.exists()).then_some(())).is_some());
    assert_eq!(crate::cgroup::remove(&cgroup).unwrap(), (0, 0));
}

#[test]
fn a_panic_in_another_namespace_reaches_the_caller() {
    let ns = TestNs::new();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = ns.namespace.run(|| -> () { panic!("inside") });
    }));
    assert!(caught.is_err());
}

#[test]
fn a_visit_ends_at_home_also_after_a_panic() {
    let (ns, home) = (TestNs::new(), Namespace::current().unwrap());
    assert!(ns.namespace.visit(&home, || Namespace::is_current(&ns.path)).unwrap());
    assert!(!Namespace::is_current(&ns.path));
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = ns.namespace.visit(&home, || -> () { panic!("inside") });
    }));
    assert!(caught.is_err());
    assert!(Namespace::current().unwrap().is_same(&home).unwrap());
}

#[test]
fn numbers_and_sizes_of_links_are_told_without_a_message() {
    let ns = TestNs::new();
    let mut netlink = ns.netlink();
    let index = bridge(&mut netlink, "fifteen-letters");
    netlink.set_mtu(index, 1400).unwrap();
    assert_eq!(netlink.link_index("fifteen-letters").unwrap(), Some(index));
    assert_eq!(netlink.link_index("fifteen-letter").unwrap(), None);
    assert_eq!(netlink.link_mtu(index).unwrap(), Some(1400));
    assert_eq!(netlink.link_mtu(Ifindex(4711)).unwrap(), None);
    netlink.refresh_carrier("fifteen-letters").unwrap();
    assert_eq!(netlink.link("fifteen-letters").unwrap().map(|link| link.index), Some(index));
}

#[test]
fn a_vxlan_device_is_read_as_it_was_made_and_keeps_its_forwarding_entries() {
    let ns = TestNs::new();
    let mut netlink = ns.netlink();
    assert_eq!(netlink.vxlan("vx0").unwrap(), None);
    bridge(&mut netlink, "br0");
    assert_eq!(netlink.vxlan("br0").unwrap(), None);
    let local = Some("127.0.0.1".parse().unwrap());
    let tunnel = VxlanTunnel { vni: 77, port: 8472, local, learning: false };
    let mac = Mac([0x0a, 0x8d, 1, 2, 3, 4]);
    let spec = VxlanSpec { name: "vx0", mac, mtu: 1450, alias: Some("a test's"), tunnel };
    netlink.send(Batch::new().add_vxlan(&spec)).unwrap();
    let made = netlink.vxlan("vx0").unwrap().unwrap();
    assert_eq!((made.tunnel, made.link.mac, made.link.mtu), (tunnel, Some(mac), 1450));
    assert_eq!(made.link.alias.as_deref(), Some("a test's"));

    let (link, peer) = (made.link.index, Mac([0x0a, 0x8d, 9, 9, 9, 9]));
    netlink.set_up(link).unwrap();
    for destination in ["192.0.2.1", "192.0.2.2"] {
        netlink.send(Batch::new().add_fdb(link, peer, ip(destination))).unwrap();
        let entry = FdbEntry { link, mac: peer, destination: ip(destination), permanent: true };
        assert_eq!(netlink.fdb(link).unwrap(), [entry]);
    }
    netlink.send(Batch::new().delete_fdb(link, peer)).unwrap();
    assert_eq!(netlink.fdb(link).unwrap(), []);
    assert!(netlink.send(Batch::new().delete_fdb(link, peer)).unwrap_err().is_not_found());
}
