//! Network namespaces.
//!
//! A thread that has changed its namespace is never given back to anyone else: [`Namespace::run`] and
//! [`Namespace::create`] start a thread of their own, and the process keeps the namespace it was started in.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::{Error, Result, file};

/// Where named network namespaces live; `ip netns` looks here too.
pub const NETNS_DIR: &str = "/run/netns";

/// The namespace of the thread that looks.
const CURRENT: &str = "/proc/thread-self/ns/net";

mod ioctl {
    nix::ioctl_none_bad!(
        /// `NS_GET_NSTYPE` (linux/nsfs.h): tells the `CLONE_NEW*` flag of the namespace behind a descriptor.
        namespace_type,
        nix::request_code_none!(0xb7, 3)
    );
}

/// An open network namespace; it lives at least as long as this value.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    path: PathBuf,
}

impl Namespace {
    /// Makes a new namespace and binds it to `path`, so that it outlives the process.
    ///
    /// Only a loopback link is in it, and that is down. Missing parent directories are made.
    ///
    /// # Errors
    /// [`Error::is_exists`] when something is at `path`; nothing is left behind on any error.
    pub fn create(path: &Path) -> Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .map_err(|e| Error::io(format!("make directory {}", parent.display()), e))?;
        }
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(path)
            .map_err(|e| Error::io(format!("make {}", path.display()), e))?;
        let made =
            on_own_thread(|| bind_new_namespace(path)).and_then(|done| done).and_then(|()| Self::open(path));
        if made.is_err() {
            let _ = umount2(path, MntFlags::MNT_DETACH);
            let _ = fs::remove_file(path);
        }
        made
    }

    /// Opens the namespace bound to `path`, such as `/run/netns/w1` or `/proc/4711/ns/net`.
    ///
    /// # Errors
    /// [`Error::NotFound`]-like when nothing is there; [`Error::Invalid`] when it is not a network namespace.
    pub fn open(path: &Path) -> Result<Self> {
        // A FIFO is refused below, and must not wait for a writer before.
        let file = file::open_for_reading(path, OFlag::O_NONBLOCK)
            .map_err(|e| Error::io(format!("open network namespace {}", path.display()), e))?;
        // SAFETY: the request takes no argument and the descriptor is open.
        match unsafe { ioctl::namespace_type(file.as_raw_fd()) } {
            Ok(libc::CLONE_NEWNET) => Ok(Self { file, path: path.to_owned() }),
            Ok(_) | Err(_) => Err(Error::Invalid { what: format!("network namespace {}", path.display()) }),
        }
    }

    /// Opens the namespace of the calling thread.
    pub fn current() -> Result<Self> {
        Self::open(Path::new(CURRENT))
    }

    /// Whether `path` names the namespace of the calling thread; nothing is opened.
    pub fn is_current(path: &Path) -> bool {
        let identity = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        identity(path).is_some_and(|found| identity(Path::new(CURRENT)) == Some(found))
    }

    /// Takes the namespace's name away; it ends with its last process or open descriptor. Absent is success.
    pub fn remove(path: &Path) -> Result<()> {
        match umount2(path, MntFlags::MNT_DETACH) {
            // EINVAL: not a mount point, such as after a crash between making the file and binding it.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(Error::sys(format!("unmount {}", path.display()), errno)),
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", path.display()), e))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The open descriptor, for instance to create a link in this namespace.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The path this was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether both are one namespace, whatever paths they were opened by.
    pub fn is_same(&self, other: &Self) -> Result<bool> {
        Ok(self.identity()? == other.identity()?)
    }

    /// Runs `work` in this namespace on a thread of its own and waits for it.
    ///
    /// Sockets that `work` opens stay in this namespace, whoever uses them later. A panic of `work` goes on in the
    /// caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_own_thread(|| {
            self.enter()?;
            Ok(work())
        })?
    }

    /// Runs `work` in this namespace on the calling thread and brings that back to `home`, also after a panic. For
    /// programs with one thread, and threads that nobody else uses: [`Namespace::run`] is for all others.
    ///
    /// # Errors
    /// When the thread cannot enter, or cannot go back: then it is to end soon, and to do nothing that belongs to a
    /// namespace until then.
    pub fn visit<T>(&self, home: &Self, work: impl FnOnce() -> T) -> Result<T> {
        self.enter()?;
        let back = Back(Some(home));
        let outcome = work();
        back.go()?;
        Ok(outcome)
    }

    /// Moves the calling thread here.
    fn enter(&self) -> Result<()> {
        setns(self.fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::sys(format!("enter network namespace {}", self.path.display()), errno))
    }

    /// Device and inode on nsfs: what tells namespaces apart.
    fn identity(&self) -> Result<(u64, u64)> {
        let meta = self.file.metadata().map_err(|e| Error::io(format!("stat {}", self.path.display()), e))?;
        Ok((meta.dev(), meta.ino()))
    }
}

/// The way back of a visit.
struct Back<'a>(Option<&'a Namespace>);

impl Back<'_> {
    fn go(mut self) -> Result<()> {
        self.0.take().map_or(Ok(()), Namespace::enter)
    }
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        // Only a panic of the work leaves something here, and it goes on.
        if let Some(home) = self.0.take() {
            let _ = home.enter();
        }
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}

/// Moves the calling thread to a new namespace and binds that to the existing file `path`.
fn bind_new_namespace(path: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| Error::sys("make a network namespace", errno))?;
    mount(Some(CURRENT), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|errno| Error::sys(format!("bind a network namespace to {}", path.display()), errno))
}

/// Runs `work` on a thread that ends with it.
fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|e| Error::io("start a thread", e))?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
