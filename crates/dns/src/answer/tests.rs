use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use domain::base::{Message, ParsedName};
use domain::rdata::AllRecordData;
use netd_model::build::{endpoint, net, service, slice, snapshot};
use netd_model::{Protocol, Snapshot};
use proptest::prelude::*;

use super::*;
use crate::wire::rtype;
use crate::zone::{View, Zone, ZoneConfig};

/// A cluster with every kind of Service.
pub(crate) fn cluster() -> Snapshot {
    let many = (0..100).fold(slice("many").port("http", Protocol::Tcp, 8080), |slice, last| {
        slice.endpoint(endpoint(&format!("172.16.3.{last}")))
    });
    snapshot()
        .service(
            service("web")
                .cluster_ip("10.96.0.10")
                .cluster_ip("fd00:96::10")
                .port("http", Protocol::Tcp, 80)
                .port("metrics", Protocol::Tcp, 9090)
                .port("dns", Protocol::Udp, 53),
        )
        .slice(slice("web").port("http", Protocol::Tcp, 8080).on("w1", "172.16.1.5"))
        .service(service("v4only").cluster_ip("10.96.0.11").tcp(80))
        .service(service("kube-system/kube-dns").cluster_ip("10.96.0.2").port("dns", Protocol::Udp, 53))
        .service(service("db").headless().port("pg", Protocol::Tcp, 5432))
        .slice(
            slice("db")
                .port("pg", Protocol::Tcp, 15432)
                .endpoint(endpoint("172.16.1.7").hostname("db-0"))
                .endpoint(endpoint("172.16.2.7").hostname("db-1"))
                .endpoint(endpoint("172.16.2.8").hostname("db-2").not_ready())
                .endpoint(endpoint("172.16.2.9").hostname("db-3").draining()),
        )
        .slice(slice("db").named("db-v6").port("pg", Protocol::Tcp, 15432).endpoint(endpoint("fd00:16::")))
        .service(service("empty").headless().tcp(80))
        .service(service("unready").headless().port("http", Protocol::Tcp, 80))
        .slice(slice("unready").port("http", Protocol::Tcp, 80).endpoint(endpoint("172.16.1.9").not_ready()))
        .service(service("many").headless().port("http", Protocol::Tcp, 80))
        .slice(many)
        .service(service("ext").external_name("www.Example.com"))
        .service(service("extin").external_name("web.default.svc.cluster.local"))
        .service(service("extmissing").external_name("nope.default.svc.cluster.local"))
        .service(service("extip").external_name("192.0.2.7"))
        .service(service("extloop").external_name("extloop.default.svc.cluster.local"))
        .service(service("ring-a").external_name("ring-b.default.svc.cluster.local"))
        .service(service("ring-b").external_name("ring-a.default.svc.cluster.local"))
        .build()
}

pub(crate) fn zone() -> Arc<Zone> {
    let config = ZoneConfig {
        addresses: vec!["10.96.0.2".parse().unwrap()],
        cidrs: vec![net("10.96.0.0/12"), net("172.16.0.0/16"), net("fd00:96::/108")],
        ..ZoneConfig::default()
    };
    Arc::new(Zone::new(config).unwrap())
}

pub(crate) fn view() -> View {
    View::new(zone(), Arc::new(cluster()), UNIX_EPOCH + Duration::from_secs(1_700_000_000))
}

/// A query packet: id 0x1234, RD, one question.
pub(crate) fn packet(name: &str, qtype: u16) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|l| !l.is_empty()) {
        packet.push(u8::try_from(label.len()).unwrap());
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
    packet.extend_from_slice(&qtype.to_be_bytes());
    packet.extend_from_slice(&[0, 1]);
    packet
}

/// Adds an OPT record with this size and version.
pub(crate) fn with_edns(mut packet: Vec<u8>, size: u16, version: u8) -> Vec<u8> {
    packet[11] += 1;
    packet.push(0);
    packet.extend_from_slice(&rtype::OPT.to_be_bytes());
    packet.extend_from_slice(&size.to_be_bytes());
    packet.extend_from_slice(&[0, version, 0x80, 0, 0, 0]);
    packet
}

pub(crate) fn udp(packet: &[u8]) -> Query<'_> {
    Query { packet, transport: Transport::Udp, recursion: false, allowed: true, seed: 7 }
}

