//! Services: one OS thread that plans each snapshot and makes the kernel equal the plan.

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use netd_admin::{DataplaneState, Refusal};
use netd_dataplane::{Applied, ApplyError, FamilySync};
use netd_kernel::clock::{Clock, SystemClock};
use netd_model::{
    Family, FrontendAddress, FrontendKey, LocalPods, Node, NodePortAddresses, NodeView, Planner, Protocol,
    Scope, ServicePlan, Snapshot,
};
use netd_watch::{Arrivals, Subscriber, Update};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::Surroundings;
use super::board::Part;
use super::flows::Flows;
use super::health_checks::{self, Checks};
use super::planes::{Plane, Planes};
use crate::config::{Config, LocalPodsChoice};

/// First wait after a failed apply; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Looking at the rules takes at most one part in so many of the thread's time.
const LOOK_SHARE: u32 = 20;
const DNS_PORT: NonZeroU16 = NonZeroU16::new(53).expect("53 is not 0");

/// The service proxy of this node.
pub(super) struct Proxy {
    around: Surroundings,
    planes: Planes,
    clock: SystemClock,
    planner: Planner,
    /// The newest snapshot that is to be in the kernel, and whether it is.
    wanted: Option<Wanted>,
    backoff: Duration,
    /// When the installed rules are to be looked at.
    next_look: Instant,
    /// Dataplanes of other modes were cleaned up.
    swept: bool,
    /// What the flows were last looked through for.
    flows: Flows,
    /// The health checks of the newest snapshot, and where they are told once it is in the kernel.
    checks: Checks,
    told: watch::Sender<health_checks::Wanted>,
    /// What has arrived since the last successful apply.
    arrivals: Arrivals,
    /// The families that the main dataplane programs; all of them until it has.
    families: Vec<Family>,
}

struct Wanted {
    snapshot: Arc<Snapshot>,
    plan: Arc<ServicePlan>,
    changed_at: Option<SystemTime>,
    applied: bool,
}

enum Event {
    Update(Update),
    Tick,
    Stop,
}

impl Proxy {
    /// Chooses the dataplanes.
    ///
    /// # Errors
    /// When the configured one cannot run here; says why and what to do.
    pub(super) fn new(around: Surroundings, told: watch::Sender<health_checks::Wanted>) -> Result<Self> {
        let planes = Planes::choose(&around.config)?;
        info!(dataplane = planes.name(), reason = planes.reason(), "chose the dataplane");
        let view = node_view(&around.config, &around.node, &Snapshot::default());
        Ok(Self {
            planner: Planner::new(view),
            around,
            planes,
            clock: SystemClock,
            wanted: None,
            backoff: MIN_BACKOFF,
            next_look: SystemClock.now(),
            swept: false,
            flows: Flows::default(),
            checks: Checks::default(),
            told,
            arrivals: Arrivals::default(),
            families: Family::ALL.to_vec(),
        })
    }

