//! Many pods come and go at random, and half of all calls are killed.
//!
//! `NETD_TEST_SEED=N` repeats the choices of a run, `NETD_FAULT_OPERATIONS=900` makes it longer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::scope;
use std::time::Duration;

use netd_kernel::clock::eventually;
use netd_kernel::exec::Stream;
use netd_kernel::process::Signal;
use netd_kernel::{Clock, SystemClock};
use serde_json::{Value, json};

use super::chance::{Chance, seed};
use super::harness::{Host, LIMIT, Space, environment, text};
use super::node::{
    AtEnd, Attached, Attachments, Daemon, Foreign, Found, addresses_of, dual, owner, ports_of, with_ports,
};
use super::tracer::{Fault, run};

/// Pods that are called at the same time.
const WORKERS: usize = 8;
const PODS_A_WORKER: usize = 2;
/// Calls of each worker between two looks at the whole node.
const CALLS_A_ROUND: usize = 5;
const OPERATIONS: usize = 400;
/// About as many system calls as a verb does, and as long as it takes: most kills are to hit it at work.
const LENGTHS: [(&str, u64, Duration); 3] = [
    ("ADD", 240, Duration::from_millis(16)),
    ("DEL", 110, Duration::from_millis(12)),
    ("", 90, Duration::from_millis(8)),
];
/// Whose kills are counted.
const VERBS: [&str; 5] = ["ADD", "DEL", "CHECK", "GC", "STATUS"];

/// What is known of a pod.
enum State {
    Absent,
    Live(Value),
    /// A call was killed: only a DEL says what is.
    Unsure,
}

struct Pod {
    id: String,
    space: Space,
    ports: Vec<u16>,
    shaped: bool,
    state: State,
}

impl Pod {
    /// What the runtime asks for it.
    fn config(&self, host: &Host) -> Value {
        let mut config = with_ports(&host.config, &self.ports);
        if self.shaped {
            let rate = json!({ "ingressRate": 800_000_000, "ingressBurst": 8_000_000, "egressRate": 800_000_000, "egressBurst": 8_000_000 });
            config["runtimeConfig"]["bandwidth"] = rate;
        }
        config
    }
}

/// How a call ended.
enum End {
    Done(Vec<u8>),
    Killed,
}

struct World {
    host: Host,
    foreign: Foreign,
    chance: Chance,
    /// Addresses of pods that live for sure.
    live: Mutex<BTreeMap<IpAddr, String>>,
    operations: AtomicUsize,
    kills: [AtomicUsize; 5],
    /// Whether a daemon runs beside it all, and how many ports of gone pods it left when it was killed.
    daemon: bool,
    swept: AtomicUsize,
    what: String,
}

impl World {
    fn new(daemon: bool, seed: u64) -> Self {
        let host = dual();
        let foreign = Foreign::new(&host);
        Self {
            host,
            foreign,
            chance: Chance::new(seed),
            live: Mutex::default(),
            operations: AtomicUsize::new(0),
            kills: Default::default(),
            daemon,
            swept: AtomicUsize::new(0),
            what: format!("daemon: {daemon}, NETD_TEST_SEED={seed}"),
        }
    }

