//! Frames through the program, stepped through by a machine of the test's own.

use super::*;

const MAC: Mac = Mac([2, 0x42, 172, 16, 1, 2]);
const OTHER_MAC: [u8; 6] = [2, 0x42, 172, 16, 1, 3];

/// What the kernel does with the program (`net/core/filter.c`), as far as it is used; `None` where a load fails.
fn run(code: &[Instruction], frame: &[u8], tagged: bool) -> Option<u32> {
    let (mut a, mut x, mut at) = (0_u32, 0_u32, 0_usize);
    let load = |offset: u64, length: u64| {
        let bytes = frame.get(usize::try_from(offset).ok()?..usize::try_from(offset + length).ok()?)?;
        Some(bytes.iter().fold(0_u32, |value, byte| value << 8 | u32::from(*byte)))
    };
    loop {
        let Instruction { code, yes, no, operand: k } = code[at];
        at += 1;
        let branch = |taken: bool| usize::from(if taken { yes } else { no });
        match code {
            0x30 if k == 0xffff_f030 => a = u32::from(tagged),
            0x20 => a = load(k.into(), 4)?,
            0x28 => a = load(k.into(), 2)?,
            0x30 => a = load(k.into(), 1)?,
            0x48 => a = load(u64::from(x) + u64::from(k), 2)?,
            0x50 => a = load(u64::from(x) + u64::from(k), 1)?,
            0x80 => a = frame.len() as u32,
            0xb1 => x = (load(k.into(), 1)? & 0xf) * 4,
            0x1c => a = a.wrapping_sub(x),
            0x05 => at += k as usize,
            0x15 => at += branch(a == k),
            0x35 => at += branch(a >= k),
            0x45 => at += branch(a & k != 0),
            0x06 => return Some(k),
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn addresses() -> Vec<IpAddr> {
    ["172.16.1.2", "fd00:1::2"].map(|text| text.parse().unwrap()).to_vec()
}

fn passes(frame: &[u8]) -> bool {
    let code = program(MAC, &addresses()).unwrap();
    let verdict = run(&code, frame, false).expect("a load failed, which lets the frame pass");
    assert_eq!(run(&code, frame, true), Some(Verdict::Drop as u32), "a tagged frame passes");
    assert!([Verdict::Next as u32, Verdict::Drop as u32].contains(&verdict), "{verdict}");
    verdict == Verdict::Next as u32
}

fn ethernet(source: [u8; 6], kind: u32, rest: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &source, &(kind as u16).to_be_bytes(), rest].concat()
}

fn v4(source: [u8; 4], protocol: u32, options: usize, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45 + options as u8, 0, 0, 0, 0, 0, 0, 0, 64, protocol as u8, 0, 0];
    header.extend(source);
    header.extend([172, 16, 1, 1]);
    header.resize(20 + 4 * options, 0);
    ethernet(MAC.0, IPV4, &[&header[..], payload].concat())
}

fn arp(mac: [u8; 6], sender: [u8; 4]) -> Vec<u8> {
    let fixed = [0, 1, 8, 0, 6, 4, 0, 2];
    ethernet(MAC.0, ARP, &[&fixed[..], &mac, &sender, &OTHER_MAC, &[172, 16, 1, 3]].concat())
}

fn v6(source: &str, next: u32, hops: u32, payload: &[u8]) -> Vec<u8> {
    let source: Ipv6Addr = source.parse().unwrap();
    let to: Ipv6Addr = "ff02::1".parse().unwrap();
    let start = [0x60, 0, 0, 0, 0, payload.len() as u8, next as u8, hops as u8];
    ethernet(MAC.0, IPV6, &[&start[..], &source.octets(), &to.octets(), payload].concat())
}

/// A neighbour message about an address.
fn about(kind: u32, target: &str) -> Vec<u8> {
    let target: Ipv6Addr = target.parse().unwrap();
    [&[kind as u8, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat()
}

const OWN: &str = "fd00:1::2";
const OWN_LINK_LOCAL: &str = "fe80::42:acff:fe10:102";

#[test]
fn the_link_local_address_is_the_one_the_kernel_makes() {
    assert_eq!(link_local(MAC).to_string(), OWN_LINK_LOCAL);
}

#[test]
fn only_the_pods_own_addresses_are_senders() {
    assert!(passes(&v4([172, 16, 1, 2], 6, 0, &[0; 20])));
    assert!(passes(&v4([172, 16, 1, 2], 132, 10, &[])), "with options and without payload");
    for other in [[172, 16, 1, 3], [172, 16, 1, 1], [0; 4], [127, 0, 0, 1], [255; 4]] {
        assert!(!passes(&v4(other, 6, 0, &[0; 20])), "{other:?}");
    }
    for own in [OWN, OWN_LINK_LOCAL] {
        assert!(passes(&v6(own, 6, 64, &[0; 20])));
    }
    for other in ["fd00:1::1", "fd00:1::3", "fe80::1", "::1", "::", "fd00:1::1:2", "ff02::1"] {
        assert!(!passes(&v6(other, 6, 64, &[0; 20])), "{other}");
    }
}

#[test]
fn arp_tells_the_pods_own_addresses() {
    assert!(passes(&arp(MAC.0, [172, 16, 1, 2])));
    assert!(passes(&arp(MAC.0, [0; 4])), "a probe");
    assert!(!passes(&arp(MAC.0, [172, 16, 1, 1])), "the gateway");
    assert!(!passes(&arp(OTHER_MAC, [172, 16, 1, 2])));
    let mut other_hardware = arp(MAC.0, [172, 16, 1, 2]);
    other_hardware[15] = 6;
    assert!(!passes(&other_hardware));
}

#[test]
fn no_other_machine_and_no_other_protocol() {
    let mut frame = v4([172, 16, 1, 2], 6, 0, &[0; 20]);
    frame[6..12].copy_from_slice(&OTHER_MAC);
    assert!(!passes(&frame));
    for kind in [0x8100, 0x88a8, 0x88cc, 0x8863, 60] {
        assert!(!passes(&ethernet(MAC.0, kind, &[0; 60])), "{kind:#x}");
    }
}

#[test]
fn a_pod_is_no_router_and_no_dhcp_server() {
    for (kind, wanted) in [(133, true), (134, false), (137, false), (128, true), (129, true)] {
        assert_eq!(passes(&v6(OWN_LINK_LOCAL, ICMPV6, 255, &about(kind, OWN))), wanted, "{kind}");
        for header in [HOP_BY_HOP, 43, 44, 51, 60] {
            let hidden = [&[ICMPV6 as u8, 0, 0, 0, 0, 0, 0, 0][..], &about(kind, OWN)].concat();
            assert!(!passes(&v6(OWN_LINK_LOCAL, header, 255, &hidden)), "{kind} behind {header}");
            assert!(passes(&v6(OWN_LINK_LOCAL, header, 64, &hidden)), "{kind} behind {header}");
        }
    }
    assert!(!passes(&v4([172, 16, 1, 2], ICMP, 0, &[5, 1, 0, 0])), "redirect");
    assert!(passes(&v4([172, 16, 1, 2], ICMP, 3, &[8, 0, 0, 0])), "echo");
    let ports = |from: u32, to: u32| [(from as u16).to_be_bytes(), (to as u16).to_be_bytes()].concat();
    for options in [0, 5, 10] {
        assert!(!passes(&v4([172, 16, 1, 2], UDP, options, &ports(67, 68))));
        assert!(passes(&v4([172, 16, 1, 2], UDP, options, &ports(68, 67))));
        assert!(passes(&v4([172, 16, 1, 2], UDP, options, &ports(67, 67))), "to a relay");
    }
    assert!(!passes(&v6(OWN, UDP, 64, &ports(547, 546))));
    assert!(passes(&v6(OWN, UDP, 64, &ports(546, 547))));
    let mut fragment = v4([172, 16, 1, 2], UDP, 0, &ports(67, 68));
    fragment[21] = 1;
    assert!(passes(&fragment), "a later fragment has no ports");
}

#[test]
fn a_neighbour_advertisement_is_about_the_pod() {
    for own in [OWN, OWN_LINK_LOCAL] {
        assert!(passes(&v6(own, ICMPV6, 255, &about(136, own))));
        assert!(passes(&v6(own, ICMPV6, 255, &about(135, "fd00:1::1"))), "whoever may be asked for");
    }
    for other in ["fd00:1::1", "fe80::1", "::"] {
        assert!(!passes(&v6(OWN, ICMPV6, 255, &about(136, other))), "{other}");
    }
}

#[test]
fn nobody_asks_for_the_pods_own_address_only() {
    for own in [OWN, OWN_LINK_LOCAL] {
        assert!(passes(&v6("::", ICMPV6, 255, &about(135, own))));
    }
    assert!(!passes(&v6("::", ICMPV6, 255, &about(135, "fd00:1::3"))), "another's would seem taken");
    for kind in [128, 133, 134, 136, 137] {
        assert!(!passes(&v6("::", ICMPV6, 255, &about(kind, OWN))), "{kind}");
    }
    for (kind, wanted) in [(131, true), (132, true), (143, true), (134, false), (135, false)] {
        let alert = [ICMPV6 as u8, 0, 5, 2, 0, 0, 0, 0];
        let report = [&alert[..], &[kind, 0, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(passes(&v6("::", HOP_BY_HOP, 1, &report)), wanted, "{kind}");
    }
    let longer = [&[ICMPV6 as u8, 1][..], &[0; 14], &[143, 0, 0, 0]].concat();
    assert!(!passes(&v6("::", HOP_BY_HOP, 1, &longer)));
}

#[test]
fn a_frame_that_is_cut_short_fails_no_load() {
    let frames = [
        v4([172, 16, 1, 2], UDP, 10, &[0; 8]),
        v4([172, 16, 1, 2], ICMP, 0, &[8; 8]),
        arp(MAC.0, [172, 16, 1, 2]),
        v6(OWN, ICMPV6, 255, &about(136, OWN)),
        v6(OWN, UDP, 255, &[0; 8]),
        v6("::", HOP_BY_HOP, 1, &[58, 0, 5, 2, 0, 0, 0, 0, 143, 0, 0, 0]),
    ];
    for frame in frames {
        assert!(passes(&frame));
        // The kernel hands on no frame that is shorter than its Ethernet header.
        for length in 14..frame.len() {
            passes(&frame[..length]);
        }
    }
}

#[test]
fn a_pod_without_an_address_of_a_family_sends_nothing_in_it() {
    for (own, frame) in [
        ("172.16.1.2", v6(OWN_LINK_LOCAL, ICMPV6, 255, &about(135, OWN))),
        ("172.16.1.2", v6("::", ICMPV6, 255, &about(135, OWN_LINK_LOCAL))),
        (OWN, v4([172, 16, 1, 2], 6, 0, &[0; 20])),
    ] {
        let code = program(MAC, &[own.parse().unwrap()]).unwrap();
        assert_eq!(run(&code, &frame, false), Some(Verdict::Drop as u32), "{own}");
    }
}

#[test]
fn the_kernel_has_little_to_compile() {
    let all = addresses();
    let length = |addresses: &[IpAddr]| program(MAC, addresses).unwrap().len();
    // It takes about a microsecond an instruction.
    assert!(length(&all[..1]) <= 64 && length(&all) <= 160, "{} {}", length(&all[..1]), length(&all));
}

#[test]
fn a_pod_may_have_many_addresses_or_none() {
    let v4 = (0..100).map(|n| IpAddr::from([10, 0, 0, n]));
    let v6 = (0..20_u16).map(|n| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]));
    let all: Vec<IpAddr> = v4.chain(v6).collect();
    for addresses in [&all[..], &[]] {
        assert!(program(MAC, addresses).is_ok(), "{}", addresses.len());
    }
}
