//! The filesystems netd needs: bpffs for pins, cgroup v2 for socket hooks.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{Error, Result};

/// A line of `/proc/self/mountinfo`, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub target: PathBuf,
    /// The directory of the filesystem that is seen there; `/` unless it is a bind mount of a part.
    pub root: PathBuf,
    /// The filesystem's type, such as `bpf` or `cgroup2`.
    pub fstype: String,
}

/// Returns all mounts this process sees, in the order they were made.
pub fn mounts() -> Result<Vec<Mount>> {
    const PATH: &str = "/proc/self/mountinfo";
    let text = fs::read_to_string(PATH).map_err(|e| Error::io(format!("read {PATH}"), e))?;
    Ok(text.lines().filter_map(parse_mount).collect())
}

/// Whether what is mounted topmost at exactly `path` is of type `fstype`.
pub fn is_mounted_as(path: &Path, fstype: &str) -> Result<bool> {
    Ok(mounts()?.iter().rfind(|mount| mount.target == path).is_some_and(|mount| mount.fstype == fstype))
}

/// Mounts a bpffs at `path` (made with mode 0700 if absent) and says whether that was needed.
pub fn mount_bpffs(path: &Path) -> Result<bool> {
    if is_mounted_as(path, "bpf")? {
        return Ok(false);
    }
    fs::create_dir_all(path).map_err(|e| Error::io(format!("make directory {}", path.display()), e))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|errno| Error::sys(format!("mount bpffs at {}", path.display()), errno))?;
    Ok(true)
}

/// Unmounts the topmost mount at `path` and says whether there was one.
pub fn unmount(path: &Path) -> Result<bool> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) => Ok(true),
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(Error::sys(format!("unmount {}", path.display()), errno)),
    }
}

/// Returns where the whole cgroup v2 hierarchy is mounted: `/sys/fs/cgroup`, or below it on a hybrid host.
///
/// # Errors
/// [`Error::NotFound`] when cgroup v2 is not mounted.
pub fn cgroup2_root() -> Result<PathBuf> {
    mounts()?
        .into_iter()
        .find(|mount| mount.fstype == "cgroup2" && mount.root == Path::new("/"))
        .map(|mount| mount.target)
        .ok_or_else(|| Error::NotFound { what: "a cgroup v2 mount".to_owned() })
}

/// Reads a line such as `41 31 0:31 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw` (proc(5)).
fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ').skip(3);
    let root = unescape(fields.next()?);
    let target = unescape(fields.next()?);
    let fstype = right.split(' ').next()?.to_owned();
    Some(Mount { target, root, fstype })
}

/// Undoes the kernel's `\040` for blanks and the like (`fs/seq_file.c:mangle_path`).
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'\\').then(|| tail.get(..3)).flatten().and_then(octal);
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mountinfo_line_is_read_with_its_escapes() {
        let line = r"41 31 0:31 /a /mnt/two\040words\134 rw,relatime shared:9 master:1 - cgroup2 none rw";
        let mount = parse_mount(line).unwrap();
        assert_eq!(mount.target, Path::new(r"/mnt/two words\"));
        assert_eq!((mount.root.as_path(), mount.fstype.as_str()), (Path::new("/a"), "cgroup2"));
        assert_eq!(parse_mount("nonsense"), None);
    }

    #[test]
    fn proc_is_mounted_as_proc_and_as_nothing_else() {
        assert!(is_mounted_as(Path::new("/proc"), "proc").unwrap());
        assert!(!is_mounted_as(Path::new("/proc"), "bpf").unwrap());
        assert!(!is_mounted_as(Path::new("/proc/sys"), "proc").unwrap());
    }
}
