//! Malformed calls by the hundred, made from good ones: every key of a wrong kind, every value out of bounds, every variable.

use std::time::Duration;

use netd_kernel::{Clock, SystemClock};
use serde_json::{Map, Value, json};

use super::harness::{Host, Space, environment, error_of};
use super::node::{Found, found};

/// What a call is, and the code the spec has for it.
struct Malformed {
    what: String,
    env: Vec<(&'static str, String)>,
    stdin: Vec<u8>,
    codes: &'static [u64],
}

const ENVIRONMENT: &[u64] = &[4];
const INVALID: &[u64] = &[7];
const DECODE: &[u64] = &[6];
const NAMESPACE: &[u64] = &[8];

struct Generator<'a> {
    host: &'a Host,
    netns: &'a str,
    calls: Vec<Malformed>,
}

impl Generator<'_> {
    fn env(&self, verb: &str) -> Vec<(&'static str, String)> {
        let fixed: [(&'static str, &str); 3] =
            [("CNI_COMMAND", ""), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")];
        let mut env: Vec<(&'static str, String)> =
            fixed.map(|(name, value)| (name, value.to_owned())).to_vec();
        env[0].1 = verb.to_owned();
        env.push(("CNI_NETNS", self.netns.to_owned()));
        env
    }

    fn push(
        &mut self,
        what: String,
        env: Vec<(&'static str, String)>,
        stdin: Vec<u8>,
        codes: &'static [u64],
    ) {
        self.calls.push(Malformed { what, env, stdin, codes });
    }

    fn variables(&mut self) {
        let good = self.host.config.to_string().into_bytes();
        let ids = [
            "..",
            "../../var/lib/netd/ipam/x",
            "a/../b",
            "/etc/passwd",
            " ",
            "\t",
            "a\u{0}b",
            "a\r\nifname",
            "%n%n",
        ];
        let names = [
            "eth%d",
            "a/b",
            "../x",
            "a:0",
            "eth 0",
            "\n",
            ".",
            "..",
            "0123456789abcdef",
            "eth0\u{2028}",
            "%d",
        ];
        for verb in ["ADD", "DEL", "CHECK"] {
            for (variable, values) in [("CNI_CONTAINERID", &ids[..]), ("CNI_IFNAME", &names[..])] {
                // A variable cannot hold a zero byte: the kernel would cut it off there.
                for value in values.iter().filter(|value| !value.contains('\0')) {
                    let mut env = self.env(verb);
                    env.retain(|(name, _)| *name != variable);
                    env.push((variable, (*value).to_owned()));
                    self.push(format!("{verb} {variable}={value:?}"), env, good.clone(), ENVIRONMENT);
                }
                let mut env = self.env(verb);
                env.retain(|(name, _)| *name != variable);
                self.push(format!("{verb} without {variable}"), env, good.clone(), ENVIRONMENT);
            }
        }
        for path in
            ["/", "/dev/null", "/proc/self/ns/pid", "/proc/1/environ", "relative", "/nonexistent/ns", "\u{1}"]
        {
            let mut env = self.env("ADD");
            env.last_mut().unwrap().1 = path.to_owned();
            self.push(format!("ADD in {path:?}"), env, good.clone(), NAMESPACE);
        }
    }

    /// Every key of the configuration with values of every other kind.
    fn kinds(&mut self) {
        let bools = [
            "ipMasq",
            "hairpinMode",
            "promiscMode",
            "isGateway",
            "isDefaultGateway",
            "forceAddress",
            "enabledad",
        ];
        let numbers = ["mtu"];
        let texts = ["name", "bridge", "ipMasqBackend"];
        let lists = ["clusterCIDRs", "nonMasqueradeCIDRs"];
        let others = |good: fn(&Value) -> bool| {
            let all = [json!(true), json!(-1), json!(1.5), json!("text"), json!([[]]), json!({ "x": 1 })];
            all.into_iter().filter(move |value| !good(value))
        };
        let mut change = |key: &str, value: Value| {
            let mut config = self.host.config.clone();
            config[key] = value.clone();
            let env = self.env("ADD");
            self.push(format!("ADD with {key}: {value}"), env, config.to_string().into_bytes(), INVALID);
        };
        for key in bools {
            others(Value::is_boolean).for_each(|value| change(key, value));
        }
        for key in numbers {
            others(|value| value.is_u64()).for_each(|value| change(key, value));
        }
        for key in texts {
            others(Value::is_string).for_each(|value| change(key, value));
        }
        for key in lists {
            others(|_| false).for_each(|value| change(key, value));
        }
        others(|_| false).for_each(|value| change("ipam", value));
        for value in [json!(-1), json!(65_536_000), json!(67), json!("1500"), json!(1e300)] {
            change("mtu", value);
        }
        for prefix in
            ["10.0.0.0/33", "10.0.0", "::/129", "10.0.0.1/-1", "x/8", "", "10.0.0/8", "0x0a000000/8"]
        {
            change("clusterCIDRs", json!([prefix]));
        }
        for name in ["", ".x", "a/b", "../x", "a b", "a\nb", "é"] {
            change("name", json!(name));
        }
        for bridge in ["", ".", "..", "a/b", "a:b", "0123456789abcdef", "br%d", "a\tb"] {
            change("bridge", json!(bridge));
        }
    }

    /// Ranges that cannot be.
    fn ranges(&mut self) {
        let range = |text: &str| {
            let mut parts = text.split_whitespace();
            let mut range = Map::new();
            for key in ["subnet", "rangeStart", "rangeEnd", "gateway"] {
                if let Some(value) = parts.next().filter(|value| *value != "-") {
                    range.insert(key.to_owned(), json!(value));
                }
            }
            Value::Object(range)
        };
        let wrong = [
            "",
            "10.0.0.0",
            "10.0.0.0/31",
            "10.0.0.0/32",
            "10.0.0.1/24",
            "10.0.0.0/24 10.0.1.1",
            "10.0.0.0/24 - 10.0.1.1",
            "10.0.0.0/24 10.0.0.9 10.0.0.3",
            "10.0.0.0/24 - - 10.0.1.1",
            "10.0.0.0/24 - - fd00::1",
            "10.0.0.0/24 fd00::1",
            "fd00::/127",
            "fd00::1/64",
            "fd00::/64 10.0.0.1",
            "x/24",
            "10.0.0.0/24 x",
            "10.0.0.0/24 - x",
            "10.0.0.0/24 - - x",
        ];
        let mut refuse = |what: &str, ranges: Value| {
            let mut config = self.host.config.clone();
            config["ipam"]["ranges"] = ranges;
            for verb in ["ADD", "CHECK"] {
                let env = self.env(verb);
                self.push(
                    format!("{verb} with the range {what}"),
                    env,
                    config.to_string().into_bytes(),
                    INVALID,
                );
            }
        };
        for text in wrong {
            refuse(text, json!([[range(text)]]));
        }
        refuse("twice", json!([[range("10.0.0.0/24")], [range("10.0.0.0/24")]]));
        refuse("overlapping", json!([[range("10.0.0.0/16"), range("10.0.1.0/24")]]));
        refuse("two families in one list", json!([[range("10.0.0.0/24"), range("fd00::/64")]]));
        refuse("no list", json!([range("10.0.0.0/24")]));
        refuse("an unknown key", json!([[{ "subnet": "10.0.0.0/24", "colour": 1 }]]));
    }

    /// A good configuration cut off, and one with a byte that is no text.
    fn documents(&mut self) {
        let good = self.host.config.to_string().into_bytes();
        let step = good.len() / 25;
        for verb in ["ADD", "DEL"] {
            for at in (0..good.len()).step_by(step) {
                let env = self.env(verb);
                self.push(format!("{verb} cut off at {at}"), env, good[..at].to_vec(), DECODE);
            }
            let mut spoilt = good.clone();
            spoilt[5] = 0xff;
            let env = self.env(verb);
            self.push(format!("{verb} with a byte 0xff"), env, spoilt, DECODE);
            let (env, deep) = (self.env(verb), [vec![b'['; 200_000], vec![b']'; 200_000]].concat());
            self.push(format!("{verb} nested 200,000 deep"), env, deep, DECODE);
            let (env, long) =
                (self.env(verb), [b"{\"name\":\"", vec![b'x'; 10 << 20].as_slice(), b"\"}"].concat());
            self.push(format!("{verb} of 10 MiB"), env, long, DECODE);
        }
        for version in ["0.5.0", "2.0.0", "1.1", "1.1.0.0", "-1.0.0", "v1.0.0", "1.0.0-rc1", "١.٠.٠"] {
            let mut config = self.host.config.clone();
            config["cniVersion"] = json!(version);
            let env = self.env("ADD");
            self.push(format!("ADD with version {version}"), env, config.to_string().into_bytes(), &[1]);
        }
    }

    fn wishes(&mut self) {
        let wrong = [
            json!({ "portMappings": [{ "hostPort": 70_000, "containerPort": 80 }] }),
            json!({ "portMappings": [{ "hostPort": 80, "containerPort": 0 }] }),
            json!({ "portMappings": [{ "hostPort": -2, "containerPort": "80" }] }),
            json!({ "portMappings": [{ "hostPort": 80, "containerPort": 80, "protocol": "icmp" }] }),
            json!({ "portMappings": [{ "hostPort": 80, "containerPort": 80, "hostIP": "localhost" }] }),
            json!({ "portMappings": [{ "hostPort": 80, "containerPort": 80, "hostIP": "fd00::1" }] }),
            json!({ "portMappings": { "hostPort": 80 } }),
            json!({ "ips": ["172.16.9.9"] }),
            json!({ "ips": ["172.16.1.1"] }),
            json!({ "ips": ["x"] }),
            json!({ "ips": "172.16.1.7" }),
            json!({ "mac": "not a mac" }),
            json!({ "mac": "ff:ff:ff:ff:ff:ff" }),
            json!({ "mac": 7 }),
            json!({ "dns": ["x"] }),
            json!({ "ipRanges": [[{ "subnet": "x" }]] }),
            json!({ "ipRanges": 1 }),
        ];
        for wish in wrong {
            let mut config = self.host.config.clone();
            config["runtimeConfig"] = wish.clone();
            let env = self.env("ADD");
            self.push(format!("ADD with {wish}"), env, config.to_string().into_bytes(), INVALID);
        }
        let mut checked = self.host.config.clone();
        for previous in [
            json!(1),
            json!("x"),
            json!([1]),
            json!({ "ips": 1 }),
            json!({ "cniVersion": "1.1.0", "ips": [{}] }),
        ] {
            checked["prevResult"] = previous.clone();
            for verb in ["ADD", "CHECK"] {
                let env = self.env(verb);
                self.push(format!("{verb} after {previous}"), env, checked.to_string().into_bytes(), &[6, 7]);
            }
        }
    }
}

#[test]
fn c11_generated_malformed_calls() {
    let (host, pod) = (Host::new(), Space::new("pod"));
    let mut generator = Generator { host: &host, netns: pod.path(), calls: Vec::new() };
    generator.variables();
    generator.kinds();
    generator.ranges();
    generator.documents();
    generator.wishes();
    let calls = generator.calls;
    assert!(calls.len() >= 222, "{}", calls.len());
    let (mut faults, mut slowest) = (Vec::new(), Duration::ZERO);
    for call in &calls {
        let env: Vec<(&str, &str)> = call.env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let start = SystemClock.now();
        let output = host.call(&env, &call.stdin);
        slowest = slowest.max(start.elapsed());
        if output.status == 0 {
            faults.push(format!("{}: accepted", call.what));
            host.del("c1", pod.path());
            continue;
        }
        let error = error_of(&output);
        if !error["code"].as_u64().is_some_and(|code| call.codes.contains(&code)) {
            faults.push(format!("{}: wanted {:?}: {error}", call.what, call.codes));
        }
        assert!(output.status == 1, "{}: exit status {}", call.what, output.status);
        assert!(pod.links().is_empty(), "{}", call.what);
        assert_eq!(found(&host), Found::default(), "{}", call.what);
    }
    assert_eq!(faults, Vec::<String>::new());
    println!(
        "c11: {0} malformed calls: {0} well-formed errors, {0} with the spec's code, {0} left nothing; slowest {slowest:?}",
        calls.len()
    );
}

#[test]
fn a_path_in_an_id_writes_no_file() {
    let (host, pod) = (Host::new(), Space::new("pod"));
    let before = files(host.data.path());
    for id in ["../../escape", "..", "a/../../escape", "/tmp/escape"] {
        for verb in ["ADD", "DEL", "CHECK"] {
            assert_eq!(error_of(&host.verb(verb, id, pod.path(), &host.config))["code"], 4);
        }
    }
    let mut config = host.config.clone();
    for name in ["../escape", "..", "a/b"] {
        config["name"] = json!(name);
        assert_eq!(error_of(&host.verb("ADD", "c1", pod.path(), &config))["code"], 7);
    }
    assert_eq!(files(host.data.path()), before);
    let env = environment("ADD", "c1", pod.path());
    assert_eq!(host.call(&env, host.config.to_string().as_bytes()).status, 0);
    host.del("c1", pod.path());
    println!("path traversal: 15 calls refused, 0 files written");
}

fn files(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut all: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}
