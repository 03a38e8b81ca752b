//! A run as a table for people and as JSON for programs.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::contender::{Side, Want};
use crate::course::{Case, Entry, Outcome, Row};
use crate::series::Series;
use crate::trace::Traced;

/// 3 MiB.
const MEMORY_GOAL: u64 = 3 << 20;

/// Something the project wants to hold, and what was measured.
struct Goal {
    what: &'static str,
    wanted: &'static str,
    measured: String,
    met: bool,
}

/// The table.
pub(crate) fn table(outcome: &Outcome) -> String {
    let mut text = head(outcome);
    for (verb, pick) in [("ADD", add_of as Pick), ("DEL", del_of)] {
        let _ = writeln!(
            text,
            "\n{verb:<40}{:<11}{:>8}{:>8}{:>9}{:>8}{:>8}{:>7}{:>7}{:>8}{:>8}",
            "", "p50 ms", "p95 ms", "1/s", "cpu ms", "MiB", "procs", "calls", "p50", "rate"
        );
        for row in &outcome.rows {
            lines(&mut text, row, outcome.options.live, pick);
        }
    }
    text.push('\n');
    for row in &outcome.rows {
        if let Some(DaemonShare { processor, settled }) = daemon_share(row) {
            let _ = writeln!(
                text,
                "{}: the daemon's share of an ADD and its DEL is {:.2} ms of cpu; the last link was gone {:.0} ms \
                 after the last DEL at most",
                row.case.name(outcome.options.live),
                milliseconds(processor),
                milliseconds(settled),
            );
        }
    }
    text.push_str(
        "\np50, rate (last columns): how many times faster netd-cni is. procs: processes that the plugins started.\n\
         calls: system calls. MiB: the most memory of one process. hostPort: bridge, then portmap.\n\n",
    );
    for goal in goals(outcome) {
        let word = if goal.met { "met   " } else { "MISSED" };
        let _ = writeln!(text, "{word} {:<46}{:>10}   wanted {}", goal.what, goal.measured, goal.wanted);
    }
    text
}

fn head(outcome: &Outcome) -> String {
    let machine = &outcome.machine;
    let mut text = format!(
        "netd-cni beside {} ({}), {} processors, Linux {}\n{} rounds; load average before {:.1}, after {:.1}",
        machine.reference,
        machine.iptables,
        machine.processors,
        machine.kernel,
        outcome.options.rounds,
        outcome.load_before,
        outcome.load_after,
    );
    // The run itself keeps up to one processor busy.
    if outcome.load_before > 0.5 {
        text.push_str(": others used the machine, so trust the ratios more than the times");
    }
    text.push('\n');
    text
}

/// What one side did in one case with one verb.
struct Part<'a> {
    series: &'a Series,
    traced: Traced,
    memory: u64,
}

type Pick = fn(&Entry) -> Part<'_>;

fn add_of(entry: &Entry) -> Part<'_> {
    Part { series: &entry.add, traced: entry.add_traced, memory: entry.add_memory }
}

fn del_of(entry: &Entry) -> Part<'_> {
    Part { series: &entry.del, traced: entry.del_traced, memory: entry.del_memory }
}

fn lines(text: &mut String, row: &Row, live: usize, pick: Pick) {
    let name = row.case.name(live);
    if row.missing {
        let why = if row.case.daemon { "no daemon given" } else { "not supported yet" };
        let _ = writeln!(text, "{name:<40}netd-cni    {why}");
        return;
    }
    let (times, rate) = ratios(row, pick);
    for (side, entry) in [(Side::Netd, &row.netd), (Side::Reference, &row.reference)] {
        let Part { series, traced, memory } = pick(entry);
        let first = if side == Side::Netd { name.as_str() } else { "" };
        let _ = write!(
            text,
            "{first:<40}{:<11}{:>8.2}{:>8.2}{:>9.1}{:>8.2}{:>8.1}{:>7}{:>7}",
            side.name(),
            milliseconds(series.time(0.5)),
            milliseconds(series.time(0.95)),
            series.rate(),
            milliseconds(series.processor()),
            mebibytes(memory),
            traced.processes,
            traced.system_calls,
        );
        if side == Side::Netd {
            let _ = write!(text, "{:>8}{:>8}", format!("{times:.1}x"), format!("{rate:.1}x"));
        }
        text.push('\n');
    }
}

/// What the daemon does for a pair of calls, of which DEL causes nearly all.
struct DaemonShare {
    processor: Duration,
    /// The longest of all turns.
    settled: Duration,
}

fn daemon_share(row: &Row) -> Option<DaemonShare> {
    let settled = row.aftermath.iter().map(|turn| turn.settled).max()?;
    let all: Duration = row.aftermath.iter().map(|turn| turn.processor).sum();
    let calls = u32::try_from(row.netd.del.count()).ok().filter(|count| *count > 0)?;
    Some(DaemonShare { processor: all / calls, settled })
}

