//! SIGKILL before every system call, and every system call failing once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::scope;

use netd_kernel::clock::eventually;
use netd_kernel::reap::Reaper;
use nix::errno::Errno;
use serde_json::Value;

use super::harness::{Host, LIMIT, Space, environment, text};
use super::node::{AtEnd, assert_nothing, dual, reap_until, with_ports};
use super::tracer::{Fault, Traced, run};

/// So many nodes take turns: deleting a link is mostly waiting.
const NODES: usize = 4;
/// More system calls than any verb does.
const TOO_MANY: usize = 5_000;

fn traced(host: &Host, verb: &str, pod: &Space, config: &Value, fault: Fault) -> Traced {
    let spawn = host.spawn(&environment(verb, "victim", pod.path()));
    run(spawn, config.to_string().as_bytes(), fault)
}

fn del(host: &Host, pod: &Space, when: &str) {
    let output = host.verb("DEL", "victim", pod.path(), &host.config);
    assert_eq!(output.status, 0, "{when}: {}{}", text(&output), output.complaint());
}

fn add(host: &Host, pod: &Space, config: &Value, when: &str) {
    let output = host.verb("ADD", "victim", pod.path(), config);
    assert_eq!(output.status, 0, "{when}: {}{}", text(&output), output.complaint());
}

