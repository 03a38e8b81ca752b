//! What a call made, as facts: a key and a value, both without the names and numbers that chance chooses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Map, Value};

use super::harness::Space;
use super::reach;
use super::rows::Row;
use super::world::{NODE, OUTSIDE, World};

/// Facts by their keys.
pub(crate) type Facts = BTreeMap<String, String>;

/// Settings of bridge ports that are compared.
const PORT_FLAGS: [&str; 14] = [
    "hairpin",
    "guard",
    "root_block",
    "fastleave",
    "learning",
    "flood",
    "proxy_arp",
    "proxy_arp_wifi",
    "mcast_flood",
    "bcast_flood",
    "neigh_suppress",
    "vlan_tunnel",
    "isolated",
    "locked",
];
/// Kernel parameters of a link that the reference plugins set, or that decide whether packets pass.
const LINK_PARAMETERS: [&str; 13] = [
    "ipv4/conf/LINK/arp_notify",
    "ipv4/conf/LINK/forwarding",
    "ipv4/conf/LINK/proxy_arp",
    "ipv4/conf/LINK/route_localnet",
    "ipv4/conf/LINK/rp_filter",
    "ipv4/conf/LINK/send_redirects",
    "ipv4/conf/LINK/accept_redirects",
    "ipv6/conf/LINK/accept_dad",
    "ipv6/conf/LINK/accept_ra",
    "ipv6/conf/LINK/accept_redirects",
    "ipv6/conf/LINK/disable_ipv6",
    "ipv6/conf/LINK/enhanced_dad",
    "ipv6/conf/LINK/forwarding",
];
/// Those of the whole node.
const NODE_PARAMETERS: [&str; 6] = [
    "ipv4/ip_forward",
    "ipv4/conf/all/send_redirects",
    "ipv4/conf/all/route_localnet",
    "ipv4/conf/all/rp_filter",
    "ipv4/conf/all/arp_notify",
    "ipv6/conf/all/forwarding",
];

/// What chance or a scheme of our own chose, with a name that both sides have.
#[derive(Default)]
pub(crate) struct Names(Vec<(String, String)>);

impl Names {
    /// Learns the names of what belongs to pod `place` from its ADD's result.
    fn learn(&mut self, world: &World, place: usize, result: &Value) {
        let who = ["a", "b"][place];
        self.0.push((world.pods[place].path().to_owned(), format!("netns({who})")));
        if let Some(mac) = mac_of(&world.pods[place], "eth0") {
            self.0.push((mac, format!("mac(eth0 of {who})")));
        }
        for interface in result["interfaces"].as_array().into_iter().flatten() {
            let Some(name) = interface["name"].as_str() else { continue };
            let on_the_node = interface["sandbox"].as_str().unwrap_or_default().is_empty();
            if on_the_node && (name.starts_with("veth") || name.starts_with("netd")) {
                self.0.push((name.to_owned(), format!("port({who})")));
            }
        }
    }

    /// Ports of results that do not tell them, as those before 0.3.0.
    fn guess_ports(&mut self, world: &World) {
        let known = |names: &Self, link: &str| names.0.iter().any(|(name, _)| name == link);
        let mut links = world.host.netlink().links().unwrap();
        links.sort_by_key(|link| link.index);
        let ports: Vec<_> =
            links.iter().filter(|l| l.kind.as_deref() == Some("veth") && l.name != "up0").collect();
        for (link, who) in ports.iter().zip(["a", "b"]) {
            if !known(self, &link.name) {
                self.0.push((link.name.clone(), format!("port({who})")));
            }
        }
    }

    fn translate(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (name, meaning)| text.replace(name, meaning))
    }
}

/// Runs a row on one side and tells all that can be seen.
pub(crate) fn run(row: &Row, world: &World) -> Facts {
    let mut facts = Facts::new();
    (row.before)(world);
    let mut names = Names::default();
    let mut results = [Value::Null, Value::Null];
    for place in 0..row.pods {
        world.loopback(place);
        let who = ["a", "b"][place];
        let chain = row.chain(world, place);
        match add(world, row, place, &chain) {
            Ok(result) => {
                names.learn(world, place, &result);
                results[place] = result;
            }
            Err(error) => {
                facts.insert(format!("add {who}"), format!("refused with code {}", error["code"]));
                if std::env::var_os("PARITY_SHOW").is_some() {
                    eprintln!("{} {:?}: {error}", row.name, world.side);
                }
            }
        }
    }
    names.guess_ports(world);
    for (place, result) in results.iter().enumerate().filter(|(_, result)| !result.is_null()) {
        let who = ["a", "b"][place];
        flatten(&format!("result {who}"), &with_own_macs(world, place, result), &names, &mut facts);
        facts.insert(format!("check {who}"), check(world, row, place, result));
    }
    kernel(world, row, &names, &mut facts);
    reachable(world, row, &results, &mut facts);
    remove(world, row, &results, &mut facts);
    facts
}

