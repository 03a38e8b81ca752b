//! Who has which address.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

/// One attachment: a container and the interface in it, the key of the CNI spec.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Who has them.
    pub owner: Owner,
    /// For which pod; `None` outside Kubernetes and after a rebuild.
    pub pod: Option<Pod>,
    /// The addresses, in the order of the pools they came from.
    pub addresses: Vec<IpAddr>,
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
