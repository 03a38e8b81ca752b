//! Pods on a LAN, as the reference bridge plugin wires them: on-link, without addresses, apart from each other, in VLANs.

use netd_kernel::Mac;
use netd_kernel::netlink::{PortFlags, Route};
use serde_json::{Value, json};

use super::harness::{Host, Space, environment, error_of, network, pod_address, text};

/// A host with a configuration of the reference plugins.
fn reference(changed: &Value) -> Host {
    let mut host = Host::new();
    let networks = host.data.path().join("networks");
    host.config = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "bridge", "bridge": "netd0",
        "ipam": { "type": "host-local", "dataDir": networks, "subnet": "172.16.1.0/24", "coolDownSeconds": 0 },
    });
    for (key, value) in changed.as_object().unwrap() {
        host.config[key] = value.clone();
    }
    host
}

fn prefixes(space: &Space, link: &str) -> Vec<String> {
    let mut netlink = space.netlink();
    let index = netlink.link(link).unwrap().unwrap().index;
    let all = netlink.addresses(Some(index)).unwrap();
    all.iter().filter(|a| !a.link_local).map(|a| a.prefix.to_string()).collect()
}

fn port(result: &Value) -> String {
    result["interfaces"][1]["name"].as_str().unwrap().to_owned()
}

fn checks(host: &Host, id: &str, pod: &Space, result: &Value) {
    let check = host.check(id, pod, result);
    assert_eq!(check.status, 0, "{}", text(&check));
}

#[test]
fn a_reference_configuration_keeps_the_subnets_prefix() {
    let host = reference(&json!({ "isDefaultGateway": true, "ipMasq": true, "ipMasqBackend": "iptables" }));
    let outside = host.outside();
    let (a, b) = (Space::new("pod"), Space::new("pod"));
    let result = host.add("a", &a);
    assert_eq!(
        result["ips"],
        json!([{ "interface": 2, "address": "172.16.1.2/24", "gateway": "172.16.1.1" }])
    );
    assert_eq!(result["routes"], json!([{ "dst": "0.0.0.0/0", "gw": "172.16.1.1" }]));
    assert_eq!(prefixes(&a, "eth0"), ["172.16.1.2/24"]);
    assert_eq!(prefixes(&host.space, "netd0"), ["172.16.1.1/24"]);
    let routes = a.netlink().routes(Default::default()).unwrap();
    let main: Vec<&Route> = routes.iter().filter(|r| r.table == 254 && r.destination.is_ipv4()).collect();
    assert_eq!(main.len(), 2, "the subnet and the default route: {main:?}");
    let of_b = pod_address(&host.add("b", &b));
    assert_eq!(a.connect(&b.listen(&of_b)).unwrap().to_string(), "172.16.1.2");
    assert_eq!(host.space.connect(&b.listen(&of_b)).unwrap().to_string(), "172.16.1.1");
    assert_eq!(a.connect(&outside.listen("192.168.77.2")).unwrap().to_string(), "192.168.77.1");
    checks(&host, "a", &a, &result);
    host.del("a", a.path());
    host.del("b", b.path());
    assert_eq!(host.leftovers(), ["up0"]);
}

