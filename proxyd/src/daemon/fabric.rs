//! Routes to other nodes' pods, masquerade, and what the CNI plugin is told: one OS thread.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::stream::{Stream, StreamExt};
use ipnetwork::IpNetwork;
use netd_admin::NodeRouteState;
use netd_fabric::{CniConfig, Fabric, Mode, NodeNet, Report, Settings};
use netd_kernel::monitor::{Change, RuleChange, changes_with_neighbours, rule_changes};
use netd_kernel::netlink::{Family, POD_ROUTE_PROTOCOL};
use netd_kernel::{Clock, ROUTE_PROTOCOL, SystemClock};
use netd_model::Snapshot;
use netd_watch::Subscriber;
use tracing::{info, warn};

use super::Surroundings;
use super::board::Part;
use super::pods::ranges::Ranges;
use super::pods::upkeep::{self, Kept, Pods, Upkeep};
use crate::config::{CniMode, Config, FabricMode};

/// How often everything is looked at even when the kernel tells of no change.
const CHECK: Duration = Duration::from_secs(1);
/// Changes that come together are looked at once.
const SETTLE: Duration = Duration::from_millis(20);
/// Looking takes at most one part in so many of the thread's time, however much changes, but never waits for longer
/// than this.
const LOOK_SHARE: u32 = 5;
const LONGEST_SETTLE: Duration = Duration::from_millis(200);

/// The name of the thread, which the kernel tells of who changes rules.
pub(super) const THREAD: &str = "netd-fabric";

/// The network of this node.
pub(super) struct Network {
    around: Surroundings,
    fabric: Fabric,
    snapshot: Option<Arc<Snapshot>>,
    /// Largest packet of a pod, where the fabric makes it smaller than the uplink's.
    pod_mtu: Option<u32>,
    /// The last error told, a part each, so that a lasting one is logged once.
    told: [String; 2],
    /// The node's ranges of pods, now and before.
    ranges: Ranges,
    upkeep: Upkeep,
    /// The last look found something missing that a DEL may just be removing.
    unsure: bool,
    /// How long the last look took.
    took: Duration,
    /// Who changed netd's rules last, as far as the kernel tells.
    changed_by: Option<String>,
}

enum Event {
    Snapshot(Arc<Snapshot>),
    /// Somebody changed netd's own rules.
    Rules(String),
    Kernel,
    Tick,
    Stop,
}

type Changes = Pin<Box<dyn Stream<Item = Change> + Send>>;
type RuleChanges = Pin<Box<dyn Stream<Item = RuleChange> + Send>>;

/// What the kernel tells.
struct Heard {
    changes: Changes,
    rules: RuleChanges,
}

impl Network {
    /// The network of this node, of which nothing is known yet.
    pub(super) fn new(around: Surroundings) -> Self {
        let fabric = Fabric::new(Arc::clone(&around.node), settings(&around.config));
        let cni = &around.config.cni;
        Self {
            ranges: Ranges::load(&cni.ranges_file),
            upkeep: Upkeep::new(&cni.bridge),
            around,
            fabric,
            snapshot: None,
            pod_mtu: None,
            told: Default::default(),
            unsure: false,
            took: Duration::ZERO,
            changed_by: None,
        }
    }

