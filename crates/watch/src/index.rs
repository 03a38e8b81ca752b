//! The current objects: one owner, fed by events, that says what changed and makes snapshots.
//!
//! The content depends only on the newest version of each object, never on the order of events; a relist
//! replaces a kind without emptying it in between.

pub(crate) mod task;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use netd_model::{EndpointSlice, Family, Node, ObjectName, OrderedMap, Problem, Service, Shared, Snapshot};
use tracing::{debug, warn};

use crate::decode::Decoded;
use crate::update::{Arrivals, Change};
use crate::wire::Meta;

/// Problems in a snapshot; more are only counted in the log.
const MAX_PROBLEMS: usize = 1000;
/// A relist that drops at least this many objects, and more than half, is worth a warning.
const MASS_REMOVAL: usize = 20;

/// A kind of object; Endpoints count as slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// Services.
    Service,
    /// EndpointSlices or Endpoints.
    Slice,
    /// Nodes.
    Node,
    /// Namespaces.
    Namespace,
}

/// A valid object.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    Service(Service),
    Slices(Vec<EndpointSlice>),
    Node(Node),
    Namespace(Arc<str>),
}

/// One object as it is now: valid, refused, or of no interest.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) key: ObjectName,
    pub(crate) object: Option<Object>,
    pub(crate) problems: Vec<Problem>,
    /// When what led to this version of a slice happened, where it says so.
    pub(crate) triggered: Option<SystemTime>,
}

/// The objects.
#[derive(Debug, Default)]
pub(crate) struct Index {
    started: Started,
    generation: u64,
    stale: bool,
    services: OrderedMap<ObjectName, Arc<Service>>,
    /// By the object they came from.
    sources: HashMap<ObjectName, Vec<Arc<EndpointSlice>>>,
    /// By the Service they belong to, each list ordered by name.
    slices: OrderedMap<ObjectName, Vec<Arc<EndpointSlice>>>,
    nodes: Shared<BTreeMap<Arc<str>, Arc<Node>>>,
    namespaces: BTreeSet<Arc<str>>,
    /// How many Services each namespace has.
    populated: BTreeMap<Arc<str>, usize>,
    /// Both of the above, as they are told; `None` when that is to be made anew.
    told_namespaces: Option<Shared<BTreeSet<Arc<str>>>>,
    problems: BTreeMap<(Kind, ObjectName), Vec<Problem>>,
    /// How many objects of each kind have problems.
    troubled: BTreeMap<Kind, usize>,
    /// The problems as they are told; `None` when that is to be made anew.
    told_problems: Option<Shared<Vec<Problem>>>,
    /// Documents of a manifests directory that are no objects.
    documents: Vec<Problem>,
    /// Kinds that are being listed, and what the list has had so far.
    listing: BTreeMap<Kind, HashSet<ObjectName>>,
    pending: Option<Pending>,
}

/// When this process began to look; what happened before concerns an earlier one.
#[derive(Debug)]
struct Started(SystemTime);

impl Default for Started {
    fn default() -> Self {
        Self(SystemTime::now())
    }
}

/// What changed since the last snapshot.
#[derive(Debug)]
struct Pending {
    services: BTreeSet<ObjectName>,
    everything: bool,
    nodes: bool,
    at: SystemTime,
    arrivals: Arrivals,
}

impl Kind {
    /// Every kind.
    pub(crate) const ALL: [Self; 4] = [Self::Service, Self::Slice, Self::Node, Self::Namespace];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "Service",
            Self::Slice => "EndpointSlice",
            Self::Node => "Node",
            Self::Namespace => "Namespace",
        })
    }
}

// === impl Entry ===

impl Entry {
    fn new<T>(kind: Kind, decoded: Decoded<T>, object: impl FnOnce(T) -> Object) -> Self {
        let Decoded { key, object: decoded, problems } = decoded;
        Self { kind, key, object: decoded.map(object), problems, triggered: None }
    }

