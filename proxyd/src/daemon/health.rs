//! The proxy's health as load balancers ask for it: kube-proxy's `/healthz` and `/livez`
//! (Kubernetes 1.36, `pkg/proxy/healthcheck/proxy_health.go`; KEP-3836).
//!
//! Unhealthy is a proxy that has known of a change for longer than the window without having it in the
//! kernel. `/healthz` also asks that new traffic goes elsewhere while the node is about to be deleted;
//! `/livez` does not, so that nobody restarts a netd because its node is being drained.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use netd_admin::Timestamp;
use netd_kernel::clock::Clock;
use netd_model::{Family, Snapshot};
use serde::Serialize;

/// When services were last in order, and since when they are not.
pub(crate) struct ProxyHealth {
    node: Arc<str>,
    window: Duration,
    clock: Arc<dyn Clock>,
    progress: Mutex<Progress>,
    /// The node's object was seen once: from then on its absence means that it was deleted.
    node_seen: AtomicBool,
}

#[derive(Clone, Copy, Default)]
struct Progress {
    /// Arrival of the oldest change that is not in the kernel.
    queued: Option<Instant>,
    /// When the kernel was last equal to what was wanted.
    updated: Option<SystemTime>,
}

/// The body of an answer; the order of the fields is kube-proxy's.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<String, FamilyReport>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyReport {
    last_updated: String,
    healthy: bool,
}

// === impl ProxyHealth ===

impl ProxyHealth {
    /// Nothing has happened yet; `window` is how long a change may take.
    pub(crate) fn new(node: Arc<str>, window: Duration, clock: Arc<dyn Clock>) -> Self {
        Self { node, window, clock, progress: Mutex::default(), node_seen: AtomicBool::new(false) }
    }

    // Plain values: a panic elsewhere leaves them whole.
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change has arrived that is to be in the kernel.
    pub(crate) fn queued(&self) {
        let now = self.clock.now();
        self.progress().queued.get_or_insert(now);
    }

    /// The kernel is as it should be.
    pub(crate) fn updated(&self) {
        *self.progress() = Progress { queued: None, updated: Some(self.clock.wall()) };
    }

    /// True while no change has waited for longer than the window; ignores the node.
    pub(crate) fn is_healthy(&self) -> bool {
        let now = self.clock.now();
        self.progress().queued.is_none_or(|since| now.duration_since(since) < self.window)
    }

    /// Says whether load balancers may send new traffic to this node. A node whose object never was there
    /// (a directory of manifests) is eligible.
    pub(crate) fn is_eligible(&self, snapshot: Option<&Snapshot>) -> bool {
        let Some(snapshot) = snapshot else { return true };
        match snapshot.nodes.get(&self.node) {
            Some(node) => {
                self.node_seen.store(true, Ordering::Relaxed);
                !node.leaving
            }
            None => !self.node_seen.load(Ordering::Relaxed),
        }
    }

    /// `/healthz`: whether the answer is 200, and its body.
    pub(crate) fn healthz(&self, snapshot: Option<&Snapshot>) -> (bool, Report) {
        let eligible = self.is_eligible(snapshot);
        self.report(Some(eligible))
    }

    /// `/livez`: the same without the node.
    pub(crate) fn livez(&self) -> (bool, Report) {
        self.report(None)
    }

    fn report(&self, node_eligible: Option<bool>) -> (bool, Report) {
        let healthy = self.is_healthy();
        let good = healthy && node_eligible.unwrap_or(true);
        let updated = self.progress().updated;
        let now = self.clock.wall();
        let families = updated.map(|at| {
            let report = || FamilyReport { last_updated: rfc3339(Some(at)), healthy };
            Family::ALL.map(|family| (family.to_string(), report()))
        });
        let report = Report {
            // As kube-proxy has it since it stopped syncing without cause: recent while all is well.
            last_updated: rfc3339(if good { Some(now) } else { updated }),
            current_time: rfc3339(Some(now)),
            node_eligible,
            healthy,
            status: families.into_iter().flatten().collect(),
        };
        (good, report)
    }
}

impl std::fmt::Debug for ProxyHealth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProxyHealth").field("window", &self.window).finish_non_exhaustive()
    }
}

/// A time as Go's encoding/json prints it (RFC 3339, UTC, nanoseconds); none is year 1.
fn rfc3339(time: Option<SystemTime>) -> String {
    let Some(time) = time else { return "0001-01-01T00:00:00Z".to_owned() };
    let seconds = Timestamp::from(time).to_string();
    let nanoseconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    match seconds.strip_suffix('Z') {
        Some(head) if nanoseconds > 0 => {
            format!("{head}.{}Z", format!("{nanoseconds:09}").trim_end_matches('0'))
        }
        Some(_) | None => seconds,
    }
}

#[cfg(test)]
mod tests;
