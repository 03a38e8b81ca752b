use proptest::prelude::*;
use serde_json::json;

use super::*;

/// The smallest configuration with some keys changed.
pub(super) fn parse(changed: Value) -> Result<Config, CniError> {
    let mut document = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "netd",
        "ipam": { "type": "netd", "ranges": [[{ "subnet": "172.16.1.0/24" }]] }
    });
    for (key, value) in changed.as_object().unwrap() {
        document[key] = value.clone();
    }
    Config::parse(document.to_string().as_bytes())
}

fn code(changed: Value) -> Code {
    parse(changed).unwrap_err().code
}

#[test]
fn the_smallest_configuration_gets_the_defaults() {
    let config = parse(json!({})).unwrap();
    assert_eq!(config.bridge, "netd0");
    assert_eq!((config.masquerade, config.hairpin, config.mtu), (true, true, None));
    assert_eq!(config.directory, Path::new("/var/lib/netd/ipam"));
    assert_eq!(config.pools.len(), 1);
    let bare = Config::parse(br#"{"name":"pods","type":"netd"}"#).unwrap();
    assert_eq!(bare.version, Version::V0_1_0);
    assert!(bare.pools.is_empty());
    assert_eq!(bare.ranges_file, Path::new("/run/netd/podcidrs.json"));
}

#[test]
fn an_unknown_key_is_an_error_that_names_it() {
    let error = parse(json!({ "ipMask": true })).unwrap_err();
    assert_eq!(error.code, Code::InvalidConfig);
    assert!(error.to_string().contains("ipMask"), "{error}");
    let error = parse(json!({ "ipam": { "ranges": [[{ "subnet": "10.0.0.0/24", "gatway": "10.0.0.9" }]] } }))
        .unwrap_err();
    assert!(
        error.to_string().contains("gatway") && error.to_string().contains("ipam.ranges[0][0]"),
        "{error}"
    );
}

#[test]
fn what_the_runtimes_library_adds_is_no_unknown_key() {
    let config = parse(json!({
        "prevResult": { "cniVersion": "1.0.0" }, "capabilities": { "io.kubernetes.cri.pod-annotations": true },
        "runtimeConfig": { "io.kubernetes.cri.pod-annotations": { "a": "b" }, "portMappings": [] }, "args": { "cni": {} },
        "cni.dev/valid-attachments": [{ "containerID": "a", "ifname": "eth0" }],
        "cni.dev/attachments": [{ "containerID": "a", "ifname": "eth0" }], "cni.dev/later": 1
    }));
    let config = config.unwrap();
    assert_eq!(config.valid.unwrap()[0], Owner { container: "a".into(), interface: "eth0".into() });
    assert!(config.previous.is_some() && config.bandwidth.is_empty());
}

#[test]
fn every_impossible_value_has_its_code() {
    assert_eq!(Config::parse(b"").unwrap_err().code, Code::Decode);
    assert_eq!(Config::parse(b"{").unwrap_err().code, Code::Decode);
    assert_eq!(Config::parse(b"[]").unwrap_err().code, Code::Decode);
    assert_eq!(Config::parse(b"\xff\xfe").unwrap_err().code, Code::Decode);
    assert_eq!(Config::parse("[".repeat(100_000).as_bytes()).unwrap_err().code, Code::Decode);
    assert_eq!(code(json!({ "cniVersion": "9.9.9" })), Code::IncompatibleVersion);
    for changed in [
        json!({ "cniVersion": 1 }),
        json!({ "name": null }),
        json!({ "name": "../x" }),
        json!({ "name": "" }),
        json!({ "type": "macvlan" }),
        json!({ "disableContainerInterface": true }),
        json!({ "ipMasqBackend": "nft" }),
        json!({ "ipMasqBackend": "" }),
        json!({ "hairpinMode": true, "promiscMode": true }),
        json!({ "runtimeConfig": { "portMappings": [{ "hostPort": 1 }] } }),
        json!({ "runtimeConfig": { "portMappings": [{ "hostPort": 0, "containerPort": 1 }] } }),
        json!({ "runtimeConfig": { "portMappings": [{ "hostPort": 65536, "containerPort": 1 }] } }),
        json!({ "runtimeConfig": { "portMappings": [{ "hostPort": 1, "containerPort": 1, "protocol": "x" }] } }),
        json!({ "runtimeConfig": { "portMappings": [{ "hostPort": 1, "containerPort": 1, "hostIP": "x" }] } }),
        json!({ "runtimeConfig": { "ips": ["x"] } }),
        json!({ "runtimeConfig": { "ips": "10.0.0.1" } }),
        json!({ "runtimeConfig": { "mac": "01:00:00:00:00:00" } }),
        json!({ "runtimeConfig": { "ipRanges": [[{ "subnet": "x" }]] } }),
        json!({ "args": { "cni": { "mac": "zz" } } }),
        json!({ "ipam": { "rangeStart": "10.0.0.2" } }),
        json!({ "ipam": { "importDir": "relative" } }),
        json!({ "ipam": { "resolvConf": "/dev/zero" } }),
        json!({ "mtu": -1 }),
        json!({ "mtu": 67 }),
        json!({ "mtu": 65536 }),
        json!({ "mtu": "1500" }),
        json!({ "bridge": "a/b" }),
        json!({ "bridge": "" }),
        json!({ "bridge": "0123456789abcdef" }),
        json!({ "ipMasq": "yes" }),
        json!({ "clusterCIDRs": ["10.0.0.0/99"] }),
        json!({ "ipam": { "type": "host-local" } }),
        json!({ "ipam": { "ranges": [[]] } }),
        json!({ "ipam": { "ranges": [[{}]] } }),
        json!({ "ipam": { "ranges": [[{ "subnet": "10.0.0.1/24" }]] } }),
        json!({ "ipam": { "ranges": [[{ "subnet": "10.0.0.0/31" }]] } }),
        json!({ "ipam": { "ranges": [[{ "subnet": "10.0.0.0/24", "rangeStart": "10.1.0.1" }]] } }),
        json!({ "ipam": { "ranges": [[{ "subnet": "10.0.0.0/24" }, { "subnet": "fd00::/64" }]] } }),
        json!({ "ipam": { "ranges": [[{ "subnet": "10.0.0.0/24" }], [{ "subnet": "10.0.0.0/16" }]] } }),
        json!({ "ipam": { "dataDir": "relative" } }),
        json!({ "ipam": { "routes": [{ "dst": "nowhere" }] } }),
        json!({ "dns": { "nameserver": [] } }),
        json!({ "cni.dev/valid-attachments": [{ "containerID": 1 }] }),
    ] {
        assert_eq!(code(changed.clone()), Code::InvalidConfig, "{changed}");
    }
}

#[test]
fn a_configuration_of_the_reference_plugins_has_their_defaults() {
    let config = parse(json!({
        "type": "bridge", "isGateway": true, "vlan": 0, "preserveDefaultVlan": false, "macspoofchk": false,
        "ipam": {
            "type": "host-local", "subnet": "10.22.0.0/16", "rangeStart": "10.22.0.9", "gateway": "10.22.0.254",
            "routes": [{ "dst": "0.0.0.0/0" }], "ranges": [[{ "subnet": "fd00::/64" }]]
        }
    }))
    .unwrap();
    assert_eq!(config.bridge, "cni0");
    assert!(!config.masquerade && !config.hairpin && !config.default_route);
    assert_eq!(config.pools.len(), 2);
    assert_eq!(config.pools[0].ranges()[0].gateway().to_string(), "10.22.0.254");
    assert_eq!(config.directory, Path::new("/var/lib/cni/networks"));
    assert_eq!(config.import.as_deref(), Some(Path::new("/var/lib/cni/networks/pods")));
    assert_eq!(code(json!({ "ipam": { "type": "../dhcp" } })), Code::InvalidConfig, "no path");
    let ours = parse(json!({ "promiscMode": true })).unwrap();
    assert!(!ours.hairpin && ours.promiscuous && ours.default_route && ours.import.is_none());
}

#[test]
fn a_wish_of_the_runtime_counts_more_than_one_of_the_arguments() {
    let mut config = parse(json!({
        "runtimeConfig": {
            "ips": ["172.16.1.9/24"], "dns": { "servers": ["10.0.0.10"], "searches": [] },
            "ipRanges": [[{ "subnet": "10.7.0.0/24" }]]
        },
        "args": { "cni": { "ips": ["172.16.1.8"], "mac": "02:00:00:00:00:08" } },
        "dns": { "nameservers": ["1.1.1.1"], "search": ["x"] }
    }))
    .unwrap();
    config.wishes.or(&["172.16.1.7".parse().unwrap()], "02:00:00:00:00:07".parse().ok());
    assert_eq!(config.wishes.addresses, ["172.16.1.9".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(config.wishes.mac.unwrap().to_string(), "02:00:00:00:00:08");
    assert_eq!(
        (config.dns.nameservers.as_slice(), config.dns.search.as_slice()),
        (["10.0.0.10".to_owned()].as_slice(), ["x".to_owned()].as_slice())
    );
    assert_eq!(
        config.pools[0].ranges()[0].subnet().to_string(),
        "10.7.0.0/24",
        "the runtime's ranges come first"
    );
}

/// JSON of any shape, with keys that the configuration knows among others.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~]{0,20}".prop_map(Value::from),
        Just(json!("172.16.1.0/24")),
        Just(json!("fd00::/64")),
    ];
    let key = prop_oneof![
        Just("ipam".to_owned()),
        Just("ranges".to_owned()),
        Just("subnet".to_owned()),
        Just("rangeStart".to_owned()),
        Just("mtu".to_owned()),
        Just("cni.dev/valid-attachments".to_owned()),
        Just("runtimeConfig".to_owned()),
        Just("prevResult".to_owned()),
        "[a-z]{1,8}",
    ];
    leaf.prop_recursive(4, 32, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_read_is_a_configuration_or_a_coded_error(changed in any_json(), bytes in any::<Vec<u8>>()) {
        let allowed = [Code::Decode, Code::InvalidConfig, Code::IncompatibleVersion];
        for result in [Config::parse(&bytes), parse_with(&changed)] {
            if let Err(error) = result {
                prop_assert!(allowed.contains(&error.code), "{}", error);
            }
        }
    }
}

fn parse_with(changed: &Value) -> Result<Config, CniError> {
    let mut document = json!({ "cniVersion": "1.0.0", "name": "pods", "type": "netd" });
    if let Some(changed) = changed.as_object() {
        for (key, value) in changed {
            document[key] = value.clone();
        }
    }
    Config::parse(document.to_string().as_bytes())
}

#[test]
fn the_configurations_limits_count_more_than_the_runtimes() {
    let wish = json!({ "bandwidth": { "ingressRate": 8000, "ingressBurst": 80_000 } });
    let config = parse(json!({ "runtimeConfig": wish })).unwrap();
    assert_eq!((config.bandwidth.ingress_rate, config.bandwidth.egress_rate), (8000, 0));
    let config =
        parse(json!({ "runtimeConfig": wish, "egressRate": 16_000, "egressBurst": 80_000 })).unwrap();
    assert_eq!((config.bandwidth.ingress_rate, config.bandwidth.egress_rate), (0, 16_000));
    assert!(parse(json!({ "runtimeConfig": { "bandwidth": { "rate": 1 } } })).is_err());
    // A DEL must not fail where the ADD has.
    assert!(parse(json!({ "egressRate": 16_000 })).unwrap().bandwidth.limits().is_err());
}

#[test]
fn pods_are_guarded_unless_the_reference_plugin_is_meant() {
    let reference = |keys: Value| {
        let mut keys = keys;
        keys["type"] = json!("bridge");
        keys["isGateway"] = json!(true);
        keys["ipam"] = json!({ "type": "host-local", "subnet": "10.1.0.0/16" });
        parse(keys).unwrap().anti_spoofing
    };
    assert!(parse(json!({})).unwrap().anti_spoofing);
    assert!(!parse(json!({ "antiSpoofing": false })).unwrap().anti_spoofing);
    assert!(!reference(json!({})) && reference(json!({ "antiSpoofing": true })));
    assert!(!parse(json!({ "vlanTrunk": [{ "id": 7 }] })).unwrap().anti_spoofing);
    let error = parse(json!({ "vlanTrunk": [{ "id": 7 }], "antiSpoofing": true })).unwrap_err();
    assert_eq!(error.code, Code::InvalidConfig);
    let annotations = |value: Value| {
        parse(
            json!({ "runtimeConfig": { "io.kubernetes.cri.pod-annotations": { "netd.io/anti-spoofing": value } } }),
        )
    };
    assert_eq!(annotations(json!("false")).unwrap().wishes.anti_spoofing.as_deref(), Some("false"));
    assert!(annotations(json!(false)).is_err());
}
