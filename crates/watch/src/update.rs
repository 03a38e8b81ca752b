//! What subscribers receive: the newest snapshot and what changed since they last looked.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use netd_model::{Dirty, Family, ObjectName, Snapshot};
use tokio::sync::watch;

use crate::status::SourceStatus;

/// How many publishes a subscriber may sleep through before its next update is [`Dirty::All`].
const LOG_LEN: usize = 256;

/// A snapshot and how it differs from the one that this subscriber saw before.
#[derive(Clone, Debug)]
pub struct Update {
    /// The newest snapshot.
    pub snapshot: Arc<Snapshot>,
    /// The union of all changes since this subscriber's last update; [`Dirty::All`] in its first.
    pub dirty: Dirty,
    /// True when a Node came, went or changed in a field of the model. `dirty` does not say it.
    pub nodes_changed: bool,
    /// Arrival of the oldest change in this update.
    pub changed_at: SystemTime,
    /// What arrived since this subscriber's last update; for counting, not for deciding.
    pub arrivals: Arrivals,
}

/// Changes that arrived from the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrivals {
    /// Changes of Services.
    pub services: u64,
    /// Changes of slices (or Endpoints).
    pub slices: u64,
    /// When what changed endpoints happened, where the controller said so (annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`) and it was not before this process started; not for
    /// slices that went. The oldest [`MAX_TRIGGERED`] of them.
    pub triggered: Vec<(Family, SystemTime)>,
}

/// Most times of an [`Arrivals`].
pub const MAX_TRIGGERED: usize = 10_000;

/// Makes the two ends of a source.
pub fn channel() -> (Publisher, Subscriber) {
    let (state, state_rx) = watch::channel(State::default());
    let (status, status_rx) = watch::channel(SourceStatus::new(String::new()));
    (Publisher { state, status }, Subscriber { state: state_rx, status: status_rx, seen: 0 })
}

/// The source's end; given to [`run`](crate::run).
#[derive(Debug)]
pub struct Publisher {
    state: watch::Sender<State>,
    status: watch::Sender<SourceStatus>,
}

/// A reader's end. A clone starts with nothing seen.
#[derive(Debug)]
pub struct Subscriber {
    state: watch::Receiver<State>,
    status: watch::Receiver<SourceStatus>,
    seen: u64,
}

#[derive(Debug, Default)]
struct State {
    snapshot: Option<Arc<Snapshot>>,
    /// Changes of the newest generations, oldest first, without a gap.
    log: VecDeque<Change>,
}

/// What one publish changed.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) generation: u64,
    /// `None` is everything.
    pub(crate) services: Option<Arc<BTreeSet<ObjectName>>>,
    pub(crate) nodes: bool,
    pub(crate) at: SystemTime,
    pub(crate) arrivals: Arc<Arrivals>,
}

// === impl Arrivals ===

impl Arrivals {
    /// Counts a slice that changed.
    pub(crate) fn slice(&mut self, triggered: Option<SystemTime>, families: &BTreeSet<Family>) {
        self.slices += 1;
        let Some(at) = triggered else { return };
        self.trigger(families.iter().map(|family| (*family, at)));
    }

    /// Adds others that came later.
    pub fn add(&mut self, later: &Self) {
        self.services += later.services;
        self.slices += later.slices;
        self.trigger(later.triggered.iter().copied());
    }

    fn trigger(&mut self, times: impl Iterator<Item = (Family, SystemTime)>) {
        let room = MAX_TRIGGERED.saturating_sub(self.triggered.len());
        self.triggered.extend(times.take(room));
    }
}

// === impl Publisher ===

impl Publisher {
    /// Another subscriber with nothing seen.
    pub fn subscribe(&self) -> Subscriber {
        Subscriber { state: self.state.subscribe(), status: self.status.subscribe(), seen: 0 }
    }

    pub(crate) fn publish(&self, snapshot: Arc<Snapshot>, change: Change) {
        self.state.send_modify(|state| {
            state.snapshot = Some(snapshot);
            if state.log.len() == LOG_LEN {
                state.log.pop_front();
            }
            state.log.push_back(change);
        });
    }

    pub(crate) fn set_status(&self, status: SourceStatus) {
        self.status.send_if_modified(|old| {
            let changed = *old != status;
            if changed {
                *old = status;
            }
            changed
        });
    }
}

