//! Together with other plugins of a list, and with what a runtime wishes for one pod.

use std::ffi::OsString;

use netd_kernel::exec::{Output, Spawn};
use serde_json::{Value, json};

use super::harness::{Host, LIMIT, Space, environment, error_of, network, pod_address, text};

/// Where Debian's containernetworking-plugins has the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// Calls a reference plugin as the runtime would.
fn reference(host: &Host, plugin: &str, verb: &str, pod: &Space, config: &Value) -> Output {
    let mut spawn = Spawn::new(format!("{REFERENCE}/{plugin}"), Vec::<OsString>::new());
    let mut env: Vec<(OsString, OsString)> =
        environment(verb, "c1", pod.path()).iter().map(|(k, v)| (k.into(), v.into())).collect();
    env.push(("CNI_PATH".into(), REFERENCE.into()));
    spawn.env = env;
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
    let config_of = |plugin: &str, keys: &Value, previous: &Value| {
        let mut config = keys.clone();
        config["cniVersion"] = json!("1.0.0");
        config["name"] = json!("pods");
        config["type"] = json!(plugin);
        config["prevResult"] = previous.clone();
        config
    };
    for (plugin, keys) in &later {
        result = succeeded(&reference(&host, plugin, "ADD", &pod, &config_of(plugin, keys, &result)));
    }
    assert_eq!(pod_address(&result), "172.16.1.2");
    assert_eq!(pod.netlink().link("eth0").unwrap().unwrap().mtu, 1400);
    // CHECK gets the final result, with what the others made of the interface.
    let check = host.check("c1", &pod, &result);
    assert_eq!(check.status, 0, "{}", text(&check));
    for (plugin, keys) in later.iter().rev() {
        succeeded(&reference(&host, plugin, "DEL", &pod, &config_of(plugin, keys, &result)));
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
