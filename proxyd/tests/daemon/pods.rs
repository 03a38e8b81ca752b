//! Pods that the plugin wired, and a daemon that looks after what they need.

#![expect(clippy::disallowed_methods, reason = "tests measure how long something is away")]

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use netd_ipam::{Leases, Ledger, Moment, Options, Owner, Pool, Range, UnderWay};
use netd_kernel::clock::eventually;
use netd_kernel::exec::{Spawn, find_program};
use netd_kernel::hostport::{self, HostPort};
use netd_kernel::link::Link;
use netd_kernel::masquerade;
use netd_kernel::netlink::{
    Batch, NeighbourState, Netlink, POD_ROUTE_PROTOCOL, Route, RouteFilter, VethSpec,
};
use netd_kernel::{Mac, nftables, sysctl};
use netd_lab::agent::{AgentHandle, Connect, Serve};
use netd_lab::traffic::Outcome;
use netd_lab::{CniRuntime, Place, Pod, PodSpec};
use serde_json::{Value, json};

use crate::node::{Daemon, NETD, TestNode};

const WAIT: Duration = Duration::from_secs(20);
/// How long anything that a running pod needs may be away.
const AWAY: Duration = Duration::from_secs(2);
const CONFIG: &str = "parts: {proxy: false, dns: false}\n";

/// The runtime's side: the plugin that is built beside the daemon, and the list that the daemon wrote.
fn runtime(node: &TestNode) -> CniRuntime {
    let plugin = Path::new(NETD).with_file_name("netd-cni");
    assert!(plugin.is_file(), "build it first: cargo build -p netd-cni");
    let list = std::fs::read(base(node).join("00-netd.conflist")).unwrap();
    CniRuntime { plugin, conflist: serde_json::from_slice(&list).unwrap() }
}

fn base(node: &TestNode) -> std::path::PathBuf {
    node.manifests().parent().unwrap().to_owned()
}

fn add(node: &TestNode, cni: &CniRuntime, name: &str) -> Pod {
    let spec = PodSpec { name: name.to_owned(), namespace: "default".to_owned(), cni };
    node.place().add_pod(&spec).unwrap()
}

fn with_port(cni: &CniRuntime, host: u16, container: u16) -> CniRuntime {
    let mut cni = cni.clone();
    cni.conflist["plugins"][0]["runtimeConfig"] =
        json!({ "portMappings": [{ "hostPort": host, "containerPort": container, "protocol": "tcp" }] });
    cni
}

fn serve(place: &dyn PlaceOf, name: &str, port: u16) -> AgentHandle {
    place.start(Serve { name: name.to_owned(), tcp: vec![port], udp: vec![], stay: false })
}

/// [`Place`] is not for trait objects; pods and nodes are both wanted.
trait PlaceOf {
    fn start(&self, serve: Serve) -> AgentHandle;
}

impl<T: Place> PlaceOf for T {
    fn start(&self, serve: Serve) -> AgentHandle {
        self.serve(serve).unwrap()
    }
}

fn inside<T: Send>(node: &TestNode, work: impl FnOnce(&mut Netlink) -> T + Send) -> T {
    node.place().run(|| work(&mut Netlink::open().unwrap())).unwrap()
}

fn link(node: &TestNode, name: &str) -> Option<Link> {
    inside(node, |netlink| netlink.link(name).unwrap())
}

fn command(node: &TestNode, line: &str) {
    let mut words = line.split_whitespace();
    let program = find_program(words.next().unwrap()).expect("iproute2 and nftables are installed");
    let spawn = Spawn { netns: Some(node.place().netns().to_owned()), ..Spawn::new(program, words) };
    let output = spawn.output(b"", WAIT).unwrap();
    assert!(output.success(), "{line}: {}", output.complaint());
}

/// The address that a server in the LAN sees a pod come from.
fn seen_from(pod: &Pod, target: &str) -> Option<IpAddr> {
    let connect = Connect::tcp(target.parse().unwrap()).within(Duration::from_millis(300));
    match pod.connect(connect).unwrap().pop() {
        Some(Outcome::Answered { peer, .. }) => Some(peer.ip()),
        _ => None,
    }
}

