//! Who has which address.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use netd_kernel::conntrack::Transport;

/// One attachment: a container and the interface in it, the key of the CNI spec.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The runtime's container (sandbox) id.
    pub container: String,
    /// The interface inside the container.
    pub interface: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {} interface {}", self.container, self.interface)
    }
}

/// The pod behind an attachment, as far as the runtime told.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pod {
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; empty when the runtime did not tell.
    pub uid: String,
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Addresses in the hands of one owner: at most one a pool, all or none of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lease {
    /// Who has them.
    pub owner: Owner,
    /// For which pod; `None` outside Kubernetes and after a rebuild.
    pub pod: Option<Pod>,
    /// The addresses, in the order of the pools they came from.
    pub addresses: Vec<IpAddr>,
    /// Ports of the node that lead to the pod; none after a rebuild.
    pub ports: Vec<PortMapping>,
    /// The bridge that the pod hangs on; `None` after a rebuild, and where there is none.
    pub bridge: Option<String>,
}

/// A port of the node that leads to one of the pod's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortMapping {
    /// The protocol.
    pub transport: Transport,
    /// The port of the node.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// The one address of the node that counts, or the unspecified one of the one family that counts.
    pub host_ip: Option<IpAddr>,
}

/// What somebody asks for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Who is to have the addresses.
    pub owner: &'a Owner,
    /// For which pod.
    pub pod: Option<&'a Pod>,
    /// Addresses that are to be had, at most one of a pool.
    pub wanted: &'a [IpAddr],
    /// Ports of the node that are to lead to the pod, to be remembered with the lease.
    pub ports: &'a [PortMapping],
    /// The bridge that the pod is to hang on, to be remembered with the lease.
    pub bridge: Option<&'a str>,
}

impl<'a> Request<'a> {
    /// A request without wishes.
    pub fn of(owner: &'a Owner, pod: Option<&'a Pod>) -> Self {
        Self { owner, pod, wanted: &[], ports: &[], bridge: None }
    }

    /// The lease that it is to become.
    pub(crate) fn lease(&self, addresses: Vec<IpAddr>) -> Lease {
        Lease {
            owner: self.owner.clone(),
            pod: self.pod.cloned(),
            addresses,
            ports: self.ports.to_vec(),
            bridge: self.bridge.map(str::to_owned),
        }
    }
}

/// All leases of a network at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leases {
    leases: Vec<Lease>,
    by_address: HashMap<IpAddr, usize>,
}

impl Leases {
    /// The lease that holds `address`.
    pub fn at(&self, address: IpAddr) -> Option<&Lease> {
        self.by_address.get(&address).and_then(|&slot| self.leases.get(slot))
    }

    /// The pod that has `address`.
    pub fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        self.at(address)?.pod.as_ref()
    }

    /// Every lease, in the order they were taken.
    pub fn iter(&self) -> std::slice::Iter<'_, Lease> {
        self.leases.iter()
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether nobody has an address.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }
}

impl FromIterator<Lease> for Leases {
    fn from_iter<T: IntoIterator<Item = Lease>>(leases: T) -> Self {
        let leases: Vec<Lease> = leases.into_iter().collect();
        let by_address = leases
            .iter()
            .enumerate()
            .flat_map(|(slot, lease)| lease.addresses.iter().map(move |&address| (address, slot)))
            .collect();
        Self { leases, by_address }
    }
}

impl<'a> IntoIterator for &'a Leases {
    type Item = &'a Lease;
    type IntoIter = std::slice::Iter<'a, Lease>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
