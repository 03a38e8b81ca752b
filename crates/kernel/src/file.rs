//! Files that survive a crash.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;

use crate::{Error, Result};

/// Replaces the content of `path` so that a reader, or a reboot, sees the old or the new bytes and nothing between.
///
/// The bytes go to a temporary file in the same directory, are synced, renamed over `path`, and the directory is
/// synced. `mode` is exact: the process's umask does not apply.
///
/// # Errors
/// When the directory is absent or not writable; the temporary file is removed then.
pub fn atomic_write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let directory = directory_of(path);
    let name =
        path.file_name().ok_or_else(|| Error::Invalid { what: format!("file name {}", path.display()) })?;
    let temporary = directory.join(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    let written = write_synced(&temporary, bytes, mode)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| File::open(&directory)?.sync_all());
    written.map_err(|cause| {
        // The rename may have happened: then there is nothing to remove and that is fine.
        let _ = fs::remove_file(&temporary);
        Error::io(format!("write {}", path.display()), cause)
    })
}

/// Returns the kernel's random id of this boot: state that carries another id was written before a reboot.
pub fn boot_id() -> Result<String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = read_short(Path::new(PATH)).map_err(|e| Error::io(format!("read {PATH}"), e))?;
    Ok(text.trim().to_owned())
}

/// Opens a file for reading with one system call; musl's open(2) makes two.
pub(crate) fn open_for_reading(path: &Path, flags: OFlag) -> io::Result<File> {
    let flags = flags | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    Ok(openat(AT_FDCWD, path, flags, Mode::empty())?.into())
}

/// Reads a file of the kernel's that is short, as those below `/proc/sys` are, with three system calls.
pub(crate) fn read_short(path: &Path) -> io::Result<String> {
    let mut file = open_for_reading(path, OFlag::empty())?;
    let mut bytes = [0; 128];
    let length = file.read(&mut bytes)?;
    let mut text = bytes.get(..length).unwrap_or_default().to_vec();
    // The kernel gives such a file in one piece; this one is longer than supposed.
    if length == bytes.len() {
        file.read_to_end(&mut text)?;
    }
    String::from_utf8(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    }
}

fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // A leftover of a killed process with our pid is replaced, never followed if it is a link.
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_content_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        atomic_write(&path, b"one", 0o600).unwrap();
        atomic_write(&path, b"two", 0o644).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        fs::create_dir(&path).unwrap();
        assert!(atomic_write(&path, b"x", 0o600).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_boot_id_is_a_uuid() {
        assert_eq!(boot_id().unwrap().len(), 36);
    }
}
