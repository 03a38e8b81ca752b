use std::sync::Arc;

use super::*;
use crate::routes::{Desired, desired};

fn node(name: &str, addresses: &[&str], prefixes: &[&str]) -> (Arc<str>, Arc<Node>) {
    let internal: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    let node = Node {
        name: name.into(),
        addresses: internal.clone(),
        internal_addresses: internal,
        pod_cidrs: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(),
        zone: None,
        leaving: false,
    };
    (name.into(), Arc::new(node))
}

fn own() -> (Arc<str>, Arc<Node>) {
    node("w1", &["192.168.1.1", "2001:db8::1"], &["172.16.1.0/24", "fd00:10:0:1::/64"])
}

fn near() -> (Arc<str>, Arc<Node>) {
    node("w2", &["192.168.1.2", "2001:db8::2"], &["172.16.2.0/24", "fd00:10:0:2::/64"])
}

fn far() -> (Arc<str>, Arc<Node>) {
    node("w3", &["10.0.3.3"], &["172.16.3.0/24", "fd00:10:0:3::/64"])
}

fn planned(nodes: &[(Arc<str>, Arc<Node>)], mode: Mode) -> Desired {
    let at = |address: &str| Attached {
        link: Ifindex(2),
        name: "eth0".to_owned(),
        address: address.parse().unwrap(),
        up: true,
        mtu: 9000,
    };
    desired(&nodes.iter().cloned().collect(), "w1", &[at("192.168.1.1/24"), at("2001:db8::1/64")], mode)
}

#[track_caller]
fn vtep(planned: &Desired) -> &Vtep {
    assert_eq!(planned.problems, []);
    let Overlay::Used(vtep) = &planned.overlay else { panic!("{:?}", planned.overlay) };
    vtep
}

fn destinations(planned: &Desired) -> Vec<String> {
    planned.routes.keys().map(ToString::to_string).collect()
}

#[test]
fn auto_routes_directly_on_the_lan_and_tunnels_elsewhere() {
    let planned = planned(&[own(), near(), far()], Mode::Auto);
    assert_eq!(destinations(&planned), ["172.16.2.0/24", "fd00:10:0:2::/64"]);
    let vtep = vtep(&planned);
    assert_eq!((vtep.local, vtep.mtu), (Ipv4Addr::new(192, 168, 1, 1), 8950));
    assert_eq!(vtep.mac().to_string(), "0a:8d:c0:a8:01:01");
    let addresses: Vec<_> = vtep.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["172.16.1.0/32", "fd00:10:0:1::/128"]);
    let routes: Vec<_> = vtep.routes(Ifindex(9)).map(|route| route.to_string()).collect();
    assert_eq!(routes, ["172.16.3.0/24 via 172.16.3.0 dev 9", "fd00:10:0:3::/64 via fd00:10:0:3:: dev 9"]);
    assert!(vtep.routes(Ifindex(9)).all(|route| route.onlink));
    let mac = vtep_mac(Ipv4Addr::new(10, 0, 3, 3));
    let neighbours: Vec<_> = vtep.neighbours().into_iter().collect();
    assert_eq!(neighbours, [("172.16.3.0".parse().unwrap(), mac), ("fd00:10:0:3::".parse().unwrap(), mac)]);
    let forwarding: Vec<_> = vtep.forwarding().into_iter().collect();
    assert_eq!(forwarding, [(mac.0, Ipv4Addr::new(10, 0, 3, 3))]);
}

#[test]
fn on_one_lan_auto_has_no_device_and_vxlan_has_one_even_without_peers() {
    let direct = planned(&[own(), near()], Mode::Auto);
    assert_eq!((direct.overlay, direct.routes.len()), (Overlay::Unused, 2));
    let tunnelled = planned(&[own(), near()], Mode::Vxlan);
    assert_eq!((vtep(&tunnelled).peers.len(), tunnelled.routes.len()), (1, 0));
    assert_eq!(vtep(&planned(&[own()], Mode::Vxlan)).peers.len(), 0);
}

#[test]
fn host_gw_never_tunnels() {
    let planned = planned(&[own(), near(), far()], Mode::HostGw);
    assert_eq!((&planned.overlay, planned.routes.len()), (&Overlay::Unused, 2));
    let told: Vec<_> = planned.problems.iter().map(|problem| problem.message.as_str()).collect();
    assert!(told.iter().any(|message| message.contains("needs vxlan (fabric.mode: auto)")), "{told:?}");
}

#[test]
fn what_this_nodes_end_lacks_is_named_and_direct_routes_stay() {
    let without_address = node("w1", &["2001:db8::1"], &["172.16.1.0/24"]);
    let elsewhere = node("w1", &["203.0.113.9"], &["172.16.1.0/24"]);
    for (nodes, words) in [
        (vec![near(), far()], "no Node object"),
        (vec![without_address, near(), far()], "no IPv4 InternalIP"),
        (vec![elsewhere, near(), far()], "an address of none of its links"),
    ] {
        let planned = planned(&nodes, Mode::Auto);
        assert_eq!((&planned.overlay, planned.routes.len()), (&Overlay::Unknown, 2));
        let [problem] = &planned.problems[..] else { panic!("{:?}", planned.problems) };
        assert!(problem.object == "w1" && problem.message.contains(words), "{}", problem.message);
    }
}

#[test]
fn a_peer_that_cannot_be_tunnelled_to_is_named_and_others_are_served() {
    for (addresses, prefix, words) in [
        (["10.0.4.4"], "10.0.0.0/16", "into itself"),
        (["10.0.4.4"], "192.168.0.0/16", "into itself"),
        (["10.0.4.4"], "172.16.3.0/25", "overlaps"),
        (["192.168.1.1"], "172.16.4.0/24", "this node's own address"),
        (["2001:db8:9::4"], "fd00:10:0:4::/64", "an IPv4 InternalIP"),
    ] {
        for mode in [Mode::Auto, Mode::Vxlan] {
            let planned = planned(&[own(), far(), node("w4", &addresses, &[prefix])], mode);
            let [problem] = &planned.problems[..] else { panic!("{:?}", planned.problems) };
            assert!(problem.object == "w4" && problem.message.contains(words), "{}", problem.message);
            assert!(matches!(&planned.overlay, Overlay::Used(vtep) if vtep.peers.len() == 1));
        }
    }
}

#[test]
fn the_ethernet_address_is_local_and_unicast() {
    assert_eq!(vtep_mac(Ipv4Addr::BROADCAST).0[0] & 0b11, 0b10);
}
