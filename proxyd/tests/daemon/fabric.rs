//! Nodes behind a router: the VXLAN device comes and goes with them.

use std::time::{Duration, Instant};

use netd_kernel::clock::eventually;
use netd_kernel::netlink::{Batch, Netlink, RouteFilter, Vxlan};
use netd_lab::Place as _;

use crate::node::TestNode;

const WAIT: Duration = Duration::from_secs(20);

const FAR: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: far}\nspec: {podCIDR: 172.16.7.0/24}\nstatus: {addresses: \
                   [{type: InternalIP, address: 198.51.100.7}]}\n";

fn device(node: &TestNode) -> Option<Vxlan> {
    node.place().run(|| Netlink::open().unwrap().vxlan("netd-vxlan").unwrap()).unwrap()
}

/// The packet size that the CNI plugin is told.
fn told_mtu(node: &TestNode) -> Option<u64> {
    let path = node.manifests().parent().unwrap().join("ranges.json");
    let ranges: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()?;
    ranges["mtu"].as_u64()
}

fn entries(node: &TestNode) -> usize {
    let link = device(node).unwrap().link.index;
    node.place().run(|| Netlink::open().unwrap().fdb(link).unwrap().len()).unwrap()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "tests measure how long something is away")]
fn a_far_node_is_tunnelled_to_healed_and_cleaned_up() {
    let node = TestNode::new("far");
    let config = "parts: {proxy: false, dns: false}\nfabric: {vxlan: {vni: 5, port: 8473}}";
    let mut daemon = node.start(config);
    daemon.wait_ready();
    assert!((device(&node), told_mtu(&node)) == (None, None), "a device that nobody needs");

    node.manifest("far.yaml", FAR);
    let mtu = eventually(WAIT, || told_mtu(&node).filter(|_| device(&node).is_some()));
    assert_eq!(mtu, Some(1450), "{}", daemon.log());
    daemon.wait_ready();
    let made = device(&node).unwrap();
    assert_eq!((made.tunnel.vni, made.tunnel.port, made.link.mtu), (5, 8473, 1450));

    // Somebody removes an entry; a new netd finds all right.
    let link = made.link.index;
    node.place()
        .run(|| {
            let mut netlink = Netlink::open().unwrap();
            let mac = netlink.fdb(link).unwrap()[0].mac;
            netlink.send(Batch::new().delete_fdb(link, mac)).unwrap();
        })
        .unwrap();
    assert!(eventually(WAIT, || (entries(&node) == 1).then_some(())).is_some(), "{}", daemon.log());
    // A route that goes is told by the kernel, and back at once.
    let routes = || {
        let own = RouteFilter { link: Some(link), ..RouteFilter::own() };
        node.place().run(|| Netlink::open().unwrap().routes(own).unwrap()).unwrap()
    };
    let route = routes().remove(0);
    node.place().run(|| Netlink::open().unwrap().delete_route(&route).unwrap()).unwrap();
    let start = Instant::now();
    let back = eventually(WAIT, || (!routes().is_empty()).then(|| start.elapsed()));
    println!("a pod route that was deleted: back after {:?}", back.unwrap());
    assert!(back.unwrap() < Duration::from_secs(2), "{}", daemon.log());
    daemon.wait_ready();
    assert_eq!(daemon.terminate(), 0);
    let before = daemon.log();
    let mut daemon = node.start(config);
    daemon.wait_ready();
    assert_eq!(device(&node), Some(made));
    let log = daemon.log();
    let since = log.strip_prefix(&before).expect("the log goes on");
    assert!(since.contains("every kind has synced") && !since.contains("changed"), "{since}");

    assert_eq!(daemon.terminate(), 0);
    let cleanup = node.run(&["cleanup", "--config", node.config_file(config)], WAIT);
    assert_eq!((cleanup.code, device(&node)), (0, None), "{}{}", cleanup.stdout, cleanup.stderr);
}

#[test]
fn without_vxlan_a_far_node_is_named() {
    let node = TestNode::new("hostgw");
    node.manifest("far.yaml", FAR);
    let mut daemon = node.start("parts: {proxy: false, dns: false}\nfabric: {mode: host-gw}");
    let state = daemon.wait_for("named node", |state| {
        state["parts"]["fabric"]["message"].as_str().is_some_and(|message| message.contains("needs vxlan"))
    });
    assert_eq!(state["parts"]["fabric"]["ready"], false);
    assert!((device(&node), told_mtu(&node)) == (None, None));
}
