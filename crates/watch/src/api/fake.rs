//! An API server for the tests: lists, pages, watches, bookmarks, streaming lists, and faults on demand.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// What the server does wrong, or cannot do.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    /// No discovery.k8s.io group.
    pub(super) no_slices: bool,
    /// What becomes of a streaming list.
    pub(super) streaming: Streaming,
    /// Statuses instead of answers, by plural.
    pub(super) refuse: BTreeMap<&'static str, u16>,
    /// Lists of these plurals wait.
    pub(super) hold: Vec<&'static str>,
    /// Requests are read and never answered; watches fall silent.
    pub(super) silent: bool,
    /// An expired watch is refused with HTTP 410, not with an event.
    pub(super) hard_gone: bool,
    /// The bearer token that is required.
    pub(super) token: Option<String>,
    /// The minor version.
    pub(super) minor: Option<&'static str>,
    /// Watches end as soon as they begin.
    pub(super) short_watches: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Streaming {
    #[default]
    Yes,
    /// Refused with 422.
    Rejected,
    /// An error event with 500, as with an old etcd.
    Broken,
    /// Taken for a plain watch.
    Ignored,
}

#[derive(Debug, Default)]
struct World {
    version: u64,
    objects: BTreeMap<&'static str, BTreeMap<String, Value>>,
    log: Vec<(u64, &'static str, String)>,
    compacted: u64,
    faults: Faults,
    requests: Vec<String>,
}

/// The server; ends with all its connections when dropped.
pub(super) struct FakeApi {
    pub(super) address: SocketAddr,
    world: Arc<Mutex<World>>,
    bump: watch::Sender<u64>,
    running: Option<JoinHandle<()>>,
}

type Shared = (Arc<Mutex<World>>, watch::Receiver<u64>);

const PATHS: [(&str, &str, &str); 5] = [
    ("services", "/api/v1/services", "Service"),
    ("endpoints", "/api/v1/endpoints", "Endpoints"),
    ("nodes", "/api/v1/nodes", "Node"),
    ("namespaces", "/api/v1/namespaces", "Namespace"),
    ("endpointslices", "/apis/discovery.k8s.io/v1/endpointslices", "EndpointSlice"),
];

fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap()
}

impl FakeApi {
    pub(super) async fn start() -> Self {
        let mut server = Self {
            address: "127.0.0.1:0".parse().unwrap(),
            world: Arc::default(),
            bump: watch::channel(0).0,
            running: None,
        };
        lock(&server.world).version = 100;
        server.up().await;
        server
    }

    /// Listens, at the same address as before.
    pub(super) async fn up(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let shared = (Arc::clone(&self.world), self.bump.subscribe());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, shared.clone()));
            }
        });
        self.running = Some(task);
    }

    /// Closes the port and every connection.
    pub(super) async fn down(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
            assert!(running.await.is_err(), "a server runs until it is stopped");
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.world).faults);
        self.bump.send_modify(|n| *n += 1);
    }

    pub(super) fn requests(&self) -> Vec<String> {
        lock(&self.world).requests.clone()
    }

    /// Creates or changes an object, as kubectl apply.
    pub(super) fn put(&self, plural: &'static str, mut object: Value) {
        let mut world = lock(&self.world);
        world.version += 1;
        let version = world.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let old = world.objects.entry(plural).or_default().insert(key(&object), object.clone());
        let event = if old.is_some() { "MODIFIED" } else { "ADDED" };
        world.log.push((version, plural, event_of(event, &object)));
        drop(world);
        self.bump.send_modify(|n| *n += 1);
    }

    pub(super) fn delete(&self, plural: &'static str, name: &str) {
        let mut world = lock(&self.world);
        world.version += 1;
        let version = world.version;
        let mut object = world.objects.get_mut(plural).unwrap().remove(name).expect("the object exists");
        object["metadata"]["resourceVersion"] = version.to_string().into();
        world.log.push((version, plural, event_of("DELETED", &object)));
        drop(world);
        self.bump.send_modify(|n| *n += 1);
    }

    /// Tells every watch of the newest version.
    pub(super) fn bookmark(&self) {
        let mut world = lock(&self.world);
        world.version += 1;
        let version = world.version;
        for (plural, _, kind) in PATHS {
            let object = json!({"kind": kind, "apiVersion": "v1",
                "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null}});
            world.log.push((version, plural, event_of("BOOKMARK", &object)));
        }
        drop(world);
        self.bump.send_modify(|n| *n += 1);
    }

    /// Forgets the history: watches from an older version expire.
    pub(super) fn compact(&self) {
        let mut world = lock(&self.world);
        world.version += 1;
        world.compacted = world.version;
        world.log.clear();
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
    }
}

fn key(object: &Value) -> String {
    let meta = &object["metadata"];
    match meta["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{}", meta["name"].as_str().unwrap_or("?")),
        None => meta["name"].as_str().unwrap_or("?").to_owned(),
    }
}

async fn serve(mut stream: TcpStream, shared: Shared) {
    while let Some(head) = read_head(&mut stream).await {
        let target = head.split(' ').nth(1).unwrap_or("/").to_owned();
        lock(&shared.0).requests.push(target.clone());
        let faults = lock(&shared.0).faults.clone();
        if faults.silent {
            std::future::pending::<()>().await;
        }
        let authorized = faults.token.as_ref().is_none_or(|t| head.contains(&format!("Bearer {t}")));
        let done = if authorized {
            answer(&mut stream, &target, &faults, &shared).await
        } else {
            respond(&mut stream, 401, &status(401, "Unauthorized")).await
        };
        if done.is_err() {
            return;
        }
    }
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    // Header names arrive in lower case.
    Some(String::from_utf8_lossy(&head).into_owned())
}

