use netd_dataplane::TableRules;
use netd_model::build::{node_view, service, slice, snapshot};
use netd_model::plan;

use super::*;

fn text(metrics: &Kubeproxy) -> String {
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

fn sync(family: Family, full: bool, failed: bool) -> FamilySync {
    let rules = vec![TableRules { table: "nat", total: 40, written: 4 }];
    FamilySync { family, took: Duration::from_millis(3), full, failed, rules }
}

#[test]
fn samples_have_the_names_and_labels_of_kube_proxy() {
    let metrics = Kubeproxy::new();
    let triggered =
        vec![(Family::V4, SystemTime::now() - Duration::from_millis(300)), (Family::V6, SystemTime::now())];
    metrics.queued(&Family::ALL);
    metrics.leave_out(Family::V6);
    metrics.arrived(&Arrivals { services: 2, slices: 3, triggered: triggered.clone() });
    assert!(text(&metrics).contains("kubeproxy_sync_proxy_rules_endpoint_changes_pending 3\n"));
    metrics.synced(&[sync(Family::V4, true, false), sync(Family::V4, false, true)]);
    metrics.synced(&[sync(Family::V4, false, false)]);
    metrics.applied(&[Family::V4], &triggered);
    metrics.looked(&Looked { family: Family::V4, forgotten: 7, took: Duration::ZERO });
    let text = text(&metrics);
    for sample in [
        "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 2",
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.001\",ip_family=\"IPv4\"} 0",
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"16.384\",ip_family=\"IPv4\"} 2",
        "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.25\",ip_family=\"IPv4\"} 0",
        "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.5\",ip_family=\"IPv4\"} 1",
        "kubeproxy_network_programming_duration_seconds_bucket{le=\"59.0\",ip_family=\"IPv4\"} 1",
        "kubeproxy_network_programming_duration_seconds_bucket{le=\"115.0\",ip_family=\"IPv4\"} 1",
        "kubeproxy_network_programming_duration_seconds_bucket{le=\"300.0\",ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_proxy_rules_service_changes_total 2",
        "kubeproxy_sync_proxy_rules_service_changes_pending 0",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total 3",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
        "kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total{ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_proxy_rules_iptables_total{table=\"nat\",ip_family=\"IPv4\"} 40",
        "kubeproxy_sync_proxy_rules_iptables_last{table=\"nat\",ip_family=\"IPv4\"} 4",
        "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"} 1",
        "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 7",
    ] {
        assert!(text.lines().any(|line| line == sample), "{sample} is not in:\n{text}");
    }
    for name in ["last_timestamp_seconds", "last_queued_timestamp_seconds"] {
        assert!(
            text.contains(&format!("kubeproxy_sync_proxy_rules_{name}{{ip_family=\"IPv4\"}} 1")),
            "{name}:\n{text}"
        );
    }
    assert!(!text.contains("IPv6"), "a family that is not programmed:\n{text}");
    assert_eq!(
        text.matches("kubeproxy_network_programming_duration_seconds_bucket").count(),
        2 + 59 + 12 + 7 + 1
    );
}

#[test]
fn a_service_port_whose_policy_leaves_it_without_endpoints_is_counted_once() {
    let all = snapshot()
        .service(service("inside").cluster_ip("10.96.0.1").tcp(80).internal_local())
        .service(
            service("outside")
                .cluster_ip("10.96.0.2")
                .tcp(80)
                .node_port(30080)
                .vip("203.0.113.1")
                .external_local(),
        )
        .service(service("empty").cluster_ip("10.96.0.3").tcp(80).internal_local())
        .slice(slice("inside").tcp(8080).on("n2", "172.16.2.2"))
        .slice(slice("outside").tcp(8080).on("n2", "172.16.2.3"))
        .build();
    let rows = without_local_endpoints(&plan(&all, &node_view("n1")));
    let numbers: Vec<_> =
        rows.iter().map(|(labels, value)| (labels[0].1.as_str(), labels[1].1.as_str(), *value)).collect();
    let wanted = [
        ("internal", "IPv4", 1.0),
        ("external", "IPv4", 1.0),
        ("internal", "IPv6", 0.0),
        ("external", "IPv6", 0.0),
    ];
    assert_eq!(numbers, wanted);
}
