//! What the ledger of the CNI plugin says: the daemon only reads it.

use std::path::Path;

use netd_admin::{IpamState, LeaseState};
use netd_ipam::{Ledger, Leases};
use tracing::debug;

/// Leases of every network whose ledger is in `directory`; `None` when there is no ledger.
pub(super) fn state(directory: &Path) -> Option<IpamState> {
    let entries = std::fs::read_dir(directory).ok()?;
    let mut leases = Vec::new();
    let mut ledgers = 0_usize;
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != netd_ipam::EXTENSION) {
            continue;
        }
        match Ledger::read(&path) {
            Ok(read) => {
                ledgers += 1;
                leases.extend(lease_states(&read));
            }
            // The plugin may be writing a new one: the next look sees it.
            Err(error) => debug!(ledger = %path.display(), %error, "could not read a ledger"),
        }
    }
    leases.sort_by(|a: &LeaseState, b| a.address.cmp(&b.address));
    (ledgers > 0).then(|| IpamState { leases, ..IpamState::default() })
}

fn lease_states(leases: &Leases) -> Vec<LeaseState> {
    let one = |lease: &netd_ipam::Lease| {
        let pod = lease.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name));
        let lease = lease.clone();
        lease
            .addresses
            .iter()
            .map(|address| LeaseState {
                address: address.to_string(),
                pod: pod.clone().unwrap_or_default(),
                interface: lease.owner.interface.clone(),
                container_id: lease.owner.container.clone(),
            })
            .collect::<Vec<_>>()
    };
    leases.iter().flat_map(one).collect()
}
