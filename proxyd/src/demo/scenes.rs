//! What the demo shows, one function a step. Names and figures of the steps are stable: scripts read them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use netd_kernel::clock::{Clock, SystemClock, eventually};
use netd_lab::Place;
use netd_lab::agent::{AgentHandle, Connect, Load, Lookup};
use netd_lab::traffic::{Counts, Outcome};

use super::cluster::{Cluster, OUTSIDE};
use super::report::{Report, Step};

const WEB: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 10, 10));
const EMPTY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 10, 11));
const DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
const WEB_NAME: &str = "web.default.svc.cluster.local";
const NODE_PORT: u16 = 30080;
/// Web pods and their nodes.
const PODS: [(&str, &str); 3] = [("web-1", "w1"), ("web-2", "w2"), ("web-3", "w3")];
/// New connections a second under load.
const RATE: u32 = 400;
/// How long the load runs before and after what happens.
const CALM: Duration = Duration::from_millis(1500);

/// Plays one scene.
type Scene = fn(&mut Cluster, &Report) -> Result<Step>;

/// Plays every scene in order.
///
/// # Errors
/// When the stage itself breaks (a namespace, a daemon that does not start). A scene that goes wrong is a
/// failed step of the report, not an error.
pub(super) fn play(cluster: &mut Cluster, report: &mut Report) -> Result<()> {
    let scenes: [(&str, Scene); 11] = [
        ("topology", topology),
        ("netd-ready", netd_ready),
        ("pods", pods),
        ("pod-to-pod", pod_to_pod),
        ("service-by-name", service_by_name),
        ("headless", headless),
        ("node-port", node_port),
        ("no-endpoints", no_endpoints),
        ("endpoint-removed", endpoint_removed),
        ("endpoint-restored", endpoint_restored),
        ("sigkill-restart", sigkill_restart),
    ];
    for (name, scene) in scenes {
        let start = SystemClock.now();
        let step = scene(cluster, report).with_context(|| format!("step {name}"))?;
        report.done(step, SystemClock.now().duration_since(start))?;
    }
    Ok(())
}

fn topology(cluster: &mut Cluster, report: &Report) -> Result<Step> {
    report.progress("making network namespaces");
    cluster.build()?;
    let text =
        "m-k8s 192.168.1.10, w1 .101, w2 .102, w3 .103 on one LAN; pods 172.16.0.0/16, Services 10.96.0.0/16";
    Ok(Step::new("topology", text).with("nodes", Cluster::nodes().count()))
}

fn netd_ready(cluster: &mut Cluster, report: &Report) -> Result<Step> {
    for node in Cluster::nodes() {
        report.progress(&format!("starting netd on {node}"));
        cluster.start_netd(node)?;
    }
    let mut dataplane = String::new();
    for node in Cluster::nodes() {
        let state = cluster.wait_ready(node)?;
        let plane = state.dataplane.context("netd is ready without a dataplane")?;
        dataplane = match plane.companion {
            Some(companion) => format!("{} ({companion} beside it)", plane.name),
            None => plane.name,
        };
    }
    let nodes = Cluster::nodes().count();
    Ok(Step::new("netd-ready", format!("on {nodes} nodes; dataplane {dataplane}"))
        .with("dataplane", dataplane))
}

fn pods(cluster: &mut Cluster, report: &Report) -> Result<Step> {
    let mut addresses = Vec::new();
    for (pod, node) in PODS.into_iter().chain([("client", "w1")]) {
        report.progress(&format!("netd-cni ADD {pod} on {node}"));
        addresses.push(format!("{pod} {}", cluster.add_pod(node, pod)?));
    }
    for (pod, _) in PODS {
        cluster.serve(pod)?;
    }
    let backends = cluster.backends()?;
    cluster.publish(&backends)?;
    cluster.wait_programmed(&backends)?;
    Ok(Step::new("pods", addresses.join(", ")).with("pods", addresses.len()))
}

fn pod_to_pod(cluster: &mut Cluster, _report: &Report) -> Result<Step> {
    let client = cluster.pod("client")?;
    let mut tally = Tally::default();
    for backend in cluster.backends()? {
        let outcomes = client.connect(several(SocketAddr::new(backend.address, 8080), 20))?;
        tally.expect(&outcomes, |server| server == backend.pod);
    }
    let text = format!("client on w1 → web-1 (w1), web-2 (w2), web-3 (w3): {tally}");
    Ok(Step::new("pod-to-pod", text).counted(tally.attempts, tally.failed))
}