    /// Keeps the kernel right until the daemon drains.
    pub(super) fn run(mut self, mut subscriber: Subscriber) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut heard = Heard { changes: listen(), rules: listen_to_rules() };
            loop {
                match self.next(&mut subscriber, &mut heard).await {
                    Event::Snapshot(snapshot) => self.snapshot = Some(snapshot),
                    Event::Rules(by) => self.changed_by = Some(by),
                    Event::Kernel | Event::Tick => {}
                    Event::Stop => return Ok(()),
                }
                let start = SystemClock.now();
                self.ensure();
                self.took = SystemClock.now().saturating_duration_since(start);
            }
        })
    }

    async fn next(&self, subscriber: &mut Subscriber, heard: &mut Heard) -> Event {
        let mut shutdown = self.around.shutdown.clone();
        let settle = (self.took * LOOK_SHARE).clamp(SETTLE, LONGEST_SETTLE);
        let check = if self.unsure { upkeep::CONFIRM } else { CHECK };
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => Event::Stop,
            update = subscriber.next() => update.map_or(Event::Stop, |update| Event::Snapshot(update.snapshot)),
            () = relevant(&mut heard.changes) => {
                tokio::time::sleep(settle).await;
                Event::Kernel
            }
            by = by_others(&mut heard.rules) => {
                tokio::time::sleep(settle).await;
                Event::Rules(by)
            }
            () = tokio::time::sleep(check) => Event::Tick,
        }
    }

    fn ensure(&mut self) {
        // Nothing is touched before every kind has synced: an empty picture would remove every route.
        let Some(snapshot) = self.snapshot.clone() else { return };
        if self.around.config.parts.fabric {
            self.ensure_routes(&snapshot);
        }
        if self.around.config.parts.cni {
            self.ensure_cni(&snapshot);
        }
    }

    fn ensure_routes(&mut self, snapshot: &Snapshot) {
        match self.fabric.reconcile(snapshot) {
            Ok(report) => {
                self.note(&report);
                self.pod_mtu = report.pod_mtu;
                self.around.board.set_nodes(node_states(snapshot, &self.around.node, &report));
                let routes = report.added + report.kept;
                let message = match report.problems.first() {
                    None => format!("{routes} routes"),
                    Some(problem) => format!("{routes} routes; {}: {}", problem.object, problem.message),
                };
                self.report(Part::Fabric, report.problems.is_empty(), message);
            }
            Err(error) => self.report(Part::Fabric, false, error.to_string()),
        }
    }

    fn note(&self, &Report { added, removed, written, .. }: &Report) {
        if added + removed > 0 {
            info!(added, removed, "changed routes to other nodes");
        }
        if written > 0 {
            info!(changes = written, "changed the VXLAN device");
        }
        let was_ready = self.around.board.parts().get(Part::Fabric.name()).is_some_and(|part| part.ready);
        if added > 0 && was_ready {
            self.around.metrics.repaired("routes");
        }
    }

    fn ensure_cni(&mut self, snapshot: &Snapshot) {
        let config = Arc::clone(&self.around.config);
        let pods = match Pods::read(&config.cni.data_dir) {
            Ok(pods) => pods,
            Err(error) => return self.report(Part::Cni, false, crate::cli::on_one_line(&error)),
        };
        let pod_cidrs = pod_cidrs(&config, snapshot, &self.around.node);
        let prepared = self.prepare(&config, snapshot, &pods, &pod_cidrs);
        // Running pods are kept also where no new one can come.
        let kept = self.keep(&pods, &pod_cidrs);
        match (prepared, kept) {
            (Err(reason), _) | (Ok(_), Err(reason)) => self.report(Part::Cni, false, reason),
            (Ok(message), Ok(addition)) => self.report(Part::Cni, true, message + &addition),
        }
    }

    /// Makes the node ready for pods, and says how, or why not.
    fn prepare(
        &mut self,
        config: &Config,
        snapshot: &Snapshot,
        pods: &Pods,
        pod_cidrs: &[IpNetwork],
    ) -> Result<String, String> {
        let node = &self.around.node;
        if pod_cidrs.is_empty() {
            if config.source.manifests.is_some() && !snapshot.nodes.contains_key(node) {
                // A host that is no node of a cluster has no pods to wire.
                return Ok(format!("idle: no Node {node} in the manifests, and no cni.podCIDRs"));
            }
            return Err(format!(
                "the Node {node} has no spec.podCIDR yet: give it one (kube-controller-manager --allocate-node-cidrs) or set cni.podCIDRs",
            ));
        }
        if let Some(conflict) = pod_cidrs.iter().find_map(|range| own_address_of_a_pod(range, pods)) {
            return Err(conflict);
        }
        let over = self.ranges.note(pod_cidrs, SystemClock.now(), |range| pods.any_in(range));
        for range in over {
            match self.upkeep.retire(&range) {
                Ok(()) => {
                    info!(%range, "the last pod of an earlier range is gone: took its gateway away");
                    self.ranges.end(&range);
                }
                Err(error) => warn!(%range, %error, "cannot take the gateway of an earlier range away"),
            }
        }
        let former = self.ranges.former();
        self.around.board.set_former_ranges(former.clone());
        let changed = write_cni(config, (pod_cidrs.to_vec(), former), self.pod_mtu)
            .map_err(|error| crate::cli::on_one_line(&error))?;
        let was_ready = self.around.board.parts().get(Part::Cni.name()).is_some_and(|part| part.ready);
        for what in changed {
            let by = self.changed_by.as_deref().unwrap_or_default();
            info!(what, by, "made the node ready for pods");
            if was_ready {
                self.around.metrics.repaired("node");
            }
        }
        let ranges = pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Ok(format!("pods get addresses of {ranges}"))
    }

    /// Puts back what running pods lost, and says what is worth knowing of them.
    fn keep(&mut self, pods: &Pods, pod_cidrs: &[IpNetwork]) -> Result<String, String> {
        let ranges = [pod_cidrs, &self.ranges.former()].concat();
        let mtu = self.pod_mtu.or_else(upkeep::uplink_mtu);
        let kept = self.upkeep.ensure(pods, &ranges, mtu, SystemClock.now());
        let Kept { repaired, problems, unsure, wide } = kept.map_err(|e| crate::cli::on_one_line(&e))?;
        self.unsure = unsure;
        for (kind, what) in repaired {
            let by = self.changed_by.as_deref().unwrap_or_default();
            warn!(what, by, "put back what another program took from running pods");
            self.around.metrics.repaired(kind);
        }
        if let Some(problem) = problems.into_iter().next() {
            return Err(format!("running pods lack something that cannot be put back: {problem}"));
        }
        let former: Vec<String> = self
            .ranges
            .former()
            .iter()
            .map(|range| (range, pods.count_in(range)))
            .filter(|(_, count)| *count > 0)
            .map(|(range, count)| format!("{count} pods keep addresses of the former range {range}"))
            .collect();
        let wide = mtu.filter(|_| !wide.is_empty()).map(|mtu| {
            format!(
                "{} pods keep a larger MTU than {mtu} until they are made again: {}",
                wide.len(),
                few(&wide)
            )
        });
        Ok(former.into_iter().chain(wide).map(|text| format!("; {text}")).collect())
    }

    /// Notes how a part is; a failure is logged when it begins or changes.
    fn report(&mut self, part: Part, ready: bool, message: String) {
        let told = &mut self.told[usize::from(part == Part::Cni)];
        if ready {
            told.clear();
        } else if *told != message {
            warn!(part = part.name(), reason = message, "not ready; trying again");
            told.clone_from(&message);
        }
        self.around.board.set(part, ready, message);
    }
}

