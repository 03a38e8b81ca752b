//! kube-proxy's own metrics, under its names and labels (Kubernetes 1.36, `pkg/proxy/metrics/metrics.go`), so that
//! dashboards and the network programming SLO go on working. docs/metrics.md has what each means here.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netd_dataplane::FamilySync;
use netd_model::{Family, FrontendKind, ServicePlan, ServicePortName, Verdict};
use netd_watch::Arrivals;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::daemon::flows::Looked;

type OfFamily = [(&'static str, &'static str); 1];
type OfTable = [(&'static str, &'static str); 2];
type Seconds = Gauge<f64, AtomicU64>;

/// The metrics that the proxy's thread writes.
#[derive(Clone)]
pub(super) struct Kubeproxy {
    sync: Labelled<OfFamily, Histogram>,
    full: Labelled<OfFamily, Histogram>,
    partial: Labelled<OfFamily, Histogram>,
    last: Labelled<OfFamily, Seconds>,
    queued: Labelled<OfFamily, Seconds>,
    programming: Labelled<OfFamily, Histogram>,
    service_changes: Counter,
    services_pending: Gauge,
    endpoint_changes: Counter,
    endpoints_pending: Gauge,
    restore_failures: Labelled<OfFamily, Counter>,
    partial_failures: Labelled<OfFamily, Counter>,
    rules: Labelled<OfTable, Gauge>,
    rules_last: Labelled<OfTable, Gauge>,
    reconcile: Labelled<OfFamily, Histogram>,
    deleted: Labelled<OfFamily, Counter>,
}

impl Kubeproxy {
    pub(super) fn new() -> Self {
        Self {
            sync: Labelled::new_with_constructor(sync_buckets),
            full: Labelled::new_with_constructor(sync_buckets),
            partial: Labelled::new_with_constructor(sync_buckets),
            last: Labelled::default(),
            queued: Labelled::default(),
            programming: Labelled::new_with_constructor(programming_buckets),
            service_changes: Counter::default(),
            services_pending: Gauge::default(),
            endpoint_changes: Counter::default(),
            endpoints_pending: Gauge::default(),
            restore_failures: Labelled::default(),
            partial_failures: Labelled::default(),
            rules: Labelled::default(),
            rules_last: Labelled::default(),
            reconcile: Labelled::new_with_constructor(sync_buckets),
            deleted: Labelled::default(),
        }
    }

