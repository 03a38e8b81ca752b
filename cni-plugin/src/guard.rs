//! What a pod may not send: packets in the name of others.
//!
//! A pod with the capability `NET_RAW` can write any sender into its packets, answer for others' addresses (ARP, neighbour
//! discovery) and call itself a router (CVE-2020-10749). So a program is attached to the host's end of its link, out of
//! its reach, that lets only frames pass which name the pod's own addresses. It goes with the link: DEL has nothing to do.
//!
//! | frames | pass when |
//! |---|---|
//! | all | the Ethernet source is the pod's, and there is no VLAN tag |
//! | IPv4 | the source is the pod's; no ICMP redirect; not from a DHCP server to a client |
//! | ARP | the sender is the pod, or nobody yet (RFC 5227, section 2.1.1) |
//! | IPv6 | the pod has an address of it; the source is the pod's or its link-local address; no router advertisement, no redirect; not from a DHCP server to a client; a neighbour advertisement is about the pod |
//! | IPv6 from `::` | duplicate detection of the pod's own addresses (RFC 4862, section 5.4.2), reports of groups (RFC 3810, section 5.2.13) |
//! | others | never |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netd_kernel::classic::{Assembler, Instruction, Is, Label};
use netd_kernel::netlink::{Batch, IngressFilter, Verdict};
use netd_kernel::{Ifindex, Mac, Netlink};

use crate::call::Call;
use crate::config::{Config, Wiring};
use crate::error::{CniError, Code};

/// The annotation by which a pod asks to be let go unguarded.
pub const ANNOTATION: &str = "netd.io/anti-spoofing";
/// Asked before every other filter.
const PRIORITY: u16 = 1;

// Ethernet (IEEE 802.3).
const ETHER_SOURCE: u32 = 6;
const ETHER_TYPE: u32 = 12;
const ETHER_LENGTH: u32 = 14;
const IPV4: u32 = 0x0800;
const ARP: u32 = 0x0806;
const IPV6: u32 = 0x86dd;
// IPv4 (RFC 791).
const V4_FRAGMENT: u32 = ETHER_LENGTH + 6;
const V4_PROTOCOL: u32 = ETHER_LENGTH + 9;
const V4_SOURCE: u32 = ETHER_LENGTH + 12;
const V4_SHORTEST: u32 = ETHER_LENGTH + 20;
const FRAGMENT_OFFSET: u32 = 0x1fff;
const ICMP: u32 = 1;
const ICMP_REDIRECT: u32 = 5;
const UDP: u32 = 17;
// ARP for IPv4 over Ethernet (RFC 826).
const ARP_HARDWARE: u32 = ETHER_LENGTH;
const ARP_LENGTHS: u32 = ETHER_LENGTH + 4;
const ARP_SENDER_MAC: u32 = ETHER_LENGTH + 8;
const ARP_SENDER: u32 = ETHER_LENGTH + 14;
const ARP_SHORTEST: u32 = ETHER_LENGTH + 28;
// IPv6 (RFC 8200).
const V6_NEXT: u32 = ETHER_LENGTH + 6;
const V6_HOP_LIMIT: u32 = ETHER_LENGTH + 7;
const V6_SOURCE: u32 = ETHER_LENGTH + 8;
const V6_PAYLOAD: u32 = ETHER_LENGTH + 40;
const HOP_BY_HOP: u32 = 0;
/// Routing, fragment, authentication and destination options.
const EXTENSIONS: [u32; 4] = [43, 44, 51, 60];
const ICMPV6: u32 = 58;
// ICMPv6 (RFC 2710, RFC 3810, RFC 4861).
const MULTICAST_REPORTS: [u32; 3] = [131, 132, 143];
const ROUTER_ADVERTISEMENT: u32 = 134;
const NEIGHBOUR_SOLICITATION: u32 = 135;
const NEIGHBOUR_ADVERTISEMENT: u32 = 136;
const REDIRECT: u32 = 137;
/// The address that a neighbour message is about.
const ND_TARGET: u32 = V6_PAYLOAD + 8;
/// The hop limit without which neighbour discovery is not believed.
const ND_HOP_LIMIT: u32 = 255;
/// Behind a hop-by-hop header of 8 bytes, which is what a router alert makes.
const V6_BEHIND_ALERT: u32 = V6_PAYLOAD + 8;
/// Server and client port of DHCP (RFC 2131) and of DHCP for IPv6 (RFC 8415).
const DHCP: (u32, u32) = (67, 68);
const DHCP_V6: (u32, u32) = (547, 546);

