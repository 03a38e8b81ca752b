use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use netd_model::{Dirty, ObjectName, Snapshot};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::{Error, ManifestsConfig, Options, Source, Subscriber, Update, channel, run};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80, targetPort: 8080}]
";

const SLICE: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  labels: {kubernetes.io/service-name: web}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [172.16.1.2]}]
";

struct Running {
    subscriber: Subscriber,
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), Error>>,
}

fn start(dir: &Path) -> Running {
    let (publisher, subscriber) = channel();
    let (stop, stopped) = watch::channel(false);
    let config = ManifestsConfig { dir: dir.to_owned(), poll: Duration::from_millis(5) };
    let task = tokio::spawn(run(Source::Manifests(config), Options::default(), publisher, stopped));
    Running { subscriber, stop, task }
}

impl Running {
    /// The first update whose snapshot is as wanted.
    async fn until(&mut self, wanted: impl Fn(&Snapshot) -> bool) -> Update {
        let search = async {
            loop {
                let update = self.subscriber.next().await.expect("the source runs");
                if wanted(&update.snapshot) {
                    return update;
                }
            }
        };
        timeout(Duration::from_secs(10), search).await.expect("the wanted snapshot comes")
    }
}

/// Writes like an editor that replaces.
fn put(dir: &Path, name: &str, text: &str) {
    let new = dir.join(format!(".{name}.new"));
    fs::write(&new, text).unwrap();
    fs::rename(new, dir.join(name)).unwrap();
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

#[tokio::test]
async fn objects_follow_the_files() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "web.yaml", &format!("{SERVICE}---\n{SLICE}"));
    let mut running = start(dir.path());
    let first = running.until(|_| true).await;
    assert_eq!(first.dirty, Dirty::All);
    assert!(first.snapshot.services.contains_key(&name("web")));
    assert_eq!(first.snapshot.slices_of(&name("web")).len(), 1);
    assert!(first.snapshot.namespaces.contains("default"));
    assert!(first.snapshot.problems.is_empty() && !first.snapshot.stale);

    put(dir.path(), "web.yaml", &format!("{SERVICE}---\n{}", SLICE.replace("172.16.1.2", "172.16.1.3")));
    let moved = running.until(|s| s.generation > 1).await;
    assert_eq!(moved.dirty, Dirty::Services([name("web")].into()));
    let endpoints = &moved.snapshot.slices_of(&name("web"))[0].endpoints;
    assert_eq!(endpoints[0].address.to_string(), "172.16.1.3");
    assert!(
        Arc::ptr_eq(&first.snapshot.services[&name("web")], &moved.snapshot.services[&name("web")]),
        "what did not change is shared"
    );

    put(dir.path(), "other.yml", &SERVICE.replace("name: web", "name: other").replace("0.10", "0.11"));
    running.until(|s| s.services.len() == 2).await;
    fs::remove_file(dir.path().join("web.yaml")).unwrap();
    let gone = running.until(|s| s.services.len() == 1).await;
    assert!(gone.snapshot.slices.is_empty());
    running.stop.send(true).unwrap();
    running.task.await.unwrap().unwrap();
    assert!(running.subscriber.next().await.is_none());
}

