//! The site of the conformance suite ([`site`]), built from namespaces: the node under test with its pods, a
//! second node with pods, and a machine outside.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use ipnetwork::IpNetwork;
use netd_dataplane::conformance::site::{self, Actor};
use netd_kernel::netlink::Route;
use netd_kernel::{process, sysctl};
use netd_lab::agent::{AgentHandle, Connect, Load, Serve};
use netd_lab::traffic::Outcome;
use netd_lab::{Lab, LabSpec, Node, NodeSpec, Place as _, PlainPodSpec, Pod};
use netd_model::{Family, PoolEndpoint};

/// The word after which the test binary is a lab agent.
pub const AGENT: &str = "lab-agent";
/// A port that pods serve by a server of its own: number, TCP, UDP.
type Served = (u16, bool, bool);
/// What every pod but the first serves for the conformance suite.
const ALL_PORTS: &[Served] = &[(8080, true, false), (9090, true, false), (5353, true, true)];
/// What it serves where one port is enough.
const ONE_PORT: &[Served] = &[(8080, true, false)];
/// Names of labs are this, the process number and a tag.
const PREFIX: &str = "nd-";
/// Where labs of this binary have their state, and nobody else's do.
const STATE: &str = "/run/netd-tests";
/// The machine that is no node.
const OUTSIDE: &str = "outside";

/// The standing site; all of it is removed when dropped.
pub struct Bed {
    lab: Lab,
    /// Pods of the node under test, by number.
    pods: Vec<Pod>,
    /// Servers end with their handles.
    _servers: Vec<AgentHandle>,
}

impl Bed {
    /// Builds the site for the whole suite; `tag` tells beds of one process apart.
    ///
    /// # Errors
    /// When this process is not root, or a namespace, link, address, route or server cannot be made.
    pub fn build(tag: &str) -> Result<Self> {
        Self::serving(tag, ALL_PORTS)
    }

    /// Builds the site with pods that serve TCP port 8080 only.
    ///
    /// # Errors
    /// As [`Bed::build`].
    pub fn with_one_port(tag: &str) -> Result<Self> {
        Self::serving(tag, ONE_PORT)
    }

    fn serving(tag: &str, ports: &[Served]) -> Result<Self> {
        let name = format!("{PREFIX}{}-{tag}", std::process::id());
        let program = std::env::current_exe().context("find this program")?;
        let machine = |name: &str, address: fn(Family) -> IpAddr, pods: Option<fn(Family) -> IpNetwork>| {
            let with_length = |family| prefix(address(family), site::lan(family).prefix());
            let addresses = Family::ALL.map(with_length).into_iter().collect::<Result<_>>()?;
            let pod_cidrs = pods.map(|cidr| Family::ALL.map(cidr).to_vec()).unwrap_or_default();
            anyhow::Ok(NodeSpec { name: name.to_owned(), addresses, pod_cidrs })
        };
        let gateways = Family::ALL.map(|family| {
            let gateway = site::lan(family).iter().nth(1).context("a LAN has room for a gateway")?;
            prefix(gateway, site::lan(family).prefix())
        });
        let spec = LabSpec {
            state_dir: Path::new(STATE).join(&name),
            name,
            nodes: vec![
                machine(site::NODE, site::node, Some(site::node_cidr))?,
                machine(site::OTHER_NODE, site::other_node, Some(site::other_node_cidr))?,
            ],
            clients: vec![machine(OUTSIDE, site::outside, None)?],
            gateway: gateways.into_iter().collect::<Result<_>>()?,
            agent: vec![program.into_os_string(), AGENT.into()],
        };
        let lab = Lab::create(&spec).context("build the lab (needs root)")?;
        lab.route_pods().context("route pods between nodes")?;
        route_services(&lab)?;
        lab.node(site::NODE)?.run(stop_redirects)??;

        let node = lab.node(site::NODE)?;
        let pods =
            (0..site::PODS).map(|number| add_pod(node, number, site::pod)).collect::<Result<Vec<_>>>()?;
        let other = lab.node(site::OTHER_NODE)?;
        let remote = (1..=site::REMOTE_PODS).map(|number| add_pod(other, number, site::remote_pod));
        let remote = remote.collect::<Result<Vec<_>>>()?;
        let servers =
            pods.iter().skip(1).chain(&remote).map(|pod| serve(pod, ports)).collect::<Result<Vec<_>>>()?;
        Ok(Self { lab, pods, _servers: servers.into_iter().flatten().collect() })
    }

    /// The node under test.
    ///
    /// # Errors
    /// Never in a bed that was built.
    pub fn node(&self) -> Result<&Node> {
        Ok(self.lab.node(site::NODE)?)
    }

