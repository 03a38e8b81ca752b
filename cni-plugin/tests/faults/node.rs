//! What is on a node, and whether that is what should be.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use netd_cni::naming;
use netd_ipam::{Alias, Ledger, Owner};
use netd_kernel::clock::eventually;
use netd_kernel::exec::{Child, Spawn, Stream, find_program};
use netd_kernel::netlink::{BridgeSpec, NeighbourState, VethSpec};
use netd_kernel::process::Signal;
use netd_kernel::{hostport, reap};
use serde_json::{Value, json};

use super::harness::{Host, LIMIT, Space, network};

/// The network of the tests.
pub(crate) const NETWORK: &str = "pods";

/// All that an attachment is made of, as far as the node shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Attached {
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// `protocol port address`, as the kernel's elements have them.
    pub(crate) ports: BTreeSet<String>,
    /// Whether its bandwidth is limited, which takes a link more.
    pub(crate) shaped: bool,
}

/// Attachments by their owner.
pub(crate) type Attachments = BTreeMap<Owner, Attached>;

/// What is on a node of one network, by the four places that know of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// The ledger.
    pub(crate) leases: BTreeMap<Owner, BTreeSet<IpAddr>>,
    /// The links' aliases.
    pub(crate) links: BTreeMap<Owner, BTreeSet<IpAddr>>,
    /// Permanent neighbours on the bridge.
    pub(crate) neighbours: BTreeSet<IpAddr>,
    /// Elements of host ports, with the name of their owner's link.
    pub(crate) ports: BTreeMap<String, BTreeSet<String>>,
    /// Links that limit a pod's bandwidth, by their names.
    pub(crate) shapers: BTreeSet<String>,
    /// Links that are nobody's: without an alias, put aside, of an unknown kind.
    pub(crate) strays: BTreeSet<String>,
}

impl Found {
    /// What there is of these attachments and nothing else.
    pub(crate) fn of(attachments: &Attachments) -> Self {
        let mut all = Self::default();
        for (owner, attached) in attachments {
            all.leases.insert(owner.clone(), attached.addresses.clone());
            all.links.insert(owner.clone(), attached.addresses.clone());
            all.neighbours.extend(&attached.addresses);
            all.shapers.extend(attached.shaped.then(|| naming::shaper(owner)));
            if !attached.ports.is_empty() {
                all.ports.insert(naming::host_link(owner), attached.ports.clone());
            }
        }
        all
    }

    /// Reads a node. Links that the test made itself are in `known`.
    pub(crate) fn on(host: &Host, net: &str, bridge: &str, known: &[&str]) -> Self {
        let mut found = Self::default();
        let ledger = Ledger::path_of(&host.data.path().join("ipam"), net);
        for lease in Ledger::read(&ledger).unwrap().iter() {
            let before = found.leases.insert(lease.owner.clone(), lease.addresses.iter().copied().collect());
            assert_eq!(before, None, "two leases of {}", lease.owner);
        }
        let mut netlink = host.space.netlink();
        for link in netlink.links().unwrap() {
            if link.loopback || link.name == bridge || known.contains(&link.name.as_str()) {
                continue;
            }
            if link.alias.as_deref().is_some_and(|alias| naming::is_shaper_of(net, alias)) {
                found.shapers.insert(link.name);
                continue;
            }
            match link.alias.as_deref().and_then(Alias::parse) {
                Some(alias) if alias.network == net => {
                    found.links.insert(alias.lease.owner, alias.lease.addresses.into_iter().collect());
                }
                Some(_) => {}
                None => {
                    found.strays.insert(format!("{} {:?} {:?}", link.name, link.kind, link.alias));
                }
            }
        }
        if let Some(bridge) = netlink.link(bridge).unwrap() {
            let permanent = |n: &netd_kernel::netlink::Neighbour| {
                n.state == NeighbourState::Permanent && !n.ip.is_multicast()
            };
            let all = netlink.neighbours(Some(bridge.index)).unwrap();
            found.neighbours = all.into_iter().filter(permanent).map(|n| n.ip).collect();
        }
        for (key, port) in host.space.run(hostport::list).unwrap() {
            let (link, of) = key.split_once(' ').unwrap();
            if of == net {
                let text = format!("{:?} {} {}", port.transport, port.port, port.to);
                found.ports.entry(link.to_owned()).or_default().insert(text);
            }
        }
        found
    }

    /// No address has two owners, in the ledger and in the kernel.
    pub(crate) fn assert_distinct(&self) {
        for all in [&self.leases, &self.links] {
            let mut seen = BTreeMap::new();
            for (owner, addresses) in all {
                for address in addresses {
                    let other = seen.insert(*address, owner.clone());
                    assert_eq!(other, None, "{address} is also that of {owner}: {self:#?}");
                }
            }
        }
    }
}

/// What is on the node of the network of the tests.
pub(crate) fn found(host: &Host) -> Found {
    Found::on(host, NETWORK, "netd0", &[])
}

