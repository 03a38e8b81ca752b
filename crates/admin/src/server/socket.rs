//! The socket file: made safely, never taken from a live process, removed at the end.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::Error;

/// A socket file of this process; dropping it removes the file, if it is still the same one.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    inode: (u64, u64),
    uid: u32,
    _lock: Lock,
}

impl Socket {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The user that owns the file: the daemon's.
    pub(super) const fn uid(&self) -> u32 {
        self.uid
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.inode);
        if ours && let Err(failure) = fs::remove_file(&self.path) {
            tracing::debug!(%failure, path = %self.path.display(), "socket not removed");
        }
    }
}

/// Binds beside the path and renames into place, so that the socket never stands there with a wrong mode.
pub(super) fn bind(path: &Path) -> Result<(UnixListener, Socket), Error> {
    let at = |action: &'static str, at: &Path| {
        let path = at.to_owned();
        move |source: io::Error| Error::Socket { action, path, source }
    };
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(directory).map_err(at("create directory", directory))?;
    }
    let lock = Lock::take(path)?;
    refuse_live(path)?;
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(name);
    match fs::remove_file(&beside) {
        Ok(()) => {}
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(at("remove", &beside)(source)),
    }
    let listener = UnixListener::bind(&beside).map_err(at("bind socket", &beside))?;
    let placed = place(&listener, &beside, path);
    if placed.is_err() {
        // Best effort: the first error is the one to tell.
        let _removed = fs::remove_file(&beside);
    }
    let metadata = placed.map_err(at("place socket", path))?;
    let socket = Socket {
        path: path.to_owned(),
        inode: (metadata.dev(), metadata.ino()),
        uid: metadata.uid(),
        _lock: lock,
    };
    Ok((listener, socket))
}

/// The lock beside the socket: of two daemons that start at once, one gets it. The kernel frees it with the
/// process, so nothing is left to clean after a kill.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn take(socket: &Path) -> Result<Self, Error> {
        let mut name = socket.as_os_str().to_owned();
        name.push(".lock");
        let path = PathBuf::from(name);
        loop {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o600);
            let opened =
                options.open(&path).and_then(|file| file.metadata().map(|metadata| (file, metadata)));
            let failed = |source| Error::Socket { action: "lock", path: path.clone(), source };
            let (file, opened) = opened.map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::Running { path: socket.to_owned(), pid: running_pid(socket) });
                }
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
            // The one before may have removed the file between the opening and the lock.
            let current = fs::symlink_metadata(&path).map(|m| (m.dev(), m.ino()));
            if current.is_ok_and(|current| current == (opened.dev(), opened.ino())) {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(failure) = fs::remove_file(&self.path) {
            tracing::debug!(%failure, path = %self.path.display(), "lock not removed");
        }
    }
}

/// The process that listens on a socket, if one does.
fn running_pid(socket: &Path) -> Option<i32> {
    let stream = UnixStream::connect(socket).ok()?;
    listener_pid(stream)
}

fn place(listener: &UnixListener, beside: &Path, path: &Path) -> io::Result<fs::Metadata> {
    listener.set_nonblocking(true)?;
    fs::set_permissions(beside, Permissions::from_mode(0o600))?;
    fs::rename(beside, path)?;
    fs::symlink_metadata(path)
}

/// Refuses a path where a process listens or something else is.
fn refuse_live(path: &Path) -> Result<(), Error> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::Socket { action: "look at", path: path.to_owned(), source }),
    };
    if !metadata.file_type().is_socket() {
        return Err(Error::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Ok(stream) => Err(Error::Running { path: path.to_owned(), pid: listener_pid(stream) }),
        Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Socket { action: "try the socket", path: path.to_owned(), source }),
    }
}

/// The process that called listen: for a client that is what `SO_PEERCRED` holds (unix(7)).
fn listener_pid(stream: UnixStream) -> Option<i32> {
    stream.set_nonblocking(true).ok()?;
    tokio::net::UnixStream::from_std(stream).ok()?.peer_cred().ok()?.pid()
}
