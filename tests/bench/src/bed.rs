//! A host with pods, each a network namespace, and calls of the plugins in it.

use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netd_kernel::clock::{Clock, SystemClock, eventually};
use netd_kernel::netns::NETNS_DIR;
use netd_kernel::{Namespace, Netlink};
use serde_json::Value;
use tempfile::TempDir;

use crate::contender::{self, Programs, Side, Want};
use crate::daemon::{Aftermath, Daemon};
use crate::probe::{Around, Probe};
use crate::series::Took;
use crate::trace::{Trace, Traced};

mod calls;

use calls::{Calls, Refused, Verb};

/// The first host port; each pod of a bed has one of its own.
const FIRST_PORT: u16 = 20_000;
/// How long links may stay that DEL has left to the daemon.
const SETTLED: Duration = Duration::from_secs(10);
/// The interface of every pod.
const INTERFACE: &str = "eth0";

/// A named network namespace, removed when dropped.
#[derive(Debug)]
struct Space {
    path: PathBuf,
}

impl Space {
    fn new() -> Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("nd-bench-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(NETNS_DIR).join(name);
        Namespace::create(&path)?;
        Ok(Self { path })
    }

    fn open(&self) -> Result<Namespace> {
        Ok(Namespace::open(&self.path)?)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if let Err(error) = Namespace::remove(&self.path) {
            eprintln!("netd-bench: {error}");
        }
    }
}

/// A pod that is not attached, or is and has what ADD answered.
#[derive(Debug)]
pub(crate) struct Pod {
    space: Space,
    id: String,
    host_port: u16,
    result: Option<Value>,
}

/// A host with pods for one side and one kind of wish.
#[derive(Debug)]
pub(crate) struct Bed {
    /// Ends before its namespace and its files go.
    daemon: Option<Daemon>,
    host: Space,
    /// Never wired by a measured call.
    live: Vec<Pod>,
    /// Wired and unwired over and over.
    pods: Vec<Pod>,
    calls: Calls,
    data: TempDir,
}

/// What a turn of calls took, a list a verb, each with the time of all together.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    pub(crate) adds: Vec<Took>,
    pub(crate) add_wall: Duration,
    pub(crate) dels: Vec<Took>,
    pub(crate) del_wall: Duration,
    /// Of a bed with a daemon.
    pub(crate) aftermath: Option<Aftermath>,
}

// === impl Bed ===

impl Bed {
    /// Makes the namespaces.
    pub(crate) fn new(side: Side, want: Want, programs: Programs<'_>, pods: usize) -> Result<Self> {
        let data = TempDir::with_prefix("nd-bench-").context("make a directory for leases")?;
        let chain = contender::chain(side, want, programs, data.path());
        let calls = Calls { chain, path: programs.reference.to_owned(), maps: want == Want::HostPort };
        let pods = (0..pods).map(Pod::new).collect::<Result<_>>()?;
        Ok(Self { daemon: None, host: Space::new()?, live: Vec::new(), pods, calls, data })
    }

    /// Starts a daemon on the host.
    pub(crate) fn start_daemon(&mut self, program: &Path) -> Result<()> {
        self.daemon = Some(Daemon::start(program, &self.host.path, self.data.path())?);
        Ok(())
    }

    /// A turn of calls; with a daemon it ends when all links are gone, which no call waits for.
    pub(crate) fn turn(&mut self, at_once: Option<usize>, pairs: usize) -> Result<Turn> {
        let before = self.daemon.as_ref().map(Daemon::processor).transpose()?;
        let mut turn = match at_once {
            Some(workers) => self.crowd(workers)?,
            None => self.sequence(pairs)?,
        };
        if let (Some(daemon), Some(before)) = (&self.daemon, before) {
            let settled = self.settle()?;
            let processor = daemon.processor()?.saturating_sub(before);
            turn.aftermath = Some(Aftermath { settled, processor });
        }
        Ok(turn)
    }

    /// Waits until the links of unwired pods are gone; without a daemon nobody removes any.
    pub(crate) fn settle(&self) -> Result<Duration> {
        if self.daemon.is_none() {
            return Ok(Duration::ZERO);
        }
        let start = SystemClock.now();
        let gone = eventually(SETTLED, || match self.extra_links() {
            Ok(0) => Some(Ok(())),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        });
        gone.with_context(|| format!("the daemon left links for {} s", SETTLED.as_secs()))??;
        Ok(SystemClock.now().saturating_duration_since(start))
    }

    /// Adds pods that stay.
    pub(crate) fn populate(&mut self, count: usize, mut progress: impl FnMut() -> Result<()>) -> Result<()> {
        let host = self.host.open()?;
        for number in 0..count {
            progress()?;
            let mut pod = Pod::new(usize::from(u16::MAX) + number)?;
            host.run(|| self.calls.add(&mut pod))??;
            self.live.push(pod);
        }
        Ok(())
    }

    /// Adds and deletes one pod, looking whether that was done: the bridge and the rules are there afterwards.
    pub(crate) fn rehearse(&mut self) -> Result<()> {
        let host = self.host.open()?;
        let pod = self.pods.first_mut().context("a bed without pods")?;
        host.run(|| self.calls.add(pod))??;
        if !pod.is_wired()? {
            bail!("ADD succeeded, but the pod's interface has no address");
        }
        host.run(|| self.calls.del(pod))??;
        Ok(())
    }

    /// Whether the first call is refused with this code of the CNI spec.
    pub(crate) fn refuses_with(&mut self, code: u64) -> Result<bool> {
        let host = self.host.open()?;
        let pod = self.pods.first_mut().context("a bed without pods")?;
        match host.run(|| self.calls.add(pod))? {
            Ok(_) => host.run(|| self.calls.del(pod))?.map(|_| false),
            Err(error) => match error.downcast_ref::<Refused>() {
                Some(refused) if refused.code == Some(code) => Ok(true),
                Some(_) | None => Err(error),
            },
        }
    }