/// The reply as text: code, then sections apart by ` | `, records in each sorted, parsed by another parser.
pub(crate) fn show(reply: &[u8]) -> String {
    let message = Message::from_octets(reply).unwrap();
    let mut sections = Vec::new();
    let read = message.answer().unwrap();
    let mut next = Some(read);
    while let Some(mut section) = next {
        let mut records = Vec::new();
        for record in section.by_ref() {
            let record = record.unwrap();
            if record.rtype().to_int() == rtype::OPT {
                continue;
            }
            let data = record.to_any_record::<AllRecordData<&[u8], ParsedName<&[u8]>>>().unwrap();
            let data = data.data();
            let soa = matches!(data, AllRecordData::Soa(_));
            let data = if soa { "SOA".to_owned() } else { format!("{} {data}", record.rtype()) };
            records.push(format!("{} {} {data}", record.owner(), record.ttl().as_secs()));
        }
        records.sort();
        sections.push(records.join(", "));
        next = section.next_section().unwrap();
    }
    while sections.last().is_some_and(String::is_empty) {
        sections.pop();
    }
    let code = message.opt().map_or_else(
        || u16::from(message.header().rcode().to_int()),
        |opt| opt.rcode(message.header()).to_int(),
    );
    let mut text = vec![rcode::name(code).to_owned()];
    text.extend(sections);
    undotted(&text.join(" | "))
}

/// The same text with names written without trailing dot, of which the other parser writes only some.
pub(crate) fn undotted(text: &str) -> String {
    text.replace(". ", " ").replace(".,", ",").trim_end_matches('.').to_owned()
}

/// Asks the fixture's view over TCP, so that nothing is cut.
pub(crate) fn dig(name: &str, qtype: u16) -> String {
    let packet = packet(name, qtype);
    let mut out = Vec::new();
    let query = Query { transport: Transport::Tcp, ..udp(&packet) };
    let outcome = answer(&view(), &query, &mut out);
    assert_eq!(outcome.disposition, Disposition::Reply, "{name}");
    assert_eq!(out[..2], packet[..2]);
    show(&out)
}

fn ask(packet: &[u8]) -> (Outcome, Vec<u8>) {
    let mut out = Vec::new();
    let outcome = answer(&view(), &udp(packet), &mut out);
    (outcome, out)
}

fn code_of(packet: &[u8]) -> u16 {
    let (outcome, out) = ask(packet);
    assert_eq!(outcome.disposition, Disposition::Reply);
    assert!(out.len() >= HEADER_LEN);
    outcome.code
}

const WEB: &str = "web.default.svc.cluster.local";

#[test]
fn question_bytes_are_echoed_in_their_own_case() {
    let packet = packet("wEb.DeFault.svc.CLUSTER.local", rtype::A);
    let (_, out) = ask(&packet);
    assert_eq!(out[12..packet.len()], packet[12..]);
    assert!(show(&out).ends_with("5 A 10.96.0.10"), "{}", show(&out));
    // The owner is a pointer to the question, which keeps its case.
    assert_eq!(out[packet.len()..packet.len() + 2], [0xc0, 0x0c]);
}

#[test]
fn header_bits_say_authoritative_and_echo_rd_and_cd() {
    let mut query = packet(WEB, rtype::A);
    query[3] = 0x30; // AD and CD
    let (_, out) = ask(&query);
    assert_eq!(out[2], 0x85, "QR AA RD");
    assert_eq!(out[3], 0x10, "CD only: no recursion here");
    let mut with_recursion = Vec::new();
    answer(&view(), &Query { recursion: true, ..udp(&query) }, &mut with_recursion);
    assert_eq!(with_recursion[3], 0x90);
}

#[test]
fn packets_that_are_no_requests_are_dropped() {
    let mut response = packet(WEB, rtype::A);
    response[2] |= 0x80;
    for packet in [&response[..], &response[..11], &[]] {
        let (outcome, out) = ask(packet);
        assert_eq!(outcome.disposition, Disposition::Drop);
        assert!(out.is_empty());
    }
}