fn answers(place: &impl Place, target: &str) -> bool {
    let connect = Connect::tcp(target.parse().unwrap()).within(Duration::from_millis(300));
    place.connect(connect).unwrap().iter().all(Outcome::is_answered)
}

fn leases(node: &TestNode) -> Leases {
    Ledger::read(&base(node).join("ipam/netd.ledger")).unwrap()
}

fn neighbour(node: &TestNode, ip: IpAddr) -> Option<Mac> {
    let all = inside(node, |netlink| netlink.neighbours(None).unwrap());
    all.into_iter().find(|n| n.ip == ip && n.state == NeighbourState::Permanent).and_then(|n| n.mac)
}

/// Breaks something and waits until all is whole again; tells how long that took.
fn heals(daemon: &Daemon<'_>, what: &str, damage: impl FnOnce(), whole: impl Fn() -> bool) {
    assert!(whole(), "{what}: not whole before");
    damage();
    let start = Instant::now();
    let healed = eventually(WAIT, || whole().then(|| start.elapsed()));
    let Some(away) = healed else { panic!("{what}: never came back\n{}", daemon.log()) };
    println!("{what}: whole again after {} ms", away.as_millis());
    assert!(away <= AWAY, "{what}: {away:?}");
}

#[test]
#[expect(clippy::too_many_lines, reason = "one fault after the other on the same node")]
fn what_running_pods_need_comes_back_within_two_seconds_whoever_took_it() {
    let node = TestNode::new("pods-heal");
    let mut daemon = node.start(CONFIG);
    daemon.wait_ready();
    let cni = runtime(&node);
    let (web, other) = (add(&node, &with_port(&cni, 8080, 80), "web"), add(&node, &cni, "other"));
    let _servers = [serve(&web, "web", 80), serve(node.lan(), "lan", 9000)];
    web.check().unwrap();
    let (web_ip, other_ip) = (web.addresses()[0], other.addresses()[0]);
    // The daemon has seen both.
    let known =
        |text: &str| eventually(WAIT, || daemon.status(&["-o", "json"]).stdout.contains(text).then_some(()));
    assert!(known(&other_ip.to_string()).is_some());
    let tick = Instant::now();
    eventually(WAIT, || (tick.elapsed() > Duration::from_millis(1500)).then_some(()));

    let masqueraded = || seen_from(&other, "192.168.1.1:9000") == Some("192.168.1.10".parse().unwrap());
    let port = || answers(node.lan(), "192.168.1.10:8080");
    let local_port = || answers(node.place(), "127.0.0.1:8080");
    let to_pod = || answers(&other, &format!("{web_ip}:80"));
    let rules = || {
        inside(&node, |_| {
            let ranges = masquerade::list().unwrap();
            let owners: Vec<&str> = ranges.iter().filter(|r| r.whole).map(|r| r.owner.as_str()).collect();
            owners.contains(&"node") && owners.contains(&"net=netd") && hostport::is_intact().unwrap()
        })
    };
    let all = || rules() && masqueraded() && port() && local_port() && to_pod();
    for line in [
        "nft flush ruleset",
        "nft delete table ip netd-masq",
        "nft flush table ip netd-masq",
        "nft flush chain ip netd-masq postrouting",
        "nft delete table ip netd-hostport",
        "nft flush table ip netd-hostport",
        "nft flush map ip netd-hostport ports",
        "nft flush chain ip netd-hostport guard",
    ] {
        heals(&daemon, line, || command(&node, line), all);
    }
    let set = |key: &str, value: &str| {
        node.place().run(|| sysctl::write(key, value).unwrap()).unwrap();
    };
    heals(&daemon, "ip_forward = 0", || set("net/ipv4/ip_forward", "0"), all);
    heals(&daemon, "route_localnet = 0", || set("net/ipv4/conf/netd0/route_localnet", "0"), all);
    let entries = || neighbour(&node, web_ip).is_some() && neighbour(&node, other_ip).is_some();
    let all = || all() && entries();
    let before = link(&node, "netd0").unwrap();
    let forget = format!("ip neigh del {web_ip} dev netd0");
    for line in
        ["ip link set netd0 down", "ip addr del 172.16.0.1/24 dev netd0", &forget, "ip link del netd0"]
    {
        heals(&daemon, line, || command(&node, line), all);
    }
    assert_eq!(link(&node, "netd0").unwrap().mac, before.mac, "pods remember it");
    // A new pod finds all as it should be, and CHECK says so.
    let late = add(&node, &cni, "late");
    late.check().unwrap();
    web.check().unwrap();
    let log = daemon.log();
    assert!(log.contains("put back what another program took from running pods"), "{log}");
    assert!(log.contains("by=\"nft ("), "who did it is not told: {log}");
    let metrics = node.get("127.0.0.1:10249", "/metrics");
    assert!(metrics.contains("netd_repairs_total{what=\"host-ports\"}"), "{metrics}");
    // DEL of a pod takes its port for good.
    web.remove().unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1500) {
        assert!(inside(&node, |_| hostport::list().unwrap()).is_empty());
    }
}

