//! The LAN and the machines on it.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use netd_kernel::netlink::{Batch, BridgeSpec, Route, TABLE_MAIN, VethSpec};
use netd_kernel::netns::NETNS_DIR;
use netd_kernel::{Ifindex, Namespace, cgroup, mount, process, sysctl};

use crate::node::{Node, NodeParts};
use crate::place::{Place, Seat};
use crate::record::{self, Record, Removed};
use crate::spec::{LAN, LabSpec, NodeSpec};
use crate::{Error, Result};

/// The LAN's bridge, in the LAN's own namespace.
const LAN_BRIDGE: &str = "lan0";
/// A machine's link to the LAN.
const UPLINK: &str = "eth0";
/// The protocol number of routes that an administrator sets (linux/rtnetlink.h): not netd's own.
const PROTOCOL_STATIC: u8 = 4;

/// A standing lab; removed when dropped.
#[derive(Debug)]
pub struct Lab {
    name: String,
    state_dir: PathBuf,
    lan: Node,
    nodes: Vec<Node>,
    clients: Vec<Node>,
    kept: bool,
}

impl Lab {
    /// Builds a lab; on failure all that was made is removed again.
    ///
    /// Each machine gets a network namespace `/run/netns/<lab>-<machine>` with `eth0` on the LAN, a cgroup
    /// `<cgroup v2>/<lab>/<machine>` and a directory `<state_dir>/<machine>`.
    ///
    /// # Errors
    /// [`Error::NotRoot`]; [`Error::Standing`] when the state directory holds a lab already.
    pub fn create(spec: &LabSpec) -> Result<Self> {
        if !process::is_root() {
            return Err(Error::NotRoot);
        }
        spec.check()?;
        let record = Arc::new(Record::start(&spec.name, &spec.state_dir)?);
        Builder { spec, record, agent: spec.agent.clone().into() }.build().inspect_err(|_| {
            if let Err(error) = record::remove(&spec.name, &spec.state_dir) {
                tracing::warn!(%error, "something of a lab that failed is left");
            }
        })
    }

    /// Removes what a lab that was killed left, by the record in its state directory.
    ///
    /// Nothing that the record does not tell of is touched. Without a record (someone emptied the directory) the lab's
    /// cgroups tell what there was; without those either there is nothing to do.
    ///
    /// # Errors
    /// [`Error::Teardown`] names what could not be removed, after all else was.
    pub fn remove(name: &str, state_dir: &Path) -> Result<Removed> {
        if !process::is_root() {
            return Err(Error::NotRoot);
        }
        record::remove(name, state_dir)
    }

    /// Removes the lab, and tells how much that was.
    pub fn close(mut self) -> Result<Removed> {
        self.kept = true;
        record::remove(&self.name, &self.state_dir)
    }

    /// Leaves the lab standing and returns its state directory, for [`Lab::remove`].
    pub fn keep(mut self) -> PathBuf {
        self.kept = true;
        self.state_dir.clone()
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory with the record and the nodes' state.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Finds a machine by its name: a node, a client or `lan`.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let mut all = self.nodes.iter().chain(&self.clients).chain([&self.lan]);
        all.find(|node| node.name() == name).ok_or_else(|| Error::Absent { what: format!("node {name}") })
    }

    /// The machines of the cluster.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The machines that are not of the cluster.
    pub fn clients(&self) -> &[Node] {
        &self.clients
    }

    /// The namespace that the LAN's bridge is in; it has the gateway's addresses.
    pub fn lan(&self) -> &Node {
        &self.lan
    }

    /// Gives each node a static route to the pods of each other node, where the fabric is not under test.
    pub fn route_pods(&self) -> Result<()> {
        for node in &self.nodes {
            let mut routes = Batch::new();
            for other in self.nodes.iter().filter(|other| other.name() != node.name()) {
                for route in other.pod_cidrs().iter().filter_map(|cidr| static_route(other, *cidr)) {
                    routes.replace_route(&route);
                }
            }
            node.netlink()?.send(&routes)?;
            node.enable_forwarding()?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = record::remove(&self.name, &self.state_dir) {
            tracing::error!(%error, lab = %self.name, "something of a lab is left");
        }
    }
}

/// Returns the way to `cidr` through that one of the node's addresses that is of its family.
fn static_route(node: &Node, cidr: ipnetwork::IpNetwork) -> Option<Route> {
    let gateway =
        node.addresses().iter().map(|prefix| prefix.ip()).find(|ip| ip.is_ipv4() == cidr.is_ipv4())?;
    Some(Route { protocol: PROTOCOL_STATIC, table: TABLE_MAIN, ..Route::to(cidr).via(gateway) })
}

/// A lab on its way.
struct Builder<'a> {
    spec: &'a LabSpec,
    record: Arc<Record>,
    agent: Arc<[OsString]>,
}

