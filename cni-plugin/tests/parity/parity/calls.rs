//! What every plugin answers to a call, whatever it does: variables, versions, input. The cases are those of the
//! reference's own tests of its skeleton; see `cases`.

use std::ffi::OsString;

use netd_kernel::exec::{Output, Spawn, Stream};
use serde_json::{Value, json};

use super::harness::{Host, LIMIT, Space, error_of, text};

const VARIABLES: [&str; 6] =
    ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];

/// A call with all variables but one.
fn call_without(host: &Host, verb: &str, pod: &Space, missing: &str, config: &Value) -> Output {
    let values = [verb, "c1", pod.path(), "eth0", "IgnoreUnknown=1", "/nonexistent"];
    let env: Vec<(&str, &str)> =
        VARIABLES.into_iter().zip(values).filter(|(variable, _)| *variable != missing).collect();
    host.call(&env, config.to_string().as_bytes())
}

#[test]
fn every_verb_wants_its_variables_and_no_others() {
    let (host, pod) = (Host::new(), Space::new("pod"));
    let wanted: [(&str, &[&str]); 6] = [
        ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"]),
        ("GC", &[]),
        ("STATUS", &[]),
        ("VERSION", &[]),
    ];
    for (verb, required) in wanted {
        for missing in VARIABLES.into_iter().filter(|variable| *variable != "CNI_COMMAND") {
            let mut config = host.config.clone();
            if verb == "CHECK" {
                config["prevResult"] = host.add("c1", &pod);
            }
            config["cni.dev/valid-attachments"] = json!([]);
            let output = call_without(&host, verb, &pod, missing, &config);
            if required.contains(&missing) {
                let error = error_of(&output);
                assert_eq!(error["code"], 4, "{verb} without {missing}: {error}");
                assert!(error["msg"].as_str().unwrap().contains(missing), "{error}");
            } else {
                assert_eq!(output.status, 0, "{verb} without {missing}: {}", text(&output));
            }
            host.del("c1", pod.path());
        }
    }
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn all_missing_variables_are_told_at_once() {
    let (host, pod) = (Host::new(), Space::new("pod"));
    for (verb, names) in [
        ("ADD", vec!["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("CHECK", vec!["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("DEL", vec!["CNI_CONTAINERID", "CNI_IFNAME"]),
    ] {
        let error = error_of(&host.call(&[("CNI_COMMAND", verb)], host.config.to_string().as_bytes()));
        assert_eq!(error["code"], 4);
        assert!(names.iter().all(|name| error["msg"].as_str().unwrap().contains(name)), "{error}");
    }
    assert!(pod.links().is_empty());
}

#[test]
fn a_configuration_without_a_version_is_answered_in_the_first() {
    let (mut host, pod) = (Host::new(), Space::new("pod"));
    host.config.as_object_mut().unwrap().remove("cniVersion");
    let result = host.add("c1", &pod);
    assert_eq!(result["cniVersion"], "0.1.0");
    assert_eq!(result["ip4"]["gateway"], "172.16.1.1");
    host.del("c1", pod.path());
}

#[test]
fn a_version_that_is_unknown_or_too_old_for_the_verb_is_code_1() {
    let (mut host, pod) = (Host::new(), Space::new("pod"));
    for (verb, version) in [
        ("ADD", "9.9.9"),
        ("ADD", "adsfsadf"),
        ("ADD", "1.0"),
        ("CHECK", "9.9.9"),
        ("CHECK", "adsfsadf"),
        ("CHECK", "0.3.0"),
        ("CHECK", "0.3.1"),
        ("CHECK", "0.2.0"),
        ("GC", "9.9.9"),
        ("GC", "0.4.0"),
        ("GC", "1.0.0"),
        ("STATUS", "1.0.0"),
        ("STATUS", "9.9.9"),
        ("DEL", "9.9.9"),
    ] {
        host.config["cniVersion"] = json!(version);
        let error = error_of(&host.verb(verb, "c1", pod.path(), &host.config));
        assert_eq!(error["code"], 1, "{verb} of {version}: {error}");
    }
    host.config["cniVersion"] = json!("1.1.0");
    for verb in ["ADD", "CHECK", "GC", "DEL", "STATUS"] {
        let mut config = host.config.clone();
        for name in [json!(null), json!(""), json!("a b"), json!("../x")] {
            config["name"] = name;
            assert_eq!(
                error_of(&host.verb(verb, "c1", pod.path(), &config))["code"],
                7,
                "{verb}: {}",
                config["name"]
            );
        }
    }
    assert!(pod.links().is_empty());
}

/// A call whose standard input is a file.
fn call_from(host: &Host, env: &[(&str, &str)], stdin: &str) -> (Option<i32>, Value) {
    let mut spawn = Spawn::new(env!("CARGO_BIN_EXE_netd-cni"), Vec::<OsString>::new());
    spawn.env = env.iter().map(|(key, value)| (key.into(), value.into())).collect();
    spawn.netns = Some(host.space.path.clone());
    spawn.stdin = Stream::File(stdin.into());
    let told = host.data.path().join("told");
    std::fs::write(&told, "").unwrap();
    spawn.stdout = Stream::File(told.clone());
    let status = spawn.start().unwrap().wait_timeout(LIMIT).unwrap();
    (status, serde_json::from_slice(&std::fs::read(told).unwrap()).unwrap())
}

#[test]
fn version_wants_nothing_but_its_command() {
    let host = Host::new();
    for stdin in ["/dev/null", "/dev/zero"] {
        let (status, told) = call_from(&host, &[("CNI_COMMAND", "VERSION")], stdin);
        assert_eq!(status, Some(0), "{told}");
        assert_eq!(told["cniVersion"], "1.1.0");
        assert_eq!(told["supportedVersions"].as_array().unwrap().len(), 7);
    }
}

#[test]
fn input_that_cannot_be_read_is_code_5() {
    let (host, pod) = (Host::new(), Space::new("pod"));
    let env = super::harness::environment("ADD", "c1", pod.path());
    let directory = host.data.path().join("directory");
    std::fs::create_dir(&directory).unwrap();
    let mut spawn = host.spawn(&env);
    // Reading a memory file where nothing is mapped fails.
    spawn.stdin = Stream::File("/proc/self/mem".into());
    let told = host.data.path().join("told");
    spawn.stdout = Stream::File(told.clone());
    assert_eq!(spawn.start().unwrap().wait_timeout(LIMIT).unwrap(), Some(1));
    let error: Value = serde_json::from_slice(&std::fs::read(told).unwrap()).unwrap();
    assert_eq!(error["code"], 5, "{error}");
    assert!(pod.links().is_empty());
}

#[test]
fn an_unknown_command_is_code_4_and_no_command_is_a_person() {
    let (host, pod) = (Host::new(), Space::new("pod"));
    let config = host.config.to_string();
    for command in ["NOPE", "add", " "] {
        let mut env = super::harness::environment(command, "c1", pod.path());
        env[0].1 = command;
        let error = error_of(&host.call(&env, config.as_bytes()));
        assert_eq!(error["code"], 4, "{error}");
        assert!(error["msg"].as_str().unwrap().contains("CNI_COMMAND"), "{error}");
    }
    for env in [vec![], vec![("CNI_COMMAND", "")]] {
        let output = host.call(&env, config.as_bytes());
        assert_eq!((output.status, text(&output).as_str()), (0, ""));
        assert!(
            output.complaint().contains("0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
            "{}",
            output.complaint()
        );
    }
}

/// The form before 0.3.0: an address a family, each with its routes.
fn golden_of_the_first_versions(version: &str, dns: &Value) -> Value {
    let v4 = [
        json!({ "dst": "10.5.0.0/16", "gw": "172.16.1.1" }),
        json!({ "dst": "0.0.0.0/0", "gw": "172.16.1.1" }),
    ];
    let v6 = [json!({ "dst": "fd05::/64", "gw": "fd00:1::9" }), json!({ "dst": "::/0", "gw": "fd00:1::1" })];
    json!({
        "cniVersion": version, "dns": dns,
        "ip4": { "ip": "172.16.1.7/32", "gateway": "172.16.1.1", "routes": v4 },
        "ip6": { "ip": "fd00:1::7/128", "gateway": "fd00:1::1", "routes": v6 },
    })
}

/// The whole answer of an ADD with two families, a route and DNS settings, in each form that the spec has had.
#[test]
fn every_version_has_its_golden_result() {
    let mut host = Host::with_ranges(json!([[{ "subnet": "172.16.1.0/24" }], [{ "subnet": "fd00:1::/64" }]]));
    let dns = json!({ "nameservers": ["10.0.0.53", "fd00::53"], "domain": "a.example", "search": ["b.example"], "options": ["ndots:5"] });
    host.config["dns"] = dns.clone();
    host.config["ipam"]["routes"] =
        json!([{ "dst": "10.5.0.0/16" }, { "dst": "fd05::/64", "gw": "fd00:1::9" }]);
    host.config["runtimeConfig"] = json!({ "mac": "c2:11:22:33:44:55", "ips": ["172.16.1.7", "fd00:1::7"] });
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Space::new("pod");
        host.config["cniVersion"] = json!(version);
        let result = host.add("c1", &pod);
        let macs = |name: &str| host.space.netlink().link(name).unwrap().unwrap().mac.unwrap().to_string();
        let golden = if version < "0.3.0" {
            golden_of_the_first_versions(version, &dns)
        } else {
            let port = result["interfaces"][1]["name"].as_str().unwrap();
            let mut interfaces = json!([
                { "name": "netd0", "mac": macs("netd0") },
                { "name": port, "mac": macs(port) },
                { "name": "eth0", "mac": "c2:11:22:33:44:55", "sandbox": pod.path() },
            ]);
            let mut ips = json!([
                { "interface": 2, "address": "172.16.1.7/32", "gateway": "172.16.1.1" },
                { "interface": 2, "address": "fd00:1::7/128", "gateway": "fd00:1::1" },
            ]);
            if version < "1.0.0" {
                (ips[0]["version"], ips[1]["version"]) = (json!("4"), json!("6"));
            }
            if version == "1.1.0" {
                interfaces
                    .as_array_mut()
                    .unwrap()
                    .iter_mut()
                    .for_each(|interface| interface["mtu"] = json!(1500));
            }
            json!({
                "cniVersion": version, "dns": dns, "interfaces": interfaces, "ips": ips,
                "routes": [
                    { "dst": "10.5.0.0/16", "gw": "172.16.1.1" }, { "dst": "fd05::/64", "gw": "fd00:1::9" },
                    { "dst": "0.0.0.0/0", "gw": "172.16.1.1" }, { "dst": "::/0", "gw": "fd00:1::1" },
                ],
            })
        };
        assert_eq!(result, golden, "{version}");
        if version >= "0.4.0" {
            let check = host.check("c1", &pod, &result);
            assert_eq!(check.status, 0, "{version}: {}", text(&check));
        }
        host.del("c1", pod.path());
    }
    assert_eq!(host.leftovers(), Vec::<String>::new());
}
