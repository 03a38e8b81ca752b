//! `netd ipam ls`.

use std::time::Duration;

use anyhow::Result;
use netd_admin::render::age;
use netd_ipam::{Contents, DEFAULT_COOL_DOWN, Lease, Moment, Pool};
use serde_json::{Value, json};

use super::node::{self, Network};
use super::{ListArgs, table};
use crate::cli::{Output, print};
use crate::daemon::require_root;

/// Digits of a container id that a person needs.
const SHORT_ID: usize = 13;

pub(super) fn list(args: &ListArgs) -> Result<u8> {
    let config = args.ledgers.config()?;
    require_root("netd ipam ls")?;
    let (networks, pools) = (node::networks(&config.cni.data_dir)?, node::ranges(&config));
    let view = View { now: Moment::now()?.uptime, pools: &pools, namespace: args.namespace.as_deref() };
    match args.output {
        Output::Json => super::json(&view.json(&networks))?,
        Output::Table => print::out(&view.text(&networks, false))?,
        Output::Wide => print::out(&view.text(&networks, true))?,
    }
    let mut damaged = networks.iter().filter_map(|network| network.contents.as_ref().err()).peekable();
    if damaged.peek().is_none() {
        return Ok(0);
    }
    damaged.for_each(|error| eprintln!("netd: {error}"));
    Ok(crate::cli::exit::FAILED)
}

/// What is shown, and of when.
struct View<'a> {
    now: Duration,
    pools: &'a [Pool],
    namespace: Option<&'a str>,
}

/// A line of the ranges: how full a range is. Where a network's range is not known only `used` is.
struct Fill {
    range: Option<String>,
    used: u128,
    rest: Option<(u128, u128, u128)>,
}

impl View<'_> {
    fn fills(&self, network: &Network) -> Vec<Fill> {
        let Ok(contents) = &network.contents else { return Vec::new() };
        let mut fills: Vec<Fill> =
            self.pools.iter().filter_map(|pool| self.fill(network, contents, pool)).collect();
        let elsewhere = self
            .addresses(network)
            .filter(|(address, ..)| !self.pools.iter().any(|pool| pool.range_of(*address).is_some()));
        let used = elsewhere.count() as u128;
        if used > 0 || fills.is_empty() {
            fills.push(Fill { range: None, used, rest: None });
        }
        fills
    }

    /// A network whose configuration names its own ranges has no part in the daemon's.
    fn fill(&self, network: &Network, contents: &Contents, pool: &Pool) -> Option<Fill> {
        let occupancy = contents.occupancy(pool, self.now, DEFAULT_COOL_DOWN);
        let foreign =
            occupancy.leased == 0 && occupancy.cooling == 0 && self.addresses(network).next().is_some();
        (!foreign).then(|| Fill {
            range: Some(pool.to_string()),
            used: occupancy.leased,
            rest: Some((occupancy.capacity, occupancy.free(), occupancy.cooling)),
        })
    }

    /// Every address, its lease and its age, ordered by the address.
    fn addresses<'n>(
        &self,
        network: &'n Network,
    ) -> impl Iterator<Item = (std::net::IpAddr, &'n Lease, Option<Duration>)> + use<'n> {
        let leases = network.leases(self.now);
        let each = leases.flat_map(|(lease, age)| lease.addresses.iter().map(move |a| (*a, lease, age)));
        let mut all: Vec<_> = each.collect();
        all.sort_by_key(|(address, ..)| *address);
        all.into_iter()
    }

    fn shown(&self, lease: &Lease) -> bool {
        let namespace = lease.pod.as_ref().map(|pod| pod.namespace.as_str());
        self.namespace.is_none_or(|wanted| namespace == Some(wanted))
    }

    fn text(&self, networks: &[Network], wide: bool) -> String {
        if networks.is_empty() {
            return "No ledgers found: no pod got an address from netd-cni on this node.\n".to_owned();
        }
        let (mut ranges, mut leases) = (Vec::new(), Vec::new());
        for network in networks {
            for fill in self.fills(network) {
                let rest =
                    fill.rest.map(|(total, free, cooling)| [total, free, cooling].map(|n| n.to_string()));
                let [total, free, cooling] = rest.unwrap_or_default();
                let range = fill.range.unwrap_or_default();
                ranges.push(vec![network.name.clone(), range, total, fill.used.to_string(), free, cooling]);
            }
            for (address, lease, held) in self.addresses(network).filter(|(_, lease, _)| self.shown(lease)) {
                let id: String =
                    lease.owner.container.chars().take(if wide { usize::MAX } else { SHORT_ID }).collect();
                leases.push(vec![
                    address.to_string(),
                    lease.pod.as_ref().map(ToString::to_string).unwrap_or_default(),
                    lease.owner.interface.clone(),
                    id,
                    held.map(|held| age(held.as_secs())).unwrap_or_default(),
                    network.name.clone(),
                ]);
            }
        }
        let mut text = table(&["NETWORK", "RANGE", "TOTAL", "USED", "FREE", "COOLING"], &ranges);
        text.push('\n');
        if leases.is_empty() {
            text.push_str("No leases found.\n");
        } else {
            let header = ["ADDRESS", "POD", "INTERFACE", "CONTAINER", "AGE", "NETWORK"];
            text.push_str(&table(&header, &leases));
        }
        text
    }

    fn json(&self, networks: &[Network]) -> Value {
        let items: Vec<Value> = networks.iter().map(|network| self.network_json(network)).collect();
        json!({ "apiVersion": netd_admin::API_VERSION, "kind": "IpamNetworkList", "items": items })
    }

    fn network_json(&self, network: &Network) -> Value {
        let ranges: Vec<Value> = self
            .fills(network)
            .into_iter()
            .map(|fill| {
                let mut value = json!({ "range": fill.range, "used": clamped(fill.used) });
                if let Some((total, free, cooling)) = fill.rest {
                    value["total"] = clamped(total).into();
                    value["free"] = clamped(free).into();
                    value["cooling"] = clamped(cooling).into();
                }
                value
            })
            .collect();
        let shown = self.addresses(network).filter(|(_, lease, _)| self.shown(lease));
        let leases: Vec<Value> = shown
            .map(|(address, lease, held)| {
                json!({
                    "address": address,
                    "namespace": lease.pod.as_ref().map(|pod| &pod.namespace),
                    "pod": lease.pod.as_ref().map(|pod| &pod.name),
                    "podUID": lease.pod.as_ref().map(|pod| &pod.uid),
                    "interface": lease.owner.interface,
                    "containerID": lease.owner.container,
                    "ageSeconds": held.map(|held| held.as_secs()),
                })
            })
            .collect();
        json!({
            "name": network.name,
            "ledger": network.ledger,
            "error": network.contents.as_ref().err().map(ToString::to_string),
            "ranges": ranges,
            "leases": leases,
        })
    }
}

/// JSON has no wider number: an IPv6 range has more addresses than anybody counts.
fn clamped(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