/// Nothing of any pod is on the node.
pub(crate) fn assert_nothing(host: &Host, when: &str) {
    assert_eq!(found(host), Found::default(), "{when}");
}

/// A dual-stack node.
pub(crate) fn dual() -> Host {
    Host::with_ranges(json!([[{ "subnet": "172.16.1.0/24" }], [{ "subnet": "fd00:1::/64" }]]))
}

/// What a runtime asks for a pod with these ports of the node.
pub(crate) fn with_ports(config: &Value, ports: &[u16]) -> Value {
    let wish =
        |port: &u16, protocol: &str| json!({ "hostPort": port, "containerPort": 80, "protocol": protocol });
    let wishes: Vec<Value> = ports.iter().flat_map(|port| [wish(port, "tcp"), wish(port, "udp")]).collect();
    let mut config = config.clone();
    config["runtimeConfig"] = json!({ "portMappings": wishes });
    config
}

/// The addresses that a result tells.
pub(crate) fn addresses_of(result: &Value) -> BTreeSet<IpAddr> {
    let text = |ip: &Value| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap();
    result["ips"].as_array().unwrap().iter().map(text).collect()
}

/// What the elements of these ports are to be.
pub(crate) fn ports_of(addresses: &BTreeSet<IpAddr>, ports: &[u16]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for address in addresses {
        for port in ports {
            let to = std::net::SocketAddr::new(*address, 80);
            all.extend(["Tcp", "Udp"].map(|transport| format!("{transport} {port} {to}")));
        }
    }
    all
}

pub(crate) fn owner(id: &str) -> Owner {
    Owner { container: id.to_owned(), interface: "eth0".to_owned() }
}

/// Runs a program of the machine in a namespace and returns what it said.
pub(crate) fn program(space: &Space, name: &str, args: &[&str], stdin: &str) -> String {
    let path = find_program(name).unwrap_or_else(|| panic!("this test needs the program {name}"));
    let mut spawn = Spawn::new(path, args.iter().copied());
    spawn.netns = Some(space.path.clone());
    let output = spawn.output(stdin.as_bytes(), LIMIT).unwrap();
    assert_eq!(output.status, 0, "{name} {args:?}: {}", output.complaint());
    String::from_utf8(output.stdout).unwrap()
}

/// Things of others on a node: a bridge with a port, addresses and a neighbour, nftables tables, a pod of another network.
pub(crate) struct Foreign {
    pod: Space,
    before: String,
}

const RULES: &str = "
add table ip foreign
add map ip foreign ports { type inet_proto . inet_service : ipv4_addr . inet_service; }
add element ip foreign ports { tcp . 20000 : 10.200.0.9 . 80 }
add chain ip foreign nat { type nat hook postrouting priority 100; }
add rule ip foreign nat ip saddr 10.200.0.0/24 masquerade
add table inet cni_like
add chain inet cni_like forward { type filter hook forward priority 0; }
add rule inet cni_like forward ip daddr 10.200.0.9 accept
add table ip6 foreign
add set ip6 foreign pods { type ipv6_addr; }
add element ip6 foreign pods { fd00:1::2 }
";
/// Links of others.
const FOREIGN_LINKS: [&str; 3] = ["foreign0", "fveth0", "netd9"];

impl Foreign {
    pub(crate) fn new(host: &Host) -> Self {
        let pod = Space::new("foreign");
        let mut netlink = host.space.netlink();
        let spec = BridgeSpec { name: "foreign0", alias: Some("somebody else's"), ..BridgeSpec::default() };
        let bridge = netlink.add_bridge(&spec).unwrap();
        netlink.add_address(bridge, network("10.200.0.1/24"), true).unwrap();
        let port = netlink
            .add_veth(&VethSpec {
                name: "fveth0",
                peer_name: "fveth0",
                peer_namespace: Some(pod.namespace.fd()),
                master: Some(bridge),
                ..VethSpec::default()
            })
            .unwrap();
        netlink.set_up(bridge).unwrap();
        netlink.set_up(port).unwrap();
        let mac = "02:00:00:00:00:09".parse().unwrap();
        netlink.add_neighbour(bridge, "10.200.0.9".parse().unwrap(), mac, true).unwrap();
        program(&host.space, "nft", &["-f", "-"], RULES);
        let output = host.verb("ADD", "other", pod.path(), &Self::config(host));
        assert_eq!(output.status, 0, "{}", super::harness::text(&output));
        let before = Self::describe(host);
        Self { pod, before }
    }

    /// A network of another name, whose ports and links lie beside ours.
    fn config(host: &Host) -> Value {
        let mut config = with_ports(&host.config, &[19_999]);
        config["name"] = json!("other");
        config["bridge"] = json!("netd9");
        config["ipam"]["ranges"] = json!([[{ "subnet": "10.201.0.0/24" }]]);
        config
    }

