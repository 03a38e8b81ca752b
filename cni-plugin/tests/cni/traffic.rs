//! Packets between pods, the host and a machine outside.

use std::time::Duration;

use netd_kernel::{Clock, SystemClock};
use serde_json::json;

use super::harness::{Host, Space, pod_address};

#[test]
fn pods_and_host_reach_each_other_and_only_the_outside_sees_the_node() {
    let host = Host::new();
    let outside = host.outside();
    let (a, b) = (Space::new("pod"), Space::new("pod"));
    let (ip_a, ip_b) = (pod_address(&host.add("a", &a)), pod_address(&host.add("b", &b)));
    let listener = b.listen(&ip_b);
    assert_eq!(a.connect(&listener).unwrap().to_string(), ip_a, "pod to pod keeps the address");
    assert_eq!(host.space.connect(&listener).unwrap().to_string(), "172.16.1.1", "from the host");
    assert_eq!(b.connect(&listener).unwrap().to_string(), ip_b, "a pod reaches itself");
    let listener = outside.listen("192.168.77.2");
    // The pod needs a way out: the host forwards to the connected network.
    assert_eq!(a.connect(&listener).unwrap().to_string(), "192.168.77.1", "the outside sees the node");
    let listener = host.space.listen("172.16.1.1");
    assert_eq!(a.connect(&listener).unwrap().to_string(), ip_a, "the host sees the pod");
}

#[test]
fn dual_stack_pods_reach_each_other_at_once() {
    let host = Host::with_ranges(json!([[{ "subnet": "172.16.1.0/24" }], [{ "subnet": "fd00:1::/64" }]]));
    let (a, b) = (Space::new("pod"), Space::new("pod"));
    let (first, second) = (host.add("a", &a), host.add("b", &b));
    let v6 = |result: &serde_json::Value| {
        result["ips"][1]["address"].as_str().unwrap().split('/').next().unwrap().to_owned()
    };
    let listener = b.listen(&v6(&second));
    assert_eq!(a.connect(&listener).unwrap().to_string(), v6(&first));
    assert_eq!(a.connect(&b.listen(&pod_address(&second))).unwrap().to_string(), pod_address(&first));
    let check = host.check("a", &a, &first);
    assert_eq!(check.status, 0, "{}", super::harness::text(&check));
}

#[test]
fn a_reused_address_works_at_once() {
    let host = Host::with_ranges(
        json!([[{ "subnet": "172.16.1.0/24", "rangeStart": "172.16.1.2", "rangeEnd": "172.16.1.3" }]]),
    );
    let other = Space::new("pod");
    host.add("other", &other);
    for turn in 0..5 {
        let id = format!("turn{turn}");
        let pod = Space::new("pod");
        let result = host.add(&id, &pod);
        let listener = pod.listen(&pod_address(&result));
        let start = SystemClock.now();
        other.connect(&listener).unwrap();
        host.space.connect(&listener).unwrap();
        // Without the neighbour entry this takes seconds; a busy machine may take some milliseconds.
        assert!(start.elapsed() < Duration::from_millis(900), "turn {turn}: {:?}", start.elapsed());
        host.del(&id, pod.path());
    }
}

#[test]
fn without_masquerade_the_outside_sees_the_pod() {
    let mut host = Host::new();
    host.config["ipMasq"] = json!(false);
    let outside = host.outside();
    let pod = Space::new("pod");
    let ip = pod_address(&host.add("a", &pod));
    let mut netlink = outside.netlink();
    let link = netlink.link("up0").unwrap().unwrap().index;
    let back = netd_kernel::netlink::Route::to("172.16.1.0/24".parse().unwrap())
        .via("192.168.77.1".parse().unwrap());
    netlink.add_route(&back.dev(link)).unwrap();
    assert_eq!(pod.connect(&outside.listen("192.168.77.2")).unwrap().to_string(), ip);
    // And the outside reaches the pod.
    assert_eq!(outside.connect(&pod.listen(&ip)).unwrap().to_string(), "192.168.77.2");
}
