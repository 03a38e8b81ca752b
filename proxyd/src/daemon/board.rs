//! What the parts of the daemon say of themselves: the one place that status, readiness and metrics read.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use ipnetwork::IpNetwork;
use netd_admin::{
    DataplaneState, DnsState, GarbageState, KindState, NodeRouteState, PartState, SourceState, StateDoc,
    StateSource, UpstreamState,
};
use netd_dns::{Forwarder, Metrics as DnsMetrics};
use netd_model::{Notice, ServicePlan, Snapshot};
use netd_watch::{SourceStatus, Subscriber};

/// A part that can be switched off and fails on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// The source of objects.
    Watch,
    /// Service load balancing.
    Proxy,
    /// Routes to other nodes' pods.
    Fabric,
    /// What the CNI plugin needs.
    Cni,
    /// Cluster DNS.
    Dns,
}

impl Part {
    /// The name in status, readiness and metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Watch => "watch",
            Self::Proxy => "proxy",
            Self::Fabric => "fabric",
            Self::Cni => "cni",
            Self::Dns => "dns",
        }
    }
}

/// The running DNS server's counters and upstreams.
#[derive(Clone)]
pub(crate) struct DnsHandles {
    /// Counters.
    pub(crate) metrics: Arc<DnsMetrics>,
    /// Upstreams.
    pub(crate) forwarder: Arc<Forwarder>,
    /// Listening addresses, printed.
    pub(crate) listen: Vec<String>,
    /// The cluster's domain.
    pub(crate) domain: String,
}

#[derive(Default)]
struct Inner {
    parts: BTreeMap<Part, PartState>,
    dataplane: Option<DataplaneState>,
    planned: Option<(Arc<Snapshot>, Arc<ServicePlan>)>,
    nodes: Vec<NodeRouteState>,
    dns: Option<DnsHandles>,
    garbage: GarbageState,
    former: Vec<IpNetwork>,
    health_checks: Vec<Notice>,
}

/// Shared by all parts; every method returns at once.
pub(crate) struct Board {
    node: String,
    started: SystemTime,
    source: Subscriber,
    ledgers: PathBuf,
    inner: Mutex<Inner>,
}

impl Board {
    /// A board on which no part has spoken yet.
    pub(crate) fn new(node: String, source: Subscriber, ledgers: PathBuf) -> Self {
        Self { node, started: SystemTime::now(), source, ledgers, inner: Mutex::default() }
    }

    // A panic of one part while it held the lock must not take the others down: the data are plain values.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a part runs, or that it is switched off.
    pub(crate) fn declare(&self, part: Part, enabled: bool) {
        let message = if enabled { "starting" } else { "switched off" }.to_owned();
        let state = PartState { enabled, ready: false, message, since: Some(SystemTime::now().into()) };
        self.inner().parts.insert(part, state);
    }

    /// Notes how a part is; the time changes only with its readiness.
    pub(crate) fn set(&self, part: Part, ready: bool, message: impl Into<String>) {
        let mut inner = self.inner();
        let state = inner.parts.entry(part).or_default();
        if state.ready != ready || state.since.is_none() {
            state.since = Some(SystemTime::now().into());
        }
        state.enabled = true;
        state.ready = ready;
        state.message = message.into();
    }

    /// Notes what the dataplane did last.
    pub(crate) fn set_dataplane(&self, state: DataplaneState) {
        self.inner().dataplane = Some(state);
    }

    /// Notes a failure of the dataplane, keeping what is installed.
    pub(crate) fn set_dataplane_error(&self, message: String) {
        if let Some(dataplane) = &mut self.inner().dataplane {
            dataplane.last_error = Some(message);
        }
    }

    /// Notes the plan that is in the kernel, with the snapshot it was made from.
    pub(crate) fn set_plan(&self, snapshot: Arc<Snapshot>, plan: Arc<ServicePlan>) {
        self.inner().planned = Some((snapshot, plan));
    }

    /// The plan that is in the kernel.
    pub(crate) fn plan(&self) -> Option<Arc<ServicePlan>> {
        self.inner().planned.as_ref().map(|(_, plan)| Arc::clone(plan))
    }

    /// Notes what keeps health checks of Services from being answered.
    pub(crate) fn set_health_checks(&self, notices: Vec<Notice>) {
        self.inner().health_checks = notices;
    }

    /// What keeps health checks of Services from being answered.
    pub(crate) fn health_checks(&self) -> Vec<Notice> {
        self.inner().health_checks.clone()
    }

    /// Notes the routes to other nodes.
    pub(crate) fn set_nodes(&self, nodes: Vec<NodeRouteState>) {
        self.inner().nodes = nodes;
    }

