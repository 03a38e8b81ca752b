//! `netd ipam release`.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netd_ipam::{DEFAULT_COOL_DOWN, Lease, Ledger, Moment, Options};

use super::ReleaseArgs;
use super::node::{self, Network, PodLink};
use crate::cli::{exit, on_one_line, print};
use crate::daemon::require_root;

/// A pod takes its lease before it has a link; a runtime gives an ADD less time than this.
const STARTING: Duration = Duration::from_secs(60);

pub(super) fn release(args: &ReleaseArgs) -> Result<u8> {
    let config = args.ledgers.config()?;
    require_root("netd ipam release")?;
    let mut failed = false;
    for address in &args.addresses {
        match release_one(args, &config.cni.data_dir, *address) {
            Ok(line) => print::out(&format!("{line}\n"))?,
            Err(error) => {
                failed = true;
                eprintln!("netd: {address}: {}", on_one_line(&error));
            }
        }
    }
    Ok(if failed { exit::FAILED } else { 0 })
}

fn release_one(args: &ReleaseArgs, directory: &Path, address: IpAddr) -> Result<String> {
    let networks = node::networks(directory)?;
    let network = network_of(args, &networks, address)?;
    // From here on under the lock: no ADD or DEL of this network comes between the look and the release.
    let now = Moment::now()?;
    let options = Options { directory, network: &network.name, cool_down: DEFAULT_COOL_DOWN, now };
    let mut ledger = Ledger::open(options, || Err::<Vec<Lease>, _>("it changed just now; run this again"))?;
    let (lease, held) = ledger.holder(address)?.context("nobody has a lease of it any more")?;
    if !args.force {
        refuse_live(&lease, held, &node::links()?)?;
        refuse_answering(&lease, &node::answering()?)?;
    }
    let addresses: Vec<String> = lease.addresses.iter().map(ToString::to_string).collect();
    let what = format!("{} of {} in network {}", addresses.join(", "), whose(&lease), network.name);
    if args.dry_run {
        return Ok(format!("would release {what}"));
    }
    ledger.release(&lease.owner)?;
    Ok(format!("released {what}"))
}

/// Finds the one network that has a lease of the address.
fn network_of<'a>(args: &ReleaseArgs, networks: &'a [Network], address: IpAddr) -> Result<&'a Network> {
    let mut found = Vec::new();
    for network in networks.iter().filter(|n| args.network.as_ref().is_none_or(|name| *name == n.name)) {
        if let Err(error) = &network.contents {
            bail!("{error}");
        }
        if network.leases(Duration::MAX).any(|(lease, _)| lease.addresses.contains(&address)) {
            found.push(network);
        }
    }
    match found.as_slice() {
        [network] => Ok(network),
        [] => bail!("nobody has a lease of it; `netd ipam ls` shows all leases"),
        several => {
            let names: Vec<&str> = several.iter().map(|network| network.name.as_str()).collect();
            bail!("networks {} have leases of it: name one with --network", names.join(", "))
        }
    }
}

/// Refuses to take an address from a pod that uses it, or is about to.
fn refuse_live(lease: &Lease, held: Option<Duration>, links: &[PodLink]) -> Result<()> {
    let has_one = |link: &&PodLink| link.alias.lease.addresses.iter().any(|a| lease.addresses.contains(a));
    if let Some(link) = links.iter().find(has_one) {
        bail!(
            "link {} has it ({}): delete the pod, or use --force and risk that two pods get one address",
            link.name,
            whose(lease)
        );
    }
    if let Some(held) = held.filter(|held| *held < STARTING) {
        bail!(
            "leased {} s ago, its pod may be starting ({}): try again in {} s, or use --force",
            held.as_secs(),
            whose(lease),
            (STARTING.saturating_sub(held)).as_secs() + 1
        );
    }
    Ok(())
}

/// Refuses to take an address that a neighbour has who is no pod of ours: pods that another plugin wired are.
fn refuse_answering(lease: &Lease, answering: &[IpAddr]) -> Result<()> {
    match lease.addresses.iter().find(|address| answering.contains(address)) {
        Some(address) => bail!(
            "{address} is in the kernel's neighbour table, so perhaps a pod that another plugin wired has it ({}): see \
             `ip neigh show {address}`, or use --force",
            whose(lease)
        ),
        None => Ok(()),
    }
}

fn whose(lease: &Lease) -> String {
    lease.pod.as_ref().map_or_else(|| lease.owner.to_string(), |pod| format!("pod {pod}"))
}
