use super::*;
use crate::answer::tests::{packet, show, with_edns};

const NAME: &str = "www.example.com";

/// A reply to an A query: records as (section, type, ttl, data).
fn reply(code: u8, records: &[(Section, u16, u32, &[u8])]) -> Vec<u8> {
    let mut reply = packet(NAME, rtype::A);
    reply[2] |= 0x80;
    reply[3] = code;
    for (section, kind, ttl, data) in records {
        reply[7 + 2 * (*section as usize)] += 1;
        reply.extend_from_slice(&[0xc0, 12]);
        reply.extend_from_slice(&kind.to_be_bytes());
        reply.extend_from_slice(&[0, 1]);
        reply.extend_from_slice(&ttl.to_be_bytes());
        reply.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
        reply.extend_from_slice(data);
    }
    reply
}

const ADDRESS: &[u8] = &[192, 0, 2, 1];
const ALIAS: &[u8] = b"\x03web\x07example\x03com\x00";

/// Data of an SOA record with this minimum.
fn soa(minimum: u32) -> Vec<u8> {
    let mut data = vec![0, 0];
    data.extend_from_slice(&[0; 16]);
    data.extend_from_slice(&minimum.to_be_bytes());
    data
}

fn kept_seconds(reply: &[u8]) -> Option<u64> {
    keep_for(rtype::A, reply).map(|(keep, _)| keep.as_secs())
}

#[test]
fn replies_are_kept_as_long_as_their_shortest_time_and_half_a_minute_at_most() {
    use Section::{Answer, Authority};
    let a = |ttl| (Answer, rtype::A, ttl, ADDRESS);
    let denied = soa(20);
    for (what, reply, seconds) in [
        ("an address", reply(0, &[a(7)]), Some(7)),
        ("the shortest of two", reply(0, &[a(7), a(5)]), Some(5)),
        ("a long one", reply(0, &[a(86_400)]), Some(30)),
        ("none", reply(0, &[a(0)]), None),
        ("an alias with its target", reply(0, &[(Answer, rtype::CNAME, 3, ALIAS), a(7)]), Some(3)),
        ("an alias alone", reply(0, &[(Answer, rtype::CNAME, 3, ALIAS)]), None),
        ("no data with SOA", reply(0, &[(Authority, rtype::SOA, 25, &denied)]), Some(20)),
        ("no such name with SOA", reply(3, &[(Authority, rtype::SOA, 9, &denied)]), Some(9)),
        ("no data without SOA", reply(0, &[]), None),
        ("no such name without SOA", reply(3, &[]), None),
        ("a referral", reply(0, &[(Authority, rtype::NS, 60, ALIAS)]), None),
        ("a failure", reply(2, &[]), None),
        ("a refusal", reply(5, &[a(7)]), None),
        ("an SOA cut short", reply(0, &[(Authority, rtype::SOA, 25, &[1, 2])]), None),
    ] {
        assert_eq!(kept_seconds(&reply), seconds, "{what}");
    }
    let mut truncated = reply(0, &[a(7)]);
    truncated[2] |= 2;
    assert_eq!(kept_seconds(&truncated), None);
    let cut = reply(0, &[a(7)]);
    assert_eq!(kept_seconds(&cut[..cut.len() - 1]), None);
}

#[test]
fn times_to_live_run_down_and_then_the_reply_is_gone() {
    let now = Instant::now();
    let cache = Cache::new(1 << 20);
    let first = packet(NAME, rtype::A);
    let request = Request::parse(&first).unwrap();
    assert_eq!(cache.get(&request, now), None);
    cache.put(&request, &reply(0, &[(Section::Answer, rtype::A, 20, ADDRESS)]), now);
    let mut second = packet("WWW.Example.com", rtype::A);
    second[..2].copy_from_slice(&[9, 9]);
    let second = Request::parse(&second).unwrap();
    let hit = cache.get(&second, now + Duration::from_secs(6)).unwrap();
    assert_eq!(hit[..2], [9, 9]);
    assert_eq!(show(&hit), "NOERROR | www.example.com 14 A 192.0.2.1");
    assert_eq!(cache.get(&second, now + Duration::from_secs(20)), None);
}

#[test]
fn requests_that_may_get_other_answers_are_kept_apart() {
    let now = Instant::now();
    let cache = Cache::new(1 << 20);
    let plain = packet(NAME, rtype::A);
    cache.put(&Request::parse(&plain).unwrap(), &reply(0, &[(Section::Answer, rtype::A, 20, ADDRESS)]), now);
    let mut checking = plain.clone();
    checking[3] |= 0x10;
    let mut options = with_edns(plain.clone(), 1232, 0);
    let length = options.len();
    options[length - 1] = 4;
    options.extend_from_slice(&[0, 10, 0, 0]);
    for other in
        [packet(NAME, rtype::AAAA), packet("example.com", rtype::A), with_edns(plain, 1232, 0), checking]
    {
        assert_eq!(cache.get(&Request::parse(&other).unwrap(), now), None);
    }
    let options = Request::parse(&options).unwrap();
    assert!(options.edns.unwrap().has_options);
    cache.put(&options, &reply(0, &[(Section::Answer, rtype::A, 20, ADDRESS)]), now);
    assert_eq!(cache.get(&options, now), None);
}

#[test]
fn bytes_are_bounded_and_the_oldest_go_first() {
    let limit = 10_000;
    let now = Instant::now();
    let cache = Cache::new(limit);
    let request = |n: u32| packet(&format!("n{n}.example.com"), rtype::A);
    let reply = reply(0, &[(Section::Answer, rtype::A, 20, ADDRESS)]);
    for n in 0..1000 {
        cache.put(&Request::parse(&request(n)).unwrap(), &reply, now);
        // The same question again and again must not grow anything either.
        cache.put(&Request::parse(&request(0)).unwrap(), &reply, now);
        let (entries, order, bytes) = cache.size();
        assert!(bytes <= limit && entries < 60 && order <= 2 * entries + 16, "{entries} {order} {bytes}");
    }
    assert!(cache.get(&Request::parse(&request(999)).unwrap(), now).is_some());
    assert_eq!(cache.get(&Request::parse(&request(1)).unwrap(), now), None);
    cache.clear();
    assert_eq!(cache.size(), (0, 0, 0));
    let nothing = Cache::new(0);
    nothing.put(&Request::parse(&request(1)).unwrap(), &reply, now);
    assert_eq!(nothing.size(), (0, 0, 0));
}

proptest::proptest! {
    #[test]
    fn replies_of_any_bytes_never_panic(
        counts in proptest::collection::vec(0u8..4, 8),
        tail in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
    ) {
        let mut reply = packet(NAME, rtype::A);
        reply[4..12].copy_from_slice(&counts);
        reply.extend_from_slice(&tail);
        keep_for(rtype::A, &reply);
        keep_for(rtype::A, &tail);
    }
}
