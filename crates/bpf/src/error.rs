//! Why the eBPF dataplane could not do something.

use std::io;
use std::path::PathBuf;

use netd_dataplane::ApplyError;

/// A failure, named by what failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host or the configuration does not fit; the text says what to do.
    #[error("{0}")]
    Config(String),
    /// Another process has the pin directory.
    #[error("lock {}: another netd works on it", .0.display())]
    Busy(PathBuf),
    /// A file operation failed.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A bpf(2) call failed.
    #[error("{action}: {source}")]
    Bpf {
        /// What was attempted, object included.
        action: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A map operation failed.
    #[error("{action} map {map}: {source}")]
    Map {
        /// What was attempted.
        action: &'static str,
        /// The map.
        map: &'static str,
        /// The cause.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// The programs could not be loaded.
    #[error("load the eBPF programs: {0}")]
    Load(#[source] Box<aya::EbpfError>),
    /// A program could not be loaded or attached.
    #[error("{action} eBPF program {program}: {source}")]
    Program {
        /// What was attempted.
        action: &'static str,
        /// The program.
        program: &'static str,
        /// The cause.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// The object lacks a program that this version attaches.
    #[error("find eBPF program {0} in the object")]
    NoProgram(&'static str),
    /// An apply failed, and so did taking back what it had written.
    #[error("{failure}; taking it back: {rollback}")]
    Rollback {
        /// The first failure.
        failure: Box<Self>,
        /// The failure after that.
        rollback: Box<Self>,
    },
}

impl Error {
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    pub(crate) fn bpf(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Bpf { action, source }
    }

    /// Sorted by what the caller does about it.
    pub(crate) fn into_apply(self, action: &'static str) -> ApplyError {
        match self {
            Self::Config(text) => ApplyError::Config(text),
            Self::Rollback { .. } => ApplyError::Torn { action: action.to_owned(), detail: self.to_string() },
            Self::Busy(_)
            | Self::File { .. }
            | Self::Bpf { .. }
            | Self::Map { .. }
            | Self::Load(_)
            | Self::Program { .. }
            | Self::NoProgram(_) => ApplyError::refused(action, self),
        }
    }
}