    /// The same, with what its metadata says about its cause.
    pub(crate) fn triggered_by(self, meta: &Meta) -> Self {
        Self { triggered: meta.triggered(), ..self }
    }
}

impl From<Decoded<Service>> for Entry {
    fn from(decoded: Decoded<Service>) -> Self {
        Self::new(Kind::Service, decoded, Object::Service)
    }
}

impl From<Decoded<EndpointSlice>> for Entry {
    fn from(decoded: Decoded<EndpointSlice>) -> Self {
        Self::new(Kind::Slice, decoded, |slice| Object::Slices(vec![slice]))
    }
}

impl From<Decoded<Vec<EndpointSlice>>> for Entry {
    fn from(decoded: Decoded<Vec<EndpointSlice>>) -> Self {
        Self::new(Kind::Slice, decoded, Object::Slices)
    }
}

impl From<Decoded<Node>> for Entry {
    fn from(decoded: Decoded<Node>) -> Self {
        Self::new(Kind::Node, decoded, Object::Node)
    }
}

impl From<Decoded<Arc<str>>> for Entry {
    fn from(decoded: Decoded<Arc<str>>) -> Self {
        Self::new(Kind::Namespace, decoded, Object::Namespace)
    }
}

// === impl Index ===

impl Index {
    /// A list of a kind begins: until [`Index::finish`], objects are only added and changed.
    pub(crate) fn begin(&mut self, kind: Kind) {
        self.listing.insert(kind, HashSet::new());
    }

    /// A list of a kind is complete: objects that it did not have are gone.
    pub(crate) fn finish(&mut self, kind: Kind) {
        let Some(seen) = self.listing.remove(&kind) else { return };
        let known = self.keys(kind);
        let total = known.len();
        let gone: Vec<ObjectName> = known.into_iter().filter(|key| !seen.contains(key)).collect();
        if gone.len() >= MASS_REMOVAL && gone.len() * 2 > total {
            warn!(%kind, removed = gone.len(), before = total, "a relist removed most objects of a kind");
        }
        for key in gone {
            self.remove(kind, &key);
        }
    }

    /// An object is now like this.
    pub(crate) fn apply(&mut self, entry: Entry) {
        let Entry { kind, key, object, problems, triggered } = entry;
        if let Some(seen) = self.listing.get_mut(&kind) {
            seen.insert(key.clone());
        }
        self.note_problems(kind, &key, problems);
        match object {
            Some(Object::Service(service)) => self.set_service(&key, Some(service)),
            Some(Object::Slices(slices)) => self.set_slices(&key, slices, triggered),
            Some(Object::Node(node)) => self.set_node(&key.name, Some(node)),
            Some(Object::Namespace(name)) => self.set_namespace(&name, true),
            None => self.clear(kind, &key),
        }
    }

    /// An object is gone.
    pub(crate) fn remove(&mut self, kind: Kind, key: &ObjectName) {
        if let Some(seen) = self.listing.get_mut(&kind) {
            seen.remove(key);
        }
        self.note_problems(kind, key, Vec::new());
        self.clear(kind, key);
    }

    /// Everything is now like this, in one step. The first of two entries with the same key counts.
    pub(crate) fn replace(&mut self, entries: Vec<Entry>, documents: Vec<Problem>) {
        for kind in Kind::ALL {
            self.begin(kind);
        }
        for entry in entries {
            self.apply(entry);
        }
        for kind in Kind::ALL {
            self.finish(kind);
        }
        if self.documents != documents {
            for problem in documents.iter().filter(|problem| !self.documents.contains(problem)) {
                warn!(document = problem.object, problem = problem.message, "skipped a document");
            }
            self.documents = documents;
            self.told_problems = None;
            self.touch();
        }
    }

    /// The source is (not) reachable.
    pub(crate) fn set_stale(&mut self, stale: bool) {
        if self.stale != stale {
            self.stale = stale;
            self.touch();
        }
    }

