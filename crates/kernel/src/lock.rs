//! Locks between processes, by flock(2).

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::clock::Deadline;
use crate::{Error, Result};

/// A lock on a file, held until dropped; the kernel drops it when the process ends, however it ends.
///
/// The file stays: removing a lock file would let two processes lock two files of one name.
#[derive(Debug)]
pub struct FileLock {
    _held: Flock<File>,
}

impl FileLock {
    /// Locks `path`, which is created with mode 0600 if absent, waiting for other holders up to `timeout`.
    ///
    /// A symbolic link at `path` is refused. Threads of one process exclude each other as well.
    ///
    /// # Errors
    /// [`Error::Timeout`] names the holder's process where `/proc/locks` tells it.
    pub fn exclusive(path: &Path, timeout: Duration) -> Result<Self> {
        Self::take(path, timeout, FlockArg::LockExclusiveNonblock)
    }

    /// As [`FileLock::exclusive`], but holders of this kind do not exclude each other.
    ///
    /// # Errors
    /// As [`FileLock::exclusive`].
    pub fn shared(path: &Path, timeout: Duration) -> Result<Self> {
        Self::take(path, timeout, FlockArg::LockSharedNonblock)
    }

    fn take(path: &Path, timeout: Duration, kind: FlockArg) -> Result<Self> {
        let action = || format!("lock {}", path.display());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path)
            .map_err(|e| Error::io(action(), e))?;
        let deadline = Deadline::after(timeout);
        loop {
            match Flock::lock(file, kind) {
                Ok(held) => return Ok(Self { _held: held }),
                Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) if !deadline.passed() => file = back,
                Err((back, Errno::EWOULDBLOCK)) => {
                    return Err(Error::Timeout { action: action(), limit: timeout, hint: holder(&back) });
                }
                Err((_, errno)) => return Err(Error::sys(action(), errno)),
            }
            // The usual holder is an ADD or DEL of a millisecond or two, so the poll is short.
            std::thread::sleep(Duration::from_millis(1).min(deadline.left()));
        }
    }
}

/// Finds who holds the lock, from lines such as `1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF`.
fn holder(file: &File) -> Option<String> {
    let inode = file.metadata().ok()?.ino();
    let pid = holder_in(&fs::read_to_string("/proc/locks").ok()?, inode)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("held by process {pid} {}", name.trim()).trim_end().to_owned())
}

/// Matches the inode only: the device number there is the filesystem's own and differs from stat's on btrfs and overlay.
fn holder_in(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let kind = fields.next()?;
        let pid = fields.nth(2)?.parse().ok()?;
        let file = fields.next()?;
        let found: u64 = file.rsplit(':').next()?.parse().ok()?;
        (kind == "FLOCK" && found == inode).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_holders_exclude_an_exclusive_one_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let shared = [(), ()].map(|()| FileLock::shared(&path, Duration::ZERO).unwrap());
        assert!(FileLock::exclusive(&path, Duration::ZERO).unwrap_err().is_timeout());
        drop(shared);
        let _exclusive = FileLock::exclusive(&path, Duration::ZERO).unwrap();
        assert!(FileLock::shared(&path, Duration::ZERO).unwrap_err().is_timeout());
    }

    #[test]
    fn a_second_lock_waits_and_names_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::exclusive(&path, Duration::ZERO).unwrap();
        let refused = FileLock::exclusive(&path, Duration::from_millis(20)).unwrap_err();
        assert!(refused.is_timeout());
        assert!(refused.to_string().contains(&std::process::id().to_string()), "{refused}");
        drop(held);
        FileLock::exclusive(&path, Duration::ZERO).unwrap();
    }

    #[test]
    fn a_waiting_lock_is_taken_when_the_holder_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::exclusive(&path, Duration::ZERO).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| FileLock::exclusive(&path, Duration::from_secs(10)).map(drop));
            drop(held);
            waiting.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_symbolic_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        assert_eq!(FileLock::exclusive(&path, Duration::ZERO).unwrap_err().errno(), Some(libc::ELOOP));
    }

    #[test]
    fn the_holder_is_read_from_proc_locks() {
        let text = "1: POSIX  ADVISORY  WRITE 11 fe:00:99 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 12 fe:00:99 0 EOF\n\
                    3: FLOCK  ADVISORY  WRITE 13 fe:00:99 0 EOF\nnonsense\n";
        assert_eq!(holder_in(text, 99), Some(13));
        assert_eq!(holder_in(text, 98), None);
    }
}
