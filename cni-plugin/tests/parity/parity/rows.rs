//! The configurations that are given to both sides.

use serde_json::{Value, json};

use super::harness::network;
use super::world::World;

/// One configuration of `bridge` with `host-local`, and what goes with it.
pub(crate) struct Row {
    pub(crate) name: String,
    config: Value,
    /// What is different for pod b.
    second: Value,
    ports: Value,
    /// What is done to the node before the first ADD.
    pub(crate) before: fn(&World),
    /// How many pods there are.
    pub(crate) pods: usize,
    /// Variables of every call besides the usual ones.
    pub(crate) variables: &'static [(&'static str, &'static str)],
}

/// The file that `RESOLV` stands for.
const RESOLV: &str = "nameserver 10.0.0.10\nnameserver 10.0.0.11\ndomain a.example\nsearch a.example b.example\noptions ndots:5 rotate\n";

impl Row {
    fn new(name: impl Into<String>, change: Value) -> Self {
        let mut config = json!({
            "cniVersion": "1.0.0", "name": "pods", "type": "bridge", "bridge": "cni0", "isDefaultGateway": true,
            "ipam": { "type": "host-local", "dataDir": "DATA", "ranges": [[{ "subnet": "10.88.0.0/24" }]] },
        });
        merge(&mut config, &change);
        Self {
            name: name.into(),
            config,
            second: json!({}),
            ports: Value::Null,
            before: |_| {},
            pods: 2,
            variables: &[],
        }
    }

    fn second(self, change: Value) -> Self {
        Self { second: change, ..self }
    }

    fn before(self, before: fn(&World)) -> Self {
        Self { before, ..self }
    }

    /// There is one pod alone.
    fn alone(self) -> Self {
        Self { pods: 1, ..self }
    }

    fn variables(self, variables: &'static [(&'static str, &'static str)]) -> Self {
        Self { variables, ..self }
    }

    /// Pod b has these `portMappings`.
    fn with_ports(self, ports: Value) -> Self {
        Self { ports, ..self }
    }

    pub(crate) fn version(&self) -> &str {
        self.config["cniVersion"].as_str().unwrap()
    }

    pub(crate) fn ports(&self) -> &Value {
        &self.ports
    }

    /// The plugins of the list with their configurations: the reference needs `portmap` where netd does without.
    pub(crate) fn chain(&self, world: &World, place: usize) -> Vec<(String, Value)> {
        let mut config = self.config.clone();
        if place == 1 {
            merge(&mut config, &self.second);
        }
        let data = world.data.path();
        let text = config.to_string();
        if text.contains("RESOLV") {
            std::fs::write(data.join("resolv.conf"), RESOLV).unwrap();
        }
        let text = text.replace("DATA", data.join("networks").to_str().unwrap());
        let text = text.replace("RESOLV", data.join("resolv.conf").to_str().unwrap());
        let mut config = without_nulls(serde_json::from_str(&text).unwrap());
        let mapped = !self.ports.is_null() && place == 1;
        let runtime = json!({ "portMappings": self.ports });
        if mapped && !world.side.is_reference() {
            merge(&mut config, &json!({ "runtimeConfig": runtime }));
        }
        let mut chain = vec![("bridge".to_owned(), config.clone())];
        if mapped && world.side.is_reference() {
            let portmap = json!({
                "cniVersion": config["cniVersion"], "name": config["name"], "type": "portmap", "snat": true,
                "runtimeConfig": runtime,
            });
            chain.push(("portmap".to_owned(), portmap));
        }
        chain
    }
}

/// Takes the keys away whose value is null.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => value,
    }
}

/// Puts a change into a value; a null takes a key away in the end.
fn merge(value: &mut Value, change: &Value) {
    match (value.as_object_mut(), change.as_object()) {
        (Some(map), Some(changes)) => {
            for (key, change) in changes {
                merge(map.entry(key.clone()).or_insert(Value::Null), change);
            }
        }
        _ => *value = change.clone(),
    }
}

fn dual() -> Value {
    json!({ "ipam": { "ranges": [[{ "subnet": "10.88.0.0/24" }], [{ "subnet": "fd88::/64" }]] } })
}