    /// Serves until the daemon drains. Never ends by itself: a failing kernel is retried.
    pub(super) fn run(mut self, mut subscriber: Subscriber) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        self.resync();
        loop {
            match self.next(&runtime, &mut subscriber) {
                Event::Update(update) => self.take(update),
                Event::Tick => {}
                Event::Stop => return Ok(()),
            }
            self.apply_wanted();
            self.look_when_due();
            self.apply_wanted();
        }
    }

    fn next(&mut self, runtime: &Runtime, subscriber: &mut Subscriber) -> Event {
        let waiting = self.wanted.as_ref().is_some_and(|wanted| !wanted.applied);
        let until_look = self.next_look.saturating_duration_since(self.clock.now());
        let wait = if waiting { self.backoff } else { until_look };
        let mut shutdown = self.around.shutdown.clone();
        // Not through a handle, which would not drive the timer: no look at the rules, no second try.
        runtime.block_on(async {
            tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => Event::Stop,
                update = subscriber.next() => update.map_or(Event::Stop, Event::Update),
                () = tokio::time::sleep(wait) => Event::Tick,
            }
        })
    }

    fn take(&mut self, update: Update) {
        let view = node_view(&self.around.config, &self.around.node, &update.snapshot);
        self.around.health.queued();
        self.around.metrics.queued(&self.families);
        self.around.metrics.arrived(&update.arrivals);
        self.arrivals.add(&update.arrivals);
        // Seen, even if nobody asks before it goes.
        self.around.health.is_eligible(Some(&update.snapshot));
        self.checks.update(&update.snapshot, &self.around.node, &update.dirty);
        self.flows.before(&self.planner, &update.dirty);
        let (plan, scope) = self.planner.update(&update.snapshot, &view, &update.dirty);
        self.flows.after(&self.planner, &scope);
        for plane in self.planes.iter_mut() {
            plane.widen(&scope);
        }
        // The oldest change that is not yet in the kernel is the one whose latency counts.
        let earlier =
            self.wanted.take().filter(|wanted| !wanted.applied).and_then(|wanted| wanted.changed_at);
        let changed_at = Some(earlier.map_or(update.changed_at, |at| at.min(update.changed_at)));
        self.wanted =
            Some(Wanted { snapshot: update.snapshot, plan: Arc::new(plan), changed_at, applied: false });
    }

    /// Reads back what an earlier netd left, so that nothing is rewritten that is already right.
    fn resync(&mut self) {
        for plane in self.planes.iter_mut() {
            if let Err(error) = plane.dataplane.resync() {
                warn!(dataplane = plane.dataplane.name(), error = %chain(&error), "could not read back; applying in full");
            }
        }
    }

    /// Looks, when it is time, whether another program removed what was applied. Also in the middle of many
    /// updates; a look that takes long (legacy iptables with many rules) is made more rarely.
    fn look_when_due(&mut self) {
        let start = self.clock.now();
        if start < self.next_look {
            return;
        }
        self.look();
        let end = self.clock.now();
        let check = Duration::from_secs(u64::from(self.around.config.proxy.iptables.check_seconds));
        self.next_look = end + check.max(end.duration_since(start) * LOOK_SHARE);
    }

    fn look(&mut self) {
        let Some(wanted) = self.wanted.as_mut().filter(|wanted| wanted.applied) else { return };
        for plane in self.planes.iter_mut() {
            let name = plane.dataplane.name();
            match plane.dataplane.intact() {
                Ok(true) => {}
                Ok(false) => {
                    warn!(dataplane = name, "another program changed our rules; putting them back");
                    self.around.metrics.repaired("rules");
                    plane.widen(&Scope::Full);
                    plane.torn = true;
                    wanted.applied = false;
                    self.around.health.queued();
                    self.around.metrics.queued(&self.families);
                    wanted.changed_at = None;
                }
                Err(error) => {
                    debug!(dataplane = name, error = %chain(&error), "could not look at the installed rules")
                }
            }
        }
    }

    fn apply_wanted(&mut self) {
        let Some(wanted) = self.wanted.as_mut().filter(|wanted| !wanted.applied) else { return };
        let start = self.clock.now();
        let mut results = Vec::new();
        for (nth, plane) in self.planes.iter_mut().enumerate() {
            let full = plane.torn || plane.scope == Scope::Full;
            let began = self.clock.now();
            let result = plane.apply(&wanted.plan);
            let took = self.clock.now().duration_since(began);
            let syncs = plane.dataplane.take_syncs();
            match (nth, &result) {
                (0, Ok(_)) if syncs.is_empty() => self.around.metrics.synced(&at_once(took, full)),
                (0, Ok(_)) => {
                    self.families = syncs.iter().map(|sync| sync.family).collect();
                    self.around.metrics.synced_only(&syncs);
                }
                (_, Ok(_)) => self.around.metrics.beside(&syncs),
                (_, Err(_)) => self.around.metrics.synced(&syncs),
            }
            match result {
                Ok(applied) => results.push(applied),
                Err(error) => {
                    let message = format!("{}: {}", plane.dataplane.name(), chain(&error));
                    warn!(dataplane = plane.dataplane.name(), error = %chain(&error), retry_ms = self.backoff.as_millis(), "apply failed; what was installed stays");
                    self.around.metrics.apply_failed();
                    self.around.board.set(Part::Proxy, false, message.clone());
                    self.around.board.set_dataplane_error(message);
                    self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
                    return;
                }
            }
        }
        wanted.applied = true;
        self.around.health.updated();
        self.told.send_if_modified(|told| self.checks.tell(told));
        self.backoff = MIN_BACKOFF;
        let plan = Arc::clone(&wanted.plan);
        let took = self.clock.now().duration_since(start);
        self.forget_stale_flows(&plan);
        let arrivals = std::mem::take(&mut self.arrivals);
        self.report(took, &results, &arrivals);
        if !self.swept {
            self.swept = true;
            self.planes.sweep_others(&self.around.config);
        }
    }

    /// After the rules, or a packet in between would make the flow anew.
    fn forget_stale_flows(&mut self, plan: &ServicePlan) {
        match self.flows.forget_stale(plan) {
            Ok(looked) => {
                self.around.metrics.looked(&looked);
                for family in looked {
                    debug!(family = %family.family, forgotten = family.forgotten, elapsed_ms = family.took.as_millis(), "looked through the flows");
                }
            }
            // Looked through again after the next apply.
            Err(error) => {
                warn!(error = %chain(&error), "flows to endpoints that left may go on until they time out");
            }
        }
    }

    fn report(&self, took: Duration, results: &[Applied], arrivals: &Arrivals) {
        let Some(wanted) = &self.wanted else { return };
        let Some(first) = results.first() else { return };
        let changed: usize = results.iter().map(|applied| applied.changed).sum();
        // What the main dataplane cannot do is refused only if the one beside it cannot do it either.
        let (delegated, refused): (Vec<_>, Vec<_>) = first.refused.iter().partition(|refusal| {
            results
                .get(1)
                .is_some_and(|beside| beside.refused.iter().all(|other| other.frontend != refusal.frontend))
        });
        let state = DataplaneState {
            name: self.planes.name().to_owned(),
            requested: self.planes.requested().to_owned(),
            reason: self.planes.reason().to_owned(),
            generation: wanted.plan.generation,
            frontends: count(wanted.plan.v4.frontends.len() + wanted.plan.v6.frontends.len()),
            endpoints: count(results.iter().map(|applied| applied.endpoints).max().unwrap_or_default()),
            last_apply: Some(SystemTime::now().into()),
            last_apply_ms: Some(took.as_secs_f64() * 1000.0),
            last_error: None,
            refused: refused.into_iter().map(refusal_state).collect(),
            delegated: delegated.into_iter().map(refusal_state).collect(),
            companion: self.planes.companion().map(str::to_owned),
            ..DataplaneState::default()
        };
        if changed > 0 {
            info!(
                generation = wanted.plan.generation,
                frontends = state.frontends,
                changed,
                elapsed_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                "applied plan"
            );
        }
        let message = format!("{} frontends in {}", state.frontends, self.planes.name());
        self.around.metrics.applied(&self.families, wanted.changed_at, &arrivals.triggered);
        self.around.board.set_plan(Arc::clone(&wanted.snapshot), Arc::clone(&wanted.plan));
        self.around.board.set_dataplane(state);
        self.around.board.set(Part::Proxy, true, message);
    }
}

