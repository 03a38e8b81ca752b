//! The daemon and its commands as an operator meets them: a real netd in a node of its own.

// `cfg(test)` tells the lints that this is test code.
#[cfg(test)]
mod demo;
#[cfg(test)]
mod fabric;
#[cfg(test)]
mod flows;
#[cfg(test)]
mod health;
#[cfg(test)]
mod ipam;
#[cfg(test)]
mod kubeproxy;
#[cfg(test)]
mod metrics;
#[cfg(test)]
mod node;
#[cfg(test)]
mod pods;
#[cfg(test)]
mod reaper;
#[cfg(test)]
mod routed;

use std::time::Duration;

use netd_kernel::clock::eventually;
use netd_lab::Place;
use netd_lab::agent::{Connect, Serve};
use netd_lab::traffic::Outcome;
use node::{TestNode, netd};

const GOOD: &str = "
apiVersion: v1
kind: Service
metadata: {name: good, namespace: default}
spec: {clusterIP: 10.96.1.1, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: good-1, namespace: default, labels: {kubernetes.io/service-name: good}}
addressType: IPv4
ports: [{name: '', protocol: TCP, port: 8080}]
endpoints: [{addresses: [192.168.1.10]}]
";

const BAD: &str = "
apiVersion: v1
kind: Service
metadata: {name: bad-address, namespace: default}
spec: {clusterIP: 10.96.1.300, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: bad-port, namespace: default}
spec: {clusterIP: 10.96.1.2, ports: [{port: 70000}]}
---
{ this is no YAML
";

#[test]
fn a_malformed_object_is_named_in_log_metric_and_status_and_the_rest_is_programmed() {
    let node = TestNode::new("bad-input");
    node.manifest("good.yaml", GOOD);
    node.manifest("bad.yaml", BAD);
    let mut daemon = node.start("");
    daemon.wait_ready();
    let _server = node.serve(8080);

    let outcome = node.place().connect(Connect::tcp("10.96.1.1:80".parse().unwrap())).unwrap();
    assert!(matches!(outcome[..], [Outcome::Answered { .. }]), "{outcome:?}");
    let status = daemon.status(&[]);
    let metrics = node.get("127.0.0.1:10249", "/metrics");
    let log = daemon.log();
    for object in ["default/bad-address", "default/bad-port", "bad.yaml#3"] {
        assert!(status.stdout.contains(object), "{object} is not in status:\n{}", status.stdout);
        assert!(metrics.contains(&format!("object=\"{object}\"")), "{object} is not in metrics:\n{metrics}");
        assert!(log.contains(object), "{object} is not in the log:\n{log}");
    }
    assert_eq!((status.code, daemon.status(&["--strict"]).code), (0, 3));
    let list = node.run(&["svc", "--config", node.config_file(""), "-o", "json"], Duration::from_secs(10));
    let list: serde_json::Value = serde_json::from_str(&list.stdout).unwrap();
    assert_eq!((&list["apiVersion"], &list["kind"]), (&"netd.io/v1alpha1".into(), &"ServiceList".into()));
    assert_eq!(list["items"][0]["name"], "good");
}

#[test]
fn a_directory_that_vanishes_degrades_the_node_and_takes_no_rule_away() {
    let node = TestNode::new("vanish");
    node.manifest("good.yaml", GOOD);
    let mut daemon = node.start("");
    daemon.wait_ready();
    let before = node.rules();
    let (here, gone) = (node.manifests(), node.manifests().with_extension("gone"));
    std::fs::rename(&here, &gone).unwrap();
    let degraded = eventually(Duration::from_secs(20), || {
        let status = daemon.status(&["--strict"]);
        (status.code == 3).then_some(status.stdout)
    });
    let degraded = degraded.expect("status --strict is 3");
    assert!(degraded.lines().next().unwrap().contains("No such file"), "{degraded}");
    assert_eq!(node.rules(), before);
    std::fs::rename(&gone, &here).unwrap();
    let back = eventually(Duration::from_secs(20), || (daemon.status(&["--strict"]).code == 0).then_some(()));
    assert!(back.is_some(), "{}", daemon.status(&[]).stdout);
    assert_eq!(node.rules(), before);
}

#[test]
fn a_second_daemon_is_refused_before_it_touches_anything() {
    let node = TestNode::new("second");
    node.manifest("good.yaml", GOOD);
    let mut daemon = node.start("");
    daemon.wait_ready();
    let second = node.run(&["run", "--config", node.config_file("")], Duration::from_secs(10));
    assert_eq!(second.code, 1, "{}", second.stderr);
    assert!(second.stderr.contains("another netd is running"), "{}", second.stderr);
    daemon.wait_ready();
}

#[test]
fn sigterm_leaves_the_rules_and_cleanup_removes_only_ours() {
    let node = TestNode::new("cleanup");
    node.manifest("good.yaml", GOOD);
    node.iptables(&["-t", "nat", "-N", "KUBE-FOREIGN"]);
    node.iptables(&["-t", "nat", "-A", "PREROUTING", "-j", "KUBE-FOREIGN"]);
    let before = node.rules();
    let mut daemon = node.start("");
    daemon.wait_ready();
    let refused = node.run(&["cleanup", "--config", node.config_file("")], Duration::from_secs(20));
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("stop it first"), "{}", refused.stderr);

    assert_eq!(daemon.terminate(), 0, "{}", daemon.log());
    assert!(node.rules().contains("10.96.1.1"), "the rules went with the daemon");
    let _server = node.serve(8080);
    let outcome = node.place().connect(Connect::tcp("10.96.1.1:80".parse().unwrap())).unwrap();
    assert!(matches!(outcome[..], [Outcome::Answered { .. }]), "{outcome:?}");

    for _ in 0..2 {
        let cleaned = node.run(&["cleanup", "--config", node.config_file("")], Duration::from_secs(20));
        assert_eq!(cleaned.code, 0, "{}{}", cleaned.stdout, cleaned.stderr);
    }
    assert_eq!(node.rules(), before);
    assert!(!node.links().contains(&"netd-dns".to_owned()), "{:?}", node.links());
}