/// A change of `ipam` alone.
fn ipam(change: Value) -> Value {
    json!({ "ipam": change })
}

/// The ranges alone.
fn ranges(ranges: Value) -> Value {
    ipam(json!({ "ranges": ranges }))
}

fn plus(mut one: Value, other: Value) -> Value {
    merge(&mut one, &other);
    one
}

fn bridge_with(world: &World, addresses: &[&str]) {
    let mut netlink = world.host.netlink();
    let spec = netd_kernel::netlink::BridgeSpec { name: "cni0", ..Default::default() };
    let bridge = netlink.add_bridge(&spec).unwrap();
    for address in addresses {
        netlink.add_address(bridge, network(address), true).unwrap();
    }
}

/// All rows.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = bridge_rows();
    rows.extend(layer_2_rows());
    rows.extend(range_rows());
    rows.extend(route_rows());
    rows.extend(wish_rows());
    rows.extend(port_rows());
    rows.extend(refused_rows());
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0"] {
        let versioned = json!({ "cniVersion": version, "ipMasq": true });
        rows.push(Row::new(format!("version {version}"), versioned.clone()));
        rows.push(Row::new(format!("version {version}, both families"), plus(dual(), versioned)));
    }
    rows
}

/// Keys of the bridge.
fn bridge_rows() -> Vec<Row> {
    vec![
        Row::new("isDefaultGateway", json!({})),
        Row::new("isDefaultGateway, both families", dual()),
        Row::new("isGateway", json!({ "isDefaultGateway": null, "isGateway": true })),
        Row::new(
            "isGateway, both families",
            plus(dual(), json!({ "isDefaultGateway": null, "isGateway": true })),
        ),
        Row::new("isDefaultGateway and isGateway false", json!({ "isGateway": false })),
        Row::new("ipMasq", json!({ "ipMasq": true })),
        Row::new("ipMasq, both families", plus(dual(), json!({ "ipMasq": true }))),
        Row::new(
            "ipMasq, IPv6",
            plus(ranges(json!([[{ "subnet": "fd88::/64" }]])), json!({ "ipMasq": true })),
        ),
        Row::new("mtu 1400", json!({ "mtu": 1400 })),
        Row::new("mtu 9000", json!({ "mtu": 9000 })),
        Row::new("mtu 0", json!({ "mtu": 0 })),
        Row::new("mtu of an uplink of 1400", json!({})).before(|world| {
            for space in [&world.host, &world.outside] {
                let mut netlink = space.netlink();
                let link = netlink.link("up0").unwrap().unwrap().index;
                netlink.set_mtu(link, 1400).unwrap();
            }
        }),
        Row::new("hairpinMode", json!({ "hairpinMode": true })),
        Row::new("hairpinMode false", json!({ "hairpinMode": false })),
        Row::new("promiscMode", json!({ "promiscMode": true })),
        Row::new("enabledad", plus(dual(), json!({ "enabledad": true }))),
        Row::new("another bridge", json!({ "bridge": "br-pods" })),
        Row::new("no name for the bridge", json!({ "bridge": null })),
        Row::new("a bridge that exists", json!({})).before(|world| bridge_with(world, &[])),
        Row::new("a bridge that has the address", json!({}))
            .before(|world| bridge_with(world, &["10.88.0.1/24"])),
        Row::new("forceAddress", json!({ "forceAddress": true }))
            .before(|world| bridge_with(world, &["10.99.0.1/16"])),
        Row::new("forceAddress, same subnet", json!({ "forceAddress": true }))
            .before(|world| bridge_with(world, &["10.88.0.9/24"])),
        Row::new("a strange address on the bridge", json!({}))
            .before(|world| bridge_with(world, &["10.99.0.1/16"])),
        Row::new("an address of the subnet on the bridge", json!({}))
            .before(|world| bridge_with(world, &["10.88.0.9/24"])),
        Row::new("a strange IPv6 address on the bridge", dual())
            .before(|world| bridge_with(world, &["fd99::1/64"])),
        Row::new(
            "dns",
            json!({ "dns": { "nameservers": ["10.0.0.53"], "domain": "x.example", "search": ["y.example"], "options": ["ndots:2"] } }),
        ),
    ]
}

