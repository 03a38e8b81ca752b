//! What can go wrong in a lab.

use std::io;
use std::path::PathBuf;

use crate::record::Removed;

/// A lab could not be built, used or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller is not root.
    #[error("network namespaces need root: run this with sudo")]
    NotRoot,
    /// There is a lab of this name, or one in this directory.
    #[error("a lab named {name} is standing ({} exists): remove it first", state_dir.display())]
    Standing {
        /// The lab's name.
        name: String,
        /// What shows that: its state directory, its cgroup or one of its namespaces.
        state_dir: PathBuf,
    },
    /// The kernel, or a program that was started, said no.
    #[error(transparent)]
    Kernel(#[from] netd_kernel::Error),
    /// A file operation failed.
    #[error("{action}: {cause}")]
    Io {
        /// What was tried, with its object.
        action: String,
        /// What the system said.
        cause: io::Error,
    },
    /// The caller asked for something that cannot be.
    #[error("invalid {what}")]
    Invalid {
        /// What was wrong, with its value.
        what: String,
    },
    /// Something that was asked for by name is not in this lab.
    #[error("no {what} in this lab")]
    Absent {
        /// What was looked for.
        what: String,
    },
    /// The CNI plugin refused.
    #[error("CNI {verb} for pod {pod}: {message} (code {code}){}", details_text(details))]
    Cni {
        /// The CNI command, such as `ADD`.
        verb: &'static str,
        /// The pod's name.
        pod: String,
        /// The error code; 0 to 99 are the specification's.
        code: u32,
        /// The short text.
        message: String,
        /// The long text, or what the plugin wrote to standard error.
        details: String,
    },
    /// An agent process did not do what it was started for.
    #[error("agent in {place}: {detail}")]
    Agent {
        /// The namespace it ran in.
        place: String,
        /// What went wrong.
        detail: String,
    },
    /// Something of a lab could not be removed; all else was.
    #[error("removed {removed}, but: {}", failures.join("; "))]
    Teardown {
        /// What was removed.
        removed: Removed,
        /// What was not, and why.
        failures: Vec<String>,
    },
}

impl Error {
    pub(crate) fn io(action: impl Into<String>, cause: io::Error) -> Self {
        Self::Io { action: action.into(), cause }
    }
}

fn details_text(details: &str) -> String {
    if details.is_empty() { String::new() } else { format!(": {details}") }
}