impl Builder<'_> {
    fn build(&self) -> Result<Lab> {
        let cgroup = mount::cgroup2_root()?.join(&self.spec.name);
        // What is there already is another lab's: it must not get into this one's record.
        if cgroup.exists() {
            return Err(Error::Standing { name: self.spec.name.clone(), state_dir: cgroup });
        }
        self.record.cgroup(&cgroup)?;
        cgroup::create(&cgroup)?;
        let (lan, bridge) = self.lan(&cgroup)?;
        let machines = self.spec.nodes.iter().chain(&self.spec.clients);
        let mut nodes = machines
            .enumerate()
            .map(|(number, machine)| self.machine(machine, &cgroup, (&lan, bridge, number)))
            .collect::<Result<Vec<_>>>()?;
        let clients = nodes.split_off(self.spec.nodes.len());
        let (name, state_dir) = (self.spec.name.clone(), self.spec.state_dir.clone());
        Ok(Lab { name, state_dir, lan, nodes, clients, kept: false })
    }

    /// Makes the namespace with the bridge that all machines are ports of.
    fn lan(&self, cgroup: &Path) -> Result<(Node, Ifindex)> {
        let spec =
            NodeSpec { name: LAN.to_owned(), addresses: self.spec.gateway.clone(), pod_cidrs: Vec::new() };
        let lan = self.node(&spec, cgroup)?;
        // Frames between machines are none of this namespace's firewall's business.
        lan.run(|| set_bridge_filter("0"))??;
        let mut netlink = lan.netlink()?;
        let bridge = netlink.add_bridge(&BridgeSpec { name: LAN_BRIDGE, ..BridgeSpec::default() })?;
        let mut batch = Batch::new();
        batch.set_up(bridge);
        for prefix in &self.spec.gateway {
            batch.add_address(bridge, *prefix, true);
        }
        netlink.send(&batch)?;
        Ok((lan, bridge))
    }

    /// Makes a machine and connects it to the LAN.
    fn machine(
        &self,
        spec: &NodeSpec,
        cgroup: &Path,
        (lan, bridge, number): (&Node, Ifindex, usize),
    ) -> Result<Node> {
        let node = self.node(spec, cgroup)?;
        node.run(|| set_bridge_filter("1"))??;
        let mut outside = lan.netlink()?;
        let port = outside.add_veth(&VethSpec {
            name: &format!("port{number}"),
            master: Some(bridge),
            peer_name: UPLINK,
            peer_namespace: Some(node.namespace_handle().fd()),
            ..VethSpec::default()
        })?;
        outside.set_up(port)?;
        let mut inside = node.netlink()?;
        let uplink =
            inside.link(UPLINK)?.ok_or_else(|| Error::Absent { what: format!("link {UPLINK}") })?.index;
        let mut batch = Batch::new();
        batch.set_up(uplink);
        for prefix in &spec.addresses {
            batch.add_address(uplink, *prefix, true);
        }
        for gateway in self.gateways_for(spec) {
            let route = Route { protocol: PROTOCOL_STATIC, ..Route::default_via(gateway).dev(uplink) };
            batch.add_route(&route);
        }
        inside.send(&batch)?;
        Ok(node)
    }

    /// The gateways of the families that the machine has addresses of.
    fn gateways_for(&self, spec: &NodeSpec) -> impl Iterator<Item = IpAddr> {
        let gateways = self.spec.gateway.iter().map(|prefix| prefix.ip());
        gateways.filter(|gateway| spec.addresses.iter().any(|own| own.is_ipv4() == gateway.is_ipv4()))
    }

    /// Makes a machine's namespace, cgroup and directory, with its loopback link up.
    fn node(&self, spec: &NodeSpec, lab_cgroup: &Path) -> Result<Node> {
        let path = Path::new(NETNS_DIR).join(format!("{}-{}", self.spec.name, spec.name));
        if path.exists() {
            return Err(Error::Standing { name: self.spec.name.clone(), state_dir: path });
        }
        self.record.namespace(&path)?;
        let namespace = Namespace::create(&path)?;
        let cgroup = lab_cgroup.join(&spec.name);
        cgroup::create(&cgroup)?;
        let state_dir = self.spec.state_dir.join(&spec.name);
        std::fs::create_dir(&state_dir)
            .map_err(|e| Error::io(format!("make directory {}", state_dir.display()), e))?;
        namespace.run(start_loopback)??;
        let log = state_dir.join("agents.log");
        let seat = Seat { namespace, cgroup, log, agent: Arc::clone(&self.agent) };
        let record = Arc::clone(&self.record);
        Ok(Node::new(NodeParts { spec: spec.clone(), state_dir, seat, record }))
    }
}

/// Whether bridged packets pass the firewall, as Services between pods of one node need; absent without br_netfilter.
fn set_bridge_filter(value: &str) -> Result<()> {
    for key in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
        sysctl::write_if_present(key, value)?;
    }
    Ok(())
}

/// Prepares the calling thread's fresh namespace: loopback up, and addresses usable without a second's wait.
pub(crate) fn start_loopback() -> Result<()> {
    for key in ["net/ipv6/conf/all/accept_dad", "net/ipv6/conf/default/accept_dad"] {
        sysctl::write_if_present(key, "0")?;
    }
    // The loopback link is the first of every namespace.
    Ok(netd_kernel::Netlink::open()?.set_up(Ifindex(1))?)
}
