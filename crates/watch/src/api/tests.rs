use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use netd_model::{LocalPods, NodePortAddresses, NodeView, ObjectName, ServicePlan, Snapshot, plan};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::connection::Timeouts;
use super::fake::{FakeApi, Streaming};
use super::{Connection, follow};
use crate::index::task::{IndexTask, QUEUE};
use crate::{ApiConfig, ManifestsConfig, Options, Source, SourceStatus, Subscriber, channel, run};

/// Longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(20);

struct Client {
    subscriber: Subscriber,
    _stop: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

async fn connect(server: &FakeApi) -> Client {
    connect_with(server, quick(), Options::default()).await
}

/// As in production, but without long waits.
fn quick() -> Timeouts {
    Timeouts {
        streaming: Duration::from_millis(300),
        discovery: Duration::from_millis(50),
        ..Timeouts::default()
    }
}

async fn connect_with(server: &FakeApi, timeouts: Timeouts, options: Options) -> Client {
    let config = ApiConfig { server: Some(server.url()), ..ApiConfig::default() };
    let connection = Connection::prepare(config).await.unwrap().with_timeouts(timeouts);
    let (to, inbox) = mpsc::channel(QUEUE);
    let (publisher, subscriber) = channel();
    let (stop, stopped) = watch::channel(false);
    let index = IndexTask::new(server.url(), inbox, publisher, options, None);
    let mut tasks = JoinSet::new();
    tasks.spawn(index.run(stopped));
    tasks.spawn(async move { follow(connection, to).await.unwrap() });
    Client { subscriber, _stop: stop, _tasks: tasks }
}

impl Client {
    async fn until(&mut self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> std::sync::Arc<Snapshot> {
        until(&mut self.subscriber, what, wanted).await
    }

    async fn status_until(&self, what: &str, wanted: impl Fn(&SourceStatus) -> bool) -> SourceStatus {
        eventually(what, || Some(self.subscriber.status()).filter(|status| wanted(status))).await
    }
}

async fn until(
    subscriber: &mut Subscriber,
    what: &str,
    wanted: impl Fn(&Snapshot) -> bool,
) -> std::sync::Arc<Snapshot> {
    let search = async {
        loop {
            let update = subscriber.next().await.expect("the source runs");
            if wanted(&update.snapshot) {
                return update.snapshot;
            }
        }
    };
    timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("{what}"))
}

async fn eventually<T>(what: &str, probe: impl Fn() -> Option<T>) -> T {
    let poll = async {
        loop {
            if let Some(found) = probe() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, poll).await.unwrap_or_else(|_| panic!("{what}"))
}

fn service(name: &str, ip: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80}]}})
}

fn slice(name: &str, service: &str, ips: &[&str]) -> Value {
    let endpoints: Vec<Value> = ips.iter().map(|ip| json!({"addresses": [ip], "nodeName": "w1"})).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
}

fn node(name: &str, ip: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"podCIDR": "172.16.1.0/24", "podCIDRs": ["172.16.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": ip}]}})
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

