//! An address that another pod had a moment ago, seen from a pod that remembers the other one.

use std::net::UdpSocket;
use std::time::Duration;

use netd_kernel::{Clock, SystemClock};
use serde_json::json;

use super::harness::{Host, Space, pod_address};

const TURNS: usize = 20;

/// Sends a datagram and waits for it; the time that took.
fn first_packet(from: &UdpSocket, server: &UdpSocket) -> Duration {
    let to = server.local_addr().unwrap();
    let mut buffer = [0; 8];
    let start = SystemClock.now();
    from.send_to(b"hello", to).unwrap();
    server.recv_from(&mut buffer).expect("the first packet arrives");
    start.elapsed()
}

#[test]
fn the_first_packet_to_an_address_used_again_passes() {
    let host = Host::with_ranges(
        json!([[{ "subnet": "172.16.1.0/24", "rangeStart": "172.16.1.2", "rangeEnd": "172.16.1.3" }]]),
    );
    let third = Space::new("pod");
    let own = pod_address(&host.add("third", &third));
    let socket = third.run(|| UdpSocket::bind((own.as_str(), 0))).unwrap();
    let node = host.space.run(|| UdpSocket::bind("172.16.1.1:0")).unwrap();
    let (mut slowest, mut all) = (Duration::ZERO, Vec::new());
    let mut last = None;
    for turn in 0..TURNS {
        let (id, pod) = (format!("turn{turn}"), Space::new("pod"));
        let address = pod_address(&host.add(&id, &pod));
        assert!(last.is_none_or(|last| last == address), "the same address each time");
        let server = pod.run(|| UdpSocket::bind((address.as_str(), 53))).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        // The caches of both are warm with the pod of before; the first packet after its end is the one that counts.
        for from in [&socket, &node] {
            let took = first_packet(from, &server);
            slowest = slowest.max(took);
            all.push(took);
        }
        host.del(&id, pod.path());
        last = Some(address);
    }
    all.sort_unstable();
    println!(
        "address used again: {} of {} first packets passed, median {:?}, slowest {slowest:?}",
        all.len(),
        2 * TURNS,
        all[all.len() / 2]
    );
    // 5 ms is the promise; half of them must keep it on a machine that does other things as well, and none is late by
    // what a neighbour probe takes.
    assert!(all[all.len() / 2] < Duration::from_millis(5), "{all:?}");
    assert!(slowest < Duration::from_millis(900), "{all:?}");
}
