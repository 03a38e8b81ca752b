//! How fast a pod may receive and send, with the kernel's token buckets and with bytes that pass.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use netd_kernel::exec::Stream;
use netd_kernel::netlink::{Batch, Bucket, IngressFilter};
use netd_kernel::process::Signal;
use netd_kernel::reap::{self, GROUP};
use netd_kernel::{Clock, Link, SystemClock};
use serde_json::{Value, json};

use super::chained::reference;
use super::harness::{Host, LIMIT, Space, environment, error_of, pod_address, text};

/// A megabyte a second, 64 KiB at once.
const RATE: u64 = 8_000_000;
const BURST: u64 = 8 * 65_536;

fn limited(host: &mut Host, limits: Value) {
    host.config["runtimeConfig"] = json!({ "bandwidth": limits });
}

fn both() -> Value {
    json!({ "ingressRate": RATE, "ingressBurst": BURST, "egressRate": 2 * RATE, "egressBurst": BURST })
}

fn host_end(host: &Host) -> Link {
    link(host, "netd").expect("the host's end")
}

fn shaper(host: &Host) -> Option<Link> {
    link(host, "ndif")
}

fn link(host: &Host, start: &str) -> Option<Link> {
    let links = host.space.netlink().links().unwrap();
    links.into_iter().find(|link| link.name != "netd0" && link.name.starts_with(start))
}

/// How long so many bytes take from one to the other.
fn duration(from: &Space, to: &Space, address: &str, bytes: usize) -> Duration {
    let listener = to.listen(address);
    let at: SocketAddr = listener.local_addr().unwrap();
    let mut out = from.run(|| TcpStream::connect_timeout(&at, Duration::from_secs(5))).unwrap();
    let (mut inward, _) = listener.accept().unwrap();
    inward.set_read_timeout(Some(LIMIT)).unwrap();
    out.set_write_timeout(Some(LIMIT)).unwrap();
    let start = SystemClock.now();
    let sender = std::thread::spawn(move || out.write_all(&vec![7; bytes]));
    let mut received = vec![0; bytes];
    inward.read_exact(&mut received).unwrap();
    sender.join().unwrap().unwrap();
    start.elapsed()
}

#[test]
fn bytes_take_the_time_that_the_rate_says() {
    let mut host = Host::new();
    let (free, slow) = (Space::new("pod"), Space::new("pod"));
    let free_address = pod_address(&host.add("free", &free));
    limited(&mut host, both());
    let slow_address = pod_address(&host.add("slow", &slow));
    let bytes = 800_000;
    let to_slow = duration(&free, &slow, &slow_address, bytes);
    let from_slow = duration(&slow, &free, &free_address, bytes);
    // 800 kB but a burst of 64 KiB, at 1 MB/s and at 2 MB/s; headers make it longer, a busy machine as well.
    let expected = Duration::from_millis(734);
    let near =
        |found: Duration, expected: Duration| found > expected * 9 / 10 && found < expected * 2 + LIMIT / 20;
    assert!(near(to_slow, expected), "received in {to_slow:?}");
    assert!(near(from_slow, expected / 2), "sent in {from_slow:?}");
    assert!(to_slow > from_slow, "{to_slow:?} {from_slow:?}");
}

#[test]
fn a_burst_that_nobody_named_does_not_undo_the_rate() {
    let mut host = Host::new();
    // What containerd makes of the annotation kubernetes.io/ingress-bandwidth: 8M.
    limited(&mut host, json!({ "ingressRate": RATE, "ingressBurst": u32::MAX }));
    let (free, slow) = (Space::new("pod"), Space::new("pod"));
    let address = pod_address(&host.add("slow", &slow));
    assert_eq!(shaper(&host), None, "nothing is said about what the pod sends");
    host.config["runtimeConfig"] = json!({});
    host.add("free", &free);
    let took = duration(&free, &slow, &address, 600_000);
    assert!(took > Duration::from_millis(400), "{took:?}");
}