async fn filled() -> FakeApi {
    let server = FakeApi::start().await;
    server.put("namespaces", namespace("default"));
    server.put("namespaces", namespace("empty"));
    server.put("nodes", node("w1", "192.168.1.101"));
    server.put("services", service("web", "10.96.0.10"));
    server.put("endpointslices", slice("web-1", "web", &["172.16.1.2"]));
    server
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn addresses(snapshot: &Snapshot, service: &str) -> Vec<String> {
    let slices = snapshot.slices_of(&name(service)).iter();
    slices.flat_map(|slice| &slice.endpoints).map(|endpoint| endpoint.address.to_string()).collect()
}

#[tokio::test]
async fn objects_are_listed_and_followed() {
    let server = filled().await;
    let mut client = connect(&server).await;
    let first = client.until("the first snapshot", |_| true).await;
    assert_eq!(addresses(&first, "web"), ["172.16.1.2"]);
    assert_eq!(first.nodes["w1"].addresses.len(), 1);
    assert!(first.namespaces.contains("empty") && !first.stale);
    server.bookmark();
    server.put("services", service("db", "10.96.0.11"));
    client.until("an added service", |s| s.services.contains_key(&name("db"))).await;
    server.put("endpointslices", slice("web-1", "web", &["172.16.1.2", "172.16.1.3"]));
    client.until("a second endpoint", |s| addresses(s, "web").len() == 2).await;
    server.delete("services", "default/db");
    client.until("a deleted service", |s| s.services.len() == 1).await;
    server.delete("namespaces", "empty");
    client.until("a deleted namespace", |s| !s.namespaces.contains("empty")).await;
    let streamed = server.requests().iter().filter(|r| r.contains("sendInitialEvents=true")).count();
    assert_eq!(streamed, 4, "{:#?}", server.requests());
    assert!(server.requests().iter().all(|r| !r.contains("limit=")), "no plain list beside");
    let status = client.subscriber.status();
    assert!(status.connected && status.synced && status.kinds.iter().all(|kind| kind.connected));
    assert_eq!(status.kinds.iter().map(|kind| kind.objects).collect::<Vec<_>>(), [1, 1, 1, 1]);
}

#[tokio::test]
async fn nothing_leaves_while_one_kind_is_still_listed() {
    let server = filled().await;
    server.faults(|f| f.hold.push("endpointslices"));
    let mut client = connect(&server).await;
    client
        .status_until("services are listed", |s| s.kinds.iter().filter(|kind| kind.synced).count() == 3)
        .await;
    assert!(client.subscriber.latest().is_none());
    server.faults(|f| f.hold.clear());
    let first = client.until("the first snapshot", |_| true).await;
    assert_eq!((first.generation, addresses(&first, "web").len()), (1, 1));
}

#[tokio::test]
async fn servers_that_cannot_stream_lists_are_listed_in_pages() {
    for (streaming, minor) in [
        (Streaming::Rejected, "30"),
        (Streaming::Broken, "36"),
        (Streaming::Ignored, "36"),
        (Streaming::Rejected, "18+"),
    ] {
        let server = filled().await;
        for i in 0..1203 {
            server.put("services", service(&format!("s{i}"), &format!("10.97.{}.{}", i / 250, i % 250 + 1)));
        }
        server.faults(|f| {
            f.streaming = streaming;
            f.minor = Some(minor);
        });
        let mut client = connect(&server).await;
        let first = client.until("the first snapshot", |_| true).await;
        assert_eq!(first.services.len(), 1204);
        let streamed = server.requests().iter().any(|r| r.contains("sendInitialEvents=true"));
        assert_eq!(streamed, minor != "18+");
        server.put("services", service("late", "10.96.0.20"));
        client.until("a watch event", |s| s.services.contains_key(&name("late"))).await;
    }
}

#[tokio::test]
async fn an_expired_watch_lists_again_and_drops_only_what_is_gone() {
    for hard_gone in [false, true] {
        let mut server = filled().await;
        server.put("services", service("db", "10.96.0.11"));
        server.faults(|f| f.hard_gone = hard_gone);
        let mut client = connect(&server).await;
        client.until("both services", |s| s.services.len() == 2).await;
        server.down().await;
        server.delete("services", "default/db");
        server.put("endpointslices", slice("web-1", "web", &["172.16.1.9"]));
        server.compact();
        server.up().await;
        let mut seen = Vec::new();
        let search = async {
            loop {
                let snapshot = client.subscriber.next().await.unwrap().snapshot;
                seen.push((snapshot.services.len(), addresses(&snapshot, "web")));
                if seen.last() == Some(&(1, vec!["172.16.1.9".to_owned()])) {
                    return;
                }
            }
        };
        timeout(PATIENCE, search).await.expect("the state after the gap");
        assert!(seen.iter().all(|(services, addresses)| *services > 0 && addresses.len() == 1), "{seen:?}");
    }
}

#[tokio::test]
async fn the_first_change_after_an_outage_is_seen_within_a_second() {
    let mut server = filled().await;
    let options = Options { stale_after: Duration::from_millis(300), ..Options::default() };
    let mut client = connect_with(&server, Timeouts::default(), options).await;
    client.until("the first snapshot", |_| true).await;
    server.down().await;
    let lost = client.status_until("lost contact", |status| !status.connected).await;
    assert!(lost.last_error.is_some());
    let stale = client.until("a stale snapshot", |s| s.stale).await;
    assert_eq!(stale.services.len(), 1, "what was known stays");
    server.put("services", service("db", "10.96.0.11"));
    let back = Instant::now();
    server.up().await;
    client.until("the change", |s| s.services.len() == 2).await;
    assert!(back.elapsed() < Duration::from_millis(1500), "{:?}", back.elapsed());
    client.status_until("contact", |s| s.connected).await;
    eventually("fresh again", || client.subscriber.latest().filter(|s| !s.stale)).await;
    let relists =
        server.requests().iter().filter(|r| r.contains("services") && r.contains("Initial")).count();
    assert_eq!(relists, 1, "a watch that the server still knows is resumed");
}

#[tokio::test]
async fn a_silent_server_is_noticed() {
    let server = filled().await;
    let timeouts = Timeouts { watch_seconds: 1, read: Duration::from_millis(700), ..quick() };
    let options = Options { stale_after: Duration::from_millis(50), ..Options::default() };
    let mut client = connect_with(&server, timeouts, options).await;
    client.until("the first snapshot", |_| true).await;
    server.faults(|f| f.silent = true);
    client.until("stale", |s| s.stale).await;
    assert!(!client.subscriber.status().connected);
    server.put("services", service("db", "10.96.0.11"));
    server.faults(|f| f.silent = false);
    client.until("the change", |s| s.services.len() == 2).await;
}

#[tokio::test]
async fn endpoints_serve_until_the_server_has_slices() {
    let mut server = filled().await;
    server.put(
        "endpoints",
        json!({"metadata": {"name": "web", "namespace": "default"}, "subsets": [
            {"addresses": [{"ip": "172.16.1.7"}], "notReadyAddresses": [{"ip": "172.16.1.8"}],
             "ports": [{"port": 8080}]}]}),
    );
    server.faults(|f| {
        f.no_slices = true;
        f.minor = Some("18");
    });
    let mut client = connect(&server).await;
    let first = client.until("the first snapshot", |_| true).await;
    assert_eq!(addresses(&first, "web"), ["172.16.1.7", "172.16.1.8"]);
    assert!(client.subscriber.status().kinds.iter().any(|kind| kind.kind == "Endpoints"));
    server.down().await;
    server.faults(|f| f.no_slices = false);
    server.up().await;
    client.until("slices", |s| addresses(s, "web") == ["172.16.1.2"]).await;
    eventually("the kind", || {
        client.subscriber.status().kinds.iter().any(|kind| kind.kind == "EndpointSlice").then_some(())
    })
    .await;
}

#[tokio::test]
async fn namespaces_are_optional_and_other_kinds_are_not() {
    let server = filled().await;
    server.faults(|f| {
        f.refuse.insert("namespaces", 403);
        f.refuse.insert("nodes", 403);
    });
    let mut client = connect(&server).await;
    let status = client
        .status_until("what is refused", |s| s.kinds.iter().filter(|kind| kind.synced).count() == 3)
        .await;
    assert!(!status.synced && !status.connected);
    assert!(status.last_error.unwrap().contains("on purpose"));
    assert!(client.subscriber.latest().is_none());
    server.faults(|f| {
        f.refuse.remove("nodes");
    });
    let first = client.until("the first snapshot", |_| true).await;
    assert_eq!(first.namespaces.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), ["default"]);
    client.status_until("contact", |s| s.connected).await;
}

