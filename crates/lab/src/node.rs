//! Machines of a lab.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ipnetwork::IpNetwork;
use netd_kernel::netlink::{Batch, BridgeSpec, Route, VethSpec};
use netd_kernel::netns::NETNS_DIR;
use netd_kernel::{Ifindex, Mac, Namespace, cgroup, sysctl};

use crate::lab::start_loopback;
use crate::place::{Place, Seat};
use crate::pod::{Pod, PodParts, Wiring};
use crate::record::{POD_CGROUP, Record};
use crate::spec::{NodeSpec, PlainPodSpec, PodSpec, check_name};
use crate::{Error, Result};

/// The bridge of pods that no plugin wires.
pub const PLAIN_BRIDGE: &str = "lab0";
/// A pod's link.
pub(crate) const POD_LINK: &str = "eth0";

/// A machine on the LAN; a cheap handle.
#[derive(Debug, Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

/// What a node is made of.
#[derive(Debug)]
pub(crate) struct NodeParts {
    pub(crate) spec: NodeSpec,
    pub(crate) state_dir: PathBuf,
    pub(crate) seat: Seat,
    pub(crate) record: Arc<Record>,
}

#[derive(Debug)]
struct Inner {
    parts: NodeParts,
    pods: Mutex<Vec<Pod>>,
}

/// A node as its pods know it: a pod must not keep its node, and so its namespace, alive.
#[derive(Debug, Clone)]
pub(crate) struct NodeRef {
    name: String,
    inner: Weak<Inner>,
}

impl NodeRef {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Finds the node, if its lab still stands.
    pub(crate) fn node(&self) -> Result<Node> {
        let inner =
            self.inner.upgrade().ok_or_else(|| Error::Absent { what: format!("node {}", self.name) })?;
        Ok(Node { inner })
    }
}

impl Node {
    pub(crate) fn new(parts: NodeParts) -> Self {
        Self { inner: Arc::new(Inner { parts, pods: Mutex::default() }) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.parts.spec.name
    }

    /// Its addresses on the LAN.
    pub fn addresses(&self) -> &[IpNetwork] {
        &self.inner.parts.spec.addresses
    }

    /// Its first IPv4 address.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        first_v4(self.addresses().iter().map(|prefix| prefix.ip()))
    }

