//! Pods of a lab.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use netd_kernel::{Ifindex, Namespace, cgroup};

use crate::cni::Attached;
use crate::node::{NodeRef, first_v4, first_v6};
use crate::place::{Place, Seat};
use crate::{Error, Result};

/// A pod; a cheap handle. Dropping it leaves the pod, which ends with [`Pod::remove`] or with its lab.
#[derive(Debug, Clone)]
pub struct Pod {
    inner: Arc<Inner>,
}

/// What a pod is made of.
#[derive(Debug)]
pub(crate) struct PodParts {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) node: NodeRef,
    pub(crate) seat: Seat,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) wiring: Wiring,
}

/// Who connected a pod, and so who disconnects it.
#[derive(Debug)]
pub(crate) enum Wiring {
    /// The lab, to this port of the node's bridge.
    Plain { port: Ifindex },
    /// A CNI plugin.
    Cni(Attached),
}

#[derive(Debug)]
struct Inner {
    parts: PodParts,
    removed: Mutex<bool>,
}

impl Pod {
    pub(crate) fn new(parts: PodParts) -> Self {
        Self { inner: Arc::new(Inner { parts, removed: Mutex::new(false) }) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.parts.name
    }

    /// Its Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.inner.parts.namespace
    }

    /// Its node's name.
    pub fn node(&self) -> &str {
        self.inner.parts.node.name()
    }

    /// Its addresses, in the order the plugin gave them.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.inner.parts.addresses
    }

    /// Its IPv4 address.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        first_v4(self.addresses().iter().copied())
    }

    /// Its IPv6 address.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        first_v6(self.addresses().iter().copied())
    }

    /// What the plugin answered to ADD; `None` for a plain pod.
    pub fn cni_result(&self) -> Option<&serde_json::Value> {
        match &self.inner.parts.wiring {
            Wiring::Plain { .. } => None,
            Wiring::Cni(attached) => Some(attached.result()),
        }
    }

    /// Has the plugin check that the pod is wired as it should be; a plain pod is.
    pub fn check(&self) -> Result<()> {
        match &self.inner.parts.wiring {
            Wiring::Plain { .. } => Ok(()),
            Wiring::Cni(attached) => attached.check(self.inner.parts.node.node()?.seat()),
        }
    }

    /// Ends the pod as a container runtime does: processes, DEL, namespace; a second call does nothing.
    ///
    /// # Errors
    /// The plugin's refusal; the namespace and the cgroup are removed nevertheless.
    pub fn remove(&self) -> Result<()> {
        let mut removed = self.inner.removed.lock().unwrap_or_else(PoisonError::into_inner);
        if *removed {
            return Ok(());
        }
        let parts = &self.inner.parts;
        let node = parts.node.node()?;
        let killed = cgroup::remove(&parts.seat.cgroup).map(drop).map_err(Error::from);
        let unwired = match &parts.wiring {
            Wiring::Plain { port } => unplug(&node, *port),
            Wiring::Cni(attached) => attached.detach(node.seat()),
        };
        let unnamed = Namespace::remove(parts.seat.namespace.path()).map_err(Error::from);
        *removed = true;
        node.forget(&parts.name);
        unwired.and(killed).and(unnamed)
    }
}

impl Place for Pod {
    fn seat(&self) -> &Seat {
        &self.inner.parts.seat
    }
}

/// Deletes a plain pod's link; it may have gone with the pod's namespace.
fn unplug(node: &crate::Node, port: Ifindex) -> Result<()> {
    match node.netlink()?.delete_link(port) {
        Err(error) if !error.is_not_found() => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}