/// Reads the key `antiSpoofing`: pods of netd's own networks are guarded unless it says otherwise.
///
/// # Errors
/// Code 7 where pods send in more names than the node knows of.
pub fn configured(key: Option<bool>, wiring: &Wiring, ours: bool) -> Result<bool, CniError> {
    let known = wiring.addressed && wiring.vlans.trunk.is_empty();
    if key == Some(true) && !known {
        let other = if wiring.addressed { "vlanTrunk" } else { "a network without addresses" };
        return Err(CniError::new(Code::InvalidConfig, format!("antiSpoofing with {other} is not possible"))
            .and("the node does not know what addresses such pods have: leave one of them out"));
    }
    Ok(key.unwrap_or(ours) && known)
}

/// Whether the pod is to be guarded.
///
/// # Errors
/// Code 7 when its annotation cannot be meant, or asks for what its namespace may not have.
pub fn is_wanted(call: &Call, config: &Config) -> Result<bool, CniError> {
    let Some(wish) = config.wishes.anti_spoofing.as_deref().filter(|_| config.anti_spoofing) else {
        return Ok(config.anti_spoofing);
    };
    let invalid = |why: String| {
        CniError::new(Code::InvalidConfig, format!("annotation {ANNOTATION}: {wish:?} of the pod"))
            .because(why)
    };
    match wish {
        "true" => Ok(true),
        "false" => {
            let namespace = call.pod.as_ref().map_or("", |pod| pod.namespace.as_str());
            let allowed = config.anti_spoofing_opt_out.iter().any(|name| name == "*" || name == namespace);
            if allowed {
                return Ok(false);
            }
            Err(invalid(format!("namespace {namespace:?} may not switch it off"))
                .and("remove the annotation, or add the namespace to antiSpoofingOptOut"))
        }
        _ => Err(invalid("it is neither \"true\" nor \"false\"".to_owned())),
    }
}

/// Adds the guard of a pod to a batch; `host` is the host's end of its link.
///
/// # Errors
/// When the pod has more addresses than a program has room for.
pub fn add(batch: &mut Batch, host: Ifindex, mac: Mac, addresses: &[IpAddr]) -> netd_kernel::Result<()> {
    batch.add_clsact(host).add_ingress_program(host, PRIORITY, &program(mac, addresses)?);
    Ok(())
}

/// Says what is wrong with the guard of a pod.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn fault(
    netlink: &mut Netlink,
    host: Ifindex,
    mac: Mac,
    addresses: &[IpAddr],
) -> netd_kernel::Result<Option<&'static str>> {
    let wanted = program(mac, addresses)?;
    let filters = netlink.ingress_filters(host)?;
    Ok(match filters.first() {
        Some(IngressFilter::Program { code, .. }) if *code == wanted => None,
        Some(IngressFilter::Program { priority: PRIORITY, .. }) => {
            Some("the filter of its sender addresses is not as installed")
        }
        Some(_) | None => Some("the filter of its sender addresses is gone"),
    })
}

/// Explains a refusal of the kernel that the guard may be the cause of.
pub fn hint(error: &netd_kernel::Error) -> Option<&'static str> {
    /// `ENOENT` and `EOPNOTSUPP` (`asm-generic/errno.h`): the module is not there.
    const ABSENT: [i32; 2] = [2, 95];
    let netd_kernel::Error::Netlink { action, errno, .. } = error else { return None };
    let of_filters = action.starts_with("filter what") || action.starts_with("make a place for filters");
    (of_filters && ABSENT.contains(errno))
        .then_some("the kernel needs sch_ingress and cls_bpf; \"antiSpoofing\": false does without")
}

/// The link-local address that the kernel gives a link by itself (RFC 4291, appendix A).
fn link_local(Mac([a, b, c, d, e, f]): Mac) -> Ipv6Addr {
    let half = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, half(a ^ 2, b), half(c, 0xff), half(0xfe, d), half(e, f))
}

