//! The errors of the CNI spec, section "Error".

use serde::Serialize;

use crate::version::Version;

/// What a runtime can do about an error: codes below 100 are the spec's, the others netd's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The configuration's CNI version is unknown, or too old for the verb.
    IncompatibleVersion = 1,
    /// An environment variable is missing or cannot be meant.
    InvalidEnvironment = 4,
    /// Standard input or output failed.
    Io = 5,
    /// The configuration is not JSON.
    Decode = 6,
    /// The configuration says something impossible.
    InvalidConfig = 7,
    /// `CNI_NETNS` is no network namespace, or the host's own.
    InvalidNamespace = 8,
    /// It cannot be done now; the runtime is to try again.
    TryAgainLater = 11,
    /// STATUS: no ADD can succeed.
    NotAvailable = 50,
    /// STATUS: no ADD can succeed, and pods that exist may have lost connectivity.
    LimitedConnectivity = 51,
    /// The kernel refused a part of the wiring.
    Wiring = 100,
    /// The attachment exists: the interface is there, or the container has its address.
    Exists = 101,
    /// The ledger of addresses could not be read or written.
    Ledger = 102,
    /// CHECK found something missing or different.
    CheckFailed = 103,
    /// DEL or GC could not remove everything.
    Teardown = 104,
    /// The masquerade rules could not be installed.
    Masquerade = 105,
    /// The host ports could not be installed.
    HostPort = 106,
    /// The IPAM plugin that the configuration names failed.
    Ipam = 107,
}

/// A failed call, as the runtime gets to read it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// What the runtime can do about it.
    pub code: Code,
    /// What failed, in a line.
    pub msg: String,
    /// The cause, and what to do next.
    pub details: String,
}

impl CniError {
    /// Makes an error without details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(self, cause: impl std::fmt::Display) -> Self {
        self.and(cause)
    }

    /// Adds a sentence to the details.
    #[must_use]
    pub fn and(mut self, sentence: impl std::fmt::Display) -> Self {
        if !self.details.is_empty() {
            self.details.push_str("; ");
        }
        self.details.push_str(&sentence.to_string());
        self
    }

    /// Writes the error as the spec wants it on standard output.
    pub fn to_json(&self, version: Version) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Body<'a> {
            cni_version: &'static str,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        let body = Body {
            cni_version: version.name(),
            code: self.code as u32,
            msg: &self.msg,
            details: &self.details,
        };
        // Strings and numbers always serialise.
        serde_json::to_string(&body).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_written_as_the_spec_says() {
        let error = CniError::new(Code::InvalidConfig, "no ranges").because("\"x\"").and("set ipam.ranges");
        let json: serde_json::Value = serde_json::from_str(&error.to_json(Version::V1_0_0)).unwrap();
        let expected = serde_json::json!({
            "cniVersion": "1.0.0", "code": 7, "msg": "no ranges", "details": "\"x\"; set ipam.ranges"
        });
        assert_eq!(json, expected);
        assert_eq!(error.to_string(), "no ranges: \"x\"; set ipam.ranges");
    }
}
