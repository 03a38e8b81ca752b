//! Prometheus metrics; where kube-proxy and CoreDNS have a metric, its name and meaning are kept.

mod kubeproxy;

use std::sync::Arc;
use std::time::SystemTime;

use netd_dataplane::FamilySync;
use netd_dns::Transport;
use netd_model::{Family, ServicePlan};
use netd_watch::Arrivals;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::board::Board;
use super::flows::Looked;
use kubeproxy::Kubeproxy;

/// Refused objects that are named one by one; more are only counted, so that no source of objects can
/// make the scrape grow without bound.
const NAMED_OBJECTS: usize = 100;

/// Metrics that the parts write; the rest is read from the board at each scrape.
pub(crate) struct Metrics {
    registry: Registry,
    kubeproxy: Kubeproxy,
    programming: Histogram,
    apply_failures: Counter,
    repairs: Labelled<Vec<(&'static str, String)>, Counter>,
    collected: Labelled<Vec<(&'static str, String)>, Counter>,
    healthz: Labelled<Vec<(&'static str, String)>, Counter>,
    livez: Labelled<Vec<(&'static str, String)>, Counter>,
}

impl Metrics {
    /// Registers everything.
    pub(crate) fn new(board: Arc<Board>) -> Self {
        let mut registry = Registry::default();
        let metrics = Self {
            kubeproxy: Kubeproxy::new(),
            programming: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            apply_failures: Counter::default(),
            repairs: Labelled::default(),
            collected: Labelled::default(),
            healthz: Labelled::default(),
            livez: Labelled::default(),
            registry: Registry::default(),
        };
        metrics.kubeproxy.register(&mut registry);
        registry.register(
            "netd_programming_duration_seconds",
            "Time from the arrival of a change to rules in the kernel",
            metrics.programming.clone(),
        );
        registry.register(
            "netd_apply_failures",
            "Applies that failed and are retried",
            metrics.apply_failures.clone(),
        );
        registry.register(
            "netd_repairs",
            "Times that something another program removed was put back",
            metrics.repairs.clone(),
        );
        registry.register(
            "netd_garbage_collected",
            "Objects of pods that are gone that were taken away",
            metrics.collected.clone(),
        );
        for (name, help, answers) in [
            ("kubeproxy_proxy_healthz", "Answers of /healthz, by status", &metrics.healthz),
            ("kubeproxy_proxy_livez", "Answers of /livez, by status", &metrics.livez),
        ] {
            registry.register(name, help, answers.clone());
        }
        registry.register_collector(Box::new(BoardCollector(board)));
        Self { registry, ..metrics }
    }

    /// Notes that all that arrived is in the kernel, in these families: when the oldest of it arrived, and when
    /// some of it happened.
    pub(crate) fn applied(
        &self,
        families: &[Family],
        changed_at: Option<SystemTime>,
        triggered: &[(Family, SystemTime)],
    ) {
        if let Some(waited) = changed_at.and_then(|at| SystemTime::now().duration_since(at).ok()) {
            self.programming.observe(waited.as_secs_f64());
        }
        self.kubeproxy.applied(families, triggered);
    }

    /// Notes that a sync is asked for in these families.
    pub(crate) fn queued(&self, families: &[Family]) {
        self.kubeproxy.queued(families);
    }

    /// Notes what arrived from the source.
    pub(crate) fn arrived(&self, arrivals: &Arrivals) {
        self.kubeproxy.arrived(arrivals);
    }

    /// Notes what the main dataplane did in each family.
    pub(crate) fn synced(&self, syncs: &[FamilySync]) {
        self.kubeproxy.synced(syncs);
    }

    /// The same of a dataplane that programs these families and no others.
    pub(crate) fn synced_only(&self, syncs: &[FamilySync]) {
        let others = Family::ALL.into_iter().filter(|family| syncs.iter().all(|sync| sync.family != *family));
        others.for_each(|family| self.kubeproxy.leave_out(family));
        self.kubeproxy.synced(syncs);
    }

    /// Notes the rules that a dataplane beside the main one has.
    pub(crate) fn beside(&self, syncs: &[FamilySync]) {
        syncs.iter().for_each(|sync| self.kubeproxy.count_rules(sync));
    }

    /// Notes looks through the flows.
    pub(super) fn looked(&self, looked: &[Looked]) {
        looked.iter().for_each(|looked| self.kubeproxy.looked(looked));
    }

    /// Notes a failed apply.
    pub(crate) fn apply_failed(&self) {
        self.apply_failures.inc();
    }

    /// Notes that something was put back: `rules`, `routes`, `dns-address`.
    pub(crate) fn repaired(&self, what: &str) {
        self.repairs.get_or_create(&vec![("what", what.to_owned())]).inc();
    }

    /// How often rules were put back.
    pub(crate) fn rules_repaired(&self) -> u64 {
        self.repairs.get(&vec![("what", "rules".to_owned())]).map_or(0, |count| count.get())
    }

    /// Notes an answer of `healthz` or `livez`.
    pub(crate) fn health_asked(&self, what: &str, status: axum::http::StatusCode) {
        let answers = if what == "healthz" { &self.healthz } else { &self.livez };
        answers.get_or_create(&vec![("code", status.as_str().to_owned())]).inc();
    }

    /// Notes that something was taken away that nothing live owned: `lease`, `link`, `neighbour`, ...
    pub(crate) fn collected(&self, kind: &str) {
        self.collected.get_or_create(&vec![("kind", kind.to_owned())]).inc();
    }

    /// The text of a scrape (OpenMetrics).
    pub(crate) fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Reads the board at each scrape.
struct BoardCollector(Arc<Board>);

impl std::fmt::Debug for BoardCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BoardCollector")
    }
}

type Encoded = Result<(), std::fmt::Error>;

/// One metric family: samples with their labels.
struct Samples<'a> {
    name: &'a str,
    help: &'a str,
    counter: bool,
    rows: Vec<(Vec<(&'static str, String)>, f64)>,
}

fn write(encoder: &mut DescriptorEncoder<'_>, samples: &Samples<'_>) -> Encoded {
    let kind = if samples.counter {
        ConstCounter::new(0.0).metric_type()
    } else {
        ConstGauge::new(0.0).metric_type()
    };
    let mut family = encoder.encode_descriptor(samples.name, samples.help, None, kind)?;
    for (labels, value) in &samples.rows {
        let sample = family.encode_family(labels)?;
        if samples.counter {
            ConstCounter::new(*value).encode(sample)?;
        } else {
            ConstGauge::new(*value).encode(sample)?;
        }
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus samples are doubles")]
const fn float(value: u64) -> f64 {
    value as f64
}

impl Collector for BoardCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        for samples in [self.parts(), self.objects(), self.refused(), self.dataplane(), self.generation()] {
            write(&mut encoder, &samples)?;
        }
        if let Some(plan) = self.0.plan() {
            write(&mut encoder, &no_local_endpoints(&plan))?;
        }
        for samples in self.dns() {
            write(&mut encoder, &samples)?;
        }
        Ok(())
    }
}

impl BoardCollector {
    fn parts(&self) -> Samples<'static> {
        let rows = self
            .0
            .parts()
            .into_iter()
            .filter(|(_, state)| state.enabled)
            .map(|(name, state)| (vec![("part", name)], f64::from(u8::from(state.ready))));
        gauge("netd_part_ready", "1 when the part is ready", rows.collect())
    }

    fn objects(&self) -> Samples<'static> {
        let kinds = self.0.source().kinds;
        let rows = kinds.iter().map(|kind| {
            let objects = u64::try_from(kind.objects).unwrap_or(u64::MAX);
            (vec![("kind", kind.kind.to_string())], float(objects))
        });
        gauge("netd_source_objects", "Objects known, by kind", rows.collect())
    }

    fn refused(&self) -> Samples<'static> {
        let snapshot = self.0.snapshot();
        let problems = snapshot.iter().flat_map(|snapshot| snapshot.problems.iter()).take(NAMED_OBJECTS);
        let rows: std::collections::BTreeSet<Vec<(&'static str, String)>> = problems
            .map(|problem| vec![("kind", problem.kind.clone()), ("object", problem.object.clone())])
            .collect();
        gauge(
            "netd_refused_object",
            "1 for each object that was refused (the first 100 by name)",
            rows.into_iter().map(|labels| (labels, 1.0)).collect(),
        )
    }

    fn dataplane(&self) -> Samples<'static> {
        let rows = self.0.dataplane().into_iter().flat_map(|state| {
            [("frontends", state.frontends), ("endpoints", state.endpoints)].map(|(what, count)| {
                (vec![("dataplane", state.name.clone()), ("what", what.to_owned())], float(count))
            })
        });
        gauge("netd_dataplane_programmed", "Frontends and endpoints in the kernel", rows.collect())
    }

    fn generation(&self) -> Samples<'static> {
        let generation = self.0.snapshot().map_or(0, |snapshot| snapshot.generation);
        gauge(
            "netd_snapshot_generation",
            "Generation of the newest snapshot",
            vec![(Vec::new(), float(generation))],
        )
    }

