//! Whether this host can run the eBPF dataplane.

use std::fs;
use std::path::PathBuf;

use crate::config::Config;
use crate::pins;
use crate::programs::{Programs, Sizes};
use crate::sys;

/// Bits of the capabilities in question, include/uapi/linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// This host can run the eBPF dataplane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Support {
    /// The cgroup that it would serve.
    pub cgroup_root: PathBuf,
    /// The directory it would pin in.
    pub pin_dir: PathBuf,
}

/// Why this host cannot run the eBPF dataplane: one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unsupported {
    /// The line, without a dot at its end.
    pub reason: String,
}

impl Unsupported {
    fn new(reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self { reason: reason.lines().next().unwrap_or_default().to_owned() }
    }
}

/// Says whether this host can run the eBPF dataplane, by loading its programs once (some 100 ms).
///
/// Leaves nothing behind: the programs are attached to nothing, and the pin directory is not made.
///
/// # Errors
/// With the reason, for a person to read.
pub fn probe(config: &Config) -> Result<Support, Unsupported> {
    let cgroup_root = config.cgroup_root().map_err(|error| Unsupported::new(error.to_string()))?;
    check_capabilities()?;
    let pin_dir = config.pin_dir();
    check_bpffs(&pin_dir)?;
    sys::netns_cookie().map_err(|error| {
        Unsupported::new(format!("network namespaces have no cookie (Linux 5.14): {error}"))
    })?;
    let smallest = Sizes { services: 1, slots: 1, members: 1, remembered: 64 };
    Programs::load_unpinned(&smallest).map_err(|error| {
        Unsupported::new(format!("the kernel does not take the programs (Linux 6.1 is needed): {error}"))
    })?;
    Ok(Support { cgroup_root, pin_dir })
}

fn check_bpffs(pin_dir: &std::path::Path) -> Result<(), Unsupported> {
    let on_bpffs = pin_dir.ancestors().any(|path| pins::is_on(path, pins::BPFFS_MAGIC));
    let can_mount = fs::read_to_string("/proc/filesystems")
        .is_ok_and(|text| text.lines().any(|line| line.split_whitespace().last() == Some("bpf")));
    if on_bpffs || can_mount {
        return Ok(());
    }
    Err(Unsupported::new("the kernel has no bpffs to pin the programs on"))
}

fn check_capabilities() -> Result<(), Unsupported> {
    let status = fs::read_to_string("/proc/self/status")
        .map_err(|error| Unsupported::new(format!("read /proc/self/status: {error}")))?;
    let effective = effective_capabilities(&status).ok_or_else(|| {
        Unsupported::new("/proc/self/status does not say which capabilities this process has")
    })?;
    for (bit, name) in [(CAP_SYS_ADMIN, "CAP_SYS_ADMIN"), (CAP_NET_ADMIN, "CAP_NET_ADMIN")] {
        if effective & (1_u64 << bit) == 0 {
            return Err(Unsupported::new(format!("{name} is missing: run netd as root")));
        }
    }
    Ok(())
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let digits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(digits.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_status_file() {
        let status = "Name:\tnetd\nCapInh:\t0000000000000000\nCapEff:\t000001ffffffffff\n";
        assert_eq!(effective_capabilities(status), Some(0x1ff_ffff_ffff));
        assert_eq!(effective_capabilities("Name:\tnetd\n"), None);
    }

    #[test]
    fn a_reason_is_one_line() {
        assert_eq!(Unsupported::new("first\nsecond").to_string(), "first");
    }
}