/// What a dataplane did that does its families together.
fn at_once(took: Duration, full: bool) -> [FamilySync; 2] {
    Family::ALL.map(|family| FamilySync { family, took, full, failed: false, rules: Vec::new() })
}

fn refusal_state(refusal: &netd_dataplane::Refusal) -> Refusal {
    Refusal { subject: format!("{} {}", refusal.service, refusal.frontend), reason: refusal.reason.clone() }
}

impl Plane {
    /// Applies what has piled up since the last success.
    fn apply(&mut self, plan: &ServicePlan) -> Result<Applied, ApplyError> {
        if self.torn {
            self.dataplane.resync()?;
            self.torn = false;
            self.scope = Scope::Full;
        }
        match self.dataplane.apply(plan, &self.scope) {
            Ok(applied) => {
                self.scope = Scope::Services(BTreeSet::new());
                Ok(applied)
            }
            Err(error) => {
                // After any failure the next apply starts from what the kernel really has.
                self.torn = true;
                Err(error)
            }
        }
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// What the planner knows of this node.
pub(super) fn node_view(config: &Config, node: &Arc<str>, snapshot: &Snapshot) -> NodeView {
    let own = snapshot.nodes.get(node);
    let addresses = &config.proxy.node_port_addresses;
    NodeView {
        name: Arc::clone(node),
        zone: own.and_then(|own| own.zone.clone()),
        local_pods: local_pods(config, own),
        node_port_addresses: if addresses.is_empty() {
            NodePortAddresses::AllLocal
        } else {
            NodePortAddresses::Prefixes(addresses.clone())
        },
        masquerade_all: config.proxy.masquerade_all,
        allowed_external_ips: config.proxy.allowed_external_ips.clone(),
        answered_here: answered_here(config),
    }
}

/// Which sources count as pods.
fn local_pods(config: &Config, own: Option<&Arc<Node>>) -> LocalPods {
    match &config.proxy.local_pods {
        LocalPodsChoice::ClusterCidrs => LocalPods::Prefixes(config.cluster_cidrs.clone()),
        LocalPodsChoice::NodeCidrs => {
            let told = own.map(|own| own.pod_cidrs.clone()).filter(|told| !told.is_empty());
            let prefixes = told.unwrap_or_else(|| config.cni.pod_cidrs.clone());
            // As long as nobody has given the node a range, nothing is from elsewhere either.
            if prefixes.is_empty() { LocalPods::None } else { LocalPods::Prefixes(prefixes) }
        }
        LocalPodsChoice::BridgeInterface(name) => LocalPods::BridgeInterface(name.clone()),
        LocalPodsChoice::InterfaceNamePrefix(prefix) => LocalPods::InterfaceNamePrefix(prefix.clone()),
        LocalPodsChoice::None => LocalPods::None,
    }
}

/// The DNS addresses that this netd answers itself: no dataplane may take their traffic away.
fn answered_here(config: &Config) -> BTreeSet<FrontendKey> {
    if !config.parts.dns {
        return BTreeSet::new();
    }
    let key =
        |address, protocol| FrontendKey { address: FrontendAddress::Ip(address), protocol, port: DNS_PORT };
    config
        .dns
        .addresses
        .iter()
        .flat_map(|address| [Protocol::Tcp, Protocol::Udp].map(|protocol| key(*address, protocol)))
        .collect()
}
