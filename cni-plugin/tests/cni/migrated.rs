//! A node that changes from the reference plugins to netd.

use serde_json::json;

use super::harness::{Host, Space, error_of, network, pod_address, text};

#[test]
fn a_reference_configuration_and_its_leases_go_on() {
    let mut host = Host::new();
    let networks = host.data.path().join("networks");
    host.config = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "bridge", "bridge": "cni0", "isDefaultGateway": true,
        "ipMasq": true, "hairpinMode": true, "mtu": 1450,
        "ipam": {
            "type": "host-local", "dataDir": networks, "subnet": "172.16.1.0/24", "rangeEnd": "172.16.1.4",
            "routes": [{ "dst": "0.0.0.0/0" }]
        },
    });
    std::fs::create_dir_all(networks.join("pods")).unwrap();
    let files =
        [("172.16.1.2", "before1\r\neth0"), ("172.16.1.3", "before2\r\neth0"), ("last_reserved_ip.0", "x")];
    for (name, content) in files {
        std::fs::write(networks.join("pods").join(name), content).unwrap();
    }
    let (pod, late) = (Space::new("pod"), Space::new("pod"));
    let result = host.add("c1", &pod);
    assert_eq!(pod_address(&result), "172.16.1.4", "the others are in use");
    assert_eq!(result["routes"], json!([{ "dst": "0.0.0.0/0", "gw": "172.16.1.1" }]));
    assert_eq!(pod.netlink().link("eth0").unwrap().unwrap().mtu, 1450);
    assert_eq!(error_of(&host.verb("ADD", "c2", late.path(), &host.config))["code"], 11);
    host.del("before1", "");
    assert!(!networks.join("pods/172.16.1.2").exists(), "a new ledger must not find it again");
    assert!(networks.join("pods/172.16.1.3").exists());
    host.config["ipam"]["coolDownSeconds"] = json!(0);
    assert_eq!(pod_address(&host.add("c2", &late)), "172.16.1.2");
    let check = host.check("c1", &pod, &result);
    assert_eq!(check.status, 0, "{}", text(&check));
}

#[test]
fn a_del_before_the_first_add_ends_an_old_lease() {
    let mut host = Host::new();
    let networks = host.data.path().join("networks");
    host.config["ipam"]["importDir"] = json!(networks);
    std::fs::create_dir_all(networks.join("pods")).unwrap();
    std::fs::write(networks.join("pods/172.16.1.2"), "before\r\neth0").unwrap();
    host.del("before", "");
    assert!(!networks.join("pods/172.16.1.2").exists());
    assert_eq!(host.leases().len(), 0);
}

#[test]
fn a_strange_bridge_keeps_its_address() {
    let host = Host::new();
    let mut netlink = host.space.netlink();
    let spec = netd_kernel::netlink::BridgeSpec { name: "netd0", ..Default::default() };
    let bridge = netlink.add_bridge(&spec).unwrap();
    netlink.add_address(bridge, network("172.16.1.9/24"), true).unwrap();
    let pod = Space::new("pod");
    let error = error_of(&host.verb("ADD", "c1", pod.path(), &host.config));
    assert!(error["details"].as_str().unwrap().contains("forceAddress"), "{error}");
    assert_eq!(host.leftovers(), Vec::<String>::new());
}
