//! The host's end: a port of a bridge, or a link that the node has routes to.

use netd_kernel::link::Ifindex;
use netd_kernel::netlink::{Batch, Route};
use netd_kernel::{Error, Netlink, sysctl};

use super::Attachment;
use crate::guard;
use crate::naming;
use crate::node::{Ground, join_vlans};

impl Attachment<'_> {
    /// The numbers of the host's end and of the pod's, by one look-up.
    pub(super) fn ends(
        &self,
        netlink: &mut Netlink,
        inside: &mut Netlink,
    ) -> netd_kernel::Result<(Ifindex, Ifindex)> {
        let name = self.lease.owner.interface.as_str();
        let end = inside.link(name)?.ok_or_else(|| missing(&format!("{name} in the pod")))?;
        if let Some(host) = end.peer {
            return Ok((host, end.index));
        }
        let name = naming::host_link(&self.lease.owner);
        Ok((netlink.link(&name)?.ok_or_else(|| missing(&name))?.index, end.index))
    }

    /// Whether nobody may change the pod's MAC address. Else a later plugin of the list may, and the node is to learn it.
    pub(super) fn keeps_mac(&self) -> bool {
        self.guarded || self.wiring.pinned
    }

    /// Returns a batch that begins with the guard, where there is to be one.
    fn guard(&self, host: Ifindex) -> netd_kernel::Result<Batch> {
        let mut batch = Batch::new();
        if self.guarded {
            guard::add(&mut batch, host, self.mac, &self.lease.addresses)?;
        }
        Ok(batch)
    }

    /// Makes the host's end what a port of the bridge is to be, and the pod a neighbour of the node's.
    pub(super) fn plug_in(
        &self,
        netlink: &mut Netlink,
        ground: &Ground,
        (host_name, host): (&str, Ifindex),
    ) -> netd_kernel::Result<()> {
        let flags = self.wiring.port_flags(self.hairpin);
        let mut batch = self.guard(host)?;
        batch.configure_bridge_port(host_name, &naming::alias(self.network, self.lease), flags);
        if let Some(gateway) = ground.gateway().filter(|_| self.wiring.gateway) {
            for address in &self.lease.addresses {
                batch.add_neighbour(gateway.index, *address, self.mac, self.keeps_mac());
            }
        }
        netlink.send(&batch)?;
        if !self.wiring.pinned && self.wiring.vlans.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        join_vlans(&mut batch, host, &self.wiring.vlans);
        if self.wiring.pinned {
            batch.pin_mac(host, self.mac);
        }
        netlink.send(&batch)?;
        // A kernel leaves a flag out that it does not know.
        let found = netlink.port_flags(host_name)?;
        if self.wiring.pinned && !found.is_some_and(|found| found.locked) {
            let detail = "macspoofchk needs Linux 5.16, whose bridge ports can be locked".to_owned();
            return Err(Error::Protocol { action: format!("lock bridge port {host_name}"), detail });
        }
        Ok(())
    }

    /// Makes the pod a neighbour on a link of its own, with a route to each of its addresses.
    pub(super) fn route_to_pod(
        &self,
        netlink: &mut Netlink,
        ground: &Ground,
        (host_name, link): (&str, Ifindex),
    ) -> netd_kernel::Result<()> {
        if self.lease.addresses.iter().any(|address| address.is_ipv6()) {
            sysctl::write(&format!("net/ipv6/conf/{host_name}/disable_ipv6"), "0")?;
            sysctl::write(&format!("net/ipv6/conf/{host_name}/accept_ra"), "0")?;
        }
        let mut batch = self.guard(link)?;
        batch.configure_routed_end(host_name, &naming::alias(self.network, self.lease));
        for address in &self.lease.addresses {
            // Replaced: a link that has lost its pod may have it still, and the daemon puts missing ones back.
            batch.replace_route(&Route::to_pod(*address, link));
            batch.add_neighbour(link, *address, self.mac, self.keeps_mac());
        }
        for range in &ground.ranges {
            batch.replace_route(&Route::no_pod(*range));
        }
        netlink.send(&batch)
    }
}

fn missing(name: &str) -> Error {
    Error::NotFound { what: format!("link {name}") }
}