fn mac_of(space: &Space, link: &str) -> Option<String> {
    space.netlink().link(link).unwrap().and_then(|link| link.mac).map(|mac| mac.to_string())
}

/// A result with words for the MAC addresses that are the links' own.
fn with_own_macs(world: &World, place: usize, result: &Value) -> Value {
    let mut result = result.clone();
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        let on_the_node = interface["sandbox"].as_str().unwrap_or_default().is_empty();
        let space = if on_the_node { &world.host } else { &world.pods[place] };
        let own = interface["name"].as_str().and_then(|name| mac_of(space, name));
        if own.is_some() && interface["mac"].as_str() == own.as_deref() {
            interface["mac"] = "the link's own".into();
        }
    }
    result
}

/// Does an ADD by all plugins of the chain.
fn add(world: &World, row: &Row, place: usize, chain: &[(String, Value)]) -> Result<Value, Value> {
    let mut result = Value::Null;
    for (plugin, config) in chain {
        let mut config = config.clone();
        if !result.is_null() {
            config["prevResult"] = result.clone();
        }
        let output = world.call_with(plugin, "ADD", Some(place), &config, row.variables);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| {
            panic!("{}: {plugin} said {:?} {}: {e}", row.name, output.stdout, output.complaint())
        });
        if output.status != 0 {
            return Err(told);
        }
        result = told;
    }
    Ok(result)
}

fn check(world: &World, row: &Row, place: usize, result: &Value) -> String {
    if ["0.1.0", "0.2.0", "0.3.0", "0.3.1"].contains(&row.version()) {
        return "the version has none".to_owned();
    }
    for (plugin, mut config) in row.chain(world, place) {
        config["prevResult"] = result.clone();
        let output = world.call_with(&plugin, "CHECK", Some(place), &config, row.variables);
        if output.status != 0 {
            return format!("{plugin} fails: {}", String::from_utf8_lossy(&output.stdout));
        }
    }
    "succeeds".to_owned()
}

/// DEL twice, and what is left after it.
fn remove(world: &World, row: &Row, results: &[Value; 2], facts: &mut Facts) {
    for turn in ["del", "del again"] {
        for place in 0..row.pods {
            let mut outcome = "succeeds";
            for (plugin, mut config) in row.chain(world, place).into_iter().rev() {
                if !results[place].is_null() {
                    config["prevResult"] = results[place].clone();
                }
                let output = world.call_with(&plugin, "DEL", Some(place), &config, row.variables);
                if output.status != 0 {
                    outcome = "fails";
                }
            }
            facts.insert(format!("{turn} {}", ["a", "b"][place]), outcome.to_owned());
        }
    }
    let pod_links: usize = world.pods.iter().map(|pod| pod.links().len()).sum();
    facts.insert("after del: links of the pods".to_owned(), pod_links.to_string());
    let links: Vec<String> =
        world.host.links().into_iter().filter(|l| l.starts_with("veth") || l.starts_with("netd")).collect();
    facts.insert("after del: ports".to_owned(), format!("{links:?}"));
    let rules = World::show(&world.host, "nft list ruleset");
    let left: Vec<&str> = rules
        .lines()
        .map(str::trim)
        .filter(|line| {
            ["container0", "container1", "10.88.0.2", "10.88.0.3"].iter().any(|word| line.contains(word))
        })
        .collect();
    facts.insert("after del: rules that name a pod".to_owned(), format!("{left:?}"));
}

/// Every leaf of a JSON value.
fn flatten(key: &str, value: &Value, names: &Names, facts: &mut Facts) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(name, value)| flatten(&format!("{key}.{name}"), value, names, facts))
        }
        Value::Array(list) => {
            list.iter()
                .enumerate()
                .for_each(|(i, value)| flatten(&format!("{key}[{i}]"), value, names, facts));
        }
        Value::String(text) => drop(facts.insert(key.to_owned(), names.translate(text))),
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            drop(facts.insert(key.to_owned(), value.to_string()))
        }
    }
}

