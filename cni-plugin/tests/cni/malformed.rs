//! Calls that cannot be meant: a well-formed error with the right code, and nothing left.

use std::time::Duration;

use netd_kernel::{Clock, SystemClock};
use nix::sys::stat::Mode;
use serde_json::{Value, json};

use super::harness::{Host, Space, environment, error_of};

struct Bench {
    host: Host,
    pod: Space,
    calls: u32,
}

impl Bench {
    /// Makes the call and verifies the error's code, and that nothing was made.
    fn refuse(&mut self, what: &str, env: &[(&str, &str)], stdin: &[u8], code: u64) {
        let start = SystemClock.now();
        let output = self.host.call(env, stdin);
        let error = error_of(&output);
        assert_eq!(error["code"], code, "{what}: {error}");
        assert!(start.elapsed() < Duration::from_secs(10), "{what} took {:?}", start.elapsed());
        assert_eq!(self.pod.links(), Vec::<String>::new(), "{what}");
        assert!(!self.host.space.links().iter().any(|name| name != "netd0"), "{what}");
        assert_eq!(self.host.leftovers(), Vec::<String>::new(), "{what}");
        self.calls += 1;
    }

    fn environments(&mut self) {
        let config = self.host.config.to_string();
        let netns = self.pod.path().to_owned();
        let good = environment("ADD", "c1", &netns);
        let mut refuse = |place: usize, value: &str, code: u64| {
            for verb in ["ADD", "DEL", "CHECK"] {
                let mut env = good;
                env[0].1 = verb;
                env[place].1 = value;
                self.refuse(&format!("{verb} {}={value:?}", env[place].0), &env, config.as_bytes(), code);
            }
        };
        for id in ["", "../../etc/passwd", "a/b", ".x", "-x", "a b", "a\nb", "é", "a;b", "$(x)", "*"] {
            refuse(1, id, 4);
        }
        refuse(1, &"a".repeat(5000), 4);
        for name in [
            "",
            "eth%d",
            "%s",
            "a/b",
            "a:b",
            "a b",
            "a\tb",
            "0123456789abcdef",
            ".",
            "..",
            "\u{1}",
            "a\u{a0}",
        ] {
            refuse(3, name, 4);
        }
        for args in ["x", ";;x", "IgnoreUnknown"] {
            refuse(4, args, 4);
        }
        for command in ["add", "ADD ", "REMOVE", "\u{fffd}", "ADD\n"] {
            let mut env = good;
            env[0].1 = command;
            self.refuse(command, &env, config.as_bytes(), 4);
        }
        for missing in 1..4 {
            let env: Vec<_> =
                good.iter().enumerate().filter(|(place, _)| *place != missing).map(|(_, v)| *v).collect();
            self.refuse(good[missing].0, &env, config.as_bytes(), 4);
        }
    }

