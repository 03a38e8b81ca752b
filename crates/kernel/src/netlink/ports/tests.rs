//! The bytes of the messages, and the real kernel's answer to them.

use std::path::PathBuf;

use ipnetwork::IpNetwork;

use super::*;
use crate::link::Link;
use crate::netlink::{BridgeSpec, POD_ROUTE_PROTOCOL, Route, RouteFilter, RouteKind, VethSpec};
use crate::netns::{NETNS_DIR, Namespace};
use crate::{process, sysctl};

/// An empty namespace with bridge `br0` and a port `p0`, removed when dropped.
struct Bed {
    namespace: Namespace,
    path: PathBuf,
}

impl Bed {
    fn new(role: &str) -> Self {
        assert!(process::is_root(), "this test makes network namespaces and needs root");
        let path = PathBuf::from(format!("{NETNS_DIR}/nd-{}-{role}", std::process::id()));
        Self { namespace: Namespace::create(&path).unwrap(), path }
    }

    fn netlink(&self) -> Netlink {
        Netlink::open_in(&self.namespace).unwrap()
    }

    fn port(&self) -> (Netlink, Link, Link) {
        let mut netlink = self.netlink();
        let bridge = netlink.add_bridge(&BridgeSpec { name: "br0", ..BridgeSpec::default() }).unwrap();
        let spec =
            VethSpec { name: "p0", master: Some(bridge), peer_name: "q0", up: true, ..VethSpec::default() };
        netlink.make_veth(&spec).unwrap();
        let [bridge, port] = ["br0", "p0"].map(|name| netlink.link(name).unwrap().unwrap());
        (netlink, bridge, port)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        Namespace::remove(&self.path).unwrap();
    }
}

