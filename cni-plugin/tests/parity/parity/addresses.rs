//! Which addresses pods get: the cases of the reference's own tests of host-local; see `cases`.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::harness::{Host, Space, environment, error_of, pod_address, text};

/// A host whose only range this is.
fn host(range: Value) -> Host {
    Host::with_ranges(json!([[range]]))
}

#[test]
fn addresses_go_round_before_one_comes_again() {
    let host = host(json!({ "subnet": "172.16.1.0/29" }));
    let pod = Space::new("pod");
    let mut order = Vec::new();
    for turn in 0..10 {
        let id = format!("c{turn}");
        order.push(pod_address(&host.add(&id, &pod)));
        host.del(&id, pod.path());
    }
    let round = ["172.16.1.2", "172.16.1.3", "172.16.1.4", "172.16.1.5", "172.16.1.6"];
    assert_eq!(order, [round, round].concat(), "network, gateway and broadcast address are nobody's");
}

#[test]
fn a_full_subnet_names_its_range_and_an_address_given_back_is_given_again() {
    let host = host(json!({ "subnet": "172.16.1.0/29" }));
    let pods: Vec<Space> = (0..6).map(|_| Space::new("pod")).collect();
    let given: HashSet<String> =
        (0..5).map(|place| pod_address(&host.add(&format!("c{place}"), &pods[place]))).collect();
    assert_eq!(given.len(), 5);
    let error = error_of(&host.verb("ADD", "c5", pods[5].path(), &host.config));
    assert_eq!(error["code"], 11);
    assert!(error["details"].as_str().unwrap().contains("172.16.1.0/29"), "{error}");
    host.del("c2", pods[2].path());
    assert_eq!(pod_address(&host.add("c5", &pods[5])), "172.16.1.4");
}

#[test]
fn the_next_range_follows_when_one_is_full() {
    let host = Host::with_ranges(json!([[
        { "subnet": "172.16.1.0/24", "rangeStart": "172.16.1.9", "rangeEnd": "172.16.1.9" },
        { "subnet": "172.16.2.0/24", "rangeStart": "172.16.2.5", "rangeEnd": "172.16.2.6" },
    ]]));
    let pods: Vec<Space> = (0..3).map(|_| Space::new("pod")).collect();
    let results: Vec<Value> =
        pods.iter().enumerate().map(|(i, pod)| host.add(&format!("c{i}"), pod)).collect();
    let given: Vec<String> = results.iter().map(pod_address).collect();
    assert_eq!(given, ["172.16.1.9", "172.16.2.5", "172.16.2.6"]);
    assert_eq!(results[1]["ips"][0]["gateway"], "172.16.2.1");
    for (i, (pod, result)) in pods.iter().zip(&results).enumerate() {
        let check = host.check(&format!("c{i}"), pod, result);
        assert_eq!(check.status, 0, "{}", text(&check));
    }
}

#[test]
fn two_interfaces_of_a_container_have_an_address_each_and_give_it_back_alone() {
    let host = host(json!({ "subnet": "172.16.1.0/24" }));
    let pod = Space::new("pod");
    let verb = |verb: &str, interface: &str| {
        let mut env = environment(verb, "c1", pod.path()).to_vec();
        env.retain(|(key, _)| *key != "CNI_IFNAME");
        env.push(("CNI_IFNAME", interface));
        host.call(&env, host.config.to_string().as_bytes())
    };
    let given: Vec<String> = ["eth0", "eth1"]
        .iter()
        .map(|interface| {
            let output = verb("ADD", interface);
            assert_eq!(output.status, 0, "{}", text(&output));
            pod_address(&serde_json::from_slice(&output.stdout).unwrap())
        })
        .collect();
    assert_eq!(given, ["172.16.1.2", "172.16.1.3"]);
    assert_eq!(error_of(&verb("ADD", "eth1"))["code"], 101, "an interface has one address");
    assert_eq!(verb("DEL", "eth0").status, 0);
    let left: Vec<String> = host.leases().iter().map(|lease| lease.owner.interface.clone()).collect();
    assert_eq!(left, ["eth1"]);
    assert_eq!(verb("DEL", "eth1").status, 0);
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn a_wished_address_that_no_range_has_is_named() {
    let host =
        host(json!({ "subnet": "172.16.1.0/24", "rangeStart": "172.16.1.10", "rangeEnd": "172.16.1.20" }));
    let pod = Space::new("pod");
    for wish in ["172.16.1.9", "172.16.1.21", "172.16.1.1", "172.16.1.255", "10.0.0.1", "fd00::1"] {
        let mut config = host.config.clone();
        config["runtimeConfig"] = json!({ "ips": [wish] });
        let error = error_of(&host.verb("ADD", "c1", pod.path(), &config));
        assert_eq!(error["code"], 7, "{wish}: {error}");
        assert!(error["details"].as_str().unwrap().contains(wish), "{error}");
    }
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn blanks_in_files_of_host_local_do_not_matter() {
    let mut host = host(json!({ "subnet": "172.16.1.0/24" }));
    let networks = host.data.path().join("networks");
    std::fs::create_dir_all(networks.join("pods")).unwrap();
    for (name, content) in [("172.16.1.2", "  old1 \r\n eth0 \n"), ("172.16.1.3", "old2\n")] {
        std::fs::write(networks.join("pods").join(name), content).unwrap();
    }
    host.config["ipam"]["importDir"] = json!(networks);
    let pod = Space::new("pod");
    assert_eq!(pod_address(&host.add("c1", &pod)), "172.16.1.4", "the others are in use");
    host.del("old1", "");
    // From before host-local wrote the interface.
    host.del("old2", "");
    assert!(!networks.join("pods/172.16.1.2").exists());
    let left: Vec<String> = host.leases().iter().map(|lease| lease.owner.container.clone()).collect();
    assert_eq!(left, ["c1"], "both are free");
}
