//! Kernel parameters under `/proc/sys`.
//!
//! Keys under `net/` belong to the network namespace of the calling thread
//! (`net/sysctl_net.c:net_ctl_header_lookup`).

use std::path::{Component, Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;

use crate::file::read_short;
use crate::netns::Namespace;
use crate::{Error, Result};

/// Reads a parameter, such as `"net/ipv4/ip_forward"`, without the newline at its end.
///
/// # Errors
/// [`Error::is_not_found`] when this kernel has no such parameter (a module may not be loaded).
pub fn read(key: &str) -> Result<String> {
    let path = path_of(key)?;
    let value = read_short(&path).map_err(|e| Error::io(format!("read sysctl {key}"), e))?;
    Ok(value.trim_end_matches('\n').to_owned())
}

/// Sets a parameter and says whether that changed it; an equal value is not written.
///
/// Leaving an equal value alone matters where `/proc/sys` is mounted read-only, as in an unprivileged container.
pub fn write(key: &str, value: &str) -> Result<bool> {
    if read(key)? == value {
        return Ok(false);
    }
    set(key, value).map(|()| true)
}

/// Sets a parameter that most likely has another value, or leaves out one that this kernel does not have: as
/// [`write_if_present`] without a look before. An equal value in a read-only `/proc/sys` is no error.
pub fn set_if_present(key: &str, value: &str) -> Result<()> {
    match set(key, value) {
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) if read(key).is_ok_and(|found| found == value) => {
            tracing::debug!(%error, key, "a kernel parameter cannot be written, and is right");
            Ok(())
        }
        done => done,
    }
}

fn set(key: &str, value: &str) -> Result<()> {
    let failed = |e| Error::io(format!("set sysctl {key} to {value:?}"), e);
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let file = openat(AT_FDCWD, &path_of(key)?, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
    // The kernel takes a value in one piece.
    nix::unistd::write(file, value.as_bytes()).map(drop).map_err(|e| failed(e.into()))
}

/// Like [`write()`], but leaves out a parameter that this kernel does not have and then says `false`.
pub fn write_if_present(key: &str, value: &str) -> Result<bool> {
    match write(key, value) {
        Err(error) if error.is_not_found() => Ok(false),
        other => other,
    }
}

/// Reads a parameter of another network namespace.
pub fn read_in(namespace: &Namespace, key: &str) -> Result<String> {
    namespace.run(|| read(key))?
}

/// Sets a parameter of another network namespace; see [`write()`].
pub fn write_in(namespace: &Namespace, key: &str, value: &str) -> Result<bool> {
    namespace.run(|| write(key, value))?
}

/// Refuses keys that would leave `/proc/sys`; interface names inside a key may contain dots.
fn path_of(key: &str) -> Result<PathBuf> {
    let relative = Path::new(key);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if key.is_empty() || !plain {
        return Err(Error::Invalid { what: format!("sysctl name {key:?}") });
    }
    Ok(Path::new("/proc/sys").join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_cannot_leave_proc_sys() {
        for key in ["", "/etc/passwd", "../etc/passwd", "net/../../etc/passwd", "./net"] {
            assert!(matches!(read(key), Err(Error::Invalid { .. })), "{key:?} was accepted");
        }
        assert!(path_of("net/ipv4/conf/eth0.100/rp_filter").is_ok());
    }

    #[test]
    fn an_absent_key_is_not_found() {
        assert!(read("net/ipv4/no_such_thing").unwrap_err().is_not_found());
        assert!(!write_if_present("net/ipv4/no_such_thing", "1").unwrap());
    }

    #[test]
    fn a_value_is_read_without_its_newline() {
        assert_eq!(read("kernel/ostype").unwrap(), "Linux");
    }
}
