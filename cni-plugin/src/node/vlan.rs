//! VLANs of a bridge, and the node's own address in one of them.

use netd_kernel::Netlink;
use netd_kernel::link::{Ifindex, Link};
use netd_kernel::netlink::{Batch, PortFlags, VethSpec};

use super::wiring;
use crate::config::{Config, Mode, Vlans};
use crate::error::{CniError, Code};
use crate::naming;

/// What a kernel without `CONFIG_BRIDGE_VLAN_FILTERING` answers (`EOPNOTSUPP`, `asm-generic/errno.h`).
const NOT_SUPPORTED: i32 = 95;
/// The longest name of a link in bytes.
const NAME_MAX: usize = 15;

/// Whether the node's addresses are in a VLAN, and so not on the bridge itself.
pub(super) fn has_gateway(config: &Config) -> bool {
    gateway_name(config).is_some()
}

/// The link with the node's addresses in the pods' VLAN, named as the reference plugin names it.
pub(super) fn gateway_name(config: &Config) -> Option<String> {
    let wanted = config.wiring.gateway && config.wiring.mode == Mode::Bridge;
    config.wiring.vlans.access.filter(|_| wanted).map(|vlan| format!("{}.{vlan}", config.bridge))
}

/// Makes the bridge tell VLANs apart.
///
/// # Errors
/// Code 100, with the key that asks for it, where the kernel cannot.
pub(super) fn filter(netlink: &mut Netlink, config: &Config, bridge: &Link) -> Result<(), CniError> {
    netlink.send(Batch::new().set_vlan_filtering(bridge.index)).map_err(|cause| refused(config, &cause))
}

/// Finds or makes the link with the node's addresses: one end of a pair whose other end is a port of the bridge.
///
/// # Errors
/// Code 100 when the kernel refuses, 7 when its name is too long or another link's; what was made is deleted then.
pub(super) fn gateway(
    netlink: &mut Netlink,
    config: &Config,
    bridge: &Link,
    mtu: u32,
) -> Result<Link, CniError> {
    let name = gateway_name(config).unwrap_or_default();
    if name.len() > NAME_MAX {
        return Err(CniError::new(Code::InvalidConfig, format!("link name {name} is too long for vlan"))
            .and(format!("bridge and vlan have {NAME_MAX} bytes together with a dot: shorten bridge")));
    }
    let failed = |e: netd_kernel::Error| wiring(&format!("link {name} of the VLAN cannot be made"), &e);
    if let Some(link) = netlink.link(&name).map_err(failed)? {
        return is_veth(link);
    }
    let port = naming::vlan_port(&name);
    let spec = VethSpec {
        name: &port,
        mtu: Some(mtu),
        master: Some(bridge.index),
        up: true,
        peer_name: &name,
        peer_mac: Some(naming::named_bridge_mac(&name)),
        ..VethSpec::default()
    };
    match netlink.make_veth(&spec) {
        // Another call was quicker.
        Err(error) if !error.is_exists() => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    finish(netlink, config, (&port, &name)).map_err(|error| {
        let left = netlink.link(&port).ok().flatten().and_then(|link| netlink.delete_link(link.index).err());
        match left {
            Some(cause) => error.and(format!("and link {port} was not deleted: {cause}")),
            None => error,
        }
    })
}

fn finish(netlink: &mut Netlink, config: &Config, (port, name): (&str, &str)) -> Result<Link, CniError> {
    let mut find = |name: &str| {
        let found = netlink.link(name).map_err(|e| wiring(&format!("link {name} cannot be read"), &e))?;
        found.ok_or_else(|| CniError::new(Code::Wiring, format!("link {name} was deleted while it was made")))
    };
    let (outer, inner) = (find(port)?, find(name)?);
    let own = Vlans { trunk: Vec::new(), ..config.wiring.vlans.clone() };
    let mut batch = Batch::new();
    batch.configure_bridge_port(port, naming::VLAN_PORT_ALIAS, PortFlags::default());
    batch.set_alias(inner.index, naming::BRIDGE_ALIAS);
    join(&mut batch, outer.index, &own);
    netlink.send(&batch).map_err(|cause| refused(config, &cause))?;
    Ok(Link { alias: Some(naming::BRIDGE_ALIAS.to_owned()), ..inner })
}

/// Makes a port a member of its VLANs.
pub(crate) fn join(batch: &mut Batch, port: Ifindex, vlans: &Vlans) {
    if vlans.is_empty() {
        return;
    }
    if !vlans.keep_default {
        batch.clear_vlans(port);
    }
    for (range, tagging) in vlans.memberships() {
        batch.add_vlans(port, range, tagging);
    }
}

fn is_veth(link: Link) -> Result<Link, CniError> {
    if link.kind.as_deref() == Some("veth") {
        return Ok(link);
    }
    Err(CniError::new(Code::InvalidConfig, format!("link {} exists and is no veth", link.name))
        .and("vlan needs a link of that name for its gateway: rename it, or name another bridge"))
}

fn refused(config: &Config, cause: &netd_kernel::Error) -> CniError {
    let key = config.wiring.vlans.key();
    let error = CniError::new(Code::Wiring, format!("{key} cannot be set on bridge {}", config.bridge));
    let error = error.because(cause);
    if cause.errno() != Some(NOT_SUPPORTED) {
        return error;
    }
    error.and(format!(
        "this kernel's bridge knows no VLANs (CONFIG_BRIDGE_VLAN_FILTERING): leave {key} out, or use another kernel"
    ))
}