#[test]
fn two_networks_and_the_daemon_never_rewrite_each_others_masquerade() {
    let node = TestNode::new("masq");
    let mut daemon = node.start(CONFIG);
    daemon.wait_ready();
    // The same network with another exception than the daemon's, and one with its own range.
    let mut own = runtime(&node);
    own.conflist["plugins"][0]["nonMasqueradeCIDRs"] = json!(["192.168.1.0/24"]);
    let mut second = own.clone();
    second.conflist["name"] = json!("second");
    second.conflist["plugins"][0]["bridge"] = json!("netd1");
    second.conflist["plugins"][0]["nonMasqueradeCIDRs"] = json!([]);
    second.conflist["plugins"][0]["ipam"] = json!({ "type": "netd", "ranges": [[{ "subnet": "10.77.0.0/24" }]], "dataDir": base(&node).join("ipam") });
    let (a, b) = (add(&node, &own, "a"), add(&node, &second, "b"));
    let _server = serve(node.lan(), "lan", 9000);
    assert_eq!(seen_from(&b, "192.168.1.1:9000"), Some("192.168.1.10".parse().unwrap()));
    // The LAN has no route back, so what is excepted is not answered.
    assert_eq!(seen_from(&a, "192.168.1.1:9000"), None);

    let generation = || node.place().run(|| nftables::generation().unwrap()).unwrap();
    let before = generation();
    for round in 0..3 {
        for (cni, name) in [(&own, "c"), (&second, "d")] {
            add(&node, cni, &format!("{name}{round}")).remove().unwrap();
        }
        let start = Instant::now();
        eventually(WAIT, || (start.elapsed() > Duration::from_millis(700)).then_some(()));
    }
    assert_eq!(generation(), before, "somebody writes: {}", daemon.log());
    let whole = || {
        let found = inside(&node, |_| masquerade::list().unwrap());
        let owners: Vec<String> = found.iter().filter(|r| r.whole).map(|r| r.owner.clone()).collect();
        ["node", "net=netd", "net=second"].iter().all(|owner| owners.iter().any(|o| o == owner))
            && seen_from(&b, "192.168.1.1:9000") == Some("192.168.1.10".parse().unwrap())
    };
    heals(&daemon, "both networks: nft flush ruleset", || command(&node, "nft flush ruleset"), whole);
    daemon.wait_ready();
}

