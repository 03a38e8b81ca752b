use std::time::Duration;

use k8s_openapi::jiff;
use netd_model::Dirty;
use proptest::prelude::*;
use proptest::sample::Index as Pick;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, advance, timeout};

use super::task::{IndexTask, Message};
use super::*;
use crate::decode::{self, Interner};
use crate::source::Options;
use crate::update::{Subscriber, channel};

fn service(name: &str, version: u8) -> Entry {
    let wire = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": format!("10.96.0.{version}"), "ports": [{"port": 80}]}
    }))
    .unwrap();
    decode::service(&wire, &mut Interner::default()).into()
}

fn refused(name: &str) -> Entry {
    let wire = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default"}, "spec": {"clusterIP": "nonsense"}
    }))
    .unwrap();
    decode::service(&wire, &mut Interner::default()).into()
}

fn slice(name: &str, service: &str, version: u8) -> Entry {
    let wire = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 80}],
        "endpoints": [{"addresses": [format!("172.16.0.{version}")]}]
    }))
    .unwrap();
    decode::slice(&wire, &mut Interner::default()).into()
}

fn node(name: &str, version: u8) -> Entry {
    let addresses: Value = json!([{"type": "InternalIP", "address": format!("192.168.1.{version}")}]);
    let wire =
        serde_json::from_value(json!({"metadata": {"name": name}, "status": {"addresses": addresses}}))
            .unwrap();
    decode::node(&wire, &mut Interner::default()).into()
}

fn names(change: &Change) -> Option<Vec<String>> {
    Some(change.services.as_ref()?.iter().map(|n| n.name.to_string()).collect())
}

#[test]
fn what_arrives_is_counted_with_when_it_happened_unless_it_happened_before() {
    let caused = |name: &str, version: u8, at: &str| {
        let annotations = json!({"endpoints.kubernetes.io/last-change-trigger-time": at, "other": "x"});
        let meta = serde_json::from_value(json!({"name": name, "annotations": annotations})).unwrap();
        slice(name, "a", version).triggered_by(&meta)
    };
    let later = (jiff::Timestamp::now() + Duration::from_secs(60)).to_string();
    let mut index = Index::default();
    index.apply(service("a", 1));
    for (name, at) in [("a-1", later.as_str()), ("a-2", "2020-01-02T03:04:05.678Z"), ("a-3", "yesterday")] {
        index.apply(caused(name, 1, at));
    }
    let arrivals = index.snapshot().unwrap().1.arrivals;
    let at = SystemTime::from(later.parse::<jiff::Timestamp>().unwrap());
    assert_eq!(*arrivals, Arrivals { services: 1, slices: 3, triggered: vec![(Family::V4, at)] });
    // The same again is no change, and a slice that goes tells the time of something else.
    index.apply(caused("a-1", 1, &later));
    assert!(!index.changed());
    index.remove(Kind::Slice, &ObjectName::new("default", "a-1"));
    let arrivals = index.snapshot().unwrap().1.arrivals;
    assert_eq!(*arrivals, Arrivals { slices: 1, ..Arrivals::default() });
}

#[test]
fn only_what_changed_is_dirty() {
    let mut index = Index::default();
    index.apply(service("a", 1));
    index.apply(slice("a-1", "a", 1));
    index.apply(node("w1", 1));
    let (first, change) = index.snapshot().unwrap();
    assert_eq!((names(&change).unwrap(), change.nodes), (vec!["a".to_owned()], true));
    index.apply(service("a", 1));
    index.apply(slice("a-1", "a", 1));
    index.apply(node("w1", 1));
    assert!(index.snapshot().is_none(), "the same again changes nothing");
    index.apply(slice("a-1", "b", 1));
    let (second, change) = index.snapshot().unwrap();
    assert_eq!(names(&change).unwrap(), ["a", "b"], "a slice that changes its Service changes both");
    assert!(!change.nodes && second.slices.len() == 1);
    assert_eq!(second.generation, first.generation + 1);
    assert!(Arc::ptr_eq(&first.nodes["w1"], &second.nodes["w1"]));
}

#[test]
fn a_relist_removes_only_at_its_end_and_only_what_it_lacks() {
    let mut index = Index::default();
    for name in ["a", "b", "c"] {
        index.apply(service(name, 1));
    }
    index.apply(refused("d"));
    index.snapshot().unwrap();
    index.begin(Kind::Service);
    index.apply(service("b", 1));
    assert!(!index.changed(), "nothing is gone yet");
    index.begin(Kind::Service);
    index.apply(service("b", 2));
    index.finish(Kind::Service);
    let (snapshot, change) = index.snapshot().unwrap();
    assert_eq!(snapshot.services.len(), 1);
    assert_eq!(*snapshot.problems, [], "a refused object that is gone is no problem");
    assert_eq!(names(&change).unwrap(), ["a", "b", "c"]);
}