fn service_by_name(cluster: &mut Cluster, _report: &Report) -> Result<Step> {
    let client = cluster.pod("client")?;
    let answer = client.lookup(lookup(WEB_NAME))?;
    let found: Vec<String> = answer.answers.iter().map(|record| record.data.clone()).collect();
    let mut tally = Tally::default();
    let outcomes = client.connect(several(SocketAddr::new(WEB, 80), 300))?;
    tally.expect(&outcomes, |_| true);
    let text = format!("{WEB_NAME} is {}; {}", found.join(", "), tally.spread());
    Ok(Step::new("service-by-name", text)
        .counted(tally.attempts, tally.failed)
        .with("addresses", found.clone())
        .with("perEndpoint", serde_json::to_value(&tally.servers)?)
        .require(found == [WEB.to_string()], "the name does not give the cluster address")
        .require(tally.servers.len() == PODS.len(), "not every endpoint was chosen"))
}

fn headless(cluster: &mut Cluster, _report: &Report) -> Result<Step> {
    let client = cluster.pod("client")?;
    let answer = client.lookup(lookup("web-pods.default.svc.cluster.local"))?;
    let mut found: Vec<String> = answer.answers.iter().map(|record| record.data.clone()).collect();
    found.sort();
    let mut wanted: Vec<String> =
        cluster.backends()?.iter().map(|backend| backend.address.to_string()).collect();
    wanted.sort();
    let missing = client.lookup(lookup("nothing.default.svc.cluster.local"))?;
    Ok(Step::new(
        "headless",
        format!("web-pods is {}; an unknown name is {}", found.join(", "), missing.rcode),
    )
    .with("addresses", found.clone())
    .require(found == wanted, "not the addresses of the pods")
    .require(missing.rcode == "NXDOMAIN", "an unknown name is not NXDOMAIN"))
}

fn node_port(cluster: &mut Cluster, _report: &Report) -> Result<Step> {
    let outside = cluster.node(OUTSIDE)?;
    let mut tally = Tally::default();
    for node in Cluster::nodes() {
        let target = SocketAddr::new(Cluster::node_address(node)?, NODE_PORT);
        let outcomes = outside.connect(several(target, 60))?;
        tally.expect(&outcomes, |_| true);
    }
    let text = format!("a machine outside → port {NODE_PORT} of 4 nodes: {}", tally.spread());
    Ok(Step::new("node-port", text)
        .counted(tally.attempts, tally.failed)
        .with("perEndpoint", serde_json::to_value(&tally.servers)?)
        .require(tally.servers.len() == PODS.len(), "not every endpoint was chosen"))
}

fn no_endpoints(cluster: &mut Cluster, _report: &Report) -> Result<Step> {
    let outcomes = cluster.pod("client")?.connect(several(SocketAddr::new(EMPTY, 80), 20))?;
    let attempts = u64::try_from(outcomes.len())?;
    let refused =
        u64::try_from(outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Refused)).count())?;
    let text = format!("a Service without pods: {refused} of {attempts} refused at once");
    Ok(Step::new("no-endpoints", text).counted(attempts, attempts - refused))
}

/// An endpoint leaves while a client keeps connecting: nothing fails, before or after its pod is gone.
fn endpoint_removed(cluster: &mut Cluster, report: &Report) -> Result<Step> {
    let mut load = start_load(cluster)?;
    watch(&mut load, report, "connecting; web-2 is about to leave", CALM)?;
    let remaining: Vec<_> =
        cluster.backends()?.into_iter().filter(|backend| backend.pod != "web-2").collect();
    let start = SystemClock.now();
    cluster.publish(&remaining)?;
    cluster.wait_programmed(&remaining)?;
    let applied = SystemClock.now().duration_since(start);
    // Connections begun before the change was applied may still be on their way to web-2.
    settle(&mut load)?;
    let before = load.counts()?;
    cluster.stop_serving("web-2");
    watch(&mut load, report, "web-2 has left and its pod is stopped", CALM)?;
    let counts = load.finish()?;
    let after = counts.since(&before);
    let to_removed = after.answered.get("web-2").copied().unwrap_or(0);
    let text = format!(
        "web-2 left under load: applied on 4 nodes in {} ms; {} connections, {} failed; {} since then, {} failed",
        applied.as_millis(),
        counts.attempts,
        counts.failed(),
        after.attempts,
        after.failed()
    );
    Ok(Step::new("endpoint-removed", text)
        .counted(counts.attempts, counts.failed())
        .with("appliedMs", u64::try_from(applied.as_millis())?)
        .with("attemptsAfterApplied", after.attempts)
        .with("failedAfterApplied", after.failed())
        .with("toRemovedAfterApplied", to_removed)
        .require(after.attempts > 0, "nothing was tried after the change")
        .require(to_removed == 0, "the removed endpoint was still chosen"))
}

