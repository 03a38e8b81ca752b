use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use netd_ipam::{Alias, Lease, Owner};
use netd_kernel::exec::Spawn;
use netd_kernel::link::{Ifindex, Link};
use netd_kernel::netlink::{Neighbour, NeighbourState};
use netd_kernel::netns::NETNS_DIR;
use netd_kernel::{Clock, Mac, Namespace, SystemClock};
use serde_json::json;

use super::collector::Collector;
use super::garbage::{self, Item, Observations};
use super::inventory::{Inventory, Leased, pod_links};

/// A namespace of one test; removed with it.
struct Scratch {
    namespace: Namespace,
    path: PathBuf,
}

impl Scratch {
    fn new(role: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("nd-{}-gc{}-{role}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(NETNS_DIR).join(name);
        Self { namespace: Namespace::create(&path).expect("network namespaces need root"), path }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = Namespace::remove(&self.path);
    }
}

fn link(index: u32, name: &str, alias: &str) -> Link {
    Link {
        index: Ifindex(index),
        name: name.to_owned(),
        mac: None,
        mtu: 1500,
        up: true,
        carrier: true,
        loopback: false,
        kind: Some("veth".to_owned()),
        master: None,
        alias: Some(alias.to_owned()),
        peer: None,
        peer_namespace: Some(1),
        hairpin: None,
    }
}

fn leased(container: &str, address: &str, age: Option<u64>) -> Leased {
    let owner = Owner { container: container.to_owned(), interface: "eth0".to_owned() };
    let lease = Lease { owner, addresses: vec![address.parse().unwrap()], ..Lease::default() };
    Leased { network: "netd".to_owned(), lease, age: age.map(Duration::from_secs) }
}

fn inventory() -> Inventory {
    let mut all = Inventory {
        links: vec![
            link(2, "netdlive", "netd net=netd ip=172.16.0.2 if=eth0 id=live"),
            link(3, "netdaside", "netd-reap if=eth0 id=aside"),
        ],
        ..Inventory::default()
    };
    all.pods = pod_links(&all.links);
    all.ledgers.networks.insert("netd".to_owned());
    all.ledgers.leases = vec![leased("live", "172.16.0.2", Some(900))];
    all
}

fn kinds(inventory: &Inventory) -> Vec<String> {
    garbage::find(inventory, &["172.16.0.0/16".parse().unwrap()])
        .iter()
        .map(|item| item.to_string())
        .collect()
}

#[test]
fn a_lease_is_garbage_without_a_link_of_its_own_unless_somebody_may_use_the_address() {
    let mut all = inventory();
    assert_eq!(kinds(&all), [""; 0]);
    all.ledgers.leases.push(leased("aside", "172.16.0.3", Some(900)));
    assert_eq!(kinds(&all), ["172.16.0.3 of container aside interface eth0 in network netd"]);
    // Taken over from another plugin: its pod has no link of ours.
    all.ledgers.leases[1] = leased("imported", "172.16.0.3", None);
    assert_eq!(kinds(&all), [""; 0]);
    // Somebody answers for the address, or another link has it.
    all.ledgers.leases[1] = leased("gone", "172.16.0.3", Some(900));
    all.neighbours.push(Neighbour {
        link: Ifindex(9),
        ip: "172.16.0.3".parse().unwrap(),
        mac: Some(Mac([2, 0, 0, 0, 0, 3])),
        state: NeighbourState::Reachable,
    });
    assert_eq!(kinds(&all), [""; 0]);
    all.neighbours.clear();
    all.ledgers.leases[1] = leased("gone", "172.16.0.2", Some(900));
    assert_eq!(kinds(&all), [""; 0]);
}

#[test]
fn nothing_is_garbage_while_a_ledger_cannot_be_read_or_a_link_has_its_pod() {
    let mut all = inventory();
    all.ledgers.leases.clear();
    assert_eq!(kinds(&all), [""; 0], "a link without a lease whose other end is in a pod is a pod's");
    all.pods[0].link.peer_namespace = None;
    assert_eq!(kinds(&all), ["link netdlive"]);
    all.ledgers.unreadable.push("damaged".to_owned());
    assert_eq!(kinds(&all), [""; 0]);
}

#[test]
fn what_is_seen_once_or_not_for_long_enough_stays() {
    let item = |address: &str| Item::Neighbour {
        link: Ifindex(1),
        device: "netd0".to_owned(),
        ip: address.parse().unwrap(),
    };
    let (one, two) = (item("172.16.0.2"), item("172.16.0.3"));
    let (start, grace) = (SystemClock.now(), Duration::from_secs(300));
    let after = |seconds| start + Duration::from_secs(seconds);
    let mut seen = Observations::default();
    assert_eq!(seen.note(vec![one.clone()], start, Duration::ZERO), []);
    assert_eq!(seen.note(vec![one.clone()], start, grace), []);
    assert_eq!(seen.note(vec![one.clone(), two.clone()], after(300), grace), std::slice::from_ref(&one));
    // What is gone meanwhile begins anew.
    assert_eq!(seen.note(vec![two.clone()], after(301), grace), []);
    assert_eq!(seen.note(vec![one.clone(), two.clone()], after(602), grace), [two]);
    assert_eq!(seen.waiting(), 2);
}

/// The plugin that is built beside this test.
fn plugin() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let plugin = here.parent().and_then(Path::parent).unwrap().join("netd-cni");
    assert!(plugin.is_file(), "build it first: cargo build -p netd-cni");
    plugin
}

