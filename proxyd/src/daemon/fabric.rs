//! Routes to other nodes' pods, masquerade, and what the CNI plugin is told: one OS thread.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::stream::{Stream, StreamExt};
use ipnetwork::IpNetwork;
use netd_admin::NodeRouteState;
use netd_fabric::{CniConfig, Fabric, Mode, NodeNet, Report, Settings};
use netd_kernel::ROUTE_PROTOCOL;
use netd_kernel::monitor::{Change, changes};
use netd_kernel::netlink::Family;
use netd_model::Snapshot;
use netd_watch::Subscriber;
use tracing::{info, warn};

use super::Surroundings;
use super::board::Part;
use crate::config::{Config, FabricMode};

/// How often everything is looked at even when the kernel tells of no change.
const CHECK: Duration = Duration::from_secs(2);
/// Changes that come together are looked at once.
const SETTLE: Duration = Duration::from_millis(20);

/// The network of this node.
pub(super) struct Network {
    around: Surroundings,
    fabric: Fabric,
    snapshot: Option<Arc<Snapshot>>,
    /// Largest packet of a pod, where the fabric makes it smaller than the uplink's.
    pod_mtu: Option<u32>,
    /// The last error told, a part each, so that a lasting one is logged once.
    told: [String; 2],
}

enum Event {
    Snapshot(Arc<Snapshot>),
    Kernel,
    Tick,
    Stop,
}

type Changes = Pin<Box<dyn Stream<Item = Change> + Send>>;

impl Network {
    /// The network of this node, of which nothing is known yet.
    pub(super) fn new(around: Surroundings) -> Self {
        let fabric = Fabric::new(Arc::clone(&around.node), settings(&around.config));
        Self { around, fabric, snapshot: None, pod_mtu: None, told: Default::default() }
    }

    /// Keeps the kernel right until the daemon drains.
    pub(super) fn run(mut self, mut subscriber: Subscriber) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut changes = listen();
            loop {
                match self.next(&mut subscriber, &mut changes).await {
                    Event::Snapshot(snapshot) => self.snapshot = Some(snapshot),
                    Event::Kernel | Event::Tick => {}
                    Event::Stop => return Ok(()),
                }
                self.ensure();
            }
        })
    }

    async fn next(&self, subscriber: &mut Subscriber, changes: &mut Changes) -> Event {
        let mut shutdown = self.around.shutdown.clone();
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => Event::Stop,
            update = subscriber.next() => update.map_or(Event::Stop, |update| Event::Snapshot(update.snapshot)),
            () = relevant(changes) => {
                tokio::time::sleep(SETTLE).await;
                Event::Kernel
            }
            () = tokio::time::sleep(CHECK) => Event::Tick,
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
        let pod_cidrs = pod_cidrs(&config, snapshot, &self.around.node);
        if pod_cidrs.is_empty() {
            if config.source.manifests.is_some() && !snapshot.nodes.contains_key(&self.around.node) {
                // A host that is no node of a cluster has no pods to wire.
                let message =
                    format!("idle: no Node {} in the manifests, and no cni.podCIDRs", self.around.node);
                return self.report(Part::Cni, true, message);
            }
            let message = format!(
                "the Node {} has no spec.podCIDR yet: give it one (kube-controller-manager --allocate-node-cidrs) or set cni.podCIDRs",
                self.around.node
            );
            return self.report(Part::Cni, false, message);
        }
        match write_cni(&config, pod_cidrs.clone(), self.pod_mtu) {
            Ok(changed) => {
                for what in changed {
                    info!(what, "made the node ready for pods");
                }
                let ranges = pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                self.report(Part::Cni, true, format!("pods get addresses of {ranges}"));
            }
            Err(error) => self.report(Part::Cni, false, crate::cli::on_one_line(&error)),
        }
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
    match changes(&[Family::V4, Family::V6]) {
        Ok(changes) => Box::pin(changes),
        Err(error) => {
            warn!(%error, seconds = CHECK.as_secs(), "cannot listen for route changes; looking regularly instead");
            Box::pin(futures::stream::pending())
        }
    }
}

/// Resolves when the kernel tells of something that may concern the routes.
async fn relevant(changes: &mut Changes) {
    while let Some(change) = changes.next().await {
        let concerns = match change {
            Change::Missed | Change::Link { .. } | Change::Address { .. } => true,
            Change::Route { route, gone } => gone && route.protocol == ROUTE_PROTOCOL,
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

/// Makes the node ready for pods, then tells the runtime so. Returns what changed.
fn write_cni(config: &Config, pod_cidrs: Vec<IpNetwork>, mtu: Option<u32>) -> Result<Vec<String>> {
    let mut changed = netd_fabric::ensure_node(&NodeNet {
        pod_cidrs,
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
    if let Some(path) = config.cni.conflist.as_deref().filter(|path| is_ours(path)) {
        note(netd_fabric::remove_conflist(path));
    }
    if failures.is_empty() { Ok(()) } else { anyhow::bail!("{}", failures.join("; ")) }
}

/// A conflist that does not name our plugin belongs to somebody else.
fn is_ours(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.contains("\"netd-cni\""))
}
