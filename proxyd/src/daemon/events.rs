//! Kubernetes Events about what netd refuses, ignores and repairs.
//!
//! Level-based: what is to be told is read off the state once a second, and what was told is remembered for as long as
//! it is true. Nothing waits for the API server, and however many objects are bad, few Events are written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use netd_kernel::clock::{Clock as _, SystemClock};
use netd_model::{Notice, ObjectName, Problem, Snapshot};
use netd_watch::{ApiConfig, EventWriter, Occurrence, Posted};
use tracing::{debug, warn};

use super::Surroundings;

/// How often the state is read.
const LOOK: Duration = Duration::from_secs(1);
/// Events that may be written at once, and how long each takes to come back.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(10);
/// The API server forgets Events after an hour by default.
const RETELL: Duration = Duration::from_secs(3600);
/// Time until the next try after a failure.
const PAUSE: Duration = Duration::from_secs(30);
/// Notices and problems that are looked at, of each; more can hardly be told in an hour.
const MOST: usize = 500;
/// Time between two Events about repairs.
const REPAIRS: Duration = Duration::from_secs(300);

/// What was told, and how much more may be.
struct Told {
    at: BTreeMap<Occurrence, Instant>,
    left: u32,
    refilled: Instant,
}

impl Told {
    const fn new(now: Instant) -> Self {
        Self { at: BTreeMap::new(), left: BURST, refilled: now }
    }

    /// Forgets what is no longer true or was told long ago, and names what is to be told next, if any may be.
    fn next<'w>(&mut self, wanted: &'w BTreeSet<Occurrence>, now: Instant) -> Option<&'w Occurrence> {
        self.at.retain(|told, at| wanted.contains(told) && now.duration_since(*at) < RETELL);
        while self.left < BURST && now.duration_since(self.refilled) >= REFILL {
            self.left += 1;
            self.refilled += REFILL;
        }
        let next = wanted.iter().find(|one| !self.at.contains_key(*one))?;
        (self.left > 0).then_some(next)
    }

    fn note(&mut self, occurrence: &Occurrence, now: Instant) {
        if self.left == BURST {
            self.refilled = now;
        }
        self.left = self.left.saturating_sub(1);
        self.at.insert(occurrence.clone(), now);
    }
}

/// Tells until the daemon drains. Where objects come from a directory there is nobody to tell.
pub(super) async fn run(around: Surroundings) -> Result<()> {
    let stopped = super::stopped(around.shutdown.clone());
    tokio::select! {
        () = stopped => {}
        () = tell(&around) => {}
    }
    Ok(())
}

async fn tell(around: &Surroundings) {
    let source = &around.config.source;
    let api = ApiConfig {
        server: source.server.clone(),
        kubeconfig: source.kubeconfig.clone(),
        token_file: source.token_file.clone(),
        ca_file: source.ca_file.clone(),
    };
    let writer = match EventWriter::new(api, &*around.node).await {
        Ok(writer) => writer,
        Err(error) => {
            // The source says so too, and ends netd where a person must put it right.
            warn!(%error, "no Events will be written");
            return std::future::pending().await;
        }
    };
    let mut told = Told::new(SystemClock.now());
    let mut repairs = Repairs::default();
    let mut forbidden = false;
    loop {
        tokio::time::sleep(LOOK).await;
        let mut wanted = wanted(around);
        wanted.extend(repairs.occurrence(around, SystemClock.now()));
        while let Some(next) = told.next(&wanted, SystemClock.now()) {
            match writer.post(next).await {
                Ok(Posted::Forbidden) => {
                    if !std::mem::replace(&mut forbidden, true) {
                        warn!(
                            namespace = next.namespace,
                            "not allowed to write Events: apply netd's ClusterRole"
                        );
                    }
                }
                Ok(posted) => debug!(kind = next.kind, object = next.name, ?posted, "told by an Event"),
                Err(error) => {
                    debug!(%error, "could not write an Event; trying again");
                    tokio::time::sleep(PAUSE).await;
                    break;
                }
            }
            told.note(next, SystemClock.now());
        }
    }
}

/// All that is to be told about Services and slices now.
fn wanted(around: &Surroundings) -> BTreeSet<Occurrence> {
    let Some(snapshot) = around.board.snapshot() else { return BTreeSet::new() };
    let plan = around.board.plan();
    let notices = plan.iter().flat_map(|plan| plan.notices.iter()).take(MOST);
    let mut wanted: BTreeSet<Occurrence> = notices.map(|notice| of_notice(&snapshot, notice, None)).collect();
    wanted.extend(snapshot.problems.iter().take(MOST).filter_map(|problem| of_problem(&snapshot, problem)));
    let own = Some(&around.node);
    wanted.extend(around.board.health_checks().iter().map(|notice| of_notice(&snapshot, notice, own)));
    wanted
}

