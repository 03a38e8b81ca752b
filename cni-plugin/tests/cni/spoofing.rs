//! Frames that a pod writes itself, and who gets to see them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use netd_kernel::Mac;
use netd_kernel::clock::eventually;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde_json::{Value, json};

use super::harness::{Host, Space, error_of, network, text};

/// What the frames of this test begin their payload with.
const MARK: [u8; 4] = *b"netd";
const BROADCAST: [u8; 6] = [0xff; 6];

/// A pod with a raw socket, as a process with `NET_RAW` in it has.
struct Pod {
    space: Space,
    raw: OwnedFd,
    mac: [u8; 6],
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    result: Value,
}

impl Pod {
    fn new(host: &Host, id: &str) -> Self {
        let space = Space::new("pod");
        let result = host.add(id, &space);
        let address = |place: usize| {
            let text = result["ips"][place]["address"].as_str().unwrap();
            text.split('/').next().unwrap().parse::<IpAddr>().unwrap()
        };
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (address(0), address(1)) else { panic!("{result}") };
        let raw = space.run(|| {
            let flags = SockFlag::SOCK_CLOEXEC;
            let raw = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
            let mut all = getifaddrs().unwrap().filter(|found| found.interface_name == "eth0");
            let link = all.find_map(|found| found.address.and_then(|a| a.as_link_addr().copied())).unwrap();
            bind(raw.as_raw_fd(), &link).unwrap();
            setsockopt(&raw, sockopt::ReceiveTimeout, &TimeVal::new(0, 20_000)).unwrap();
            raw
        });
        let Mac(mac) = space.netlink().link("eth0").unwrap().unwrap().mac.unwrap();
        Self { space, raw, mac, v4, v6, result }
    }

    fn send(&self, frame: &[u8]) {
        assert_eq!(send(self.raw.as_raw_fd(), frame, MsgFlags::empty()).unwrap(), frame.len());
    }

    /// The numbers of the marked frames that arrive until the last of them does.
    fn receive_until(&self, last: u8) -> Vec<u8> {
        let mut seen = Vec::new();
        let mut buffer = [0; 2048];
        let done = eventually(Duration::from_secs(10), || {
            while let Ok(length) = recv(self.raw.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                let frame = &buffer[..length];
                let mark = frame.windows(4).position(|bytes| bytes == MARK);
                seen.extend(mark.and_then(|at| frame.get(at + 4)));
                if seen.last() == Some(&last) {
                    return Some(());
                }
            }
            None
        });
        assert!(done.is_some(), "the last frame did not arrive: {seen:?}");
        seen
    }
}

fn host() -> Host {
    Host::with_ranges(json!([[{ "subnet": "172.16.1.0/24" }], [{ "subnet": "fd00:1::/64" }]]))
}

fn marked(number: u8) -> Vec<u8> {
    [&MARK[..], &[number, 0, 0, 0]].concat()
}

fn ethernet(from: [u8; 6], to: [u8; 6], kind: u16, rest: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &from, &kind.to_be_bytes(), rest].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// A UDP packet to everybody on the LAN.
fn v4(from: [u8; 6], source: Ipv4Addr, ports: [u16; 2], number: u8) -> Vec<u8> {
    let payload = marked(number);
    let mut header = vec![0x45, 0, 0, 28 + payload.len() as u8, 0, 0, 0, 0, 64, 17, 0, 0];
    header.extend(source.octets());
    header.extend([255; 4]);
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let udp = [ports[0].to_be_bytes(), ports[1].to_be_bytes(), [0, 8 + payload.len() as u8], [0, 0]].concat();
    ethernet(from, BROADCAST, 0x0800, &[header, udp, payload].concat())
}

fn arp(from: [u8; 6], sender: Ipv4Addr, number: u8) -> Vec<u8> {
    let target = [&[0; 6][..], &[172, 16, 1, 250]].concat();
    let rest = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &from, &sender.octets(), &target, &marked(number)].concat();
    ethernet(from, BROADCAST, 0x0806, &rest)
}

