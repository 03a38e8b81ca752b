//! Second ADDs, DELs of nothing, a full pool, GC and STATUS, ranges that change, a daemon that does not answer.

use std::collections::BTreeSet;
use std::time::Duration;

use netd_kernel::process::Signal;
use netd_kernel::reap::{self, GROUP};
use netd_kernel::{Clock, SystemClock};
use serde_json::{Value, json};

use super::harness::{Host, Space, environment, error_of, pod_address, text};
use super::node::{Daemon, Foreign, addresses_of, assert_nothing, dual, found, with_ports};

#[test]
fn c02_a_second_add_is_refused_and_the_first_untouched() {
    const TURNS: usize = 10;
    let (host, pod, other) = (dual(), Space::new("pod"), Space::new("pod"));
    let config = with_ports(&host.config, &[18_080]);
    let first = host.verb("ADD", "c1", pod.path(), &config);
    let result: Value = serde_json::from_slice(&first.stdout).unwrap();
    let before = found(&host);
    let link = pod.netlink().link("eth0").unwrap();
    for turn in 0..TURNS {
        let (id, space) = [("c1", &pod), ("c1", &other), ("c2", &pod)][turn % 3];
        let error = error_of(&host.verb("ADD", id, space.path(), &config));
        assert_eq!(error["code"], 101, "{error}");
        assert_eq!(found(&host), before, "turn {turn}");
        assert_eq!(pod.netlink().link("eth0").unwrap(), link);
        assert!(other.links().is_empty());
    }
    let mut checked = config.clone();
    checked["prevResult"] = result;
    assert_eq!(host.verb("CHECK", "c1", pod.path(), &checked).status, 0);
    println!("c02: {TURNS} second ADDs: {TURNS} refused with code 101, the first untouched");
}

#[test]
fn c03_a_del_of_whatever_succeeds_within_a_second() {
    let host = dual();
    let mut slowest = Duration::ZERO;
    let mut calls = 0;
    let mut del = |id: &str, netns: Option<&str>| {
        let mut env = environment("DEL", id, netns.unwrap_or_default()).to_vec();
        if netns.is_none() {
            env.retain(|(name, _)| *name != "CNI_NETNS");
        }
        let start = SystemClock.now();
        let output = host.call(&env, host.config.to_string().as_bytes());
        slowest = slowest.max(start.elapsed());
        calls += 1;
        assert_eq!((output.status, text(&output)), (0, String::new()), "{id} {netns:?}");
    };
    let pod = Space::new("pod");
    for netns in [None, Some(""), Some("/run/netns/nd-gone"), Some("/nonexistent"), Some(pod.path())] {
        del("never", netns);
    }
    for turn in 0..5 {
        let add = |pod: &Space| {
            let output = host.verb("ADD", "c1", pod.path(), &with_ports(&host.config, &[18_080]));
            assert_eq!(output.status, 0, "{}", text(&output));
        };
        add(&pod);
        (0..3).for_each(|_| del("c1", Some(pod.path())));
        assert_nothing(&host, "three DELs");
        add(&pod);
        del("c1", [None, Some("")][turn % 2]);
        assert_nothing(&host, "without CNI_NETNS");
        assert!(pod.links().is_empty(), "the pod's end goes with the host's");
        let gone = Space::new("pod");
        let path = gone.path().to_owned();
        add(&gone);
        drop(gone);
        (0..3).for_each(|_| del("c1", Some(&path)));
        assert_nothing(&host, "the namespace is gone");
    }
    println!("c03: {calls} DELs, 0 failed, 0 left, slowest {slowest:?}");
    // The bound is the experiment's; a machine that does other things as well takes ten times as long.
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
}

#[test]
fn c05_a_full_pool_refuses_and_one_del_makes_room() {
    let host = Host::with_ranges(json!([[{ "subnet": "172.16.1.0/29" }]]));
    let pods: Vec<Space> = (0..6).map(|_| Space::new("pod")).collect();
    for (n, pod) in pods.iter().take(5).enumerate() {
        assert_eq!(host.verb("STATUS", "", "", &host.config).status, 0, "{n} of 5 in use");
        host.add(&format!("c{n}"), pod);
    }
    for _ in 0..3 {
        let error = error_of(&host.verb("ADD", "c5", pods[5].path(), &host.config));
        assert_eq!(error["code"], 11, "{error}");
        assert!(error.to_string().contains("172.16.1.0/29"), "{error}");
        assert!(pods[5].links().is_empty());
        let status = error_of(&host.verb("STATUS", "", "", &host.config));
        assert_eq!(status["code"], 50, "{status}");
    }
    host.del("c2", pods[2].path());
    assert_eq!(host.verb("STATUS", "", "", &host.config).status, 0);
    host.add("c5", &pods[5]);
    println!(
        "c05: a pool of 5: 5 ADDs, 3 refused with code 11, STATUS 50 three times, the ADD after one DEL works"
    );
}