#[test]
fn a_refused_version_counts_as_absent_and_a_good_one_ends_the_problem() {
    let mut index = Index::default();
    index.apply(service("a", 1));
    index.apply(service("b", 2));
    index.apply(refused("a"));
    let (snapshot, _) = index.snapshot().unwrap();
    assert_eq!((snapshot.services.len(), snapshot.problems.len()), (1, 1));
    assert_eq!(index.count(Kind::Service), (1, 1));
    index.apply(service("a", 3));
    let (snapshot, _) = index.snapshot().unwrap();
    assert_eq!((snapshot.services.len(), snapshot.problems.len()), (2, 0));
}

/// One thing that can happen to an object.
#[derive(Clone, Debug)]
enum Happening {
    Set(u8, u8),
    Slice(u8, u8, u8),
    Node(u8, u8),
    Refuse(u8),
    RemoveService(u8),
    RemoveSlice(u8),
    Repeat,
    Relist,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        (0..6_u8, 1..5_u8).prop_map(|(n, v)| Happening::Set(n, v)),
        (0..6_u8, 0..6_u8, 1..5_u8).prop_map(|(n, s, v)| Happening::Slice(n, s, v)),
        (0..3_u8, 1..5_u8).prop_map(|(n, v)| Happening::Node(n, v)),
        (0..6_u8).prop_map(Happening::Refuse),
        (0..6_u8).prop_map(Happening::RemoveService),
        (0..6_u8).prop_map(Happening::RemoveSlice),
        Just(Happening::Repeat),
        Just(Happening::Relist),
    ]
}

type World = BTreeMap<(Kind, ObjectName), Entry>;

fn list(index: &mut Index, world: &World, order: &[Pick]) {
    let mut entries: Vec<Entry> = world.values().cloned().collect();
    for kind in Kind::ALL {
        index.begin(kind);
    }
    for pick in order {
        if !entries.is_empty() {
            let at = pick.index(entries.len());
            index.apply(entries.swap_remove(at));
        }
    }
    entries.into_iter().for_each(|entry| index.apply(entry));
    for kind in Kind::ALL {
        index.finish(kind);
    }
}

fn remove(index: &mut Index, world: &mut World, kind: Kind, name: &str) {
    let key = ObjectName::new("default", name);
    world.remove(&(kind, key.clone()));
    index.remove(kind, &key);
}

fn happen(index: &mut Index, world: &mut World, happening: &Happening, order: &[Pick]) {
    let entry = match happening {
        Happening::Set(n, v) => service(&format!("s{n}"), *v),
        Happening::Slice(n, s, v) => slice(&format!("e{n}"), &format!("s{s}"), *v),
        Happening::Node(n, v) => node(&format!("w{n}"), *v),
        Happening::Refuse(n) => refused(&format!("s{n}")),
        Happening::RemoveService(n) => return remove(index, world, Kind::Service, &format!("s{n}")),
        Happening::RemoveSlice(n) => return remove(index, world, Kind::Slice, &format!("e{n}")),
        Happening::Repeat => {
            world.values().cloned().for_each(|entry| index.apply(entry));
            return;
        }
        Happening::Relist => return list(index, world, order),
    };
    world.insert((entry.kind, entry.key.clone()), entry.clone());
    index.apply(entry);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_snapshot_depends_on_the_objects_only(
        history in prop::collection::vec(happening(), 0..60),
        order in prop::collection::vec(any::<Pick>(), 0..20),
        cuts in prop::collection::vec(any::<bool>(), 60),
    ) {
        let (mut lived, mut world) = (Index::default(), World::new());
        let mut last = Snapshot::default();
        for (happening, cut) in history.iter().zip(&cuts) {
            happen(&mut lived, &mut world, happening, &order);
            if *cut && let Some((snapshot, change)) = lived.snapshot() {
                prop_assert!(covers(&last, &snapshot, &change));
                last = snapshot;
            }
        }
        let mut fresh = Index::default();
        list(&mut fresh, &world, &order);
        lived.mark_all();
        fresh.mark_all();
        let (mut lived, _) = lived.snapshot().unwrap();
        let (fresh, _) = fresh.snapshot().unwrap();
        lived.generation = fresh.generation;
        prop_assert_eq!(lived, fresh);
    }
}

/// Whether the change names every Service that differs.
fn covers(old: &Snapshot, new: &Snapshot, change: &Change) -> bool {
    let dirty = change.services.as_ref().unwrap();
    let named =
        old.services.keys().chain(new.services.keys()).chain(old.slices.keys()).chain(new.slices.keys());
    let services = named
        .filter(|n| old.services.get(*n) != new.services.get(*n) || old.slices_of(n) != new.slices_of(n));
    services.into_iter().all(|n| dirty.contains(n)) && (change.nodes || old.nodes == new.nodes)
}

// The task.

struct Task {
    to: mpsc::Sender<Message>,
    subscriber: Subscriber,
    _stop: watch::Sender<bool>,
}