/// Does `turn` for n = 1, 2, … on several nodes at once until one says that there are no more; returns how many there were.
fn for_every_call(
    prepare: impl Fn() -> Host + Sync,
    turn: impl Fn(&Host, &Space, usize) -> bool + Sync,
) -> usize {
    let next = AtomicUsize::new(1);
    let end = AtomicUsize::new(TOO_MANY);
    scope(|threads| {
        for _ in 0..NODES {
            threads.spawn(|| {
                let (host, pod) = (prepare(), Space::new("pod"));
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= end.load(Ordering::Relaxed) {
                        return;
                    }
                    if !turn(&host, &pod, at) {
                        end.fetch_min(at, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let last = end.load(Ordering::Relaxed);
    assert!(last < TOO_MANY, "it never ended");
    last - 1
}

/// A node on which a pod has been before, or none.
fn node(warm: bool) -> Host {
    let host = dual();
    if warm {
        let pod = Space::new("pod");
        add(&host, &pod, &with_ports(&host.config, &[18_081]), "the first");
        del(&host, &pod, "the first");
    }
    host
}

#[test]
fn c01_killed_before_every_system_call_of_add() {
    let calls = for_every_call(
        || node(true),
        |host, pod, at| {
            let config = with_ports(&host.config, &[18_080]);
            let killed = traced(host, "ADD", pod, &config, Fault::Kill(at));
            let when = format!("ADD killed before call {at}: {:?}", killed.hit);
            del(host, pod, &when);
            assert_nothing(host, &when);
            assert!(pod.links().is_empty(), "{when}");
            if killed.status.is_none() {
                add(host, pod, &config, &when);
                del(host, pod, &when);
            }
            assert_nothing(host, &when);
            killed.status.is_none()
        },
    );
    println!(
        "c01: ADD killed before each of {calls} system calls: 0 of anything left after DEL, the next ADD works"
    );
}

#[test]
fn c01_killed_before_every_system_call_of_the_nodes_first_add() {
    let calls = for_every_call(
        || node(false),
        |_, pod, at| {
            // The bridge, masquerade and the ledger are made by the call that is killed.
            let host = node(false);
            let config = with_ports(&host.config, &[18_080]);
            let killed = traced(&host, "ADD", pod, &config, Fault::Kill(at));
            let when = format!("first ADD killed before call {at}: {:?}", killed.hit);
            if at % 2 == 0 {
                del(&host, pod, &when);
                assert_nothing(&host, &when);
            } else {
                // Another pod comes first; the victim's DEL comes without its namespace.
                let other = Space::new("pod");
                let output = host.verb("ADD", "other", other.path(), &host.config);
                assert_eq!(output.status, 0, "{when}: {}", text(&output));
                let output = host.verb("DEL", "victim", "", &host.config);
                assert_eq!(output.status, 0, "{when}: {}", text(&output));
                host.del("other", other.path());
                assert_nothing(&host, &when);
            }
            killed.status.is_none()
        },
    );
    println!(
        "c01: a node's first ADD killed before each of {calls} system calls: 0 of anything left after DEL"
    );
}

#[test]
fn c01_killed_before_every_system_call_of_del() {
    for daemon in [false, true] {
        let calls = for_every_call(
            || node(true),
            |host, pod, at| {
                let killed = killed_del(host, pod, at, daemon);
                let when = format!("DEL killed before call {at}: {:?}", killed.hit);
                assert_nothing(host, &when);
                assert!(pod.links().is_empty(), "{when}");
                killed.status.is_none()
            },
        );
        let with = if daemon { "with" } else { "without" };
        println!(
            "c01: DEL killed before each of {calls} system calls, {with} a daemon: 0 of anything left after DEL"
        );
    }
}

/// A DEL killed before its nth system call, and the next one, perhaps beside a daemon that deletes links.
fn killed_del(host: &Host, pod: &Space, at: usize, daemon: bool) -> Traced {
    let stop = AtomicBool::new(false);
    scope(|threads| {
        let _end = AtEnd(&stop);
        if daemon {
            threads.spawn(|| reap_until(host, &stop));
            let there = || host.space.run(Reaper::find).map(drop);
            eventually(LIMIT, there).expect("the daemon's stand-in listens");
        }
        add(host, pod, &with_ports(&host.config, &[18_080]), "before a DEL");
        let killed = traced(host, "DEL", pod, &host.config, Fault::Kill(at));
        del(host, pod, &format!("DEL killed before call {at}: {:?}", killed.hit));
        killed
    })
}

/// Takes part in a count of how calls ended that met a failure.
#[derive(Default)]
struct Ends {
    succeeded: AtomicUsize,
    refused: AtomicUsize,
    died: AtomicUsize,
}

#[test]
fn c01_every_system_call_of_add_fails_once() {
    let ends = Ends::default();
    let calls = for_every_call(
        || node(true),
        |host, pod, at| {
            let config = with_ports(&host.config, &[18_080]);
            let ended = traced(host, "ADD", pod, &config, Fault::Fail(at, Errno::EIO));
            let when = format!("call {at} of ADD fails: {:?}", ended.hit);
            let hit = ended.hit.is_some();
            judge((host, pod), &config, ended, &ends, &when);
            del(host, pod, &when);
            assert_nothing(host, &when);
            assert!(pod.links().is_empty(), "{when}");
            hit
        },
    );
    println!(
        "c01: each of {calls} system calls of ADD failed once: {} succeeded all the same, {} told an error and left nothing, \
         {} died; 0 of anything left after DEL",
        ends.succeeded.load(Ordering::Relaxed),
        ends.refused.load(Ordering::Relaxed),
        ends.died.load(Ordering::Relaxed),
    );
}

/// A success is one, an error is told in full and nothing is left.
fn judge((host, pod): (&Host, &Space), config: &Value, ended: Traced, ends: &Ends, when: &str) {
    match ended.status {
        Some(0) => {
            ends.succeeded.fetch_add(1, Ordering::Relaxed);
            let mut config = config.clone();
            config["prevResult"] = serde_json::from_slice(&ended.stdout).unwrap();
            let check = host.verb("CHECK", "victim", pod.path(), &config);
            assert_eq!(check.status, 0, "{when}: {}", text(&check));
        }
        Some(_) => {
            ends.refused.fetch_add(1, Ordering::Relaxed);
            let output = String::from_utf8_lossy(&ended.stdout).into_owned();
            let complaint = String::from_utf8_lossy(&ended.stderr).into_owned();
            let error: Value = serde_json::from_str(&output).unwrap_or(Value::Null);
            // The call that fails may be the one that tells.
            let told = error["code"].as_u64().is_some_and(|code| code > 0);
            assert!(told || complaint.contains("netd-cni: "), "{when}: {output:?} {complaint:?}");
            if !output.contains("not undone") && !complaint.contains("not undone") {
                assert_nothing(host, when);
                assert!(pod.links().is_empty(), "{when}");
            }
        }
        None => {
            ends.died.fetch_add(1, Ordering::Relaxed);
            println!("a signal ended it: {when}");
        }
    }
}