#[test]
fn c09_gc_removes_exactly_what_is_not_valid() {
    const PODS: usize = 8;
    let host = dual();
    let foreign = Foreign::new(&host);
    let pods: Vec<Space> = (0..PODS).map(|_| Space::new("pod")).collect();
    let mut results = Vec::new();
    for (n, pod) in pods.iter().enumerate() {
        let port = u16::try_from(18_000 + n).unwrap();
        let output = host.verb("ADD", &format!("c{n}"), pod.path(), &with_ports(&host.config, &[port]));
        assert_eq!(output.status, 0, "{}", text(&output));
        results.push(serde_json::from_slice::<Value>(&output.stdout).unwrap());
    }
    let mut config = host.config.clone();
    let valid = |n: usize| json!({ "containerID": format!("c{n}"), "ifname": "eth0" });
    config["cni.dev/valid-attachments"] =
        json!([valid(1), valid(3), valid(99), { "containerID": "c0", "ifname": "net1" }]);
    for _ in 0..2 {
        let output = host.call(&[("CNI_COMMAND", "GC")], config.to_string().as_bytes());
        assert_eq!((output.status, text(&output)), (0, String::new()));
        let left = Foreign::found_beside(&host);
        assert_eq!(
            (left.leases.len(), left.links.len(), left.neighbours.len(), left.ports.len()),
            (2, 2, 4, 2)
        );
        assert_eq!(left.strays, BTreeSet::new());
        foreign.assert_untouched(&host);
    }
    for n in [1, 3] {
        let check = host.check(&format!("c{n}"), &pods[n], &results[n]);
        assert_eq!(check.status, 0, "{}", text(&check));
    }
    foreign.end(&host);
    println!(
        "c09: GC of {PODS} attachments with 2 valid: 6 of 6 removed with addresses, links and ports, 2 of 2 kept, 0 of others touched"
    );
}

#[test]
fn c09_status_tells_what_an_add_would_meet() {
    let (mut host, pod) = (dual(), Space::new("pod"));
    let file = host.data.path().join("ranges.json");
    let fixed = host.config.clone();
    host.config["ipam"].as_object_mut().unwrap().remove("ranges");
    host.config["ipam"]["rangesFile"] = json!(file);
    assert_eq!(
        error_of(&host.verb("STATUS", "", "", &host.config))["code"],
        50,
        "the daemon has not been there yet"
    );
    for rubbish in ["", "{", "{\"podCIDRs\":[]}", "{\"podCIDRs\":[\"x\"]}", "[]"] {
        std::fs::write(&file, rubbish).unwrap();
        assert_eq!(error_of(&host.verb("STATUS", "", "", &host.config))["code"], 50, "{rubbish}");
        let error = error_of(&host.verb("ADD", "c1", pod.path(), &host.config));
        assert!(pod.links().is_empty(), "{rubbish}: {error}");
    }
    host.config = fixed;
    host.add("c1", &pod);
    assert_eq!(host.verb("STATUS", "", "", &host.config).status, 0);
    let bridge = host.space.netlink().link("netd0").unwrap().unwrap().index;
    host.space.netlink().delete_link(bridge).unwrap();
    assert_eq!(error_of(&host.verb("STATUS", "", "", &host.config))["code"], 51, "pods are cut off");
    host.del("c1", pod.path());
    assert_eq!(host.verb("STATUS", "", "", &host.config).status, 0);
    println!("c09: STATUS 0 with and without pods, 50 without ranges (6 kinds), 51 without the bridge");
}