    fn dns(&self) -> Vec<Samples<'static>> {
        let Some(dns) = self.0.dns() else { return Vec::new() };
        let counters = dns.metrics.snapshot();
        let requests = counters.requests.iter().map(|request| {
            let proto = match request.transport {
                Transport::Udp => "udp",
                Transport::Tcp => "tcp",
            };
            let family = match request.family {
                Family::V4 => "1",
                Family::V6 => "2",
            };
            let labels = vec![
                ("proto", proto.to_owned()),
                ("family", family.to_owned()),
                ("type", request.record_type.to_owned()),
            ];
            (labels, float(request.count))
        });
        let responses = counters.responses.iter().map(|response| {
            let plugin = format!("{:?}", response.origin).to_lowercase();
            (vec![("rcode", response.rcode.to_owned()), ("plugin", plugin)], float(response.count))
        });
        vec![
            counter("coredns_dns_requests", "DNS queries", requests.collect()),
            counter("coredns_dns_responses", "DNS answers", responses.collect()),
            counter(
                "netd_dns_forwards",
                "Queries sent upstream",
                vec![(Vec::new(), float(counters.forwards))],
            ),
            counter(
                "netd_dns_forward_errors",
                "Queries that no upstream answered",
                vec![(Vec::new(), float(counters.forward_errors))],
            ),
        ]
    }
}

fn no_local_endpoints(plan: &ServicePlan) -> Samples<'static> {
    gauge(
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "Number of services with a Local traffic policy and no endpoints",
        kubeproxy::without_local_endpoints(plan),
    )
}

const fn gauge<'a>(
    name: &'a str,
    help: &'a str,
    rows: Vec<(Vec<(&'static str, String)>, f64)>,
) -> Samples<'a> {
    Samples { name, help, counter: false, rows }
}

const fn counter<'a>(
    name: &'a str,
    help: &'a str,
    rows: Vec<(Vec<(&'static str, String)>, f64)>,
) -> Samples<'a> {
    Samples { name, help, counter: true, rows }
}