/// Writes the program of a pod.
fn program(mac: Mac, addresses: &[IpAddr]) -> netd_kernel::Result<Vec<Instruction>> {
    let mut program = Assembler::new();
    let own = Own::of(mac, addresses);
    let (arp, v6) = (program.label(), program.label());
    let ends = Ends::new(&mut program);
    program.load_tagged().branch(Is::Equal(0), None, Some(ends.drop));
    own_mac(&mut program, ETHER_SOURCE, mac, ends.drop);
    program.load_half(ETHER_TYPE);
    // A pod without an address of IPv6 has nothing to say in it, and the kernel less to compile.
    let parts = if own.v6.is_empty() { vec![(ARP, arp)] } else { vec![(ARP, arp), (IPV6, v6)] };
    for (kind, part) in parts {
        let other = program.label();
        program.branch(Is::Equal(kind), None, Some(other)).go_to(part).place(other);
    }
    program.branch(Is::Equal(IPV4), None, Some(ends.drop));
    own.write_v4(&mut program, ends);
    ends.place(&mut program);
    // Ends of its own for each part: a branch is not long enough to reach over the others.
    program.place(arp);
    let ends = Ends::new(&mut program);
    own.write_arp(&mut program, ends);
    ends.place(&mut program);
    if !own.v6.is_empty() {
        program.place(v6);
        let ends = Ends::new(&mut program);
        own.write_v6(&mut program, ends);
        ends.place(&mut program);
    }
    program.finish()
}

/// Where decisions lead.
#[derive(Clone, Copy)]
struct Ends {
    pass: Label,
    drop: Label,
}

impl Ends {
    fn new(program: &mut Assembler) -> Self {
        Self { pass: program.label(), drop: program.label() }
    }

    fn place(self, program: &mut Assembler) {
        program.place(self.pass).verdict(Verdict::Next as u32);
        program.place(self.drop).verdict(Verdict::Drop as u32);
    }
}

/// What a pod may call itself.
struct Own {
    mac: Mac,
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
}

impl Own {
    fn of(mac: Mac, addresses: &[IpAddr]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for address in addresses {
            match address {
                IpAddr::V4(address) => v4.push(*address),
                IpAddr::V6(address) => v6.push(*address),
            }
        }
        if !v6.is_empty() {
            v6.push(link_local(mac));
        }
        Self { mac, v4, v6 }
    }

    fn write_v4(&self, program: &mut Assembler, ends: Ends) {
        let (known, icmp) = (program.label(), program.label());
        longer(program, V4_SHORTEST, ends.drop);
        program.load_word(V4_SOURCE);
        for address in &self.v4 {
            program.branch(Is::Equal(address.to_bits()), Some(known), None);
        }
        program.go_to(ends.drop);
        program.place(known).load_half(V4_FRAGMENT).branch(Is::AnyOf(FRAGMENT_OFFSET), Some(ends.pass), None);
        // Behind the header there are to be four bytes, which UDP and ICMP have.
        program.keep_header_length(ETHER_LENGTH);
        program.load_byte(V4_PROTOCOL).branch(Is::Equal(ICMP), Some(icmp), None);
        program.branch(Is::Equal(UDP), None, Some(ends.pass));
        longer_behind(program, ends.drop);
        program.load_half_behind(ETHER_LENGTH).branch(Is::Equal(DHCP.0), None, Some(ends.pass));
        program.load_half_behind(ETHER_LENGTH + 2).branch(
            Is::Equal(DHCP.1),
            Some(ends.drop),
            Some(ends.pass),
        );
        program.place(icmp);
        longer_behind(program, ends.drop);
        program.load_byte_behind(ETHER_LENGTH);
        program.branch(Is::Equal(ICMP_REDIRECT), Some(ends.drop), Some(ends.pass));
    }

    fn write_arp(&self, program: &mut Assembler, ends: Ends) {
        longer(program, ARP_SHORTEST, ends.drop);
        // Ethernet and IPv4, with addresses of 6 and 4 bytes.
        program.load_word(ARP_HARDWARE).branch(Is::Equal(1 << 16 | IPV4), None, Some(ends.drop));
        program.load_half(ARP_LENGTHS).branch(Is::Equal(0x0604), None, Some(ends.drop));
        own_mac(program, ARP_SENDER_MAC, self.mac, ends.drop);
        program.load_word(ARP_SENDER).branch(Is::Equal(0), Some(ends.pass), None);
        for address in &self.v4 {
            program.branch(Is::Equal(address.to_bits()), Some(ends.pass), None);
        }
        program.go_to(ends.drop);
    }