fn kernel(world: &World, row: &Row, names: &Names, facts: &mut Facts) {
    let parameters = |space: &Space, keys: &[String], who: &str, facts: &mut Facts| {
        let values = space.run(|| {
            keys.iter()
                .map(|key| netd_kernel::sysctl::read(&format!("net/{key}")).unwrap_or_default())
                .collect::<Vec<_>>()
        });
        for (key, value) in keys.iter().zip(values) {
            facts.insert(format!("{who} net/{}", names.translate(key)), value);
        }
    };
    parameters(&world.host, &NODE_PARAMETERS.map(str::to_owned), "host", facts);
    space(&world.host, "host", names, facts);
    for name in world.host.links().iter().filter(|name| *name != "up0") {
        parameters(&world.host, &LINK_PARAMETERS.map(|key| key.replace("LINK", name)), "host", facts);
    }
    for (pod, who) in world.pods.iter().zip(["a", "b"]).take(row.pods) {
        space(pod, who, names, facts);
        if pod.links().iter().any(|name| name == "eth0") {
            parameters(pod, &LINK_PARAMETERS.map(|key| key.replace("LINK", "eth0")), who, facts);
        }
    }
}

/// Links, addresses, routes and neighbours of a namespace.
fn space(space: &Space, who: &str, names: &Names, facts: &mut Facts) {
    let parse = |line: &str| -> Vec<Map<String, Value>> {
        let text = World::show(space, line);
        if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(&text).unwrap() }
    };
    for link in parse("ip -j -d addr show") {
        let name = names.translate(link["ifname"].as_str().unwrap());
        if name == "up0" {
            continue;
        }
        for key in ["mtu", "master", "group", "operstate", "promiscuity"] {
            let value = link.get(key).map_or(String::new(), |value| names.translate(&value.to_string()));
            facts.insert(format!("{who} link {name} {key}"), value);
        }
        let data =
            |key: &str| link.get("linkinfo").and_then(|info| info.get(key)).cloned().unwrap_or_default();
        facts.insert(format!("{who} link {name} kind"), data("info_kind").to_string());
        for key in ["vlan_filtering", "stp_state"].iter().filter(|_| data("info_kind") == "bridge") {
            facts.insert(format!("{who} link {name} {key}"), data("info_data")[key].to_string());
        }
        for key in PORT_FLAGS.iter().filter(|_| !data("info_slave_data").is_null()) {
            facts.insert(format!("{who} link {name} {key}"), data("info_slave_data")[key].to_string());
        }
        for address in link["addr_info"].as_array().unwrap() {
            let (local, length) = (address["local"].as_str().unwrap(), &address["prefixlen"]);
            // A link-local address comes with the carrier, a moment later or not yet.
            if !local.starts_with("fe80") {
                let tentative = if address["tentative"].is_null() { "" } else { " tentative" };
                let state = format!("{}{tentative}", address["scope"]);
                facts.insert(format!("{who} address {name} {local}/{length}"), state);
            }
        }
    }
    let text = |map: &Map<String, Value>, key: &str| {
        map.get(key).map_or(String::new(), |v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
    };
    for route in parse("ip -j -4 route show table all").iter().chain(&parse("ip -j -6 route show table all"))
    {
        let (dst, dev) = (text(route, "dst"), names.translate(&text(route, "dev")));
        if text(route, "table") == "local"
            || dst.starts_with("fe80")
            || dst.starts_with("ff00")
            || dev == "up0"
        {
            continue;
        }
        let family = if route.contains_key("pref") { "v6" } else { "v4" };
        let detail = ["gateway", "scope", "table", "metric", "prefsrc", "metrics"].map(|key| {
            let value = text(route, key);
            if value.is_empty() { value } else { format!("{key} {value} ") }
        });
        facts.insert(format!("{who} route {family} {dst} dev {dev}"), detail.concat().trim().to_owned());
    }
    for neighbour in parse("ip -j neigh show nud permanent") {
        let (dst, dev) = (text(&neighbour, "dst"), text(&neighbour, "dev"));
        facts.insert(
            format!("{who} neighbour {dst} dev {}", names.translate(&dev)),
            names.translate(&text(&neighbour, "lladdr")),
        );
    }
}