/// The kernel's changes; without them everything is still looked at every [`CHECK`].
fn listen() -> Changes {
    match changes_with_neighbours(&[Family::V4, Family::V6]) {
        Ok(changes) => Box::pin(changes),
        Err(error) => {
            warn!(%error, seconds = CHECK.as_secs(), "cannot listen for route changes; looking regularly instead");
            Box::pin(futures::stream::pending())
        }
    }
}

/// Changes of netd's rules; without them they are still looked at every [`CHECK`].
fn listen_to_rules() -> RuleChanges {
    match rule_changes() {
        Ok(changes) => Box::pin(changes),
        Err(error) => {
            warn!(%error, seconds = CHECK.as_secs(), "cannot listen for changes of rules; looking regularly instead");
            Box::pin(futures::stream::pending())
        }
    }
}

/// Resolves when a process that is not this one changes netd's rules; says which.
async fn by_others(changes: &mut RuleChanges) -> String {
    while let Some(change) = changes.next().await {
        match change {
            RuleChange::Missed => return String::new(),
            // This thread, by its name: the kernel tells the thread's number, in the first pid namespace.
            RuleChange::Own { program, .. } if program == THREAD => {}
            RuleChange::Own { program, process, .. } => return format!("{program} ({process})"),
        }
    }
    std::future::pending().await
}

/// Resolves when the kernel tells of something that may concern the routes.
async fn relevant(changes: &mut Changes) {
    while let Some(change) = changes.next().await {
        let concerns = match change {
            Change::Missed | Change::Link { .. } | Change::Address { .. } | Change::NeighbourGone => true,
            Change::Route { route, gone } => {
                gone && [ROUTE_PROTOCOL, POD_ROUTE_PROTOCOL].contains(&route.protocol)
            }
        };
        if concerns {
            return;
        }
    }
    std::future::pending().await
}

fn pod_cidrs(config: &Config, snapshot: &Snapshot, node: &str) -> Vec<IpNetwork> {
    let own = snapshot.nodes.get(node).map(|node| node.pod_cidrs.clone()).unwrap_or_default();
    if own.is_empty() { config.cni.pod_cidrs.clone() } else { own }
}