/// Pods that the node is no gateway of, or that have no addresses.
fn layer_2_rows() -> Vec<Row> {
    let no_gateway = json!({ "isDefaultGateway": null });
    let bare = json!({ "isDefaultGateway": null, "ipam": null });
    vec![
        Row::new("no gateway", no_gateway.clone()),
        Row::new("no gateway, both families", plus(dual(), no_gateway.clone())),
        Row::new(
            "no gateway, a route by a pod",
            plus(no_gateway, ipam(json!({ "routes": [{ "dst": "10.5.0.0/16", "gw": "10.88.0.9" }] }))),
        ),
        Row::new("no addresses", bare.clone()),
        Row::new(
            "no addresses, an empty ipam",
            json!({ "isDefaultGateway": null, "ipam": { "type": null, "dataDir": null, "ranges": null } }),
        ),
        Row::new(
            "no addresses, mtu and hairpin",
            plus(bare.clone(), json!({ "mtu": 1400, "hairpinMode": true })),
        ),
        Row::new(
            "no addresses, a wished mac",
            plus(bare.clone(), json!({ "runtimeConfig": { "mac": "c2:11:22:33:44:77" } })),
        )
        .second(json!({ "runtimeConfig": null })),
        Row::new("no addresses, version 0.4.0", plus(bare.clone(), json!({ "cniVersion": "0.4.0" }))),
        Row::new("no addresses, version 0.2.0", plus(bare, json!({ "cniVersion": "0.2.0" }))),
        Row::new("macspoofchk", json!({ "macspoofchk": true })),
    ]
}

/// What Debian's version of the reference does not know yet.
pub(crate) fn later_rows() -> Vec<Row> {
    let bare = json!({ "cniVersion": "1.1.0", "isDefaultGateway": null, "ipam": null });
    let version = json!({ "cniVersion": "1.1.0" });
    let trunk = json!({ "vlanTrunk": [{ "id": 101 }, { "minID": 200, "maxID": 210 }] });
    vec![
        Row::new("version 1.1.0", version.clone()),
        Row::new("version 1.1.0, both families", plus(dual(), version.clone())),
        Row::new("portIsolation", plus(version.clone(), json!({ "portIsolation": true }))),
        Row::new("portIsolation, no addresses", plus(bare.clone(), json!({ "portIsolation": true }))),
        Row::new(
            "disableContainerInterface",
            plus(bare.clone(), json!({ "disableContainerInterface": true })),
        ),
        Row::new(
            "disableContainerInterface with addresses",
            plus(version.clone(), json!({ "disableContainerInterface": true })),
        ),
        Row::new(
            "ipMasqBackend nftables",
            plus(version.clone(), json!({ "ipMasq": true, "ipMasqBackend": "nftables" })),
        ),
        Row::new("vlan", plus(bare.clone(), json!({ "vlan": 100 }))),
        Row::new(
            "vlan without the default one",
            plus(bare.clone(), json!({ "vlan": 100, "preserveDefaultVlan": false })),
        ),
        Row::new("vlan with a gateway", plus(version.clone(), json!({ "vlan": 100 }))),
        Row::new("vlanTrunk", plus(bare.clone(), trunk.clone())),
        Row::new("vlan and vlanTrunk", plus(plus(bare.clone(), trunk), json!({ "vlan": 100 }))),
        Row::new("vlanTrunk with one end", plus(bare.clone(), json!({ "vlanTrunk": [{ "minID": 5 }] }))),
        Row::new(
            "vlanTrunk with the other end",
            plus(bare.clone(), json!({ "vlanTrunk": [{ "maxID": 5 }] })),
        ),
        Row::new(
            "vlanTrunk backwards",
            plus(bare.clone(), json!({ "vlanTrunk": [{ "minID": 9, "maxID": 5 }] })),
        ),
        Row::new("vlanTrunk too high", plus(bare.clone(), json!({ "vlanTrunk": [{ "id": 5000 }] }))),
        Row::new("vlanTrunk negative", plus(bare.clone(), json!({ "vlanTrunk": [{ "id": -1 }] }))),
        Row::new("resolvConf of a later reference", plus(version, ipam(json!({ "resolvConf": "RESOLV" })))),
    ]
}