    fn namespaces(&mut self) {
        let config = self.host.config.to_string();
        let fifo = self.host.data.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o600)).unwrap();
        let plain = self.host.data.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        let own = self.host.space.path().to_owned();
        let paths = [
            fifo.to_str().unwrap(),
            plain.to_str().unwrap(),
            "/dev/zero",
            "/",
            "/nonexistent",
            "/proc/self/ns/net",
            "/proc/self/ns/mnt",
            &own,
        ];
        for path in paths {
            self.refuse(&format!("ADD in {path}"), &environment("ADD", "c1", path), config.as_bytes(), 8);
        }
        let mut checked = self.host.config.clone();
        checked["prevResult"] = json!({ "cniVersion": "1.1.0" });
        for path in paths {
            self.refuse(
                &format!("CHECK in {path}"),
                &environment("CHECK", "c1", path),
                checked.to_string().as_bytes(),
                8,
            );
        }
        for path in ["/proc/self/ns/net", &own] {
            self.refuse(&format!("DEL in {path}"), &environment("DEL", "c1", path), config.as_bytes(), 8);
        }
    }

    fn inputs(&mut self) {
        let netns = self.pod.path().to_owned();
        let huge = [b"{\"name\":\"", "x".repeat(5 << 20).as_bytes(), b"\"}"].concat();
        let deep = "[".repeat(1 << 20);
        let truncated = self.host.config.to_string();
        let truncated = &truncated.as_bytes()[..truncated.len() - 2];
        let inputs: [&[u8]; 12] = [
            b"",
            b" ",
            b"{",
            b"null",
            b"[]",
            b"1",
            b"\"x\"",
            b"\0\0\0",
            b"\xff\xfe{}",
            deep.as_bytes(),
            &huge,
            truncated,
        ];
        for verb in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
            for input in inputs {
                let what = format!("{verb} with {} bytes", input.len());
                self.refuse(&what, &environment(verb, "c1", &netns), input, 6);
            }
        }
    }

    fn configurations(&mut self) {
        let changes: [(Value, u64); 24] = [
            (json!({ "cniVersion": "9.9.9" }), 1),
            (json!({ "cniVersion": "1" }), 1),
            (json!({ "cniVersion": {} }), 7),
            (json!({ "name": null }), 7),
            (json!({ "name": "" }), 7),
            (json!({ "name": "../../x" }), 7),
            (json!({ "name": 7 }), 7),
            (json!({ "type": "macvlan" }), 7),
            (json!({ "mtu": -1 }), 7),
            (json!({ "mtu": 1e9 }), 7),
            (json!({ "mtu": "big" }), 7),
            (json!({ "bridge": "a b" }), 7),
            (json!({ "bridge": "br%d" }), 7),
            (json!({ "bridge": "0123456789abcdef" }), 7),
            (json!({ "unknown": 1 }), 7),
            (json!({ "clusterCIDRs": ["x"] }), 7),
            (json!({ "ipam": [] }), 7),
            (json!({ "ipam": { "type": "dhcp" } }), 7),
            (json!({ "ipam": { "ranges": [[]] } }), 7),
            (json!({ "ipam": { "ranges": [[{ "subnet": "172.16.1.0/31" }]] } }), 7),
            (json!({ "ipam": { "ranges": [[{ "subnet": "172.16.1.7/24" }]] } }), 7),
            (json!({ "ipam": { "ranges": [[{ "subnet": "172.16.1.0/24", "rangeEnd": "10.0.0.1" }]] } }), 7),
            (json!({ "ipam": { "dataDir": "x" } }), 7),
            (json!({ "dns": 1 }), 7),
        ];
        self.refuse_changes(changes);
    }

    fn wirings(&mut self) {
        let wirings = [
            json!({ "mode": "macvlan" }),
            json!({ "mode": 1 }),
            json!({ "mode": "routed", "vlan": 7 }),
            json!({ "mode": "routed", "vlanTrunk": [{ "id": 7 }] }),
            json!({ "mode": "routed", "preserveDefaultVlan": true }),
            json!({ "mode": "routed", "isGateway": false }),
            json!({ "mode": "routed", "hairpinMode": false }),
            json!({ "mode": "routed", "promiscMode": true }),
            json!({ "mode": "routed", "forceAddress": true }),
            json!({ "mode": "routed", "portIsolation": true }),
            json!({ "mode": "routed", "macspoofchk": true }),
            json!({ "mode": "routed", "disableContainerInterface": true }),
            json!({ "mode": "routed", "type": "bridge" }),
            json!({ "vlan": 4095 }),
            json!({ "vlan": -7 }),
            json!({ "vlan": "7" }),
            json!({ "vlanTrunk": { "id": 7 } }),
            json!({ "vlanTrunk": [{ "id": 0 }] }),
            json!({ "vlanTrunk": [{ "id": 7, "name": "x" }] }),
            json!({ "vlanTrunk": [{ "minID": 9 }] }),
            json!({ "vlanTrunk": [{ "maxID": 9 }] }),
            json!({ "vlanTrunk": [{ "minID": 9, "maxID": 8 }] }),
            json!({ "vlanTrunk": [{ "minID": 1, "maxID": 4095 }] }),
            json!({ "disableContainerInterface": true }),
            json!({ "type": "bridge", "ipam": { "subnet": "172.16.1.0/24" } }),
            json!({ "ipMasqBackend": "ipvs" }),
            json!({ "hairpinMode": true, "promiscMode": true }),
            json!({ "macspoofchk": "yes" }),
            json!({ "portIsolation": 1 }),
        ];
        self.refuse_changes(wirings.map(|change| (change, 7)));
    }

    fn refuse_changes(&mut self, changes: impl IntoIterator<Item = (Value, u64)>) {
        let netns = self.pod.path().to_owned();
        for (change, code) in changes {
            let mut config = self.host.config.clone();
            for (key, value) in change.as_object().unwrap() {
                config[key] = value.clone();
            }
            for verb in ["ADD", "DEL", "CHECK"] {
                let what = format!("{verb} with {change}");
                self.refuse(&what, &environment(verb, "c1", &netns), config.to_string().as_bytes(), code);
            }
        }
    }

    fn wishes_and_versions(&mut self) {
        let netns = self.pod.path().to_owned();
        let mut add = |change: Value, args: &str, code: u64| {
            let mut config = self.host.config.clone();
            for (key, value) in change.as_object().unwrap() {
                config[key] = value.clone();
            }
            let mut env = environment("ADD", "c1", &netns);
            env[4].1 = args;
            self.refuse(&format!("ADD with {change} {args}"), &env, config.to_string().as_bytes(), code);
        };
        add(json!({ "runtimeConfig": { "bandwidth": { "ingressRate": 8000 } } }), "", 7);
        add(json!({ "runtimeConfig": { "bandwidth": { "egressRate": "8M", "egressBurst": 1 } } }), "", 7);
        let annotations = |value: &str| json!({ "runtimeConfig": { "io.kubernetes.cri.pod-annotations": { "netd.io/anti-spoofing": value } } });
        add(json!({ "type": "bridge", "cniVersion": "0.2.0", "ipam": {} }), "", 7);
        add(json!({ "type": "bridge", "ipam": {} }), "IP=172.16.1.9", 7);
        add(json!({ "type": "bridge", "ipam": {}, "runtimeConfig": { "ips": ["172.16.1.9"] } }), "", 7);
        let port = json!({ "portMappings": [{ "hostPort": 80, "containerPort": 80 }] });
        add(json!({ "type": "bridge", "bridge": "netd0", "ipam": {}, "runtimeConfig": port }), "", 7);
        add(annotations("false"), "", 7);
        add(annotations("off"), "", 7);
        add(json!({ "antiSpoofingOptOut": true }), "", 7);
        add(json!({ "runtimeConfig": { "portMappings": [{ "hostPort": 80 }] } }), "", 7);
        let other_family = json!({ "hostPort": 80, "containerPort": 80, "hostIP": "fd00::1" });
        add(json!({ "runtimeConfig": { "portMappings": [other_family] } }), "", 7);
        add(json!({ "runtimeConfig": { "mac": "01:00:00:00:00:01" } }), "", 7);
        add(json!({ "runtimeConfig": { "ips": ["172.16.2.9"] } }), "", 7);
        add(json!({}), "IP=172.16.1.1", 7);
        add(json!({}), "IP=172.16.1.300", 4);
        add(json!({}), "MAC=ff:ff:ff:ff:ff:ff", 4);
        add(json!({ "prevResult": { "cniVersion": "1.1.0", "ips": 1 } }), "", 6);
        add(json!({ "prevResult": 7 }), "", 6);
        add(json!({ "ipam": { "rangesFile": "/nonexistent", "dataDir": "/nonexistent" } }), "", 11);
        add(json!({ "bridge": "lo" }), "", 7);
        for (verb, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0")] {
            let mut config = self.host.config.clone();
            config["cniVersion"] = json!(version);
            self.refuse(verb, &environment(verb, "c1", &netns), config.to_string().as_bytes(), 1);
        }
    }
}

#[test]
fn a_malformed_call_gets_its_code_and_leaves_nothing() {
    let mut bench = Bench { host: Host::new(), pod: Space::new("pod"), calls: 0 };
    bench.environments();
    bench.namespaces();
    bench.inputs();
    bench.configurations();
    bench.wirings();
    bench.wishes_and_versions();
    println!("{} malformed calls", bench.calls);
    assert!(bench.calls > 310, "{}", bench.calls);
    let pod = &bench.pod;
    bench.host.add("good", pod);
    bench.host.del("good", pod.path());
}

#[test]
fn the_hosts_namespace_is_untouched() {
    let host = Host::new();
    for path in [host.space.path(), "/proc/self/ns/net"] {
        let error = error_of(&host.verb("ADD", "c1", path, &host.config));
        assert_eq!(error["code"], 8, "{error}");
    }
    assert!(host.space.links().is_empty(), "not even a bridge was made");
    assert!(!host.data.path().join("ipam").exists());
}
