use std::future::Future;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::*;
use crate::answer::tests::{packet, show, with_edns};
use crate::wire::rtype;

/// What a fake upstream does with a query: the datagrams it answers with, from the message it got.
type Script = fn(&[u8]) -> Vec<Vec<u8>>;

/// A fake upstream on loopback; over TCP it answers with one more address than over UDP.
async fn upstream(script: Script) -> SocketAddr {
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let address = udp.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
            for reply in script(&buffer[..length]) {
                udp.send_to(&reply, client).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let length = stream.read_u16().await.unwrap();
            let mut query = vec![0; usize::from(length)];
            stream.read_exact(&mut query).await.unwrap();
            let reply = reply_to(&query, 0, &[[192, 0, 2, 1], [192, 0, 2, 2]]);
            stream.write_u16(u16::try_from(reply.len()).unwrap()).await.unwrap();
            stream.write_all(&reply).await.unwrap();
        }
    });
    address
}

/// A reply to `query` with this code and addresses.
fn reply_to(query: &[u8], code: u8, addresses: &[[u8; 4]]) -> Vec<u8> {
    let mut reply = query.to_vec();
    let question_end = 12 + query[12..].iter().position(|b| *b == 0).unwrap() + 5;
    reply.truncate(question_end);
    reply[2] |= 0x80;
    reply[3] = 0x80 | code;
    reply[7] = u8::try_from(addresses.len()).unwrap();
    reply[11] = 0;
    for address in addresses {
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend_from_slice(address);
    }
    reply
}

const ONE: &[[u8; 4]] = &[[192, 0, 2, 1]];

fn good(query: &[u8]) -> Vec<Vec<u8>> {
    vec![reply_to(query, 0, ONE)]
}

fn silent(_: &[u8]) -> Vec<Vec<u8>> {
    Vec::new()
}

fn servfail(query: &[u8]) -> Vec<Vec<u8>> {
    vec![reply_to(query, 2, &[])]
}

fn nxdomain(query: &[u8]) -> Vec<Vec<u8>> {
    vec![reply_to(query, 3, &[])]
}

fn cut(query: &[u8]) -> Vec<Vec<u8>> {
    let mut reply = reply_to(query, 0, ONE);
    reply[2] |= 2;
    vec![reply]
}

/// Forgeries first: a wrong id, a wrong question, a query, garbage; then the truth.
fn forged(query: &[u8]) -> Vec<Vec<u8>> {
    let evil = &[[203, 0, 113, 66]];
    let mut wrong_id = reply_to(query, 0, evil);
    wrong_id[0] ^= 0xff;
    let mut wrong_question = reply_to(query, 0, evil);
    wrong_question[13] ^= 0x01;
    let mut wrong_type = reply_to(query, 0, evil);
    let end = 12 + wrong_type[12..].iter().position(|b| *b == 0).unwrap();
    wrong_type[end + 2] = 28;
    let mut no_question = reply_to(query, 0, evil);
    no_question[5] = 0;
    vec![
        wrong_id,
        wrong_question,
        wrong_type,
        no_question,
        query.to_vec(),
        vec![1, 2, 3],
        reply_to(query, 0, ONE),
    ]
}

const LIMITS: ForwardLimits = ForwardLimits { in_flight: 10, cache_bytes: 0 };

fn forwarder(upstreams: Vec<SocketAddr>) -> Forwarder {
    Forwarder::new(Upstreams::List(upstreams), Vec::new(), LIMITS, Arc::new(Metrics::default()))
}

async fn ask(forwarder: &Forwarder) -> Result<String, ForwardError> {
    let query = packet("www.Example.com", rtype::A);
    let reply = forwarder.forward(&query).await?;
    assert_eq!(reply[..2], query[..2], "the client's id comes back");
    Ok(show(&reply))
}

fn found(addresses: &[&str]) -> String {
    let records: Vec<String> = addresses.iter().map(|a| format!("www.Example.com 60 A {a}")).collect();
    format!("NOERROR | {}", records.join(", "))
}

/// Runs with a limit, so that a hanging forwarder fails its test.
async fn bounded<F: Future>(test: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), test).await.expect("no answer within 20 s")
}

#[tokio::test]
async fn answers_come_back_with_the_clients_id() {
    let forwarder = forwarder(vec![upstream(good).await]);
    assert_eq!(bounded(ask(&forwarder)).await.unwrap(), found(&["192.0.2.1"]));
    assert!(forwarder.upstreams()[0].healthy);
}

#[tokio::test]
async fn nxdomain_is_an_answer() {
    let forwarder = forwarder(vec![upstream(nxdomain).await, upstream(good).await]);
    assert_eq!(bounded(ask(&forwarder)).await.unwrap(), "NXDOMAIN");
}