#[test]
fn the_kernel_has_what_the_reference_plugin_makes() {
    let mut host = Host::new();
    // It needs the place for filters for itself.
    host.config["antiSpoofing"] = json!(false);
    host.config["cniVersion"] = json!("1.0.0");
    let state = |host: &Host, host_end: &Link, ifb: &Link| -> (Vec<Bucket>, Vec<IngressFilter>, u32, bool) {
        let mut netlink = host.space.netlink();
        let buckets = [host_end, ifb].map(|link| netlink.token_bucket(link.index).unwrap().unwrap()).to_vec();
        let filters = netlink.ingress_filters(host_end.index).unwrap();
        assert!(
            matches!(filters[..], [IngressFilter::Redirect { to, .. }] if to == ifb.index),
            "{filters:?}"
        );
        (buckets, filters, ifb.mtu, ifb.up)
    };
    let pod = Space::new("pod");
    let result = host.add("c1", &pod);
    let config = json!({ "cniVersion": "1.0.0", "name": "pods", "type": "bandwidth", "prevResult": result,
        "runtimeConfig": { "bandwidth": both() } });
    let output = reference(&host, "bandwidth", "ADD", &pod, &config);
    assert_eq!(output.status, 0, "{}{}", text(&output), output.complaint());
    let theirs = state(&host, &host_end(&host), &link(&host, "bwp").expect("the reference plugin's ifb"));
    reference(&host, "bandwidth", "DEL", &pod, &config);
    host.del("c1", pod.path());
    assert!(host.leftovers().is_empty());

    limited(&mut host, both());
    host.add("c1", &pod);
    let ours = state(&host, &host_end(&host), &shaper(&host).expect("our ifb"));
    for (ours, theirs) in ours.0.iter().zip(&theirs.0) {
        assert_eq!((ours.rate, ours.limit), (theirs.rate, theirs.limit));
        let difference = ours.burst().abs_diff(theirs.burst());
        assert!(difference <= 64, "bursts of {} and {} bytes", ours.burst(), theirs.burst());
    }
    assert_eq!((ours.2, ours.3), (theirs.2, theirs.3));
}

#[test]
fn check_tells_what_is_missing_or_different() {
    let mut host = Host::new();
    limited(&mut host, both());
    let pod = Space::new("pod");
    let result = host.add("c1", &pod);
    let whole = host.check("c1", &pod, &result);
    assert_eq!(whole.status, 0, "{}", text(&whole));
    limited(
        &mut host,
        json!({ "ingressRate": RATE, "ingressBurst": BURST, "egressRate": RATE, "egressBurst": BURST }),
    );
    let different = error_of(&host.check("c1", &pod, &result));
    assert_eq!(different["code"], 103);
    let message = different["msg"].as_str().unwrap();
    assert!(
        message.contains("what the pod sends is 2000000 bytes") && !message.contains("receives"),
        "{message}"
    );
    limited(&mut host, both());
    let ifb = shaper(&host).unwrap();
    host.space.netlink().delete_link(ifb.index).unwrap();
    let missing = error_of(&host.check("c1", &pod, &result));
    assert!(missing["msg"].as_str().unwrap().contains(&ifb.name), "{missing}");
    host.del("c1", pod.path());
    host.config["runtimeConfig"] = json!({});
    let result = host.add("c2", &pod);
    limited(&mut host, both());
    let gone = error_of(&host.check("c2", &pod, &result));
    assert!(gone["msg"].as_str().unwrap().contains("the limit of what the pod receives is gone"), "{gone}");
}

#[test]
fn nothing_is_left_in_whatever_state_a_del_comes() {
    let mut host = Host::new();
    limited(&mut host, both());
    for case in 0..5 {
        let pod = Space::new("pod");
        host.add("c1", &pod);
        let ifb = shaper(&host).expect("an ifb");
        assert!(ifb.alias.as_deref().unwrap().contains("net=pods if=eth0 id=c1"), "{ifb:?}");
        let mut netlink = host.space.netlink();
        match case {
            0 => host.del("c1", pod.path()),
            // The link went before, and the runtime knows nothing any more.
            1 => {
                netlink.delete_link(host_end(&host).index).unwrap();
                host.config["runtimeConfig"] = json!({});
                host.del("c1", "");
                limited(&mut host, both());
            }
            // Killed before it had its alias, as if somebody had removed it; and the limits are impossible.
            2 => {
                netlink.set_alias(ifb.index, "").unwrap();
                limited(&mut host, json!({ "egressRate": 1 }));
                host.del("c1", pod.path());
                limited(&mut host, both());
            }
            // Nothing but the ifb is left, and it is in no list of the runtime's.
            3 => {
                let alias = ifb.alias.clone().unwrap();
                host.del("c1", pod.path());
                netlink.add_ifb(&ifb.name, 1500, &alias).unwrap();
                let mut config = host.config.clone();
                config["cni.dev/valid-attachments"] = json!([]);
                let output = host.verb("GC", "c1", pod.path(), &config);
                assert_eq!(output.status, 0, "{}", text(&output));
            }
            // A new ADD finds one of before.
            _ => {
                let alias = ifb.alias.clone().unwrap();
                host.del("c1", pod.path());
                netlink.add_ifb(&ifb.name, 1500, &alias).unwrap();
                host.add("c1", &pod);
                assert_ne!(shaper(&host).unwrap().index, ifb.index);
                host.del("c1", pod.path());
            }
        }
        assert!(host.leftovers().is_empty(), "case {case}: {:?}", host.leftovers());
        host.del("c1", pod.path());
    }
}