fn start(options: Options, stored: Option<Snapshot>) -> Task {
    let (to, inbox) = mpsc::channel(16);
    let (publisher, subscriber) = channel();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(IndexTask::new("test".to_owned(), inbox, publisher, options, stored).run(stopped));
    Task { to, subscriber, _stop: stop }
}

impl Task {
    async fn tell(&self, message: Message) {
        self.to.send(message).await.unwrap();
    }

    async fn sync(&self) {
        self.sync_with(None).await;
    }

    async fn sync_with(&self, entry: Option<Entry>) {
        let mut entry = entry.map(Box::new);
        for kind in Kind::ALL {
            self.tell(Message::Begin(kind)).await;
            if let Some(entry) = entry.take_if(|entry| entry.kind == kind) {
                self.tell(Message::Apply(entry)).await;
            }
            self.tell(Message::Finish(kind)).await;
            self.tell(Message::Contact(Some(kind), None)).await;
        }
    }

    async fn nothing_for(&mut self, duration: Duration) {
        assert!(timeout(duration, self.subscriber.next()).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_leaves_before_every_kind_has_synced() {
    let mut task = start(Options::default(), None);
    for kind in [Kind::Service, Kind::Slice, Kind::Node] {
        task.tell(Message::Begin(kind)).await;
        task.tell(Message::Finish(kind)).await;
    }
    task.tell(Message::Apply(Box::new(service("a", 1)))).await;
    task.nothing_for(Duration::from_secs(60)).await;
    assert!(!task.subscriber.status().synced);
    task.tell(Message::Unlisted(Kind::Namespace)).await;
    let update = task.subscriber.next().await.unwrap();
    assert_eq!(update.dirty, Dirty::All);
    assert_eq!(update.snapshot.generation, 1);
    assert!(update.snapshot.namespaces.contains("default"));
    assert!(task.subscriber.status().synced);
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_one_publish_and_a_steady_stream_is_published_in_time() {
    let mut task = start(Options::default(), None);
    task.sync().await;
    task.subscriber.next().await.unwrap();
    for version in 1..9 {
        task.tell(Message::Apply(Box::new(service("a", version)))).await;
        task.tell(Message::Apply(Box::new(service("b", version)))).await;
    }
    let update = task.subscriber.next().await.unwrap();
    assert_eq!(update.snapshot.generation, 2);
    assert_eq!(update.snapshot.services.len(), 2);
    let started = Instant::now();
    let stream = async {
        for version in (1..200).cycle() {
            task.to.send(Message::Apply(Box::new(service("a", version)))).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = stream => {}
        update = task.subscriber.next() => assert_eq!(update.unwrap().snapshot.generation, 3),
    }
    assert!(started.elapsed() <= Duration::from_millis(70), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn lost_contact_turns_stale_after_a_while_and_back() {
    let mut task = start(Options::default(), None);
    task.sync().await;
    assert!(!task.subscriber.next().await.unwrap().snapshot.stale);
    assert!(task.subscriber.status().connected);
    task.tell(Message::Contact(Some(Kind::Service), Some("refused".to_owned()))).await;
    task.nothing_for(Duration::from_secs(9)).await;
    let status = task.subscriber.status();
    assert!(!status.connected && status.last_error.as_deref() == Some("refused"));
    let update = task.subscriber.next().await.unwrap();
    assert!(update.snapshot.stale);
    assert_eq!(update.dirty, Dirty::Services(BTreeSet::new()));
    task.nothing_for(Duration::from_secs(60)).await;
    task.tell(Message::Contact(Some(Kind::Service), None)).await;
    assert!(!task.subscriber.next().await.unwrap().snapshot.stale);
    assert!(task.subscriber.status().connected && task.subscriber.status().last_error.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stored_snapshot_is_served_only_while_there_is_none_better() {
    let mut stored = Index::default();
    stored.apply(service("old", 1));
    let (stored, _) = stored.snapshot().unwrap();
    let mut task = start(Options::default(), Some(stored.clone()));
    task.nothing_for(Duration::from_millis(1900)).await;
    let update = task.subscriber.next().await.unwrap();
    assert!(update.snapshot.stale && update.dirty == Dirty::All);
    assert_eq!(update.snapshot.services, stored.services);
    task.sync_with(Some(service("new", 1))).await;
    let update = task.subscriber.next().await.unwrap();
    assert!(!update.snapshot.stale && update.dirty == Dirty::All);
    assert_eq!(update.snapshot.services.keys().map(|n| n.name.to_string()).collect::<Vec<_>>(), ["new"]);

    let mut quick = start(Options::default(), Some(stored));
    quick.sync().await;
    assert_eq!(quick.subscriber.next().await.unwrap().snapshot.services.len(), 0);
    advance(Duration::from_secs(5)).await;
    quick.nothing_for(Duration::from_secs(5)).await;
}