    fn write_v6(&self, program: &mut Assembler, ends: Ends) {
        let (known, nobody, icmp, about) =
            (program.label(), program.label(), program.label(), program.label());
        longer(program, V6_PAYLOAD, ends.drop);
        self.is_one(program, V6_SOURCE, known);
        equals(program, V6_SOURCE, Ipv6Addr::UNSPECIFIED, nobody);
        program.go_to(ends.drop);

        program.place(known).load_byte(V6_NEXT).branch(Is::Equal(ICMPV6), Some(icmp), None);
        let (extended, udp) = (program.label(), program.label());
        program.branch(Is::Equal(UDP), Some(udp), None).branch(Is::Equal(HOP_BY_HOP), Some(extended), None);
        for header in EXTENSIONS {
            program.branch(Is::Equal(header), Some(extended), None);
        }
        program.go_to(ends.pass);
        // What hides behind other headers (RFC 7113) is believed only with this hop limit.
        program.place(extended).load_byte(V6_HOP_LIMIT);
        program.branch(Is::Equal(ND_HOP_LIMIT), Some(ends.drop), Some(ends.pass));
        program.place(udp);
        longer(program, V6_PAYLOAD + 4, ends.drop);
        program.load_half(V6_PAYLOAD).branch(Is::Equal(DHCP_V6.0), None, Some(ends.pass));
        program.load_half(V6_PAYLOAD + 2).branch(Is::Equal(DHCP_V6.1), Some(ends.drop), Some(ends.pass));

        program.place(icmp);
        longer(program, V6_PAYLOAD + 4, ends.drop);
        program.load_byte(V6_PAYLOAD).branch(Is::Equal(NEIGHBOUR_ADVERTISEMENT), Some(about), None);
        for forbidden in [ROUTER_ADVERTISEMENT, REDIRECT] {
            program.branch(Is::Equal(forbidden), Some(ends.drop), None);
        }
        program.go_to(ends.pass);

        let detection = program.label();
        program.place(nobody).load_byte(V6_NEXT).branch(Is::Equal(ICMPV6), Some(detection), None);
        program.branch(Is::Equal(HOP_BY_HOP), None, Some(ends.drop));
        longer(program, V6_BEHIND_ALERT + 4, ends.drop);
        // The next header and the length of this one.
        program.load_half(V6_PAYLOAD).branch(Is::Equal(ICMPV6 << 8), None, Some(ends.drop));
        program.load_byte(V6_BEHIND_ALERT);
        for report in MULTICAST_REPORTS {
            program.branch(Is::Equal(report), Some(ends.pass), None);
        }
        program.go_to(ends.drop);

        program.place(detection);
        longer(program, V6_PAYLOAD + 4, ends.drop);
        program.load_byte(V6_PAYLOAD).branch(Is::Equal(NEIGHBOUR_SOLICITATION), None, Some(ends.drop));
        program.place(about);
        longer(program, ND_TARGET + 16, ends.drop);
        self.is_one(program, ND_TARGET, ends.pass);
        program.go_to(ends.drop);
    }

    /// Goes on at `yes` where the address here is one of the pod's.
    fn is_one(&self, program: &mut Assembler, offset: u32, yes: Label) {
        for address in &self.v6 {
            equals(program, offset, *address, yes);
        }
    }
}

/// Goes on at `yes` where this address is here.
fn equals(program: &mut Assembler, offset: u32, address: Ipv6Addr, yes: Label) {
    let other = program.label();
    let [a, b, c, d, e, f, g, h] = address.segments();
    let words = [(a, b), (c, d), (e, f), (g, h)].map(|(high, low)| u32::from(high) << 16 | u32::from(low));
    let mut left = words.len();
    for (place, word) in (0..).zip(words) {
        left -= 1;
        let matched = (left == 0).then_some(yes);
        program.load_word(offset + 4 * place).branch(Is::Equal(word), matched, Some(other));
    }
    program.place(other);
}

/// Drops a frame whose Ethernet address here is another.
fn own_mac(program: &mut Assembler, offset: u32, Mac([a, b, c, d, e, f]): Mac, drop: Label) {
    program.load_word(offset).branch(Is::Equal(u32::from_be_bytes([a, b, c, d])), None, Some(drop));
    program.load_half(offset + 4).branch(Is::Equal(u32::from_be_bytes([0, 0, e, f])), None, Some(drop));
}

/// Drops a frame that is shorter: a load behind its end would let it pass.
fn longer(program: &mut Assembler, bytes: u32, drop: Label) {
    let enough = program.label();
    program.load_length().branch(Is::AtLeast(bytes), Some(enough), None).go_to(drop).place(enough);
}

/// Drops a frame without four bytes behind the IPv4 header whose length was kept.
fn longer_behind(program: &mut Assembler, drop: Label) {
    // The length is no less than that of the shortest header, and a header is no longer than 60 bytes.
    let enough = program.label();
    program.load_length().branch(Is::AtLeast(ETHER_LENGTH + 60 + 4), Some(enough), None);
    program.subtract_kept().branch(Is::AtLeast(1 << 31), Some(drop), None);
    program.branch(Is::AtLeast(ETHER_LENGTH + 4), None, Some(drop));
    program.place(enough);
}

#[cfg(test)]
mod tests;
