use super::*;
use crate::build::{ip, key, name, net, node_port_key, port};
use crate::ordered::OrderedMap;
use crate::plan::{FrontendKind, Pool, PoolId, PoolScope, ServicePortName, VerdictBySource};

const VIP: &str = "10.96.0.10";
const POD: &str = "172.16.1.5";
const NODE: &str = "192.168.1.101";
const OUTSIDE: &str = "198.51.100.7";

/// A plan written by hand: pods go to the local pool, the host is refused, others are dropped.
fn by_class() -> VerdictBySource {
    VerdictBySource {
        pod: balance(PoolScope::Local, Masquerade::Hairpin),
        host: Verdict::Reject,
        other: Verdict::Drop,
    }
}

fn balance(scope: PoolScope, masquerade: Masquerade) -> Verdict {
    Verdict::Balance { pool: PoolId { port: web(), scope }, masquerade, affinity: None }
}

fn web() -> ServicePortName {
    ServicePortName { service: name("web"), port: "".into(), protocol: Protocol::Tcp }
}

fn frontend(verdicts: VerdictBySource) -> Frontend {
    Frontend { port: web(), kind: FrontendKind::ClusterIP, allowed_sources: None, verdicts }
}

fn member(address: &str, local: bool) -> PoolEndpoint {
    PoolEndpoint { address: ip(address), port: port(8080), local }
}

fn plan(frontends: impl IntoIterator<Item = (FrontendKey, Frontend)>) -> ServicePlan {
    let mut plan = ServicePlan::empty();
    plan.v4.frontends = frontends.into_iter().collect();
    plan.v4.pools = OrderedMap::from_iter([
        (
            PoolId { port: web(), scope: PoolScope::Cluster },
            Pool { endpoints: vec![member(POD, true), member("172.16.2.5", false)] },
        ),
        (PoolId { port: web(), scope: PoolScope::Local }, Pool { endpoints: vec![member(POD, true)] }),
    ]);
    plan
}

fn vip_plan(verdicts: VerdictBySource) -> ServicePlan {
    plan([(key(VIP, Protocol::Tcp, 80), frontend(verdicts))])
}

fn node_port_plan() -> ServicePlan {
    plan([(
        node_port_key(Protocol::Tcp, 30080),
        frontend(VerdictBySource::same(balance(PoolScope::Cluster, Masquerade::Always))),
    )])
}

fn flow(origin: Origin, source: &str, destination: &str, number: u16) -> Flow {
    Flow {
        origin,
        in_interface: None,
        source: ip(source),
        destination: ip(destination),
        destination_is_local: destination == NODE,
        protocol: Protocol::Tcp,
        port: port(number),
    }
}

fn is_balanced(expected: &Expected) -> bool {
    matches!(expected, Expected::Balance { .. })
}

#[test]
fn what_is_no_frontend_passes() {
    let plan = vip_plan(VerdictBySource::same(Verdict::Reject));
    assert_eq!(verdict(&plan, &flow(Origin::Host, NODE, VIP, 80)), Expected::Reject);
    assert_eq!(verdict(&plan, &flow(Origin::Host, NODE, VIP, 81)), Expected::Pass, "another port");
    assert_eq!(
        verdict(&plan, &flow(Origin::Host, NODE, "10.96.0.11", 80)),
        Expected::Pass,
        "another address"
    );
    let udp = Flow { protocol: Protocol::Udp, ..flow(Origin::Host, NODE, VIP, 80) };
    assert_eq!(verdict(&plan, &udp), Expected::Pass, "another protocol");
    let mixed = flow(Origin::Host, "fd00::1", VIP, 80);
    assert_eq!(verdict(&plan, &mixed), Expected::Pass, "families never mix");
    assert_eq!(
        verdict(&plan, &flow(Origin::Host, "fd00::1", "fd96::1", 80)),
        Expected::Pass,
        "nothing in IPv6"
    );
}

#[test]
fn a_balanced_flow_names_every_endpoint_of_its_pool() {
    let plan = vip_plan(VerdictBySource::same(balance(PoolScope::Cluster, Masquerade::Hairpin)));
    let expected = verdict(&plan, &flow(Origin::Remote, OUTSIDE, VIP, 80));
    assert_eq!(
        expected,
        Expected::Balance {
            endpoints: [member(POD, true), member("172.16.2.5", false)].into(),
            masquerade: Masquerade::Hairpin,
        }
    );
}

#[test]
fn without_detection_no_source_is_a_pod() {
    let plan = vip_plan(by_class());
    assert_eq!(verdict(&plan, &flow(Origin::LocalPod, POD, VIP, 80)), Expected::Drop);
    assert_eq!(verdict(&plan, &flow(Origin::Host, NODE, VIP, 80)), Expected::Reject);
    assert_eq!(verdict(&plan, &flow(Origin::Remote, OUTSIDE, VIP, 80)), Expected::Drop);
}

#[test]
fn prefixes_recognise_pods_by_their_source_alone() {
    let mut plan = vip_plan(by_class());
    plan.v4.local_pods = LocalPods::Prefixes(vec![net("172.16.0.0/16")]);
    assert!(is_balanced(&verdict(&plan, &flow(Origin::LocalPod, POD, VIP, 80))));
    assert!(
        is_balanced(&verdict(&plan, &flow(Origin::Remote, "172.16.9.9", VIP, 80))),
        "as kube-proxy has it"
    );
    assert!(is_balanced(&verdict(&plan, &flow(Origin::Host, "172.16.1.1", VIP, 80))), "the bridge's address");
    assert_eq!(verdict(&plan, &flow(Origin::LocalPod, "10.0.0.1", VIP, 80)), Expected::Drop, "a stranger");
    assert_eq!(verdict(&plan, &flow(Origin::Host, NODE, VIP, 80)), Expected::Reject);
}

