//! Locks between processes, by flock(2).

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::{Error, Result};

/// A lock on a file, held until dropped; the kernel drops it when the process ends, however it ends.
///
/// The file stays: removing a lock file would let two processes lock two files of one name.
#[derive(Debug)]
pub struct FileLock {
    held: Flock<File>,
    path: PathBuf,
}

/// A file to lock, open and not locked.
#[derive(Debug)]
pub struct LockFile {
    file: File,
    path: PathBuf,
}

/// Bytes of stack of the thread that waits.
const STACK: usize = 64 * 1024;

impl FileLock {
    /// Locks `path`, which is created with mode 0600 if absent, waiting for other holders up to `timeout`.
    ///
    /// A symbolic link at `path` is refused. Threads of one process exclude each other as well.
    ///
    /// # Errors
    /// [`Error::Timeout`] names the holder's process where `/proc/locks` tells it.
    pub fn exclusive(path: &Path, timeout: Duration) -> Result<Self> {
        LockFile::open(path)?.exclusive(timeout)
    }

    /// As [`FileLock::exclusive`], but holders of this kind do not exclude each other.
    ///
    /// # Errors
    /// As [`FileLock::exclusive`].
    pub fn shared(path: &Path, timeout: Duration) -> Result<Self> {
        LockFile::open(path)?.take(timeout, [FlockArg::LockSharedNonblock, FlockArg::LockShared])
    }

    /// Lets others have the lock; the file stays open.
    ///
    /// # Errors
    /// When the kernel refuses, which it has no reason to.
    pub fn unlock(self) -> Result<LockFile> {
        let Self { held, path } = self;
        match held.unlock() {
            Ok(file) => Ok(LockFile { file, path }),
            Err((_, errno)) => Err(Error::sys(format!("unlock {}", path.display()), errno)),
        }
    }
}

impl LockFile {
    /// Opens `path`, which is created with mode 0600 if absent. A symbolic link is refused.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path)
            .map_err(|e| Error::io(action(path), e))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Waits for the lock.
    ///
    /// # Errors
    /// As [`FileLock::exclusive`].
    pub fn exclusive(self, timeout: Duration) -> Result<FileLock> {
        self.take(timeout, [FlockArg::LockExclusiveNonblock, FlockArg::LockExclusive])
    }

    /// The wait is the kernel's own, in the order of those who came (`fs/locks.c:flock_lock_inode`), so a hundred who
    /// wait cost no more than one; it is done by a thread, so that it can be given up. Without others there is none.
    fn take(self, timeout: Duration, [at_once, waiting]: [FlockArg; 2]) -> Result<FileLock> {
        let Self { file, path } = self;
        let file = match Flock::lock(file, at_once) {
            Ok(held) => return Ok(FileLock { held, path }),
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
            Err((_, errno)) => return Err(Error::sys(action(&path), errno)),
        };
        let inode = file.metadata().map(|metadata| metadata.ino()).unwrap_or_default();
        let (sender, receiver) = mpsc::sync_channel(1);
        // Where nobody waits any more the answer is dropped, and with it the lock.
        let waiter = move || drop(sender.send(wait(file, waiting)));
        let thread = thread::Builder::new().name("lock".to_owned()).stack_size(STACK).spawn(waiter);
        thread.map_err(|e| Error::io(action(&path), e))?;
        match receiver.recv_timeout(timeout) {
            Ok(Ok(held)) => Ok(FileLock { held, path }),
            Ok(Err(errno)) => Err(Error::sys(action(&path), errno)),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(Error::Timeout { action: action(&path), limit: timeout, hint: holder(inode) })
            }
        }
    }
}

fn action(path: &Path) -> String {
    format!("lock {}", path.display())
}

fn wait(mut file: File, kind: FlockArg) -> std::result::Result<Flock<File>, Errno> {
    loop {
        match Flock::lock(file, kind) {
            Ok(held) => return Ok(held),
            Err((back, Errno::EINTR)) => file = back,
            Err((_, errno)) => return Err(errno),
        }
    }
}

/// Finds who holds the lock, from lines such as `1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF`.
fn holder(inode: u64) -> Option<String> {
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
    use std::sync::atomic::{AtomicU32, Ordering};

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
        thread::scope(|scope| {
            let waiting = scope.spawn(|| FileLock::exclusive(&path, Duration::from_secs(10)).map(drop));
            drop(held);
            waiting.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_hundred_at_once_all_get_it_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let (inside, most) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..100 {
                scope.spawn(|| {
                    let held = FileLock::exclusive(&path, Duration::from_secs(30)).unwrap();
                    most.fetch_max(1 + inside.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(held);
                });
            }
        });
        assert_eq!(most.into_inner(), 1);
    }

    #[test]
    fn a_lock_that_was_given_up_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::exclusive(&path, Duration::ZERO).unwrap();
        for _ in 0..5 {
            assert!(FileLock::exclusive(&path, Duration::from_millis(1)).unwrap_err().is_timeout());
        }
        let open = held.unlock().unwrap();
        // Those who gave up get it and drop it at once.
        drop(open.exclusive(Duration::from_secs(10)).unwrap());
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