    /// Makes connections as `actor`, from a process in its namespace and cgroup.
    ///
    /// # Errors
    /// When there is no such actor or its agent fails; a connection that fails is an [`Outcome`].
    pub fn connect(&self, actor: Actor, connect: Connect) -> Result<Vec<Outcome>> {
        Ok(match actor {
            Actor::Pod(number) => self.pod(number)?.connect(connect)?,
            Actor::Host => self.node()?.connect(connect)?,
            Actor::Outside => self.lab.node(OUTSIDE)?.connect(connect)?,
        })
    }

    /// Starts connecting at a steady rate as `actor`.
    ///
    /// # Errors
    /// When there is no such actor or its agent fails.
    pub fn load(&self, actor: Actor, load: Load) -> Result<AgentHandle> {
        Ok(match actor {
            Actor::Pod(number) => self.pod(number)?.load(load)?,
            Actor::Host => self.node()?.load(load)?,
            Actor::Outside => self.lab.node(OUTSIDE)?.load(load)?,
        })
    }

    fn pod(&self, number: u8) -> Result<&Pod> {
        self.pods.get(usize::from(number)).with_context(|| format!("no pod {number} in the bed"))
    }
}

/// Removes the labs of earlier runs that were killed.
///
/// # Errors
/// When something of such a lab cannot be removed.
pub fn remove_leftovers() -> Result<()> {
    let Ok(entries) = std::fs::read_dir(STATE) else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse().ok());
        if pid.is_some_and(|pid| !process::exists(pid)) {
            Lab::remove(&name, &entry.path())
                .with_context(|| format!("remove the lab {name} of an earlier run"))?;
        }
    }
    Ok(())
}

/// The name by which the server behind an endpoint answers.
pub fn server_name(endpoint: &PoolEndpoint) -> Option<String> {
    let is_at = |pod: fn(u8, Family) -> IpAddr, number| {
        Family::ALL.into_iter().any(|family| pod(number, family) == endpoint.address)
    };
    let local = (0..site::PODS).find(|number| is_at(site::pod, *number));
    let remote = (0..=site::REMOTE_PODS).find(|number| is_at(site::remote_pod, *number));
    let pod = match (local, remote) {
        (Some(number), _) => pod_name(site::NODE, number),
        (None, Some(number)) => pod_name(site::OTHER_NODE, number),
        (None, None) => return None,
    };
    Some(format!("{pod}:{}", endpoint.port))
}

fn pod_name(node: &str, number: u8) -> String {
    format!("{node}-pod-{number}")
}

fn add_pod(node: &Node, number: u8, address: fn(u8, Family) -> IpAddr) -> Result<Pod> {
    let addresses = Family::ALL.map(|family| address(number, family)).to_vec();
    let name = pod_name(node.name(), number);
    let spec = PlainPodSpec { name: format!("p{number}"), namespace: "default".to_owned(), addresses };
    node.add_plain_pod(&spec).with_context(|| format!("add {name}"))
}

fn serve(pod: &Pod, ports: &[Served]) -> Result<Vec<AgentHandle>> {
    let number = pod.name().trim_start_matches('p');
    let servers = ports.iter().map(|&(port, tcp, udp)| {
        let only = |wanted: bool| if wanted { vec![port] } else { Vec::new() };
        let name = format!("{}-pod-{number}:{port}", pod.node());
        pod.serve(Serve { name: name.clone(), tcp: only(tcp), udp: only(udp), stay: false })
            .with_context(|| format!("serve {name}"))
    });
    servers.collect()
}

/// Leads Service addresses to the node under test, and the other node's answers to the outside back through
/// it: flows whose source is kept must return the way they came.
fn route_services(lab: &Lab) -> Result<()> {
    let mut outside = lab.node(OUTSIDE)?.netlink()?;
    let mut other = lab.node(site::OTHER_NODE)?.netlink()?;
    for family in Family::ALL {
        for services in [site::service_cidr(family), site::vip_cidr(family)] {
            outside.add_route(&Route::to(services).via(site::node(family)))?;
        }
        other.add_route(&Route::to(IpNetwork::from(site::outside(family))).via(site::node(family)))?;
    }
    Ok(())
}

/// The node is a router on a stick here. Its redirects would lead clients past it, and they use up the
/// rate at which it may send the ICMP errors that are expected of it (`ip_rt_send_redirect`).
fn stop_redirects() -> Result<()> {
    for link in ["all", site::UPLINK] {
        sysctl::write(&format!("net/ipv4/conf/{link}/send_redirects"), "0")?;
    }
    Ok(())
}

fn prefix(address: IpAddr, length: u8) -> Result<IpNetwork> {
    IpNetwork::new(address, length).with_context(|| format!("{address}/{length}"))
}