    /// Notes what was collected, by kind, and how much may be garbage.
    pub(crate) fn note_garbage(&self, collected: &[(&'static str, String)], waiting: usize, at: SystemTime) {
        let mut inner = self.inner();
        let garbage = &mut inner.garbage;
        for (kind, object) in collected {
            *garbage.collected.entry((*kind).to_owned()).or_default() += 1;
            garbage.last = Some(format!("{kind} {object}"));
            garbage.last_at = Some(at.into());
        }
        garbage.waiting = u64::try_from(waiting).unwrap_or(u64::MAX);
    }

    /// Notes the ranges that the node had before and that have pods.
    pub(crate) fn set_former_ranges(&self, former: Vec<IpNetwork>) {
        self.inner().former = former;
    }

    /// Notes the running DNS server.
    pub(crate) fn set_dns(&self, handles: DnsHandles) {
        self.inner().dns = Some(handles);
    }

    /// The running DNS server, if any.
    pub(crate) fn dns(&self) -> Option<DnsHandles> {
        self.inner().dns.clone()
    }

    /// The source's state.
    pub(crate) fn source(&self) -> SourceStatus {
        self.source.status()
    }

    /// The newest snapshot.
    pub(crate) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.source.latest()
    }

    /// What the dataplane did last.
    pub(crate) fn dataplane(&self) -> Option<DataplaneState> {
        self.inner().dataplane.clone()
    }

    /// Every part with its state.
    pub(crate) fn parts(&self) -> BTreeMap<String, PartState> {
        let mut parts: BTreeMap<String, PartState> =
            self.inner().parts.iter().map(|(part, state)| (part.name().to_owned(), state.clone())).collect();
        let source = self.source();
        if let Some(watch) = parts.get_mut(Part::Watch.name()) {
            watch.ready = source.synced;
            watch.since = Some(source.since.into());
            watch.message = watch_message(&source);
        }
        parts
    }

    /// Parts that are enabled and not ready, with the reason.
    pub(crate) fn not_ready(&self) -> Vec<String> {
        self.parts()
            .into_iter()
            .filter(|(_, state)| state.enabled && !state.ready)
            .map(|(name, state)| format!("{name}: {}", state.message))
            .collect()
    }

    fn source_state(&self) -> SourceState {
        let status = self.source();
        let snapshot = self.snapshot();
        let (kind, location) = status.source.split_once(' ').unwrap_or((&status.source, ""));
        SourceState {
            kind: if kind == "api" { "kubernetes".to_owned() } else { kind.to_owned() },
            location: location.to_owned(),
            synced: status.synced,
            stale: snapshot.as_ref().is_some_and(|snapshot| snapshot.stale),
            generation: snapshot.as_ref().map_or(0, |snapshot| snapshot.generation),
            kinds: status
                .kinds
                .iter()
                .map(|kind| KindState {
                    kind: kind.kind.to_string(),
                    objects: u64::try_from(kind.objects).unwrap_or(u64::MAX),
                    synced: kind.synced,
                    message: kind.last_error.clone().unwrap_or_default(),
                })
                .collect(),
            ..SourceState::default()
        }
    }
}

fn watch_message(source: &SourceStatus) -> String {
    match (&source.last_error, source.synced, source.connected) {
        (Some(error), _, false) => error.clone(),
        (None, _, false) => format!("connecting to {}", source.source),
        (_, false, true) => "reading all objects for the first time".to_owned(),
        (_, true, true) => source.source.clone(),
    }
}

// === impl StateSource ===

impl StateSource for Board {
    fn state(&self) -> StateDoc {
        let mut doc = StateDoc::new(
            &self.node,
            env!("CARGO_PKG_VERSION"),
            std::process::id(),
            (self.started, SystemTime::now()),
        );
        doc.parts = self.parts();
        doc.source = self.source_state();
        doc.problems = self
            .snapshot()
            .map(|snapshot| snapshot.problems.iter().map(Into::into).collect())
            .unwrap_or_default();
        let inner = self.inner();
        doc.dataplane.clone_from(&inner.dataplane);
        doc.nodes.clone_from(&inner.nodes);
        doc.dns = inner.dns.as_ref().map(|dns| dns_state(dns, doc.source.synced));
        doc.garbage.clone_from(&inner.garbage);
        let former = inner.former.clone();
        let planned = inner.planned.clone();
        doc.notices = inner.health_checks.iter().map(Into::into).collect();
        drop(inner);
        if let Some((snapshot, plan)) = planned {
            doc.services = netd_admin::services(&snapshot, &plan);
            doc.notices.extend(plan.notices.iter().map(Into::into));
        }
        let own = self.snapshot().and_then(|snapshot| snapshot.nodes.get(self.node.as_str()).cloned());
        let pod_cidrs = own.map(|node| node.pod_cidrs.clone()).unwrap_or_default();
        doc.ipam = super::ipam::state(&self.ledgers, &pod_cidrs, &former);
        doc
    }
}

fn dns_state(dns: &DnsHandles, synced: bool) -> DnsState {
    let counters = dns.metrics.snapshot();
    let upstreams = dns.forwarder.upstreams();
    DnsState {
        domain: dns.domain.clone(),
        listen: dns.listen.clone(),
        synced,
        upstreams: upstreams
            .into_iter()
            .map(|upstream| UpstreamState {
                address: upstream.address.to_string(),
                healthy: upstream.healthy,
            })
            .collect(),
        queries: counters.requests.iter().map(|request| request.count).sum(),
        failures: counters.responses.iter().filter(|r| r.rcode == "SERVFAIL").map(|r| r.count).sum(),
        forwards: counters.forwards,
        forward_errors: counters.forward_errors,
    }
}