/// Keys of host-local's ranges.
fn range_rows() -> Vec<Row> {
    let small = json!([[{ "subnet": "10.88.0.0/24", "rangeStart": "10.88.0.2", "rangeEnd": "10.88.0.2" }], [{ "subnet": "fd88::/64" }]]);
    vec![
        Row::new("IPv6 alone", ranges(json!([[{ "subnet": "fd88::/64" }]]))),
        Row::new(
            "rangeStart and rangeEnd",
            ranges(
                json!([[{ "subnet": "10.88.0.0/24", "rangeStart": "10.88.0.40", "rangeEnd": "10.88.0.50" }]]),
            ),
        ),
        Row::new(
            "rangeStart alone",
            ranges(json!([[{ "subnet": "10.88.0.0/24", "rangeStart": "10.88.0.254" }]])),
        ),
        Row::new("gateway", ranges(json!([[{ "subnet": "10.88.0.0/24", "gateway": "10.88.0.254" }]]))),
        Row::new(
            "gateway in the middle",
            ranges(json!([[{ "subnet": "10.88.0.0/24", "gateway": "10.88.0.2" }]])),
        ),
        Row::new("one subnet without lists", ipam(json!({ "ranges": null, "subnet": "10.88.0.0/24" }))),
        Row::new(
            "one subnet without lists, all keys",
            ipam(
                json!({ "ranges": null, "subnet": "10.88.0.0/24", "rangeStart": "10.88.0.9", "rangeEnd": "10.88.0.20", "gateway": "10.88.0.3" }),
            ),
        ),
        Row::new(
            "a subnet and ranges",
            ipam(json!({ "subnet": "10.88.0.0/24", "ranges": [[{ "subnet": "fd88::/64" }]] })),
        ),
        Row::new(
            "a list of two ranges",
            ranges(
                json!([[{ "subnet": "10.88.0.0/24", "rangeStart": "10.88.0.7", "rangeEnd": "10.88.0.7" }, { "subnet": "10.88.1.0/24" }]]),
            ),
        ),
        Row::new(
            "two ranges of one subnet",
            ranges(
                json!([[{ "subnet": "10.88.0.0/24", "rangeStart": "10.88.0.7", "rangeEnd": "10.88.0.7" }, { "subnet": "10.88.0.0/24", "rangeStart": "10.88.0.9", "rangeEnd": "10.88.0.9" }]]),
            ),
        ),
        Row::new(
            "two addresses of one family",
            ranges(json!([[{ "subnet": "10.88.0.0/24" }], [{ "subnet": "10.88.1.0/24" }]])),
        ),
        Row::new("a subnet of one pod", ranges(json!([[{ "subnet": "10.88.0.0/30" }]]))),
        Row::new("one range is full", ranges(small)),
        Row::new("a large IPv6 subnet", ranges(json!([[{ "subnet": "fd88::/48" }]]))),
        Row::new("resolvConf", ipam(json!({ "resolvConf": "RESOLV" }))),
        Row::new(
            "dns before resolvConf",
            json!({ "dns": { "nameservers": ["10.0.0.53"] }, "ipam": { "resolvConf": "RESOLV" } }),
        ),
    ]
}

