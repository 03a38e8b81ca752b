//! What can fail.

use std::path::PathBuf;

/// Why a node's part of the network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused, or could not be read.
    #[error("{action}: {source}")]
    Kernel {
        /// What was attempted.
        action: &'static str,
        /// The cause.
        #[source]
        source: netd_kernel::Error,
    },
    /// A file could not be written or removed.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// For `map_err` on calls of the kernel crate.
    pub(crate) fn kernel(action: &'static str) -> impl FnOnce(netd_kernel::Error) -> Self {
        move |source| Self::Kernel { action, source }
    }

    /// A failed file operation.
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::File { action, path: path.into(), source: source.into() }
    }
}