#[test]
fn without_a_gateway_pods_reach_each_other_and_the_node_stays_apart() {
    let host = reference(&json!({}));
    let (a, b) = (Space::new("pod"), Space::new("pod"));
    let result = host.add("a", &a);
    assert_eq!(result["routes"], json!([]), "nothing leads out");
    assert_eq!(prefixes(&host.space, "netd0"), Vec::<String>::new());
    assert_eq!(host.space.run(|| netd_kernel::sysctl::read("net/ipv4/ip_forward")).unwrap(), "0");
    let of_b = pod_address(&host.add("b", &b));
    assert_eq!(a.connect(&b.listen(&of_b)).unwrap().to_string(), "172.16.1.2");
    assert!(host.space.connect(&b.listen(&of_b)).is_err(), "the node has no address there");
    checks(&host, "a", &a, &result);
    host.del("a", a.path());
    host.del("b", b.path());
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn without_ipam_a_pod_has_a_link_and_nothing_else() {
    let host = reference(&json!({ "ipam": {} }));
    let (a, b) = (Space::new("pod"), Space::new("pod"));
    let (result, other) = (host.add("a", &a), host.add("b", &b));
    assert_eq!(result.get("ips"), None, "{result}");
    assert_ne!(result["interfaces"][2]["mac"], other["interfaces"][2]["mac"]);
    assert!(a.netlink().link("eth0").unwrap().unwrap().up);
    checks(&host, "a", &a, &result);
    for (space, address) in [(&a, "10.7.0.1/24"), (&b, "10.7.0.2/24")] {
        let link = space.netlink().link("eth0").unwrap().unwrap().index;
        space.netlink().add_address(link, network(address), true).unwrap();
    }
    assert_eq!(a.connect(&b.listen("10.7.0.2")).unwrap().to_string(), "10.7.0.1");
    host.del("a", a.path());
    // The other one is garbage.
    let mut config = host.config.clone();
    config["cniVersion"] = json!("1.1.0");
    config["cni.dev/valid-attachments"] = json!([]);
    let output = host.call(&[("CNI_COMMAND", "GC")], config.to_string().as_bytes());
    assert_eq!(output.status, 0, "{}", text(&output));
    assert_eq!(host.leftovers(), Vec::<String>::new());
    assert!(!host.data.path().join("networks").exists(), "no ledger");
    let mut asks = host.config.clone();
    asks["runtimeConfig"] = json!({ "ips": ["10.7.0.9"] });
    assert_eq!(error_of(&host.verb("ADD", "c", a.path(), &asks))["code"], 7);
}

#[test]
fn an_address_of_the_plugin_static_needs_no_gateway() {
    let fixed =
        |address: &str| json!({ "ipam": { "type": "static", "addresses": [{ "address": address }] } });
    let host = reference(&fixed("10.7.0.1/24"));
    let (a, b) = (Space::new("pod"), Space::new("pod"));
    let call = |verb: &str, id: &str, space: &Space, config: &Value| {
        let mut env = environment(verb, id, space.path()).to_vec();
        env.push(("CNI_PATH", "/usr/lib/cni"));
        host.call(&env, config.to_string().as_bytes())
    };
    let first = call("ADD", "a", &a, &host.config);
    assert_eq!(first.status, 0, "{}", text(&first));
    let told: Value = serde_json::from_slice(&first.stdout).unwrap();
    assert_eq!(told["ips"], json!([{ "interface": 2, "address": "10.7.0.1/24" }]), "no gateway is invented");
    let mut other = host.config.clone();
    other["ipam"] = fixed("10.7.0.2/24")["ipam"].clone();
    let second = call("ADD", "b", &b, &other);
    assert_eq!(second.status, 0, "{}", text(&second));
    assert_eq!(b.connect(&a.listen("10.7.0.1")).unwrap().to_string(), "10.7.0.2");
    let mut with_gateway = host.config.clone();
    with_gateway["isGateway"] = json!(true);
    let pod = Space::new("pod");
    let error = error_of(&call("ADD", "c", &pod, &with_gateway));
    assert!(error["details"].as_str().unwrap().contains("10.7.0.1 has no gateway"), "{error}");
    for (id, space, config) in [("a", &a, &host.config), ("b", &b, &other)] {
        assert_eq!(call("DEL", id, space, config).status, 0);
    }
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn a_disabled_interface_stays_down() {
    let host = reference(&json!({ "ipam": {}, "disableContainerInterface": true }));
    let pod = Space::new("pod");
    let result = host.add("c1", &pod);
    assert!(!pod.netlink().link("eth0").unwrap().unwrap().up);
    checks(&host, "c1", &pod, &result);
    host.del("c1", pod.path());
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn isolated_pods_reach_the_gateway_and_not_each_other() {
    let mut host = reference(&json!({ "isDefaultGateway": true }));
    let plain = host.config.clone();
    let (a, b, open) = (Space::new("pod"), Space::new("pod"), Space::new("pod"));
    let of_open = pod_address(&host.add("open", &open));
    host.config["portIsolation"] = json!(true);
    let result = host.add("a", &a);
    let of_b = pod_address(&host.add("b", &b));
    let flags = host.space.netlink().port_flags(&port(&result)).unwrap().unwrap();
    assert_eq!(flags, PortFlags { isolated: true, ..PortFlags::default() });
    assert!(a.connect(&b.listen(&of_b)).is_err(), "two isolated pods");
    assert!(a.connect(&open.listen(&of_open)).is_ok(), "one of them is not");
    assert!(a.connect(&host.space.listen("172.16.1.1")).is_ok(), "the gateway");
    checks(&host, "a", &a, &result);
    host.config = plain;
    for (id, space) in [("a", &a), ("b", &b), ("open", &open)] {
        host.del(id, space.path());
    }
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn a_frame_with_another_address_than_the_pods_is_dropped() {
    for kind in ["bridge", "netd"] {
        let mut host = Host::new();
        host.config["macspoofchk"] = json!(true);
        if kind == "bridge" {
            host = reference(&json!({ "isDefaultGateway": true, "macspoofchk": true }));
        }
        let (a, b) = (Space::new("pod"), Space::new("pod"));
        let (result, other) = (host.add("a", &a), host.add("b", &b));
        checks(&host, "a", &a, &result);
        let of_b = pod_address(&other);
        assert!(a.connect(&b.listen(&of_b)).is_ok());
        let own: Mac = result["interfaces"][2]["mac"].as_str().unwrap().parse().unwrap();
        let theirs: Mac = other["interfaces"][2]["mac"].as_str().unwrap().parse().unwrap();
        let link = a.netlink().link("eth0").unwrap().unwrap().index;
        for foreign in [Mac([2, 0, 0, 0, 0, 9]), theirs] {
            a.netlink().set_mac(link, foreign).unwrap();
            assert!(a.connect(&b.listen(&of_b)).is_err(), "{kind}: {foreign}");
            assert!(host.space.connect(&b.listen(&of_b)).is_ok(), "{kind}: the owner is still reached");
        }
        a.netlink().set_mac(link, own).unwrap();
        host.del("a", a.path());
        host.del("b", b.path());
        assert_eq!(host.leftovers(), Vec::<String>::new());
    }
}

#[test]
fn vlans_are_made_or_refused_by_name() {
    for changed in [
        json!({ "vlan": 100 }),
        json!({ "vlan": 100, "isDefaultGateway": true }),
        json!({ "vlanTrunk": [{ "minID": 10, "maxID": 20 }], "preserveDefaultVlan": true }),
        json!({ "vlan": 100, "ipam": {} }),
    ] {
        let (host, pod) = (reference(&changed), Space::new("pod"));
        let output = host.verb("ADD", "c1", pod.path(), &host.config);
        if output.status == 0 {
            host.del("c1", pod.path());
            continue;
        }
        // A kernel without CONFIG_BRIDGE_VLAN_FILTERING.
        let error = error_of(&output);
        let key =
            if changed.get("vlan").is_some() { "vlan cannot be set" } else { "vlanTrunk cannot be set" };
        assert_eq!(error["code"], 100, "{error}");
        assert!(error["msg"].as_str().unwrap().starts_with(key), "{error}");
        assert!(error["details"].as_str().unwrap().contains("CONFIG_BRIDGE_VLAN_FILTERING"), "{error}");
        assert_eq!(host.space.links(), Vec::<String>::new(), "not even the bridge");
        assert!(pod.links().is_empty());
        assert_eq!(host.leftovers(), Vec::<String>::new());
    }
}
