//! Which cgroup is served, and where the kernel objects are pinned.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::pins;

/// Where pins go if a bpffs is mounted at `/sys/fs/bpf`.
const ON_SYSTEM_BPFFS: &str = "/sys/fs/bpf/netd";
/// Where pins go if not: netd mounts a bpffs here.
const ON_OWN_BPFFS: &str = "/run/netd/bpf";
/// Inode of the first cgroup namespace (`PROC_CGROUP_INIT_INO`, include/linux/proc_ns.h).
const INITIAL_CGROUP_NAMESPACE: u64 = 0xEFFF_FFFB;

/// Which cgroup is served, and where the kernel objects are pinned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Directory of a cgroup v2: processes in it and below are served. `None` is the root of the host's
    /// cgroup v2 (on hybrid hosts usually `/sys/fs/cgroup/unified`).
    pub cgroup_root: Option<PathBuf>,
    /// Directory for links and maps, owned by netd; made if missing, and a bpffs is mounted on it if it is
    /// not on one. `None` is `/sys/fs/bpf/netd`, or `/run/netd/bpf` where `/sys/fs/bpf` is no bpffs.
    pub pin_dir: Option<PathBuf>,
}

impl Config {
    /// The cgroup to attach to.
    pub(crate) fn cgroup_root(&self) -> Result<PathBuf, Error> {
        let path = match &self.cgroup_root {
            Some(path) => path.clone(),
            None => default_cgroup_root()?,
        };
        if !pins::is_on(&path, pins::CGROUP2_MAGIC) {
            return Err(Error::Config(format!("{} is not a directory of a cgroup v2", path.display())));
        }
        Ok(path)
    }

    /// The directory for links and maps; it may not exist yet.
    pub(crate) fn pin_dir(&self) -> PathBuf {
        match &self.pin_dir {
            Some(path) => path.clone(),
            None => {
                let own = Path::new(ON_OWN_BPFFS);
                let system = Path::new(ON_SYSTEM_BPFFS);
                // Pins that exist decide before mounts that may have come since.
                let use_own = pins::is_on(own, pins::BPFFS_MAGIC)
                    || !system.parent().is_some_and(|parent| pins::is_on(parent, pins::BPFFS_MAGIC));
                if use_own { own.to_owned() } else { system.to_owned() }
            }
        }
    }

    /// Every directory in which this configuration may have left pins.
    pub(crate) fn possible_pin_dirs(&self) -> Vec<PathBuf> {
        match &self.pin_dir {
            Some(path) => vec![path.clone()],
            None => [ON_SYSTEM_BPFFS, ON_OWN_BPFFS].map(PathBuf::from).to_vec(),
        }
    }
}

fn default_cgroup_root() -> Result<PathBuf, Error> {
    let namespace = fs::metadata("/proc/thread-self/ns/cgroup").map(|metadata| metadata.ino());
    if namespace.is_ok_and(|inode| inode != INITIAL_CGROUP_NAMESPACE) {
        return Err(Error::Config(
            "this process is in a cgroup namespace of its own and cannot see the node's cgroups: mount the \
             host's cgroup v2 and set its path as the cgroup root"
                .to_owned(),
        ));
    }
    let path = Path::new("/proc/thread-self/mounts");
    let mounts = fs::read_to_string(path).map_err(Error::file("read", path))?;
    cgroup2_mount(&mounts).ok_or_else(|| {
        Error::Config(
            "no cgroup v2 is mounted: mount one (mount -t cgroup2 none DIR) or set the cgroup root"
                .to_owned(),
        )
    })
}

/// The mount point of the first cgroup v2 in the text of /proc/mounts.
fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| pins::unescape(point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_host_has_its_cgroup2_beside_the_controllers() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_mount(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(cgroup2_mount("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"), None);
    }

    #[test]
    fn a_configured_pin_directory_is_the_only_one() {
        let config = Config { pin_dir: Some("/run/x".into()), ..Config::default() };
        assert_eq!(config.pin_dir(), PathBuf::from("/run/x"));
        assert_eq!(config.possible_pin_dirs(), [PathBuf::from("/run/x")]);
    }

    #[test]
    fn a_directory_that_is_no_cgroup_is_refused() {
        let config = Config { cgroup_root: Some("/proc".into()), ..Config::default() };
        assert!(matches!(config.cgroup_root(), Err(Error::Config(_))));
    }
}
