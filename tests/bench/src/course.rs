//! The cases, and the order they are run in: both sides of each case in turn, all cases in each round, so that what
//! else happens on the machine happens to all of them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use crate::bed::{Bed, Turn};
use crate::contender::{Programs, Side, Want};
use crate::daemon::Aftermath;
use crate::machine::{self, Machine, Stage};
use crate::options::Options;
use crate::series::Series;
use crate::trace::Traced;

/// Callers at the same time in the cases of that kind.
pub(crate) const WORKERS: usize = 10;
/// Pods that a worker has in a turn.
const PODS_A_WORKER: usize = 3;
/// How often memory is looked at.
const MEMORY_PAIRS: usize = 4;
/// Error code of the CNI spec: the call asks for something that the plugin does not do.
const UNSUPPORTED: u64 = 2;

/// What is called how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Case {
    /// What a pod gets.
    pub(crate) want: Want,
    /// Whether the host has pods already.
    pub(crate) crowded: bool,
    /// Whether calls come at the same time.
    pub(crate) at_once: bool,
    /// Whether netd runs beside netd-cni.
    pub(crate) daemon: bool,
}

/// In the order of the table.
const CASES: [Case; 8] = [
    Case::of(Want::V4, false, false),
    Case::of(Want::V4, false, true),
    Case { daemon: true, ..Case::of(Want::V4, false, false) },
    Case { daemon: true, ..Case::of(Want::V4, false, true) },
    Case::of(Want::V4, true, false),
    Case::of(Want::V4, true, true),
    Case::of(Want::Dual, false, false),
    Case::of(Want::HostPort, false, false),
];

impl Case {
    /// A case without a daemon.
    pub(crate) const fn of(want: Want, crowded: bool, at_once: bool) -> Self {
        Self { want, crowded, at_once, daemon: false }
    }

    /// The name in the table.
    pub(crate) fn name(self, live: usize) -> String {
        let first = match (self.want, self.crowded) {
            (Want::V4, false) => "empty node".to_owned(),
            (Want::V4, true) => format!("{live} live pods"),
            (Want::Dual, _) => "dual stack".to_owned(),
            (Want::HostPort, _) => "with a hostPort".to_owned(),
        };
        let crowd = if self.at_once { format!(", {WORKERS} at once") } else { String::new() };
        let daemon = if self.daemon { ", netd running" } else { "" };
        format!("{first}{crowd}{daemon}")
    }

    /// The reference has no daemon, so it has one bed for both.
    fn bed(self, side: Side) -> Place {
        (side, self.want, self.crowded, self.daemon && side == Side::Netd)
    }
}

/// What was measured of one side in one case.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entry {
    pub(crate) add: Series,
    pub(crate) del: Series,
    pub(crate) add_traced: Traced,
    pub(crate) del_traced: Traced,
    /// The most memory of one process in bytes.
    pub(crate) add_memory: u64,
    pub(crate) del_memory: u64,
}

/// One case and both sides, or why there is nothing.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) case: Case,
    pub(crate) netd: Entry,
    pub(crate) reference: Entry,
    /// Set when netd-cni does not do this.
    pub(crate) missing: bool,
    /// What the daemon did, where there is one.
    pub(crate) aftermath: Vec<Aftermath>,
}

impl Row {
    fn entry(&mut self, side: Side) -> &mut Entry {
        match side {
            Side::Netd => &mut self.netd,
            Side::Reference => &mut self.reference,
        }
    }
}

/// A whole run.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) machine: Machine,
    pub(crate) options: Options,
    pub(crate) load_before: f64,
    pub(crate) load_after: f64,
    pub(crate) rows: Vec<Row>,
}

impl Outcome {
    /// The row of a case, if there is one with numbers.
    pub(crate) fn row(&self, wanted: Case) -> Option<&Row> {
        self.rows.iter().find(|row| row.case == wanted && !row.missing)
    }
}

/// Which bed: whose, for what, whether crowded, whether with a daemon.
type Place = (Side, Want, bool, bool);
type Beds = BTreeMap<Place, Bed>;

