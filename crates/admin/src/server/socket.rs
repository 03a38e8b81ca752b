//! The socket file: made safely, never taken from a live process, removed at the end.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::Error;

/// A socket file of this process; dropping it removes the file, if it is still the same one.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    inode: (u64, u64),
    uid: u32,
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
    let socket =
        Socket { path: path.to_owned(), inode: (metadata.dev(), metadata.ino()), uid: metadata.uid() };
    Ok((listener, socket))
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