#[test]
fn rules_that_another_program_removes_come_back() {
    let node = TestNode::new("heal");
    node.manifest("good.yaml", GOOD);
    let mut daemon = node.start("");
    daemon.wait_ready();
    let _server = node.serve(8080);
    for flushed in [&["-t", "nat", "-F"][..], &["-t", "nat", "-F", "OUTPUT"], &["-F"]] {
        let before = node.rules();
        node.iptables(flushed);
        assert_ne!(node.rules(), before, "{flushed:?} removed nothing");
        let healed = eventually(Duration::from_secs(20), || (node.rules() == before).then_some(()));
        assert!(healed.is_some(), "{flushed:?}:\n{}\n{}", node.rules(), daemon.log());
        let outcome = node.place().connect(Connect::tcp("10.96.1.1:80".parse().unwrap())).unwrap();
        assert!(matches!(outcome[..], [Outcome::Answered { .. }]), "{flushed:?}: {outcome:?}");
    }
    assert!(daemon.log().contains("another program changed our rules"), "{}", daemon.log());
    let metrics = node.get("127.0.0.1:10249", "/metrics");
    assert!(
        metrics.lines().any(|l| l.contains("repair") && l.contains("rules") && !l.ends_with(" 0")),
        "{metrics}"
    );
}

#[test]
fn a_taken_dns_port_is_named_and_the_other_parts_serve() {
    let node = TestNode::new("port");
    node.manifest("good.yaml", GOOD);
    let holder = node
        .place()
        .serve(Serve { name: "holder".into(), tcp: vec![53], udp: vec![53], stay: false })
        .unwrap();
    let mut daemon = node.start("");
    let state = daemon.wait_for("a DNS that says why it does not serve", |state| {
        state["parts"]["dns"]["message"].as_str().is_some_and(|message| message.contains("taken"))
    });
    assert_eq!(state["parts"]["dns"]["ready"], false);
    daemon.wait_for("a ready proxy", |state| state["parts"]["proxy"]["ready"] == true);
    assert_eq!(daemon.status(&[]).code, 1);
    drop(holder);
    daemon.wait_ready();
}

#[test]
fn a_part_that_is_switched_off_leaves_nothing() {
    let node = TestNode::new("off");
    node.manifest("good.yaml", GOOD);
    let mut daemon = node.start("parts: {proxy: false, dns: false, fabric: true, cni: true}");
    daemon.wait_ready();
    assert!(!node.rules().contains("NETD-"), "{}", node.rules());
    assert!(!node.links().contains(&"netd-dns".to_owned()));
    let status = daemon.status(&[]);
    assert!(status.stdout.contains("switched off"), "{}", status.stdout);
}

#[test]
fn every_mistake_of_the_configuration_is_told_at_once_with_64() {
    let node = TestNode::new("config");
    let run = node.run(
        &["run", "--config", node.config_file("dns: {ttl: 99999}\nclusterCIDRs: []")],
        Duration::from_secs(10),
    );
    assert_eq!(run.code, 64, "{}", run.stderr);
    for mistake in ["dns.ttl", "clusterCIDRs"] {
        assert!(run.stderr.contains(mistake), "{mistake}: {}", run.stderr);
    }
}

#[test]
fn a_missing_directory_of_manifests_is_one_line_with_64() {
    let node = TestNode::new("nodir");
    let run = node.run(
        &["run", "--config", node.config_file(""), "--manifests", "/nonexistent/manifests"],
        Duration::from_secs(10),
    );
    assert_eq!(run.code, 64, "{}", run.stderr);
    assert!(
        run.stderr.lines().last().unwrap_or_default().contains("/nonexistent/manifests"),
        "{}",
        run.stderr
    );
}

#[test]
fn without_root_one_line_says_what_to_do() {
    for command in [&["run"][..], &["demo"], &["cleanup"]] {
        let run = netd(command).run_by(65534).output();
        assert_eq!(run.code, 64, "{command:?}: {}", run.stderr);
        assert_eq!(run.stderr.lines().count(), 1, "{command:?}: {}", run.stderr);
        assert!(run.stderr.contains("sudo"), "{command:?}: {}", run.stderr);
    }
}

#[test]
fn an_unreachable_daemon_is_exit_code_4() {
    let run = netd(&["status", "--socket", "/nonexistent/netd.sock"]).output();
    assert_eq!(run.code, 4, "{}", run.stderr);
    assert!(run.stderr.contains("netd run"), "no next step: {}", run.stderr);
}