#[tokio::test]
async fn a_bad_document_is_named_and_the_others_count() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "# a comment\n---\n{SERVICE}---\nkind: [unclosed\n---\n{SLICE}---\nmetadata: {{name: x}}\n---\n\
         apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: ignored}}\n--- # next\n{}",
        SERVICE.replace("name: web", "name: bad").replace("port: 80,", "port: 70000,")
    );
    put(dir.path(), "all.yaml", &text);
    put(dir.path(), "binary.yaml", "\u{0}\u{1}");
    fs::write(dir.path().join("latin.yaml"), [0xff, 0xfe, b'a', 0xe9]).unwrap();
    put(dir.path(), "notes.txt", "not a manifest");
    let mut running = start(dir.path());
    let snapshot = running.until(|_| true).await.snapshot;
    assert_eq!(snapshot.services.len(), 1);
    assert_eq!(snapshot.slices_of(&name("web")).len(), 1);
    let named: Vec<(&str, &str)> =
        snapshot.problems.iter().map(|p| (p.kind.as_str(), p.object.as_str())).collect();
    for expected in [
        ("Manifest", "all.yaml#2"),
        ("Manifest", "all.yaml#4"),
        ("Service", "default/bad"),
        ("Manifest", "binary.yaml#1"),
        ("Manifest", "latin.yaml"),
    ] {
        assert!(named.contains(&expected), "{expected:?} in {:#?}", snapshot.problems);
    }
    assert_eq!(named.len(), 5, "{:#?}", snapshot.problems);
    let bad = snapshot.problems.iter().find(|p| p.object == "default/bad").unwrap();
    assert!(bad.message.contains("70000") && bad.message.contains("all.yaml#6"), "{bad:?}");

    put(dir.path(), "all.yaml", SERVICE);
    fs::remove_file(dir.path().join("binary.yaml")).unwrap();
    fs::remove_file(dir.path().join("latin.yaml")).unwrap();
    running.until(|s| s.problems.is_empty() && s.services.len() == 1 && s.slices.is_empty()).await;
}

#[tokio::test]
async fn lists_json_and_repeated_objects_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    put(
        dir.path(),
        "a.json",
        r#"{"apiVersion":"v1","kind":"List","items":[
            {"apiVersion":"v1","kind":"Namespace","metadata":{"name":"empty"}},
            {"apiVersion":"v1","kind":"Node","metadata":{"name":"w1"},"spec":{"podCIDR":"172.16.1.0/24"},
             "status":{"addresses":[{"type":"InternalIP","address":"192.168.1.101"}]}},
            {"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},
             "spec":{"clusterIP":"10.96.0.10","ports":[{"port":80}]}}]}"#,
    );
    put(
        dir.path(),
        "b.yaml",
        "apiVersion: v1\nkind: ServiceList\nitems: [{metadata: {name: two}, spec: {clusterIP: None}}]\n",
    );
    put(dir.path(), "c.yaml", &SERVICE.replace("0.10", "0.99"));
    put(dir.path(), "d.yaml", &SERVICE.replace("name: web", "name: unaddressed").replace("clusterIP", "x"));
    let mut running = start(dir.path());
    let snapshot = running.until(|_| true).await.snapshot;
    assert_eq!(snapshot.services.len(), 2);
    assert!(snapshot.services[&name("two")].headless);
    assert_eq!(snapshot.services[&name("web")].cluster_ips[0].to_string(), "10.96.0.10");
    assert_eq!(snapshot.nodes["w1"].pod_cidrs[0].to_string(), "172.16.1.0/24");
    assert!(snapshot.namespaces.contains("empty"));
    let objects: Vec<&str> = snapshot.problems.iter().map(|p| p.object.as_str()).collect();
    assert_eq!(objects, ["c.yaml#1", "default/unaddressed"], "{:#?}", snapshot.problems);
}

#[tokio::test]
async fn what_a_server_gives_out_once_is_refused_the_second_time() {
    let dir = tempfile::tempdir().unwrap();
    let node_port = |n: &str, ip: &str| {
        SERVICE
            .replace("name: web", &format!("name: {n}"))
            .replace("10.96.0.10", ip)
            .replace("targetPort", "nodePort: 30080, targetPort")
            .replace("clusterIP", "type: NodePort\n  clusterIP")
    };
    put(dir.path(), "a.yaml", &node_port("a", "10.96.0.10"));
    put(dir.path(), "b.yaml", &node_port("b", "10.96.0.11"));
    put(dir.path(), "c.yaml", &SERVICE.replace("name: web", "name: c"));
    let mut running = start(dir.path());
    let snapshot = running.until(|_| true).await.snapshot;
    assert_eq!(snapshot.services.keys().cloned().collect::<Vec<_>>(), [name("a")]);
    let messages: Vec<&str> = snapshot.problems.iter().map(|p| p.message.as_str()).collect();
    assert!(messages[0].contains("30080/tcp belongs to default/a"), "{messages:?}");
    assert!(messages[1].contains("10.96.0.10 belongs to default/a"), "{messages:?}");
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    running.until(|s| s.services.len() == 2 && s.problems.is_empty()).await;
}