    /// Its first IPv6 address.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        first_v6(self.addresses().iter().map(|prefix| prefix.ip()))
    }

    /// Its shares of the pods' networks.
    pub fn pod_cidrs(&self) -> &[IpNetwork] {
        &self.inner.parts.spec.pod_cidrs
    }

    /// Its directory, for whatever runs on it.
    pub fn state_dir(&self) -> &Path {
        &self.inner.parts.state_dir
    }

    /// Its pods.
    pub fn pods(&self) -> Vec<Pod> {
        self.lock_pods().clone()
    }

    /// Makes a pod and has it wired by the plugin, called in this node's namespace as a container runtime does.
    ///
    /// When ADD fails, DEL is called and the pod's namespace removed.
    pub fn add_pod(&self, spec: &PodSpec<'_>) -> Result<Pod> {
        let seat = self.make_seat(&spec.name)?;
        let made = spec.cni.attach(&self.inner.parts.seat, &seat, spec);
        match made {
            Ok(attached) => {
                let addresses = attached.addresses();
                Ok(self.enlist((&spec.name, &spec.namespace), seat, (addresses, Wiring::Cni(attached))))
            }
            Err(error) => {
                self.drop_seat(&seat);
                Err(error)
            }
        }
    }

    /// Makes a pod without a plugin: a veth to the bridge [`PLAIN_BRIDGE`], fixed addresses, a default route to the
    /// bridge; the node forwards packets from then on.
    pub fn add_plain_pod(&self, spec: &PlainPodSpec) -> Result<Pod> {
        let addresses = self.plain_addresses(spec)?;
        let seat = self.make_seat(&spec.name)?;
        match self.wire_plain(&seat, &addresses) {
            Ok(port) => {
                let ips = addresses.iter().map(|prefix| prefix.ip()).collect();
                Ok(self.enlist((&spec.name, &spec.namespace), seat, (ips, Wiring::Plain { port })))
            }
            Err(error) => {
                self.drop_seat(&seat);
                Err(error)
            }
        }
    }

    /// Makes the node forward packets, as a CNI plugin does.
    pub(crate) fn enable_forwarding(&self) -> Result<()> {
        self.run(|| -> Result<()> {
            sysctl::write("net/ipv4/ip_forward", "1")?;
            sysctl::write_if_present("net/ipv6/conf/all/forwarding", "1")?;
            Ok(())
        })?
    }

    fn downgrade(&self) -> NodeRef {
        NodeRef { name: self.name().to_owned(), inner: Arc::downgrade(&self.inner) }
    }

    pub(crate) fn forget(&self, pod: &str) {
        self.lock_pods().retain(|other| other.name() != pod);
    }

    fn lock_pods(&self) -> MutexGuard<'_, Vec<Pod>> {
        self.inner.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enlist(&self, (name, namespace): (&str, &str), seat: Seat, wired: (Vec<IpAddr>, Wiring)) -> Pod {
        let (addresses, wiring) = wired;
        let (name, namespace) = (name.to_owned(), namespace.to_owned());
        let pod = Pod::new(PodParts { name, namespace, node: self.downgrade(), seat, addresses, wiring });
        self.lock_pods().push(pod.clone());
        pod
    }

    /// Makes a pod's namespace and cgroup.
    fn make_seat(&self, name: &str) -> Result<Seat> {
        check_name("pod", name)?;
        let parts = &self.inner.parts;
        let own = parts.seat.namespace.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let path = Path::new(NETNS_DIR).join(format!("{own}-{name}"));
        if path.exists() {
            return Err(Error::Invalid { what: format!("pod name {name:?}: taken on {}", self.name()) });
        }
        parts.record.namespace(&path)?;
        let namespace = Namespace::create(&path)?;
        let cgroup = parts.seat.cgroup.join(format!("{POD_CGROUP}{name}"));
        let agent = Arc::clone(&parts.seat.agent);
        let seat = Seat { namespace, cgroup, log: parts.seat.log.clone(), agent };
        let prepared = cgroup::create(&seat.cgroup).map_err(Error::from);
        let prepared = prepared.and_then(|_| seat.namespace.run(start_loopback)?);
        match prepared {
            Ok(()) => Ok(seat),
            Err(error) => {
                self.drop_seat(&seat);
                Err(error)
            }
        }
    }

    /// Takes back what [`Node::make_seat`] made, for a pod that failed; the lab's end takes what is left.
    fn drop_seat(&self, seat: &Seat) {
        let removed = [Namespace::remove(seat.namespace.path()), cgroup::remove(&seat.cgroup).map(drop)];
        for error in removed.into_iter().filter_map(std::result::Result::err) {
            tracing::warn!(%error, "something of a pod that failed is left");
        }
    }

    /// Connects a pod to the bridge and returns the bridge's port.
    fn wire_plain(&self, seat: &Seat, addresses: &[IpNetwork]) -> Result<Ifindex> {
        let bridge = self.ensure_bridge()?;
        let mut outside = self.netlink()?;
        let mac = addresses.iter().find_map(|prefix| match prefix.ip() {
            IpAddr::V4(v4) => Some(Mac::from_ipv4(v4)),
            IpAddr::V6(_) => None,
        });
        let name = port_name(addresses);
        let port = outside.add_veth(&VethSpec {
            name: &name,
            master: Some(bridge),
            peer_name: POD_LINK,
            peer_mac: mac,
            peer_namespace: Some(seat.namespace.fd()),
            ..VethSpec::default()
        })?;
        let mut batch = Batch::new();
        outside.send(batch.set_up(port).set_hairpin(port, true))?;
        let mut inside = netd_kernel::Netlink::open_in(&seat.namespace)?;
        let link =
            inside.link(POD_LINK)?.ok_or_else(|| Error::Absent { what: format!("link {POD_LINK}") })?.index;
        let mut batch = Batch::new();
        batch.set_up(link);
        for prefix in addresses {
            batch.add_address(link, *prefix, true);
        }
        for gateway in addresses.iter().filter_map(|prefix| host(*prefix, 1)) {
            batch.add_route(&Route::default_via(gateway).dev(link));
        }
        inside.send(&batch)?;
        Ok(port)
    }

    /// Makes the bridge with the first address of each pod CIDR, if it is not there.
    fn ensure_bridge(&self) -> Result<Ifindex> {
        let _one_at_a_time = self.lock_pods();
        let mut netlink = self.netlink()?;
        if let Some(link) = netlink.link(PLAIN_BRIDGE)? {
            return Ok(link.index);
        }
        self.enable_forwarding()?;
        let bridge = netlink.add_bridge(&BridgeSpec { name: PLAIN_BRIDGE, ..BridgeSpec::default() })?;
        let mut batch = Batch::new();
        // A fixed MAC, as the kernel's choice changes with the ports and pods remember it.
        batch.set_mac(bridge, Mac([0x02, 0x42, 0, 0, 0, 1])).set_up(bridge);
        for cidr in self.pod_cidrs() {
            let gateway = host(*cidr, 1).and_then(|ip| IpNetwork::new(ip, cidr.prefix()).ok());
            if let Some(prefix) = gateway {
                batch.add_address(bridge, prefix, true);
            }
        }
        netlink.send(&batch)?;
        Ok(bridge)
    }

    /// The pod's addresses with the prefix length of their CIDR: those asked for, or the next free ones.
    fn plain_addresses(&self, spec: &PlainPodSpec) -> Result<Vec<IpNetwork>> {
        if self.pod_cidrs().is_empty() {
            return Err(Error::Invalid { what: format!("pod on {}: the node has no pod CIDR", self.name()) });
        }
        let taken: Vec<IpAddr> = self.pods().iter().flat_map(|pod| pod.addresses().to_vec()).collect();
        if spec.addresses.is_empty() {
            return self.pod_cidrs().iter().map(|cidr| next_free(*cidr, &taken)).collect();
        }
        let in_cidr = |ip: &IpAddr| {
            let cidr = self.pod_cidrs().iter().find(|cidr| cidr.contains(*ip));
            let prefix =
                cidr.filter(|_| !taken.contains(ip)).and_then(|c| IpNetwork::new(*ip, c.prefix()).ok());
            prefix.ok_or_else(|| Error::Invalid { what: format!("pod address {ip} on {}", self.name()) })
        };
        spec.addresses.iter().map(in_cidr).collect()
    }
}

