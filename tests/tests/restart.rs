//! Restarts, kills and losses: connections do not notice, or not for long.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use netd_dataplane::Dataplane;
use netd_dataplane::conformance::site::{self, Actor};
use netd_kernel::clock::{Deadline, eventually};
use netd_kernel::exec::{Exec as _, SystemExec};
use netd_kernel::process::Signal;
use netd_lab::agent::{AgentHandle, Connect, Load};
use netd_lab::traffic::{Counts, Outcome};
use netd_lab::{Node, Place as _};
use netd_model::{Family, Scope};
use netd_tests::backend::{Home, Kind};
use netd_tests::bed::Bed;
use netd_tests::worker::{self, SERVICE, plan_with};

/// New connections a second while something happens.
const RATE: u32 = 150;
/// How often a worker is killed.
const KILLS: u32 = 12;

pub(crate) fn trials(kinds: &[Kind]) -> Vec<Trial> {
    let mut trials = Vec::new();
    for kind in kinds.iter().copied() {
        let mut add = |law: &str, test: fn(Kind) -> Result<()>| {
            trials.push(crate::trial(format!("restart::{kind}::{law}"), move || test(kind)));
        };
        add("a_new_instance_finds_its_own_state_and_no_connection_fails", new_instance);
        add("an_endpoint_leaves_under_load_and_no_connection_fails", endpoint_leaves);
        add("killed_at_any_instruction_the_service_is_always_served", killed);
        if kind.has_iptables() {
            add("flushed_rules_are_noticed_and_come_back", flushed);
        }
    }
    trials
}

/// A bed with the Service applied, and a client that connects to it all the time.
struct Stage {
    bed: Bed,
    home: Home,
}

impl Stage {
    fn build(kind: Kind, tag: &str) -> Result<Self> {
        let bed = Bed::with_one_port(&format!("{tag}-{kind}"))?;
        let home = Home::of(bed.node()?);
        Ok(Self { bed, home })
    }

    fn node(&self) -> Result<&Node> {
        self.bed.node()
    }

    fn open(&self, kind: Kind) -> Result<Box<dyn Dataplane>> {
        let home = &self.home;
        self.node()?.run(|| -> Result<_> {
            let mut backend = kind.open(home)?;
            backend.resync()?;
            Ok(backend)
        })?
    }

    fn apply(&self, backend: &mut dyn Dataplane, pods: &[u8], generation: u64) -> Result<usize> {
        let plan = plan_with(pods, generation);
        Ok(self.node()?.run(|| backend.apply(&plan, &Scope::Full))??.changed)
    }

    fn load(&self) -> Result<AgentHandle> {
        let mut load = self.bed.load(Actor::Pod(0), Load::tcp(target(Family::V4), RATE))?;
        progress(&mut load, 20)?;
        Ok(load)
    }
}

fn target(family: Family) -> SocketAddr {
    SocketAddr::new(site::cluster_ip(SERVICE, family), 80)
}

/// Waits until so many more connections were answered, and returns the counts then.
fn progress(load: &mut AgentHandle, more: u64) -> Result<Counts> {
    let start = load.counts()?;
    let limit = Duration::from_secs(20);
    let reached = eventually(limit, || match load.counts() {
        Ok(now) => (now.since(&start).answered_total() >= more).then_some(Ok(now)),
        Err(error) => Some(Err(error)),
    });
    Ok(reached.with_context(|| format!("{more} more connections within {limit:?} since {start:?}"))??)
}

fn no_failures(counts: &Counts) -> Result<()> {
    ensure!(
        counts.failed() == 0,
        "{} of {} connections failed: {counts:?}",
        counts.failed(),
        counts.attempts
    );
    ensure!(counts.attempts > 0, "no connection was tried");
    Ok(())
}

fn new_instance(kind: Kind) -> Result<()> {
    let stage = Stage::build(kind, "new")?;
    let mut first = stage.open(kind)?;
    ensure!(stage.apply(first.as_mut(), &[1, 2], 1)? > 0, "nothing was applied");
    ensure!(stage.apply(first.as_mut(), &[1, 2], 1)? == 0, "an equal plan changed something");
    let mut load = stage.load()?;
    for generation in 2..5 {
        drop(first);
        progress(&mut load, 10)?;
        first = stage.open(kind)?;
        let changed = stage.apply(first.as_mut(), &[1, 2], generation)?;
        ensure!(changed == 0, "a new instance changed {changed} objects that were right");
        progress(&mut load, 10)?;
    }
    no_failures(&load.finish()?)
}