#[tokio::test]
async fn answers_are_remembered_where_that_is_wanted() {
    let limits = ForwardLimits { cache_bytes: 1 << 20, ..LIMITS };
    let source = Upstreams::List(vec![upstream(good).await]);
    let forwarder = Forwarder::new(source, Vec::new(), limits, Arc::new(Metrics::default()));
    for _ in 0..3 {
        assert_eq!(bounded(ask(&forwarder)).await.unwrap(), found(&["192.0.2.1"]));
    }
    let counters = forwarder.metrics.snapshot();
    assert_eq!((counters.forwards, counters.forward_cached), (1, 2));
}

#[tokio::test]
async fn forged_datagrams_are_passed_over() {
    let forwarder = forwarder(vec![upstream(forged).await]);
    assert_eq!(bounded(ask(&forwarder)).await.unwrap(), found(&["192.0.2.1"]));
}

#[tokio::test]
async fn cut_answers_are_asked_again_over_tcp() {
    let forwarder = forwarder(vec![upstream(cut).await]);
    assert_eq!(bounded(ask(&forwarder)).await.unwrap(), found(&["192.0.2.1", "192.0.2.2"]));
    assert_eq!(forwarder.metrics.snapshot().forward_tcp, 1);
}

#[tokio::test]
async fn a_failing_upstream_gives_way_to_the_next() {
    let forwarder = forwarder(vec![upstream(servfail).await, upstream(good).await]);
    assert_eq!(bounded(ask(&forwarder)).await.unwrap(), found(&["192.0.2.1"]));
}

#[tokio::test]
async fn the_only_upstreams_failure_is_passed_on() {
    let forwarder = forwarder(vec![upstream(servfail).await]);
    assert_eq!(bounded(ask(&forwarder)).await.unwrap(), "SERVFAIL");
}

#[tokio::test]
async fn a_silent_upstream_costs_one_try_and_is_asked_last_then() {
    let forwarder = forwarder(vec![upstream(silent).await, upstream(good).await]);
    let started = Instant::now();
    assert_eq!(bounded(ask(&forwarder)).await.unwrap(), found(&["192.0.2.1"]));
    assert!(started.elapsed() >= TRY_TIMEOUT);
    assert!(!forwarder.upstreams()[0].healthy);
    let started = Instant::now();
    bounded(ask(&forwarder)).await.unwrap();
    assert!(started.elapsed() < TRY_TIMEOUT, "the one that answers is asked first now");
}

#[tokio::test]
async fn a_refused_port_costs_no_time() {
    let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let forwarder = forwarder(vec![closed, upstream(good).await]);
    let started = Instant::now();
    assert_eq!(bounded(ask(&forwarder)).await.unwrap(), found(&["192.0.2.1"]));
    assert!(started.elapsed() < TRY_TIMEOUT);
}

#[tokio::test]
async fn nobody_answering_ends_before_stub_resolvers_give_up() {
    let forwarder = forwarder(vec![upstream(silent).await, upstream(silent).await, upstream(silent).await]);
    let started = Instant::now();
    assert_eq!(bounded(ask(&forwarder)).await.unwrap_err(), ForwardError::Unanswered);
    assert!(started.elapsed() < Duration::from_millis(4900), "{:?}", started.elapsed());
    let counters = forwarder.metrics.snapshot();
    assert_eq!((counters.forwards, counters.forward_errors), (1, 1));
}

#[tokio::test]
async fn an_upstream_that_is_this_server_is_left_out() {
    let own: SocketAddr = "127.0.0.1:5353".parse().unwrap();
    let source = Upstreams::List(vec![own]);
    let forwarder = Forwarder::new(source, vec![own], LIMITS, Arc::new(Metrics::default()));
    assert!(!forwarder.enabled());
    assert!(forwarder.notes()[0].contains("127.0.0.1:5353 is this server itself"), "{:?}", forwarder.notes());
    assert_eq!(ask(&forwarder).await.unwrap_err(), ForwardError::Disabled);
}

#[tokio::test]
async fn permits_bound_the_queries_under_way() {
    let forwarder = forwarder(Vec::new());
    let held: Vec<_> = (0..10).map(|_| forwarder.permit().unwrap()).collect();
    assert!(forwarder.permit().is_none());
    assert_eq!(forwarder.metrics.snapshot().forward_rejected, 1);
    drop(held);
    assert!(forwarder.permit().is_some());
}

#[tokio::test]
async fn aliases_are_resolved_with_their_records() {
    let forwarder = forwarder(vec![upstream(good).await]);
    let name = Name::parse("www.example.com").unwrap();
    let completion = bounded(forwarder.resolve(&name, rtype::A)).await.unwrap();
    assert_eq!(completion.code, 0);
    assert_eq!(completion.answer.len(), 1);
    assert_eq!(completion.answer[0].owner, name);
    assert_eq!(completion.answer[0].ttl, 60);
}