/// `struct ifinfomsg` of a bridge port, then the attributes.
fn bridge_message(index: u8, attributes: &[u8]) -> Vec<u8> {
    let mut all = vec![7, 0, 0, 0, index, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    all.extend(attributes);
    all
}

#[test]
fn a_native_vlan_is_told_as_the_bridge_command_tells_it() {
    let flags = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
    let message = vlan_message(libc::RTM_SETLINK, Ifindex(5), 100..=100, flags);
    // IFLA_AF_SPEC (26) { IFLA_BRIDGE_FLAGS (0) = MASTER, IFLA_BRIDGE_VLAN_INFO (2) = PVID | UNTAGGED, 100 }
    let expected = bridge_message(5, &[20, 0, 26, 0, 6, 0, 0, 0, 1, 0, 0, 0, 8, 0, 2, 0, 0b110, 0, 100, 0]);
    assert_eq!(message.payload(), expected);
}

#[test]
fn vlans_of_a_trunk_are_a_range() {
    let message = vlan_message(libc::RTM_SETLINK, Ifindex(5), 0x101..=0xffe, BridgeVlanInfoFlags::empty());
    let expected = bridge_message(
        5,
        &[
            28, 0, 26, 0, 6, 0, 0, 0, 1, 0, 0, 0, //
            8, 0, 2, 0, 0b1000, 0, 0x01, 0x01, // from
            8, 0, 2, 0, 0b1_0000, 0, 0xfe, 0x0f, // to
        ],
    );
    assert_eq!(message.payload(), expected);
}

#[test]
fn a_pinned_address_is_static_and_does_not_roam() {
    let expected = [
        7, 0, 0, 0, 9, 0, 0, 0, 0x40, 0, 0x44, 0, // ndmsg: NUD_NOARP, NTF_MASTER | NTF_STICKY
        10, 0, 2, 0, 2, 0x42, 1, 2, 3, 4, 0, 0, // NDA_LLADDR
    ];
    let message = Message::of(libc::RTM_NEWNEIGH, &pin_message(Ifindex(9), Mac([2, 0x42, 1, 2, 3, 4])));
    assert_eq!(message.payload(), expected);
}

#[test]
fn a_port_is_told_only_the_flags_that_are_on() {
    let flags = PortFlags { hairpin: false, isolated: true, locked: true };
    let message = port_message("p", "a", flags);
    let text = message.payload();
    // IFLA_INFO_SLAVE_DATA (5) { MODE (4) = 0, ISOLATED (33) = 1, LOCKED (39) = 1 }
    let expected = [28, 0, 5, 0, 5, 0, 4, 0, 0, 0, 0, 0, 5, 0, 33, 0, 1, 0, 0, 0, 5, 0, 39, 0, 1, 0, 0, 0];
    assert!(text.windows(expected.len()).any(|part| part == expected), "{text:?}");
    let plain = port_message("p", "a", PortFlags { hairpin: true, ..PortFlags::default() });
    let plain = plain.payload();
    let expected = [12, 0, 5, 0, 5, 0, 4, 0, 1, 0, 0, 0];
    assert!(plain.windows(expected.len()).any(|part| part == expected), "{plain:?}");
    assert_eq!(text.len() - plain.len(), 16);
}

#[test]
fn settings_of_a_routed_end_are_nested_by_number() {
    let message = routed_message("p", "a");
    let text = message.payload();
    // IFLA_AF_SPEC { AF_INET (2) { IFLA_INET_CONF (1) { FORWARDING (1) = 1, SEND_REDIRECTS (6) = 0 } } }
    let expected = [28, 0, 26, 0, 24, 0, 2, 0, 20, 0, 1, 0, 8, 0, 1, 0, 1, 0, 0, 0, 8, 0, 6, 0, 0, 0, 0, 0];
    assert!(text.ends_with(&expected), "{text:?}");
}

#[test]
fn the_kernel_keeps_the_flags_of_a_port() {
    let bed = Bed::new("flags");
    let (mut netlink, _, port) = bed.port();
    assert_eq!(netlink.port_flags("p0").unwrap(), Some(PortFlags::default()));
    assert_eq!(netlink.port_flags("q0").unwrap(), None, "no bridge port");
    assert_eq!(netlink.port_flags("none").unwrap(), None);
    let all = PortFlags { hairpin: true, isolated: true, locked: true };
    let mut batch = Batch::new();
    batch.configure_bridge_port("p0", "mine", all).pin_mac(port.index, Mac([2, 0, 0, 0, 0, 9]));
    netlink.send(&batch).unwrap();
    assert_eq!(netlink.port_flags("p0").unwrap(), Some(all));
    assert_eq!(netlink.link("p0").unwrap().unwrap().alias.as_deref(), Some("mine"));
    netlink.send(&batch).unwrap();
}

#[test]
fn vlans_are_set_or_refused_never_left_out() {
    let bed = Bed::new("vlans");
    let (mut netlink, bridge, port) = bed.port();
    let (mut filtering, mut member, mut clear) = (Batch::new(), Batch::new(), Batch::new());
    filtering.set_vlan_filtering(bridge.index);
    clear.clear_vlans(port.index);
    member.add_vlans(port.index, 100..=100, VlanTagging::Native);
    member.add_vlans(port.index, 200..=300, VlanTagging::Tagged);
    let answers = [filtering, clear, member].map(|batch| netlink.send(&batch).map_err(|e| e.errno()));
    // A kernel without CONFIG_BRIDGE_VLAN_FILTERING knows none of it.
    let refused = Err(Some(libc::EOPNOTSUPP));
    assert!(
        answers == [Ok(()), Ok(()), Ok(())] || (answers[0] == refused && answers[2] == refused),
        "{answers:?}"
    );
}

#[test]
fn a_routed_end_forwards_and_tells_of_no_better_way() {
    let bed = Bed::new("routed");
    let mut netlink = bed.netlink();
    netlink.make_veth(&VethSpec { name: "p0", peer_name: "q0", up: true, ..VethSpec::default() }).unwrap();
    netlink.send(Batch::new().configure_routed_end("p0", "mine")).unwrap();
    let read = |key: &str| sysctl::read_in(&bed.namespace, &format!("net/ipv4/conf/p0/{key}")).unwrap();
    assert_eq!((read("forwarding").as_str(), read("send_redirects").as_str()), ("1", "0"));
    let link = netlink.link("p0").unwrap().unwrap();
    assert_eq!(link.alias.as_deref(), Some("mine"));
    let mut batch = Batch::new();
    for (range, address) in [("10.9.0.0/24", "10.9.0.2"), ("fd09::/64", "fd09::2")] {
        let range: IpNetwork = range.parse().unwrap();
        batch.replace_route(&Route::no_pod(range));
        batch.replace_route(&Route::to_pod(address.parse().unwrap(), link.index));
    }
    netlink.send(&batch).unwrap();
    netlink.send(&batch).unwrap();
    let filter = RouteFilter { protocol: Some(POD_ROUTE_PROTOCOL), ..RouteFilter::default() };
    let routes = netlink.routes(filter).unwrap();
    assert_eq!(routes.len(), 4, "{routes:?}");
    assert_eq!(routes.iter().filter(|route| route.kind == RouteKind::Unreachable).count(), 2);
    assert_eq!(netlink.route_to("10.9.0.2".parse().unwrap()).unwrap().link, Some(link.index));
    assert!(netlink.route_to("10.9.0.3".parse().unwrap()).is_err());
}