fn endpoint_leaves(kind: Kind) -> Result<()> {
    let stage = Stage::build(kind, "leave")?;
    let mut backend = stage.open(kind)?;
    stage.apply(backend.as_mut(), &[1, 2], 1)?;
    let mut load = stage.load()?;
    let both = load.counts()?;
    ensure!(both.answered.len() == 2, "both endpoints answer at first: {both:?}");
    stage.apply(backend.as_mut(), &[2], 2)?;
    // What was under way when the apply returned may still end at the old endpoint.
    let settled = progress(&mut load, 10)?;
    let after = progress(&mut load, 100)?.since(&settled);
    let served: Vec<_> = after.answered.iter().filter(|(_, count)| **count > 0).collect();
    ensure!(served.len() == 1, "the endpoint that left is still chosen: {served:?}");
    no_failures(&load.finish()?)
}

/// Kills a process that applies two plans in turn. Pod 2 is in both plans, so the Service must always be
/// served; and what the kill left must be no obstacle to the next instance.
fn killed(kind: Kind) -> Result<()> {
    let stage = Stage::build(kind, "kill")?;
    let mut backend = stage.open(kind)?;
    stage.apply(backend.as_mut(), &[1, 2], 1)?;
    drop(backend);
    let mut load = stage.load()?;
    for round in 0..KILLS {
        let mut child = worker::start(stage.node()?, kind)?;
        // The moment of the kill differs with each round; not a wait for anything.
        let pause = Deadline::after(Duration::from_millis(60 + 37 * u64::from(round)));
        eventually(pause.left(), || child.try_wait().ok().flatten().or_else(|| pause.passed().then_some(0)));
        let early = child.try_wait()?;
        ensure!(
            early.is_none(),
            "round {round}: the worker ended by itself: {early:?}, {}",
            worker_log(&stage)?
        );
        child.kill(Signal::Kill)?;
        child.wait()?;
        progress(&mut load, 10)?;
    }
    let mut backend = stage.open(kind)?;
    stage.apply(backend.as_mut(), &[3], 3)?;
    // A backend may keep what a packet under way could still be reading until the apply after.
    stage.apply(backend.as_mut(), &[3], 3)?;
    let changed = stage.apply(backend.as_mut(), &[3], 3)?;
    ensure!(changed == 0, "an equal plan changed {changed} objects");
    for family in Family::ALL {
        let connect = Connect { count: 10, ..Connect::tcp(target(family)) };
        for outcome in stage.bed.connect(Actor::Pod(0), connect)? {
            let is_right = matches!(&outcome, Outcome::Answered { server, .. } if server.contains("pod-3"));
            ensure!(is_right, "{family} after the last kill: {outcome:?}");
        }
    }
    no_failures(&load.finish()?)
}

fn worker_log(stage: &Stage) -> Result<String> {
    let path = stage.node()?.state_dir().join("worker.log");
    Ok(std::fs::read_to_string(path).unwrap_or_default())
}

fn flushed(kind: Kind) -> Result<()> {
    let stage = Stage::build(kind, "flush")?;
    let mut backend = stage.open(kind)?;
    stage.apply(backend.as_mut(), &[1, 2], 1)?;
    ensure!(stage.node()?.run(|| backend.intact())??, "rules just applied are said to be damaged");
    for v6 in [false, true] {
        let program = kind.iptables_program(v6, "")?;
        for table in ["nat", "filter"] {
            let run =
                || SystemExec.run(&program, &["-w", "20", "-t", table, "-F"], b"", Duration::from_secs(30));
            let output = stage.node()?.run(run)??;
            ensure!(output.success(), "flush {table}: {}", output.complaint());
        }
    }
    ensure!(!stage.node()?.run(|| backend.intact())??, "the loss is not noticed by looking");
    stage.node()?.run(|| backend.resync())??;
    ensure!(stage.apply(backend.as_mut(), &[1, 2], 1)? > 0, "the next apply changed nothing");
    for family in Family::ALL {
        let outcomes =
            stage.bed.connect(Actor::Pod(0), Connect { count: 5, ..Connect::tcp(target(family)) })?;
        let all = outcomes.iter().all(|outcome| matches!(outcome, Outcome::Answered { .. }));
        ensure!(all && outcomes.len() == 5, "{family}: {outcomes:?}");
    }
    Ok(())
}
