use netd_model::{FrontendKind, Masquerade, NodePortAddresses, PoolScope, Protocol};

use super::*;
use crate::testing::*;

fn golden(plan: &FamilyPlan) -> String {
    text(&compile(plan, SETTINGS).1)
}

#[test]
fn every_feature_v4() {
    insta::assert_snapshot!(golden(&everything(Family::V4).build()));
}

#[test]
fn every_feature_v6() {
    insta::assert_snapshot!(golden(&everything(Family::V6).build()));
}

#[test]
fn every_feature_without_bpf() {
    let settings = Settings { same_address: false, ..SETTINGS };
    insta::assert_snapshot!(text(&compile(&everything(Family::V4).build(), settings).1));
}

#[test]
fn a_service_costs_a_chain_and_a_rule_an_endpoint_and_two() {
    let pool = pool_id("web", Protocol::Tcp, PoolScope::Cluster);
    let verdicts = VerdictBySource {
        pod: balance(pool.clone(), Masquerade::Hairpin),
        ..VerdictBySource::same(balance(pool.clone(), Masquerade::Always))
    };
    let plan = PlanBuilder::new(Family::V4);
    let count = |chains: &Chains| (chains.values().map(Vec::len).sum::<usize>(), chains.len());
    let (rules, number) = count(&compile(&plan.build(), SETTINGS).1);
    let plan = PlanBuilder::new(Family::V4).pool(pool, &["172.16.1.2", "172.16.1.3", "172.16.2.4"]).frontend(
        at("10.96.0.10", Protocol::Tcp, 80),
        frontend(name("web", Protocol::Tcp), FrontendKind::ClusterIP, verdicts),
    );
    assert_eq!(count(&compile(&plan.build(), SETTINGS).1), (rules + 3 + 2, number + 1));
}

#[test]
fn a_borrowed_pool_does_not_mark_as_its_owner_does() {
    let pool = pool_id("web", Protocol::Tcp, PoolScope::Cluster);
    let marked = VerdictBySource::same(balance(pool.clone(), Masquerade::Always));
    let plain = VerdictBySource::same(balance(pool.clone(), Masquerade::Hairpin));
    let cluster =
        |service: &str, verdicts| frontend(name(service, Protocol::Tcp), FrontendKind::ClusterIP, verdicts);
    let plan = PlanBuilder::new(Family::V4)
        .pool(pool, &["172.16.1.2"])
        .frontend(at("10.96.0.10", Protocol::Tcp, 80), cluster("web", marked))
        .frontend(at("10.96.0.11", Protocol::Tcp, 80), cluster("borrower", plain));
    let text = golden(&plan.build());
    assert_eq!(text.matches("nat NETD-SVC-").count(), 2, "{text}");
    assert_eq!(text.matches("-j NETD-MARK-MASQ").count(), 1, "{text}");
}

#[test]
fn an_empty_plan_has_the_fixed_chains_only() {
    insta::assert_snapshot!(golden(&FamilyPlan::empty(Family::V4)));
}

#[test]
fn pods_recognised_by_bridge_and_node_ports_on_some_addresses() {
    let plan = everything(Family::V4).change(|plan| {
        plan.local_pods = LocalPods::BridgeInterface("netd0".into());
        plan.node_port_addresses = NodePortAddresses::Prefixes(vec![
            "192.168.1.0/24".parse().unwrap(),
            "2001:db8::/32".parse().unwrap(),
        ]);
    });
    let text = golden(&plan.build());
    assert!(text.contains("  -d 192.168.1.0/24 -m comment --comment \"netd: node ports, always last\""));
    assert!(!text.contains("2001:db8"), "{text}");
    assert!(text.contains("  -i netd0 -m comment --comment \"default/web:p\" -j NETD-SVC-"), "{text}");
    assert!(text.contains("filter NETD-PODS\n  -i netd0 -j ACCEPT\n  -o netd0 -j ACCEPT\n"), "{text}");
}

#[test]
fn every_jump_leads_to_a_chain_of_its_table() {
    for family in Family::ALL {
        let (_, chains) = compile(&everything(family).build(), SETTINGS);
        for (key, lines) in &chains {
            for line in lines {
                let Line::Rule(rule) = line else { panic!("{line}") };
                if let Some(chain) = rule.leads_to() {
                    let target = ChainKey::new(key.table, chain);
                    assert!(chains.contains_key(&target), "{}: {line}", key.name);
                }
            }
        }
    }
}

#[test]
fn counts_are_of_frontends_and_of_endpoints_once_a_pool() {
    let plan = everything(Family::V4).build();
    let (program, _) = compile(&plan, SETTINGS);
    assert_eq!(program.frontends(), plan.frontends.len());
    assert_eq!(program.refused().count(), 0);
}

#[test]
fn what_cannot_be_rendered_is_refused_by_name() {
    let plan = everything(Family::V4)
        .change(|plan| {
            plan.pools.remove(&pool_id("dns", Protocol::Udp, PoolScope::Cluster));
        })
        .build();
    let (program, _) = compile(&plan, Settings { affinity: false, ..SETTINGS });
    let reasons: Vec<_> = program.refused().map(|r| (r.service.as_str(), r.reason.as_str())).collect();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(reasons.iter().any(|(service, why)| *service == "default/sticky:p" && why.contains("xt_recent")));
    assert!(reasons.iter().any(|(service, _)| *service == "default/dns:p"));
    assert_eq!(program.frontends(), plan.frontends.len() - 2);
}

#[test]
fn an_address_that_refuses_does_not_fall_through_to_a_node_port() {
    let web = pool_id("web", Protocol::Tcp, PoolScope::Cluster);
    let plan = PlanBuilder::new(Family::V4)
        .pool(web.clone(), &["172.16.1.2"])
        .frontend(
            node_port(Protocol::Tcp, 30080),
            frontend(
                name("web", Protocol::Tcp),
                FrontendKind::NodePort,
                VerdictBySource::same(balance(web, Masquerade::Always)),
            ),
        )
        .frontend(
            at("192.168.1.101", Protocol::Tcp, 30080),
            frontend(
                name("external", Protocol::Tcp),
                FrontendKind::ExternalIP,
                VerdictBySource::same(Verdict::Drop),
            ),
        )
        .build();
    let text = golden(&plan);
    assert!(
        text.contains("-d 192.168.1.101/32 -p tcp -m comment --comment \"default/external:p external address\" -m tcp --dport 30080 -j ACCEPT"),
        "{text}"
    );
}

#[test]
fn hostile_names_stay_inside_their_comment() {
    let mut hostile = name("x\" -j ACCEPT\nCOMMIT\n*filter\n-A INPUT", Protocol::Tcp);
    hostile.port = "\\\"\u{0}".into();
    let plan = PlanBuilder::new(Family::V4).frontend(
        at("10.96.0.1", Protocol::Tcp, 80),
        frontend(hostile, FrontendKind::ClusterIP, VerdictBySource::same(Verdict::Reject)),
    );
    let (_, chains) = compile(&plan.build(), SETTINGS);
    for line in chains.values().flatten() {
        let text = line.to_string();
        assert!(!text.contains('\n') && !text.contains('\\') && !text.contains('\0'), "{text}");
        let quotes = text.matches('"').count();
        assert!(matches!(quotes, 0 | 2) || text.contains("own endpoint\""), "{text}");
    }
}
