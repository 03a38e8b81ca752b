//! Scenarios that every backend passes: Services as users write them, flows, and what each must experience.
//!
//! A [`Scenario`] is a list of steps; a [`Step`] is a whole snapshot that is applied on top of the step
//! before, and the [`Row`]s that are then tried. What a row must experience is computed by the oracle when it
//! runs; the [`Sketch`] beside it only keeps the suite itself honest.
//!
//! A backend states its [`Abilities`]. A row that needs more than that must find its frontend in
//! [`Applied::refused`](crate::Applied) and must pass untouched, otherwise it fails: nothing is silently
//! left out. The same rows run on the [`Fake`](crate::fake::Fake) in memory and, with packets between
//! namespaces, on every kernel backend.

pub mod site;

mod scenarios;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use netd_model::{
    Dirty, Expected, Family, Flow, FrontendKey, Masquerade, NodeView, ObjectName, Origin, Planner,
    PoolEndpoint, Protocol, Scope, ServicePlan, Snapshot, verdict,
};

use crate::{Applied, ApplyError, Dataplane, Delta, Outcome};

pub use netd_model::build;
pub use scenarios::scenarios;
pub use site::Actor;

/// What a backend must be able to do for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// IPv4 frontends.
    IPv4,
    /// IPv6 frontends.
    IPv6,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP; rows with it are traced only, as the module is often not there.
    Sctp,
    /// Cluster addresses.
    ClusterIP,
    /// Node ports.
    NodePort,
    /// Load balancer addresses.
    LoadBalancer,
    /// External addresses.
    ExternalIP,
    /// Clients in pods of the node.
    FromPod,
    /// Clients in the node's own namespace.
    FromHost,
    /// Clients on other machines.
    FromOutside,
    /// Services without endpoints are refused at once.
    Reject,
    /// Flows that policy leaves without endpoint are dropped.
    Drop,
    /// A pod reaches itself by its Service.
    Hairpin,
    /// Pods are masqueraded where the plan says so. A backend without it sets no source at all, so that no
    /// row's masquerade is compared.
    Masquerade,
    /// `internalTrafficPolicy: Local`.
    InternalLocal,
    /// `externalTrafficPolicy: Local`.
    ExternalLocal,
    /// ClientIP session affinity.
    Affinity,
    /// Load balancer source ranges.
    SourceRanges,
    /// Node ports on chosen addresses only.
    NodePortAddresses,
    /// Local pods recognised by the interface they are on.
    InterfaceDetection,
}

/// What a backend can do, and which flows never reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// What it renders.
    pub supported: BTreeSet<Feature>,
    /// Features of flows that pass it by whatever is installed (a socket hook never sees a packet from
    /// outside); no single frontend can be named for them.
    pub unseen: BTreeSet<Feature>,
}

/// What is done with a row for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// It must experience what the oracle says.
    Check,
    /// Its frontend must be among the refused for want of this feature.
    MustBeRefused(Feature),
    /// It is not for this backend because of this feature.
    Unseen(Feature),
}

impl Abilities {
    /// Everything.
    pub fn all() -> Self {
        use Feature::{
            Affinity, ClusterIP, Drop, ExternalIP, ExternalLocal, FromHost, FromOutside, FromPod, Hairpin,
            IPv4, IPv6, InterfaceDetection, InternalLocal, LoadBalancer, Masquerade, NodePort,
            NodePortAddresses, Reject, Sctp, SourceRanges, Tcp, Udp,
        };
        let supported = [
            IPv4,
            IPv6,
            Tcp,
            Udp,
            Sctp,
            ClusterIP,
            NodePort,
            LoadBalancer,
            ExternalIP,
            FromPod,
            FromHost,
            FromOutside,
            Reject,
            Drop,
            Hairpin,
            Masquerade,
            InternalLocal,
            ExternalLocal,
            Affinity,
            SourceRanges,
            NodePortAddresses,
            InterfaceDetection,
        ];
        Self { supported: supported.into(), unseen: BTreeSet::new() }
    }

    /// The same without some features: their frontends must be refused by name.
    #[must_use]
    pub fn without(mut self, features: impl IntoIterator<Item = Feature>) -> Self {
        for feature in features {
            self.supported.remove(&feature);
        }
        self
    }

