//! `netd ipam` with a real ledger and real links, and no daemon.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use netd_ipam::{Ledger, Moment, Options, Owner, Pod, Pool, Range};
use netd_kernel::netlink::BridgeSpec;
use netd_kernel::{Namespace, Netlink};
use netd_lab::Place;
use serde_json::Value;

use crate::node::{Ended, TestNode, netd};

const PATIENCE: Duration = Duration::from_secs(20);

/// Gives these containers an address each of the node's range, two minutes ago.
fn lease(directory: &Path, containers: &[&str]) {
    let mut now = Moment::now().unwrap();
    now.uptime = now.uptime.checked_sub(Duration::from_secs(120)).expect("the machine runs for two minutes");
    let options = Options { directory, network: "netd", cool_down: Duration::from_secs(30), now };
    let mut ledger = Ledger::open(options, || Ok::<_, Infallible>(Vec::new())).unwrap();
    let range = Range::new("172.16.0.0/24".parse().unwrap(), None, None, None).unwrap();
    for name in containers {
        let owner = Owner { container: (*name).to_owned(), interface: "eth0".to_owned() };
        let pod = Pod { namespace: "default".into(), name: format!("pod-{name}"), uid: String::new() };
        ledger.allocate(&owner, Some(&pod), &[Pool::new(vec![range]).unwrap()]).unwrap();
    }
}

fn ipam(node: &TestNode, args: &[&str]) -> Ended {
    let config = node.config_file("");
    let mut all = vec!["ipam"];
    all.extend(args);
    all.extend(["--config", config]);
    node.run(&all, PATIENCE)
}

#[test]
fn leases_are_shown_a_leak_is_named_and_only_a_leak_is_released() {
    let node = TestNode::new("ipam");
    let directory = node.manifests().with_file_name("ipam");
    std::fs::write(directory.with_file_name("ranges.json"), r#"{"podCIDRs":["172.16.0.0/24"]}"#).unwrap();
    assert_eq!(ipam(&node, &["ls"]).code, 0, "no ledger is no error");
    lease(&directory, &["c1", "c2"]);
    let mut netlink = Netlink::open_in(&Namespace::open(node.place().netns()).unwrap()).unwrap();
    let alias = "netd net=netd ip=172.16.0.2 if=eth0 id=c1";
    netlink.add_bridge(&BridgeSpec { name: "netdc1", mac: None, mtu: None, alias: Some(alias) }).unwrap();

    let list = ipam(&node, &["ls"]);
    assert_eq!(list.code, 0, "{}", list.stderr);
    assert!(list.stdout.contains("default/pod-c1") && list.stdout.contains("2m"), "{}", list.stdout);
    let list: Value = serde_json::from_str(&ipam(&node, &["ls", "-o", "json"]).stdout).unwrap();
    assert_eq!((&list["apiVersion"], &list["kind"]), (&"netd.io/v1alpha1".into(), &"IpamNetworkList".into()));
    assert_eq!(list["items"][0]["ranges"][0]["free"], 251);
    assert_eq!(list["items"][0]["leases"][1]["pod"], "pod-c2");
    let other = ipam(&node, &["ls", "-n", "other"]);
    assert!(other.stdout.contains("No leases found."), "{}", other.stdout);

    let check = ipam(&node, &["check"]);
    assert_eq!(check.code, 1, "{}{}", check.stdout, check.stderr);
    let next = format!("netd ipam release --data-dir {} --network netd 172.16.0.3\n", directory.display());
    assert!(check.stdout.contains(&next), "{}", check.stdout);
    assert!(!check.stdout.contains("172.16.0.2"), "{}", check.stdout);

    let refused = ipam(&node, &["release", "172.16.0.2"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("link netdc1 has it") && refused.stderr.lines().count() == 1,
        "{}",
        refused.stderr
    );
    let dry = ipam(&node, &["release", "--dry-run", "172.16.0.3"]);
    assert!(dry.code == 0 && dry.stdout.starts_with("would release"), "{}{}", dry.stdout, dry.stderr);
    assert_eq!(ipam(&node, &["check"]).code, 1, "a dry run changes nothing");
    let done = ipam(&node, &["release", "172.16.0.3"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let check = ipam(&node, &["check", "-o", "json"]);
    assert_eq!(check.code, 0, "{}", check.stdout);
    let check: Value = serde_json::from_str(&check.stdout).unwrap();
    assert_eq!((&check["leases"], &check["links"]), (&1.into(), &1.into()));
    assert_eq!(ipam(&node, &["release", "172.16.0.3"]).code, 1, "nobody has it");
    assert_eq!(ipam(&node, &["release", "--force", "172.16.0.2"]).code, 0);
}

#[test]
fn without_root_each_command_says_so_on_one_line() {
    for args in [&["ipam", "ls"][..], &["ipam", "check"], &["ipam", "release", "172.16.0.2"]] {
        let ended = netd(args).run_by(65_534).output();
        assert_eq!((ended.code, ended.stderr.lines().count()), (64, 1), "{}", ended.stderr);
        assert!(ended.stderr.contains("needs root"), "{}", ended.stderr);
    }
}
