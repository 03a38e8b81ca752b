//! A scrape, with kube-proxy's names, checked against what is in the kernel.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netd_admin::Timestamp;
use netd_kernel::clock::{Clock as _, SystemClock, eventually};

use crate::node::TestNode;

const PATIENCE: Duration = Duration::from_secs(30);

/// A Service with a local policy, and its slice as the controller writes it.
fn service(endpoints: &str, cause: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  clusterIP: 10.96.3.1
  ports: [{{port: 80, nodePort: 30080}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: default
  labels: {{kubernetes.io/service-name: web}}
  annotations: {{endpoints.kubernetes.io/last-change-trigger-time: '{cause}'}}
addressType: IPv4
ports: [{{name: '', protocol: TCP, port: 8080}}]
endpoints: {endpoints}
"
    )
}

fn rfc3339(time: SystemTime) -> String {
    let nanoseconds = time.duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    Timestamp::from(time).to_string().replace('Z', &format!(".{nanoseconds:09}Z"))
}

/// The samples of a scrape.
fn scrape(node: &TestNode) -> BTreeMap<String, f64> {
    let text = node.get("127.0.0.1:10249", "/metrics");
    let lines = text.lines().filter(|line| line.starts_with("kubeproxy_"));
    lines.filter_map(|line| line.rsplit_once(' ')).map(|(k, v)| (k.to_owned(), v.parse().unwrap())).collect()
}

#[test]
fn kube_proxys_metrics_tell_what_is_in_the_kernel() {
    let node = TestNode::new("metrics");
    node.manifest("web.yaml", &service("[{addresses: [172.16.0.2], nodeName: n1}]", "2020-01-01T00:00:00Z"));
    let mut daemon = node.start("parts: {proxy: true, fabric: false, cni: false, dns: false}");
    daemon.wait_ready();
    let now = || SystemClock.wall().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let first = scrape(&node);
    let programming = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"}";
    let partial = "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}";
    let no_local =
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\",ip_family=\"IPv4\"}";
    assert_eq!(first.get(programming), None, "what happened before the start is not measured");
    assert_eq!(first.get(no_local), Some(&0.0));

    let cause = SystemClock.wall();
    let text = service("[{addresses: [172.16.9.2], nodeName: n2}]", &rfc3339(cause));
    node.manifest("web.yaml", &text);
    let second =
        eventually(PATIENCE, || Some(scrape(&node)).filter(|all| all.get(programming) == Some(&1.0)));
    let second = second.unwrap_or_else(|| panic!("{:#?}\n{}", scrape(&node), daemon.log()));
    let sum = second["kubeproxy_network_programming_duration_seconds_sum{ip_family=\"IPv4\"}"];
    let longest = SystemClock.wall().duration_since(cause).unwrap().as_secs_f64();
    assert!(sum > 0.0 && sum <= longest, "{sum} of {longest}");
    assert!(second[partial] >= 1.0, "{second:#?}");
    assert_eq!(second[no_local], 1.0, "its endpoint is on another node");
    for (name, least) in [
        ("kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}", 2.0),
        ("kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"}", 2.0),
        ("kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}", 1.0),
        ("kubeproxy_sync_proxy_rules_service_changes_total", 1.0),
        ("kubeproxy_sync_proxy_rules_service_changes_pending", 0.0),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_total", 2.0),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", 0.0),
        ("kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family=\"IPv4\"}", 0.0),
        ("kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total{ip_family=\"IPv4\"}", 0.0),
        ("kubeproxy_sync_proxy_rules_iptables_last{table=\"nat\",ip_family=\"IPv4\"}", 1.0),
        ("kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"}", 1.0),
        ("kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"}", 0.0),
    ] {
        let value = second.get(name).unwrap_or_else(|| panic!("{name} is not there: {second:#?}"));
        assert!(*value >= least && (*value == 0.0) == (least == 0.0), "{name} {value}");
    }
    for name in ["last_timestamp_seconds", "last_queued_timestamp_seconds"] {
        let at = second[&format!("kubeproxy_sync_proxy_rules_{name}{{ip_family=\"IPv4\"}}")];
        assert!((now() - 60.0..=now()).contains(&at), "{name} {at}");
    }
    let told: f64 = second
        .iter()
        .filter(|(name, _)| name.starts_with("kubeproxy_sync_proxy_rules_iptables_total{"))
        .map(|(_, rules)| rules)
        .sum();
    let rules = node.rules();
    let there = rules.lines().filter(|line| line.starts_with("-A NETD-")).count();
    assert_eq!(told, f64::from(u32::try_from(there).unwrap()), "{rules}");
}
