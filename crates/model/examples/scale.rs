//! What following one change costs, and what is kept of an endpoint:
//! `cargo run --release -p netd-model --example scale`.
//!
//! For each size: the plan from scratch, the time of a change of one endpoint (new slice in the snapshot, plan
//! followed, both kept by a reader), and resident bytes for each endpoint of snapshot and plan.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a measurement reads the clock and prints"
)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netd_model::build::{endpoint, name, net, node_view, service, slice};
use netd_model::{Dirty, EndpointSlice, LocalPods, NodeView, ObjectName, Planner, Snapshot, plan};

const NODES: usize = 100;
const CHANGES: usize = 2_000;

/// Resident bytes of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or_default() * 4096
}

fn backs(number: usize, endpoints: usize, shift: usize) -> EndpointSlice {
    let mut made = slice(&format!("ns-{}/service-{number}", number % 50)).tcp(8080);
    for i in 0..endpoints {
        let host = number * endpoints + i + shift * usize::from(i == 0);
        let address = format!("172.{}.{}.{}", 16 + (host >> 16), (host >> 8) & 255, host & 255);
        made = made.endpoint(endpoint(&address).node(&format!("node-{}", host % NODES)));
    }
    made.build()
}

/// As decoding does: equal strings are one.
fn intern(slice: &mut EndpointSlice, known: &mut BTreeSet<Arc<str>>) {
    for endpoint in &mut slice.endpoints {
        if let Some(node) = &mut endpoint.node {
            match known.get(node) {
                Some(one) => *node = Arc::clone(one),
                None => drop(known.insert(Arc::clone(node))),
            }
        }
    }
    slice.endpoints.shrink_to_fit();
}

fn cluster(services: usize, endpoints: usize) -> Snapshot {
    let mut made = Snapshot::default();
    let mut known = BTreeSet::new();
    for number in 0..services {
        let address = format!("10.{}.{}.{}", 96 + (number >> 16), (number >> 8) & 255, number & 255);
        let mut own = service(&format!("ns-{}/service-{number}", number % 50)).cluster_ip(&address).tcp(80);
        if number % 10 == 0 {
            own = own.node_port(30_000 + u16::try_from(number / 10).unwrap_or_default() % 30_000);
        }
        let own = own.build();
        let mut backs = backs(number, endpoints, 0);
        intern(&mut backs, &mut known);
        made.slices.insert(own.name.clone(), vec![Arc::new(backs)]);
        made.services.insert(own.name.clone(), Arc::new(own));
    }
    made
}

fn view() -> NodeView {
    NodeView { local_pods: LocalPods::Prefixes(vec![net("172.16.0.0/12")]), ..node_view("node-7") }
}

fn measure(services: usize, endpoints: usize) {
    let start = resident();
    let mut snapshot = cluster(services, endpoints);
    let with_snapshot = resident();
    let view = view();
    let mut planner = Planner::new(view.clone());
    let started = Instant::now();
    planner.update(&snapshot, &view, &Dirty::All);
    let full = started.elapsed();
    let with_plan = resident();
    let mut times: Vec<Duration> = Vec::with_capacity(CHANGES);
    for change in 0..CHANGES {
        let number = (change * 7919) % services;
        let service: ObjectName = name(&format!("ns-{}/service-{number}", number % 50));
        let slices = vec![Arc::new(backs(number, endpoints, change % 2 + 1))];
        let dirty = Dirty::Services(BTreeSet::from([service.clone()]));
        // What readers hold of before.
        let readers = (snapshot.clone(), planner.current().clone());
        let started = Instant::now();
        snapshot.slices.insert(service, slices);
        let published = snapshot.clone();
        planner.update(&published, &view, &dirty);
        times.push(started.elapsed());
        drop((readers, published));
    }
    assert_eq!(*planner.current(), plan(&snapshot, &view), "the plan followed");
    times.sort();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    let each = |bytes: usize| bytes / (services * endpoints);
    println!(
        "{services:>6} x {endpoints:<2}  from scratch {full:>9.1?}  one endpoint p50 {:>8.1?} p99 {:>8.1?}  bytes an \
         endpoint: snapshot {:>4}, plan {:>4}",
        at(50),
        at(99),
        each(with_snapshot.saturating_sub(start)),
        each(with_plan.saturating_sub(with_snapshot)),
    );
}

fn main() {
    let sizes = [(1_000, 10), (10_000, 10), (30_000, 4)];
    match std::env::args().nth(1).and_then(|index| index.parse::<usize>().ok()).and_then(|i| sizes.get(i)) {
        Some((services, endpoints)) => measure(*services, *endpoints),
        // Each in a process of its own, or memory of one would serve the next.
        None => {
            let program = std::env::current_exe().expect("this program has a path");
            for index in 0..sizes.len() {
                let status = std::process::Command::new(&program).arg(index.to_string()).status();
                assert!(status.is_ok_and(|status| status.success()), "a measurement failed");
            }
        }
    }
}
