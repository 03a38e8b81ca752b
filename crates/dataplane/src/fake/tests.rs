use std::collections::BTreeSet;

use netd_model::build::{ServiceBuilder, name, net, node_view, service, slice, snapshot};
use netd_model::{Dirty, NodeView, Planner, Snapshot, plan};
use proptest::prelude::*;

use super::*;

fn web() -> Snapshot {
    snapshot()
        .service(service("web").cluster_ip("10.96.0.1").tcp(80).node_port(30080))
        .slice(slice("web").tcp(8080).on("here", "172.16.1.5").on("there", "172.16.2.5"))
        .build()
}

fn planned(snapshot: &Snapshot) -> ServicePlan {
    plan(snapshot, &node_view("here"))
}

#[test]
fn an_apply_reports_what_it_did_and_a_second_changes_nothing() {
    let mut fake = Fake::new();
    let plan = planned(&web());
    let first = fake.apply(&plan, &Scope::Full).unwrap();
    assert_eq!((first.generation, first.frontends, first.endpoints, first.changed), (1, 2, 2, 3));
    let second = fake.apply(&plan, &Scope::Full).unwrap();
    assert_eq!(second.changed, 0);
    assert_eq!(fake.installed().v4, plan.v4);
    assert_eq!(fake.calls(), Calls { applies: 2, applied: 2, ..Calls::default() });
}

#[test]
fn a_told_failure_changes_nothing() {
    let mut fake = Fake::new();
    fake.fail(Failure::Refused);
    fake.fail(Failure::Config);
    let plan = planned(&web());
    assert!(matches!(fake.apply(&plan, &Scope::Full), Err(ApplyError::Refused { .. })));
    assert!(matches!(fake.apply(&plan, &Scope::Full), Err(ApplyError::Config(_))));
    assert!(fake.installed().v4.frontends.is_empty());
    assert!(fake.apply(&plan, &Scope::Full).is_ok());
    assert_eq!(fake.calls().applied, 1);
}

#[test]
fn a_torn_fake_needs_a_resync() {
    let mut fake = Fake::new();
    let watcher = fake.clone();
    let plan = planned(&web());
    fake.apply(&plan, &Scope::Full).unwrap();
    assert!(fake.intact().unwrap());
    watcher.tamper();
    assert!(!fake.intact().unwrap());
    for _ in 0..2 {
        assert!(matches!(fake.apply(&plan, &Scope::Full), Err(ApplyError::Torn { .. })));
    }
    fake.resync().unwrap();
    assert_eq!(fake.apply(&plan, &Scope::Full).unwrap().changed, 3, "all had to be written again");
}

#[test]
fn cleanup_leaves_nothing_and_may_be_repeated() {
    let mut fake = Fake::new();
    fake.apply(&planned(&web()), &Scope::Full).unwrap();
    fake.cleanup().unwrap();
    fake.cleanup().unwrap();
    assert!(fake.installed().v4.frontends.is_empty());
    assert_eq!(fake.calls().cleanups, 2);
}

#[test]
fn the_scope_bounds_what_is_written() {
    let mut fake = Fake::new();
    fake.apply(&planned(&web()), &Scope::Full).unwrap();
    let applied = fake.apply(&ServicePlan::empty(), &Scope::Services([name("other")].into())).unwrap();
    assert_eq!((applied.changed, applied.frontends), (0, 2));
    fake.apply(&ServicePlan::empty(), &Scope::Services([name("web")].into())).unwrap();
    assert!(fake.installed().v4.frontends.is_empty());
}

prop_compose! {
    fn any_service(index: u8)(
        last in 0u8..3,
        port in 80u16..82,
        external in prop::option::of(0u8..2),
        vip in prop::option::of(0u8..2),
        local in any::<bool>(),
        created in prop::option::of(0i64..2),
    ) -> ServiceBuilder {
        // Everything may collide, cluster addresses and node ports included: manifests allow what an API server
        // does not.
        let address = format!("10.96.0.{last}");
        let mut made = service(&format!("s{index}")).cluster_ip(&address).tcp(port).node_port(30000 + port);
        if let Some(last) = external { made = made.external_ip(&format!("203.0.113.{last}")); }
        if let Some(last) = vip { made = made.vip(&format!("203.0.113.{last}")); }
        if local { made = made.external_local(); }
        if let Some(seconds) = created { made = made.created(seconds); }
        made
    }
}

/// What happens to one Service: it vanishes, or becomes this with so many endpoints.
fn any_change() -> impl Strategy<Value = (u8, Option<ServiceBuilder>, u8)> {
    (0u8..5).prop_flat_map(|index| (Just(index), prop::option::weighted(0.8, any_service(index)), 0u8..4))
}

fn change(
    snapshot: &mut Snapshot,
    (index, service, endpoints): (u8, Option<ServiceBuilder>, u8),
) -> ObjectName {
    let name = name(&format!("s{index}"));
    snapshot.generation += 1;
    snapshot.services.remove(&name);
    snapshot.slices.remove(&name);
    if let Some(service) = service {
        snapshot.services.insert(name.clone(), Arc::new(service.build()));
        let backs = (0..endpoints).fold(slice(&format!("s{index}")).tcp(8080), |slice, last| {
            slice.on(if last == 0 { "here" } else { "there" }, &format!("172.16.{last}.5"))
        });
        snapshot.slices.insert(name.clone(), vec![Arc::new(backs.build())]);
    }
    name
}

proptest! {
    /// The scope that a plan comes with is wide enough: applying only that part leaves the same as
    /// applying all of it, also when an address goes from one Service to another.
    #[test]
    fn applying_by_scope_equals_applying_in_full(changes in prop::collection::vec(any_change(), 1..20)) {
        let node = NodeView { allowed_external_ips: vec![net("203.0.113.0/24")], ..node_view("here") };
        let mut fake = Fake::new();
        let mut cluster = snapshot().build();
        let mut planner = Planner::new(node.clone());
        let (first, scope) = planner.update(&cluster, &node, &Dirty::All);
        fake.apply(&first, &scope).unwrap();
        for batch in changes.chunks(2) {
            let names: BTreeSet<ObjectName> =
                batch.iter().map(|one| change(&mut cluster, one.clone())).collect();
            let (wanted, scope) = planner.update(&cluster, &node, &Dirty::Services(names));
            fake.apply(&wanted, &scope).unwrap();
            prop_assert_eq!(&fake.installed().v4, &plan(&cluster, &node).v4);
        }
    }
}
