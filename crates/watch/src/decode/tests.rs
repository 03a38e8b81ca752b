use std::time::Duration;

use netd_model::{EndpointSlice, Node, Service, ServiceType, TrafficPolicy};
use serde_json::{Value, json};

use super::address::{parse_ip, parse_prefix, parse_routable};
use super::*;
use crate::wire;

fn service_of(value: Value) -> Decoded<Service> {
    let wire: wire::service::Service = serde_json::from_value(value).unwrap();
    service(&wire, &mut Interner::default())
}

fn slice_of(value: Value) -> Decoded<EndpointSlice> {
    let wire: wire::endpoints::EndpointSlice = serde_json::from_value(value).unwrap();
    slice(&wire, &mut Interner::default())
}

fn node_of(value: Value) -> Decoded<Node> {
    let wire: wire::node::Node = serde_json::from_value(value).unwrap();
    node(&wire, &mut Interner::default())
}

/// A good Service with some of its spec replaced.
fn with_spec(spec: Value) -> Decoded<Service> {
    let mut value = json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80}]},
    });
    let fields = value["spec"].as_object_mut().unwrap();
    for (key, new) in spec.as_object().unwrap() {
        fields.insert(key.clone(), new.clone());
    }
    service_of(value)
}

/// A good slice with some of its fields replaced.
fn with_slice(fields: Value) -> Decoded<EndpointSlice> {
    let mut value = json!({
        "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["172.16.1.2"]}],
    });
    for (key, new) in fields.as_object().unwrap() {
        value[key] = new.clone();
    }
    slice_of(value)
}

fn addresses(slice: &EndpointSlice) -> Vec<String> {
    slice.endpoints.iter().map(|e| e.address.to_string()).collect()
}

#[test]
fn a_full_service_is_decoded() {
    let decoded = service_of(json!({
        "metadata": {
            "name": "web", "namespace": "shop", "uid": "u-1", "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"service.kubernetes.io/service-proxy-name": "other"}, "managedFields": [{"f": 1}],
            "annotations": {"big": "x".repeat(1 << 20)}
        },
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00::10"],
            "ports": [
                {"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP", "targetPort": "http"},
                {"name": "dns", "port": 53, "nodePort": 0, "protocol": "UDP"},
                {"name": "sctp", "port": 53, "protocol": "SCTP"}
            ],
            "externalIPs": ["192.0.2.7"],
            "loadBalancerSourceRanges": [" 10.1.2.3/8 ", "fd00::/8"],
            "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "publishNotReadyAddresses": true, "ipFamilies": ["IPv4"], "unknown": {"future": true}
        },
        "status": {"loadBalancer": {"ingress": [
            {"ip": "198.51.100.1"}, {"ip": "198.51.100.2", "ipMode": "Proxy"}, {"hostname": "lb.example"}
        ]}}
    }));
    assert_eq!(decoded.problems, []);
    let service = decoded.object.unwrap();
    assert_eq!(service.name.to_string(), "shop/web");
    assert_eq!(service.created, Some(1_767_323_045));
    assert_eq!(service.cluster_ips.len(), 2);
    assert_eq!(service.ports.len(), 3);
    assert_eq!(service.ports[0].node_port.map(NonZeroU16::get), Some(30080));
    assert_eq!(service.ports[1].node_port, None);
    assert_eq!(
        service.source_ranges.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.0/8", "fd00::/8"]
    );
    assert_eq!(service.internal_traffic_policy, TrafficPolicy::Local);
    assert_eq!(service.external_traffic_policy, TrafficPolicy::Local);
    assert_eq!(service.session_affinity, Some(Duration::from_secs(60)));
    assert_eq!(service.load_balancer.iter().map(|lb| lb.vip).collect::<Vec<_>>(), [true, false]);
    assert!(service.publish_not_ready && !service.proxied && !service.headless);
}