#[test]
#[expect(clippy::too_many_lines, reason = "all kinds of garbage on the same node")]
fn what_pods_left_that_are_gone_is_collected_and_no_live_pod_is_harmed() {
    let node = TestNode::new("garbage");
    let config = node.config_file(CONFIG);
    let text = std::fs::read_to_string(config).unwrap();
    let garbage = "cni: {garbage: {intervalSeconds: 1, graceSeconds: 0}, ";
    std::fs::write(config, text.replace("cni: {", garbage)).unwrap();
    let mut daemon = node.start_by(config);
    daemon.wait_ready();
    let cni = runtime(&node);
    let live = add(&node, &with_port(&cni, 8081, 80), "live");
    let leaked = add(&node, &with_port(&cni, 8082, 80), "leaked");
    let _server = serve(&live, "live", 80);
    let directory = base(&node).join("ipam");

    // A pod that is being wired has taken an address and has no link yet.
    let under_way = UnderWay::announce(&directory, "netd").unwrap();
    let starting = Owner { container: "starting".to_owned(), interface: "eth0".to_owned() };
    {
        let now = Moment::now().unwrap();
        let cool_down = Duration::from_secs(30);
        let options = Options { directory: &directory, network: "netd", cool_down, now };
        let mut ledger = Ledger::open(options, || Err::<Vec<netd_ipam::Lease>, _>("it is there")).unwrap();
        let range = Range::new("172.16.0.0/24".parse().unwrap(), None, None, None).unwrap();
        ledger.allocate(&starting, None, &[Pool::new(vec![range]).unwrap()]).unwrap();
    }
    // What else may be left: entries and routes of addresses that nobody has, a pair without a lease, a link put aside.
    let bridge = link(&node, "netd0").unwrap().index;
    let stray: IpAddr = "172.16.0.200".parse().unwrap();
    inside(&node, |netlink| {
        let peer_name = "nd-stray-p";
        let pair = VethSpec { name: "nd-stray", peer_name, up: true, ..VethSpec::default() };
        let pair = netlink.add_veth(&pair).unwrap();
        let mut batch = Batch::new();
        batch.add_neighbour(bridge, stray, Mac([2, 0x42, 172, 16, 0, 200]), true);
        batch.add_neighbour(bridge, "192.0.2.7".parse().unwrap(), Mac([2, 0, 0, 0, 0, 7]), true);
        batch.add_route(&Route::to_pod("172.16.0.201".parse().unwrap(), bridge));
        batch.set_alias(pair, "netd net=netd ip=172.16.0.202 if=eth0 id=gone");
        netlink.send(&batch).unwrap();
        netlink.add_ifb("ndif00000000000", 1500, "netd-bw net=netd if=eth0 id=gone").unwrap();
        netlink.add_ifb("nd-other", 1500, "somebody's").unwrap();
        let to = SocketAddr::new(stray, 80);
        let port =
            HostPort { transport: netd_kernel::conntrack::Transport::Tcp, host_ip: None, port: 9999, to };
        hostport::add("netd00000000000 netd", &[port]).unwrap().unwrap();
    });
    // As when its namespace goes without a DEL: the kernel takes the pair.
    let mut inside_pod = Netlink::open_in(leaked.namespace_handle()).unwrap();
    let end = inside_pod.link("eth0").unwrap().unwrap().index;
    inside_pod.delete_link(end).unwrap();

    let pod_routes = RouteFilter { protocol: Some(POD_ROUTE_PROTOCOL), ..RouteFilter::default() };
    let held = |container: &str| leases(&node).iter().any(|lease| lease.owner.container == container);
    let garbage = || {
        let ports = inside(&node, |_| hostport::list().unwrap()).len();
        let routes = inside(&node, |n| n.routes(pod_routes).unwrap());
        let there = ["nd-stray", "ndif00000000000"].iter().any(|name| link(&node, name).is_some());
        (ports, routes.len(), there, neighbour(&node, stray).is_some())
    };
    let collected = eventually(WAIT, || (garbage() == (1, 0, false, false)).then_some(()));
    assert!(collected.is_some(), "{:?}\n{}", garbage(), daemon.log());
    assert!(neighbour(&node, "192.0.2.7".parse().unwrap()).is_some(), "somebody else's entry");
    assert!(link(&node, "nd-other").is_some(), "somebody else's device");
    assert!(held("starting"), "a pod that is being wired lost its address\n{}", daemon.log());
    assert_eq!(leases(&node).len(), 3, "nothing is freed while an ADD is under way");
    drop(under_way);
    let freed = eventually(WAIT, || (leases(&node).len() == 1).then_some(()));
    assert!(freed.is_some(), "{:?}\n{}", leases(&node), daemon.log());
    assert!(answers(node.lan(), "192.168.1.10:8081"), "the live pod");
    live.check().unwrap();

    let state: Value = serde_json::from_str(&daemon.status(&["-o", "json"]).stdout).unwrap();
    let collected = &state["garbage"]["collected"];
    for (kind, count) in [("lease", 2), ("link", 1), ("host-ports", 2), ("route", 1), ("ifb", 1)] {
        assert_eq!(collected[kind], count, "{kind}: {collected}");
    }
    let status = daemon.status(&[]).stdout;
    assert!(status.contains("GARBAGE") && status.contains("2 lease"), "{status}");
    let metrics = node.get("127.0.0.1:10249", "/metrics");
    assert!(metrics.contains("netd_garbage_collected_total{kind=\"lease\"} 2"), "{metrics}");
    assert!(daemon.log().contains("collected garbage: nothing live owns it"));
    // A DEL that comes late, or twice, is a success and harms nobody.
    leaked.remove().unwrap();
    live.check().unwrap();
}

