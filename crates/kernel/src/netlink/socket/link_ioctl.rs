//! Questions about links that netdevice(7) answers without the lock that netlink waits for.

use std::os::fd::RawFd;

use nix::errno::Errno;

use crate::{Error, Result};

mod request {
    nix::ioctl_readwrite_bad!(
        /// Tells the number of the link that has a name.
        index, libc::SIOCGIFINDEX, libc::ifreq
    );
    nix::ioctl_readwrite_bad!(
        /// Tells the name of the link that has a number.
        name, libc::SIOCGIFNAME, libc::ifreq
    );
    nix::ioctl_readwrite_bad!(
        /// Tells the MTU of the link that has a name.
        mtu, libc::SIOCGIFMTU, libc::ifreq
    );
}

/// The number of the link `name` in the namespace of a socket; `None` when there is none.
pub(super) fn index_of(socket: RawFd, name: &str) -> Result<Option<u32>> {
    let mut asked = empty();
    // The name is shorter than the place, which is checked before; what does not fit would be no name of a link.
    for (place, byte) in asked.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    // SAFETY: the descriptor is open and the request takes an ifreq.
    let answer = unsafe { request::index(socket, &mut asked) };
    if !found(answer, || format!("look up link {name}"))? {
        return Ok(None);
    }
    // SAFETY: the kernel has answered, and this is what the request answers with.
    let index = unsafe { asked.ifr_ifru.ifru_ifindex };
    Ok(u32::try_from(index).ok())
}

/// The largest packet of a link in bytes; `None` when there is no link of that number.
pub(super) fn mtu_of(socket: RawFd, index: u32) -> Result<Option<u32>> {
    let action = || format!("look up link {index}");
    let mut asked = empty();
    asked.ifr_ifru.ifru_ifindex = i32::try_from(index).unwrap_or_default();
    // SAFETY: the descriptor is open and the request takes an ifreq.
    let answer = unsafe { request::name(socket, &mut asked) };
    if !found(answer, action)? {
        return Ok(None);
    }
    // SAFETY: as above; the kernel has written the name.
    let answer = unsafe { request::mtu(socket, &mut asked) };
    if !found(answer, action)? {
        return Ok(None);
    }
    // SAFETY: the kernel has answered, and this is what the request answers with.
    let mtu = unsafe { asked.ifr_ifru.ifru_mtu };
    Ok(u32::try_from(mtu).ok())
}

fn empty() -> libc::ifreq {
    libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_ifindex: 0 } }
}

fn found(answer: nix::Result<i32>, action: impl FnOnce() -> String) -> Result<bool> {
    match answer {
        Ok(_) => Ok(true),
        Err(Errno::ENODEV | Errno::ENXIO) => Ok(false),
        Err(errno) => Err(Error::sys(action(), errno)),
    }
}
