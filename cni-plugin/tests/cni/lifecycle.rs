//! ADD, DEL, CHECK, GC, STATUS, VERSION and what stays between them.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::harness::{Host, Space, environment, error_of, network, pod_address, text};

#[test]
fn an_add_makes_what_its_result_says() {
    let (host, pod) = (Host::new(), Space::new("pod"));
    let result = host.add("c1", &pod);
    assert_eq!(result["cniVersion"], "1.1.0");
    assert_eq!(
        result["ips"],
        json!([{ "interface": 2, "address": "172.16.1.2/32", "gateway": "172.16.1.1" }])
    );
    assert_eq!(result["routes"], json!([{ "dst": "0.0.0.0/0", "gw": "172.16.1.1" }]));
    assert_eq!(result["interfaces"][2]["sandbox"], pod.path());
    let inside = pod.netlink().link("eth0").unwrap().unwrap();
    assert!(inside.up && inside.carrier);
    assert_eq!(result["interfaces"][2]["mac"], inside.mac.unwrap().to_string());
    let name = result["interfaces"][1]["name"].as_str().unwrap();
    let outside = host.space.netlink().link(name).unwrap().unwrap();
    assert!(outside.up && outside.carrier);
    assert_eq!(outside.hairpin, Some(true));
    assert!(outside.alias.unwrap().ends_with("id=c1"));
    let bridge = host.space.netlink().link("netd0").unwrap().unwrap();
    assert_eq!(result["interfaces"][0]["mac"], bridge.mac.unwrap().to_string());
    let leases = host.leases();
    let told = leases.pod_at("172.16.1.2".parse().unwrap()).unwrap();
    assert_eq!((told.namespace.as_str(), told.name.as_str()), ("default", "web-0"));
    host.del("c1", pod.path());
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn every_version_gets_its_result() {
    let mut host = Host::new();
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Space::new("pod");
        host.config["cniVersion"] = json!(version);
        let result = host.add("c1", &pod);
        assert_eq!(result["cniVersion"], version);
        assert!(result.get("ips").or(result.get("ip4")).is_some(), "{result}");
        host.del("c1", pod.path());
    }
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn a_second_add_is_refused_and_harms_nothing() {
    let (host, pod) = (Host::new(), Space::new("pod"));
    let result = host.add("c1", &pod);
    let again = host.verb("ADD", "c1", pod.path(), &host.config);
    assert_eq!(error_of(&again)["code"], 101);
    let same_interface = host.verb("ADD", "c2", pod.path(), &host.config);
    assert_eq!(error_of(&same_interface)["code"], 101);
    let other_namespace = Space::new("pod");
    let same_container = host.verb("ADD", "c1", other_namespace.path(), &host.config);
    assert_eq!(error_of(&same_container)["code"], 101);
    assert_eq!(host.leases().len(), 1);
    let check = host.check("c1", &pod, &result);
    assert_eq!(check.status, 0, "{}", text(&check));
}

#[test]
fn a_del_succeeds_in_every_state() {
    let host = Host::new();
    host.del("never", "");
    assert!(!host.data.path().join("ipam").exists(), "a DEL of nothing makes nothing");
    let pod = Space::new("pod");
    host.add("c1", &pod);
    for netns in [pod.path(), pod.path(), "", "/run/netns/nd-gone"] {
        host.del("c1", netns);
        assert_eq!(host.leftovers(), Vec::<String>::new());
    }
    // The namespace is gone before the DEL, and with it both ends of the link.
    let path = {
        let pod = Space::new("pod");
        host.add("c2", &pod);
        pod.path().to_owned()
    };
    host.del("c2", &path);
    let pod = Space::new("pod");
    host.add("c3", &pod);
    host.del("c3", "");
    assert_eq!(host.leftovers(), Vec::<String>::new());
    assert!(pod.links().is_empty(), "the pod's end goes with the host's");
}

#[test]
fn a_late_del_leaves_the_next_owner_alone() {
    let host = Host::with_ranges(
        json!([[{ "subnet": "172.16.1.0/29", "rangeStart": "172.16.1.2", "rangeEnd": "172.16.1.2" }]]),
    );
    let (old, new) = (Space::new("pod"), Space::new("pod"));
    host.add("old", &old);
    host.del("old", old.path());
    let result = host.add("new", &new);
    host.del("old", old.path());
    let check = host.check("new", &new, &result);
    assert_eq!(check.status, 0, "{}", text(&check));
    let listener = new.listen(&pod_address(&result));
    assert!(host.space.connect(&listener).is_ok());
}

#[test]
fn an_add_that_fails_leaves_nothing() {
    let host = Host::with_ranges(json!([[{ "subnet": "172.16.1.0/30" }]]));
    let (first, second) = (Space::new("pod"), Space::new("pod"));
    host.add("c1", &first);
    let full = error_of(&host.verb("ADD", "c2", second.path(), &host.config));
    assert_eq!(full["code"], 11);
    assert!(full["details"].as_str().unwrap().contains("172.16.1.0/30"), "{full}");
    assert!(second.links().is_empty());
    let status = error_of(&host.verb("STATUS", "", "", &host.config));
    assert_eq!(status["code"], 50);
    host.del("c1", first.path());
    // A route that the kernel refuses, at the very end of the wiring.
    let mut config = host.config.clone();
    config["ipam"]["routes"] = json!([{ "dst": "10.9.0.0/16", "gw": "224.0.0.1" }]);
    let refused = error_of(&host.verb("ADD", "c2", second.path(), &config));
    assert!(refused["code"].as_u64().unwrap() >= 100, "{refused}");
    assert!(second.links().is_empty());
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn an_add_that_cannot_answer_is_taken_back() {
    let (host, pod) = (Host::new(), Space::new("pod"));
    let mut spawn = host.spawn(&environment("ADD", "c1", pod.path()));
    let stdin = host.data.path().join("stdin");
    std::fs::write(&stdin, host.config.to_string()).unwrap();
    spawn.stdin = netd_kernel::exec::Stream::File(stdin);
    spawn.stdout = netd_kernel::exec::Stream::File("/dev/full".into());
    let status = spawn.start().unwrap().wait_timeout(super::harness::LIMIT).unwrap();
    assert_eq!(status, Some(1));
    assert_eq!(host.leftovers(), Vec::<String>::new());
    assert!(pod.links().is_empty());
}

#[test]
fn two_interfaces_of_one_pod_stand_alone() {
    let (host, pod) = (Host::new(), Space::new("pod"));
    let result = host.add("c1", &pod);
    let mut second = environment("ADD", "c1", pod.path());
    second[3].1 = "net1";
    // The pod has a default route already; the first one stays.
    let output = host.call(&second, host.config.to_string().as_bytes());
    assert_eq!(output.status, 0, "{}", text(&output));
    second[0].1 = "DEL";
    assert_eq!(host.call(&second, host.config.to_string().as_bytes()).status, 0);
    let check = host.check("c1", &pod, &result);
    assert_eq!(check.status, 0, "{}", text(&check));
    host.del("c1", pod.path());
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

/// One thing to break, and a word of what CHECK must say.
type Damage = (&'static str, fn(&Host, &Space));

#[test]
fn a_check_says_what_is_wrong() {
    let damages: [Damage; 8] = [
        ("missing in the container", |_, pod| {
            let index = pod.netlink().link("eth0").unwrap().unwrap().index;
            pod.netlink().delete_link(index).unwrap();
        }),
        ("lost its address 172.16.1.2", |_, pod| {
            let index = pod.netlink().link("eth0").unwrap().unwrap().index;
            pod.netlink().delete_address(index, network("172.16.1.2/32")).unwrap();
        }),
        ("default route through 172.16.1.1 is gone", |_, pod| {
            let route = netd_kernel::netlink::Route::default_via("172.16.1.1".parse().unwrap());
            pod.netlink().delete_route(&route).unwrap();
        }),
        ("is down", |host, _| {
            let name = host.space.links().into_iter().find(|name| name != "netd0").unwrap();
            let index = host.space.netlink().link(&name).unwrap().unwrap().index;
            host.space.netlink().set_down(index).unwrap();
        }),
        ("lost its address 172.16.1.1/24", |host, _| {
            let index = host.space.netlink().link("netd0").unwrap().unwrap().index;
            host.space.netlink().delete_address(index, network("172.16.1.1/24")).unwrap();
        }),
        ("bridge netd0 is missing", |host, _| {
            let index = host.space.netlink().link("netd0").unwrap().unwrap().index;
            host.space.netlink().delete_link(index).unwrap();
        }),
        ("masquerade is gone", |host, _| {
            assert!(host.space.run(netd_kernel::masquerade::remove).unwrap());
        }),
        ("forwarding is off", |host, _| {
            host.space.run(|| netd_kernel::sysctl::write("net/ipv4/ip_forward", "0")).unwrap();
        }),
    ];
    for (word, damage) in damages {
        let (host, pod) = (Host::new(), Space::new("pod"));
        let result = host.add("c1", &pod);
        let check = host.check("c1", &pod, &result);
        assert_eq!(check.status, 0, "{}", text(&check));
        damage(&host, &pod);
        let error = error_of(&host.check("c1", &pod, &result));
        assert_eq!(error["code"], 103, "{error}");
        assert!(error["msg"].as_str().unwrap().contains(word), "{word}: {error}");
        host.del("c1", pod.path());
        assert_eq!(host.leftovers(), Vec::<String>::new(), "after {word}");
    }
}

#[test]
fn a_check_without_a_lease_or_result_fails() {
    let (host, pod) = (Host::new(), Space::new("pod"));
    let result = host.add("c1", &pod);
    assert_eq!(error_of(&host.verb("CHECK", "c1", pod.path(), &host.config))["code"], 7);
    let other = error_of(&host.check("c2", &pod, &result));
    assert!(other["msg"].as_str().unwrap().contains("no address in the ledger"), "{other}");
    let mut moved = result.clone();
    moved["ips"][0]["address"] = json!("172.16.1.77/32");
    assert_eq!(error_of(&host.check("c1", &pod, &moved))["code"], 103);
}

#[test]
fn the_next_add_repairs_the_node() {
    let (host, first, second) = (Host::new(), Space::new("pod"), Space::new("pod"));
    let result = host.add("c1", &first);
    host.space.run(netd_kernel::masquerade::remove).unwrap();
    let index = host.space.netlink().link("netd0").unwrap().unwrap().index;
    host.space.netlink().delete_address(index, network("172.16.1.1/24")).unwrap();
    host.add("c2", &second);
    let check = host.check("c1", &first, &result);
    assert_eq!(check.status, 0, "{}", text(&check));
}

#[test]
fn a_lost_or_damaged_ledger_is_made_again_from_the_links() {
    let (host, first, second, third) = (Host::new(), Space::new("pod"), Space::new("pod"), Space::new("pod"));
    let ledger = host.data.path().join("ipam/pods.ledger");
    host.add("c1", &first);
    std::fs::write(&ledger, "rubbish").unwrap();
    let output = host.verb("ADD", "c2", second.path(), &host.config);
    assert_eq!(output.status, 0, "{}", text(&output));
    assert!(output.complaint().contains("corrupt-"), "{}", output.complaint());
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(pod_address(&result), "172.16.1.3");
    std::fs::remove_file(&ledger).unwrap();
    assert_eq!(pod_address(&host.add("c3", &third)), "172.16.1.4");
    for id in ["c1", "c2", "c3"] {
        host.del(id, "");
    }
    assert_eq!(host.leftovers(), Vec::<String>::new());
    let kept = std::fs::read_dir(host.data.path().join("ipam")).unwrap();
    let kept =
        kept.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains(".corrupt-")).count();
    assert_eq!(kept, 1);
}

#[test]
fn the_mtu_is_that_of_the_uplink() {
    let host = Host::new();
    let _outside = host.outside();
    let mut netlink = host.space.netlink();
    let uplink = netlink.link("up0").unwrap().unwrap().index;
    netlink.set_mtu(uplink, 1430).unwrap();
    let before = Space::new("pod");
    host.add("before", &before);
    assert_eq!(
        before.netlink().link("eth0").unwrap().unwrap().mtu,
        1500,
        "without a default route it is Ethernet's"
    );
    netlink
        .add_route(&netd_kernel::netlink::Route::default_via("192.168.77.2".parse().unwrap()).dev(uplink))
        .unwrap();
    let after = Space::new("pod");
    host.add("after", &after);
    assert_eq!(after.netlink().link("eth0").unwrap().unwrap().mtu, 1430);
}

#[test]
fn a_del_without_its_ledger_leaves_nothing() {
    let (host, pod) = (Host::new(), Space::new("pod"));
    host.add("c1", &pod);
    std::fs::remove_dir_all(host.data.path().join("ipam")).unwrap();
    host.del("c1", "");
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn twenty_adds_at_once_get_twenty_addresses() {
    let host = Host::new();
    let pods: Vec<Space> = (0..20).map(|_| Space::new("pod")).collect();
    let addresses: HashSet<String> = std::thread::scope(|scope| {
        let calls: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(place, pod)| {
                let host = &host;
                scope.spawn(move || pod_address(&host.add(&format!("c{place}"), pod)))
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(addresses.len(), 20);
    assert_eq!(host.leases().len(), 20);
    std::thread::scope(|scope| {
        for (place, pod) in pods.iter().enumerate() {
            let host = &host;
            scope.spawn(move || host.del(&format!("c{place}"), pod.path()));
        }
    });
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn gc_removes_what_is_not_valid_and_nothing_else() {
    let (host, stays, goes) = (Host::new(), Space::new("pod"), Space::new("pod"));
    let result = host.add("stays", &stays);
    host.add("goes", &goes);
    let output = host.call(&[("CNI_COMMAND", "GC")], host.config.to_string().as_bytes());
    assert_eq!((output.status, text(&output)), (0, String::new()));
    assert_eq!((host.leases().len(), goes.links().len()), (2, 1), "no list is not an empty list");
    let mut config = host.config.clone();
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "stays", "ifname": "eth0" }]);
    let output = host.call(&[("CNI_COMMAND", "GC")], config.to_string().as_bytes());
    assert_eq!((output.status, text(&output)), (0, String::new()));
    assert!(goes.links().is_empty());
    assert_eq!(host.leases().len(), 1);
    assert_eq!(host.check("stays", &stays, &result).status, 0);
}

#[test]
fn the_node_keeps_listening_to_its_router() {
    let host = Host::with_ranges(json!([[{ "subnet": "fd00:1::/64" }]]));
    let _outside = host.outside();
    let accept =
        |link: &str| host.space.run(|| netd_kernel::sysctl::read(&format!("net/ipv6/conf/{link}/accept_ra")));
    assert_eq!(accept("up0").unwrap(), "1");
    let pod = Space::new("pod");
    host.add("c1", &pod);
    assert_eq!(accept("up0").unwrap(), "2", "forwarding must not cost the node its default route");
    assert_eq!(accept("netd0").unwrap(), "0", "pods are no routers");
    assert_eq!(pod.run(|| netd_kernel::sysctl::read("net/ipv6/conf/eth0/accept_ra")).unwrap(), "0");
}

#[test]
fn status_tells_that_pods_may_be_cut_off() {
    let (host, pod) = (Host::new(), Space::new("pod"));
    assert_eq!(
        host.verb("STATUS", "", "", &host.config).status,
        0,
        "before the first pod there is no bridge"
    );
    host.add("c1", &pod);
    assert_eq!(host.verb("STATUS", "", "", &host.config).status, 0);
    let index = host.space.netlink().link("netd0").unwrap().unwrap().index;
    host.space.netlink().set_down(index).unwrap();
    assert_eq!(error_of(&host.verb("STATUS", "", "", &host.config))["code"], 51);
    assert_eq!(host.leases().len(), 1);
}

#[test]
fn an_address_rests_before_it_is_used_again() {
    let mut host = Host::with_ranges(json!([[{ "subnet": "172.16.1.0/30" }]]));
    host.config["ipam"]["coolDownSeconds"] = json!(3600);
    let pod = Space::new("pod");
    host.add("c1", &pod);
    host.del("c1", pod.path());
    let error = error_of(&host.verb("ADD", "c2", pod.path(), &host.config));
    assert_eq!(error["code"], 11);
    assert!(error["details"].as_str().unwrap().contains("released moments ago"), "{error}");
    host.config["ipam"]["coolDownSeconds"] = json!(0);
    host.add("c2", &pod);
}

#[test]
fn the_ranges_may_come_from_the_daemon() {
    let (mut host, pod) = (Host::new(), Space::new("pod"));
    let file = host.data.path().join("podcidrs.json");
    host.config["ipam"].as_object_mut().unwrap().remove("ranges");
    host.config["ipam"]["rangesFile"] = json!(file);
    assert_eq!(error_of(&host.verb("ADD", "c1", pod.path(), &host.config))["code"], 11);
    assert_eq!(error_of(&host.verb("STATUS", "", "", &host.config))["code"], 50);
    std::fs::write(
        &file,
        r#"{"podCIDRs":["172.16.5.0/24","fd00:5::/64"],"clusterCIDRs":["172.16.0.0/16"],"mtu":1400}"#,
    )
    .unwrap();
    assert_eq!(host.verb("STATUS", "", "", &host.config).status, 0);
    let result = host.add("c1", &pod);
    assert_eq!(result["ips"][0]["address"], "172.16.5.2/32");
    assert_eq!(result["ips"][1]["address"], "fd00:5::2/128");
    assert_eq!(pod.netlink().link("eth0").unwrap().unwrap().mtu, 1400);
    let check = host.check("c1", &pod, &result);
    assert_eq!(check.status, 0, "{}", text(&check));
    host.del("c1", pod.path());
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn version_and_about_are_told() {
    let host = Host::new();
    let output = host.call(&[("CNI_COMMAND", "VERSION")], br#"{"cniVersion":"1.0.0"}"#);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["cniVersion"], "1.0.0");
    assert_eq!(
        told["supportedVersions"],
        json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
    );
    let about = host.call(&[], b"");
    assert_eq!((about.status, about.stdout.len()), (0, 0));
    assert!(about.complaint().contains("CNI protocol versions supported"), "{}", about.complaint());
}

#[test]
fn as_loopback_it_switches_the_link_on() {
    let (host, pod) = (Host::new(), Space::new("pod"));
    let config = json!({ "cniVersion": "0.4.0", "name": "cni-loopback", "type": "loopback" });
    let mut previous = config.clone();
    previous["prevResult"] = json!({});
    assert_eq!(error_of(&host.verb("CHECK", "c1", pod.path(), &previous))["code"], 103);
    let output = host.verb("ADD", "c1", pod.path(), &config);
    assert_eq!(output.status, 0, "{}", text(&output));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["ips"][0], json!({ "version": "4", "interface": 0, "address": "127.0.0.1/8" }));
    assert_eq!(result["interfaces"][0]["name"], "lo");
    assert!(pod.netlink().link("lo").unwrap().unwrap().up);
    assert_eq!(host.verb("CHECK", "c1", pod.path(), &previous).status, 0);
    assert_eq!(host.verb("DEL", "c1", "/gone", &config).status, 0);
    assert_eq!(error_of(&host.verb("ADD", "c1", "/proc/self/ns/net", &config))["code"], 8);
    assert!(!host.space.netlink().link("lo").unwrap().unwrap().up, "the host's is untouched");
}