const FAR: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: far}\nspec: {podCIDR: 172.16.7.0/24}\nstatus: {addresses: \
                   [{type: InternalIP, address: 198.51.100.7}]}\n";

#[test]
fn pods_of_before_the_tunnel_are_named_and_still_exchange_large_packets() {
    let node = TestNode::new("mtu");
    let mut daemon = node.start(CONFIG);
    daemon.wait_ready();
    let old = add(&node, &runtime(&node), "old");
    node.manifest("far.yaml", FAR);
    daemon.wait_for("named pod", |state| {
        let message = state["parts"]["cni"]["message"].as_str().unwrap_or_default();
        message.contains("1 pods keep a larger MTU than 1450 until they are made again")
    });
    let new = add(&node, &runtime(&node), "new");
    let mtu = |pod: &Pod| pod.run(|| Netlink::open().unwrap().link("eth0").unwrap().unwrap().mtu).unwrap();
    assert_eq!((mtu(&old), mtu(&new)), (1500, 1450));
    // The largest datagram of the old pod passes to the new one, in two pieces, once the node has told the size.
    let (from, to) = (old.addresses()[0], new.addresses()[0]);
    let bind = |pod: &Pod, ip: IpAddr| {
        let socket = pod.run(|| std::net::UdpSocket::bind((ip, 0)).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket
    };
    let (client, server) = (bind(&old, from), bind(&new, to));
    let large = vec![7_u8; 1472];
    let passed = eventually(WAIT, || {
        // The first is refused with the size that fits.
        client.send_to(&large, server.local_addr().unwrap()).ok()?;
        let mut buffer = [0; 2000];
        (server.recv(&mut buffer).ok()? == large.len()).then_some(())
    });
    assert!(passed.is_some(), "{}", daemon.log());
    old.remove().unwrap();
    daemon.wait_for("nothing to name", |state| {
        !state["parts"]["cni"]["message"].as_str().unwrap_or_default().contains("larger MTU")
    });
}

fn node_manifest(node: &TestNode, cidrs: &str) {
    node.manifest(
        "node.yaml",
        &format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: n1}}\nspec: {{podCIDRs: [{cidrs}]}}\nstatus: {{addresses: \
             [{{type: InternalIP, address: 192.168.1.10}}]}}\n"
        ),
    );
}

fn gateways(node: &TestNode) -> Vec<String> {
    let bridge = link(node, "netd0").unwrap().index;
    let all = inside(node, |netlink| netlink.addresses(Some(bridge)).unwrap());
    all.iter().filter(|address| !address.link_local).map(|address| address.prefix.to_string()).collect()
}