    /// Everything counts as changed.
    pub(crate) fn mark_all(&mut self) {
        let pending = self.touch();
        pending.everything = true;
        pending.nodes = true;
    }

    /// True when a snapshot would differ from the last one.
    pub(crate) fn changed(&self) -> bool {
        self.pending.is_some()
    }

    /// How many objects and problems of a kind there are.
    pub(crate) fn count(&self, kind: Kind) -> (usize, usize) {
        let objects = match kind {
            Kind::Service => self.services.len(),
            Kind::Slice => self.sources.len(),
            Kind::Node => self.nodes.len(),
            Kind::Namespace => self.namespaces.len(),
        };
        (objects, self.troubled.get(&kind).copied().unwrap_or_default())
    }

    /// The snapshot and what changed since the one before; `None` when nothing did.
    ///
    /// Costs what changed: a snapshot shares all else with the index and with the one before.
    pub(crate) fn snapshot(&mut self) -> Option<(Snapshot, Change)> {
        let pending = self.pending.take()?;
        self.generation += 1;
        let (namespaces, populated) = (&self.namespaces, &self.populated);
        let namespaces = self
            .told_namespaces
            .get_or_insert_with(|| namespaces.iter().chain(populated.keys()).cloned().collect());
        let (documents, problems) = (&self.documents, &self.problems);
        let problems = self.told_problems.get_or_insert_with(|| {
            documents.iter().chain(problems.values().flatten()).take(MAX_PROBLEMS).cloned().collect()
        });
        let snapshot = Snapshot {
            generation: self.generation,
            stale: self.stale,
            services: self.services.clone(),
            slices: self.slices.clone(),
            nodes: self.nodes.clone(),
            namespaces: namespaces.clone(),
            problems: problems.clone(),
        };
        let change = Change {
            generation: self.generation,
            services: (!pending.everything).then(|| Arc::new(pending.services)),
            nodes: pending.nodes,
            at: pending.at,
            arrivals: Arc::new(pending.arrivals),
        };
        Some((snapshot, change))
    }