fn v6(from: [u8; 6], source: Ipv6Addr, next: u8, message: &[u8]) -> Vec<u8> {
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    let header = [0x60, 0, 0, 0, 0, message.len() as u8, next, 255];
    let rest = [&header[..], &source.octets(), &all_nodes.octets(), message].concat();
    ethernet(from, [0x33, 0x33, 0, 0, 0, 1], 0x86dd, &rest)
}

fn icmp(kind: u8, about: Ipv6Addr, number: u8) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &about.octets(), &marked(number)].concat()
}

/// Frames in the name of others, each with its number.
fn spoofed(pod: &Pod) -> Vec<Vec<u8>> {
    let gateway_v4 = Ipv4Addr::new(172, 16, 1, 1);
    let gateway: Ipv6Addr = "fd00:1::1".parse().unwrap();
    let other_link_local: Ipv6Addr = "fe80::1".parse().unwrap();
    let other_mac = [2, 0, 0, 0, 0, 9];
    let hidden = |kind, number| [&[58, 0, 1, 4, 0, 0, 0, 0][..], &icmp(kind, gateway, number)].concat();
    vec![
        v4(pod.mac, gateway_v4, [9, 9], 1),
        v4(pod.mac, Ipv4Addr::new(10, 1, 2, 3), [9, 9], 2),
        v4(other_mac, pod.v4, [9, 9], 3),
        v4(pod.mac, pod.v4, [67, 68], 4),
        arp(pod.mac, gateway_v4, 5),
        arp(other_mac, pod.v4, 6),
        v6(pod.mac, gateway, 59, &marked(7)),
        v6(pod.mac, other_link_local, 59, &marked(8)),
        // In its own name, but what only a router says, or what others say of themselves.
        v6(pod.mac, pod.v6, 58, &icmp(134, gateway, 9)),
        v6(pod.mac, pod.v6, 58, &icmp(137, gateway, 10)),
        v6(pod.mac, pod.v6, 58, &icmp(136, gateway, 11)),
        v6(pod.mac, pod.v6, 60, &hidden(134, 12)),
        v6(pod.mac, Ipv6Addr::UNSPECIFIED, 58, &icmp(135, gateway, 13)),
        // Neither IP nor ARP: LLDP, and a VLAN.
        ethernet(pod.mac, BROADCAST, 0x88cc, &marked(14)),
        ethernet(pod.mac, BROADCAST, 0x8100, &[&[0, 7, 8, 0][..], &marked(15)].concat()),
    ]
}

fn honest(pod: &Pod) -> Vec<Vec<u8>> {
    let gateway: Ipv6Addr = "fd00:1::1".parse().unwrap();
    vec![
        v4(pod.mac, pod.v4, [9, 9], 101),
        v4(pod.mac, pod.v4, [68, 67], 102),
        arp(pod.mac, pod.v4, 103),
        arp(pod.mac, Ipv4Addr::UNSPECIFIED, 104),
        v6(pod.mac, pod.v6, 59, &marked(105)),
        v6(pod.mac, pod.v6, 58, &icmp(135, gateway, 106)),
        v6(pod.mac, pod.v6, 58, &icmp(136, pod.v6, 107)),
        v6(pod.mac, Ipv6Addr::UNSPECIFIED, 58, &icmp(135, pod.v6, 108)),
    ]
}

/// Which of the spoofed and of the honest frames another pod of the node sees.
fn seen(from: &Pod, to: &Pod) -> (usize, usize) {
    for frame in spoofed(from).iter().chain(&honest(from)) {
        from.send(frame);
    }
    let seen = to.receive_until(108);
    let honest = seen.iter().filter(|number| **number > 100).count();
    (seen.len() - honest, honest)
}

#[test]
fn what_is_sent_in_the_name_of_others_arrives_nowhere() {
    let mut host = host();
    let (a, b) = (Pod::new(&host, "a"), Pod::new(&host, "b"));
    assert_eq!(seen(&a, &b), (0, honest(&a).len()));
    let check = host.check("a", &a.space, &a.result);
    assert_eq!(check.status, 0, "{}", text(&check));
    // Without it all of them arrive but the one of a VLAN, whose tag the mark stands behind all the same.
    host.config["antiSpoofing"] = json!(false);
    let c = Pod::new(&host, "c");
    assert_eq!(seen(&c, &b), (spoofed(&c).len(), honest(&c).len()));
    let check = host.check("c", &c.space, &c.result);
    assert_eq!(check.status, 0, "{}", text(&check));
}