    /// Pairs of ADD and DEL, one after the other.
    fn sequence(&mut self, pairs: usize) -> Result<Turn> {
        let host = self.host.open()?;
        let Self { pods, calls, .. } = self;
        host.run(|| {
            let mut turn = Turn::default();
            let count = pods.len().max(1);
            for number in 0..pairs {
                let pod = pods.get_mut(number % count).context("a bed without pods")?;
                turn.adds.push(calls.add(pod)?);
                turn.dels.push(calls.del(pod)?);
            }
            turn.add_wall = turn.adds.iter().map(|took| took.time).sum();
            turn.del_wall = turn.dels.iter().map(|took| took.time).sum();
            Ok(turn)
        })?
    }

    /// ADD of all pods by `workers` at once, then DEL of all of them.
    fn crowd(&mut self, workers: usize) -> Result<Turn> {
        let host = self.host.open()?;
        let Self { pods, calls, .. } = self;
        let share = pods.len().div_ceil(workers.max(1)).max(1);
        let start = Barrier::new(pods.chunks(share).len());
        let done: Vec<Result<Lane>> = std::thread::scope(|scope| {
            let (calls, host, start) = (&*calls, &host, &start);
            let lanes: Vec<_> = pods
                .chunks_mut(share)
                .map(|pods| scope.spawn(|| host.run(|| lane(calls, pods, start))?))
                .collect();
            lanes
                .into_iter()
                .map(|lane| lane.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        let lanes = done.into_iter().collect::<Result<Vec<Lane>>>()?;
        let (adds, dels) = (lanes.iter().map(|lane| &lane.adds), lanes.iter().map(|lane| &lane.dels));
        let (add_wall, del_wall) = (wall(adds.clone()), wall(dels.clone()));
        let flat = |phase: &Phase| phase.took.clone();
        Ok(Turn {
            adds: adds.flat_map(flat).collect(),
            add_wall,
            dels: dels.flat_map(flat).collect(),
            del_wall,
            aftermath: None,
        })
    }

    /// What one ADD and one DEL start, looked at with strace.
    pub(crate) fn trace(&mut self) -> Result<(Traced, Traced)> {
        let trace = Trace::new()?;
        self.pair_around(&trace, || trace.take())
    }

    /// The memory of one ADD and of one DEL, in bytes.
    pub(crate) fn memory(&mut self) -> Result<(u64, u64)> {
        let probe = Probe::new()?;
        self.pair_around(&probe, || probe.take())
    }

    /// An ADD and a DEL inside of another program, and what that found out of each.
    fn pair_around<T: Send>(
        &mut self,
        around: &(dyn Around + Sync),
        take: impl Fn() -> Result<T> + Sync,
    ) -> Result<(T, T)> {
        let host = self.host.open()?;
        let Self { pods, calls, .. } = self;
        let pod = pods.first_mut().context("a bed without pods")?;
        host.run(|| {
            calls.run(Verb::Add, pod, Some(around))?;
            let add = take()?;
            calls.run(Verb::Del, pod, Some(around))?;
            Ok((add, take()?))
        })?
    }

    /// The links of the host that are not of live pods: what is left of the others, and the bridge.
    pub(crate) fn extra_links(&self) -> Result<usize> {
        let links = Netlink::open_in(&self.host.open()?)?.links()?;
        let ports = links.iter().filter(|link| link.kind.as_deref() == Some("veth")).count();
        Ok(ports.saturating_sub(self.live.len()))
    }
}

// === One worker of a crowd ===

/// Calls of one verb by one worker.
#[derive(Debug)]
struct Phase {
    took: Vec<Took>,
    from: Instant,
    to: Instant,
}

#[derive(Debug)]
struct Lane {
    adds: Phase,
    dels: Phase,
}

fn lane(calls: &Calls, pods: &mut [Pod], start: &Barrier) -> Result<Lane> {
    let mut phase = |verb: fn(&Calls, &mut Pod) -> Result<Took>| {
        start.wait();
        let from = SystemClock.now();
        let took = pods.iter_mut().map(|pod| verb(calls, pod)).collect::<Result<_>>();
        (took, from, SystemClock.now())
    };
    // Both barriers are reached by every worker, also after a failure.
    let (adds, dels) = (phase(Calls::add), phase(Calls::del));
    let phase = |(took, from, to): (Result<_>, _, _)| took.map(|took| Phase { took, from, to });
    Ok(Lane { adds: phase(adds)?, dels: phase(dels)? })
}

/// From the first start to the last end.
fn wall<'a>(phases: impl Iterator<Item = &'a Phase> + Clone) -> Duration {
    let from = phases.clone().map(|phase| phase.from).min();
    let to = phases.map(|phase| phase.to).max();
    from.zip(to).map_or(Duration::ZERO, |(from, to)| to.saturating_duration_since(from))
}

// === impl Pod ===

impl Pod {
    fn new(number: usize) -> Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        // As long as containerd's.
        let id = format!("{:016x}{serial:048x}", std::process::id());
        // Bounded by the number of pods of a bed.
        let host_port = FIRST_PORT + u16::try_from(number % 10_000).unwrap_or_default();
        Ok(Self { space: Space::new()?, id, host_port, result: None })
    }

    fn is_wired(&self) -> Result<bool> {
        let mut netlink = Netlink::open_in(&self.space.open()?)?;
        let Some(link) = netlink.link(INTERFACE)? else { return Ok(false) };
        Ok(link.up && netlink.addresses(Some(link.index))?.iter().any(|address| address.prefix.is_ipv4()))
    }
}