#[test]
fn pods_of_an_earlier_pod_cidr_go_on_and_its_gateway_goes_with_the_last_of_them() {
    let node = TestNode::new("cidr");
    let mut daemon = node.start(CONFIG);
    daemon.wait_ready();
    let cni = runtime(&node);
    let old = add(&node, &cni, "old");
    let _servers = [serve(&old, "old", 80), serve(node.lan(), "lan", 9000)];
    node_manifest(&node, "172.16.9.0/24, 'fd00:9::/64'");
    daemon.wait_for("new range", |state| {
        state["parts"]["cni"]["message"].as_str().is_some_and(|m| m.contains("172.16.9.0/24"))
    });
    let new = add(&node, &cni, "new");
    assert_eq!(new.addresses().len(), 2, "the second family as well");
    assert!(new.addresses()[0].to_string().starts_with("172.16.9."), "{:?}", new.addresses());
    let masqueraded = |pod: &Pod| seen_from(pod, "192.168.1.1:9000") == Some("192.168.1.10".parse().unwrap());
    let old_target = format!("{}:80", old.addresses()[0]);
    assert!(masqueraded(&old) && masqueraded(&new) && answers(&new, &old_target));
    assert!(gateways(&node).contains(&"172.16.0.1/24".to_owned()), "{:?}", gateways(&node));

    // The drift is told, also by a restarted netd, which keeps what the old pod needs.
    assert_eq!(daemon.terminate(), 0);
    let mut daemon = node.start(CONFIG);
    let state = daemon.wait_for("told drift", |state| {
        let message = state["parts"]["cni"]["message"].as_str().unwrap_or_default();
        message.contains("1 pods keep addresses of the former range 172.16.0.0/24")
    });
    let former = state["ipam"]["pools"].as_array().unwrap().iter().find(|pool| pool["former"] == true);
    assert_eq!(former.unwrap()["used"], 1, "{state}");
    let whole = || masqueraded(&old) && masqueraded(&new) && answers(&new, &old_target);
    heals(&daemon, "old range: nft flush ruleset", || command(&node, "nft flush ruleset"), whole);
    let line = "ip addr del 172.16.0.1/24 dev netd0";
    heals(&daemon, line, || command(&node, line), whole);

    old.remove().unwrap();
    let gone = eventually(WAIT, || (!gateways(&node).contains(&"172.16.0.1/24".to_owned())).then_some(()));
    assert!(gone.is_some(), "{:?}\n{}", gateways(&node), daemon.log());
    let ranges = std::fs::read_to_string(base(&node).join("ranges.json")).unwrap();
    let forgotten = eventually(WAIT, || {
        (!std::fs::read_to_string(base(&node).join("ranges.json")).unwrap().contains("172.16.0.0/24"))
            .then_some(())
    });
    assert!(forgotten.is_some(), "{ranges}");
    let owned = inside(&node, |_| masquerade::list().unwrap());
    assert!(
        !owned.iter().any(|r| r.owner == "node" && r.pods == "172.16.0.0/24".parse().unwrap()),
        "{owned:?}"
    );
    assert!(masqueraded(&new));
    daemon.wait_ready();
}

#[test]
fn a_pod_cidr_whose_gateway_is_a_pods_address_is_refused_by_name() {
    let node = TestNode::new("taken");
    let mut daemon = node.start(CONFIG);
    daemon.wait_ready();
    let cni = runtime(&node);
    let pod = add(&node, &cni, "first");
    // The pod has .2; the new range's gateway is .3 after the second pod.
    let second = add(&node, &cni, "second");
    assert_eq!(second.addresses(), ["172.16.0.3".parse::<IpAddr>().unwrap()]);
    let third = add(&node, &cni, "third");
    let fourth = add(&node, &cni, "fourth");
    assert_eq!(fourth.addresses(), ["172.16.0.5".parse::<IpAddr>().unwrap()]);
    node_manifest(&node, "172.16.0.4/30");
    let state = daemon.wait_for("refusal", |state| state["parts"]["cni"]["ready"] == false);
    let message = state["parts"]["cni"]["message"].as_str().unwrap();
    assert!(message.contains("172.16.0.4/30") && message.contains("default/fourth"), "{message}");
    let ranges = std::fs::read_to_string(base(&node).join("ranges.json")).unwrap();
    assert!(ranges.contains("172.16.0.0/24"), "{ranges}");
    fourth.remove().unwrap();
    third.remove().unwrap();
    daemon.wait_ready();
    drop((pod, second));
}
