//! A packet from a pod to the DNS responder.

#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use netd_dns::{Disposition, Query, Transport, View, Zone, ZoneConfig, answer};
use netd_model::Snapshot;

static VIEW: LazyLock<View> = LazyLock::new(|| {
    let zone = Zone::new(ZoneConfig::default()).expect("the default zone is valid");
    View::new(Arc::new(zone), Arc::new(Snapshot::default()), SystemTime::UNIX_EPOCH)
});

fuzz_target!(|bytes: &[u8]| {
    let mut out = Vec::new();
    for transport in [Transport::Udp, Transport::Tcp] {
        let query = Query { packet: bytes, transport, recursion: true, allowed: true, seed: 7 };
        let outcome = answer(&VIEW, &query, &mut out);
        let limit = if transport == Transport::Udp { 1232 } else { 65_535 };
        assert!(out.len() <= limit, "{} bytes over {}", out.len(), transport.name());
        if outcome.disposition == Disposition::Reply {
            assert!(bytes.len() >= 12 && bytes[2] & 0x80 == 0, "a reply is never answered");
            assert_eq!(out[..2], bytes[..2], "the id of the request");
        }
    }
});
