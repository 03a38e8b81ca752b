//! What the ledger of the CNI plugin says: the daemon only reads it.

use std::net::IpAddr;
use std::path::Path;

use ipnetwork::IpNetwork;
use netd_admin::{IpamState, LeaseState, PoolState};
use netd_ipam::{Lease, Ledger, Range};
use tracing::debug;

/// Pools and leases of every network whose ledger is in `directory`, which has the node's `pod_cidrs` to give and had
/// the `former` ones. `None` when there is no ledger.
pub(super) fn state(directory: &Path, pod_cidrs: &[IpNetwork], former: &[IpNetwork]) -> Option<IpamState> {
    let entries = std::fs::read_dir(directory).ok()?;
    let mut state = IpamState::default();
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != netd_ipam::EXTENSION) {
            continue;
        }
        let network = path.file_stem().unwrap_or_default().to_string_lossy();
        match Ledger::read(&path) {
            Ok(leases) => {
                let addresses: Vec<IpAddr> =
                    leases.iter().flat_map(|lease| lease.addresses.iter().copied()).collect();
                state.pools.extend(pod_cidrs.iter().filter_map(|range| pool(&network, *range, &addresses)));
                let before = former.iter().filter_map(|range| pool(&network, *range, &addresses));
                let before = before.filter(|pool| pool.used > 0);
                state.pools.extend(before.map(|pool| PoolState { former: true, ..pool }));
                state.leases.extend(leases.iter().flat_map(lease_states));
            }
            // The plugin may be writing a new one: the next look sees it.
            Err(error) => debug!(ledger = %path.display(), %error, "could not read a ledger"),
        }
    }
    state.leases.sort_by(|a, b| a.address.cmp(&b.address));
    (!state.pools.is_empty() || !state.leases.is_empty()).then_some(state)
}

fn pool(network: &str, subnet: IpNetwork, leased: &[IpAddr]) -> Option<PoolState> {
    let range = Range::new(subnet, None, None, None).ok()?;
    let used = leased.iter().filter(|address| range.contains(**address)).count();
    Some(PoolState {
        network: network.to_owned(),
        range: subnet.to_string(),
        used: u64::try_from(used).unwrap_or(u64::MAX),
        total: u64::try_from(range.capacity()).unwrap_or(u64::MAX),
        former: false,
    })
}

fn lease_states(lease: &Lease) -> impl Iterator<Item = LeaseState> {
    let pod = lease.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name)).unwrap_or_default();
    lease.addresses.iter().map(move |address| LeaseState {
        address: address.to_string(),
        pod: pod.clone(),
        interface: lease.owner.interface.clone(),
        container_id: lease.owner.container.clone(),
    })
}
