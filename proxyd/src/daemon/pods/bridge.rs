//! Bridges of pods: up, with the addresses that pods send to, made again with their ports when somebody deleted them.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;
use netd_ipam::Range;
use netd_kernel::link::{Ifindex, Link};
use netd_kernel::netlink::{Address, Batch, BridgeSpec};
use netd_kernel::{Mac, Netlink, sysctl};

use super::BRIDGE_ALIAS;
use super::inventory::{Leased, PodLink, is_own_bridge, pod_routes};
use super::upkeep::{Absent, Kept, Pods};

/// What is known of a bridge from earlier looks.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Its addresses with pods in their networks.
    gateways: BTreeSet<IpNetwork>,
    mac: Option<Mac>,
    mtu: Option<u32>,
}

/// Bridges by name.
#[derive(Debug, Default)]
pub(super) struct Bridges {
    /// The bridge of the node's own network.
    own: String,
    known: BTreeMap<String, Known>,
    /// Whether frames may leave a port by which they came in.
    hairpin: BTreeMap<String, bool>,
}

impl Bridges {
    /// Nothing is known yet; `own` is the bridge of the node's own network.
    pub(super) fn new(own: &str) -> Self {
        Self { own: own.to_owned(), ..Self::default() }
    }

    /// Keeps all bridges; `ranges` are the node's.
    pub(super) fn keep(
        &mut self,
        netlink: &mut Netlink,
        pods: &Pods,
        (addresses, ranges): (&[Address], &[IpNetwork]),
        (absent, kept): (&mut Absent, &mut Kept),
    ) {
        for bridge in pods.links.iter().filter(|link| is_own_bridge(link)) {
            self.note(pods, bridge, addresses, ranges);
            let outcome = self.heal(netlink, (pods, bridge), addresses, kept);
            kept.problems.extend(outcome.err().map(|error| error.to_string()));
        }
        let lost = self.lost(netlink, pods, absent);
        for (name, ports) in lost {
            match self.restore(netlink, pods, (&name, &ports), ranges) {
                Ok(()) => kept.repaired.push(("bridge", format!("{} ports of bridge {name}", ports.len()))),
                Err(error) => kept.problems.push(error.to_string()),
            }
        }
        let named = |name: &String| pods.ledgers.leases.iter().any(|l| l.lease.bridge.as_ref() == Some(name));
        self.known.retain(|name, _| pods.links.iter().any(|link| link.name == *name) || named(name));
        self.hairpin.retain(|name, _| pods.pods.iter().any(|pod| pod.link.name == *name));
    }

