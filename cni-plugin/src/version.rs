//! The versions of the CNI spec.

use crate::error::{CniError, Code};

/// A version of the CNI spec that this plugin speaks, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say all")]
pub enum Version {
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    /// Every version, oldest first.
    pub const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The latest version.
    pub const LATEST: Self = Self::V1_1_0;

    /// The version as it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Reads a version; a configuration without one is of 0.1.0 (libcni `version.ParseVersion`).
    ///
    /// # Errors
    /// Code 1 names the version and those that would do.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        if text.is_empty() {
            return Ok(Self::V0_1_0);
        }
        Self::ALL.into_iter().find(|version| version.name() == text).ok_or_else(|| {
            CniError::new(Code::IncompatibleVersion, format!("CNI version {text:?} is not supported"))
                .and(format!("supported are {}", names().join(", ")))
        })
    }
}

/// The names of all versions.
pub fn names() -> Vec<&'static str> {
    Version::ALL.into_iter().map(Version::name).collect()
}

/// What VERSION answers.
pub fn report(asked: Version) -> String {
    serde_json::json!({ "cniVersion": asked.name(), "supportedVersions": names() }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_written_and_nothing_else() {
        for version in Version::ALL {
            assert_eq!(Version::parse(version.name()), Ok(version));
        }
        assert_eq!(Version::parse(""), Ok(Version::V0_1_0));
        for unknown in ["1.2.0", "0.5.0", "1", "1.0", "v1.0.0", "1.0.0 ", "x"] {
            assert_eq!(Version::parse(unknown).unwrap_err().code, Code::IncompatibleVersion, "{unknown}");
        }
    }
}