#[tokio::test]
async fn one_malformed_object_costs_no_other() {
    let server = filled().await;
    for (spec, n) in [(json!({"ports": "80"}), 1), (json!({"clusterIP": "10.96.0.300"}), 2), (json!(7), 3)] {
        let meta = json!({"name": format!("bad{n}"), "namespace": "default"});
        server.put("services", json!({"metadata": meta, "spec": spec}));
    }
    let mut client = connect(&server).await;
    let first = client.until("the first snapshot", |_| true).await;
    assert_eq!((first.services.len(), first.problems.len()), (1, 3), "{:#?}", first.problems);
    server
        .put("services", json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {"ports": 1}}));
    let second = client.until("a refused change", |s| s.problems.len() == 4).await;
    assert!(second.services.is_empty());
    server.delete("services", "default/bad1");
    server.put("services", service("web", "10.96.0.10"));
    client.until("a good change", |s| s.services.len() == 1 && s.problems.len() == 2).await;
}

#[tokio::test]
async fn a_server_that_ends_watches_at_once_is_not_asked_in_a_tight_loop() {
    let server = filled().await;
    server.faults(|f| {
        f.streaming = Streaming::Rejected;
        f.short_watches = true;
    });
    let mut client = connect(&server).await;
    client.until("the first snapshot", |_| true).await;
    let before = server.requests().len();
    let window = Duration::from_secs(1);
    let none = timeout(window, client.subscriber.next()).await;
    assert!(none.is_err(), "nothing changed");
    let asked = server.requests().len() - before;
    assert!(asked <= 4 * 7, "{asked} requests in a second");
    server.faults(|f| f.short_watches = false);
    server.put("services", service("db", "10.96.0.11"));
    client.until("the change", |s| s.services.len() == 2).await;
}

