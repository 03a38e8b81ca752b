//! Errors sorted by what the caller does about them.

/// Why an apply, resync or cleanup did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The kernel or a tool refused for now (lock held, out of memory, transient): retry with back-off.
    #[error("{action}: {source}")]
    Refused {
        /// What was attempted, object included.
        action: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel's state is not what this backend left: resync, then apply in full.
    #[error("{action}: the kernel's state differs from what was applied last: {detail}")]
    Torn {
        /// What was attempted, object included.
        action: String,
        /// What differs.
        detail: String,
    },
    /// The host cannot run this backend as configured; says what to do. The process exits with 64.
    #[error("{0}")]
    Config(String),
}

impl ApplyError {
    /// A [`ApplyError::Refused`] from any cause.
    pub fn refused(
        action: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Refused { action: action.into(), source: source.into() }
    }
}

/// Why a flow could not be traced.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The installed state could not be read.
    #[error("read the installed state of {backend}: {source}")]
    Read {
        /// Name of the backend.
        backend: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The installed state has something this version does not understand.
    #[error("understand the installed state of {backend}: {detail}")]
    Unknown {
        /// Name of the backend.
        backend: &'static str,
        /// What was met.
        detail: String,
    },
}
