//! The pin directory: bpffs, lock, and the directories of map generations.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{FsType, statfs};

use crate::error::Error;

/// Magic number of a bpffs (`BPF_FS_MAGIC`, include/uapi/linux/magic.h).
pub(crate) const BPFFS_MAGIC: FsType = FsType(0xcafe_4a11);
/// Magic number of a cgroup v2 (`CGROUP2_SUPER_MAGIC`).
pub(crate) const CGROUP2_MAGIC: FsType = FsType(0x6367_7270);

/// Version of the arrangement of files in the pin directory.
const VERSION: &str = "v1";
/// Hash of the layout of the maps.
const LAYOUT: &str = env!("NETD_EBPF_LAYOUT");
/// Source of the mounts that netd makes, to know them again.
const MOUNT_SOURCE: &str = "netd";
/// Ends the name of a directory that is being filled; without a dot, which bpffs keeps to itself.
const UNFINISHED: &str = "_new";
const LINKS: &str = "links";

/// True when `path` exists and is on a file system of this kind.
pub(crate) fn is_on(path: &Path, kind: FsType) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == kind)
}

/// A locked pin directory.
#[derive(Debug)]
pub(crate) struct Pins {
    dir: PathBuf,
    // Held until dropped; the kernel drops it with the process.
    _lock: Flock<File>,
}

impl Pins {
    /// Makes the directory ready, mounting a bpffs on it if it is not on one, and locks it.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        make_ready(dir)?;
        Self::lock(dir)
    }

    fn lock(dir: &Path) -> Result<Self, Error> {
        let file = File::open(dir).map_err(Error::file("open", dir))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { dir: dir.to_owned(), _lock: lock }),
            Err((_, Errno::EWOULDBLOCK)) => Err(Error::Busy(dir.to_owned())),
            Err((_, errno)) => Err(Error::file("lock", dir)(errno.into())),
        }
    }

    /// The directory of the links, made if missing.
    pub(crate) fn links(&self) -> Result<PathBuf, Error> {
        let path = self.dir.join(LINKS);
        make_dir(&path)?;
        Ok(path)
    }

    /// The newest finished maps of this layout.
    pub(crate) fn current(&self) -> Result<Option<PathBuf>, Error> {
        current(&self.dir)
    }

    /// Makes the directory of a new generation of maps; [`Pins::finish`] gives it its name.
    pub(crate) fn begin(&self) -> Result<PathBuf, Error> {
        let number = newest(&self.dir)?.map_or(1, |(number, _)| number.saturating_add(1));
        let path = self.dir.join(format!("{VERSION}-{LAYOUT}-{number}{UNFINISHED}"));
        remove_maps(&path)?;
        make_dir(&path)?;
        Ok(path)
    }

    /// Declares filled what [`Pins::begin`] made; returns its path from now on.
    pub(crate) fn finish(&self, unfinished: &Path) -> Result<PathBuf, Error> {
        let name = unfinished.as_os_str().as_bytes();
        let finished = PathBuf::from(OsString::from_vec(
            name.strip_suffix(UNFINISHED.as_bytes()).unwrap_or(name).to_vec(),
        ));
        fs::rename(unfinished, &finished).map_err(Error::file("rename", unfinished))?;
        Ok(finished)
    }

    /// Removes the maps of every layout and generation but `keep`.
    pub(crate) fn remove_others(&self, keep: &Path) -> Result<(), Error> {
        for path in map_dirs(&self.dir)? {
            if path != keep {
                remove_maps(&path)?;
            }
        }
        Ok(())
    }
}

/// The newest finished maps of this layout in a pin directory, if there are any.
pub(crate) fn current(dir: &Path) -> Result<Option<PathBuf>, Error> {
    Ok(newest(dir)?.map(|(_, path)| path))
}

fn newest(dir: &Path) -> Result<Option<(u32, PathBuf)>, Error> {
    let prefix = format!("{VERSION}-{LAYOUT}-");
    let numbered = map_dirs(dir)?.into_iter().filter_map(|path| {
        let number = path.file_name()?.to_str()?.strip_prefix(&prefix)?.parse().ok()?;
        Some((number, path))
    });
    Ok(numbered.max())
}

/// Directories of maps, of any layout, finished or not.
fn map_dirs(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for path in list(dir)? {
        if path.file_name().and_then(|name| name.to_str()).is_some_and(is_map_dir) {
            found.push(path);
        }
    }
    Ok(found)
}

/// `v<digits>-<hexadecimal digits>-<digits>`, with or without the ending of an unfinished one.
fn is_map_dir(name: &str) -> bool {
    let name = name.strip_suffix(UNFINISHED).unwrap_or(name);
    let mut parts = name.split('-');
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_hash = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    parts.next().and_then(|part| part.strip_prefix('v')).is_some_and(is_number)
        && parts.next().is_some_and(is_hash)
        && parts.next().is_some_and(is_number)
        && parts.next().is_none()
}