    /// Takes the gateway of a range without pods from the node's bridge; none there is success.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn retire(&mut self, range: &IpNetwork) -> netd_kernel::Result<()> {
        let mut netlink = Netlink::open()?;
        let (Some(bridge), Some(gateway)) = (netlink.link(&self.own)?, gateway(range)) else { return Ok(()) };
        if let Some(known) = self.known.get_mut(&self.own) {
            known.gateways.remove(&gateway);
        }
        let present = netlink.addresses(Some(bridge.index))?;
        if !is_own_bridge(&bridge) || !present.iter().any(|address| address.prefix == gateway) {
            return Ok(());
        }
        netlink.delete_address(bridge.index, gateway)
    }

    /// Remembers what there is, and forgets addresses that no pod needs.
    fn note(&mut self, pods: &Pods, bridge: &Link, addresses: &[Address], ranges: &[IpNetwork]) {
        let own = bridge.name == self.own;
        let known = self.known.entry(bridge.name.clone()).or_default();
        (known.mac, known.mtu) = (bridge.mac, Some(bridge.mtu));
        known.gateways.extend(present(addresses, bridge.index));
        if own {
            known.gateways.extend(ranges.iter().filter_map(gateway));
        }
        known.gateways.retain(|network| {
            let mut wired = pods.on(bridge.index).flat_map(|pod| &pod.alias.lease.addresses);
            wired.any(|address| network.contains(*address))
        });
        let ports = pods.on(bridge.index).filter_map(|pod| Some((pod.link.name.clone(), pod.link.hairpin?)));
        self.hairpin.extend(ports);
    }

    fn heal(
        &self,
        netlink: &mut Netlink,
        (pods, bridge): (&Pods, &Link),
        addresses: &[Address],
        kept: &mut Kept,
    ) -> netd_kernel::Result<()> {
        let Some(known) = self.known.get(&bridge.name).filter(|_| pods.on(bridge.index).next().is_some())
        else {
            return Ok(());
        };
        let present: BTreeSet<IpNetwork> = present(addresses, bridge.index).collect();
        let missing: Vec<&IpNetwork> = known.gateways.difference(&present).collect();
        keep_parameters(&bridge.name, &known.gateways, kept);
        let mut batch = Batch::new();
        if !bridge.up {
            batch.set_up(bridge.index);
        }
        for gateway in &missing {
            batch.add_address(bridge.index, **gateway, true);
        }
        if batch.is_empty() {
            return Ok(());
        }
        match netlink.send(&batch) {
            // An ADD was quicker.
            Err(error) if !error.is_exists() => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let lost: Vec<String> = missing.iter().map(ToString::to_string).collect();
        let down = if bridge.up { "" } else { " was down" };
        let what = format!("bridge {}{down} {}", bridge.name, lost.join(", "));
        kept.repaired.push(("bridge", what.trim_end().to_owned()));
        Ok(())
    }

    /// Links of pods that are ports of no bridge and were of one, by its name: the ledger says which.
    fn lost(
        &self,
        netlink: &mut Netlink,
        pods: &Pods,
        absent: &mut Absent,
    ) -> BTreeMap<String, Vec<PodLink>> {
        let mut lost: BTreeMap<String, Vec<PodLink>> = BTreeMap::new();
        let loose: Vec<&PodLink> = pods.pods.iter().filter(|pod| pod.link.master.is_none()).collect();
        if loose.is_empty() {
            return lost;
        }
        // A routed pod has a route over its own link and hangs on no bridge.
        let routes = netlink.routes(pod_routes()).unwrap_or_default();
        for pod in loose {
            let routed = routes.iter().any(|route| route.link == Some(pod.link.index));
            let own = |leased: &&Leased| {
                leased.network == pod.alias.network && pod.alias.is_of(&leased.lease.owner)
            };
            let bridge = pods.ledgers.leases.iter().find(own).and_then(|leased| leased.lease.bridge.clone());
            let Some(bridge) = bridge.filter(|_| !routed) else { continue };
            if self.known.contains_key(&bridge) && absent.confirmed(format!("master {}", pod.link.name)) {
                lost.entry(bridge).or_default().push(pod.clone());
            }
        }
        lost
    }

    /// Makes a bridge as it was, where it is gone, and gives it its ports back.
    fn restore(
        &self,
        netlink: &mut Netlink,
        pods: &Pods,
        (name, ports): (&str, &[PodLink]),
        ranges: &[IpNetwork],
    ) -> netd_kernel::Result<()> {
        let known = self.known.get(name);
        let bridge = match pods.links.iter().find(|link| link.name == name) {
            Some(bridge) if is_own_bridge(bridge) => bridge.index,
            // Somebody else has the name.
            Some(_) => {
                return Err(netd_kernel::Error::Invalid {
                    what: format!("link {name}: it is not the bridge that pods hung on; delete or rename it"),
                });
            }
            None => {
                let spec = BridgeSpec {
                    name,
                    mac: known.and_then(|known| known.mac),
                    mtu: known.and_then(|known| known.mtu),
                    alias: Some(BRIDGE_ALIAS),
                };
                netlink.add_bridge(&spec)?
            }
        };
        let ours = ranges.iter().filter_map(gateway).filter(|_| name == self.own);
        let needed = |gateway: &IpNetwork| {
            let mut addresses = ports.iter().flat_map(|pod| &pod.alias.lease.addresses);
            addresses.any(|address| gateway.contains(*address))
        };
        let gateways: BTreeSet<IpNetwork> = known
            .iter()
            .flat_map(|known| known.gateways.iter().copied())
            .chain(ours)
            .filter(needed)
            .collect();
        if gateways.iter().any(IpNetwork::is_ipv6) {
            sysctl::write_if_present(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
        }
        keep_parameters(name, &gateways, &mut Kept::default());
        let present: Vec<IpNetwork> =
            netlink.addresses(Some(bridge))?.into_iter().map(|address| address.prefix).collect();
        let mut batch = Batch::new();
        batch.set_up(bridge);
        for gateway in gateways.iter().filter(|gateway| !present.contains(gateway)) {
            batch.add_address(bridge, *gateway, true);
        }
        for pod in ports {
            batch.set_master(pod.link.index, Some(bridge));
            let hairpin = self.hairpin.get(&pod.link.name).copied().unwrap_or(true);
            batch.set_hairpin(pod.link.index, hairpin);
        }
        netlink.send(&batch)
    }
}

fn present(addresses: &[Address], link: Ifindex) -> impl Iterator<Item = IpNetwork> + '_ {
    let on_link = addresses.iter().filter(move |address| address.link == link && !address.link_local);
    on_link.map(|address| address.prefix)
}

/// The gateway of a range with the range's prefix.
pub(super) fn gateway(range: &IpNetwork) -> Option<IpNetwork> {
    let gateway = Range::new(*range, None, None, None).ok()?.gateway();
    IpNetwork::new(gateway, range.prefix()).ok()
}

/// Pods reach each other through the host, and whoever advertises routes among them is not believed (docs/cni.md).
fn keep_parameters(bridge: &str, addresses: &BTreeSet<IpNetwork>, kept: &mut Kept) {
    let mut wanted = Vec::new();
    if addresses.iter().any(IpNetwork::is_ipv4) {
        wanted.push(("net/ipv4/conf/all/send_redirects".to_owned(), "0"));
        wanted.push((format!("net/ipv4/conf/{bridge}/send_redirects"), "0"));
    }
    if addresses.iter().any(IpNetwork::is_ipv6) {
        wanted.push((format!("net/ipv6/conf/{bridge}/accept_ra"), "0"));
    }
    for (key, value) in wanted {
        kept.set(&key, value);
    }
}
