//! The machine's own view of the file system: what it writes to /etc, /opt, /var and /run stays in its
//! directory.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

/// Directories whose content is the host's, and whose changes are the machine's.
const OVERLAID: [&str; 3] = ["/etc", "/opt", "/var"];
/// Directories overlays are made in, which must be real since an overlay cannot lie on an overlay.
const REAL: [&str; 3] = ["/var/lib/containerd", "/var/lib/kubelet", "/var/lib/cni"];
const CGROUPS: &str = "/sys/fs/cgroup";

/// Makes the view in the mount namespace of this process; `dir` holds what it is made of.
pub(super) fn make(dir: &Path) -> Result<()> {
    propagate("/", MsFlags::MS_PRIVATE)?;
    for path in OVERLAID {
        overlay(dir, path)?;
    }
    for path in REAL {
        let real = dir.join("real").join(path.trim_start_matches('/'));
        fs::create_dir_all(&real)?;
        fs::create_dir_all(path)?;
        bind(&real, Path::new(path))?;
    }
    fresh("tmpfs", "/run", Some("mode=755"))?;
    for path in ["/run/netns", "/run/lock", "/run/netd"] {
        fs::create_dir_all(path)?;
    }
    own_sysfs(dir)?;
    // Last: containers get their mounts by propagation.
    propagate("/", MsFlags::MS_SHARED)
}

/// A sysfs that shows the devices of this network namespace, with the cgroup tree of the host and a BPF file
/// system.
fn own_sysfs(dir: &Path) -> Result<()> {
    let saved = dir.join("cgroup");
    fs::create_dir_all(&saved)?;
    bind(Path::new(CGROUPS), &saved)?;
    fresh("sysfs", "/sys", None)?;
    bind(&saved, Path::new(CGROUPS))?;
    fresh("bpf", "/sys/fs/bpf", None)
}

fn overlay(dir: &Path, path: &str) -> Result<()> {
    let base = dir.join("overlay").join(path.trim_start_matches('/'));
    let (upper, work) = (base.join("upper"), base.join("work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let options = format!("lowerdir={path},upperdir={},workdir={}", upper.display(), work.display());
    fresh("overlay", path, Some(&options))
}

fn fresh(kind: &str, path: &str, options: Option<&str>) -> Result<()> {
    mount(Some(kind), path, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("mount {kind} on {path}"))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("bind {} to {}", from.display(), to.display()))
}

fn propagate(path: &str, how: MsFlags) -> Result<()> {
    mount(None::<&str>, path, None::<&str>, how | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("change the propagation of {path}"))
}