    /// The same, blind to flows with some features.
    #[must_use]
    pub fn blind_to(mut self, features: impl IntoIterator<Item = Feature>) -> Self {
        for feature in features {
            self.supported.remove(&feature);
            self.unseen.insert(feature);
        }
        self
    }

    /// Decides what is done with a row.
    pub fn rule(&self, row: &Row) -> Ruling {
        let missing =
            |feature: &&Feature| !self.supported.contains(feature) && !self.unseen.contains(feature);
        if let Some(feature) = row.features.iter().find(missing) {
            return Ruling::MustBeRefused(*feature);
        }
        match row.features.intersection(&self.unseen).next() {
            Some(feature) => Ruling::Unseen(*feature),
            None => Ruling::Check,
        }
    }

    /// True when the backend rewrites sources as the plan says, so that they can be compared.
    pub fn masquerades(&self) -> bool {
        self.supported.contains(&Feature::Masquerade)
    }
}

/// A named sequence of cluster states.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Name, unique in the suite.
    pub name: String,
    /// Steps, applied one after the other to the same backend.
    pub steps: Vec<Step>,
}

/// One state of the cluster and what is tried in it.
#[derive(Clone, Debug)]
pub struct Step {
    /// Name, unique in the scenario.
    pub name: String,
    /// The cluster.
    pub snapshot: Snapshot,
    /// The node that is planned for.
    pub node: NodeView,
    /// What is tried.
    pub rows: Vec<Row>,
}

impl Step {
    /// The plan of this step, in full.
    pub fn plan(&self) -> ServicePlan {
        self.plan_after(None).0
    }

    /// The plan of this step, and its scope when the step `before` is what was applied last.
    pub fn plan_after(&self, before: Option<&Self>) -> (ServicePlan, Scope) {
        let mut planner = Planner::new(self.node.clone());
        let dirty = match before {
            Some(before) => {
                planner.update(&before.snapshot, &before.node, &Dirty::All);
                Dirty::Services(self.changed_since(before))
            }
            None => Dirty::All,
        };
        planner.update(&self.snapshot, &self.node, &dirty)
    }

    /// Services that are not the same in both steps, or whose slices are not.
    fn changed_since(&self, before: &Self) -> BTreeSet<ObjectName> {
        let (old, new) = (&before.snapshot, &self.snapshot);
        let services = Delta::between(&old.services, &new.services);
        let slices = Delta::between(&old.slices, &new.slices);
        let of_services = services.set.into_keys().chain(services.remove);
        of_services.chain(slices.set.into_keys()).chain(slices.remove).collect()
    }
}

/// The shape of an expectation, written by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sketch {
    /// Balanced over this many endpoints.
    Balance(usize, Masquerade),
    /// Refused.
    Reject,
    /// Dropped.
    Drop,
    /// Untouched.
    Pass,
}

/// A flow to try.
#[derive(Clone, Debug)]
pub struct Row {
    /// Who connects.
    pub from: Actor,
    /// To which address.
    pub to: IpAddr,
    /// With which protocol.
    pub protocol: Protocol,
    /// To which port.
    pub port: u16,
    /// The frontend the row is about: what a backend without the features names as refused.
    pub frontend: FrontendKey,
    /// What a backend must be able to do for it.
    pub features: BTreeSet<Feature>,
    /// The expectation's shape.
    pub sketch: Sketch,
}

impl Row {
    /// The flow as the node sees it.
    pub fn flow(&self) -> Flow {
        let family = Family::of(self.to);
        Flow {
            origin: match self.from {
                Actor::Pod(_) => Origin::LocalPod,
                Actor::Host => Origin::Host,
                Actor::Outside => Origin::Remote,
            },
            in_interface: self.from.in_interface().map(str::to_owned),
            source: self.from.address(family),
            destination: self.to,
            destination_is_local: site::node_addresses(family).contains(&self.to),
            protocol: self.protocol,
            port: build::port(self.port),
        }
    }

    /// True when new connections of one client must all reach one endpoint.
    pub fn is_sticky(&self) -> bool {
        self.features.contains(&Feature::Affinity)
    }

    /// True when packets can be sent for it; other rows are traced only.
    pub fn has_packets(&self) -> bool {
        self.sketch != Sketch::Pass && !self.features.contains(&Feature::Sctp)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {} {}/{}", self.from, self.to, self.port, self.protocol)
    }
}

