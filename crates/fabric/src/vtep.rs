//! Making the kernel's VXLAN device what the nodes ask for, by reading first and writing differences only.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netd_kernel::link::Link;
use netd_kernel::netlink::{Batch, NeighbourState, Vxlan, VxlanSpec, VxlanTunnel};
use netd_kernel::{Ifindex, Mac, Netlink};
use tracing::debug;

use crate::error::Error;
use crate::overlay::{DEVICE, MacBytes, Settings, Vtep};

/// The text that says whose the device is.
const ALIAS: &str = "netd pods of nodes on other LANs";

/// What [`ensure`] found and did.
pub(crate) struct Ensured {
    /// The device.
    pub(crate) device: Ifindex,
    /// How many changes were written.
    pub(crate) written: usize,
    /// What could not be written; the rest was.
    pub(crate) problems: Vec<String>,
}

/// The device as it is, if there is one.
pub(crate) fn find(netlink: &mut Netlink) -> Result<Option<Link>, Error> {
    let found = netlink.vxlan(DEVICE).map_err(Error::kernel("look up the VXLAN device"))?;
    Ok(found.map(|found| found.link))
}

/// Deletes the device and says whether there was one; its routes and entries go with it.
pub(crate) fn remove(netlink: &mut Netlink) -> Result<bool, Error> {
    let Some(device) = find(netlink)? else { return Ok(false) };
    match netlink.delete_link(device.index) {
        Ok(()) => {
            debug!(device = DEVICE, "deleted the VXLAN device");
            Ok(true)
        }
        Err(error) if error.is_not_found() => Ok(false),
        Err(source) => Err(Error::Kernel { action: "delete the VXLAN device", source }),
    }
}

/// Makes the device, its addresses, neighbours and forwarding entries equal `vtep`; missing entries are put back,
/// stale ones of this or an earlier run go.
///
/// # Errors
/// When the device itself cannot be had or read.
pub(crate) fn ensure(netlink: &mut Netlink, vtep: &Vtep, settings: Settings) -> Result<Ensured, Error> {
    let (device, mut written) = ensure_device(netlink, vtep, settings)?;
    let mut problems = Vec::new();
    let addresses = addresses(netlink, device, vtep)?;
    let entries = entries(netlink, device, vtep)?;
    for batch in [addresses, entries] {
        if batch.is_empty() {
            continue;
        }
        written += batch.len();
        if let Err(error) = netlink.send(&batch) {
            problems.push(error.to_string());
        }
    }
    if written > 0 {
        debug!(written, peers = vtep.peers.len(), "changed the VXLAN device");
    }
    Ok(Ensured { device, written, problems })
}

/// The device with the right tunnel and Ethernet address, switched on; one with others is made anew, as the kernel
/// cannot change it.
fn ensure_device(netlink: &mut Netlink, vtep: &Vtep, settings: Settings) -> Result<(Ifindex, usize), Error> {
    let failed = || Error::kernel("make the VXLAN device");
    let tunnel =
        VxlanTunnel { vni: settings.vni, port: settings.port, local: Some(vtep.local), learning: false };
    let right = |found: &Vxlan| found.tunnel == tunnel && found.link.mac == Some(vtep.mac());
    let mut batch = Batch::new();
    let mut written = 0;
    let mut found = netlink.vxlan(DEVICE).map_err(failed())?;
    if !found.as_ref().is_some_and(right) {
        if let Some(other) = &found {
            batch.delete_link(other.link.index);
        }
        let spec = VxlanSpec { name: DEVICE, mac: vtep.mac(), mtu: vtep.mtu, alias: Some(ALIAS), tunnel };
        batch.add_vxlan(&spec);
        written += batch.len();
        netlink.send(&batch).map_err(failed())?;
        batch = Batch::new();
        found = netlink.vxlan(DEVICE).map_err(failed())?;
    }
    let link = found
        .map(|found| found.link)
        .ok_or_else(|| failed()(netd_kernel::Error::NotFound { what: format!("link {DEVICE}") }))?;
    if link.mtu != vtep.mtu {
        batch.set_mtu(link.index, vtep.mtu);
    }
    if !link.up {
        batch.set_up(link.index);
    }
    written += batch.len();
    if !batch.is_empty() {
        netlink.send(&batch).map_err(failed())?;
    }
    Ok((link.index, written))
}

fn addresses(netlink: &mut Netlink, device: Ifindex, vtep: &Vtep) -> Result<Batch, Error> {
    let found = netlink.addresses(Some(device)).map_err(Error::kernel("list addresses"))?;
    let found: BTreeSet<IpNetwork> =
        found.into_iter().filter(|address| !address.link_local).map(|address| address.prefix).collect();
    let wanted: BTreeSet<IpNetwork> = vtep.addresses.iter().copied().collect();
    let mut batch = Batch::new();
    for stale in found.difference(&wanted) {
        batch.delete_address(device, *stale);
    }
    for missing in wanted.difference(&found) {
        batch.add_address(device, *missing, true);
    }
    Ok(batch)
}

fn entries(netlink: &mut Netlink, device: Ifindex, vtep: &Vtep) -> Result<Batch, Error> {
    let mut batch = Batch::new();
    let neighbours = netlink.neighbours(Some(device)).map_err(Error::kernel("list neighbours"))?;
    let mut missing = vtep.neighbours();
    // The kernel lists groups as well, and what it looked for itself: neither is ours.
    let ours = neighbours
        .into_iter()
        .filter(|entry| entry.state == NeighbourState::Permanent && !is_group(entry.ip));
    for entry in ours {
        match missing.get(&entry.ip) {
            Some(mac) if entry.mac == Some(*mac) => {
                missing.remove(&entry.ip);
            }
            // Replaced below.
            Some(_) => {}
            None => {
                batch.delete_neighbour(device, entry.ip);
            }
        }
    }
    for (ip, mac) in missing {
        batch.add_neighbour(device, ip, mac, true);
    }
    let mut missing = vtep.forwarding();
    for entry in netlink.fdb(device).map_err(Error::kernel("list forwarding entries"))? {
        let key: MacBytes = entry.mac.0;
        match missing.get(&key) {
            Some(peer) if entry.permanent && entry.destination == IpAddr::V4(*peer) => {
                missing.remove(&key);
            }
            Some(_) => {}
            None => {
                batch.delete_fdb(device, entry.mac);
            }
        }
    }
    for (mac, peer) in missing {
        batch.add_fdb(device, Mac(mac), IpAddr::V4(peer));
    }
    Ok(batch)
}

fn is_group(ip: IpAddr) -> bool {
    ip.is_multicast() || matches!(ip, IpAddr::V4(v4) if v4.is_broadcast())
}

#[cfg(test)]
mod tests;