fn endpoint_restored(cluster: &mut Cluster, _report: &Report) -> Result<Step> {
    cluster.serve("web-2")?;
    let backends = cluster.backends()?;
    cluster.publish(&backends)?;
    cluster.wait_programmed(&backends)?;
    let outcomes = cluster.pod("client")?.connect(several(SocketAddr::new(WEB, 80), 120))?;
    let mut tally = Tally::default();
    tally.expect(&outcomes, |_| true);
    Ok(Step::new("endpoint-restored", format!("web-2 is back: {}", tally.spread()))
        .counted(tally.attempts, tally.failed)
        .require(tally.servers.contains_key("web-2"), "web-2 was not chosen"))
}

/// The daemon of the client's node is killed and started again while clients inside and outside connect.
fn sigkill_restart(cluster: &mut Cluster, report: &Report) -> Result<Step> {
    let mut inside = start_load(cluster)?;
    let target = SocketAddr::new(Cluster::node_address("w1")?, NODE_PORT);
    let outside = cluster.node(OUTSIDE)?.load(Load::tcp(target, RATE / 2))?;
    watch(&mut inside, report, "connecting; netd on w1 is about to be killed", CALM)?;
    let killed = SystemClock.now();
    cluster.kill_netd("w1")?;
    watch(&mut inside, report, "netd on w1 is dead (SIGKILL)", CALM)?;
    cluster.start_netd("w1")?;
    cluster.wait_ready("w1")?;
    let down = SystemClock.now().duration_since(killed);
    let client = cluster.pod("client")?;
    let answered = eventually(Duration::from_secs(5), || {
        client.lookup(lookup(WEB_NAME)).ok().filter(|answer| answer.rcode == "NOERROR")
    });
    watch(&mut inside, report, "netd on w1 runs again", CALM)?;
    let (inside, outside) = (inside.finish()?, outside.finish()?);
    let (attempts, failed) = (inside.attempts + outside.attempts, inside.failed() + outside.failed());
    let text = format!(
        "netd on w1 killed and ready again after {} ms: {attempts} connections to ClusterIP and NodePort, {failed} failed",
        down.as_millis()
    );
    Ok(Step::new("sigkill-restart", text)
        .counted(attempts, failed)
        .with("downMs", u64::try_from(down.as_millis())?)
        .with("clusterIpAttempts", inside.attempts)
        .with("nodePortAttempts", outside.attempts)
        .require(outside.attempts > 0, "nothing was tried from outside")
        .require(answered.is_some(), "DNS does not answer after the restart"))
}

fn start_load(cluster: &Cluster) -> Result<AgentHandle> {
    Ok(cluster.pod("client")?.load(Load::tcp(SocketAddr::new(WEB, 80), RATE))?)
}

/// Lets the load run, showing its counts.
fn watch(load: &mut AgentHandle, report: &Report, what: &str, duration: Duration) -> Result<()> {
    let start = SystemClock.now();
    while SystemClock.now().duration_since(start) < duration {
        let counts = load.counts()?;
        report.progress(&format!(
            "{what}: {} connections, {} failed   {}",
            counts.attempts,
            counts.failed(),
            shares(&counts.answered)
        ));
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Waits until the connections that are on their way now have ended: a quarter of a second's worth of later
/// ones has been answered by then.
fn settle(load: &mut AgentHandle) -> Result<()> {
    let enough = load.counts()?.attempts + u64::from(RATE / 4);
    let done = eventually(Duration::from_secs(5), || {
        let counts: Counts = load.counts().ok()?;
        (counts.attempts.saturating_sub(counts.in_flight) >= enough).then_some(())
    });
    done.context("connections did not end within 5 s")
}

fn several(target: SocketAddr, count: u32) -> Connect {
    Connect { count, ..Connect::tcp(target) }
}

fn lookup(name: &str) -> Lookup {
    Lookup {
        server: SocketAddr::new(DNS, 53),
        name: name.to_owned(),
        kind: "A".to_owned(),
        tcp: false,
        timeout: Duration::from_secs(2),
    }
}

fn shares(servers: &BTreeMap<String, u64>) -> String {
    servers.iter().map(|(server, count)| format!("{server} {count}")).collect::<Vec<_>>().join(", ")
}

/// Outcomes counted against what they must be.
#[derive(Default)]
struct Tally {
    attempts: u64,
    failed: u64,
    servers: BTreeMap<String, u64>,
}

impl Tally {
    fn expect(&mut self, outcomes: &[Outcome], right: impl Fn(&str) -> bool) {
        for outcome in outcomes {
            self.attempts += 1;
            match outcome.server() {
                Some(server) if right(server) => *self.servers.entry(server.to_owned()).or_default() += 1,
                _ => self.failed += 1,
            }
        }
    }

    fn spread(&self) -> String {
        format!("{self} by {}", shares(&self.servers))
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} answered", self.attempts - self.failed, self.attempts)
    }
}