#[test]
fn absent_and_null_fields_mean_the_defaults() {
    let decoded = with_spec(json!({
        "type": null, "clusterIPs": null, "externalIPs": null, "loadBalancerSourceRanges": null,
        "sessionAffinity": "None", "sessionAffinityConfig": null, "internalTrafficPolicy": null,
        "healthCheckNodePort": 0
    }));
    assert_eq!(decoded.problems, []);
    let service = decoded.object.unwrap();
    assert_eq!(service.service_type, ServiceType::ClusterIP);
    assert_eq!(service.cluster_ips.len(), 1);
    assert_eq!(service.ports[0].protocol, Protocol::Tcp);
    assert_eq!(service.session_affinity, None);
    let lasting = with_spec(json!({"sessionAffinity": "ClientIP"})).object.unwrap();
    assert_eq!(lasting.session_affinity, Some(Duration::from_secs(10_800)));
}

#[test]
fn headless_and_external_name_services_have_no_addresses() {
    for spec in [json!({"clusterIP": "None"}), json!({"clusterIP": "None", "clusterIPs": ["None"]})] {
        let service = with_spec(spec).object.unwrap();
        assert!(service.headless && service.cluster_ips.is_empty());
    }
    let alias = with_spec(json!({"type": "ExternalName", "externalName": "Db.Example.COM."})).object.unwrap();
    assert_eq!(alias.external_name.as_deref(), Some("db.example.com"));
    assert!(alias.cluster_ips.is_empty() && !alias.headless);
}

#[test]
fn a_malformed_service_is_refused_with_the_field_and_a_remedy() {
    let cases = [
        (json!({"type": "Magic"}), "spec.type"),
        (json!({"clusterIP": "10.96.0.999"}), "spec.clusterIPs"),
        (json!({"clusterIP": "127.0.0.1"}), "spec.clusterIPs"),
        (json!({"clusterIP": "0.0.0.0"}), "spec.clusterIPs"),
        (json!({"clusterIP": "::ffff:10.96.0.1"}), "spec.clusterIPs"),
        (json!({"clusterIPs": ["10.96.0.1", "10.96.0.2"]}), "second IPv4"),
        (json!({"ports": [{"port": 0}]}), "spec.ports[0].port 0"),
        (json!({"ports": [{"port": 70000}]}), "70000"),
        (json!({"ports": [{"port": -1}]}), "-1"),
        (json!({"ports": [{"name": "a"}]}), "spec.ports[0].port is missing"),
        (json!({"ports": [{"port": 80, "protocol": "QUIC"}]}), "QUIC"),
        (json!({"ports": [{"port": 80, "name": "a b"}]}), "spec.ports[0].name"),
        (json!({"ports": [{"port": 80, "nodePort": 30080}]}), "nodePort needs"),
        (json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 70000}]}), "nodePort 70000"),
        (json!({"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]}), "not unique"),
        (json!({"ports": [{"port": 80}, {"port": 81}]}), "not unique"),
        (json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}), "twice"),
        (json!({"externalIPs": ["127.0.0.1"]}), "spec.externalIPs"),
        (json!({"externalIPs": ["169.254.169.254"]}), "link-local"),
        (json!({"loadBalancerSourceRanges": ["10.0.0.0/8", "everyone"]}), "everyone"),
        (json!({"loadBalancerSourceRanges": ["10.0.0.0/33"]}), "10.0.0.0/33"),
        (json!({"internalTrafficPolicy": "Near"}), "Near"),
        (json!({"externalTrafficPolicy": "Far"}), "Far"),
        (json!({"healthCheckNodePort": 70000}), "healthCheckNodePort"),
        (json!({"sessionAffinity": "Cookie"}), "Cookie"),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": -5}}}),
            "timeoutSeconds -5",
        ),
        (json!({"type": "ExternalName"}), "externalName is missing"),
        (json!({"type": "ExternalName", "externalName": "not a name"}), "externalName"),
    ];
    for (spec, expected) in cases {
        let decoded = with_spec(spec.clone());
        assert!(decoded.object.is_none(), "{spec}");
        let [problem] = decoded.problems.as_slice() else { panic!("{spec}: {:?}", decoded.problems) };
        assert_eq!((problem.kind.as_str(), problem.object.as_str()), ("Service", "default/web"));
        assert!(problem.message.contains(expected), "{spec}: {}", problem.message);
        assert!(problem.message.contains("; ") || problem.message.contains("needs"), "{}", problem.message);
    }
}