#[test]
fn edns_sizes_that_would_fragment_are_lowered() {
    for (asked, sent) in [(4096, 1232), (1232, 1232), (600, 600), (0, 512)] {
        let query = with_edns(packet("example.com", rtype::A), asked, 0);
        let request = Request::parse(&query).unwrap();
        let outgoing = message::outgoing(&request, 0xabcd);
        let parsed = Request::parse(&outgoing).unwrap();
        assert_eq!((parsed.id, parsed.edns.unwrap().size), (0xabcd, sent));
        assert_eq!(parsed.question, request.question);
    }
}

#[test]
fn compressed_replies_are_flattened() {
    // www.example.com CNAME web.example.com, web.example.com A, and an SOA in authority.
    let mut reply = packet("www.example.com", rtype::A);
    reply[2] |= 0x80;
    reply[7] = 2;
    reply.extend_from_slice(&[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 6, 3, b'w', b'e', b'b', 0xc0, 16]);
    let web = u8::try_from(reply.len() - 6).unwrap();
    reply.extend_from_slice(&[0xc0, web, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 9]);
    let completion = message::completion(&reply, rtype::A).unwrap();
    let kinds: Vec<u16> = completion.answer.iter().map(|r| r.data.kind()).collect();
    assert_eq!(kinds, [rtype::CNAME, rtype::A]);
    assert_eq!(completion.answer[1].owner.to_string(), "web.example.com.");
    let crate::wire::Data::Raw { bytes, .. } = &completion.answer[0].data else { panic!("raw") };
    assert_eq!(bytes, b"\x03web\x07example\x03com\x00");
    // Cut anywhere, it is no answer, and no panic.
    for length in 0..reply.len() {
        message::completion(&reply[..length], rtype::A);
    }
    assert!(message::completion(&reply[..reply.len() - 1], rtype::A).is_none());
}

proptest::proptest! {
    #[test]
    fn replies_of_any_bytes_never_panic(
        head in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..4),
        counts in proptest::collection::vec(0u8..3, 8),
        tail in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
    ) {
        let query = packet("www.example.com", rtype::A);
        let mut reply = query.clone();
        reply[2] |= 0x80;
        for (at, byte) in head.iter().enumerate() {
            reply[at] = *byte;
        }
        reply[4..12].copy_from_slice(&counts);
        reply.extend_from_slice(&tail);
        message::is_reply_to(&reply, &query, &query[12..]);
        message::completion(&reply, rtype::A);
        message::completion(&tail, rtype::AAAA);
    }
}

static NO_LOOPS: BTreeSet<SocketAddr> = BTreeSet::new();
const NOBODY: Excluded<'_> = Excluded { own: &[], looping: &NO_LOOPS };

#[tokio::test]
async fn upstreams_that_answer_pass_the_probe_and_silent_ones_stay_in_use() {
    let forwarder = forwarder(vec![upstream(nxdomain).await, upstream(silent).await]);
    let mut verdicts = Verdicts::default();
    bounded(forwarder.probe_upstreams(&mut verdicts)).await;
    assert!(verdicts.looping.is_empty());
    forwarder.reload(&verdicts);
    assert_eq!(forwarder.upstreams().len(), 2);
    assert!(!forwarder.is_own_probe(&packet("www.example.com", rtype::A)));
}

#[test]
fn resolv_conf_is_read_and_oddities_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("resolv.conf");
    let text = "# comment\nsearch example.com\nnameserver 192.0.2.53\nnameserver\t2001:db8::53 # two\n\
                nameserver fe80::1%eth0\nnameserver 192.0.2.53\nnameserver\noptions ndots:5\n";
    std::fs::write(&path, text).unwrap();
    let source = Upstreams::ResolvConf(path.clone());
    let loaded = load(&source, NOBODY, &Loaded::default());
    let addresses: Vec<String> = loaded.upstreams.iter().map(|u| u.address.to_string()).collect();
    assert_eq!(addresses, ["192.0.2.53:53", "[2001:db8::53]:53"]);
    assert_eq!(loaded.notes.len(), 1);
    assert!(loaded.notes[0].contains("fe80::1%eth0"));
    loaded.upstreams[0].failed(0);
    std::fs::write(&path, "nameserver 192.0.2.54\nnameserver 192.0.2.53\n").unwrap();
    let changed = load(&source, NOBODY, &loaded);
    assert_eq!(changed.upstreams.len(), 2);
    assert_eq!(changed.upstreams[1].status(0).failures, 1, "a known upstream keeps its record");
    std::fs::remove_file(&path).unwrap();
    let missing = load(&source, NOBODY, &changed);
    assert_eq!(missing.upstreams.len(), 2, "the last known ones stay");
    assert!(missing.notes[0].contains("cannot be read"));
}
