//! The suite itself: it must fail where something is wrong, or its passing means nothing.

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use netd_dataplane::conformance::{Abilities, Scenario, scenarios};
use netd_dataplane::fake::Fake;
use netd_dataplane::{Applied, ApplyError, Dataplane, Trace, TraceError};
use netd_lab::Place as _;
use netd_model::{Flow, Frontend, Masquerade, Scope, ServicePlan, Verdict};
use netd_tests::backend::{Home, Kind};
use netd_tests::bed::Bed;
use netd_tests::packets::{self, Rig, Tally};

pub(crate) fn trials() -> Vec<Trial> {
    let law = |name: &str| format!("harness::{name}");
    vec![
        crate::trial(law("a_backend_that_only_pretends_fails_every_packet"), pretender),
        crate::trial(law("wrong_rules_are_noticed"), wrong_rules),
    ]
}

/// The fake answers every trace as it should, but no packet meets it.
fn pretender() -> Result<()> {
    let bed = Bed::build("pretend")?;
    let mut scenario = find("cluster address")?;
    scenario.steps.truncate(1);
    for step in &mut scenario.steps {
        step.rows.truncate(2);
    }
    let failures = run(&bed, &mut Fake::new(), &scenario)?;
    ensure!(failures.len() == 2, "{failures:#?}");
    ensure!(failures.iter().all(|failure| failure.contains("packets:")), "{failures:#?}");
    Ok(())
}

/// What is applied differs from what was planned in one thing at a time.
fn wrong_rules() -> Result<()> {
    let bed = Bed::build("skew")?;
    let node = bed.node()?;
    let home = Home::of(node);
    let skews: [(&str, Skew, &str); 4] = [
        ("cluster address", one_endpoint_less, "never answered"),
        ("cluster address", one_endpoint_more, "which is no endpoint"),
        ("source address", other_masquerade, "saw"),
        ("no endpoints", drop_instead_of_reject, "TimedOut"),
    ];
    for (name, skew, complaint) in skews {
        let mut scenario = find(name)?;
        scenario.steps.truncate(1);
        for step in &mut scenario.steps {
            step.rows.truncate(2);
        }
        let inner = node.run(|| Kind::IptablesNft.open(&home))??;
        let failures = run(&bed, &mut Skewed { inner, skew }, &scenario)?;
        let told = failures.iter().any(|failure| failure.contains("packets:") && failure.contains(complaint));
        ensure!(told, "{name}: no row complains {complaint:?}: {failures:#?}");
    }
    Ok(())
}

fn find(name: &str) -> Result<Scenario> {
    scenarios()
        .into_iter()
        .find(|scenario| scenario.name == name)
        .with_context(|| format!("no scenario {name:?}"))
}

fn run(bed: &Bed, backend: &mut dyn Dataplane, scenario: &Scenario) -> Result<Vec<String>> {
    let (abilities, mut tally) = (Abilities::all(), Tally::default());
    packets::try_scenario(&mut Rig { bed, backend, abilities: &abilities, tally: &mut tally }, scenario)
}

/// Changes a plan into a wrong one.
type Skew = fn(&mut ServicePlan);

/// A backend that is given wrong plans.
struct Skewed {
    inner: Box<dyn Dataplane>,
    skew: Skew,
}

impl Dataplane for Skewed {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn resync(&mut self) -> Result<(), ApplyError> {
        self.inner.resync()
    }

    fn apply(&mut self, plan: &ServicePlan, scope: &Scope) -> Result<Applied, ApplyError> {
        let mut wrong = plan.clone();
        (self.skew)(&mut wrong);
        self.inner.apply(&wrong, scope)
    }

    fn intact(&mut self) -> Result<bool, ApplyError> {
        self.inner.intact()
    }

    fn cleanup(&mut self) -> Result<(), ApplyError> {
        self.inner.cleanup()
    }

    fn trace(&self, flow: &Flow) -> Result<Trace, TraceError> {
        self.inner.trace(flow)
    }
}

fn one_endpoint_less(plan: &mut ServicePlan) {
    for pool in plan.v4.pools.values_mut() {
        pool.endpoints.pop();
    }
}

fn one_endpoint_more(plan: &mut ServicePlan) {
    for pool in plan.v4.pools.values_mut() {
        let Some(mut endpoint) = pool.endpoints.first().copied() else { continue };
        endpoint.address = netd_dataplane::conformance::site::pod(3, netd_model::Family::V4);
        pool.endpoints.push(endpoint);
    }
}

fn other_masquerade(plan: &mut ServicePlan) {
    for_verdicts(plan, |verdict| {
        if let Verdict::Balance { masquerade, .. } = verdict {
            *masquerade = match masquerade {
                Masquerade::Hairpin => Masquerade::Always,
                Masquerade::Always => Masquerade::Hairpin,
            };
        }
    });
}

fn drop_instead_of_reject(plan: &mut ServicePlan) {
    for_verdicts(plan, |verdict| *verdict = Verdict::Drop);
}

fn for_verdicts(plan: &mut ServicePlan, change: impl Fn(&mut Verdict)) {
    for Frontend { verdicts, .. } in plan.v4.frontends.values_mut() {
        for verdict in [&mut verdicts.pod, &mut verdicts.host, &mut verdicts.other] {
            change(verdict);
        }
    }
}
