//! Together with other plugins of a list, and with what a runtime wishes for one pod.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use netd_kernel::exec::{Output, Spawn};
use netd_kernel::{Clock, SystemClock};
use serde_json::{Value, json};

use super::harness::{Host, LIMIT, Space, environment, error_of, network, pod_address, text};

/// Where Debian's containernetworking-plugins has the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// Calls a reference plugin as the runtime would.
pub(crate) fn reference(host: &Host, plugin: &str, verb: &str, pod: &Space, config: &Value) -> Output {
    reference_for(host, plugin, &environment(verb, "c1", pod.path()), config)
}

fn reference_for(host: &Host, plugin: &str, env: &[(&str, &str)], config: &Value) -> Output {
    let mut spawn = Spawn::new(format!("{REFERENCE}/{plugin}"), Vec::<OsString>::new());
    spawn.env = env.iter().map(|(key, value)| (key.into(), value.into())).collect();
    spawn.env.push(("CNI_PATH".into(), REFERENCE.into()));
    spawn.netns = Some(host.space.path.clone());
    spawn
        .output(config.to_string().as_bytes(), LIMIT)
        .expect("this test needs the reference plugins (package containernetworking-plugins)")
}

fn succeeded(output: &Output) -> Value {
    assert_eq!(output.status, 0, "{}{}", text(output), output.complaint());
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

#[test]
fn behind_another_plugin_the_result_has_both() {
    let mut host = Host::new();
    let pod = Space::new("pod");
    host.config["prevResult"] = json!({
        "cniVersion": "1.1.0", "interfaces": [{ "name": "other0", "sandbox": "/x" }],
        "ips": [{ "interface": 0, "address": "10.9.9.9/24" }], "routes": [{ "dst": "10.0.0.0/8" }],
    });
    let result = host.add("c1", &pod);
    assert_eq!(result["interfaces"][0]["name"], "other0");
    assert_eq!(result["interfaces"][3]["name"], "eth0");
    assert_eq!(result["ips"][0]["address"], "10.9.9.9/24");
    assert_eq!(
        result["ips"][1],
        json!({ "interface": 3, "address": "172.16.1.2/32", "gateway": "172.16.1.1" })
    );
    assert_eq!(result["routes"][0]["dst"], "10.0.0.0/8");
    let check = host.check("c1", &pod, &result);
    assert_eq!(check.status, 0, "{}", text(&check));
    host.del("c1", pod.path());
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn the_reference_plugins_go_on_from_our_result() {
    let mut host = Host::new();
    host.config["cniVersion"] = json!("1.0.0");
    let pod = Space::new("pod");
    let mut result = host.add("c1", &pod);
    let later = [
        ("tuning", json!({ "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" }, "mtu": 1400 })),
        ("bandwidth", json!({ "ingressRate": 1_000_000, "ingressBurst": 1_000_000 })),
        (
            "portmap",
            json!({ "snat": true, "runtimeConfig": { "portMappings": [
            { "hostPort": 18080, "containerPort": 80, "protocol": "tcp" }
        ] } }),
        ),
    ];
    for (plugin, keys) in &later {
        result = succeeded(&reference(&host, plugin, "ADD", &pod, &listed(plugin, keys, &result)));
    }
    assert_eq!(pod_address(&result), "172.16.1.2");
    assert_eq!(pod.netlink().link("eth0").unwrap().unwrap().mtu, 1400);
    // CHECK gets the final result, with what the others made of the interface.
    let check = host.check("c1", &pod, &result);
    assert_eq!(check.status, 0, "{}", text(&check));
    for (plugin, keys) in later.iter().rev() {
        succeeded(&reference(&host, plugin, "DEL", &pod, &listed(plugin, keys, &result)));
    }
    host.del("c1", pod.path());
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn a_wished_address_and_mac_are_the_pods() {
    let mut host = Host::with_ranges(json!([[{ "subnet": "172.16.1.0/24" }], [{ "subnet": "fd00:1::/64" }]]));
    let (pod, other) = (Space::new("pod"), Space::new("pod"));
    let plain = host.config.clone();
    host.config["runtimeConfig"] = json!({
        "ips": ["fd00:1::77/64", "172.16.1.77"], "mac": "02:AB:00:00:00:01",
        "dns": { "servers": ["172.16.0.10"], "searches": ["svc"], "options": ["ndots:5"] },
        "io.kubernetes.cri.pod-annotations": { "a": "b" },
    });
    let result = host.add("c1", &pod);
    assert_eq!(result["ips"][0]["address"], "172.16.1.77/32");
    assert_eq!(result["ips"][1]["address"], "fd00:1::77/128");
    assert_eq!(result["interfaces"][2]["mac"], "02:ab:00:00:00:01");
    assert_eq!(
        result["dns"],
        json!({ "nameservers": ["172.16.0.10"], "search": ["svc"], "options": ["ndots:5"] })
    );
    assert!(host.space.connect(&pod.listen("172.16.1.77")).is_ok(), "neighbours know the MAC address");
    let check = host.check("c1", &pod, &result);
    assert_eq!(check.status, 0, "{}", text(&check));
    let error = error_of(&host.verb("ADD", "c2", other.path(), &host.config));
    assert_eq!(error["code"], 11, "{error}");
    assert!(other.links().is_empty());
    host.del("c1", pod.path());
    host.config = plain;
    let mut env = environment("ADD", "c2", other.path());
    env[4].1 = "IP=172.16.1.77;MAC=02:00:00:00:00:09";
    let result = succeeded(&host.call(&env, host.config.to_string().as_bytes()));
    assert_eq!(pod_address(&result), "172.16.1.77");
    assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:09");
    host.del("c2", other.path());
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn the_reference_keys_do_what_they_say() {
    let mut host = Host::with_ranges(json!([[{ "subnet": "172.16.1.0/24" }], [{ "subnet": "fd00:1::/64" }]]));
    host.config["isDefaultGateway"] = json!(false);
    host.config["forceAddress"] = json!(true);
    host.config["promiscMode"] = json!(true);
    host.config["enabledad"] = json!(true);
    let mut netlink = host.space.netlink();
    let spec = netd_kernel::netlink::BridgeSpec { name: "netd0", ..Default::default() };
    let bridge = netlink.add_bridge(&spec).unwrap();
    netlink.add_address(bridge, network("10.99.0.1/16"), true).unwrap();
    let (pod, other) = (Space::new("pod"), Space::new("pod"));
    let result = host.add("c1", &pod);
    assert_eq!(result["routes"], json!([]));
    let prefixes: Vec<_> = netlink.addresses(Some(bridge)).unwrap().iter().map(|a| a.prefix).collect();
    assert!(!prefixes.contains(&network("10.99.0.1/16")) && prefixes.contains(&network("172.16.1.1/24")));
    let settled = pod.netlink().addresses(None).unwrap();
    assert!(settled.iter().all(|address| !address.tentative), "{settled:?}");
    let routes = pod.netlink().routes(netd_kernel::netlink::RouteFilter::default()).unwrap();
    assert!(routes.iter().all(|route| route.destination.prefix() != 0), "{routes:?}");
    let second = host.add("c2", &other);
    assert!(other.connect(&pod.listen(&pod_address(&result))).is_ok(), "pods of the subnet are reached");
    for (id, space, result) in [("c1", &pod, &result), ("c2", &other, &second)] {
        let check = host.check(id, space, result);
        assert_eq!(check.status, 0, "{}", text(&check));
    }
}

/// A plugin behind netd in a list: its name and its keys.
type Later = (&'static str, Value);

/// The configuration that libcni gives a plugin.
fn listed(plugin: &str, keys: &Value, previous: &Value) -> Value {
    let mut config = keys.clone();
    config["cniVersion"] = json!("1.0.0");
    config["name"] = json!("pods");
    config["type"] = json!(plugin);
    config["prevResult"] = previous.clone();
    config
}

/// ADD of netd and then of the others, in the list's order.
fn add_list(host: &Host, later: &[Later], pod: &Space) -> Value {
    let first = host.add("c1", pod);
    later.iter().fold(first, |result, (plugin, keys)| {
        succeeded(&reference(host, plugin, "ADD", pod, &listed(plugin, keys, &result)))
    })
}

/// CHECK in the list's order, with the last result for each.
fn check_list(host: &Host, later: &[Later], pod: &Space, result: &Value) {
    let check = host.check("c1", pod, result);
    assert_eq!(check.status, 0, "{}", text(&check));
    for (plugin, keys) in later {
        succeeded(&reference(host, plugin, "CHECK", pod, &listed(plugin, keys, result)));
    }
}

/// DEL in the other order, with the last result for each.
fn del_list(host: &Host, later: &[Later], pod: &Space, result: &Value) {
    for (plugin, keys) in later.iter().rev() {
        succeeded(&reference(host, plugin, "DEL", pod, &listed(plugin, keys, result)));
    }
    let mut config = host.config.clone();
    config["prevResult"] = result.clone();
    let output = host.verb("DEL", "c1", pod.path(), &config);
    assert_eq!((output.status, text(&output).as_str()), (0, ""));
}

/// All rules of nftables, those of its iptables among them, that name a text.
fn rules_that_name(host: &Host, what: &str) -> Vec<String> {
    let nft = netd_kernel::exec::find_program("nft").expect("nft is missing");
    let mut spawn = Spawn::new(nft, ["list", "ruleset"]);
    spawn.netns = Some(host.space.path.clone());
    let output = spawn.output(b"", LIMIT).unwrap();
    assert_eq!(output.status, 0, "{}", output.complaint());
    text(&output).lines().filter(|line| line.contains(what)).map(|line| line.trim().to_owned()).collect()
}

/// The host and a way out of it by which everybody's packets come back.
fn host_with_a_way_out() -> (Host, Space) {
    let mut host = Host::with_ranges(json!([[{ "subnet": "172.16.1.0/24" }], [{ "subnet": "fd00:1::/64" }]]));
    host.config["cniVersion"] = json!("1.0.0");
    let outside = host.outside();
    (host, outside)
}

#[test]
fn all_of_the_references_plugins_may_stand_behind_netd_and_packets_pass() {
    let (mut host, outside) = host_with_a_way_out();
    // The plugin bandwidth wants the one place for filters that a link has for itself.
    host.config["antiSpoofing"] = json!(false);
    let pod = Space::new("pod");
    let ports = json!([{ "hostPort": 18080, "containerPort": 80, "protocol": "tcp" }]);
    let later: Vec<Later> = vec![
        ("tuning", json!({ "sysctl": { "net.ipv4.conf.eth0.arp_filter": "1" } })),
        ("bandwidth", json!({ "ingressRate": 80_000_000, "ingressBurst": 8_000_000 })),
        ("firewall", json!({ "backend": "iptables" })),
        ("portmap", json!({ "snat": true, "runtimeConfig": { "portMappings": ports } })),
    ];
    let result = add_list(&host, &later, &pod);
    let address = pod_address(&result);
    let listener = pod.run(|| TcpListener::bind((address.parse::<IpAddr>().unwrap(), 80))).unwrap();
    let node: SocketAddr = "192.168.77.1:18080".parse().unwrap();
    let reached = outside.run(|| TcpStream::connect_timeout(&node, Duration::from_secs(5)));
    assert!(reached.is_ok(), "the outside by the port of portmap: {reached:?}");
    assert_eq!(listener.accept().unwrap().1.ip().to_string(), "192.168.77.2");
    assert_eq!(
        pod.connect(&outside.listen("192.168.77.2")).unwrap().to_string(),
        "192.168.77.1",
        "masquerade"
    );
    assert!(host.space.connect(&pod.listen("fd00:1::2")).is_ok());
    assert!(!rules_that_name(&host, &address).is_empty(), "firewall and portmap have rules for the pod");
    check_list(&host, &later[..3], &pod, &result);
    for _ in 0..2 {
        del_list(&host, &later, &pod, &result);
    }
    assert_eq!(host.leftovers(), ["up0"], "the test's own uplink, and none of bandwidth's links");
    assert_eq!(rules_that_name(&host, &address), Vec::<String>::new());
    assert!(pod.links().is_empty());
}

/// Connects again and again until it works: a neighbour may have to learn.
fn connects_soon(from: &Space, pod: &Space, address: &str) -> bool {
    let start = SystemClock.now();
    let listener = pod.listen(address);
    let to = listener.local_addr().unwrap();
    while start.elapsed() < Duration::from_secs(3) {
        if from.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(300))).is_ok() {
            return true;
        }
    }
    false
}

#[test]
fn a_later_plugin_may_change_the_mac_of_a_pod_that_is_not_held_to_it() {
    let (mut host, _outside) = host_with_a_way_out();
    host.config["antiSpoofing"] = json!(false);
    let (pod, other) = (Space::new("pod"), Space::new("pod"));
    host.add("other", &other);
    let later: Vec<Later> = vec![("tuning", json!({ "mac": "c2:11:22:33:44:99" }))];
    let first = host.add("c1", &pod);
    // The node and the other pod have spoken to the old one.
    assert!(
        host.space.connect(&pod.listen("172.16.1.3")).is_ok()
            && other.connect(&pod.listen("fd00:1::3")).is_ok()
    );
    let result = succeeded(&reference(&host, "tuning", "ADD", &pod, &listed("tuning", &later[0].1, &first)));
    assert_eq!(pod.netlink().link("eth0").unwrap().unwrap().mac.unwrap().to_string(), "c2:11:22:33:44:99");
    for (who, from) in [("the node", &host.space), ("the other pod", &other)] {
        for address in ["172.16.1.3", "fd00:1::3"] {
            assert!(connects_soon(from, &pod, address), "{who} reaches {address}");
        }
    }
    check_list(&host, &later, &pod, &result);
    del_list(&host, &later, &pod, &result);
    host.del("other", other.path());
    assert_eq!(host.leftovers(), ["up0"], "the test's own uplink");
}

#[test]
fn a_pod_may_have_a_network_of_the_reference_beside_netds_with_routes_by_source() {
    let (host, _outside) = host_with_a_way_out();
    let pod = Space::new("pod");
    let data = host.data.path().join("networks");
    let theirs = json!({
        "cniVersion": "1.0.0", "name": "theirs", "type": "bridge", "bridge": "cni0", "isDefaultGateway": true,
        "ipam": { "type": "host-local", "dataDir": data, "ranges": [[{ "subnet": "10.88.0.0/24" }]] },
    });
    succeeded(&reference(&host, "bridge", "ADD", &pod, &theirs));
    let mut env = environment("ADD", "c1", pod.path());
    env[3].1 = "net1";
    let output = host.call(&env, host.config.to_string().as_bytes());
    let ours = succeeded(&output);
    let by_source = listed("sbr", &json!({}), &ours);
    let result = succeeded(&reference_for(&host, "sbr", &env, &by_source));
    assert_eq!(pod_address(&result), "172.16.1.2");
    for address in ["10.88.0.2", "172.16.1.2"] {
        assert!(connects_soon(&host.space, &pod, address), "{address} answers by its own link");
    }
    env[0].1 = "DEL";
    succeeded(&reference_for(&host, "sbr", &env, &by_source));
    assert_eq!(host.call(&env, host.config.to_string().as_bytes()).status, 0);
    assert!(connects_soon(&host.space, &pod, "10.88.0.2"), "the other network goes on");
    succeeded(&reference(&host, "bridge", "DEL", &pod, &theirs));
    assert!(pod.links().is_empty());
}

#[test]
fn behind_a_plugin_that_made_the_interface_netd_refuses_and_harms_nothing() {
    let (mut host, _outside) = host_with_a_way_out();
    let pod = Space::new("pod");
    let theirs = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "bridge", "bridge": "cni0", "isGateway": true,
        "ipam": { "type": "host-local", "dataDir": host.data.path().join("networks"), "ranges": [[{ "subnet": "10.88.0.0/24" }]] },
    });
    let result = succeeded(&reference(&host, "bridge", "ADD", &pod, &theirs));
    host.config["prevResult"] = result;
    let error = error_of(&host.verb("ADD", "c1", pod.path(), &host.config));
    assert_eq!(error["code"], 101, "{error}");
    assert!(error["msg"].as_str().unwrap().contains("eth0"), "{error}");
    // The runtime calls DEL of both now; the first is netd's, and has nothing to remove.
    host.del("c1", pod.path());
    assert!(connects_soon(&host.space, &pod, "10.88.0.2"), "the other's interface is untouched");
    succeeded(&reference(&host, "bridge", "DEL", &pod, &theirs));
    assert!(pod.links().is_empty() && host.leases().is_empty());
}

#[test]
fn the_references_egress_limit_stands_behind_netd_where_no_guard_has_the_links_filters() {
    let (mut host, _outside) = host_with_a_way_out();
    let limit = || json!({ "egressRate": 80_000_000, "egressBurst": 8_000_000 });
    for guarded in [true, false] {
        host.config["antiSpoofing"] = json!(guarded);
        let pod = Space::new("pod");
        let first = host.add("c1", &pod);
        let output = reference(&host, "bandwidth", "ADD", &pod, &listed("bandwidth", &limit(), &first));
        assert_eq!(output.status == 0, !guarded, "{}", text(&output));
        if !guarded {
            assert!(connects_soon(&host.space, &pod, "172.16.1.3"));
            check_list(&host, &[], &pod, &first);
        }
        // The runtime calls DEL of all, also after a failed ADD.
        del_list(&host, &[("bandwidth", limit())], &pod, &first);
        assert_eq!(host.leftovers(), ["up0"], "the test's own uplink");
    }
}