/// Why a range cannot be the node's: a pod has an address that the node needs for itself.
fn own_address_of_a_pod(range: &IpNetwork, pods: &Pods) -> Option<String> {
    let gateway = netd_ipam::Range::new(*range, None, None, None).ok()?.gateway();
    let (address, holder) = [gateway, range.network()]
        .into_iter()
        .find_map(|address| pods.holder(address).map(|holder| (address, holder)))?;
    Some(format!(
        "the node's podCIDR {range} needs {address} for the node itself, and {holder} has it from an earlier podCIDR: \
         delete that pod; until then new pods wait"
    ))
}

/// The first few of many.
fn few(all: &[String]) -> String {
    const SHOWN: usize = 3;
    let more = if all.len() > SHOWN { ", ..." } else { "" };
    all.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ") + more
}

/// Makes the node ready for pods, then tells the runtime so. Returns what changed.
fn write_cni(
    config: &Config,
    (pod_cidrs, former_pod_cidrs): (Vec<IpNetwork>, Vec<IpNetwork>),
    mtu: Option<u32>,
) -> Result<Vec<String>> {
    let mut changed = netd_fabric::ensure_node(&NodeNet {
        network: cni_config(config).network,
        pod_cidrs,
        former_pod_cidrs,
        cluster_cidrs: config.cluster_cidrs.clone(),
        non_masquerade_cidrs: config.fabric.non_masquerade_cidrs.clone(),
        mtu,
        masquerade: config.fabric.masquerade,
        ranges_file: config.cni.ranges_file.clone(),
    })
    .context("prepare the node for pods")?;
    if let Some(path) = &config.cni.conflist
        && netd_fabric::write_conflist(path, &cni_config(config)).context("write the CNI configuration")?
    {
        changed.push(format!("wrote {}", path.display()));
    }
    Ok(changed)
}

fn settings(config: &Config) -> Settings {
    let mode = match config.fabric.mode {
        FabricMode::Auto => Mode::Auto,
        FabricMode::HostGw => Mode::HostGw,
        FabricMode::Vxlan => Mode::Vxlan,
    };
    Settings { mode, vni: config.fabric.vxlan.vni, port: config.fabric.vxlan.port }
}

fn cni_config(config: &Config) -> CniConfig {
    CniConfig {
        routed: config.cni.mode == CniMode::Routed,
        bridge: config.cni.bridge.clone(),
        ranges_file: config.cni.ranges_file.clone(),
        data_dir: config.cni.data_dir.clone(),
        masquerade: config.fabric.masquerade,
        ..CniConfig::default()
    }
}

fn node_states(snapshot: &Snapshot, own: &str, report: &Report) -> Vec<NodeRouteState> {
    let text = |items: &[IpNetwork]| items.iter().map(ToString::to_string).collect();
    let state = |node: &netd_model::Node| {
        let problem = report.problems.iter().find(|problem| problem.object == *node.name);
        let remote = *node.name != *own;
        NodeRouteState {
            name: node.name.to_string(),
            addresses: node.addresses.iter().map(ToString::to_string).collect(),
            pod_cidrs: text(&node.pod_cidrs),
            via: node.internal_addresses.first().filter(|_| remote).map(ToString::to_string),
            ready: problem.is_none(),
            message: problem.map(|problem| problem.message.clone()).unwrap_or_default(),
        }
    };
    snapshot.nodes.values().map(|node| state(node)).collect()
}

/// Removes routes, the VXLAN device, masquerade, the plugin's ranges and the conflist that names our plugin.
pub(crate) fn cleanup(config: &Config) -> Result<()> {
    let mut failures = Vec::new();
    let mut note =
        |result: Result<(), netd_fabric::Error>| failures.extend(result.err().map(|error| error.to_string()));
    note(Fabric::new("", settings(config)).cleanup().map(drop));
    note(netd_fabric::remove_node(&config.cni.ranges_file));
    if let Some(path) = &config.cni.conflist {
        note(netd_fabric::remove_conflist(path).map(drop));
    }
    failures.extend(super::pods::routes::remove_answers().err().map(|error| error.to_string()));
    if failures.is_empty() { Ok(()) } else { anyhow::bail!("{}", failures.join("; ")) }
}