    /// Registers all of them; counters are named without `_total`, which the encoder adds.
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("kubeproxy");
        self.register_syncs(registry);
        self.register_changes(registry);
        let name = "sync_proxy_rules_iptables_restore_failures";
        registry.register(name, "Cumulative proxy iptables restore failures", self.restore_failures.clone());
        let name = "sync_proxy_rules_iptables_partial_restore_failures";
        let help = "Cumulative proxy iptables partial restore failures";
        registry.register(name, help, self.partial_failures.clone());
        let name = "sync_proxy_rules_iptables_total";
        registry.register(name, "Total number of iptables rules owned by netd", self.rules.clone());
        let name = "sync_proxy_rules_iptables_last";
        let help = "Number of iptables rules written by netd in last sync";
        registry.register(name, help, self.rules_last.clone());
        let name = "conntrack_reconciler_sync_duration_seconds";
        registry.register(name, "Latency of a look through the flows in seconds", self.reconcile.clone());
        let name = "conntrack_reconciler_deleted_entries";
        registry.register(name, "Cumulative conntrack flows deleted", self.deleted.clone());
    }

    fn register_syncs(&self, registry: &mut Registry) {
        let help = "SyncProxyRules latency in seconds";
        registry.register("sync_proxy_rules_duration_seconds", help, self.sync.clone());
        let help = "SyncProxyRules latency in seconds for full resyncs";
        registry.register("sync_full_proxy_rules_duration_seconds", help, self.full.clone());
        let help = "SyncProxyRules latency in seconds for partial resyncs";
        registry.register("sync_partial_proxy_rules_duration_seconds", help, self.partial.clone());
        let help = "The last time proxy rules were successfully synced";
        registry.register("sync_proxy_rules_last_timestamp_seconds", help, self.last.clone());
        let help = "The last time a sync of proxy rules was queued";
        registry.register("sync_proxy_rules_last_queued_timestamp_seconds", help, self.queued.clone());
        let help = "In Cluster Network Programming Latency in seconds";
        registry.register("network_programming_duration_seconds", help, self.programming.clone());
    }

    fn register_changes(&self, registry: &mut Registry) {
        let help = "Cumulative proxy rules Service changes";
        registry.register("sync_proxy_rules_service_changes", help, self.service_changes.clone());
        let help = "Pending proxy rules Service changes";
        registry.register("sync_proxy_rules_service_changes_pending", help, self.services_pending.clone());
        let help = "Cumulative proxy rules Endpoint changes";
        registry.register("sync_proxy_rules_endpoint_changes", help, self.endpoint_changes.clone());
        let help = "Pending proxy rules Endpoint changes";
        registry.register("sync_proxy_rules_endpoint_changes_pending", help, self.endpoints_pending.clone());
    }

    /// A sync is asked for in these families.
    pub(super) fn queued(&self, families: &[Family]) {
        let now = since_epoch(SystemTime::now());
        for family in families {
            self.queued.get_or_create(&of(*family)).set(now);
        }
    }

    /// Changes arrived that are not in the kernel yet.
    pub(super) fn arrived(&self, arrivals: &Arrivals) {
        self.service_changes.inc_by(arrivals.services);
        self.services_pending.inc_by(signed(arrivals.services));
        self.endpoint_changes.inc_by(arrivals.slices);
        self.endpoints_pending.inc_by(signed(arrivals.slices));
    }

    /// What a dataplane did in each family, whether it succeeded or not.
    pub(super) fn synced(&self, syncs: &[FamilySync]) {
        for sync in syncs {
            let family = of(sync.family);
            if sync.failed {
                self.restore_failures.get_or_create(&family).inc();
                if !sync.full {
                    self.partial_failures.get_or_create(&family).inc();
                }
                continue;
            }
            let took = sync.took.as_secs_f64();
            self.sync.get_or_create(&family).observe(took);
            let kind = if sync.full { &self.full } else { &self.partial };
            kind.get_or_create(&family).observe(took);
            self.count_rules(sync);
            // A counter that is not there cannot be told from one that nobody keeps.
            if !sync.rules.is_empty() {
                drop(self.restore_failures.get_or_create(&family));
                drop(self.partial_failures.get_or_create(&family));
            }
        }
    }

    /// The rules that a sync left and wrote.
    pub(super) fn count_rules(&self, sync: &FamilySync) {
        for rules in &sync.rules {
            let [family] = of(sync.family);
            let labels = [("table", rules.table), family];
            self.rules.get_or_create(&labels).set(count(rules.total));
            self.rules_last.get_or_create(&labels).set(count(rules.written));
        }
    }

    /// All that arrived is in the kernel, in these families; some of it happened at known times.
    pub(super) fn applied(&self, families: &[Family], triggered: &[(Family, SystemTime)]) {
        self.services_pending.set(0);
        self.endpoints_pending.set(0);
        let now = SystemTime::now();
        for family in families {
            self.last.get_or_create(&of(*family)).set(since_epoch(now));
        }
        for (family, at) in triggered.iter().filter(|(family, _)| families.contains(family)) {
            let latency = now.duration_since(*at).unwrap_or(Duration::ZERO);
            self.programming.get_or_create(&of(*family)).observe(latency.as_secs_f64());
        }
    }

    /// The flows of a family were looked through.
    pub(super) fn looked(&self, looked: &Looked) {
        let family = of(looked.family);
        self.reconcile.get_or_create(&family).observe(looked.took.as_secs_f64());
        self.deleted.get_or_create(&family).inc_by(u64::try_from(looked.forgotten).unwrap_or(u64::MAX));
    }

    /// A family turned out not to be programmed here: it is not waited for.
    pub(super) fn leave_out(&self, family: Family) {
        self.queued.remove(&of(family));
    }
}

/// Service ports that have endpoints, but none that a `Local` policy allows on this node: by policy and family.
///
/// Walks the whole plan: meant for a scrape.
pub(super) fn without_local_endpoints(plan: &ServicePlan) -> Vec<(Vec<(&'static str, String)>, f64)> {
    let mut rows = Vec::new();
    for family in Family::ALL {
        let mut internal: BTreeSet<&ServicePortName> = BTreeSet::new();
        let mut external = BTreeSet::new();
        for frontend in plan.family(family).frontends.values() {
            let ports = if frontend.kind == FrontendKind::ClusterIP { &mut internal } else { &mut external };
            if frontend.verdicts.other == Verdict::Drop {
                ports.insert(&frontend.port);
            }
        }
        for (policy, ports) in [("internal", internal), ("external", external)] {
            let labels = vec![("traffic_policy", policy.to_owned()), ("ip_family", family.to_string())];
            rows.push((labels, f64::from(u32::try_from(ports.len()).unwrap_or(u32::MAX))));
        }
    }
    rows
}

const fn of(family: Family) -> OfFamily {
    let name = match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    [("ip_family", name)]
}

fn sync_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// 0.25 s, 0.5 s, every second to 59 s, every 5 s to 115 s, every 30 s to 5 minutes.
fn programming_buckets() -> Histogram {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    Histogram::new([0.25, 0.5].into_iter().chain(seconds.map(f64::from)))
}

fn since_epoch(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