#[test]
fn a_bad_load_balancer_address_costs_only_itself() {
    let decoded = service_of(json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.10", "ports": [{"port": 80}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "nonsense"}, {"ip": "198.51.100.1", "ipMode": "Odd"}]}}
    }));
    assert_eq!(decoded.problems.len(), 2);
    let service = decoded.object.unwrap();
    assert_eq!(service.load_balancer.len(), 1);
    assert!(!service.load_balancer[0].vip);
}

#[test]
fn names_that_are_no_dns_names_are_refused() {
    for name in ["", "Web", "a/b", "a b", "-a", "a-", "a\n", "ü", &"a".repeat(254)] {
        let decoded = service_of(json!({
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.10"},
        }));
        assert!(decoded.object.is_none() && decoded.problems.len() == 1, "{name:?}");
    }
}

#[test]
fn wrong_json_types_keep_the_name_and_never_fail() {
    let text = json!({
        "metadata": {"name": "web", "namespace": "default", "resourceVersion": "7"},
        "spec": {"ports": [{"port": "http"}]},
    })
    .to_string();
    let wire: wire::Wire<wire::service::Service> = serde_json::from_str(&text).unwrap();
    assert_eq!(kube::Resource::meta(&wire).resource_version.as_deref(), Some("7"));
    let decoded = unreadable::<wire::service::Service, Service>(&wire.body.unwrap_err());
    assert_eq!(decoded.key.to_string(), "default/web");
    assert!(decoded.problems[0].message.contains("spec.ports[0].port"), "{:?}", decoded.problems);
    for text in ["null", "[]", "7", "{\"metadata\":null}", "{\"metadata\":{\"name\":[1]}}"] {
        let wire: wire::Wire<wire::node::Node> = serde_json::from_str(text).unwrap();
        assert!(wire.body.is_err() || wire.body.unwrap().metadata.name.is_none(), "{text}");
    }
}

