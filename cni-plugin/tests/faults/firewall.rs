//! Rules that somebody flushes, two interfaces of one pod, results that cannot be told, interfaces of every form.

use std::os::fd::OwnedFd;

use netd_kernel::exec::Stream;
use serde_json::{Value, json};

use super::harness::{Host, LIMIT, Space, environment, error_of, pod_address, text};
use super::node::{addresses_of, assert_nothing, dual, found, ports_of, program, with_ports};

fn add_with_port(host: &Host, id: &str, pod: &Space, port: u16) -> Value {
    let output = host.verb("ADD", id, pod.path(), &with_ports(&host.config, &[port]));
    assert_eq!(output.status, 0, "{}{}", text(&output), output.complaint());
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_flushed_firewall_stops_neither_del_nor_add() {
    // The last one only makes the chains' rules vanish.
    let flushes: [(&str, &[&str]); 4] = [
        ("nft flush ruleset", &["nft", "flush", "ruleset"]),
        ("nft delete table ip netd-hostport", &["nft", "delete", "table", "ip", "netd-hostport"]),
        ("nft flush table ip netd-masq", &["nft", "flush", "table", "ip", "netd-masq"]),
        ("nft flush table ip netd-hostport", &["nft", "flush", "table", "ip", "netd-hostport"]),
    ];
    for (what, command) in flushes {
        let host = dual();
        let outside = host.outside();
        let (pod, other) = (Space::new("pod"), Space::new("pod"));
        let result = add_with_port(&host, "c1", &pod, 18_080);
        program(&host.space, command[0], &command[1..], "");
        let mut checked = with_ports(&host.config, &[18_080]);
        checked["prevResult"] = result;
        let error = error_of(&host.verb("CHECK", "c1", pod.path(), &checked));
        assert_eq!(error["code"], 103, "{what}: {error}");
        host.del("c1", pod.path());
        let result = add_with_port(&host, "c2", &other, 18_080);
        let world = outside.listen("192.168.77.2");
        assert_eq!(other.connect(&world).unwrap().to_string(), "192.168.77.1", "{what}: masquerade is back");
        let address = pod_address(&result);
        let listener = other.run(|| std::net::TcpListener::bind((address.as_str(), 80))).unwrap();
        let to = "192.168.77.1:18080".parse().unwrap();
        let reached = outside.run(|| std::net::TcpStream::connect_timeout(&to, LIMIT));
        assert!(reached.is_ok() && listener.accept().is_ok(), "{what}: the port is back");
        host.del("c2", other.path());
        assert_eq!(host.leftovers(), ["up0"], "{what}: the test's own uplink");
    }
    println!(
        "firewall: {} kinds of flush: DEL and ADD succeed each time, masquerade and ports work again, 0 left",
        flushes.len()
    );
}

#[test]
fn two_interfaces_with_ports_stand_alone() {
    let (host, pod) = (dual(), Space::new("pod"));
    let call = |verb: &str, interface: &str, port: u16| {
        let mut env = environment(verb, "c1", pod.path());
        env[3].1 = interface;
        let output = host.call(&env, with_ports(&host.config, &[port]).to_string().as_bytes());
        assert_eq!(output.status, 0, "{verb} {interface}: {}", text(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or(Value::Null)
    };
    for turn in 0..4 {
        let first = call("ADD", "eth0", 18_080);
        let second = call("ADD", "net1", 18_081);
        assert!(addresses_of(&first).is_disjoint(&addresses_of(&second)));
        // Either may go first.
        let (goes, stays, port, result) =
            if turn % 2 == 0 { ("eth0", "net1", 18_081, &second) } else { ("net1", "eth0", 18_080, &first) };
        call("DEL", goes, port);
        let left = found(&host);
        assert_eq!((left.leases.len(), left.links.len()), (1, 1));
        let ports: Vec<_> = left.ports.into_values().collect();
        assert_eq!(ports, [ports_of(&addresses_of(result), &[port])]);
        let listener = pod.listen(&pod_address(result));
        assert!(host.space.connect(&listener).is_ok(), "{stays} is reached");
        call("DEL", stays, port);
        assert_nothing(&host, "both are gone");
    }
    println!(
        "two interfaces: 4 of 4 turns: DEL of either leaves the other's address, link and ports, and nothing after both"
    );
}

#[test]
fn an_add_nobody_can_be_told_of_leaves_nothing() {
    let host = dual();
    let pod = Space::new("pod");
    let stdin = host.data.path().join("stdin");
    std::fs::write(&stdin, with_ports(&host.config, &[18_080]).to_string()).unwrap();
    let mut closed_pipe = 0;
    for turn in 0..6 {
        let mut spawn = host.spawn(&environment("ADD", "c1", pod.path()));
        spawn.stdin = Stream::File(stdin.clone());
        let mut child = match turn % 3 {
            // A full disk.
            0 => {
                spawn.stdout = Stream::File("/dev/full".into());
                spawn.start().unwrap()
            }
            // A pipe that nobody reads any more.
            1 => {
                spawn.stdout = Stream::Pipe;
                let mut child = spawn.start().unwrap();
                drop(child.take_stdout().map(OwnedFd::from));
                closed_pipe += 1;
                child
            }
            // Closed: the shell closes it before the plugin starts.
            _ => {
                spawn.args =
                    ["-c", "exec \"$0\" >&-", env!("CARGO_BIN_EXE_netd-cni")].map(Into::into).to_vec();
                spawn.program = "/bin/sh".into();
                spawn.start().unwrap()
            }
        };
        let status = child.wait_timeout(LIMIT).unwrap().expect("it ends in time");
        if turn % 3 == 2 && status == 0 {
            // The standard library opens /dev/null for it, and so the result is told to nobody: no error to be had.
            host.del("c1", pod.path());
        } else {
            assert_ne!(status, 0, "turn {turn}");
        }
        assert_nothing(&host, "an ADD that could not answer");
        assert!(pod.links().is_empty());
    }
    assert_eq!(closed_pipe, 2);
    println!("standard output: /dev/full, a pipe without a reader, closed; twice each: 6 of 6 leave nothing");
}

#[test]
fn an_add_that_fails_leaves_nothing_and_the_next_one_works() {
    let failures: [(&str, Value); 7] = [
        ("a route the kernel refuses", json!({ "routes": [{ "dst": "10.9.0.0/16", "gw": "224.0.0.1" }] })),
        ("a pool that is full", json!({ "ranges": [[{ "subnet": "172.16.1.0/30" }]] })),
        ("a range that is none", json!({ "ranges": [[{ "subnet": "172.16.1.0/33" }]] })),
        ("ranges that are not known yet", json!({ "ranges": null, "rangesFile": "/nonexistent" })),
        ("a directory that cannot be", json!({ "dataDir": "/dev/null/x" })),
        ("a key nobody knows", json!({ "colour": "red" })),
        ("a wish outside of the ranges", json!({ "wish": "10.1.2.3" })),
    ];
    for (what, change) in &failures {
        let (host, pod, first) = (Host::new(), Space::new("pod"), Space::new("pod"));
        let mut config = host.config.clone();
        for (key, value) in change.as_object().unwrap() {
            if key == "wish" {
                config["runtimeConfig"] = json!({ "ips": [value] });
            } else if value.is_null() {
                config["ipam"].as_object_mut().unwrap().remove(key);
            } else {
                config["ipam"][key] = value.clone();
            }
        }
        let full = what.contains("full");
        if full {
            assert_eq!(host.verb("ADD", "first", first.path(), &config).status, 0);
        }
        for _ in 0..2 {
            let error = error_of(&host.verb("ADD", "c1", pod.path(), &config));
            assert!(pod.links().is_empty(), "{what}: {error}");
            assert_eq!(found(&host).links.len(), usize::from(full), "{what}: {error}");
            assert_eq!(found(&host).leases.len(), usize::from(full), "{what}: {error}");
        }
        host.add("c1", &pod);
        host.del("c1", pod.path());
        if full {
            host.del("first", first.path());
        }
        assert_nothing(&host, what);
    }
    println!("failing ADD: {} causes, twice each: nothing left, the next ADD works", failures.len());
}
