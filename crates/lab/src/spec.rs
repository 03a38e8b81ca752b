//! What a lab is to be made of.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;

use crate::cni::CniRuntime;
use crate::{Error, Result};

/// The longest name of a lab, node or pod, in bytes: their namespaces and cgroups are named by all three.
const NAME_MAX: usize = 40;
/// The name of the LAN's own namespace among the machines.
pub(crate) const LAN: &str = "lan";

/// A lab to build.
#[derive(Debug, Clone)]
pub struct LabSpec {
    /// Its name, unique on this machine: small letters, digits and hyphens, at most 40 bytes.
    pub name: String,
    /// The directory for its record and its nodes' state, made if absent and removed with the lab.
    pub state_dir: PathBuf,
    /// The machines of the cluster.
    pub nodes: Vec<NodeSpec>,
    /// Machines on the LAN that are not of the cluster.
    pub clients: Vec<NodeSpec>,
    /// Addresses of the LAN's own namespace; if there are any, every machine's default route goes there.
    pub gateway: Vec<IpNetwork>,
    /// The program, with its first arguments, that runs [`crate::agent::main`]; empty when no agents are needed.
    pub agent: Vec<OsString>,
}

/// A machine on the LAN.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// Its name, unique in the lab: small letters, digits and hyphens, at most 40 bytes.
    pub name: String,
    /// Its addresses on the LAN, each with the LAN's prefix length.
    pub addresses: Vec<IpNetwork>,
    /// The node's shares of the pods' networks.
    pub pod_cidrs: Vec<IpNetwork>,
}

/// A pod to be wired by a CNI plugin.
#[derive(Debug, Clone)]
pub struct PodSpec<'a> {
    /// Its name, unique on its node.
    pub name: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Who wires it.
    pub cni: &'a CniRuntime,
}

/// A pod to be wired without a plugin: a veth, the bridge [`crate::PLAIN_BRIDGE`] and fixed addresses.
#[derive(Debug, Clone)]
pub struct PlainPodSpec {
    /// Its name, unique on its node.
    pub name: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its addresses, out of the node's pod CIDRs; if empty, the next free one of each.
    pub addresses: Vec<IpAddr>,
}

impl PlainPodSpec {
    /// Returns a pod in the namespace `default` with the next free addresses.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), namespace: "default".to_owned(), addresses: Vec::new() }
    }
}

impl LabSpec {
    pub(crate) fn check(&self) -> Result<()> {
        check_name("lab", &self.name)?;
        if !self.state_dir.is_absolute() {
            return Err(Error::Invalid { what: format!("state directory {}", self.state_dir.display()) });
        }
        let mut seen = vec![LAN];
        for machine in self.nodes.iter().chain(&self.clients) {
            check_name("node", &machine.name)?;
            if seen.contains(&machine.name.as_str()) {
                return Err(Error::Invalid { what: format!("node name {:?}: taken", machine.name) });
            }
            seen.push(&machine.name);
        }
        Ok(())
    }
}

/// Refuses names that could not be part of a path, or of a namespace's name that people type.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > NAME_MAX || name.starts_with('-') || !name.bytes().all(good) {
        return Err(Error::Invalid { what: format!("{what} name {name:?}") });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_their_place_are_refused() {
        for name in ["", "-x", "a/b", "..", "A", "a b", &"x".repeat(41)] {
            assert!(check_name("lab", name).is_err(), "{name:?}");
        }
        check_name("lab", "nd-1-x").unwrap();
    }
}