fn kubeconfig(path: &Path, url: &str, token: &str) {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": token}}]
    });
    fs::write(path, config.to_string()).unwrap();
}

#[tokio::test]
async fn refused_credentials_are_read_again() {
    let mut server = filled().await;
    server.faults(|f| f.token = Some("one".to_owned()));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    kubeconfig(&path, &server.url(), "one");
    let (publisher, mut subscriber) = channel();
    let (_stop, stopped) = watch::channel(false);
    let config = ApiConfig { kubeconfig: Some(path.clone()), ..ApiConfig::default() };
    tokio::spawn(run(Source::Api(config), Options::default(), publisher, stopped));
    until(&mut subscriber, "the first snapshot", |_| true).await;
    // The running watches end, and what they resume with is no longer good.
    server.down().await;
    server.faults(|f| f.token = Some("two".to_owned()));
    server.put("services", service("db", "10.96.0.11"));
    server.up().await;
    eventually("a refusal", || subscriber.status().last_error.filter(|error| error.contains("Unauthorized")))
        .await;
    kubeconfig(&path, &server.url(), "two");
    until(&mut subscriber, "the change", |s| s.services.len() == 2).await;
}

#[tokio::test]
async fn a_configuration_that_cannot_work_ends_the_start() {
    let missing = |config: ApiConfig| async move {
        let (publisher, _subscriber) = channel();
        let (_stop, stopped) = watch::channel(false);
        let ended = run(Source::Api(config), Options::default(), publisher, stopped);
        timeout(PATIENCE, ended).await.unwrap().unwrap_err().to_string()
    };
    let url = |url: &str| ApiConfig { server: Some(url.to_owned()), ..ApiConfig::default() };
    assert!(missing(url("not a url")).await.contains("https://HOST:PORT"));
    assert!(missing(url("10.0.0.1:6443")).await.contains("https://HOST:PORT"));
    let gone = Some("/nonexistent/file".into());
    assert!(
        missing(ApiConfig { kubeconfig: gone.clone(), ..ApiConfig::default() })
            .await
            .contains("/nonexistent")
    );
    assert!(missing(ApiConfig { token_file: gone, ..url("https://10.0.0.1:6443") }).await.contains("token"));
}

