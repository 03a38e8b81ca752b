use netd_model::{Family, FrontendKind, Masquerade, PoolId, PoolScope, Protocol, Verdict, VerdictBySource};

use super::*;
use crate::compile::compile;
use crate::testing::*;

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Gives the Service other endpoints, or none, which is refused.
fn mutate_endpoints(plan: &mut FamilyPlan, cluster: &PoolId, numbers: &mut Numbers) {
    let addresses: Vec<_> = (0..numbers.below(4)).map(|i| format!("172.16.2.{}", i + 2)).collect();
    let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
    plan.pools.insert(cluster.clone(), endpoints(&addresses));
}

/// Gives the Service another address, kind, pool or verdict, or takes it away; returns its name.
fn mutate(plan: &mut FamilyPlan, numbers: &mut Numbers) -> ObjectName {
    let number = numbers.below(12);
    let service = format!("s{number}");
    let port = name(&service, Protocol::Tcp);
    let cluster = pool_id(&service, Protocol::Tcp, PoolScope::Cluster);
    if numbers.below(2) == 0 && plan.pools.contains_key(&cluster) {
        mutate_endpoints(plan, &cluster, numbers);
        return port.service;
    }
    plan.frontends.retain(|_, frontend| frontend.port.service != port.service);
    plan.pools.retain(|id, _| id.port.service != port.service);
    let object = port.service.clone();
    if numbers.below(4) == 0 {
        return object;
    }
    let addresses: Vec<_> = (0..=numbers.below(4)).map(|i| format!("172.16.1.{}", i + 2)).collect();
    let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
    plan.pools.insert(cluster.clone(), endpoints(&addresses));
    let balanced = balance(cluster, Masquerade::Always);
    let verdicts = match numbers.below(3) {
        0 => VerdictBySource::same(balanced),
        1 => VerdictBySource { other: Verdict::Drop, ..VerdictBySource::same(balanced) },
        _ => VerdictBySource::same(Verdict::Reject),
    };
    let key = at(&format!("10.96.0.{number}"), Protocol::Tcp, 80);
    plan.frontends.insert(key, frontend(port.clone(), FrontendKind::ClusterIP, verdicts.clone()));
    if numbers.below(3) == 0 {
        let key = node_port(Protocol::Tcp, 30000 + u16::try_from(number).unwrap());
        plan.frontends.insert(key, frontend(port, FrontendKind::NodePort, verdicts));
    }
    object
}

#[test]
fn patches_lead_to_the_same_chains_as_compiling_anew() {
    let mut patched = 0;
    for seed in 0..20 {
        let mut numbers = Numbers(seed);
        let mut plan = PlanBuilder::new(Family::V4).build();
        let (mut program, mut chains) = compile(&plan, SETTINGS);
        for step in 0..60 {
            let mut services = BTreeSet::new();
            for _ in 0..=numbers.below(2) {
                services.insert(mutate(&mut plan, &mut numbers));
            }
            let (anew, wanted) = compile(&plan, SETTINGS);
            match program.patch(&plan, SETTINGS, &services) {
                Some(patch) => {
                    patched += 1;
                    chains.retain(|key, _| !patch.old.contains(key));
                    chains.extend(patch.wanted.clone());
                    program.adopt(patch);
                }
                None => (program, chains) = (anew.clone(), wanted.clone()),
            }
            assert_eq!(text(&chains), text(&wanted), "seed {seed}, step {step}");
            assert_eq!(
                (program.frontends(), program.endpoints(), program.refused().count()),
                (anew.frontends(), anew.endpoints(), anew.refused().count()),
                "seed {seed}, step {step}"
            );
        }
    }
    assert!(patched > 400, "{patched} of 1200");
}

#[test]
fn a_changed_endpoint_touches_no_list_of_frontends() {
    let mut plan = PlanBuilder::new(Family::V4).build();
    let web = pool_id("web", Protocol::Tcp, PoolScope::Cluster);
    plan.pools.insert(web.clone(), endpoints(&["172.16.1.2", "172.16.1.3"]));
    let verdicts = VerdictBySource::same(balance(web.clone(), Masquerade::Hairpin));
    let port = name("web", Protocol::Tcp);
    let services = BTreeSet::from([port.service.clone()]);
    plan.frontends
        .insert(at("10.96.0.1", Protocol::Tcp, 80), frontend(port, FrontendKind::ClusterIP, verdicts));
    let (program, _) = compile(&plan, SETTINGS);
    plan.pools.insert(web, endpoints(&["172.16.1.2"]));
    let patch = program.patch(&plan, SETTINGS, &services).unwrap();
    let names: Vec<_> = patch.wanted.keys().map(|key| &key.name[..9]).collect();
    assert_eq!(names, ["NETD-SVC-"]);
    assert_eq!(patch.old.len(), 1);
}

#[test]
fn whatever_all_services_depend_on_forces_a_full_compile() {
    let plan = PlanBuilder::new(Family::V4).build();
    let (program, _) = compile(&plan, SETTINGS);
    let none = BTreeSet::new();
    assert!(program.patch(&plan, SETTINGS, &none).is_some());
    assert!(program.patch(&plan, Settings { mark: 1, ..SETTINGS }, &none).is_none());
    let pods = FamilyPlan { local_pods: LocalPods::None, ..plan.clone() };
    assert!(program.patch(&pods, SETTINGS, &none).is_none());
}