    fn describe(host: &Host) -> String {
        let mut netlink = host.space.netlink();
        let mut text = String::new();
        for name in FOREIGN_LINKS {
            let link = netlink.link(name).unwrap().unwrap_or_else(|| panic!("{name} is gone"));
            let addresses: BTreeSet<String> =
                netlink.addresses(Some(link.index)).unwrap().iter().map(|a| a.prefix.to_string()).collect();
            let permanent: BTreeSet<String> = netlink
                .neighbours(Some(link.index))
                .unwrap()
                .iter()
                .filter(|n| n.state == NeighbourState::Permanent && !n.ip.is_multicast())
                .map(|n| format!("{} {:?}", n.ip, n.mac))
                .collect();
            text += &format!("{:?} {:?} {:?} {}", link.alias, addresses, permanent, link.up);
        }
        let ours = Found::on(host, "other", "netd9", &["foreign0", "fveth0", "netd0"]);
        text += &format!("{:?}{:?}{:?}", ours.leases, ours.links, ours.ports);
        for (family, table) in [("ip", "foreign"), ("inet", "cni_like"), ("ip6", "foreign")] {
            text += &program(&host.space, "nft", &["list", "table", family, table], "");
        }
        text
    }

    /// Nothing of others has changed.
    pub(crate) fn assert_untouched(&self, host: &Host) {
        assert_eq!(Self::describe(host), self.before);
    }

    /// What is on the node of the network of the tests, beside what is others'.
    pub(crate) fn found_beside(host: &Host) -> Found {
        Found::on(host, NETWORK, "netd0", &FOREIGN_LINKS)
    }

    /// Ends the other network's pod.
    pub(crate) fn end(&self, host: &Host) {
        let output = host.verb("DEL", "other", self.pod.path(), &Self::config(host));
        assert_eq!(output.status, 0, "{}", super::harness::text(&output));
    }
}

/// Says at its end, also when a test fails, that others are to end.
pub(crate) struct AtEnd<'a>(pub(crate) &'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Takes the daemon's place: deletes what DEL put aside.
pub(crate) fn reap_until(host: &Host, stop: &AtomicBool) {
    // Children that other tests start at this moment may hold an earlier one's socket until their program begins.
    let listen = || host.space.run(reap::listen).ok();
    let daemon: UnixListener = eventually(LIMIT, listen).expect("the name is free");
    let mut netlink = host.space.netlink();
    let mut last = false;
    while !last {
        // Once more after the end, for what was put aside just before.
        last = stop.load(Ordering::Relaxed);
        let calls = std::iter::from_fn(|| daemon.accept().ok());
        let heard = calls.map(|(mut stream, _)| {
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            drop(stream.read(&mut [0]));
        });
        if heard.count() > 0 || last {
            match netlink.delete_group(reap::GROUP) {
                Err(error) if !error.is_not_found() => panic!("{error}"),
                Ok(()) | Err(_) => {}
            }
        } else {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A real daemon on the node.
pub(crate) struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts the daemon, as built beside the plugin.
    pub(crate) fn start(host: &Host) -> Self {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_netd-cni")).with_file_name("netd");
        assert!(program.is_file(), "{} is not built: cargo build -p netd", program.display());
        let base = host.data.path();
        std::fs::create_dir_all(base.join("manifests")).unwrap();
        let config = base.join("netd.yaml");
        let at = base.display();
        let text = format!(
            "apiVersion: netd.io/v1alpha1\nkind: NetdConfiguration\nnodeName: n1\nsource: {{manifests: {at}/manifests}}\n\
             clusterCIDRs: [172.16.0.0/16, 'fd00:1::/48']\n\
             parts: {{proxy: false, fabric: true, cni: true, dns: false}}\n\
             proxy: {{dataplane: iptables, ebpf: {{pinDir: {at}/bpf}}}}\nhttp: {{health: null, metrics: null}}\n\
             cni: {{conflist: {at}/net.d/00-netd.conflist, rangesFile: {at}/ranges.json, dataDir: {at}/ipam, \
             podCIDRs: [172.16.1.0/24, 'fd00:1::/64']}}\n\
             paths: {{stateDir: {at}/lib, runDir: {at}/run}}\n"
        );
        std::fs::write(&config, text).unwrap();
        let mut spawn = Spawn::new(program, ["run".into(), "--config".into(), config.into_os_string()]);
        spawn.netns = Some(host.space.path.clone());
        spawn.stderr = Stream::File(Self::log(host));
        Self { child: spawn.start().unwrap() }
    }

    fn log(host: &Host) -> PathBuf {
        host.data.path().join("netd.log")
    }

    /// Waits until it takes calls of the plugin; fails with its last words.
    pub(crate) fn await_ready(&mut self, host: &Host) {
        let ready = eventually(LIMIT, || {
            assert_eq!(self.child.try_wait().unwrap(), None, "{}", Self::last_words(host));
            host.space.run(reap::Reaper::find).map(drop)
        });
        assert!(ready.is_some(), "{}", Self::last_words(host));
    }

    pub(crate) fn last_words(host: &Host) -> String {
        let log = std::fs::read_to_string(Self::log(host)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        self.child.kill(signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill(Signal::Kill);
        let _ = self.child.wait();
    }
}