#[test]
fn guarded_pods_reach_each_other_also_with_limits_and_duplicate_detection() {
    let mut host = host();
    host.config["enabledad"] = json!(true);
    host.config["egressRate"] = json!(80_000_000);
    host.config["egressBurst"] = json!(8_000_000);
    let (a, b) = (Pod::new(&host, "a"), Pod::new(&host, "b"));
    // Redirected to where its rate is limited only what the guard lets pass.
    assert_eq!(seen(&a, &b), (0, honest(&a).len()));
    for address in [b.v4.to_string(), b.v6.to_string()] {
        let listener = b.space.listen(&address);
        a.space.connect(&listener).unwrap();
        host.space.connect(&listener).unwrap();
    }
    let check = host.check("a", &a.space, &a.result);
    assert_eq!(check.status, 0, "{}", text(&check));
}

#[test]
fn check_tells_a_guard_that_is_gone_or_another() {
    let mut host = host();
    let (a, b) = (Pod::new(&host, "a"), Pod::new(&host, "b"));
    let mut previous = a.result.clone();
    previous["interfaces"][2]["mac"] = b.result["interfaces"][2]["mac"].clone();
    let other = error_of(&host.check("a", &a.space, &previous));
    assert!(other["msg"].as_str().unwrap().contains("sender addresses is not as installed"), "{other}");
    host.config["antiSpoofing"] = json!(false);
    let c = Pod::new(&host, "c");
    host.config["antiSpoofing"] = json!(true);
    let gone = error_of(&host.check("c", &c.space, &c.result));
    assert!(gone["msg"].as_str().unwrap().contains("sender addresses is gone"), "{gone}");
}

#[test]
fn a_pod_is_let_go_where_its_namespace_may() {
    let mut host = host();
    let b = Pod::new(&host, "b");
    host.config["runtimeConfig"] =
        json!({ "io.kubernetes.cri.pod-annotations": { "netd.io/anti-spoofing": "false", "other": "x" } });
    let pod = Space::new("pod");
    for allowed in [json!([]), json!(["kube-system"])] {
        host.config["antiSpoofingOptOut"] = allowed;
        let error = error_of(&host.verb("ADD", "a", pod.path(), &host.config));
        assert_eq!(error["code"], 7);
        assert!(error["details"].as_str().unwrap().contains("antiSpoofingOptOut"), "{error}");
        host.del("a", pod.path());
    }
    host.config["antiSpoofingOptOut"] = json!(["default"]);
    let a = Pod::new(&host, "a");
    // An address that it shares with others, such as keepalived's.
    let vip = Ipv4Addr::new(172, 16, 1, 200);
    let mut netlink = a.space.netlink();
    let link = netlink.link("eth0").unwrap().unwrap().index;
    netlink.add_address(link, network("172.16.1.200/32"), true).unwrap();
    a.send(&v4(a.mac, vip, [9, 9], 1));
    a.send(&arp(a.mac, vip, 2));
    assert_eq!(b.receive_until(2), [1, 2]);
    let check = host.check("a", &a.space, &a.result);
    assert_eq!(check.status, 0, "{}", text(&check));
    let annotations = &mut host.config["runtimeConfig"]["io.kubernetes.cri.pod-annotations"];
    annotations["netd.io/anti-spoofing"] = json!("no");
    let error = error_of(&host.verb("ADD", "c", pod.path(), &host.config));
    assert!(error.to_string().contains("neither"), "{error}");
    host.config["runtimeConfig"]["io.kubernetes.cri.pod-annotations"]["netd.io/anti-spoofing"] =
        json!("true");
    let c = Pod::new(&host, "c");
    c.send(&v4(c.mac, vip, [9, 9], 3));
    c.send(&v4(c.mac, c.v4, [9, 9], 4));
    assert_eq!(b.receive_until(4), [4]);
}