/// Removes everything that any version of netd pinned in `dir`, then the directory and the mount if it is ours.
///
/// `detach` is called with each pinned link before it is removed. Goes on after a failure and returns the first.
pub(crate) fn clean(dir: &Path, detach: impl Fn(&Path) -> Result<(), Error>) -> Result<(), Error> {
    if !dir.exists() {
        return Ok(());
    }
    let mut first = Ok(());
    let mut note = |result: Result<(), Error>| {
        if first.is_ok() {
            first = result;
        }
    };
    if is_on(dir, BPFFS_MAGIC) {
        let lock = Pins::lock(dir)?;
        let links = dir.join(LINKS);
        for link in list(&links).unwrap_or_else(|error| noted_empty(&mut note, error)) {
            note(detach(&link));
            note(remove_file(&link));
        }
        note(remove_dir(&links));
        for path in map_dirs(dir).unwrap_or_else(|error| noted_empty(&mut note, error)) {
            note(remove_maps(&path));
        }
        drop(lock);
        match is_own_mount(dir) {
            Ok(false) => {}
            Ok(true) => {
                // Lazily: a child that another thread is just starting has our descriptors until it executes
                // its program, and would keep the mount busy.
                note(
                    umount2(dir, MntFlags::MNT_DETACH)
                        .map_err(|errno| Error::file("unmount", dir)(errno.into())),
                );
            }
            Err(error) => note(Err(error)),
        }
    }
    match fs::remove_dir(dir) {
        // Somebody else's files, or somebody else's mount: the directory is not ours alone.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy) => {}
        result => note(absent_is_fine(result).map_err(Error::file("remove", dir))),
    }
    first
}

fn noted_empty(note: &mut impl FnMut(Result<(), Error>), error: Error) -> Vec<PathBuf> {
    note(Err(error));
    Vec::new()
}

fn make_ready(dir: &Path) -> Result<(), Error> {
    if let Err(error) = fs::create_dir_all(dir) {
        return Err(Error::Config(format!(
            "make the pin directory {}: {error}; mount a bpffs on {} or set another pin directory",
            dir.display(),
            dir.parent().unwrap_or(dir).display(),
        )));
    }
    if is_on(dir, BPFFS_MAGIC) {
        return Ok(());
    }
    if !list(dir)?.is_empty() {
        return Err(Error::Config(format!(
            "the pin directory {} is not on a bpffs and is not empty, so netd does not mount one there; set \
             another pin directory",
            dir.display()
        )));
    }
    mount(Some(MOUNT_SOURCE), dir, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|errno| Error::file("mount a bpffs on", dir)(errno.into()))
}

fn make_dir(path: &Path) -> Result<(), Error> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::file("make", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Paths in a directory, sorted; none if it does not exist.
fn list(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("list", dir)(error)),
    };
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()
        .map_err(Error::file("list", dir))?;
    paths.sort();
    Ok(paths)
}

fn remove_maps(dir: &Path) -> Result<(), Error> {
    for map in list(dir)? {
        remove_file(&map)?;
    }
    remove_dir(dir)
}

pub(crate) fn remove_file(path: &Path) -> Result<(), Error> {
    absent_is_fine(fs::remove_file(path)).map_err(Error::file("remove", path))
}

fn remove_dir(path: &Path) -> Result<(), Error> {
    absent_is_fine(fs::remove_dir(path)).map_err(Error::file("remove", path))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// True when netd mounted a bpffs on `dir`.
fn is_own_mount(dir: &Path) -> Result<bool, Error> {
    let path = Path::new("/proc/thread-self/mountinfo");
    let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
    let dir = fs::canonicalize(dir).map_err(Error::file("resolve", dir))?;
    Ok(has_own_mount(&text, &dir))
}

/// Reads proc_pid_mountinfo(5): mount point is field 5; type and source follow the separator.
fn has_own_mount(mountinfo: &str, dir: &Path) -> bool {
    mountinfo.lines().any(|line| {
        let Some((mount, super_block)) = line.split_once(" - ") else { return false };
        let mut super_block = super_block.split(' ');
        let (kind, source) = (super_block.next(), super_block.next());
        let point = mount.split(' ').nth(4).map(unescape);
        kind == Some("bpf") && source == Some(MOUNT_SOURCE) && point.as_deref() == Some(dir)
    })
}

/// Undoes the octal escapes of /proc/mounts and mountinfo (space, tab, newline, backslash).
pub(crate) fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend_from_slice(before.as_bytes());
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(b'\\');
                rest = after;
            }
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_maps_are_taken_for_such() {
        assert!(is_map_dir("v1-1a2b3c4d-1"));
        assert!(is_map_dir("v2-ff-12_new"));
        for name in ["links", "v1", "v1-xyz-1", "v1-ab-", "vx-ab-1", "v1-ab-1-2", "v1-ab-1_old", "other"] {
            assert!(!is_map_dir(name), "{name}");
        }
    }

    #[test]
    fn a_mount_is_ours_by_its_source() {
        let info = "34 1 0:30 / /run/netd/bpf rw - bpf netd rw,mode=700\n\
                    35 1 0:31 / /sys/fs/bpf rw shared:9 - bpf bpf rw\n";
        assert!(has_own_mount(info, Path::new("/run/netd/bpf")));
        assert!(!has_own_mount(info, Path::new("/sys/fs/bpf")));
    }

    #[test]
    fn octal_escapes_are_undone() {
        assert_eq!(unescape("/a\\040b\\134c"), PathBuf::from("/a b\\c"));
        assert_eq!(unescape("/a\\"), PathBuf::from("/a\\"));
    }
}
