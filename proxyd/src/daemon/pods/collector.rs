//! Takes away what pods left behind that are gone. Container runtimes call DEL once and GC never (containerd), so what a
//! killed runtime, a namespace that was deleted by hand or a full disk leaves is nobody else's work.
//!
//! A pod that lives is never touched: something must be seen twice and for the grace period, and then, with every ADD of
//! every network kept waiting, everything is read anew and must still be garbage. Each removal is one step of the
//! kernel's or of the ledger, so a netd that is killed in between goes on where it was.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use ipnetwork::IpNetwork;
use netd_ipam::{DEFAULT_COOL_DOWN, Lease, Ledger, Moment, Options, Owner, UnderWay};
use netd_kernel::link::Ifindex;
use netd_kernel::netlink::{Route, RouteFilter};
use netd_kernel::{Clock, Netlink, SystemClock, hostport, masquerade};
use tracing::{debug, info, warn};

use super::garbage::{self, Item, Observations};
use super::inventory::{self, Inventory};
use crate::daemon::{Surroundings, stopped};

/// How long ADDs may be waited for; on a node where one always runs it is tried again at the next pass.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a pass did.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// Kind and description of what was taken away.
    pub(super) collected: Vec<(&'static str, String)>,
    /// How much looks like garbage and is not old enough, or could not be taken away.
    pub(super) waiting: usize,
    /// What failed.
    pub(super) failures: Vec<String>,
}

/// Looks for garbage, pass after pass.
#[derive(Debug)]
pub(super) struct Collector {
    directory: PathBuf,
    ours: Vec<IpNetwork>,
    grace: Duration,
    seen: Observations,
}

/// Collects until the daemon drains; does nothing where it is switched off.
pub(in crate::daemon) async fn run(context: Surroundings) -> Result<()> {
    let settings = &context.config.cni.garbage;
    let interval = Duration::from_secs(u64::from(settings.interval_seconds));
    let grace = Duration::from_secs(u64::from(settings.grace_seconds));
    if interval.is_zero() {
        info!("garbage of pods is not collected: cni.garbage.intervalSeconds is 0");
        stopped(context.shutdown.clone()).await;
        return Ok(());
    }
    let config = Arc::clone(&context.config);
    let ours = [config.cluster_cidrs.as_slice(), &config.cni.pod_cidrs].concat();
    let mut collector = Collector::new(&config.cni.data_dir, ours, grace);
    loop {
        tokio::select! {
            () = stopped(context.shutdown.clone()) => return Ok(()),
            () = tokio::time::sleep(interval) => {}
        }
        let (back, outcome) = tokio::task::spawn_blocking(move || {
            let outcome = collector.pass();
            (collector, outcome)
        })
        .await?;
        collector = back;
        report(&context, outcome);
    }
}

fn report(context: &Surroundings, outcome: Result<Pass>) {
    match outcome {
        Ok(pass) => {
            for (kind, object) in &pass.collected {
                info!(kind, object, "collected garbage: nothing live owns it");
                context.metrics.collected(kind);
            }
            for failure in &pass.failures {
                warn!(error = failure, "could not collect garbage; trying again");
            }
            context.board.note_garbage(&pass.collected, pass.waiting, SystemTime::now());
        }
        Err(error) => warn!(error = format!("{error:#}"), "cannot look for garbage of pods; trying again"),
    }
}

impl Collector {
    /// A collector that has seen nothing yet. `ours` are the pods' ranges.
    pub(super) fn new(directory: &Path, ours: Vec<IpNetwork>, grace: Duration) -> Self {
        Self { directory: directory.to_owned(), ours, grace, seen: Observations::default() }
    }

    /// Looks once, and takes away what has been garbage for long enough.
    ///
    /// # Errors
    /// When ledgers or the kernel cannot be read; what failed of a removal is in the result.
    pub(super) fn pass(&mut self) -> Result<Pass> {
        let mut pass = Pass::default();
        let mut netlink = Netlink::open()?;
        if inventory::delete_aside(&mut netlink)? {
            pass.collected.push(("put-aside", "links that DEL put aside".to_owned()));
        }
        let found = Inventory::read(&self.directory)?;
        for reason in &found.ledgers.unreadable {
            debug!(reason, "no garbage is looked for while a ledger cannot be read");
        }
        let young = |item: &Item| self.is_young(&found, item);
        let candidates: Vec<Item> =
            garbage::find(&found, &self.ours).into_iter().filter(|item| !young(item)).collect();
        let due = self.seen.note(candidates, SystemClock.now(), self.grace);
        if !due.is_empty() {
            self.collect(&mut netlink, &found, &due, &mut pass)?;
        }
        pass.waiting = self.seen.waiting();
        Ok(pass)
    }

