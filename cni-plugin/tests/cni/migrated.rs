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
    assert_eq!(result["ips"][0]["address"], "172.16.1.4/24");
    assert_eq!(
        result["routes"],
        json!([{ "dst": "0.0.0.0/0" }]),
        "as it is written; it leads to the gateway"
    );
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

/// A node gets this netd while pods run whose leases an earlier one wrote as text.
#[test]
fn a_text_ledger_of_running_pods_is_taken_over() {
    let host = Host::new();
    let (old, new) = (Space::new("pod"), Space::new("pod"));
    let result = host.add("c1", &old);
    let address = pod_address(&result);
    let ledger = host.data.path().join("ipam/pods.ledger");
    std::fs::write(&ledger, text_ledger("c1", &address)).unwrap();
    let status = host.verb("STATUS", "", "", &host.config);
    assert_eq!(status.status, 0, "{}", text(&status));
    let check = host.check("c1", &old, &result);
    assert_eq!(check.status, 0, "readers understand it: {}", text(&check));
    assert_ne!(pod_address(&host.add("c2", &new)), address);
    assert!(!std::fs::read(&ledger).unwrap().is_ascii(), "it has the present format");
    let check = host.check("c1", &old, &result);
    assert_eq!(check.status, 0, "{}", text(&check));
    assert_eq!(error_of(&host.verb("ADD", "c1", new.path(), &host.config))["code"], 101);
    host.del("c1", old.path());
    host.del("c2", new.path());
    assert!(host.leases().is_empty() && host.leftovers().is_empty(), "{:?}", host.leftovers());
    let files = std::fs::read_dir(ledger.parent().unwrap()).unwrap();
    let aside = files.flatten().filter(|file| file.file_name().to_string_lossy().contains("corrupt")).count();
    assert_eq!(aside, 0);
}

/// A ledger of network `pods` as netd wrote it before it had blocks.
fn text_ledger(container: &str, address: &str) -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let header = line(&format!(r#"{{"format":1,"network":"pods","boot":"{}"}}"#, boot.trim()));
    let record =
        line(&format!(r#"{{"op":"take","id":"{container}","if":"eth0","ips":["{address}"],"at":1000}}"#));
    let length = format!("{:020}", header.len() + 30 + record.len());
    format!("{header}{length} {:08x}\n{record}", crc32(length.as_bytes()))
}

fn line(content: &str) -> String {
    format!("{:08x} {content}\n", crc32(content.as_bytes()))
}

fn crc32(bytes: &[u8]) -> u32 {
    let shift = |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 };
    !bytes.iter().fold(!0_u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), shift))
}

#[test]
fn a_lease_remembers_its_host_ports_and_bridge() {
    let mut host = Host::new();
    let pod = Space::new("pod");
    host.config["runtimeConfig"] =
        json!({ "portMappings": [{ "hostPort": 8053, "containerPort": 53, "protocol": "udp" }] });
    host.add("c1", &pod);
    let leases = host.leases();
    let lease = leases.iter().next().unwrap();
    assert_eq!(lease.bridge.as_deref(), Some("netd0"));
    assert_eq!(lease.ports.iter().map(|p| (p.host_port, p.container_port)).collect::<Vec<_>>(), [(8053, 53)]);
    host.del("c1", pod.path());
}