    fn stdin_of(&self, id: &str, config: &Value) -> PathBuf {
        let path = self.host.data.path().join(format!("stdin-{id}"));
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// A call, killed by chance: after some time, or before one of its system calls.
    fn call(&self, verb: &str, pod: (&str, &str), config: &Value, may_be_killed: bool) -> End {
        self.operations.fetch_add(1, Ordering::Relaxed);
        let env = environment(verb, pod.0, pod.1);
        let mut spawn = self.host.spawn(&env);
        let (_, calls, longest) = LENGTHS.iter().find(|(name, ..)| *name == verb || name.is_empty()).unwrap();
        let ended = if !may_be_killed || self.chance.percent(25) {
            let output = spawn.output(config.to_string().as_bytes(), LIMIT).unwrap();
            (Some(output.status), output.stdout, output.stderr)
        } else if self.chance.percent(50) {
            let fault = Fault::Kill(1 + usize::try_from(self.chance.below(*calls)).unwrap());
            let traced = run(spawn, config.to_string().as_bytes(), fault);
            (traced.status, traced.stdout, traced.stderr)
        } else {
            let out = self.host.data.path().join(format!("stdout-{}-{verb}", pod.0));
            let _ = std::fs::remove_file(&out);
            spawn.stdin = Stream::File(self.stdin_of(pod.0, config));
            spawn.stdout = Stream::File(out.clone());
            let mut child = spawn.start().unwrap();
            std::thread::sleep(longest.mul_f64(self.chance.below(1000) as f64 / 1000.0));
            child.kill(Signal::Kill).unwrap();
            let status = child.wait_timeout(LIMIT).unwrap().unwrap();
            ((status != 137).then_some(status), std::fs::read(out).unwrap(), Vec::new())
        };
        match ended {
            (None, ..) => {
                let place = VERBS.iter().position(|name| *name == verb).unwrap();
                self.kills[place].fetch_add(1, Ordering::Relaxed);
                End::Killed
            }
            (Some(0), stdout, _) => End::Done(stdout),
            (Some(status), stdout, stderr) => panic!(
                "{}: {verb} of {} exits with {status}: {}{}",
                self.what,
                pod.0,
                String::from_utf8_lossy(&stdout),
                String::from_utf8_lossy(&stderr)
            ),
        }
    }

    fn claim(&self, id: &str, result: &Value) {
        let mut live = self.live.lock().unwrap();
        for address in addresses_of(result) {
            let other = live.insert(address, id.to_owned());
            assert_eq!(other, None, "{}: {id} gets {address}, which lives", self.what);
        }
    }

    /// One call for a pod, as a runtime may make it.
    fn step(&self, pod: &mut Pod) {
        let config = pod.config(&self.host);
        let whose = (pod.id.as_str(), pod.space.path());
        if self.chance.percent(10) {
            self.call("STATUS", whose, &self.host.config, true);
            return;
        }
        match &pod.state {
            State::Absent if self.chance.percent(90) => {
                pod.state = match self.call("ADD", whose, &config, true) {
                    End::Killed => State::Unsure,
                    End::Done(stdout) => {
                        let result = serde_json::from_slice(&stdout).unwrap();
                        self.claim(&pod.id, &result);
                        State::Live(result)
                    }
                };
            }
            State::Live(result) if self.chance.percent(40) => {
                let mut config = config.clone();
                config["prevResult"] = result.clone();
                self.call("CHECK", whose, &config, true);
            }
            State::Absent | State::Live(_) | State::Unsure => self.delete(pod, true),
        }
    }

    fn delete(&self, pod: &mut Pod, may_be_killed: bool) {
        self.live.lock().unwrap().retain(|_, id| *id != pod.id);
        // A runtime knows the namespace, or it is gone and it says so.
        let netns = if self.chance.percent(25) { "" } else { pod.space.path() };
        pod.state = match self.call("DEL", (&pod.id, netns), &self.host.config, may_be_killed) {
            End::Killed => State::Unsure,
            End::Done(_) => State::Absent,
        };
    }

    fn gc_config(&self, pods: &[Vec<Pod>]) -> Value {
        let mut config = self.host.config.clone();
        let valid: Vec<Value> = pods
            .iter()
            .flatten()
            .filter(|pod| matches!(pod.state, State::Live(_)))
            .map(|pod| json!({ "containerID": pod.id, "ifname": "eth0" }))
            .collect();
        config["cni.dev/valid-attachments"] = json!(valid);
        config
    }

    /// GC with what lives; pods of killed calls are garbage.
    fn collect(&self, pods: &mut [Vec<Pod>]) {
        let config = self.gc_config(pods);
        if let End::Done(_) = self.call("GC", ("", ""), &config, true) {
            self.assert_exact(pods, "after GC");
        }
    }

    /// Whether the node comes to be so, with what a daemon has still to delete gone.
    fn settles(&self, wanted: &Found) -> bool {
        let same = || {
            let found = Foreign::found_beside(&self.host);
            found.assert_distinct();
            (found == *wanted).then_some(())
        };
        eventually(Duration::from_secs(8), same).is_some()
    }

    /// Leases = live attachments = links = neighbours = host ports, and nothing else.
    fn assert_exact(&self, pods: &[Vec<Pod>], when: &str) {
        let mut attachments = Attachments::new();
        for pod in pods.iter().flatten() {
            if let State::Live(result) = &pod.state {
                let addresses = addresses_of(result);
                let ports = ports_of(&addresses, &pod.ports);
                attachments.insert(owner(&pod.id), Attached { addresses, ports, shaped: pod.shaped });
            }
        }
        let wanted = Found::of(&attachments);
        if !self.settles(&wanted) && self.daemon {
            // A port that the daemon put back as its pod went, or a link left to it, before it was killed: garbage.
            let found = Foreign::found_beside(&self.host);
            let strays = found.ports.keys().filter(|link| !wanted.ports.contains_key(*link)).count();
            let rest = Found { ports: wanted.ports.clone(), strays: BTreeSet::new(), ..found };
            assert_eq!(rest, wanted, "{} {when}", self.what);
            self.swept.fetch_add(strays, Ordering::Relaxed);
            self.call("GC", ("", ""), &self.gc_config(pods), false);
        }
        if !self.settles(&wanted) {
            let found = Foreign::found_beside(&self.host);
            panic!("{} {when}: wanted {wanted:#?}\nfound {found:#?}", self.what);
        }
        self.foreign.assert_untouched(&self.host);
    }

    fn round(&self, pods: &mut [Vec<Pod>]) {
        scope(|threads| {
            for own in pods.iter_mut() {
                threads.spawn(|| {
                    for _ in 0..CALLS_A_ROUND {
                        let place = usize::try_from(self.chance.below(own.len() as u64)).unwrap();
                        self.step(&mut own[place]);
                    }
                });
            }
        });
        if self.chance.percent(50) {
            self.collect(pods);
        }
        // Every ADD is followed by a DEL that succeeds, also where GC was before it.
        scope(|threads| {
            for own in pods.iter_mut() {
                threads.spawn(|| {
                    for pod in own.iter_mut().filter(|pod| matches!(pod.state, State::Unsure)) {
                        self.delete(pod, false);
                    }
                });
            }
        });
        self.assert_exact(pods, "after a round");
        self.assert_lives(pods);
    }

    /// A pod that lives passes CHECK and is reached.
    fn assert_lives(&self, pods: &[Vec<Pod>]) {
        for pod in pods.iter().flatten() {
            let State::Live(result) = &pod.state else { continue };
            let mut config = pod.config(&self.host);
            config["prevResult"] = result.clone();
            let check = self.host.verb("CHECK", &pod.id, pod.space.path(), &config);
            assert_eq!(check.status, 0, "{}: {}", self.what, text(&check));
            let address = addresses_of(result).into_iter().next().unwrap();
            let listener = pod.space.listen(&address.to_string());
            self.host.space.connect(&listener).unwrap_or_else(|e| panic!("{}: {address}: {e}", self.what));
        }
    }

    fn end(&self, pods: &mut [Vec<Pod>]) {
        for pod in pods.iter_mut().flatten() {
            self.delete(pod, false);
        }
        self.assert_exact(pods, "at the end");
        assert!(pods.iter().flatten().all(|pod| pod.space.links().is_empty()), "{}", self.what);
        self.foreign.end(&self.host);
    }
}

fn operations() -> usize {
    std::env::var("NETD_FAULT_OPERATIONS").map_or(OPERATIONS, |text| text.parse().expect("a number"))
}

fn pods() -> Vec<Vec<Pod>> {
    let pod = |n: usize| {
        let base = u16::try_from(20_000 + n).unwrap();
        let ports = if n.is_multiple_of(2) { vec![base, base + 1000] } else { vec![] };
        Pod {
            id: format!("pod-{n}"),
            space: Space::new("pod"),
            ports,
            shaped: n.is_multiple_of(3),
            state: State::Absent,
        }
    };
    (0..WORKERS).map(|w| (0..PODS_A_WORKER).map(|n| pod(w * PODS_A_WORKER + n)).collect()).collect()
}

fn play(name: &str, world: &World) {
    let start = SystemClock.now();
    let mut pods = pods();
    while world.operations.load(Ordering::Relaxed) < operations() {
        world.round(&mut pods);
    }
    world.end(&mut pods);
    let count =
        |verb: &str| world.kills[VERBS.iter().position(|v| *v == verb).unwrap()].load(Ordering::Relaxed);
    let killed: usize = VERBS.iter().map(|verb| count(verb)).sum();
    let all = world.operations.load(Ordering::Relaxed);
    let by_verb: Vec<String> = VERBS.iter().map(|verb| format!("{verb} {}", count(verb))).collect();
    println!(
        "random, {name}: {all} operations, {killed} killed ({}), {} at once: 0 leases, links, neighbours, host ports, limiters left, 0 duplicates, 0 pods lost, 0 things of others changed; {:?}",
        by_verb.join(", "),
        WORKERS,
        start.elapsed()
    );
    assert!(killed * 4 > all, "only {killed} of {all} calls were killed at work");
}

#[test]
fn random_calls_and_kills_leave_nothing_without_a_daemon() {
    let seed = seed();
    println!("NETD_TEST_SEED={seed}");
    play("without a daemon", &World::new(false, seed));
}

/// Starts the daemon, kills it at work, and again; the last one stays until `stop`. Returns how many were killed.
fn torment(host: &Host, chance: &Chance, stop: &AtomicBool) -> usize {
    let mut kills = 0;
    loop {
        let mut daemon = Daemon::start(host);
        let span = Duration::from_millis(100 + chance.below(900));
        let start = SystemClock.now();
        while start.elapsed() < span && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if stop.load(Ordering::Relaxed) {
            return kills;
        }
        daemon.signal(Signal::Kill);
        kills += 1;
    }
}

#[test]
fn random_calls_and_kills_leave_nothing_beside_a_daemon_that_is_killed_too() {
    let seed = seed();
    println!("NETD_TEST_SEED={seed}");
    let world = World::new(true, seed);
    let (chance, stop) = (Chance::new(!seed), AtomicBool::new(false));
    let daemons = scope(|threads| {
        let tormentor = threads.spawn(|| torment(&world.host, &chance, &stop));
        let end = AtEnd(&stop);
        play("beside a daemon", &world);
        drop(end);
        tormentor.join().unwrap()
    });
    println!(
        "random, beside a daemon: it was killed and started again {daemons} times; ports of {} gone pods that it put back as it \
         was killed went with GC",
        world.swept.load(Ordering::Relaxed)
    );
}
