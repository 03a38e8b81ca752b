//! Which ADDs are under way: between taking its addresses and making its link a pod looks like a leak.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use netd_kernel::lock::FileLock;

use crate::{Error, Result};

/// How long who collects garbage may keep an ADD waiting; it needs milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Says that an ADD of a network is under way, or that none is, until dropped. The kernel forgets it with the process.
///
/// ADDs do not exclude each other; who frees addresses of pods that are gone excludes them.
#[derive(Debug)]
pub struct UnderWay {
    _lock: FileLock,
}

impl UnderWay {
    /// Says that an ADD is under way, before it takes its addresses.
    ///
    /// # Errors
    /// When addresses of the network are collected for 10 s, or the file cannot be made.
    pub fn announce(directory: &Path, network: &str) -> Result<Self> {
        let path = path_of(directory, network);
        let lock = match FileLock::shared(&path, PATIENCE) {
            Err(error) if error.is_not_found() => {
                DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|cause| {
                    Error::Io { action: "make directory", path: directory.to_owned(), cause }
                })?;
                FileLock::shared(&path, PATIENCE)?
            }
            other => other?,
        };
        Ok(Self { _lock: lock })
    }

    /// Waits until no ADD is under way and keeps new ones waiting; `None` when that takes longer than `patience`.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn exclude(directory: &Path, network: &str, patience: Duration) -> Result<Option<Self>> {
        match FileLock::exclusive(&path_of(directory, network), patience) {
            Ok(lock) => Ok(Some(Self { _lock: lock })),
            Err(error) if error.is_timeout() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn path_of(directory: &Path, network: &str) -> PathBuf {
    directory.join(format!("{network}.adds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_go_together_and_keep_the_collector_out() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("ipam");
        let adds = [(), ()].map(|()| UnderWay::announce(&directory, "pods").unwrap());
        assert!(UnderWay::exclude(&directory, "pods", Duration::ZERO).unwrap().is_none());
        assert!(UnderWay::exclude(&directory, "other", Duration::ZERO).unwrap().is_some());
        drop(adds);
        assert!(UnderWay::exclude(&directory, "pods", Duration::ZERO).unwrap().is_some());
    }
}