async fn answer(
    stream: &mut TcpStream,
    target: &str,
    faults: &Faults,
    shared: &Shared,
) -> std::io::Result<()> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let field = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
    };
    match path {
        "/version" => {
            let minor = faults.minor.unwrap_or("36");
            let mut version = json!({"major": "1", "minor": minor, "gitVersion": format!("v1.{minor}.0")});
            for name in ["buildDate", "compiler", "gitCommit", "gitTreeState", "goVersion", "platform"] {
                version[name] = "".into();
            }
            return respond(stream, 200, &version).await;
        }
        "/apis/discovery.k8s.io/v1" if !faults.no_slices => {
            let resource = json!({"name": "endpointslices", "singularName": "endpointslice", "namespaced": true,
                "kind": "EndpointSlice", "verbs": ["list", "watch"]});
            let list = json!({"kind": "APIResourceList", "apiVersion": "v1",
                "groupVersion": "discovery.k8s.io/v1", "resources": [resource]});
            return respond(stream, 200, &list).await;
        }
        _ => {}
    }
    let known =
        PATHS.iter().find(|(plural, p, _)| *p == path && !(faults.no_slices && *plural == "endpointslices"));
    let Some((plural, _, kind)) = known else {
        return respond(stream, 404, &status(404, "NotFound")).await;
    };
    if let Some(code) = faults.refuse.get(plural) {
        return respond(stream, *code, &status(*code, "Refused")).await;
    }
    let initial = field("sendInitialEvents").is_some();
    if initial && faults.streaming == Streaming::Rejected {
        return respond(stream, 422, &status(422, "Invalid")).await;
    }
    if initial || field("watch").is_none() {
        released(plural, shared).await;
    }
    if field("watch").is_some() {
        let from = field("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
        return follow(stream, plural, from, initial, shared).await;
    }
    let page = list(plural, kind, field("limit"), field("continue"), &shared.0);
    respond(stream, 200, &page).await
}

/// Waits until the plural is not held back.
async fn released(plural: &str, shared: &Shared) {
    let mut bump = shared.1.clone();
    while lock(&shared.0).faults.hold.contains(&plural) {
        bump.changed().await.unwrap();
    }
}

fn list(
    plural: &str,
    kind: &str,
    limit: Option<String>,
    from: Option<String>,
    world: &Mutex<World>,
) -> Value {
    let world = lock(world);
    let limit: usize = limit.and_then(|l| l.parse().ok()).unwrap_or(usize::MAX);
    let from: usize = from.and_then(|f| f.parse().ok()).unwrap_or(0);
    let all: Vec<&Value> = world.objects.get(plural).map(|o| o.values().collect()).unwrap_or_default();
    let items: Vec<&Value> = all.iter().skip(from).take(limit).copied().collect();
    let mut metadata = json!({"resourceVersion": world.version.to_string()});
    if from + items.len() < all.len() {
        metadata["continue"] = (from + items.len()).to_string().into();
    }
    json!({"kind": format!("{kind}List"), "apiVersion": "v1", "metadata": metadata, "items": items})
}

async fn follow(
    stream: &mut TcpStream,
    plural: &'static str,
    from: u64,
    initial: bool,
    shared: &Shared,
) -> std::io::Result<()> {
    let mut bump = shared.1.clone();
    let (mut seen, compacted, faults) = {
        let world = lock(&shared.0);
        (from, world.compacted, world.faults.clone())
    };
    if !initial && from < compacted && faults.hard_gone {
        return respond(stream, 410, &status(410, "Expired")).await;
    }
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    if !initial && from < compacted {
        chunk(stream, &event_of("ERROR", &status(410, "Expired"))).await?;
        return stream.write_all(b"0\r\n\r\n").await;
    }
    if faults.short_watches && !initial {
        return stream.write_all(b"0\r\n\r\n").await;
    }
    if initial && faults.streaming == Streaming::Broken {
        chunk(stream, &event_of("ERROR", &status(500, "InternalError"))).await?;
        return stream.write_all(b"0\r\n\r\n").await;
    }
    if initial {
        let (version, objects) = {
            let world = lock(&shared.0);
            let objects = world.objects.get(plural).map(|o| o.values().cloned().collect::<Vec<_>>());
            (world.version, objects.unwrap_or_default())
        };
        for object in objects {
            chunk(stream, &event_of("ADDED", &object)).await?;
        }
        if faults.streaming == Streaming::Yes {
            let object = json!({"kind": "Any", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string(),
                "annotations": {"k8s.io/initial-events-end": "true"}}});
            chunk(stream, &event_of("BOOKMARK", &object)).await?;
        }
        seen = version;
    }
    loop {
        let (events, silent): (Vec<(u64, String)>, bool) = {
            let world = lock(&shared.0);
            let new = world.log.iter().filter(|(version, of, _)| *version > seen && *of == plural);
            (new.map(|(version, _, event)| (*version, event.clone())).collect(), world.faults.silent)
        };
        if silent {
            std::future::pending::<()>().await;
        }
        for (version, event) in events {
            chunk(stream, &event).await?;
            seen = version;
        }
        bump.changed().await.map_err(std::io::Error::other)?;
    }
}

/// With the type first, as Go writes the fields of its WatchEvent.
fn event_of(kind: &str, object: &Value) -> String {
    format!(r#"{{"type":"{kind}","object":{object}}}"#)
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
        "reason": reason, "message": format!("{reason} on purpose")})
}

async fn respond(stream: &mut TcpStream, code: u16, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await
}

async fn chunk(stream: &mut TcpStream, event: &str) -> std::io::Result<()> {
    let line = format!("{event}\n");
    stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).await
}
