//! The task that owns the [`Index`]: applies events, coalesces, publishes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use netd_model::{ObjectName, Problem, Snapshot};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::{Entry, Index, Kind};
use crate::source::Options;
use crate::status::{KindStatus, SourceStatus};
use crate::update::{Change, Publisher};

/// Events that may wait for the index.
pub(crate) const QUEUE: usize = 1024;
/// How long a stored snapshot waits for the real one.
const STORED_AFTER: Duration = Duration::from_secs(2);
/// Time between two complaints about the same outage.
const REMIND_AFTER: Duration = Duration::from_secs(60);
/// Further events taken before the clock is looked at again.
const BATCH: usize = 256;

/// What a source tells the index.
#[derive(Debug)]
pub(crate) enum Message {
    /// A list begins.
    Begin(Kind),
    /// An object is now like this.
    Apply(Box<Entry>),
    /// An object is gone.
    Remove(Kind, ObjectName),
    /// A list is complete.
    Finish(Kind),
    /// All kinds at once (manifests).
    Replace(Vec<Entry>, Vec<Problem>),
    /// The source does not show this kind to us; go on without it.
    Unlisted(Kind),
    /// Contact with the source (`None`), or what prevents it. Without a kind it is about all of them.
    Contact(Option<Kind>, Option<String>),
    /// Slices come from objects of this kind.
    SliceKind(&'static str),
}

/// The index, its inbox and what it remembers about the source.
#[derive(Debug)]
pub(crate) struct IndexTask {
    index: Index,
    inbox: mpsc::Receiver<Message>,
    publisher: Publisher,
    options: Options,
    stored: Option<Snapshot>,
    status: SourceStatus,
    slice_kind: &'static str,
    synced: BTreeSet<Kind>,
    unlisted: BTreeSet<Kind>,
    contact: BTreeMap<Kind, Result<(), String>>,
    clock: Timing,
}

/// When what is due.
#[derive(Debug)]
struct Timing {
    started: Instant,
    /// Arrival of the first and the newest unpublished change.
    burst: Option<(Instant, Instant)>,
    /// Since when a kind has been without contact.
    down: Option<Instant>,
    /// When to complain again.
    remind: Option<Instant>,
}

impl IndexTask {
    pub(crate) fn new(
        source: String,
        inbox: mpsc::Receiver<Message>,
        publisher: Publisher,
        options: Options,
        stored: Option<Snapshot>,
    ) -> Self {
        let clock = Timing { started: Instant::now(), burst: None, down: None, remind: None };
        Self {
            index: Index::default(),
            inbox,
            publisher,
            options,
            stored,
            status: SourceStatus::new(source),
            slice_kind: "EndpointSlice",
            synced: BTreeSet::new(),
            unlisted: BTreeSet::new(),
            contact: BTreeMap::new(),
            clock,
        }
    }

    /// Runs until every sender is gone or `shutdown` turns true.
    pub(crate) async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        self.publish_status();
        loop {
            let due = self.next_due();
            tokio::select! {
                biased;
                () = stopped(&mut shutdown) => return,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.act(),
                message = self.inbox.recv() => match message {
                    Some(message) => self.take(message),
                    None => return,
                },
            }
        }
    }

    fn take(&mut self, first: Message) {
        let was_changed = self.index.changed();
        self.apply(first);
        for _ in 1..BATCH {
            let Ok(message) = self.inbox.try_recv() else { break };
            self.apply(message);
        }
        if self.index.changed() {
            let now = Instant::now();
            let first = self.clock.burst.filter(|_| was_changed).map_or(now, |(first, _)| first);
            self.clock.burst = Some((first, now));
        }
        self.publish_status();
    }

    fn apply(&mut self, message: Message) {
        match message {
            Message::Begin(kind) => self.index.begin(kind),
            Message::Apply(entry) => self.index.apply(*entry),
            Message::Remove(kind, key) => self.index.remove(kind, &key),
            Message::Finish(kind) => {
                self.index.finish(kind);
                self.unlisted.remove(&kind);
                self.mark_synced(kind);
            }
            Message::Replace(entries, documents) => {
                self.index.replace(entries, documents);
                Kind::ALL.into_iter().for_each(|kind| self.mark_synced(kind));
            }
            Message::Unlisted(kind) => {
                if self.unlisted.insert(kind) {
                    info!(%kind, "not shown by the source; going on without");
                }
                self.mark_synced(kind);
            }
            Message::Contact(kind, error) => self.note_contact(kind, error),
            Message::SliceKind(name) => self.slice_kind = name,
        }
    }

    fn is_synced(&self) -> bool {
        self.synced.len() == Kind::ALL.len()
    }