fn uid(snapshot: &Snapshot, service: &ObjectName) -> Option<String> {
    let service = snapshot.services.get(service)?;
    Some(service.uid.to_string()).filter(|uid| !uid.is_empty())
}

fn of_notice(snapshot: &Snapshot, notice: &Notice, node: Option<&Arc<str>>) -> Occurrence {
    Occurrence {
        kind: "Service".to_owned(),
        namespace: notice.service.namespace.to_string(),
        name: notice.service.name.to_string(),
        uid: uid(snapshot, &notice.service),
        reason: notice.reason.clone(),
        message: notice.message.clone(),
        node: node.map(|node| node.to_string()),
    }
}

/// A refused object, or a part of one; what is in no namespace is told in the log and in `netd status`.
fn of_problem(snapshot: &Snapshot, problem: &Problem) -> Option<Occurrence> {
    let reason = match problem.kind.as_str() {
        "EndpointSlice" | "Endpoints" => "EndpointRefused",
        "Service" => "ServiceRefused",
        _ => return None,
    };
    let (namespace, name) = problem.object.split_once('/')?;
    let object = ObjectName::new(namespace, name);
    Some(Occurrence {
        kind: problem.kind.clone(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: (problem.kind == "Service").then(|| uid(snapshot, &object)).flatten(),
        reason: reason.to_owned(),
        message: problem.message.clone(),
        node: None,
    })
}

/// What was said about repairs last.
#[derive(Default)]
struct Repairs(Option<(Instant, u64)>);

impl Repairs {
    fn occurrence(&mut self, around: &Surroundings, now: Instant) -> Option<Occurrence> {
        let count = self.said(around.metrics.rules_repaired(), now)?;
        Some(Occurrence {
            kind: "Node".to_owned(),
            namespace: String::new(),
            name: around.node.to_string(),
            uid: None,
            reason: "RulesRepaired".to_owned(),
            message: format!(
                "another program removed rules of netd's, which were put back ({count} times since netd started); find \
                 out who flushes iptables on this node"
            ),
            node: Some(around.node.to_string()),
        })
    }

    /// The count to tell: it follows the true one at most once in five minutes.
    fn said(&mut self, count: u64, now: Instant) -> Option<u64> {
        let due = self.0.is_none_or(|(at, said)| said != count && now.duration_since(at) >= REPAIRS);
        if due && count > 0 {
            self.0 = Some((now, count));
        }
        self.0.map(|(_, said)| said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occurrences(n: usize) -> BTreeSet<Occurrence> {
        let one = |i| Occurrence {
            kind: "Service".to_owned(),
            namespace: "default".to_owned(),
            name: format!("s{i:03}"),
            uid: None,
            reason: "ExternalIPIgnored".to_owned(),
            message: "m".to_owned(),
            node: None,
        };
        (0..n).map(one).collect()
    }

    /// How many are told at a time, all of them taken.
    fn tell_all(told: &mut Told, wanted: &BTreeSet<Occurrence>, now: Instant) -> usize {
        let mut count = 0;
        while let Some(next) = told.next(wanted, now) {
            told.note(next, now);
            count += 1;
        }
        count
    }

    #[test]
    fn each_is_told_once_for_as_long_as_it_is_true() {
        let start = SystemClock.now();
        let mut told = Told::new(start);
        assert_eq!(tell_all(&mut told, &occurrences(3), start), 3);
        assert_eq!(tell_all(&mut told, &occurrences(3), start + LOOK), 0);
        assert_eq!(tell_all(&mut told, &occurrences(0), start + LOOK), 0);
        assert_eq!(tell_all(&mut told, &occurrences(3), start + LOOK), 3, "it was untrue meanwhile");
        assert_eq!(tell_all(&mut told, &occurrences(3), start + RETELL), 0);
        assert_eq!(tell_all(&mut told, &occurrences(3), start + RETELL + LOOK), 3, "forgotten by the server");
    }

    #[test]
    fn many_bad_objects_make_few_events() {
        let start = SystemClock.now();
        let mut told = Told::new(start);
        let all = occurrences(500);
        assert_eq!(tell_all(&mut told, &all, start), 25);
        assert_eq!(tell_all(&mut told, &all, start + LOOK), 0);
        assert_eq!(tell_all(&mut told, &all, start + REFILL), 1);
        assert_eq!(tell_all(&mut told, &all, start + REFILL * 11), 10);
    }

    #[test]
    fn repairs_are_told_at_once_and_then_every_five_minutes() {
        let start = SystemClock.now();
        let mut repairs = Repairs::default();
        assert_eq!(repairs.said(0, start), None);
        assert_eq!(repairs.said(1, start), Some(1));
        assert_eq!(repairs.said(7, start + LOOK), Some(1));
        assert_eq!(repairs.said(9, start + REPAIRS), Some(9));
    }
}