#[test]
fn other_opcodes_are_not_implemented() {
    for opcode in 1..16u8 {
        let mut query = packet(WEB, rtype::A);
        query[2] = opcode << 3;
        assert_eq!(code_of(&query), rcode::NOTIMP);
        let (_, out) = ask(&query);
        assert_eq!(out.len(), HEADER_LEN);
        assert_eq!(out[2] & 0x78, opcode << 3);
    }
}

#[test]
fn malformed_requests_get_formerr() {
    let good = packet(WEB, rtype::A);
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = good.clone();
        change(&mut packet);
        packet
    };
    let cases = [
        ("no question", changed(&|p| p[5] = 0)),
        ("two questions", changed(&|p| p[5] = 2)),
        ("label of 64 bytes", changed(&|p| p[12] = 64)),
        ("pointer to itself", changed(&|p| p.splice(12.., [0xc0, 12, 0, 1, 0, 1]).for_each(drop))),
        ("name cut short", changed(&|p| p.truncate(20))),
        ("no class", changed(&|p| p.truncate(good.len() - 2))),
        ("announced record missing", changed(&|p| p[11] = 1)),
        (
            "record data cut short",
            changed(&|p| {
                p[11] = 1;
                p.extend_from_slice(&[0, 0, 16, 0, 1, 0, 0, 0, 0, 0, 9, 1]);
            }),
        ),
        ("two OPT records", with_edns(with_edns(good.clone(), 1232, 0), 1232, 0)),
        (
            "OPT in the answer",
            changed(&|p| {
                p[7] = 1;
                p.extend_from_slice(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
            }),
        ),
        (
            "OPT with an owner",
            changed(&|p| {
                p[11] = 1;
                p.extend_from_slice(&[1, b'a', 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
            }),
        ),
        ("OPT as question", packet(WEB, rtype::OPT)),
        ("name of 256 bytes", packet(&vec!["abcdefg"; 32].join("."), rtype::A)),
    ];
    for (what, packet) in cases {
        assert_eq!(code_of(&packet), rcode::FORMERR, "{what}");
    }
}

#[test]
fn trailing_bytes_are_ignored() {
    let mut query = packet(WEB, rtype::A);
    query.extend_from_slice(b"trailing");
    assert_eq!(code_of(&query), rcode::NOERROR);
}

#[test]
fn other_classes_and_transfers_are_refused() {
    for class in [3u8, 4, 254, 255] {
        let mut query = packet(WEB, rtype::A);
        *query.last_mut().unwrap() = class;
        assert_eq!(code_of(&query), rcode::REFUSED);
    }
    for qtype in [rtype::AXFR, rtype::IXFR] {
        assert_eq!(code_of(&packet("cluster.local", qtype)), rcode::REFUSED);
        assert_eq!(code_of(&packet("example.com", qtype)), rcode::REFUSED);
    }
}

#[test]
fn edns_is_answered_with_own_size_and_do_bit() {
    let (_, out) = ask(&with_edns(packet(WEB, rtype::A), 4096, 0));
    assert_eq!(out[out.len() - 11..], [0, 0, 41, 4, 208, 0, 0, 0x80, 0, 0, 0]);
    assert_eq!(out[11], 1);
    let (_, plain) = ask(&packet(WEB, rtype::A));
    assert_eq!(plain[11], 0, "no EDNS for a client that has none");
}

#[test]
fn edns_of_another_version_is_badvers_with_our_size() {
    let (outcome, out) = ask(&with_edns(packet(WEB, rtype::A), 1232, 1));
    assert_eq!(outcome.code, rcode::BADVERS);
    assert_eq!(show(&out), "BADVERS");
    assert_eq!(out[out.len() - 11..out.len() - 4], [0, 0, 41, 4, 208, 1, 0]);
}

#[test]
fn names_of_other_zones_are_refused_without_a_forwarder_and_forwarded_with_one() {
    let query = packet("www.example.com", rtype::A);
    assert_eq!(code_of(&query), rcode::REFUSED);
    let mut out = Vec::new();
    let outcome = answer(&view(), &Query { recursion: true, ..udp(&query) }, &mut out);
    assert_eq!(outcome.disposition, Disposition::Forward);
    assert!(out.is_empty());
}

#[test]
fn clients_that_are_not_allowed_are_refused_for_every_name() {
    for name in [WEB, "example.com"] {
        let query = packet(name, rtype::A);
        let mut out = Vec::new();
        let query = Query { allowed: false, recursion: true, ..udp(&query) };
        assert_eq!(answer(&view(), &query, &mut out).code, rcode::REFUSED);
    }
}

#[test]
fn without_a_snapshot_cluster_names_are_servfail_and_never_nxdomain() {
    let view = View::unsynced(zone());
    for name in [WEB, "nope.default.svc.cluster.local", "cluster.local", "10.0.96.10.in-addr.arpa"] {
        for qtype in [rtype::A, rtype::AAAA, rtype::PTR, rtype::SRV] {
            let packet = packet(name, qtype);
            let mut out = Vec::new();
            let outcome = answer(&view, &Query { recursion: true, ..udp(&packet) }, &mut out);
            assert_eq!((outcome.disposition, outcome.code), (Disposition::Reply, rcode::SERVFAIL), "{name}");
            assert_eq!(show(&out), "SERVFAIL");
        }
    }
    let packet = packet("example.com", rtype::A);
    let outcome = answer(&view, &Query { recursion: true, ..udp(&packet) }, &mut Vec::new());
    assert_eq!(outcome.disposition, Disposition::Forward, "other names need no snapshot");
}

const MANY: &str = "many.default.svc.cluster.local";

fn many(edns: Option<u16>, transport: Transport) -> Vec<u8> {
    let plain = packet(MANY, rtype::A);
    let packet = edns.map_or(plain.clone(), |size| with_edns(plain, size, 0));
    let mut out = Vec::new();
    answer(&view(), &Query { transport, ..udp(&packet) }, &mut out);
    out
}

#[test]
fn large_answers_are_filled_as_far_as_the_client_takes_and_marked() {
    // 12 header, 36 question, 16 a record; 11 for OPT.
    let fits = |limit: usize| (limit - 12 - packet(MANY, rtype::A)[12..].len()) / 16;
    for (edns, limit, count) in [
        (None, 512, fits(512)),
        (Some(100), 512, fits(512 - 11)),
        (Some(512), 512, fits(512 - 11)),
        (Some(1000), 1000, fits(1000 - 11)),
        (Some(4096), 1232, fits(1232 - 11)),
    ] {
        let out = many(edns, Transport::Udp);
        assert!(out.len() <= limit, "{edns:?}: {} bytes", out.len());
        assert!(crate::wire::is_truncated(&out), "{edns:?}");
        assert_eq!(usize::from(u16::from_be_bytes([out[6], out[7]])), count, "{edns:?}");
    }
}

#[test]
fn tcp_answers_are_whole() {
    let out = many(None, Transport::Tcp);
    assert!(!crate::wire::is_truncated(&out));
    assert_eq!(u16::from_be_bytes([out[6], out[7]]), 100);
}

#[test]
fn glue_that_does_not_fit_is_left_out_without_tc() {
    let query = packet("_pg._tcp.db.default.svc.cluster.local", rtype::SRV);
    let (_, whole) = ask(&query);
    assert_eq!(whole[11], 3);
    // Many SRV records: the answer itself is cut, so no glue at all.
    let (_, cut) = ask(&packet("_http._tcp.many.default.svc.cluster.local", rtype::SRV));
    assert!(crate::wire::is_truncated(&cut));
    assert_eq!(cut[11], 0);
}

#[test]
fn order_of_addresses_changes_with_the_seed() {
    let packet = packet("db.default.svc.cluster.local", rtype::A);
    let firsts: std::collections::BTreeSet<Vec<u8>> = (0..32u64)
        .map(|seed| {
            let mut out = Vec::new();
            answer(
                &view(),
                &Query { seed: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), ..udp(&packet) },
                &mut out,
            );
            out[packet.len() + 12..packet.len() + 16].to_vec()
        })
        .collect();
    assert_eq!(firsts.len(), 2);
}

#[test]
fn alias_to_another_zone_is_chased_and_completed() {
    let packet = packet("ext.default.svc.cluster.local", rtype::A);
    let query = Query { recursion: true, ..udp(&packet) };
    let mut out = Vec::new();
    let outcome = answer(&view(), &query, &mut out);
    let target = Name::parse("www.example.com").unwrap();
    assert_eq!(outcome.disposition, Disposition::Chase(target.clone()));
    let data = crate::wire::Data::Raw { kind: rtype::A, bytes: vec![192, 0, 2, 1] };
    let answer = vec![Record { owner: target, ttl: 60, data }];
    complete(&view(), &query, Completion { answer, ..Completion::default() }, &mut out);
    assert_eq!(
        show(&out),
        "NOERROR | ext.default.svc.cluster.local 5 CNAME www.example.com, www.example.com 60 A 192.0.2.1"
    );
    complete(&view(), &query, Completion { code: rcode::NXDOMAIN, ..Completion::default() }, &mut out);
    assert_eq!(show(&out), "NXDOMAIN | ext.default.svc.cluster.local 5 CNAME www.example.com");
}

#[test]
fn relayed_replies_get_the_clients_id_and_question_bytes() {
    let client = packet("WWW.example.com", rtype::A);
    let mut upstream = packet("www.example.com", rtype::A);
    upstream[0] = 0xff;
    upstream[2] |= 0x80;
    let mut out = Vec::new();
    assert!(relay(&udp(&client), &upstream, &mut out));
    assert_eq!(out[..2], client[..2]);
    assert_eq!(out[12..client.len()], client[12..]);
    upstream.resize(600, 0);
    assert!(relay(&udp(&client), &upstream, &mut out));
    assert!(crate::wire::is_truncated(&out) && out.len() <= 512);
    let tcp = Query { transport: Transport::Tcp, ..udp(&client) };
    assert!(relay(&tcp, &upstream, &mut out));
    assert_eq!(out.len(), 600);
}

/// Every reply, whatever the request, is a message of bounded length that another parser reads.
fn check_law(view: &View, packet: &[u8], transport: Transport) {
    let mut out = Vec::new();
    let query = Query { packet, transport, recursion: false, allowed: true, seed: 3 };
    let outcome = answer(view, &query, &mut out);
    if outcome.disposition == Disposition::Drop {
        assert!(out.is_empty());
        return;
    }
    let limit = if transport == Transport::Udp { 1232 } else { 65_535 };
    assert!(out.len() <= limit);
    assert_eq!(out[..2], packet[..2]);
    assert_eq!(out[2] & 0x80, 0x80);
    show(&out);
    fail(&query, rcode::SERVFAIL, &mut out);
    relay(&query, packet, &mut out);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        check_law(&view(), &bytes, Transport::Udp);
    }

    #[test]
    fn mutated_requests_never_panic(
        index in 0usize..12,
        qtype in prop_oneof![Just(1u16), Just(28), Just(33), Just(12), Just(255), any::<u16>()],
        edns in any::<Option<u16>>(),
        edits in proptest::collection::vec((0usize..120, any::<u8>()), 0..6),
        cut in 0usize..160,
        tcp in any::<bool>(),
    ) {
        let names = [
            WEB, MANY, "_http._tcp.web.default.svc.cluster.local", "_pg._tcp.db.default.svc.cluster.local",
            "10.0.96.10.in-addr.arpa", "7.1.16.172.in-addr.arpa", "cluster.local", "ring-a.default.svc.cluster.local",
            "1-2-3-4.default.pod.cluster.local", "example.com", "ip6.arpa", "dns-version.cluster.local",
        ];
        let mut packet = packet(names[index], qtype);
        if let Some(size) = edns {
            packet = with_edns(packet, size, 0);
        }
        for (at, value) in edits {
            if let Some(byte) = packet.get_mut(at) {
                *byte = value;
            }
        }
        packet.truncate(packet.len().saturating_sub(cut.saturating_sub(100)));
        check_law(&view(), &packet, if tcp { Transport::Tcp } else { Transport::Udp });
    }

    #[test]
    fn address_families_agree_on_whether_a_name_exists(label in "[a-z0-9_-]{1,12}", place in 0usize..4) {
        let name = match place {
            0 => format!("{label}.default.svc.cluster.local"),
            1 => format!("{label}.db.default.svc.cluster.local"),
            2 => format!("{label}.pod.cluster.local"),
            _ => format!("{label}.cluster.local"),
        };
        let (a, aaaa) = (dig(&name, rtype::A), dig(&name, rtype::AAAA));
        prop_assert_eq!(a.starts_with("NXDOMAIN"), aaaa.starts_with("NXDOMAIN"));
    }
}