#[test]
fn conditions_default_as_the_api_says() {
    let decoded = with_slice(json!({"endpoints": [
        {"addresses": ["172.16.1.2", "172.16.1.3"]},
        {"addresses": ["172.16.1.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["172.16.1.5"], "conditions": {"ready": null, "serving": null, "terminating": null}},
        {"addresses": ["172.16.1.6"], "conditions": null, "nodeName": "w1", "zone": "z1", "hostname": "db-0",
         "hints": {"forZones": [{"name": "z1"}], "forNodes": [{"name": "w1"}]},
         "targetRef": {"kind": "Pod", "namespace": "default", "name": "db-0"}}
    ]}));
    assert_eq!(decoded.problems, []);
    let slice = decoded.object.unwrap();
    assert_eq!(addresses(&slice), ["172.16.1.2", "172.16.1.4", "172.16.1.5", "172.16.1.6"]);
    let conditions: Vec<_> = slice.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
    assert_eq!(conditions[..3], [(true, true, false), (false, true, true), (true, true, false)]);
    let last = &slice.endpoints[3];
    assert_eq!(last.node.as_deref(), Some("w1"));
    assert_eq!(last.hostname.as_deref(), Some("db-0"));
    assert_eq!(last.pod.as_ref().unwrap().to_string(), "default/db-0");
    assert_eq!((&*last.for_zones[0], &*last.for_nodes[0]), ("z1", "w1"));
}

#[test]
fn slices_of_no_service_and_of_names_are_silently_ignored() {
    let unowned = with_slice(json!({"metadata": {"name": "x", "namespace": "default"}}));
    let fqdn = with_slice(json!({"addressType": "FQDN", "endpoints": [{"addresses": ["a.example"]}]}));
    for decoded in [unowned, fqdn] {
        assert!(decoded.object.is_none() && decoded.problems.is_empty());
    }
    let headless = with_slice(json!({"metadata": {"name": "x", "namespace": "default", "labels": {
        "kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""}}}));
    assert!(!headless.object.unwrap().proxied);
    for address_type in [json!("IPv5"), json!(null)] {
        let decoded = with_slice(json!({"addressType": address_type}));
        assert!(decoded.object.is_none() && decoded.problems.len() == 1);
    }
}

#[test]
fn ports_without_name_or_number_are_ignored_and_bad_ones_named() {
    let decoded = with_slice(json!({"ports": [
        {"name": null, "port": 80}, {"name": "a", "port": null}, {"name": "b", "port": 0},
        {"name": "c", "port": 70000}, {"name": "d", "port": 80, "protocol": "QUIC"},
        {"name": "e", "port": 81}, {"name": "e", "port": 82}, {"name": "e", "port": 83, "protocol": "UDP"}
    ]}));
    assert_eq!(decoded.problems.len(), 3, "{:?}", decoded.problems);
    let ports: Vec<_> = decoded.object.unwrap().ports.iter().map(|p| p.port.get()).collect();
    assert_eq!(ports, [81, 83]);
    assert_eq!(with_slice(json!({"ports": null, "endpoints": null})).problems, []);
}

#[test]
fn a_bad_endpoint_costs_only_itself() {
    let decoded = with_slice(json!({"endpoints": [
        {"addresses": []}, {"addresses": ["nonsense"]}, {"addresses": ["fd00::1"]}, {"addresses": ["127.0.0.1"]},
        {"addresses": ["224.0.0.1"]}, {"addresses": ["169.254.169.254"]}, {"addresses": ["172.016.1.9"]},
        {"addresses": ["172.16.1.2"], "hostname": "Not_A_Label"}
    ]}));
    assert_eq!(decoded.problems.len(), 7, "{:?}", decoded.problems);
    assert_eq!(addresses(&decoded.object.unwrap()), ["172.16.1.9", "172.16.1.2"]);
}

#[test]
fn many_endpoints_are_fine_and_many_problems_are_bounded() {
    let good: Vec<Value> =
        (0..5000).map(|i| json!({"addresses": [format!("172.17.{}.{}", i / 250, i % 250)]})).collect();
    assert_eq!(with_slice(json!({"endpoints": good})).object.unwrap().endpoints.len(), 5000);
    let bad: Vec<Value> = (0..500).map(|i| json!({"addresses": [format!("bad-{i}")]})).collect();
    let problems = with_slice(json!({"endpoints": bad})).problems;
    assert_eq!(problems.len(), MAX_PROBLEMS + 1);
    assert!(problems[MAX_PROBLEMS].message.contains("492 more"));
}

#[test]
fn endpoints_become_the_slices_of_the_controller() {
    let wire: wire::endpoints::Endpoints = serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default"},
        "subsets": [
            {"addresses": [
                {"ip": "172.16.1.2", "nodeName": "w1", "targetRef": {"kind": "Pod", "namespace": "default", "name": "a"}},
                {"ip": "fd00::2"}, {"ip": "bad"}],
             "notReadyAddresses": [{"ip": "172.16.1.3"}],
             "ports": [{"port": 8080}]},
            {"addresses": null, "notReadyAddresses": null, "ports": null}
        ]
    }))
    .unwrap();
    let decoded = endpoints(&wire, &mut Interner::default());
    assert_eq!(decoded.problems.len(), 1);
    let slices = decoded.object.unwrap();
    assert_eq!(slices.len(), 2);
    let same = with_slice(json!({
        "metadata": {"name": "web-0-ipv4", "namespace": "default",
                     "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [
            {"addresses": ["172.16.1.2"], "nodeName": "w1", "conditions": {"ready": true},
             "targetRef": {"kind": "Pod", "namespace": "default", "name": "a"}},
            {"addresses": ["172.16.1.3"], "conditions": {"ready": false, "serving": false}}
        ]
    }));
    assert_eq!(slices[0], same.object.unwrap());
    assert_eq!(addresses(&slices[1]), ["fd00::2"]);
}

#[test]
fn nodes_keep_addresses_prefixes_and_zone() {
    let decoded = node_of(json!({
        "metadata": {"name": "w1", "labels": {"topology.kubernetes.io/zone": "z1"}},
        "spec": {"podCIDR": "172.16.1.0/24", "podCIDRs": ["172.16.1.0/24", "fd00:1::/64"]},
        "status": {"addresses": [
            {"type": "ExternalIP", "address": "203.0.113.1"}, {"type": "Hostname", "address": "w1"},
            {"type": "InternalIP", "address": "192.168.1.101"}, {"type": "InternalIP", "address": "oops"}
        ]}
    }));
    assert_eq!(decoded.problems.len(), 1);
    let node = decoded.object.unwrap();
    assert_eq!(
        node.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["192.168.1.101", "203.0.113.1"]
    );
    assert_eq!(node.internal_addresses.len(), 1);
    assert_eq!(node.pod_cidrs.len(), 2);
    assert_eq!(node.zone.as_deref(), Some("z1"));
    let old = node_of(json!({"metadata": {"name": "w1"}, "spec": {"podCIDR": "172.16.1.0/24"}}));
    assert_eq!(old.object.unwrap().pod_cidrs.len(), 1);
    let twice =
        node_of(json!({"metadata": {"name": "w1"}, "spec": {"podCIDRs": ["10.0.0.0/8", "11.0.0.0/8"]}}));
    assert!(twice.object.is_none());
}

#[test]
fn addresses_parse_as_kubernetes_parses_them() {
    assert_eq!(parse_ip("f", "010.001.000.09").unwrap().to_string(), "10.1.0.9");
    for bad in
        ["", "1.2.3", "1.2.3.4.5", "1.2.3.256", "1.2.3.-4", "1.2.3.4 ", "::ffff:1.2.3.4", "a", "0x1.2.3.4"]
    {
        assert!(parse_ip("f", bad).is_err(), "{bad:?}");
    }
    for bad in ["::1", "fe80::1", "ff02::1", "255.255.255.255", "::"] {
        assert!(parse_routable("f", bad).is_err(), "{bad:?}");
    }
    for bad in
        ["10.0.0.0", "10.0.0.0/", "10.0.0.0/255.0.0.0", "10.0.0.0/+8", "/8", "10.0.0.0/8/8", "fd00::/129"]
    {
        assert!(parse_prefix("f", bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_node_that_is_deleted_or_about_to_be_is_leaving() {
    let leaving = |value: Value| node_of(value).object.unwrap().leaving;
    let tainted = |key: &str| json!({"metadata": {"name": "w1"}, "spec": {"taints": [{"key": key, "effect": "NoSchedule"}]}});
    assert!(!leaving(json!({"metadata": {"name": "w1"}})));
    assert!(!leaving(
        json!({"metadata": {"name": "w1", "deletionTimestamp": null}, "spec": {"taints": null}})
    ));
    assert!(leaving(json!({"metadata": {"name": "w1", "deletionTimestamp": "2026-01-01T00:00:00Z"}})));
    assert!(leaving(tainted("ToBeDeletedByClusterAutoscaler")));
    assert!(!leaving(tainted("DeletionCandidateOfClusterAutoscaler")));
}