    /// Numbers a snapshot that does not come from here (a stored one), so that generations keep growing.
    pub(crate) fn number(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    fn keys(&self, kind: Kind) -> Vec<ObjectName> {
        let cluster = |name: &Arc<str>| ObjectName::new("", Arc::clone(name));
        let mut keys: Vec<ObjectName> = match kind {
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::Slice => self.sources.keys().cloned().collect(),
            Kind::Node => self.nodes.keys().map(cluster).collect(),
            Kind::Namespace => self.namespaces.iter().map(cluster).collect(),
        };
        let refused = self.problems.keys().filter(|(of, _)| *of == kind).map(|(_, key)| key.clone());
        keys.extend(refused);
        keys.sort();
        keys.dedup();
        keys
    }

    fn clear(&mut self, kind: Kind, key: &ObjectName) {
        match kind {
            Kind::Service => self.set_service(key, None),
            Kind::Slice => self.set_slices(key, Vec::new(), None),
            Kind::Node => self.set_node(&key.name, None),
            Kind::Namespace => self.set_namespace(&key.name, false),
        }
    }

    fn set_service(&mut self, key: &ObjectName, service: Option<Service>) {
        let changed = match service {
            Some(service) if self.services.get(key).is_some_and(|old| **old == service) => false,
            Some(service) => {
                if self.services.insert(key.clone(), Arc::new(service)).is_none() {
                    self.count_service(&key.namespace, true);
                }
                true
            }
            None => {
                let existed = self.services.remove(key).is_some();
                if existed {
                    self.count_service(&key.namespace, false);
                }
                existed
            }
        };
        if changed {
            debug!(service = %key, "changed");
            let pending = self.touch();
            pending.services.insert(key.clone());
            pending.arrivals.services += 1;
        }
    }

    /// Counts the Services of a namespace, which exists as long as it has one.
    fn count_service(&mut self, namespace: &Arc<str>, came: bool) {
        let count = self.populated.entry(Arc::clone(namespace)).or_default();
        *count = if came { *count + 1 } else { count.saturating_sub(1) };
        let count = *count;
        if count == 0 {
            self.populated.remove(namespace);
        }
        if count == usize::from(came) {
            self.told_namespaces = None;
        }
    }

    fn set_slices(&mut self, key: &ObjectName, slices: Vec<EndpointSlice>, triggered: Option<SystemTime>) {
        let old = self.sources.get(key).map_or(&[][..], Vec::as_slice);
        if old.iter().map(AsRef::as_ref).eq(slices.iter()) {
            return;
        }
        let triggered = triggered.filter(|at| *at > self.started.0);
        let families: BTreeSet<Family> = slices.iter().map(|slice| slice.family).collect();
        self.touch().arrivals.slice(triggered, &families);
        for slice in self.sources.remove(key).unwrap_or_default() {
            self.unlink(&slice);
            self.touch().services.insert(slice.service.clone());
        }
        let slices: Vec<Arc<EndpointSlice>> = slices.into_iter().map(Arc::new).collect();
        for slice in &slices {
            self.link(slice);
            self.touch().services.insert(slice.service.clone());
        }
        if !slices.is_empty() {
            self.sources.insert(key.clone(), slices);
        }
    }

    fn link(&mut self, slice: &Arc<EndpointSlice>) {
        if let Some(list) = self.slices.get_mut(&slice.service) {
            let at = list.partition_point(|other| other.name < slice.name);
            list.insert(at, Arc::clone(slice));
        } else {
            self.slices.insert(slice.service.clone(), vec![Arc::clone(slice)]);
        }
    }

    fn unlink(&mut self, slice: &Arc<EndpointSlice>) {
        if let Some(list) = self.slices.get_mut(&slice.service) {
            list.retain(|other| !Arc::ptr_eq(other, slice));
            if list.is_empty() {
                self.slices.remove(&slice.service);
            }
        }
    }

    fn set_node(&mut self, name: &Arc<str>, node: Option<Node>) {
        let changed = match node {
            Some(node) if self.nodes.get(name).is_some_and(|old| **old == node) => false,
            Some(node) => {
                self.nodes.insert(Arc::clone(name), Arc::new(node));
                true
            }
            None => self.nodes.remove(name).is_some(),
        };
        if changed {
            debug!(node = %name, "changed");
            self.touch().nodes = true;
        }
    }

    fn set_namespace(&mut self, name: &Arc<str>, exists: bool) {
        let changed =
            if exists { self.namespaces.insert(Arc::clone(name)) } else { self.namespaces.remove(name) };
        if changed {
            self.told_namespaces = None;
            self.touch();
        }
    }

    fn note_problems(&mut self, kind: Kind, key: &ObjectName, problems: Vec<Problem>) {
        let slot = (kind, key.clone());
        let old = self.problems.get(&slot).map_or(&[][..], Vec::as_slice);
        if old == problems {
            return;
        }
        for problem in problems.iter().filter(|problem| !old.contains(problem)) {
            warn!(kind = problem.kind, object = problem.object, problem = problem.message, "refused");
        }
        let count = self.troubled.entry(kind).or_default();
        if problems.is_empty() {
            *count -= usize::from(self.problems.remove(&slot).is_some());
        } else {
            *count += usize::from(self.problems.insert(slot, problems).is_none());
        }
        self.told_problems = None;
        self.touch();
    }

    fn touch(&mut self) -> &mut Pending {
        self.pending.get_or_insert_with(|| Pending {
            services: BTreeSet::new(),
            everything: false,
            nodes: false,
            at: SystemTime::now(),
            arrivals: Arrivals::default(),
        })
    }
}

#[cfg(test)]
mod tests;
