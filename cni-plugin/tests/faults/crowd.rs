//! C4: a hundred and five hundred ADDs at once, with DELs between them.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::thread::scope;
use std::time::Duration;

use netd_kernel::clock::eventually;
use netd_kernel::reap::Reaper;
use netd_kernel::{Clock, SystemClock};
use serde_json::{Value, json};

use super::harness::{Host, LIMIT, Space, environment, text};
use super::node::{AtEnd, addresses_of, assert_nothing, reap_until};

/// Interfaces of one pod: five hundred namespaces would be a test of the kernel's.
const INTERFACES: usize = 20;
/// Five hundred processes at once take their time on two cores; this tells a busy node from a hung one.
const BOUND: Duration = Duration::from_secs(120);

struct Crowd {
    host: Host,
    pods: Vec<Space>,
    took: Mutex<[Vec<Duration>; 2]>,
}

impl Crowd {
    fn call(&self, verb: &str, n: usize) -> Value {
        let (pod, interface) = (n / INTERFACES, format!("net{}", n % INTERFACES));
        let id = format!("crowd-{pod}");
        let mut env = environment(verb, &id, self.pods[pod].path());
        env[3].1 = &interface;
        let start = SystemClock.now();
        let output = self.host.spawn(&env).output(self.host.config.to_string().as_bytes(), BOUND).unwrap();
        let took = start.elapsed();
        assert_eq!(output.status, 0, "{verb} {n}: {}{}", text(&output), output.complaint());
        self.took.lock().unwrap()[usize::from(verb == "DEL")].push(took);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// Percentile of the calls of a verb.
    fn p99(&self, verb: usize) -> Duration {
        let mut all = self.took.lock().unwrap()[verb].clone();
        all.sort_unstable();
        all[all.len() * 99 / 100]
    }
}

fn crowd(size: usize) {
    let mut host = Host::with_ranges(json!([[{ "subnet": "172.16.0.0/22" }]]));
    host.config["isDefaultGateway"] = json!(false);
    let pods = (0..size.div_ceil(INTERFACES)).map(|_| Space::new("pod")).collect();
    let crowd = Crowd { host, pods, took: Mutex::default() };
    let stop = AtomicBool::new(false);
    let start = SystemClock.now();
    scope(|threads| {
        let _end = AtEnd(&stop);
        threads.spawn(|| reap_until(&crowd.host, &stop));
        let there = || crowd.host.space.run(Reaper::find).map(drop);
        eventually(LIMIT, there).expect("the daemon's stand-in listens");
        scope(|calls| {
            for n in 0..size {
                let crowd = &crowd;
                calls.spawn(move || {
                    crowd.call("ADD", n);
                    // A third of them goes while others come.
                    if n % 3 == 0 {
                        crowd.call("DEL", n);
                    }
                });
            }
        });
        let stayed = size - size.div_ceil(3);
        let leases = crowd.host.leases();
        let distinct: BTreeSet<_> = leases.iter().flat_map(|lease| lease.addresses.clone()).collect();
        assert_eq!((leases.len(), distinct.len()), (stayed, stayed), "the pool is exact");
        let told = addresses_of(&{
            let again = crowd.call("DEL", 1);
            assert_eq!(again, Value::Null);
            crowd.call("ADD", 1)
        });
        assert!(told.is_disjoint(&distinct) || told.iter().all(|a| crowd.host.leases().at(*a).is_some()));
        scope(|calls| {
            for n in 0..size {
                let crowd = &crowd;
                calls.spawn(move || crowd.call("DEL", n));
            }
        });
    });
    assert_nothing(&crowd.host, "after all DELs");
    let deletions = crowd.took.lock().unwrap()[1].len();
    println!(
        "c04: {size} ADDs at once and {deletions} DELs between and after them: 0 failed, all addresses distinct, 0 left; P99 ADD {:?}, \
         DEL {:?}; {:?} in all",
        crowd.p99(0),
        crowd.p99(1),
        start.elapsed()
    );
}

#[test]
fn c04_a_hundred_adds_at_once() {
    crowd(100);
}

#[test]
fn c04_five_hundred_adds_at_once() {
    crowd(500);
}
