//! The table and the JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::Changes;

/// One contender with one number of Services.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) contender: String,
    pub(super) services: usize,
    pub(super) endpoints: usize,
    pub(super) cold: Duration,
    pub(super) cold_cpu: Duration,
    /// Share of one processor with nothing to do.
    pub(super) idle: f64,
    pub(super) alone: Changes,
    pub(super) cpu_a_change: Duration,
    pub(super) busy: Changes,
    pub(super) rules: usize,
    pub(super) daemon: f64,
    pub(super) tree: f64,
}

impl Row {
    /// The figures by which contenders are compared, less being better.
    fn figures(&self) -> [f64; 8] {
        #[expect(clippy::cast_precision_loss, reason = "a count of rules")]
        let rules = self.rules as f64;
        [
            self.cold.as_secs_f64(),
            self.alone.quantile(0.5),
            self.alone.quantile(0.99),
            self.cpu_a_change.as_secs_f64() * 1000.0,
            self.busy.quantile(0.5),
            self.daemon,
            self.tree,
            rules,
        ]
    }
}

const HEADINGS: [&str; 8] = ["cold s", "p50 ms", "p99 ms", "cpu ms", "busy p50", "MiB", "tree MiB", "rules"];

/// The table, with how netd compares to the kube-proxy of the same kind.
pub(super) fn table(rows: &[Row]) -> String {
    let mut text = format!("\n{:<36}", "Services x endpoints, who");
    for heading in HEADINGS {
        let _ = write!(text, "{heading:>10}");
    }
    let _ = writeln!(text, "{:>8}{:>14}", "idle %", "unanswered");
    for row in rows {
        let who = format!("{} x {} {}", row.services, row.endpoints, row.contender);
        let _ = write!(text, "{who:<36}");
        for (place, figure) in row.figures().into_iter().enumerate() {
            let digits = usize::from(place != 7) + usize::from(place == 0);
            let _ = write!(text, "{figure:>10.digits$}");
        }
        let (refused, tried) = (row.alone.refused + row.busy.refused, row.alone.tried + row.busy.tried);
        let _ = writeln!(text, "{:>8.1}{:>14}", row.idle * 100.0, format!("{refused}/{tried}"));
        if let Some(peer) = peer(rows, row) {
            let _ = write!(text, "{:<36}", "  part of kube-proxy's");
            for (ours, theirs) in row.figures().into_iter().zip(peer.figures()) {
                let _ = write!(text, "{:>10.2}", ours / theirs);
            }
            text.push('\n');
        }
    }
    text += "\ncold: from start to every Service answering. p50, p99: from a write at the API server to the first\n\
             connection that follows it; busy: while ten other endpoints change a second. cpu: a change's processor\n\
             time. MiB: the daemon's peak, tree: with its children. unanswered: connections while changes went on.\n";
    text
}

/// The kube-proxy that programs the kernel the same way.
fn peer<'r>(rows: &'r [Row], row: &Row) -> Option<&'r Row> {
    let way = row.contender.strip_prefix("netd-")?;
    let name = format!("kube-proxy-{way}");
    rows.iter().find(|other| other.services == row.services && other.contender == name)
}

/// All figures, for programs.
pub(super) fn json(rows: &[Row]) -> Value {
    let changes = |changes: &Changes| {
        json!({
            "p50Milliseconds": changes.quantile(0.5), "p99Milliseconds": changes.quantile(0.99),
            "samples": changes.milliseconds.len(), "unanswered": changes.refused, "tried": changes.tried,
        })
    };
    let rows = rows.iter().map(|row| {
        json!({
            "contender": row.contender, "services": row.services, "endpoints": row.endpoints,
            "coldSeconds": row.cold.as_secs_f64(), "coldCpuSeconds": row.cold_cpu.as_secs_f64(),
            "idleShare": row.idle, "change": changes(&row.alone),
            "changeCpuMilliseconds": row.cpu_a_change.as_secs_f64() * 1000.0,
            "changeAmongOthers": changes(&row.busy), "rules": row.rules,
            "daemonMiB": row.daemon, "treeMiB": row.tree,
        })
    });
    json!({ "rows": rows.collect::<Vec<_>>() })
}