/// A node whose pods come and go at random.
struct Churn {
    host: Scratch,
    data: tempfile::TempDir,
    plugin: PathBuf,
}

impl Churn {
    fn call(&self, verb: &str, container: &str, netns: &Path) -> netd_kernel::Output {
        let config = json!({
            "cniVersion": "1.0.0", "name": "netd", "type": "netd", "clusterCIDRs": ["172.16.0.0/16"],
            "ipam": { "type": "netd", "ranges": [[{ "subnet": "172.16.0.0/26" }]],
                      "dataDir": self.data.path().join("ipam"), "coolDownSeconds": 0 },
        });
        let mut spawn = Spawn::new(&self.plugin, [""; 0]);
        let pairs = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", container),
            ("CNI_NETNS", netns.to_str().unwrap()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/nonexistent"),
        ];
        spawn.env = pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        spawn.netns = Some(self.host.path.clone());
        spawn.output(config.to_string().as_bytes(), Duration::from_secs(60)).unwrap()
    }

    fn pods(&self) -> Inventory {
        let directory = self.data.path().join("ipam");
        self.host.namespace.run(|| Inventory::read(&directory).unwrap()).unwrap()
    }

    /// Each live pod has a lease and a link with the same address, and no address is had twice.
    fn assert_whole(&self, live: &BTreeMap<String, IpAddr>) {
        let found = self.pods();
        let leases: BTreeMap<&str, &[IpAddr]> = found
            .ledgers
            .leases
            .iter()
            .map(|leased| (leased.lease.owner.container.as_str(), leased.lease.addresses.as_slice()))
            .collect();
        for (container, address) in live {
            assert_eq!(
                leases.get(container.as_str()),
                Some(&[*address].as_slice()),
                "the lease of {container}"
            );
            let of = |alias: &Alias| alias.lease.owner.container == *container;
            let link = found.pods.iter().find(|pod| of(&pod.alias)).expect("a live pod has its link");
            assert!(link.link.up && link.alias.lease.addresses == [*address], "{link:?}");
        }
        let unique: BTreeSet<&IpAddr> = live.values().collect();
        assert_eq!(unique.len(), live.len(), "an address is had twice: {live:?}");
    }
}