/// Compares the end of a trace with what the oracle says.
///
/// Endpoints are compared by address and port. Masquerade is compared where `masquerades` is true.
///
/// # Errors
/// Says what differs.
pub fn compare(expected: &Expected, outcome: &Outcome, masquerades: bool) -> Result<(), String> {
    let plain = |endpoints: &BTreeSet<PoolEndpoint>| -> BTreeSet<(IpAddr, u16)> {
        endpoints.iter().map(|endpoint| (endpoint.address, endpoint.port.get())).collect()
    };
    let is_same = match (expected, outcome) {
        (
            Expected::Balance { endpoints, masquerade },
            Outcome::Balance { endpoints: found, masquerade: found_masquerade },
        ) => plain(endpoints) == plain(found) && (!masquerades || masquerade == found_masquerade),
        (Expected::Reject, Outcome::Reject)
        | (Expected::Drop, Outcome::Drop)
        | (Expected::Pass, Outcome::Pass) => true,
        (Expected::Balance { .. } | Expected::Reject | Expected::Drop | Expected::Pass, _) => false,
    };
    if is_same { Ok(()) } else { Err(format!("expected {expected:?}, traced {outcome:?}")) }
}

/// Compares the oracle with the sketch of a row.
///
/// # Errors
/// Says what differs.
pub fn compare_sketch(row: &Row, expected: &Expected) -> Result<(), String> {
    let found = match expected {
        Expected::Balance { endpoints, masquerade } => Sketch::Balance(endpoints.len(), *masquerade),
        Expected::Reject => Sketch::Reject,
        Expected::Drop => Sketch::Drop,
        Expected::Pass => Sketch::Pass,
    };
    if found == row.sketch {
        Ok(())
    } else {
        Err(format!("sketched {:?}, the oracle says {found:?}", row.sketch))
    }
}

/// What a run of traces found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Rows that were compared with the oracle.
    pub checked: usize,
    /// Rows whose frontend was refused by name, as it had to be.
    pub refused: usize,
    /// Rows that never reach the backend.
    pub unseen: usize,
    /// What went wrong: scenario, step, row and difference.
    pub failures: Vec<String>,
}

/// Applies every step of `scenarios` to `backend`, each with the scope of what it changes, and traces every
/// row.
///
/// # Errors
/// The first apply that fails.
pub fn run_traces(
    backend: &mut dyn Dataplane,
    abilities: &Abilities,
    scenarios: &[Scenario],
) -> Result<Report, ApplyError> {
    let mut report = Report::default();
    backend.resync()?;
    for scenario in scenarios {
        let mut before = None;
        for step in &scenario.steps {
            let (plan, scope) = step.plan_after(before);
            let applied = backend.apply(&plan, &scope)?;
            before = Some(step);
            for row in &step.rows {
                match check_trace(backend, abilities, &plan, &applied, row) {
                    Ok(Ruling::Check) => report.checked += 1,
                    Ok(Ruling::MustBeRefused(_)) => report.refused += 1,
                    Ok(Ruling::Unseen(_)) => report.unseen += 1,
                    Err(why) => {
                        report.failures.push(format!("{}, {}, {row}: {why}", scenario.name, step.name));
                    }
                }
            }
        }
    }
    Ok(report)
}

/// Traces one row under an applied plan.
///
/// # Errors
/// Says what differs from the oracle, or that a frontend should have been refused by name.
pub fn check_trace(
    backend: &dyn Dataplane,
    abilities: &Abilities,
    plan: &ServicePlan,
    applied: &Applied,
    row: &Row,
) -> Result<Ruling, String> {
    let ruling = abilities.rule(row);
    let expected = match ruling {
        Ruling::Unseen(_) => return Ok(ruling),
        Ruling::Check => verdict(plan, &row.flow()),
        Ruling::MustBeRefused(feature) => {
            let name = row.frontend.to_string();
            let is_planned = plan.family(Family::of(row.to)).frontends.contains_key(&row.frontend);
            if is_planned && !applied.refused.iter().any(|refusal| refusal.frontend == name) {
                return Err(format!("{name} needs {feature:?} and is not among the refused"));
            }
            Expected::Pass
        }
    };
    let trace = backend.trace(&row.flow()).map_err(|error| error.to_string())?;
    compare(&expected, &trace.outcome, abilities.masquerades())
        .map_err(|why| format!("{why}; steps: {}", trace.steps.join(" | ")))?;
    Ok(ruling)
}

#[cfg(test)]
mod tests;