#[tokio::test]
async fn a_start_without_the_server_serves_the_stored_state() {
    let mut server = filled().await;
    let dir = tempfile::tempdir().unwrap();
    let options = Options { store: Some(dir.path().join("new/state.json")), ..Options::default() };
    let start = |server: &FakeApi| {
        let (publisher, subscriber) = channel();
        let (stop, stopped) = watch::channel(false);
        let config = ApiConfig { server: Some(server.url()), ..ApiConfig::default() };
        let task = tokio::spawn(run(Source::Api(config), options.clone(), publisher, stopped));
        (subscriber, stop, task)
    };
    let (mut subscriber, stop, task) = start(&server);
    let first = until(&mut subscriber, "the first snapshot", |_| true).await;
    server.put("services", service("db", "10.96.0.11"));
    let second = until(&mut subscriber, "the change", |s| s.services.len() == 2).await;
    stop.send(true).unwrap();
    timeout(PATIENCE, task).await.unwrap().unwrap().unwrap();
    assert!(first.generation < second.generation);

    server.down().await;
    let (mut subscriber, _stop, _task) = start(&server);
    let stored = until(&mut subscriber, "the stored snapshot", |_| true).await;
    assert!(stored.stale);
    assert_eq!((&stored.services, &stored.slices), (&second.services, &second.slices));
    assert_eq!((&stored.nodes, &stored.namespaces), (&second.nodes, &second.namespaces));
    assert!(!subscriber.status().synced && !subscriber.status().connected);
    server.up().await;
    server.delete("services", "default/db");
    until(&mut subscriber, "the real state", |s| !s.stale && s.services.len() == 1).await;
}

fn planned(snapshot: &Snapshot) -> ServicePlan {
    let node = NodeView {
        name: "w1".into(),
        zone: None,
        local_pods: LocalPods::None,
        node_port_addresses: NodePortAddresses::AllLocal,
        masquerade_all: false,
        allowed_external_ips: Vec::new(),
        answered_here: BTreeSet::new(),
    };
    plan(snapshot, &node)
}

#[tokio::test]
async fn the_api_and_a_directory_with_the_same_objects_give_the_same_plan() {
    let objects = [
        ("namespaces", namespace("default")),
        ("nodes", node("w1", "192.168.1.101")),
        ("services", service("web", "10.96.0.10")),
        ("endpointslices", slice("web-1", "web", &["172.16.1.2", "172.16.1.3"])),
        ("endpointslices", slice("web-2", "web", &["172.16.2.2"])),
        ("services", service("empty", "10.96.0.11")),
        (
            "services",
            json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "lb", "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.12", "clusterIPs": ["10.96.0.12", "fd00::12"],
                "ports": [{"name": "a", "port": 80, "protocol": "TCP", "nodePort": 30080},
                    {"name": "b", "port": 53, "protocol": "UDP", "nodePort": 30053}],
                "loadBalancerSourceRanges": ["10.0.0.0/8"], "externalTrafficPolicy": "Local",
                "internalTrafficPolicy": "Cluster", "healthCheckNodePort": 31000, "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}},
            "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1", "ipMode": "VIP"}]}}}),
        ),
    ];
    let server = FakeApi::start().await;
    let dir = tempfile::tempdir().unwrap();
    for (i, (plural, object)) in objects.into_iter().enumerate() {
        // By hand a manifest leaves out what the server would fill in.
        let mut written = object.clone();
        if let Some(spec) = written["spec"].as_object_mut().filter(|_| plural == "services") {
            if spec["clusterIPs"].as_array().is_some_and(|ips| ips.len() == 1) {
                spec.remove("clusterIPs");
                spec.remove("type");
            }
            spec.remove("internalTrafficPolicy");
            spec.remove("sessionAffinityConfig");
        }
        if let Some(port) = written.pointer_mut("/ports/0").and_then(Value::as_object_mut) {
            port.remove("name");
            port.remove("protocol");
        }
        if let Some(meta) = written["metadata"].as_object_mut() {
            meta.remove("namespace");
        }
        fs::write(dir.path().join(format!("{i}.yaml")), written.to_string()).unwrap();
        server.put(plural, object);
    }
    let mut client = connect(&server).await;
    let by_api = client.until("the API's snapshot", |_| true).await;
    let (publisher, mut subscriber) = channel();
    let (_stop, stopped) = watch::channel(false);
    let source = Source::Manifests(ManifestsConfig::new(dir.path()));
    tokio::spawn(run(source, Options::default(), publisher, stopped));
    let by_directory = until(&mut subscriber, "the directory's snapshot", |_| true).await;
    assert_eq!(*by_api.problems, []);
    assert_eq!(by_api, by_directory);
    let plan = planned(&by_api);
    assert_eq!(plan, planned(&by_directory));
    assert_ne!(plan, planned(&Snapshot::default()));
}