/// How many times faster netd-cni's median call and its rate are.
fn ratios(row: &Row, pick: Pick) -> (f64, f64) {
    let (ours, theirs) = (pick(&row.netd).series, pick(&row.reference).series);
    let times = theirs.time(0.5).as_secs_f64() / ours.time(0.5).as_secs_f64();
    (times, ours.rate() / theirs.rate())
}

fn goals(outcome: &Outcome) -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut at_least = |what, wanted, measured: Option<f64>, least: f64| {
        let measured = measured.unwrap_or(f64::NAN);
        goals.push(Goal { what, wanted, measured: format!("{measured:.1}x"), met: measured >= least });
    };
    let empty = outcome.row(Case::of(Want::V4, false, false));
    let add = empty.map(|row| ratios(row, add_of).0);
    at_least("ADD, median, times faster", "10x or more", add, 10.0);
    let crowd = outcome.row(Case::of(Want::V4, false, true)).map(|row| ratios(row, add_of).1);
    at_least("ADD, 10 at once, times the rate", "10x or more", crowd, 10.0);
    let with_daemon = outcome.row(Case { daemon: true, ..Case::of(Want::V4, false, false) });
    let del = with_daemon.or(empty).map(|row| ratios(row, del_of).0);
    let what = if with_daemon.is_some() {
        "DEL with netd running, median, times faster"
    } else {
        "DEL, median, times faster (no daemon given)"
    };
    at_least(what, "40x or more", del, 40.0);
    let growth =
        outcome.row(Case::of(Want::V4, true, false)).zip(empty).map_or(f64::NAN, |(crowded, empty)| {
            crowded.netd.add.time(0.5).as_secs_f64() / empty.netd.add.time(0.5).as_secs_f64()
        });
    goals.push(Goal {
        what: "ADD beside live pods / on an empty node",
        wanted: "1.2x or less",
        measured: format!("{growth:.2}x"),
        met: growth <= 1.2,
    });
    let ours = || outcome.rows.iter().map(|row| &row.netd);
    let processes =
        ours().map(|e| e.add_traced.processes.max(e.del_traced.processes)).max().unwrap_or_default();
    goals.push(Goal {
        what: "processes started by netd-cni",
        wanted: "0",
        measured: processes.to_string(),
        met: processes == 0,
    });
    let memory = ours().map(|entry| entry.add_memory.max(entry.del_memory)).max().unwrap_or_default();
    goals.push(Goal {
        what: "most memory of netd-cni",
        wanted: "below 3 MiB",
        measured: format!("{:.1} MiB", mebibytes(memory)),
        met: memory < MEMORY_GOAL,
    });
    goals
}

/// All numbers; times in milliseconds, memory in bytes.
pub(crate) fn json(outcome: &Outcome) -> Value {
    let machine = &outcome.machine;
    let cases: Vec<Value> = outcome.rows.iter().map(|row| case(row, outcome.options.live)).collect();
    let goals: Vec<Value> = goals(outcome)
        .iter()
        .map(|goal| json!({ "what": goal.what, "wanted": goal.wanted, "measured": goal.measured, "met": goal.met }))
        .collect();
    json!({
        "format": 1,
        "machine": {
            "processors": machine.processors, "kernel": machine.kernel, "reference": machine.reference,
            "iptables": machine.iptables,
        },
        "load": { "before": outcome.load_before, "after": outcome.load_after },
        "rounds": outcome.options.rounds,
        "livePods": outcome.options.live,
        "cases": cases,
        "goals": goals,
    })
}

fn case(row: &Row, live: usize) -> Value {
    let name = row.case.name(live);
    if row.missing {
        return json!({ "name": name, "supported": false });
    }
    let verb = |pick: Pick| {
        let (times, rate) = ratios(row, pick);
        json!({
            "netd": numbers(&pick(&row.netd)), "reference": numbers(&pick(&row.reference)),
            "timesFaster": times, "timesTheRate": rate,
        })
    };
    let daemon = daemon_share(row).map(
        |share| json!({ "processor": milliseconds(share.processor), "settled": milliseconds(share.settled) }),
    );
    json!({ "name": name, "supported": true, "add": verb(add_of), "del": verb(del_of), "daemon": daemon })
}

fn numbers(Part { series, traced, memory }: &Part<'_>) -> Value {
    let (least, greatest) = series.range();
    json!({
        "calls": series.count(),
        "p50": milliseconds(series.time(0.5)),
        "p95": milliseconds(series.time(0.95)),
        "roundMedians": [milliseconds(least), milliseconds(greatest)],
        "processor": milliseconds(series.processor()),
        "rate": series.rate(),
        "memory": memory,
        "processesStarted": traced.processes,
        "systemCalls": traced.system_calls,
    })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn mebibytes(bytes: u64) -> f64 {
    // Memory sizes are far below 2^52 bytes.
    bytes as f64 / f64::from(1 << 20)
}
