//! The pinned links: which program serves which hook of the cgroup.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::error::Error;
use crate::pins;
use crate::programs::{HOOKS, Hook, Programs};
use crate::sys;

/// A cgroup to attach to.
pub(crate) struct Cgroup {
    dir: File,
    /// The kernel's number of the cgroup: the inode of its directory.
    id: u64,
}

impl Cgroup {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let dir = File::open(path).map_err(Error::file("open cgroup", path))?;
        let id = dir.metadata().map_err(Error::file("inspect cgroup", path))?.ino();
        Ok(Self { dir, id })
    }
}

/// True when every hook is pinned and attached to the cgroup.
pub(crate) fn are_attached(links: &Path, cgroup: &Cgroup) -> bool {
    HOOKS.iter().all(|hook| is_attached(&links.join(hook.name), cgroup).unwrap_or(false))
}

fn is_attached(link: &Path, cgroup: &Cgroup) -> io::Result<bool> {
    Ok(sys::link_cgroup_id(sys::open_pinned(link)?.as_fd())? == cgroup.id)
}

/// Puts the programs behind the pinned links, making those that are missing or belong to another cgroup.
///
/// No hook is without a program in between: an existing link changes its program atomically, and a link that
/// moves to another cgroup is replaced after the new one is attached.
pub(crate) fn put(programs: &mut Programs, links: &Path, cgroup: &Cgroup) -> Result<(), Error> {
    for hook in &HOOKS {
        let path = links.join(hook.name);
        if is_attached(&path, cgroup).unwrap_or(false) {
            update(programs, hook, &path)?;
        } else {
            attach(programs, hook, &path, cgroup)?;
        }
    }
    Ok(())
}

fn update(programs: &mut Programs, hook: &Hook, path: &Path) -> Result<(), Error> {
    let link = sys::open_pinned(path).map_err(Error::file("open link", path))?;
    let program = programs.fd(hook)?;
    sys::update_link(link.as_fd(), program.as_fd())
        .map_err(Error::bpf(format!("replace the program of link {}", path.display())))
}

fn attach(programs: &mut Programs, hook: &Hook, path: &Path, cgroup: &Cgroup) -> Result<(), Error> {
    // No dot in the name: bpffs keeps those to itself.
    let fresh = path.with_file_name(format!("{}_new", hook.name));
    pins::remove_file(&fresh)?;
    let link = programs.attach(hook, &cgroup.dir)?;
    link.pin(&fresh).map_err(|error| Error::Bpf {
        action: format!("pin link {}", fresh.display()),
        source: io::Error::other(error),
    })?;
    fs::rename(&fresh, path).map_err(Error::file("rename link to", path))
}

/// Detaches a pinned link, whoever else holds it; one whose cgroup is gone is detached already.
pub(crate) fn detach(path: &Path) -> Result<(), Error> {
    let link = sys::open_pinned(path).map_err(Error::file("open link", path))?;
    sys::detach_link(link.as_fd()).map_err(Error::bpf(format!("detach link {}", path.display())))
}