/// The addresses of a result, whatever its version.
pub(crate) fn addresses(result: &Value) -> Vec<IpAddr> {
    let listed = result["ips"].as_array().into_iter().flatten().map(|ip| &ip["address"]);
    let old = [&result["ip4"]["ip"], &result["ip6"]["ip"]];
    let texts = listed.chain(old).filter_map(Value::as_str);
    texts.map(|text| text.split('/').next().unwrap().parse().unwrap()).collect()
}

fn gateways(result: &Value) -> Vec<IpAddr> {
    let listed = result["ips"].as_array().into_iter().flatten().map(|ip| &ip["gateway"]);
    let old = [&result["ip4"]["gateway"], &result["ip6"]["gateway"]];
    listed.chain(old).filter_map(Value::as_str).map(|text| text.parse().unwrap()).collect()
}

fn reachable(world: &World, row: &Row, results: &[Value; 2], facts: &mut Facts) {
    let [a, b] = &world.pods;
    let [of_a, of_b] = results.each_ref().map(addresses);
    let who = |address: Result<IpAddr, String>| match address {
        Ok(address) if of_a.contains(&address) => "sees pod a".to_owned(),
        Ok(address) if of_b.contains(&address) => "sees pod b".to_owned(),
        Ok(address) => format!("sees {address}"),
        Err(how) => how,
    };
    let mut try_it = |what: String, from: &Space, to: IpAddr, server: &Space| {
        facts.insert(format!("reach {what}"), who(reach::tcp(from, (to, 0).into(), server, (to, 0).into())));
    };
    let family = |ip: &IpAddr| if ip.is_ipv4() { "v4" } else { "v6" };
    for (i, to) in of_b.iter().enumerate() {
        try_it(format!("pod a -> pod b {i} {}", family(to)), a, *to, b);
        try_it(format!("host -> pod b {i} {}", family(to)), &world.host, *to, b);
        try_it(format!("outside -> pod b {i} {}", family(to)), &world.outside, *to, b);
        try_it(format!("pod b -> itself {i} {}", family(to)), b, *to, b);
    }
    for (i, to) in gateways(&results[0]).iter().enumerate() {
        try_it(format!("pod a -> its gateway {i} {}", family(to)), a, *to, &world.host);
    }
    for (v4, (node, outside)) in [true, false].into_iter().zip(NODE.iter().zip(OUTSIDE)) {
        if of_a.iter().any(|ip| ip.is_ipv4() == v4) {
            let (node, outside): (IpAddr, IpAddr) = (node.parse().unwrap(), outside.parse().unwrap());
            try_it(format!("pod a -> outside {}", family(&outside)), a, outside, &world.outside);
            try_it(format!("pod a -> node {}", family(&node)), a, node, &world.host);
        }
    }
    ports(world, row, &of_b, &who, facts);
}

/// The node's ports that lead to pod b.
fn ports(
    world: &World,
    row: &Row,
    of_b: &[IpAddr],
    who: &dyn Fn(Result<IpAddr, String>) -> String,
    facts: &mut Facts,
) {
    for port in row.ports().as_array().into_iter().flatten() {
        let number = |key: &str| u16::try_from(port[key].as_u64().unwrap()).unwrap();
        let (from, to) = (number("hostPort"), number("containerPort"));
        let protocol = port["protocol"].as_str().unwrap_or("tcp");
        let try_it = if protocol == "udp" { reach::udp } else { reach::tcp };
        for pod in of_b {
            let node: IpAddr = if pod.is_ipv4() { NODE[0] } else { NODE[1] }.parse().unwrap();
            let family = if pod.is_ipv4() { "v4" } else { "v6" };
            let places: [(&str, &Space, IpAddr); 4] = [
                ("outside", &world.outside, node),
                ("pod a", &world.pods[0], node),
                ("pod b itself", &world.pods[1], node),
                ("host", &world.host, node),
            ];
            for (place, space, node) in places {
                let key = format!("reach {place} -> node port {from}/{protocol} {family}");
                facts.insert(key, who(try_it(space, (node, from).into(), &world.pods[1], (*pod, to).into())));
            }
            if pod.is_ipv4() && protocol != "udp" {
                let local = (IpAddr::from([127, 0, 0, 1]), from).into();
                let key = format!("reach host -> 127.0.0.1:{from}/{protocol}");
                facts.insert(key, who(try_it(&world.host, local, &world.pods[1], (*pod, to).into())));
            }
        }
    }
}
