use serde_json::{Value, json};

use super::*;
use crate::config::tests::parse;
use crate::error::Code;

fn wiring(changed: Value) -> Wiring {
    parse(changed).unwrap().wiring
}

#[test]
fn without_a_word_pods_hang_on_a_bridge_that_is_their_gateway() {
    let wiring = wiring(json!({}));
    assert_eq!(wiring.mode, Mode::Bridge);
    assert!(wiring.gateway && wiring.addressed && wiring.enabled && !wiring.on_link && !wiring.verbatim);
    assert!(!wiring.isolated && !wiring.pinned && wiring.vlans.is_empty());
}

#[test]
fn the_reference_plugins_words_mean_a_lan() {
    let host_local = json!({ "type": "host-local", "subnet": "10.1.0.0/24" });
    for (changed, gateway) in [
        (json!({ "type": "bridge", "ipam": host_local }), false),
        (json!({ "type": "bridge", "isGateway": true, "ipam": host_local }), true),
        (json!({ "type": "bridge", "isDefaultGateway": true, "ipam": host_local }), true),
        (json!({ "isGateway": false }), false),
        (json!({ "isGateway": false, "isDefaultGateway": true }), true),
        (json!({ "portIsolation": true }), true),
        (json!({ "vlan": 7 }), true),
        (json!({ "vlanTrunk": [{ "id": 7 }] }), true),
    ] {
        let config = parse(changed.clone()).unwrap();
        assert_eq!(config.wiring.gateway, gateway, "{changed}");
        let lan = changed != json!({ "isGateway": false, "isDefaultGateway": true });
        assert_eq!(config.wiring.on_link, lan, "{changed}");
        assert!(config.wiring.addressed, "{changed}");
        assert!(gateway || !config.default_route, "{changed}");
        assert!(gateway || !config.masquerade, "{changed}");
    }
}

#[test]
fn without_ipam_the_reference_plugins_pods_have_no_addresses() {
    for changed in [
        json!({ "type": "bridge", "ipam": {} }),
        json!({ "type": "bridge", "isGateway": true, "ipMasq": true, "ipam": {} }),
        json!({ "type": "bridge", "disableContainerInterface": true, "ipam": {} }),
        json!({ "disableContainerInterface": true, "ipam": {} }),
    ] {
        let config = parse(changed.clone()).unwrap();
        assert!(!config.wiring.addressed && !config.wiring.gateway && !config.masquerade, "{changed}");
        assert_eq!(config.wiring.enabled, !changed.to_string().contains("disable"), "{changed}");
    }
    assert!(wiring(json!({ "ipam": {} })).addressed, "netd's own: the daemon's ranges");
    let old = parse(json!({ "cniVersion": "0.2.0", "type": "bridge", "ipam": {} })).unwrap_err();
    assert!(old.to_string().contains("without addresses"), "{old}");
}

#[test]
fn both_masquerade_backends_mean_masquerade() {
    for backend in ["iptables", "nftables"] {
        assert!(parse(json!({ "ipMasq": true, "ipMasqBackend": backend })).unwrap().masquerade);
    }
}

#[test]
fn vlans_are_told_in_the_reference_plugins_order() {
    let trunk = json!([{ "minID": 20, "maxID": 22 }, { "id": 23 }, { "id": 7, "minID": 30, "maxID": 30 }]);
    let vlans = wiring(json!({ "vlan": 100, "vlanTrunk": trunk })).vlans;
    let (native, tagged) = (VlanTagging::Native, VlanTagging::Tagged);
    assert_eq!(
        vlans.memberships(),
        [(100..=100, native), (7..=7, tagged), (20..=23, tagged), (30..=30, tagged)]
    );
    assert_eq!(vlans.key(), "vlan");
    let vlans = wiring(json!({ "vlanTrunk": [{ "id": 5 }], "preserveDefaultVlan": true })).vlans;
    assert_eq!(vlans.memberships(), [(5..=5, tagged), (1..=1, native)]);
    assert!(vlans.keep_default);
    assert_eq!(vlans.key(), "vlanTrunk");
    assert!(wiring(json!({ "vlan": 0, "vlanTrunk": [] })).vlans.is_empty());
}

#[test]
fn what_contradicts_itself_is_an_error_that_names_it() {
    let routed = |key: &str, value: Value| json!({ "mode": "routed", key: value });
    for (changed, word) in [
        (json!({ "mode": "macvlan" }), "macvlan"),
        (json!({ "mode": "Routed" }), "Routed"),
        (json!({ "vlan": 4095 }), "vlan 4095"),
        (json!({ "vlan": -1 }), "vlan -1"),
        (json!({ "vlan": "7" }), "vlan"),
        (json!({ "vlanTrunk": [{ "id": 0 }] }), "vlanTrunk[0].id 0"),
        (json!({ "vlanTrunk": [{ "minID": 1 }] }), "has no maxID"),
        (json!({ "vlanTrunk": [{ "maxID": 1 }] }), "has no minID"),
        (json!({ "vlanTrunk": [{ "id": 1 }, { "minID": 9, "maxID": 8 }] }), "vlanTrunk[1].minID 9"),
        (json!({ "vlanTrunk": [{ "minID": 0, "maxID": 8 }] }), "minID 0"),
        (json!({ "vlanTrunk": [{ "minID": 1, "maxID": 5000 }] }), "maxID 5000"),
        (json!({ "vlanTrunk": [{ "vid": 1 }] }), "vid"),
        (json!({ "vlanTrunk": 7 }), "vlanTrunk"),
        (json!({ "ipMasqBackend": "ipset" }), "ipset"),
        (json!({ "disableContainerInterface": true }), "disableContainerInterface with ipam"),
        (json!({ "type": "bridge", "ipam": { "subnet": "10.0.0.0/24" } }), "ipam has keys but no type"),
        (json!({ "hairpinMode": true, "promiscMode": true }), "hairpinMode with promiscMode"),
        (routed("isGateway", json!(false)), "isGateway false"),
        (routed("hairpinMode", json!(false)), "hairpinMode false"),
        (routed("promiscMode", json!(true)), "promiscMode"),
        (routed("forceAddress", json!(true)), "forceAddress"),
        (routed("vlan", json!(5)), "vlan"),
        (routed("vlanTrunk", json!([{ "id": 5 }])), "vlanTrunk"),
        (routed("preserveDefaultVlan", json!(true)), "preserveDefaultVlan"),
        (routed("portIsolation", json!(true)), "portIsolation"),
        (routed("macspoofchk", json!(true)), "macspoofchk"),
        (routed("disableContainerInterface", json!(true)), "disableContainerInterface"),
        (routed("type", json!("bridge")), "type \"bridge\""),
        (
            routed("ipam", json!({ "routes": [{ "dst": "10.0.0.0/8", "gw": "10.0.0.1" }] })),
            "10.0.0.0/8 has a gw",
        ),
    ] {
        let error = parse(changed.clone()).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig, "{changed}");
        assert!(error.to_string().contains(word), "{changed}: {error}");
    }
}

#[test]
fn a_routed_pods_next_hop_is_the_node_whatever_the_gateway() {
    let wiring = wiring(json!({ "mode": "routed" }));
    assert!(wiring.gateway && !wiring.on_link);
    let next = |gateway: &str| wiring.next_hop(&gateway.parse().unwrap()).to_string();
    assert_eq!((next("10.0.0.1/24").as_str(), next("fd00::1/64").as_str()), ("169.254.1.1", "fe80::1"));
}
