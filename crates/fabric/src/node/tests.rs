use std::sync::atomic::{AtomicUsize, Ordering};

use netd_kernel::Namespace;
use netd_kernel::masquerade::State;

use super::*;

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Runs `work` in a namespace of its own.
fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    assert!(netd_kernel::process::is_root(), "this test needs root: it makes a network namespace");
    let name = format!("nd-fabn-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path = Path::new(netd_kernel::netns::NETNS_DIR).join(name);
    let result = Namespace::create(&path).and_then(|namespace| {
        // The thread's panic comes back here; the name must go first.
        namespace.run(|| std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)))
    });
    Namespace::remove(&path).unwrap();
    result.unwrap().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn net(file: &Path) -> NodeNet {
    NodeNet {
        network: "netd".to_owned(),
        former_pod_cidrs: Vec::new(),
        pod_cidrs: vec!["172.16.1.0/24".parse().unwrap(), "fd00:10:0:1::/64".parse().unwrap()],
        cluster_cidrs: vec!["172.16.0.0/16".parse().unwrap()],
        non_masquerade_cidrs: Vec::new(),
        mtu: Some(1450),
        masquerade: true,
        ranges_file: file.to_owned(),
    }
}

#[test]
fn a_node_is_made_ready_once_and_healed_after_a_loss() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run/podcidrs.json");
    apart(|| {
        // A new namespace may inherit either setting from the host.
        sysctl::write("net/ipv4/ip_forward", "0").unwrap();
        sysctl::write("net/ipv6/conf/all/forwarding", "0").unwrap();
        let net = net(&file);
        let changed = ensure_node(&net).unwrap();
        assert_eq!(changed.len(), 4, "{changed:?}");
        assert_eq!(ensure_node(&net).unwrap(), [""; 0]);
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            "{\"podCIDRs\":[\"172.16.1.0/24\",\"fd00:10:0:1::/64\"],\"clusterCIDRs\":[\"172.16.0.0/16\"],\"mtu\":1450}\n"
        );
        sysctl::write("net/ipv4/ip_forward", "0").unwrap();
        assert_eq!(ensure_node(&net).unwrap(), ["net/ipv4/ip_forward = 1"]);
        fs::write(&file, "torn").unwrap();
        assert_eq!(ensure_node(&net).unwrap().len(), 1);

        remove_node(&file).unwrap();
        remove_node(&file).unwrap();
        assert!(!file.exists());
        let rules = Masquerade {
            owner: masquerade::NODE.to_owned(),
            pod_cidrs: net.pod_cidrs.clone(),
            keep: net.cluster_cidrs.clone(),
        };
        assert_eq!(masquerade::check(&rules).unwrap(), State::Absent);
    });
}

#[test]
fn the_rules_of_an_earlier_range_go_with_it_and_those_of_other_networks_stay() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("podcidrs.json");
    let rules = |owner: &str, pods: &str| Masquerade {
        owner: owner.to_owned(),
        pod_cidrs: vec![pods.parse().unwrap()],
        keep: Vec::new(),
    };
    apart(|| {
        let (second, own) = (rules("net=second", "10.9.0.0/24"), rules("net=netd", "172.16.1.0/24"));
        masquerade::ensure(&second).unwrap();
        masquerade::ensure(&own).unwrap();
        let old: IpNetwork = "172.16.7.0/24".parse().unwrap();
        let both = NodeNet { former_pod_cidrs: vec![old], ..net(&file) };
        ensure_node(&both).unwrap();
        assert_eq!(ensure_node(&both).unwrap(), [""; 0]);
        let ranges = || masquerade::list().unwrap().into_iter().map(|range| range.owner).collect::<Vec<_>>();
        assert_eq!(ranges().len(), 5);
        assert!(fs::read_to_string(&file).unwrap().contains("\"formerPodCIDRs\":[\"172.16.7.0/24\"]"));
        assert_eq!(ensure_node(&net(&file)).unwrap(), ["masquerade", file.to_str().unwrap()]);
        assert_eq!(ranges().len(), 4);
        for network in [&second, &own] {
            assert_eq!(masquerade::check(network).unwrap(), State::Installed);
        }
        ensure_node(&NodeNet { masquerade: false, ..net(&file) }).unwrap();
        assert_eq!(ranges(), ["net=second"]);
    });
}

#[test]
fn a_node_without_prefix_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("podcidrs.json");
    let bare = NodeNet { pod_cidrs: Vec::new(), ..net(&file) };
    assert_eq!(apart(|| ensure_node(&bare)).unwrap(), [""; 0]);
    assert!(!file.exists());
}

#[test]
fn a_link_that_learns_its_default_route_goes_on_learning() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("podcidrs.json");
    apart(|| {
        sysctl::write("net/ipv6/conf/all/forwarding", "0").unwrap();
        let mut netlink = Netlink::open().unwrap();
        let spec = netd_kernel::netlink::BridgeSpec { name: "nd0", ..Default::default() };
        netlink.add_bridge(&spec).unwrap();
        sysctl::write("net/ipv6/conf/nd0/accept_ra", "1").unwrap();
        ensure_node(&net(&file)).unwrap();
        assert_eq!(sysctl::read("net/ipv6/conf/nd0/accept_ra").unwrap(), "2");
    });
}
