//! Many small changes leave the same in the kernel as one large one, and every trace on the way is right.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use netd_dataplane::conformance::build::{name, port, service, slice, snapshot};
use netd_dataplane::conformance::{compare, site};
use netd_dataplane::{Applied, Dataplane};
use netd_lab::Place as _;
use netd_model::build::node_view;
use netd_model::{
    Dirty, Family, Flow, FrontendAddress, LocalPods, NodeView, ObjectName, Origin, Planner, Scope,
    ServicePlan, Snapshot, verdict,
};
use netd_tests::backend::{Home, Kind};
use netd_tests::bed::Bed;

const STEPS: u32 = 16;
const SERVICES: u64 = 6;
/// Traces a step: each reads the kernel's state.
const TRACES: usize = 6;

pub(crate) fn trials(kinds: &[Kind]) -> Vec<Trial> {
    let trial = |kind: &Kind| {
        let kind = *kind;
        let name = format!("increments::{kind}::equal_a_fresh_start");
        crate::trial(name, move || equal_a_fresh_start(kind))
    };
    kinds.iter().map(trial).collect()
}

fn equal_a_fresh_start(kind: Kind) -> Result<()> {
    let bed = Bed::with_one_port(&format!("steps-{kind}"))?;
    let node = bed.node()?;
    let home = Home::of(node);
    let abilities = kind.abilities(node)?;
    node.run(|| -> Result<()> {
        let mut chance = Chance(0x9E37_79B9_7F4A_7C15);
        let mut cluster = snapshot().build();
        let mut planner = Planner::new(view());
        let (first, scope) = planner.update(&cluster, &view(), &Dirty::All);
        let mut backend = kind.open(&home)?;
        backend.resync()?;
        backend.apply(&first, &scope)?;
        for step in 0..STEPS {
            let changed: BTreeSet<ObjectName> = (0..2).map(|_| change(&mut cluster, &mut chance)).collect();
            let (wanted, scope) = planner.update(&cluster, &view(), &Dirty::Services(changed.clone()));
            let applied = backend.apply(&wanted, &scope)?;
            check_traces(&*backend, &wanted, &applied, abilities.masquerades(), &mut chance)
                .with_context(|| format!("step {step}, which changed {changed:?}"))?;
            // What may go only one apply later goes now.
            backend.apply(&wanted, &scope)?;
            let mut fresh = match kind {
                // The pins are locked by their owner.
                Kind::Ebpf | Kind::EbpfAndIptables => {
                    drop(backend);
                    kind.open(&home)?
                }
                Kind::IptablesNft | Kind::IptablesLegacy => kind.open(&home)?,
            };
            fresh.resync()?;
            let rewritten = fresh.apply(&wanted, &Scope::Full)?.changed;
            ensure!(
                rewritten == 0,
                "step {step} changed {changed:?}: a fresh start rewrites {rewritten} objects"
            );
            backend = fresh;
        }
        Ok(())
    })?
}

fn view() -> NodeView {
    NodeView {
        local_pods: LocalPods::Prefixes(Family::ALL.map(site::cluster_cidr).to_vec()),
        allowed_external_ips: Family::ALL.map(site::vip_cidr).to_vec(),
        ..node_view(site::NODE)
    }
}

/// Traces some of the plan's frontends that were not refused.
fn check_traces(
    backend: &dyn Dataplane,
    plan: &ServicePlan,
    applied: &Applied,
    masquerades: bool,
    chance: &mut Chance,
) -> Result<()> {
    let refused: BTreeSet<&str> = applied.refused.iter().map(|refusal| refusal.frontend.as_str()).collect();
    let keys: Vec<_> = Family::ALL
        .into_iter()
        .flat_map(|family| plan.family(family).frontends.keys().map(move |key| (family, *key)))
        .filter(|(_, key)| !refused.contains(key.to_string().as_str()))
        .collect();
    for _ in 0..TRACES.min(keys.len()) {
        let Some((family, key)) = keys.get(chance.below(keys.len() as u64) as usize) else { continue };
        let destination = match key.address {
            FrontendAddress::Ip(address) => address,
            FrontendAddress::NodePort => site::node(*family),
        };
        let (origin, source) = match chance.below(2) {
            0 => (Origin::LocalPod, site::pod(0, *family)),
            _ => (Origin::Host, site::node(*family)),
        };
        let flow = Flow {
            origin,
            in_interface: None,
            source,
            destination,
            destination_is_local: destination == site::node(*family),
            protocol: key.protocol,
            port: key.port,
        };
        let trace = backend.trace(&flow)?;
        let result = compare(&verdict(plan, &flow), &trace.outcome, masquerades);
        ensure!(
            result.is_ok(),
            "{flow:?}: {}: {}",
            result.err().unwrap_or_default(),
            trace.steps.join(" | ")
        );
    }
    Ok(())
}

/// Changes, makes or removes one Service and its endpoints.
fn change(cluster: &mut Snapshot, chance: &mut Chance) -> ObjectName {
    let index = chance.below(SERVICES);
    let text = format!("s{index}");
    let name = name(&text);
    cluster.generation += 1;
    cluster.services.remove(&name);
    cluster.slices.remove(&name);
    if chance.below(5) == 0 {
        return name;
    }
    // Addresses and node ports are few, so that Services take them from each other.
    let number = 200 + chance.below(4) as u8;
    let [v4, v6] = Family::ALL.map(|family| site::cluster_ip(number, family).to_string());
    let mut made = service(&text).cluster_ip(&v4).cluster_ip(&v6).tcp(80);
    if chance.below(2) == 0 {
        made = made.node_port(30200 + chance.below(3) as u16);
    }
    if chance.below(3) == 0 {
        let family = Family::V4;
        made = made.vip(&site::vip(number, family).to_string()).source_range("192.168.1.0/24");
    }
    if chance.below(3) == 0 {
        made = made.external_ip(&site::vip(number, Family::V6).to_string());
    }
    if chance.below(3) == 0 {
        made = made.external_local();
    }
    if chance.below(4) == 0 {
        made = made.internal_local();
    }
    if chance.below(4) == 0 {
        made = made.affinity(std::time::Duration::from_secs(60 + chance.below(60)));
    }
    let mut made = made.created(chance.below(3) as i64).build();
    if let Some(only) = made.ports.first_mut() {
        only.port = port(80 + chance.below(2) as u16);
    }
    let (local, remote) = (chance.below(4) as u8, chance.below(3) as u8);
    let slices = Family::ALL.map(|family| {
        let mut made = slice(&text).named(&format!("{text}-{family}").to_lowercase()).tcp(8080);
        for pod in 1..=local {
            made = made.on(site::NODE, &site::pod(pod, family).to_string());
        }
        for pod in 1..=remote {
            made = made.on(site::OTHER_NODE, &site::remote_pod(pod, family).to_string());
        }
        made.build().into()
    });
    cluster.services.insert(name.clone(), made.into());
    cluster.slices.insert(name.clone(), slices.to_vec());
    name
}

/// Chance that is the same in every run (xorshift64).
struct Chance(u64);

impl Chance {
    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The upper bits are the better ones.
        (self.0 >> 33) % end.max(1)
    }
}
