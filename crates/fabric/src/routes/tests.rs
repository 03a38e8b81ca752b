use super::*;

fn node(name: &str, addresses: &[&str], prefixes: &[&str]) -> Arc<Node> {
    let internal: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    Arc::new(Node {
        name: name.into(),
        addresses: internal.clone(),
        internal_addresses: internal,
        pod_cidrs: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(),
        zone: None,
        leaving: false,
    })
}

fn cluster(nodes: &[Arc<Node>]) -> BTreeMap<Arc<str>, Arc<Node>> {
    nodes.iter().map(|node| (Arc::clone(&node.name), Arc::clone(node))).collect()
}

fn lan() -> Vec<Attached> {
    let attached = |link, name: &str, address: &str, up| Attached {
        link: Ifindex(link),
        name: name.to_owned(),
        address: address.parse().unwrap(),
        up,
        mtu: 1500,
    };
    vec![
        attached(2, "eth0", "192.168.1.101/24", true),
        attached(2, "eth0", "2001:db8::101/64", true),
        attached(3, "netd0", "172.16.1.1/24", true),
        attached(4, "eth1", "10.9.0.1/24", false),
    ]
}

fn own() -> Arc<Node> {
    node("w1", &["192.168.1.101", "2001:db8::101"], &["172.16.1.0/24", "fd00:10:0:1::/64"])
}

fn planned(others: &[Arc<Node>]) -> Desired {
    let mut nodes = others.to_vec();
    nodes.push(own());
    desired(&cluster(&nodes), "w1", &lan(), Mode::HostGw)
}

fn routes(planned: &Desired) -> Vec<String> {
    planned.routes.values().map(ToString::to_string).collect()
}

#[track_caller]
fn one_problem(planned: &Desired, node: &str, words: &str) {
    let [problem] = &planned.problems[..] else { panic!("{:?}", planned.problems) };
    assert_eq!((problem.kind.as_str(), problem.object.as_str()), ("Node", node));
    assert!(problem.message.contains(words) && problem.message.contains(node), "{}", problem.message);
}

#[test]
fn each_other_node_gets_a_route_a_family() {
    let planned = planned(&[
        node("w2", &["192.168.1.102", "2001:db8::102"], &["172.16.2.0/24", "fd00:10:0:2::/64"]),
        node("w3", &["192.168.1.103"], &["172.16.3.0/24"]),
    ]);
    assert_eq!(
        routes(&planned),
        [
            "172.16.2.0/24 via 192.168.1.102 dev 2",
            "172.16.3.0/24 via 192.168.1.103 dev 2",
            "fd00:10:0:2::/64 via 2001:db8::102 dev 2",
        ]
    );
    assert_eq!(planned.problems, []);
}

#[test]
fn a_node_behind_a_router_is_named_and_others_are_routed() {
    let planned = planned(&[
        node("far", &["198.51.100.9"], &["172.16.9.0/24"]),
        node("w2", &["192.168.1.102"], &["172.16.2.0/24"]),
    ]);
    one_problem(&planned, "far", "is not on a shared LAN: needs vxlan");
    assert_eq!(routes(&planned).len(), 1);
}

#[test]
fn a_node_without_an_address_of_the_family_is_named() {
    let planned = planned(&[node("w2", &["192.168.1.102"], &["172.16.2.0/24", "fd00:10:0:2::/64"])]);
    one_problem(&planned, "w2", "no IPv6 InternalIP");
    assert_eq!(routes(&planned), ["172.16.2.0/24 via 192.168.1.102 dev 2"]);
}

#[test]
fn a_node_without_prefix_is_named() {
    one_problem(&planned(&[node("w2", &["192.168.1.102"], &[])]), "w2", "no podCIDR");
}

#[test]
fn overlapping_prefixes_are_named_and_the_first_keeps_its_route() {
    let inside = planned(&[
        node("w2", &["192.168.1.102"], &["172.16.2.0/24"]),
        node("w3", &["192.168.1.103"], &["172.16.2.128/25"]),
    ]);
    one_problem(&inside, "w3", "overlaps 172.16.2.0/24 of node w2");
    assert_eq!(routes(&inside), ["172.16.2.0/24 via 192.168.1.102 dev 2"]);

    let around = planned(&[
        node("w2", &["192.168.1.102"], &["172.16.2.128/25"]),
        node("w3", &["192.168.1.103"], &["172.16.2.0/23"]),
    ]);
    one_problem(&around, "w3", "overlaps 172.16.2.128/25 of node w2");
}

#[test]
fn this_nodes_own_prefix_is_never_routed_away() {
    let planned = planned(&[node("a", &["192.168.1.102"], &["172.16.1.0/24"])]);
    one_problem(&planned, "a", "overlaps 172.16.1.0/24 of node w1");
    assert!(planned.routes.is_empty());
}

#[test]
fn a_prefix_that_no_pod_can_have_is_named() {
    for prefix in
        ["0.0.0.0/0", "127.0.0.0/24", "224.1.0.0/16", "169.254.1.0/24", "10.0.0.0/7", "fe80::/64", "::/8"]
    {
        let planned = planned(&[node("w2", &["192.168.1.102", "2001:db8::102"], &[prefix])]);
        one_problem(&planned, "w2", "is no prefix for pods");
    }
}

#[test]
fn host_bits_of_a_prefix_do_not_matter() {
    let planned = planned(&[node("w2", &["192.168.1.102"], &["172.16.2.77/24"])]);
    assert_eq!(routes(&planned), ["172.16.2.0/24 via 192.168.1.102 dev 2"]);
}

#[test]
fn a_prefix_that_holds_the_lan_is_named() {
    let planned = planned(&[node("w2", &["192.168.1.102"], &["192.168.0.0/16"])]);
    one_problem(&planned, "w2", "would cut off the LAN");
}

#[test]
fn a_node_with_our_address_or_behind_a_dead_link_is_named() {
    one_problem(
        &planned(&[node("twin", &["192.168.1.101"], &["172.16.2.0/24"])]),
        "twin",
        "this node's own address",
    );
    one_problem(&planned(&[node("w2", &["10.9.0.2"], &["172.16.2.0/24"])]), "w2", "eth1, which is down");
}

#[test]
fn an_unknown_self_still_reaches_the_others() {
    let nodes = cluster(&[node("w2", &["192.168.1.102"], &["172.16.2.0/24"])]);
    assert_eq!(routes(&desired(&nodes, "w1", &lan(), Mode::Auto)).len(), 1);
}
