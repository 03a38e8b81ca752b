//! Links that the CNI plugin leaves to the daemon.

use std::time::Duration;

use netd_kernel::Netlink;
use netd_kernel::clock::eventually;
use netd_kernel::netlink::{Batch, VethSpec};
use netd_kernel::reap::{GROUP, Reaper};
use netd_lab::Place;

use super::node::TestNode;

const SWITCHED_OFF: &str = "parts: {proxy: false, dns: false, fabric: false, cni: true}";

/// Makes a link and puts it aside as the plugin does.
fn put_aside(name: &str) {
    let mut netlink = Netlink::open().unwrap();
    let peer_name = &format!("{name}p");
    let index = netlink.add_veth(&VethSpec { name, peer_name, ..VethSpec::default() }).unwrap();
    netlink.send(Batch::new().put_aside(index, GROUP, "netd-reap if=eth0 id=c1")).unwrap();
}

fn gone(node: &TestNode, names: &[&str]) -> bool {
    let gone = || !node.links().iter().any(|link| names.contains(&link.as_str()));
    eventually(Duration::from_secs(20), || gone().then_some(())).is_some()
}

#[test]
fn the_daemon_deletes_links_put_aside_and_those_left_by_an_earlier_one() {
    let node = TestNode::new("reaper");
    let before = node.links();
    let mut daemon = node.start(SWITCHED_OFF);
    daemon.wait_ready();
    node.place()
        .run(|| {
            let reaper = eventually(Duration::from_secs(20), Reaper::find).expect("the daemon listens");
            put_aside("one");
            put_aside("two");
            assert!(reaper.wake());
        })
        .unwrap();
    assert!(gone(&node, &["one", "two"]), "{:?}\n{}", node.links(), daemon.log());

    // Killed after it put its link aside: it told nobody.
    node.place()
        .run(|| {
            let reaper = Reaper::find().unwrap();
            put_aside("three");
            drop(reaper);
        })
        .unwrap();
    assert!(gone(&node, &["three"]), "{:?}\n{}", node.links(), daemon.log());

    assert_eq!(daemon.terminate(), 0, "{}", daemon.log());
    node.place()
        .run(|| {
            assert!(Reaper::find().is_none(), "a daemon that has ended answers");
            put_aside("four");
        })
        .unwrap();
    let mut daemon = node.start(SWITCHED_OFF);
    daemon.wait_ready();
    assert!(gone(&node, &["four"]), "{:?}\n{}", node.links(), daemon.log());
    assert_eq!(node.links(), before);
}