#[test]
fn an_interface_recognises_pods_and_the_origin_stands_in_for_it() {
    let on = |interface: &str, origin| Flow {
        in_interface: Some(interface.to_owned()),
        ..flow(origin, POD, VIP, 80)
    };
    let mut plan = vip_plan(by_class());
    plan.v4.local_pods = LocalPods::BridgeInterface("netd0".to_owned());
    assert!(is_balanced(&verdict(&plan, &on("netd0", Origin::LocalPod))));
    assert_eq!(verdict(&plan, &on("netd01", Origin::LocalPod)), Expected::Drop);
    assert_eq!(verdict(&plan, &on("eth0", Origin::Remote)), Expected::Drop);
    assert!(is_balanced(&verdict(&plan, &flow(Origin::LocalPod, POD, VIP, 80))), "interface not known");
    assert_eq!(verdict(&plan, &flow(Origin::Host, NODE, VIP, 80)), Expected::Reject);

    plan.v4.local_pods = LocalPods::InterfaceNamePrefix("veth".to_owned());
    assert!(is_balanced(&verdict(&plan, &on("veth12", Origin::LocalPod))));
    assert_eq!(verdict(&plan, &on("eth0", Origin::LocalPod)), Expected::Drop);
}

#[test]
fn sources_outside_the_ranges_are_dropped_before_anything_else() {
    let mut closed = frontend(VerdictBySource::same(Verdict::Reject));
    closed.allowed_sources = Some(vec![net("198.51.100.0/24")]);
    let ranged = plan([(key(VIP, Protocol::Tcp, 80), closed.clone())]);
    assert_eq!(verdict(&ranged, &flow(Origin::Remote, OUTSIDE, VIP, 80)), Expected::Reject);
    assert_eq!(verdict(&ranged, &flow(Origin::Remote, "203.0.113.1", VIP, 80)), Expected::Drop);
    assert_eq!(
        verdict(&ranged, &flow(Origin::LocalPod, POD, VIP, 80)),
        Expected::Drop,
        "pods are no exception"
    );
    closed.allowed_sources = Some(Vec::new());
    let nobody = plan([(key(VIP, Protocol::Tcp, 80), closed)]);
    assert_eq!(verdict(&nobody, &flow(Origin::Remote, OUTSIDE, VIP, 80)), Expected::Drop);
}

#[test]
fn node_ports_are_served_on_addresses_of_the_node_only() {
    let plan = node_port_plan();
    assert!(is_balanced(&verdict(&plan, &flow(Origin::Remote, OUTSIDE, NODE, 30080))));
    assert_eq!(verdict(&plan, &flow(Origin::Remote, OUTSIDE, "192.168.1.102", 30080)), Expected::Pass);
    let loopback = Flow { destination_is_local: true, ..flow(Origin::Host, "127.0.0.1", "127.0.0.1", 30080) };
    assert_eq!(verdict(&plan, &loopback), Expected::Pass, "never on loopback");
}

#[test]
fn node_port_prefixes_narrow_the_addresses() {
    let mut plan = node_port_plan();
    plan.v4.node_port_addresses = NodePortAddresses::Prefixes(vec![net("192.168.1.0/24")]);
    assert!(is_balanced(&verdict(&plan, &flow(Origin::Remote, OUTSIDE, NODE, 30080))));
    plan.v4.node_port_addresses = NodePortAddresses::Prefixes(vec![net("10.0.0.0/8")]);
    assert_eq!(verdict(&plan, &flow(Origin::Remote, OUTSIDE, NODE, 30080)), Expected::Pass);
    plan.v4.node_port_addresses = NodePortAddresses::Prefixes(Vec::new());
    assert_eq!(verdict(&plan, &flow(Origin::Remote, OUTSIDE, NODE, 30080)), Expected::Pass);
}

#[test]
fn an_address_of_its_own_comes_before_a_node_port() {
    let mut plan = node_port_plan();
    plan.v4
        .frontends
        .insert(key(NODE, Protocol::Tcp, 30080), frontend(VerdictBySource::same(Verdict::Reject)));
    assert_eq!(verdict(&plan, &flow(Origin::Remote, OUTSIDE, NODE, 30080)), Expected::Reject);
}

#[test]
fn hairpin_masquerades_only_the_client_that_reaches_itself() {
    let plan = vip_plan(VerdictBySource::same(balance(PoolScope::Cluster, Masquerade::Hairpin)));
    let expected = verdict(&plan, &flow(Origin::LocalPod, POD, VIP, 80));
    assert!(expected.is_masqueraded(ip(POD), ip(POD)));
    assert!(!expected.is_masqueraded(ip(POD), ip("172.16.2.5")));
    let always = verdict(&node_port_plan(), &flow(Origin::Remote, OUTSIDE, NODE, 30080));
    assert!(always.is_masqueraded(ip(OUTSIDE), ip(POD)));
    assert!(!Expected::Pass.is_masqueraded(ip(POD), ip(POD)));
}

#[test]
fn a_plan_without_its_pool_refuses_instead_of_panicking() {
    let mut plan = node_port_plan();
    plan.v4.pools = OrderedMap::new();
    assert_eq!(verdict(&plan, &flow(Origin::Remote, OUTSIDE, NODE, 30080)), Expected::Reject);
}