/// Runs everything; beds are gone when this returns.
pub(crate) fn run(options: &Options, stage: &Stage) -> Result<Outcome> {
    let load_before = machine::load();
    let machine = Machine::look(&options.reference);
    let mut beds = prepare(options, stage)?;
    let mut rows: Vec<Row> = CASES.iter().map(|case| empty_row(*case, &beds)).collect();
    for number in 0..options.rounds {
        eprintln!("round {} of {}", number + 1, options.rounds);
        for row in rows.iter_mut().filter(|row| !row.missing) {
            let mut sides = Side::ALL;
            if number % 2 == 1 {
                sides.reverse();
            }
            for side in sides {
                stage.check()?;
                turn(row, side, &mut beds, options).with_context(|| failed(row.case, side, options))?;
            }
        }
    }
    eprintln!("counting processes, system calls and memory");
    for row in rows.iter_mut().filter(|row| !row.missing) {
        for side in Side::ALL {
            stage.check()?;
            let bed = bed(&mut beds, row.case, side)?;
            let (traced, memory) = (bed.trace()?, most_memory(bed)?);
            let entry = row.entry(side);
            (entry.add_traced, entry.del_traced) = traced;
            (entry.add_memory, entry.del_memory) = memory;
        }
    }
    nothing_left(&beds)?;
    eprintln!("removing namespaces");
    drop(beds);
    let load_after = machine::load();
    Ok(Outcome { machine, options: options.clone(), load_before, load_after, rows })
}

fn failed(case: Case, side: Side, options: &Options) -> String {
    format!("{} by {}", case.name(options.live), side.name())
}

fn empty_row(case: Case, beds: &Beds) -> Row {
    let missing = !beds.contains_key(&case.bed(Side::Netd));
    Row { case, netd: Entry::default(), reference: Entry::default(), missing, aftermath: Vec::new() }
}

fn bed(beds: &mut Beds, case: Case, side: Side) -> Result<&mut Bed> {
    beds.get_mut(&case.bed(side)).context("a case without a bed")
}

fn turn(row: &mut Row, side: Side, beds: &mut Beds, options: &Options) -> Result<()> {
    let bed = bed(beds, row.case, side)?;
    let workers = row.case.at_once.then_some(WORKERS);
    let Turn { adds, add_wall, dels, del_wall, aftermath } = bed.turn(workers, options.pairs)?;
    row.aftermath.extend(aftermath);
    let entry = row.entry(side);
    entry.add.add_turn(&adds, add_wall);
    entry.del.add_turn(&dels, del_wall);
    Ok(())
}

/// Makes all beds; what netd-cni says it does not support has none.
fn prepare(options: &Options, stage: &Stage) -> Result<Beds> {
    let programs = Programs { netd: &options.plugin, reference: &options.reference };
    let mut beds = Beds::new();
    for case in CASES.iter().filter(|case| !case.daemon || options.daemon.is_some()) {
        for side in Side::ALL {
            let place = case.bed(side);
            if beds.contains_key(&place) || (side, case.want) == (Side::Reference, Want::HostPort) {
                continue;
            }
            stage.check()?;
            let mut bed = Bed::new(side, case.want, programs, WORKERS * PODS_A_WORKER)?;
            if case.want == Want::HostPort {
                if bed.refuses_with(UNSUPPORTED)? {
                    continue;
                }
                let mut other = Bed::new(Side::Reference, case.want, programs, WORKERS * PODS_A_WORKER)?;
                other.rehearse().with_context(|| failed(*case, Side::Reference, options))?;
                beds.insert(case.bed(Side::Reference), other);
            }
            bed.rehearse().with_context(|| failed(*case, side, options))?;
            if let (true, Some(program)) = (case.daemon && side == Side::Netd, &options.daemon) {
                bed.start_daemon(program)?;
            }
            if case.crowded {
                eprintln!("adding {} pods with {}", options.live, side.name());
                bed.populate(options.live, || stage.check())?;
            }
            beds.insert(place, bed);
        }
    }
    Ok(beds)
}

/// The kernel counts pages in lots, so that a figure may be a little short: the most of a few.
fn most_memory(bed: &mut Bed) -> Result<(u64, u64)> {
    let mut most = (0, 0);
    for _ in 0..MEMORY_PAIRS {
        let (add, del) = bed.memory()?;
        most = (most.0.max(add), most.1.max(del));
    }
    Ok(most)
}

/// A plugin that leaves links behind was not measured doing the same work.
fn nothing_left(beds: &Beds) -> Result<()> {
    for ((side, want, crowded, daemon), bed) in beds {
        bed.settle()?;
        let left = bed.extra_links()?;
        if left > 0 {
            let case = Case { daemon: *daemon, ..Case::of(*want, *crowded, false) };
            bail!("{} left {left} links after DEL ({})", side.name(), case.name(0));
        }
    }
    Ok(())
}
