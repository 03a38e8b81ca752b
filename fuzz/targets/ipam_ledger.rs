//! A ledger file of whatever bytes: it is believed, repaired or put aside, and then leases work.

#![no_main]

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use netd_ipam::{Error, Ledger, Moment, Options, Owner, Pool, Range};

/// A directory of this process's own; `cargo xtask fuzz` names one in memory and removes it afterwards.
static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let parent = std::env::var_os("NETD_FUZZ_DIRECTORY").map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = parent.join(format!("nd-{}-fuzz", std::process::id()));
    fs::create_dir_all(&directory).expect("make a directory");
    directory
});

fn options() -> Options<'static> {
    let now = Moment { boot: "boot".to_owned(), uptime: Duration::from_secs(90_000) };
    Options { directory: &DIRECTORY, network: "pods", cool_down: Duration::from_secs(30), now }
}

fuzz_target!(|bytes: &[u8]| {
    // What lies behind the checksums.
    netd_ipam::fuzz::open(bytes, true);
    let path = Ledger::path_of(&DIRECTORY, "pods");
    fs::write(&path, bytes).expect("write the ledger");
    let subnet = "10.1.2.0/28".parse().expect("a subnet");
    let pool = Pool::new(vec![Range::new(subnet, None, None, None).expect("a range")]).expect("a pool");
    let nothing_live = || Ok::<_, Error>(Vec::new());
    match Ledger::open(options(), nothing_live) {
        Ok(mut ledger) => {
            let owner = Owner { container: "fuzz".to_owned(), interface: "eth9".to_owned() };
            if ledger.lease_of(&owner).expect("damage is repaired").is_none() {
                let pools = std::slice::from_ref(&pool);
                let _ = ledger.allocate(&owner, None, pools);
            }
            let mut seen = HashSet::new();
            for lease in &ledger.leases().expect("damage is repaired") {
                for address in &lease.addresses {
                    assert!(seen.insert(*address), "{address} has two owners");
                }
            }
            if let Some((aside, _)) = &ledger.opened().damaged {
                fs::remove_file(aside).expect("the damaged file is kept");
            }
        }
        Err(Error::Newer { .. }) => {}
        Err(error) => panic!("no ledger is beyond repair: {error}"),
    }
});