#[test]
fn c10_new_ranges_while_pods_run() {
    let mut host = Host::new();
    let outside = host.outside();
    let file = host.data.path().join("ranges.json");
    host.config["ipam"].as_object_mut().unwrap().remove("ranges");
    host.config["ipam"]["rangesFile"] = json!(file);
    let ranges = |list: &str| {
        let text = format!(r#"{{"podCIDRs":[{list}],"clusterCIDRs":["172.16.0.0/12","fd00:1::/48"]}}"#);
        std::fs::write(&file, text).unwrap();
    };
    let pods: Vec<Space> = (0..4).map(|_| Space::new("pod")).collect();
    let steps = [
        ("old", "\"172.16.1.0/24\"", "172.16.1.2"),
        ("second-family", "\"172.16.1.0/24\",\"fd00:1::/64\"", "172.16.1.3"),
        ("new", "\"172.17.1.0/24\",\"fd00:1:0:1::/64\"", "172.17.1.2"),
        ("back", "\"172.16.1.0/24\"", "172.16.1.4"),
    ];
    let mut live = Vec::new();
    for ((id, list, wanted), pod) in steps.iter().zip(&pods) {
        ranges(list);
        let address = pod_address(&host.add(id, pod));
        assert_eq!(address, *wanted, "never one that lives");
        live.push((pod, address));
        // Every pod reaches every other, and the world, whatever its range is.
        for (from, source) in &live {
            for (to, address) in &live {
                assert_eq!(from.connect(&to.listen(address)).unwrap().to_string(), *source, "after {id}");
            }
            let world = outside.listen("192.168.77.2");
            assert_eq!(
                from.connect(&world).unwrap().to_string(),
                "192.168.77.1",
                "after {id}: {source} is masqueraded"
            );
        }
    }
    for (id, ..) in steps {
        host.del(id, "");
    }
    assert_eq!(host.leftovers(), ["up0"], "the test's own uplink");
    println!(
        "c10: 3 changes of the node's ranges while pods run: 4 of 4 pods reach all others and the world, 0 addresses twice, 0 left"
    );
}

#[test]
fn c12_a_daemon_that_takes_no_calls() {
    const CALLS: usize = 160;
    let (host, pod) = (Host::new(), Space::new("pod"));
    // Its queue fills up, since it never accepts.
    let daemon = host.space.run(reap::listen).unwrap();
    let mut slowest = Duration::ZERO;
    let mut timed = |verb: &str| {
        let start = SystemClock.now();
        let output = host.verb(verb, "c1", pod.path(), &host.config);
        slowest = slowest.max(start.elapsed());
        assert_eq!(output.status, 0, "{}", text(&output));
    };
    for _ in 0..CALLS {
        timed("ADD");
        timed("DEL");
    }
    drop(daemon);
    host.del("c1", "");
    assert_nothing(&host, "the DEL after the daemon's end");
    println!(
        "c12: {CALLS} ADDs and DELs beside a daemon that takes no calls: 0 failed, slowest {slowest:?}, 0 left after its end"
    );
    assert!(slowest < Duration::from_secs(20), "{slowest:?}");
}

#[test]
fn c12_a_daemon_that_takes_calls_and_says_nothing() {
    let (host, pod) = (Host::new(), Space::new("pod"));
    let daemon = host.space.run(reap::listen).unwrap();
    let mut silent = Vec::new();
    for _ in 0..10 {
        host.add("c1", &pod);
        host.del("c1", pod.path());
        silent.extend(std::iter::from_fn(|| daemon.accept().ok()));
    }
    assert_eq!(silent.len(), 10);
    host.space.netlink().delete_group(GROUP).unwrap();
    assert_nothing(&host, "when it deletes at last");
    println!("c12: 10 ADDs and DELs beside a daemon that reads nothing: 0 failed, 0 left");
}

#[test]
fn c12_a_daemon_that_is_stopped() {
    const PODS: usize = 12;
    let host = dual();
    let mut daemon = Daemon::start(&host);
    daemon.await_ready(&host);
    let pods: Vec<Space> = (0..PODS).map(|_| Space::new("pod")).collect();
    let result = host.add("stays", &pods[0]);
    daemon.signal(Signal::Stop);
    let start = SystemClock.now();
    for (n, pod) in pods.iter().enumerate().skip(1) {
        let id = format!("c{n}");
        host.add(&id, pod);
        host.del(&id, pod.path());
        // Made again before anybody has deleted what was put aside.
        host.add(&id, pod);
        host.del(&id, "");
    }
    let took = start.elapsed();
    daemon.signal(Signal::Continue);
    let only = || {
        let found = found(&host);
        (found.links.len() == 1 && found.strays.is_empty()).then_some(())
    };
    let settled = netd_kernel::clock::eventually(Duration::from_secs(20), only);
    assert!(settled.is_some(), "{:#?}\n{}", found(&host), Daemon::last_words(&host));
    assert_eq!(addresses_of(&result), found(&host).leases.into_values().flatten().collect());
    let check = host.check("stays", &pods[0], &result);
    assert_eq!(check.status, 0, "{}", text(&check));
    println!(
        "c12: {} ADDs and DELs beside a stopped daemon: 0 failed in {took:?}, 0 left after it goes on",
        2 * (PODS - 1)
    );
}
