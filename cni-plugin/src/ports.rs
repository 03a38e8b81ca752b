//! Ports of the node that lead to a pod: the capability `portMappings`.

use std::net::IpAddr;

use netd_ipam::{Lease, Owner};
use netd_kernel::conntrack::{Conntrack, TrackedFlow, Transport};
use netd_kernel::hostport::{self, HostPort};
use netd_kernel::netlink::Family;
use netd_kernel::{Netlink, sysctl};

use crate::config::{Config, PortWish};
use crate::error::{CniError, Code};
use crate::naming;
use crate::node;

/// Makes the wished ports lead to the pod.
///
/// # Errors
/// Code 101 when another pod has one of them, 7 when the pod has no address of the family, 106 when the kernel refuses.
/// Some may be left then: see [`remove`].
pub fn add(netlink: &mut Netlink, config: &Config, lease: &Lease) -> Result<(), CniError> {
    if config.wishes.ports.is_empty() {
        return Ok(());
    }
    let ports = resolve(&config.wishes.ports, lease)?;
    let failed = |e| CniError::new(Code::HostPort, "the host ports cannot be installed").because(e);
    let from_loopback = |port: &HostPort| port.to.is_ipv4() && port.host_ip.is_none_or(|ip| ip.is_loopback());
    if ports.iter().any(from_loopback) {
        let link = node::incoming_link(config, &lease.owner);
        sysctl::write(&format!("net/ipv4/conf/{link}/route_localnet"), "1").map_err(failed)?;
    }
    match hostport::add(&key(&config.network, &lease.owner), &ports).map_err(failed)? {
        Ok(()) => {}
        Err(conflict) => return Err(taken(netlink, &conflict)),
    }
    // What came to the port before would go on past the pod (plugin portmap does the same).
    let local: Vec<IpAddr> =
        netlink.addresses(None).map_err(failed)?.iter().map(|address| address.prefix.ip()).collect();
    let stale = |flow: &TrackedFlow| local.contains(&flow.destination.ip());
    forget(&ports, stale).map_err(failed)
}

/// Takes all ports of an attachment away, with the flows over them; none is success.
///
/// # Errors
/// When the kernel refuses; nothing is there when it has no nf_tables.
pub fn remove(network: &str, owner: &Owner) -> netd_kernel::Result<()> {
    remove_key(&key(network, owner))
}

/// Takes the ports away whose attachment is none of `valid` (names of host ends), and returns what failed.
pub fn collect(network: &str, valid: &std::collections::BTreeSet<String>) -> Vec<netd_kernel::Error> {
    let listed = match hostport::list() {
        Ok(listed) => listed,
        Err(error) => return vec![error],
    };
    let garbage =
        |key: &str| key.split_once(' ').is_some_and(|(link, of)| of == network && !valid.contains(link));
    let keys: std::collections::BTreeSet<String> =
        listed.into_iter().map(|(key, _)| key).filter(|key| garbage(key)).collect();
    keys.iter().filter_map(|key| remove_key(key).err()).collect()
}

/// Says which of the wished ports do not lead to the pod, a sentence each.
pub fn faults(config: &Config, lease: &Lease) -> Result<Vec<String>, CniError> {
    if config.wishes.ports.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |e| CniError::new(Code::HostPort, "the host ports cannot be read").because(e);
    let wanted = resolve(&config.wishes.ports, lease)?;
    let listed = hostport::list().map_err(failed)?;
    let key = key(&config.network, &lease.owner);
    let missing =
        wanted.iter().filter(|port| !listed.iter().any(|(owner, found)| *owner == key && found == *port));
    let mut faults: Vec<String> =
        missing.map(|port| format!("host port {} no longer leads to {}", port.port, port.to)).collect();
    if !hostport::is_intact().map_err(failed)? {
        faults.push(format!("the host port rules are not as installed: table {}", hostport::TABLE));
    }
    Ok(faults)
}

/// Whose ports they are: found again by the attachment alone, and by its network.
fn key(network: &str, owner: &Owner) -> String {
    format!("{} {network}", naming::host_link(owner))
}

fn remove_key(key: &str) -> netd_kernel::Result<()> {
    let removed = match hostport::remove(key) {
        // A kernel without nf_tables has no ports to remove.
        Err(error) if matches!(error.errno(), Some(libc_errno::EPROTONOSUPPORT | libc_errno::EINVAL)) => {
            return Ok(());
        }
        other => other?,
    };
    forget(&removed, |flow| removed.iter().any(|port| port.to.ip() == flow.answers.ip()))
}

/// Error numbers of a kernel without nfnetlink or nf_tables (`asm-generic/errno-base.h`, `errno.h`).
mod libc_errno {
    pub(super) const EINVAL: i32 = 22;
    pub(super) const EPROTONOSUPPORT: i32 = 93;
}

/// Forgets flows of datagrams over the ports: they have no end, and keep the way that their first packet took.
fn forget(ports: &[HostPort], stale: impl Fn(&TrackedFlow) -> bool) -> netd_kernel::Result<()> {
    for family in Family::ALL {
        let numbers: Vec<u16> = ports
            .iter()
            .filter(|port| port.transport == Transport::Udp && Family::of(port.to.ip()) == family)
            .map(|port| port.port)
            .collect();
        if numbers.is_empty() {
            continue;
        }
        let mut conntrack = Conntrack::open()?;
        let over = |flow: &TrackedFlow| {
            flow.transport == Transport::Udp && numbers.contains(&flow.destination.port()) && stale(flow)
        };
        for flow in conntrack.flows(family, over)? {
            conntrack.forget(&flow)?;
        }
    }
    Ok(())
}

/// One port a family of the pod, or of the host address that is wished.
fn resolve(wishes: &[PortWish], lease: &Lease) -> Result<Vec<HostPort>, CniError> {
    let mut ports = Vec::new();
    for wish in wishes {
        let before = ports.len();
        for v4 in [true, false] {
            let fits = wish.host_ip.is_none_or(|ip| ip.is_ipv4() == v4);
            let pod = lease.addresses.iter().find(|address| address.is_ipv4() == v4);
            if let Some(pod) = pod.filter(|_| fits) {
                ports.push(HostPort {
                    transport: wish.transport,
                    host_ip: wish.host_ip.filter(|ip| !ip.is_unspecified()),
                    port: wish.host_port,
                    to: (*pod, wish.container_port).into(),
                });
            }
        }
        if ports.len() == before {
            let msg = format!("the pod has no address of the family of host port {}", wish.host_port);
            return Err(CniError::new(Code::InvalidConfig, msg));
        }
    }
    Ok(ports)
}

fn taken(netlink: &mut Netlink, conflict: &hostport::Conflict) -> CniError {
    let link = conflict.owner.split(' ').next().unwrap_or_default();
    let whose = netlink.link(link).ok().flatten().and_then(|link| link.alias);
    let whose = whose.unwrap_or_else(|| conflict.owner.clone());
    CniError::new(Code::Exists, format!("host port {} is taken", conflict.port.port))
        .because(format!("it leads to {} ({whose})", conflict.port.to))
        .and("a port of the node leads to one pod only")
}