// === impl Subscriber ===

impl Subscriber {
    /// Waits for a snapshot newer than the last one seen here; `None` when the source has ended.
    ///
    /// Cancel safe: nothing counts as seen until it is returned.
    pub async fn next(&mut self) -> Option<Update> {
        loop {
            let update = self.state.borrow_and_update().since(self.seen);
            if let Some(update) = update {
                self.seen = update.snapshot.generation;
                return Some(update);
            }
            self.state.changed().await.ok()?;
        }
    }

    /// The newest snapshot, without marking it seen; `None` before the first.
    pub fn latest(&self) -> Option<Arc<Snapshot>> {
        self.state.borrow().snapshot.clone()
    }

    /// How the source is doing.
    pub fn status(&self) -> SourceStatus {
        self.status.borrow().clone()
    }
}

impl Clone for Subscriber {
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), status: self.status.clone(), seen: 0 }
    }
}

// === impl State ===

impl State {
    fn since(&self, seen: u64) -> Option<Update> {
        let snapshot = self.snapshot.as_ref().filter(|s| s.generation > seen)?;
        let mut update = Update {
            snapshot: Arc::clone(snapshot),
            dirty: Dirty::All,
            nodes_changed: true,
            changed_at: SystemTime::now(),
            arrivals: Arrivals::default(),
        };
        let missed = || self.log.iter().filter(|change| change.generation > seen);
        if let Some(oldest) = missed().map(|change| change.at).min() {
            update.changed_at = oldest;
        }
        missed().for_each(|change| update.arrivals.add(&change.arrivals));
        let covered = seen > 0 && self.log.front().is_some_and(|oldest| oldest.generation <= seen + 1);
        if !covered {
            return Some(update);
        }
        update.nodes_changed = missed().any(|change| change.nodes);
        let mut union = BTreeSet::new();
        for change in missed() {
            match &change.services {
                Some(services) => union.extend(services.iter().cloned()),
                None => return Some(update),
            }
        }
        update.dirty = Dirty::Services(union);
        Some(update)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(publisher: &Publisher, generation: u64, services: Option<&[&str]>) {
        let snapshot = Snapshot { generation, ..Snapshot::default() };
        let services =
            services.map(|names| Arc::new(names.iter().map(|n| ObjectName::new("default", *n)).collect()));
        let arrivals = Arc::new(Arrivals { services: 1, ..Arrivals::default() });
        let change = Change { generation, services, nodes: false, at: SystemTime::now(), arrivals };
        publisher.publish(Arc::new(snapshot), change);
    }

    fn names(update: &Update) -> Option<Vec<String>> {
        match &update.dirty {
            Dirty::All => None,
            Dirty::Services(names) => Some(names.iter().map(|n| n.name.to_string()).collect()),
        }
    }

    #[tokio::test]
    async fn a_slow_subscriber_misses_snapshots_but_no_dirt() {
        let (publisher, mut slow) = channel();
        publish(&publisher, 1, None);
        assert_eq!(names(&slow.next().await.unwrap()), None);
        publish(&publisher, 2, Some(&["a"]));
        publish(&publisher, 3, Some(&["b", "c"]));
        let update = slow.next().await.unwrap();
        assert_eq!(update.snapshot.generation, 3);
        assert_eq!(names(&update).unwrap(), ["a", "b", "c"]);
        assert!(!update.nodes_changed);
        assert_eq!(update.arrivals.services, 2, "those of the snapshot that it saw are counted before");
        drop(publisher);
        assert!(slow.next().await.is_none());
    }

    #[tokio::test]
    async fn a_new_or_very_slow_subscriber_gets_everything_dirty() {
        let (publisher, mut subscriber) = channel();
        publish(&publisher, 1, None);
        subscriber.next().await.unwrap();
        for generation in 2..(LOG_LEN as u64 + 4) {
            publish(&publisher, generation, Some(&["a"]));
        }
        assert_eq!(names(&subscriber.next().await.unwrap()), None);
        assert_eq!(names(&subscriber.clone().next().await.unwrap()), None);
        publish(&publisher, 1000, Some(&["a"]));
        assert!(subscriber.latest().is_some());
    }
}