#[test]
fn a_gc_leaves_the_limits_of_valid_attachments() {
    let mut host = Host::new();
    limited(&mut host, both());
    let pod = Space::new("pod");
    let result = host.add("c1", &pod);
    let mut config = host.config.clone();
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "c1", "ifname": "eth0" }]);
    let output = host.verb("GC", "c1", pod.path(), &config);
    assert_eq!(output.status, 0, "{}", text(&output));
    let check = host.check("c1", &pod, &result);
    assert_eq!(check.status, 0, "{}", text(&check));
}

#[test]
fn anothers_ifb_is_left_alone() {
    let mut host = Host::new();
    limited(&mut host, both());
    let pod = Space::new("pod");
    host.add("c1", &pod);
    let name = shaper(&host).unwrap().name;
    host.del("c1", pod.path());
    host.space.netlink().add_ifb(&name, 1500, "mine").unwrap();
    let error = error_of(&host.verb("ADD", "c1", pod.path(), &host.config));
    assert_eq!(error["code"], 101, "{error}");
    host.del("c1", pod.path());
    assert_eq!(host.leftovers(), [name]);
}

#[test]
fn the_daemon_deletes_both_links_in_one_deletion() {
    let mut host = Host::new();
    limited(&mut host, both());
    let pod = Space::new("pod");
    let _daemon = host.space.run(reap::listen).unwrap();
    host.add("c1", &pod);
    host.del("c1", pod.path());
    for link in [host_end(&host), shaper(&host).unwrap()] {
        assert_eq!((link.up, link.alias.as_deref()), (false, Some("netd-reap if=eth0 id=c1")));
    }
    // Before it has done so, the same attachment is made again.
    host.add("c1", &pod);
    host.del("c1", pod.path());
    host.space.netlink().delete_group(GROUP).unwrap();
    assert!(host.leftovers().is_empty(), "{:?}", host.leftovers());
    // A DEL was killed between the two.
    host.add("c1", &pod);
    let index = host_end(&host).index;
    host.space.netlink().send(Batch::new().put_aside(index, GROUP, "netd-reap if=eth0 id=c1")).unwrap();
    host.space.netlink().delete_group(GROUP).unwrap();
    host.del("c1", pod.path());
    host.space.netlink().delete_group(GROUP).unwrap();
    assert!(host.leftovers().is_empty(), "{:?}", host.leftovers());
}

#[test]
fn whatever_is_killed_a_del_leaves_nothing() {
    let mut host = Host::new();
    limited(&mut host, both());
    let stdin = host.data.path().join("stdin");
    std::fs::write(&stdin, host.config.to_string()).unwrap();
    for turn in 0..24 {
        let pod = Space::new("pod");
        for verb in ["ADD", "DEL"] {
            let mut spawn = host.spawn(&environment(verb, "victim", pod.path()));
            spawn.stdin = Stream::File(stdin.clone());
            let mut child = spawn.start().unwrap();
            std::thread::sleep(Duration::from_micros(turn * 400));
            child.kill(Signal::Kill).unwrap();
            child.wait_timeout(LIMIT).unwrap().unwrap();
        }
        host.del("victim", if turn % 2 == 0 { pod.path() } else { "" });
        assert!(host.leftovers().is_empty(), "turn {turn}: {:?}", host.leftovers());
    }
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_is_done() {
    let mut host = Host::new();
    let pod = Space::new("pod");
    for (limits, word) in [
        (json!({ "ingressRate": 1000 }), "ingressBurst must also be set"),
        (json!({ "egressBurst": 1000 }), "egressRate must also be set"),
        (json!({ "egressRate": 1000, "egressBurst": 1_u64 << 40 }), "4 GiB"),
        (json!({ "egressRate": 8_000_000, "egressBurst": 8000 }), "less than one packet"),
    ] {
        limited(&mut host, limits);
        let error = error_of(&host.verb("ADD", "c1", pod.path(), &host.config));
        assert_eq!(error["code"], 7, "{error}");
        assert!(error.to_string().contains(word), "{error}");
        host.del("c1", pod.path());
        assert!(host.leftovers().is_empty());
    }
    limited(&mut host, json!({ "ingressRate": 0, "ingressBurst": 0 }));
    host.add("c1", &pod);
}