impl Place for Node {
    fn seat(&self) -> &Seat {
        &self.inner.parts.seat
    }
}

pub(crate) fn first_v4(mut ips: impl Iterator<Item = IpAddr>) -> Option<Ipv4Addr> {
    ips.find_map(|ip| match ip {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    })
}

pub(crate) fn first_v6(mut ips: impl Iterator<Item = IpAddr>) -> Option<Ipv6Addr> {
    ips.find_map(|ip| match ip {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => Some(v6),
    })
}

/// Returns the `number`-th address of a network; `None` when it is not that large.
fn host(network: IpNetwork, number: u32) -> Option<IpAddr> {
    let ip = match network.network() {
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits().checked_add(number)?)),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits().checked_add(u128::from(number))?)),
    };
    network.contains(ip).then_some(ip)
}

/// Finds the first address from the second on that no pod has; the last of an IPv4 network is its broadcast address.
fn next_free(cidr: IpNetwork, taken: &[IpAddr]) -> Result<IpNetwork> {
    let broadcast = cidr.is_ipv4().then(|| cidr.broadcast());
    (2..u32::from(u16::MAX))
        .map_while(|number| host(cidr, number))
        .find(|ip| !taken.contains(ip) && Some(*ip) != broadcast)
        .and_then(|ip| IpNetwork::new(ip, cidr.prefix()).ok())
        .ok_or_else(|| Error::Invalid { what: format!("pod CIDR {cidr}: full") })
}

/// A name for the bridge's port that tells the pod's address: `lab` and its last bytes in hexadecimal digits.
fn port_name(addresses: &[IpNetwork]) -> String {
    match addresses.first().map(|prefix| prefix.ip()) {
        Some(IpAddr::V4(v4)) => format!("lab{:08x}", v4.to_bits()),
        Some(IpAddr::V6(v6)) => format!("lab{:011x}", v6.to_bits() & 0xfff_ffff_ffff),
        None => "lab-none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_counted_from_the_network() {
        assert_eq!(host(net("172.16.1.7/24"), 1), Some("172.16.1.1".parse().unwrap()));
        assert_eq!(host(net("fd00:1::/64"), 2), Some("fd00:1::2".parse().unwrap()));
        assert_eq!(host(net("172.16.1.0/30"), 4), None);
    }

    #[test]
    fn the_next_free_address_is_neither_taken_nor_broadcast() {
        let cidr = net("172.16.1.0/30");
        assert_eq!(next_free(cidr, &[]).unwrap(), net("172.16.1.2/30"));
        assert!(next_free(cidr, &["172.16.1.2".parse().unwrap()]).is_err());
    }

    #[test]
    fn a_ports_name_fits() {
        for address in ["255.255.255.255/24", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/64"] {
            assert!(port_name(&[net(address)]).len() <= 15);
        }
    }
}
