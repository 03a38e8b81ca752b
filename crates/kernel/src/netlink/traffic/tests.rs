//! Traffic control in the real kernel, in namespaces of the test's own. They need root.

use std::time::Duration;

use super::*;
use crate::classic::{Assembler, Is};
use crate::netlink::VethSpec;
use crate::netlink::tests::TestNs;

fn pair(netlink: &mut Netlink) -> Ifindex {
    let spec = VethSpec { name: "a", peer_name: "b", up: true, ..VethSpec::default() };
    netlink.add_veth(&spec).unwrap()
}

#[test]
fn a_token_bucket_is_read_as_it_was_made() {
    let ns = TestNs::new();
    let mut netlink = ns.netlink();
    let mut link = pair(&mut netlink);
    assert_eq!(netlink.token_bucket(link).unwrap(), None);
    let latency = Duration::from_millis(25);
    // Up to 800 Gbit/s, and bursts that take longer than 32 bits can tell.
    for (rate, burst) in [(125_000, 20_000), (1_250_000, 536_870_911), (100_000_000_000, 4_000_000_000)] {
        let bucket = TokenBucket::new(rate, burst, latency);
        netlink.send(Batch::new().add_token_bucket(link, &bucket)).unwrap();
        let found = netlink.token_bucket(link).unwrap().unwrap();
        assert!(bucket.is(&found), "{bucket:?} {found:?}");
        let others = [
            TokenBucket { rate: rate + 1, ..bucket },
            TokenBucket { burst: burst / 2, ..bucket },
            TokenBucket { limit: bucket.limit - 1, ..bucket },
        ];
        assert!(others.iter().all(|other| !other.is(&found)), "{found:?}");
        let again = netlink.send(Batch::new().add_token_bucket(link, &bucket)).unwrap_err();
        assert!(again.is_exists(), "{again}");
        netlink.delete_link(link).unwrap();
        link = pair(&mut netlink);
    }
}

#[test]
fn the_queue_holds_the_latency_and_a_burst() {
    let latency = Duration::from_millis(25);
    assert_eq!(TokenBucket::new(1_000_000, 10_000, latency).limit, 35_000);
    assert_eq!(TokenBucket::new(u64::MAX, u32::MAX, latency).limit, u32::MAX);
}

#[test]
fn filters_are_read_in_the_order_they_are_asked() {
    let ns = TestNs::new();
    let mut netlink = ns.netlink();
    let link = pair(&mut netlink);
    assert_eq!(netlink.ingress_filters(link).unwrap(), []);
    let ifb = netlink.add_ifb("i", 1400, "whose").unwrap();
    let read = netlink.link("i").unwrap().unwrap();
    assert_eq!((read.kind.as_deref(), read.alias.as_deref(), read.mtu), (Some("ifb"), Some("whose"), 1400));
    assert!(read.up);
    let mut program = Assembler::new();
    let drop = program.label();
    program.load_half(12).branch(Is::Equal(0x806), Some(drop), None).verdict(Verdict::Next as u32);
    let code = program.place(drop).verdict(Verdict::Drop as u32).finish().unwrap();
    let mut batch = Batch::new();
    batch.add_clsact(link).add_ingress_redirect(link, 2, ifb).add_ingress_program(link, 1, &code);
    netlink.send(&batch).unwrap();
    let expected =
        [IngressFilter::Program { priority: 1, code }, IngressFilter::Redirect { priority: 2, to: ifb }];
    assert_eq!(netlink.ingress_filters(link).unwrap(), expected);
    assert_eq!(netlink.ingress_filters(ifb).unwrap(), []);
    let again = netlink.send(Batch::new().add_clsact(link)).unwrap_err();
    assert!(again.is_exists(), "{again}");
}

#[test]
fn options_that_are_cut_short_are_no_panic() {
    let options = TokenBucket::new(1 << 40, 9_000, Duration::from_millis(25)).options();
    assert_eq!(Bucket::read(&options).map(|bucket| bucket.rate), Some(1 << 40));
    for length in 0..options.len() {
        Bucket::read(&options[..length]);
    }
    assert_eq!(Bucket::read(&[0; 16]), None);
}
