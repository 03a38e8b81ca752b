//! Links that are deleted later by the daemon: how they are marked, and how the daemon is told.
//!
//! Deleting a link takes the kernel tens of milliseconds, for a hundred of one group hardly longer than for one. Who does
//! not want to wait puts a link that is down into [`GROUP`] and wakes the daemon, which deletes the group. The mark is in
//! the kernel: a daemon without memory finds what an earlier one left.
//!
//! The daemon listens on an abstract socket (unix(7)). That name belongs to the network namespace, as links do, and
//! goes with the process: whoever answers lives and sees the same links, wherever its files are.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, send, socket, sockopt,
};

use crate::{Error, Result};

/// The group of links that are to be deleted: `ndrp` in ASCII. Whatever is in it is deleted.
pub const GROUP: u32 = 0x6e64_7270;

/// The name of the socket.
const SOCKET: &[u8] = b"netd-reaper";

/// The daemon that deletes the links of [`GROUP`] in this network namespace.
#[derive(Debug)]
pub struct Reaper {
    socket: OwnedFd,
}

impl Reaper {
    /// Finds the daemon of the calling thread's network namespace; `None` without one, and when it does not take more
    /// calls. Never waits.
    pub fn find() -> Option<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
        connect(socket.as_raw_fd(), &UnixAddr::new_abstract(SOCKET).ok()?).ok()?;
        // Anybody may take the name; only root can delete links.
        let peer = getsockopt(&socket, sockopt::PeerCredentials).ok()?;
        (peer.uid() == 0).then_some(Self { socket })
    }

    /// Tells the daemon that there is something to delete; `false` when it has ended meanwhile.
    pub fn wake(&self) -> bool {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        send(self.socket.as_raw_fd(), &[1], flags).is_ok_and(|sent| sent == 1)
    }
}

/// Takes the name for the daemon in the calling thread's network namespace. The socket does not block.
///
/// # Errors
/// When another process has the name (`EADDRINUSE`).
pub fn listen() -> Result<UnixListener> {
    let failed = |e| Error::io("listen for links to delete", e);
    let address = SocketAddr::from_abstract_name(SOCKET).map_err(failed)?;
    let listener = UnixListener::bind_addr(&address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}