/// Routes of the pod.
fn route_rows() -> Vec<Row> {
    let gateway = json!({ "isDefaultGateway": null, "isGateway": true });
    vec![
        Row::new(
            "a default route named",
            plus(gateway.clone(), ipam(json!({ "routes": [{ "dst": "0.0.0.0/0" }] }))),
        ),
        Row::new("a default route named twice", ipam(json!({ "routes": [{ "dst": "0.0.0.0/0" }] }))),
        Row::new(
            "a default route named with its gateway",
            ipam(json!({ "routes": [{ "dst": "0.0.0.0/0", "gw": "10.88.0.1" }] })),
        ),
        Row::new(
            "a default route by another machine",
            ipam(json!({ "routes": [{ "dst": "0.0.0.0/0", "gw": "10.88.0.77" }] })),
        ),
        Row::new(
            "routes",
            plus(
                gateway.clone(),
                ipam(
                    json!({ "routes": [{ "dst": "10.5.0.0/16" }, { "dst": "10.6.0.0/16", "gw": "10.88.0.9" }] }),
                ),
            ),
        ),
        Row::new(
            "routes of both families",
            plus(
                plus(dual(), gateway),
                ipam(
                    json!({ "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }, { "dst": "fd05::/64" }] }),
                ),
            ),
        ),
        Row::new(
            "a route with mtu, advmss and priority",
            ipam(
                json!({ "routes": [{ "dst": "10.5.0.0/16", "mtu": 1300, "advmss": 1200, "priority": 77 }] }),
            ),
        ),
        Row::new("a route with table", ipam(json!({ "routes": [{ "dst": "10.5.0.0/16", "table": 100 }] }))),
        Row::new("a route with scope", ipam(json!({ "routes": [{ "dst": "10.5.0.0/16", "scope": 253 }] }))),
        Row::new("routes beside the default route", ipam(json!({ "routes": [{ "dst": "192.0.2.0/24" }] }))),
    ]
}

/// What the runtime wishes.
fn wish_rows() -> Vec<Row> {
    // The bridge has no address of its own here, so that the reference takes two subnets.
    let two_ranges = plus(
        ranges(json!([[{ "subnet": "10.88.0.0/24" }], [{ "subnet": "10.88.1.0/24" }]])),
        json!({ "isDefaultGateway": null, "runtimeConfig": { "ips": ["10.88.0.99", "10.88.1.99"] } }),
    );
    vec![
        Row::new("runtimeConfig.ips", json!({ "runtimeConfig": { "ips": ["10.88.0.99/24"] } }))
            .second(json!({ "runtimeConfig": { "ips": ["10.88.0.98"] } })),
        Row::new("runtimeConfig.ips of both families", plus(dual(), json!({ "runtimeConfig": { "ips": ["fd88::99", "10.88.0.99"] } })))
            .second(json!({ "runtimeConfig": { "ips": ["fd88::98"] } })),
        Row::new("args.cni.ips", json!({ "args": { "cni": { "ips": ["10.88.0.99"] } } })).second(json!({ "args": null })),
        Row::new("IP in CNI_ARGS, wished twice", json!({})).variables(&[("CNI_ARGS", "IgnoreUnknown=1;IP=10.88.0.99")]),
        Row::new("IP with a prefix in CNI_ARGS", json!({})).variables(&[("CNI_ARGS", "IgnoreUnknown=1;IP=10.88.0.99/24")]),
        Row::new("wished addresses of two ranges", two_ranges).second(json!({ "runtimeConfig": null })),
        Row::new("an address wished twice", json!({ "runtimeConfig": { "ips": ["10.88.0.99"] } })),
        Row::new("MAC in CNI_ARGS", json!({})).variables(&[("CNI_ARGS", "IgnoreUnknown=1;MAC=c2:11:22:33:44:55")]).alone(),
        Row::new("args.cni.mac", json!({ "args": { "cni": { "mac": "c2:11:22:33:44:66" } } })).second(json!({ "args": null })),
        Row::new("runtimeConfig.mac", json!({ "runtimeConfig": { "mac": "c2:11:22:33:44:77" } }))
            .second(json!({ "runtimeConfig": { "mac": "c2:11:22:33:44:78" } })),
        Row::new(
            "runtimeConfig.mac before args and CNI_ARGS",
            json!({ "runtimeConfig": { "mac": "c2:11:22:33:44:77" }, "args": { "cni": { "mac": "c2:11:22:33:44:66" } } }),
        )
        .second(json!({ "runtimeConfig": null }))
        .variables(&[("CNI_ARGS", "IgnoreUnknown=1;MAC=c2:11:22:33:44:55")]),
        Row::new("runtimeConfig.ipRanges", json!({ "runtimeConfig": { "ipRanges": [[{ "subnet": "fd89::/64" }]] } })),
        Row::new("a pod's name in CNI_ARGS", json!({}))
            .variables(&[("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0")]),
    ]
}

/// Ports of the node that lead to pod b.
fn port_rows() -> Vec<Row> {
    let tcp = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }]);
    let both = json!([
        { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }, { "hostPort": 5353, "containerPort": 53, "protocol": "udp" }
    ]);
    let one = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.168.77.1" }]);
    let any = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "0.0.0.0" }]);
    let masked = json!({ "ipMasq": true, "hairpinMode": true });
    vec![
        Row::new("portMappings", json!({ "hairpinMode": true })).with_ports(tcp.clone()),
        Row::new("portMappings, tcp and udp, both families", plus(dual(), masked.clone())).with_ports(both),
        Row::new("portMappings with hostIP", masked.clone()).with_ports(one),
        Row::new("portMappings with every hostIP", masked).with_ports(any),
        Row::new(
            "portMappings, IPv6",
            plus(ranges(json!([[{ "subnet": "fd88::/64" }]])), json!({ "hairpinMode": true })),
        )
        .with_ports(tcp),
    ]
}

