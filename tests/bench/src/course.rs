//! The cases, and the order they are run in: both sides of each case in turn, all cases in each round, so that what
//! else happens on the machine happens to all of them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use crate::bed::{Bed, Turn};
use crate::contender::{Programs, Side, Want};
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
}

/// In the order of the table.
const CASES: [Case; 6] = [
    Case { want: Want::V4, crowded: false, at_once: false },
    Case { want: Want::V4, crowded: false, at_once: true },
    Case { want: Want::V4, crowded: true, at_once: false },
    Case { want: Want::V4, crowded: true, at_once: true },
    Case { want: Want::Dual, crowded: false, at_once: false },
    Case { want: Want::HostPort, crowded: false, at_once: false },
];

impl Case {
    /// The name in the table.
    pub(crate) fn name(self, live: usize) -> String {
        let first = match (self.want, self.crowded) {
            (Want::V4, false) => "empty node".to_owned(),
            (Want::V4, true) => format!("{live} live pods"),
            (Want::Dual, _) => "dual stack".to_owned(),
            (Want::HostPort, _) => "with a hostPort".to_owned(),
        };
        if self.at_once { format!("{first}, {WORKERS} at once") } else { first }
    }

    fn bed(self) -> (Want, bool) {
        (self.want, self.crowded)
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
    pub(crate) fn row(&self, want: Want, crowded: bool, at_once: bool) -> Option<&Row> {
        let wanted = Case { want, crowded, at_once };
        self.rows.iter().find(|row| row.case == wanted && !row.missing)
    }
}

type Beds = BTreeMap<(Side, Want, bool), Bed>;

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
    let missing = !beds.contains_key(&(Side::Netd, case.want, case.crowded));
    Row { case, netd: Entry::default(), reference: Entry::default(), missing }
}

fn bed(beds: &mut Beds, case: Case, side: Side) -> Result<&mut Bed> {
    let (want, crowded) = case.bed();
    beds.get_mut(&(side, want, crowded)).context("a case without a bed")
}

fn turn(row: &mut Row, side: Side, beds: &mut Beds, options: &Options) -> Result<()> {
    let bed = bed(beds, row.case, side)?;
    let Turn { adds, add_wall, dels, del_wall } =
        if row.case.at_once { bed.crowd(WORKERS)? } else { bed.sequence(options.pairs)? };
    let entry = row.entry(side);
    entry.add.add_turn(&adds, add_wall);
    entry.del.add_turn(&dels, del_wall);
    Ok(())
}

/// Makes all beds; what netd-cni says it does not support has none.
fn prepare(options: &Options, stage: &Stage) -> Result<Beds> {
    let programs = Programs { netd: &options.plugin, reference: &options.reference };
    let mut beds = Beds::new();
    for case in CASES {
        let (want, crowded) = case.bed();
        for side in Side::ALL {
            if beds.contains_key(&(side, want, crowded)) || (side, want) == (Side::Reference, Want::HostPort)
            {
                continue;
            }
            stage.check()?;
            let mut bed = Bed::new(side, want, programs, WORKERS * PODS_A_WORKER)?;
            if want == Want::HostPort {
                if bed.refuses_with(UNSUPPORTED)? {
                    continue;
                }
                let mut other = Bed::new(Side::Reference, want, programs, WORKERS * PODS_A_WORKER)?;
                other.rehearse().with_context(|| failed(case, Side::Reference, options))?;
                beds.insert((Side::Reference, want, crowded), other);
            }
            bed.rehearse().with_context(|| failed(case, side, options))?;
            if crowded {
                eprintln!("adding {} pods with {}", options.live, side.name());
                bed.populate(options.live, || stage.check())?;
            }
            beds.insert((side, want, crowded), bed);
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
    for ((side, want, crowded), bed) in beds {
        let left = bed.extra_links()?;
        if left > 0 {
            let case = Case { want: *want, crowded: *crowded, at_once: false };
            bail!("{} left {left} links after DEL ({})", side.name(), case.name(0));
        }
    }
    Ok(())
}
