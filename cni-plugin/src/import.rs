//! Leases of the reference plugin host-local, so that a node changes to netd while its pods go on.
//!
//! host-local has a file an address, named after it: container id, and in a second line the interface. Its files
//! outlive a reboot, though no pod does: those from before this boot do not count.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use netd_ipam::{Lease, Moment, Owner};
use netd_kernel::{Error, Result};

/// The interface of files that do not tell one: they are of host-local before 0.7.
const DEFAULT_INTERFACE: &str = "eth0";
/// Boot and file times come from two clocks.
const SLACK: Duration = Duration::from_secs(2);

/// Reads the leases of a network's directory that were given in this boot; none where there is no directory.
///
/// # Errors
/// When a file cannot be read: an address that may be in use must not be handed out.
pub fn leases(directory: &Path) -> Result<Vec<Lease>> {
    let boot = boot_time()?;
    let mut leases: Vec<Lease> = Vec::new();
    for (address, owner, written) in files(directory)? {
        if written + SLACK < boot {
            continue;
        }
        match leases.iter_mut().find(|lease| lease.owner == owner) {
            Some(lease) => lease.addresses.push(address),
            None => leases.push(Lease { owner, addresses: vec![address], ..Lease::default() }),
        }
    }
    Ok(leases)
}

/// Removes the files of a lease that has ended; absent, or another owner's by now, is success.
///
/// # Errors
/// When a file cannot be read or removed.
pub fn forget(directory: &Path, ended: &Lease) -> Result<()> {
    for address in &ended.addresses {
        let path = directory.join(address.to_string());
        let removed = match fs::read_to_string(&path) {
            Ok(text) if owner(&text).as_ref() == Some(&ended.owner) => fs::remove_file(&path),
            Ok(_) => Ok(()),
            Err(e) => Err(e),
        };
        match removed {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(Error::io(format!("remove {}", path.display()), e));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Address, owner and time of every file that is a lease; the lock and the last reserved addresses are none.
fn files(directory: &Path) -> Result<Vec<(IpAddr, Owner, SystemTime)>> {
    let failed = |path: &Path, e| Error::io(format!("read {}", path.display()), e);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(directory, e)),
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| failed(directory, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Ok(address) = name.parse::<IpAddr>() else { continue };
        let read = fs::read_to_string(&path).and_then(|text| Ok((text, fs::metadata(&path)?.modified()?)));
        match read {
            Ok((text, written)) => all.extend(owner(&text).map(|owner| (address, owner, written))),
            // Released meanwhile.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(failed(&path, e)),
        }
    }
    all.sort_by_key(|(address, ..)| *address);
    Ok(all)
}

fn owner(text: &str) -> Option<Owner> {
    let mut lines = text.lines().map(str::trim);
    let container = lines.next().filter(|line| !line.is_empty())?.to_owned();
    let interface = lines.next().filter(|line| !line.is_empty()).unwrap_or(DEFAULT_INTERFACE).to_owned();
    Some(Owner { container, interface })
}

fn boot_time() -> Result<SystemTime> {
    let invalid = |what: String| Error::Invalid { what };
    let uptime = Moment::now().map_err(|e| invalid(format!("uptime: {e}")))?.uptime;
    SystemTime::now().checked_sub(uptime).ok_or_else(|| invalid("uptime".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn files_of_this_boot_are_leases_and_go_with_their_owner() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(leases(&dir.path().join("none")).unwrap(), vec![]);
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("10.0.0.2", "c1\r\neth0");
        write("fd00::2", "c1\r\neth0");
        write("10.0.0.3", "c2");
        write("10.0.0.4", "old\r\neth0");
        write("10.0.0.5", "");
        write("lock", "");
        write("last_reserved_ip.0", "10.0.0.4");
        let old = File::options().write(true).open(dir.path().join("10.0.0.4")).unwrap();
        old.set_modified(boot_time().unwrap() - Duration::from_secs(60)).unwrap();
        let c1 = Owner { container: "c1".into(), interface: "eth0".into() };
        let found = leases(dir.path()).unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0].owner, c1);
        assert_eq!(found[0].addresses, ["10.0.0.2".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]);
        assert_eq!(found[1].owner, Owner { container: "c2".into(), interface: "eth0".into() });
        let ended = found[0].clone();
        forget(dir.path(), &ended).unwrap();
        forget(dir.path(), &ended).unwrap();
        forget(dir.path(), &Lease { owner: c1, ..found[1].clone() }).unwrap();
        assert_eq!(leases(dir.path()).unwrap(), [found[1].clone()], "another's file stays");
        assert!(dir.path().join("10.0.0.4").exists());
    }
}