/// What neither does, and what only one of them does.
fn refused_rows() -> Vec<Row> {
    vec![
        Row::new("hairpinMode with promiscMode", json!({ "hairpinMode": true, "promiscMode": true })),
        Row::new("a bridge that is none", json!({ "bridge": "up0" })),
        Row::new("an address outside of the ranges", json!({ "runtimeConfig": { "ips": ["10.89.0.1"] } })),
        Row::new("the gateway's address", json!({ "runtimeConfig": { "ips": ["10.88.0.1"] } })),
        Row::new("an IPAM plugin that is not installed", ipam(json!({ "type": "nowhere" }))),
        Row::new("a subnet with host bits", ranges(json!([[{ "subnet": "10.88.0.7/24" }]]))),
        Row::new("a subnet of two addresses", ranges(json!([[{ "subnet": "10.88.0.0/31" }]]))),
        Row::new(
            "a list of both families",
            ranges(json!([[{ "subnet": "10.88.0.0/24" }, { "subnet": "fd88::/64" }]])),
        ),
        Row::new(
            "ranges that overlap",
            ranges(json!([[{ "subnet": "10.88.0.0/24" }], [{ "subnet": "10.88.0.0/16" }]])),
        ),
        Row::new(
            "rangeStart outside of the subnet",
            ranges(json!([[{ "subnet": "10.88.0.0/24", "rangeStart": "10.89.0.2" }]])),
        ),
        Row::new(
            "rangeStart behind rangeEnd",
            ranges(
                json!([[{ "subnet": "10.88.0.0/24", "rangeStart": "10.88.0.9", "rangeEnd": "10.88.0.3" }]]),
            ),
        ),
        Row::new("an IPv6 subnet with host bits", ranges(json!([[{ "subnet": "fd88::7/64" }]]))),
        Row::new(
            "ranges of one list that overlap",
            ranges(json!([[{ "subnet": "10.88.0.0/24" }, { "subnet": "10.88.0.128/25" }]])),
        ),
        Row::new(
            "the same range twice",
            ranges(json!([[{ "subnet": "10.88.0.0/24" }], [{ "subnet": "10.88.0.0/24" }]])),
        ),
        Row::new(
            "two IPv4 ranges in version 0.2.0",
            plus(
                ranges(json!([[{ "subnet": "10.88.0.0/24" }], [{ "subnet": "10.88.1.0/24" }]])),
                json!({ "cniVersion": "0.2.0" }),
            ),
        ),
        Row::new("an unknown key in CNI_ARGS", json!({})).variables(&[("CNI_ARGS", "NOBODY=knows")]),
        Row::new("no subnet", ipam(json!({ "ranges": null }))),
        Row::new("a negative mtu", json!({ "mtu": -1 })),
        Row::new("a vlan that is none", json!({ "vlan": 5000 })),
        Row::new("an unknown key", json!({ "unknownKey": true })),
    ]
}