#[tokio::test]
async fn a_new_service_takes_nothing_from_one_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "web.yaml", SERVICE);
    let mut running = start(dir.path());
    running.until(|s| s.services.len() == 1).await;
    // Read before web.yaml, by its name.
    put(dir.path(), "a.yaml", &SERVICE.replace("name: web", "name: thief"));
    let snapshot = running.until(|s| !s.problems.is_empty()).await.snapshot;
    assert_eq!(snapshot.services.keys().cloned().collect::<Vec<_>>(), [name("web")]);
    assert!(snapshot.problems[0].message.contains("belongs to default/web"), "{:?}", snapshot.problems);
}

#[tokio::test]
async fn a_swapped_directory_and_a_mounted_config_map_are_followed() {
    let parent = tempfile::tempdir().unwrap();
    let versions = |n: &str, text: &str| {
        let dir = parent.path().join(n);
        fs::create_dir(&dir).unwrap();
        put(&dir, "web.yaml", text);
        dir
    };
    versions("v1", SERVICE);
    versions("v2", &SERVICE.replace("0.10", "0.20"));
    // As kubelet mounts a ConfigMap: files link through ..data, which is replaced by rename.
    let mount = parent.path().join("mount");
    fs::create_dir(&mount).unwrap();
    std::os::unix::fs::symlink("../v1", mount.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/web.yaml", mount.join("web.yaml")).unwrap();
    let mut running = start(&mount);
    running.until(|s| s.services[&name("web")].cluster_ips[0].to_string() == "10.96.0.10").await;
    std::os::unix::fs::symlink("../v2", mount.join("..new")).unwrap();
    fs::rename(mount.join("..new"), mount.join("..data")).unwrap();
    running.until(|s| s.services[&name("web")].cluster_ips[0].to_string() == "10.96.0.20").await;
    // The whole directory.
    fs::rename(&mount, parent.path().join("old")).unwrap();
    fs::rename(parent.path().join("v1"), &mount).unwrap();
    running.until(|s| s.services[&name("web")].cluster_ips[0].to_string() == "10.96.0.10").await;
}

#[tokio::test]
async fn a_directory_that_vanishes_keeps_its_objects_and_loses_contact() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("dir");
    fs::create_dir(&dir).unwrap();
    put(&dir, "web.yaml", SERVICE);
    let mut running = start(&dir);
    running.until(|s| s.services.len() == 1).await;
    fs::rename(&dir, parent.path().join("away")).unwrap();
    let lost = async {
        while running.subscriber.status().connected {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(10), lost).await.unwrap();
    let status = running.subscriber.status();
    assert!(status.synced && status.last_error.unwrap().contains("read directory"));
    assert_eq!(running.subscriber.latest().unwrap().services.len(), 1);
    fs::rename(parent.path().join("away"), &dir).unwrap();
    put(&dir, "web.yaml", &SERVICE.replace("0.10", "0.20"));
    running.until(|s| s.services[&name("web")].cluster_ips[0].to_string() == "10.96.0.20").await;
    assert!(running.subscriber.status().connected);
}

#[tokio::test]
async fn a_missing_directory_ends_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&dir.path().join("nowhere"));
    let error = running.task.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
}

#[test]
fn documents_are_split_where_yaml_says_so() {
    let texts = |text: &'static str| -> Vec<(usize, &str)> { super::parse::split(text) };
    assert_eq!(texts(""), []);
    assert_eq!(texts("# only a comment\n---\n---\n"), []);
    assert_eq!(texts("a: 1\n---\nb: 2"), [(1, "a: 1\n"), (3, "b: 2")]);
    assert_eq!(
        texts("---\r\na: 1\r\n--- {b: 2}\n...\nc: 3\n"),
        [(2, "a: 1\r\n"), (3, " {b: 2}\n"), (5, "c: 3\n")]
    );
    assert_eq!(texts("a: |\n  ---\n  x\n----\n"), [(1, "a: |\n  ---\n  x\n----\n")]);
}