    fn mark_synced(&mut self, kind: Kind) {
        if self.synced.insert(kind) && self.is_synced() {
            let (services, _) = self.index.count(Kind::Service);
            let (slices, _) = self.index.count(Kind::Slice);
            let (nodes, _) = self.index.count(Kind::Node);
            info!(services, slices, nodes, source = self.status.source, "every kind has synced");
            self.index.mark_all();
            self.stored = None;
        }
    }

    fn note_contact(&mut self, kind: Option<Kind>, error: Option<String>) {
        let kinds = kind.map_or(Kind::ALL.to_vec(), |kind| vec![kind]);
        for kind in kinds {
            self.contact.insert(kind, error.clone().map_or(Ok(()), Err));
        }
        let connected = self.required().all(|kind| matches!(self.contact.get(&kind), Some(Ok(()))));
        if connected {
            self.clock.down = None;
            self.index.set_stale(false);
        } else if self.clock.down.is_none() && self.contact.values().any(Result::is_err) {
            self.clock.down = Some(Instant::now());
        }
        self.log_contact(connected, error.as_deref());
        if connected != self.status.connected {
            self.status.connected = connected;
            self.status.since = SystemTime::now();
        }
    }

    /// Says what changed, and once a minute what is still wrong.
    fn log_contact(&mut self, connected: bool, error: Option<&str>) {
        let source = self.status.source.as_str();
        if connected {
            self.clock.remind = None;
            if !self.status.connected {
                info!(source, "in contact");
            }
        } else if let Some(error) = error
            && self.clock.remind.is_none_or(|due| due <= Instant::now())
        {
            self.clock.remind = Some(Instant::now() + REMIND_AFTER);
            warn!(source, error, "no contact; what is known stays, retrying");
        }
    }

    fn required(&self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(|kind| !self.unlisted.contains(kind))
    }

    /// When [`IndexTask::act`] has something to do.
    fn next_due(&self) -> Option<Instant> {
        let publish = self
            .clock
            .burst
            .filter(|_| self.is_synced())
            .map(|(first, last)| (last + self.options.quiet).min(first + self.options.max_delay));
        let stale = self.clock.down.map(|since| since + self.options.stale_after);
        let stored = self.stored.as_ref().map(|_| self.clock.started + STORED_AFTER);
        [publish, stale, stored].into_iter().flatten().min()
    }

    fn act(&mut self) {
        let now = Instant::now();
        if self.clock.down.is_some_and(|since| since + self.options.stale_after <= now) {
            self.clock.down = None;
            self.index.set_stale(true);
            if self.index.changed() && self.clock.burst.is_none() {
                self.clock.burst = Some((now, now));
            }
        }
        if self.clock.started + STORED_AFTER <= now
            && let Some(stored) = self.stored.take()
        {
            self.publish_stored(stored);
        }
        let due = self.clock.burst.is_some_and(|(first, last)| {
            last + self.options.quiet <= now || first + self.options.max_delay <= now
        });
        if due && self.is_synced() {
            self.clock.burst = None;
            if let Some((snapshot, change)) = self.index.snapshot() {
                self.publisher.publish(Arc::new(snapshot), change);
            }
        }
    }

    fn publish_stored(&mut self, mut snapshot: Snapshot) {
        snapshot.generation = self.index.number();
        snapshot.stale = true;
        warn!(
            services = snapshot.services.len(),
            source = self.status.source,
            "no contact yet; serving the stored state, marked stale"
        );
        let change = Change {
            generation: snapshot.generation,
            services: None,
            nodes: true,
            at: SystemTime::now(),
            arrivals: Arc::default(),
        };
        self.publisher.publish(Arc::new(snapshot), change);
    }

    fn publish_status(&mut self) {
        let kinds = Kind::ALL.into_iter().map(|kind| self.kind_status(kind)).collect();
        self.status.synced = self.is_synced();
        self.status.kinds = kinds;
        let error = self.required().find_map(|kind| self.contact.get(&kind)?.as_ref().err().cloned());
        self.status.last_error = error;
        self.publisher.set_status(self.status.clone());
    }

    fn kind_status(&self, kind: Kind) -> KindStatus {
        let (objects, problems) = self.index.count(kind);
        let contact = self.contact.get(&kind);
        KindStatus {
            kind: if kind == Kind::Slice { self.slice_kind.to_owned() } else { kind.to_string() },
            synced: self.synced.contains(&kind),
            connected: matches!(contact, Some(Ok(()))),
            objects,
            problems,
            last_error: contact.and_then(|contact| contact.as_ref().err().cloned()),
        }
    }
}

/// Waits until `shutdown` turns true or its sender is gone.
pub(crate) async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which asks for the same.
    let _ = shutdown.wait_for(|stop| *stop).await;
}