    /// A lease that was taken a moment ago is of a pod that is being wired.
    fn is_young(&self, inventory: &Inventory, item: &Item) -> bool {
        let Item::Lease { network, owner, .. } = item else { return false };
        let mut leases = inventory.ledgers.leases.iter();
        let own = leases.find(|leased| leased.network == *network && leased.lease.owner == *owner);
        own.and_then(|leased| leased.age).is_none_or(|age| age < self.grace)
    }

    /// Keeps ADDs of all networks waiting; `None` where one is always under way.
    fn no_adds(&self, found: &Inventory) -> Result<Option<Vec<UnderWay>>> {
        let mut all = Vec::new();
        for network in &found.ledgers.networks {
            let Some(one) = UnderWay::exclude(&self.directory, network, PATIENCE)? else {
                debug!(network, "pods are being added all the time; their leases are looked at later");
                return Ok(None);
            };
            all.push(one);
        }
        Ok(Some(all))
    }

    /// Takes away what is still garbage; leases while no ADD is under way.
    fn collect(
        &mut self,
        netlink: &mut Netlink,
        found: &Inventory,
        due: &[Item],
        pass: &mut Pass,
    ) -> Result<()> {
        // An ADD takes its addresses and makes its rules before its link; all else of a pod comes after that.
        let early = |item: &Item| matches!(item, Item::Lease { .. } | Item::Masquerade { .. });
        let quiet = if due.iter().any(early) { self.no_adds(found)? } else { None };
        let again = Inventory::read(&self.directory)?;
        let still = garbage::find(&again, &self.ours);
        let due = due.iter().filter(|item| quiet.is_some() || !early(item));
        for item in due.filter(|item| still.contains(item)) {
            match remove(netlink, &self.directory, &again, item) {
                Ok(true) => {
                    self.seen.forget(item);
                    pass.collected.push((item.kind(), item.to_string()));
                }
                // Somebody else did it, or it is in use by now.
                Ok(false) => self.seen.forget(item),
                Err(error) => pass.failures.push(format!("{item}: {error:#}")),
            }
        }
        Ok(())
    }
}

/// Takes one item away; `false` when it is gone or in use by now.
fn remove(netlink: &mut Netlink, directory: &Path, inventory: &Inventory, item: &Item) -> Result<bool> {
    match item {
        Item::Lease { network, owner, addresses } => {
            let released = release(directory, network, owner, addresses)?;
            if released {
                for bridge in inventory.bridges() {
                    for address in addresses {
                        unless_gone(netlink.delete_neighbour(bridge.index, *address))?;
                    }
                }
            }
            Ok(released)
        }
        Item::Link { index, name } | Item::Ifb { index, name } => delete_link(netlink, *index, name),
        Item::HostPorts { owner } => Ok(!hostport::remove(owner)?.is_empty()),
        Item::Neighbour { link, ip, .. } => unless_gone(netlink.delete_neighbour(*link, *ip)),
        Item::Route { destination, link } => {
            let filter = RouteFilter { link: Some(*link), ..inventory::pod_routes() };
            let same = |route: &Route| route.destination == *destination && route.gateway.is_none();
            match netlink.routes(filter)?.into_iter().find(same) {
                Some(route) => unless_gone(netlink.delete_route(&route)),
                None => Ok(false),
            }
        }
        Item::Masquerade { owner, pods } => Ok(masquerade::remove_range(owner, pods)?),
    }
}

/// Ends a lease under the ledger's lock, if it is still the one that was seen and still no link has it.
fn release(directory: &Path, network: &str, owner: &Owner, addresses: &[IpAddr]) -> Result<bool> {
    let options = Options { directory, network, cool_down: DEFAULT_COOL_DOWN, now: Moment::now()? };
    let mut ledger =
        Ledger::open(options, || Err::<Vec<Lease>, _>("it changed just now; the next pass looks again"))?;
    // From here on nobody writes.
    let now = Inventory::read(directory)?;
    let same = |leased: &inventory::Leased| {
        leased.network == network && leased.lease.owner == *owner && leased.lease.addresses == addresses
    };
    let (wired, answering) = (now.wired(), now.answering());
    let used = |address: &IpAddr| wired.contains(address) || answering.contains(address);
    if !now.ledgers.leases.iter().any(same)
        || now.link_of(network, owner).is_some()
        || addresses.iter().any(used)
    {
        return Ok(false);
    }
    Ok(ledger.release(owner)?.is_some())
}

/// Deletes a link if it is still the one that was seen: numbers are used again.
fn delete_link(netlink: &mut Netlink, index: Ifindex, name: &str) -> Result<bool> {
    match netlink.link_by_index(index)? {
        Some(link) if link.name == name => unless_gone(netlink.delete_link(index)),
        Some(_) | None => Ok(false),
    }
}

/// What is gone is no failure.
fn unless_gone(outcome: netd_kernel::Result<()>) -> Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error.into()),
    }
}