/// Four runtimes add and delete 200 pods at random, some without DEL, while a collector without any grace runs without
/// rest: it must never take what a pod has, and in the end all that leaked must be gone.
#[test]
fn a_collector_without_grace_never_harms_a_pod_that_lives_or_is_being_made() {
    const RUNTIMES: usize = 4;
    const PODS: usize = 50;
    let churn = Churn { host: Scratch::new("host"), data: tempfile::tempdir().unwrap(), plugin: plugin() };
    let directory = churn.data.path().join("ipam");
    let (ended, passes) = (AtomicBool::new(false), AtomicUsize::new(0));
    let collect = || {
        churn.host.namespace.run(|| {
            let ours = vec!["172.16.0.0/16".parse().unwrap()];
            let mut collector = Collector::new(&directory, ours.clone(), Duration::ZERO);
            let mut collected = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                if passes.load(Ordering::Relaxed) % 16 == 15 {
                    // Killed and started anew: it remembers nothing.
                    collector = Collector::new(&directory, ours.clone(), Duration::ZERO);
                }
                let pass = collector.pass().unwrap();
                assert_eq!(pass.failures, [""; 0]);
                collected.extend(pass.collected);
                passes.fetch_add(1, Ordering::Relaxed);
            }
            collected
        })
    };
    let leaked = AtomicUsize::new(0);
    let (live, collected) = std::thread::scope(|scope| {
        let collector = scope.spawn(collect);
        let _ends_however = SetOnDrop(&ended);
        let runtimes: Vec<_> = (0..RUNTIMES)
            .map(|number| {
                scope.spawn({
                    let (churn, leaked) = (&churn, &leaked);
                    move || work(churn, number, PODS, leaked)
                })
            })
            .collect();
        // Their namespaces are to stay until the end.
        let (maps, _namespaces): (Vec<_>, Vec<_>) =
            runtimes.into_iter().map(|one| one.join().unwrap()).unzip();
        let live: BTreeMap<String, IpAddr> = maps.into_iter().flatten().collect();
        churn.assert_whole(&live);
        // What leaked goes without a live pod.
        let start = SystemClock.now();
        while churn.pods().ledgers.leases.len() > live.len() {
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "leaks stay: {:?}",
                churn.pods().ledgers.leases
            );
        }
        churn.assert_whole(&live);
        ended.store(true, Ordering::Relaxed);
        (live, collector.join().unwrap().unwrap())
    });
    let leases: Vec<&String> =
        collected.iter().filter(|(kind, _)| *kind == "lease").map(|(_, object)| object).collect();
    let (passes, leaked) = (passes.into_inner(), leaked.into_inner());
    println!("{passes} passes collected {} leases, {leaked} pods leaked, {} live", leases.len(), live.len());
    // More than leaked: a DEL frees its lease last, and here that may be collected in between.
    assert!(leases.len() >= leaked && leases.len() < RUNTIMES * PODS, "{leases:?}");
    let of = |container: &String| format!(" of container {container} ");
    assert!(!live.keys().any(|container| leases.iter().any(|lease| lease.contains(&of(container)))));
}

/// Sets a flag when it goes, by a panic as well: nobody waits for ever.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One runtime: adds pods, ends some with DEL and some without, checks the rest at each step. Returns those that live.
fn work(
    churn: &Churn,
    number: usize,
    pods: usize,
    leaked: &AtomicUsize,
) -> (BTreeMap<String, IpAddr>, Vec<Scratch>) {
    let mut random = number as u64 + 1;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let mut live: Vec<(String, IpAddr, Scratch)> = Vec::new();
    for pod in 0..pods {
        let (container, namespace) = (format!("c{number}-{pod}"), Scratch::new("pod"));
        let output = churn.call("ADD", &container, &namespace.path);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.success(), "{container}: {text}{}", output.complaint());
        let result: serde_json::Value = serde_json::from_str(&text).unwrap();
        let address =
            result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap();
        live.push((container, address, namespace));
        while live.len() > 8 || (!live.is_empty() && next(3) == 0) {
            let place = usize::try_from(next(live.len() as u64)).unwrap();
            let (container, _, namespace) = live.swap_remove(place);
            if next(4) == 0 {
                // The namespace goes and nobody says DEL.
                leaked.fetch_add(1, Ordering::Relaxed);
            } else {
                assert!(churn.call("DEL", &container, &namespace.path).success());
            }
        }
        let mine: BTreeMap<String, IpAddr> =
            live.iter().map(|(id, address, _)| (id.clone(), *address)).collect();
        churn.assert_whole(&mine);
    }
    let map = live.iter().map(|(id, address, _)| (id.clone(), *address)).collect();
    (map, live.into_iter().map(|(_, _, namespace)| namespace).collect())
}
