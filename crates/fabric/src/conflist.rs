//! The CNI network configuration list. Its presence tells the container runtime that pods may come, so it is
//! written last.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::error::Error;
use crate::node::{remove_file, write_if_different};

/// Versions of the CNI spec that the plugin speaks; runtimes of spec 1.1 choose from these.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What the list says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniConfig {
    /// Name of the network.
    pub network: String,
    /// The version for runtimes that know of one only; libcni before 1.1 refuses a later one than it knows.
    pub version: String,
    /// Name of the bridge.
    pub bridge: String,
    /// The file that [`crate::ensure_node`] writes.
    pub ranges_file: PathBuf,
    /// Directory of the address ledger.
    pub data_dir: PathBuf,
    /// Whether what pods send out of the cluster gets the node's address.
    pub masquerade: bool,
}

impl Default for CniConfig {
    fn default() -> Self {
        Self {
            network: "netd".to_owned(),
            version: "0.4.0".to_owned(),
            bridge: "netd0".to_owned(),
            ranges_file: PathBuf::from("/run/netd/podcidrs.json"),
            data_dir: PathBuf::from("/var/lib/netd/ipam"),
            masquerade: true,
        }
    }
}

/// Renders the list as JSON with a newline at its end.
pub fn conflist(config: &CniConfig) -> String {
    let list = json!({
        "cniVersion": config.version,
        "cniVersions": VERSIONS,
        "name": config.network,
        "plugins": [{
            "type": "netd-cni",
            "bridge": config.bridge,
            "ipMasq": config.masquerade,
            "ipam": {
                "type": "netd",
                "rangesFile": config.ranges_file,
                "dataDir": config.data_dir,
            },
        }],
    });
    format!("{list:#}\n")
}

/// Writes the list in one step and says whether it changed the file.
///
/// # Errors
/// When the file or its directory cannot be written.
pub fn write_conflist(path: &Path, config: &CniConfig) -> Result<bool, Error> {
    write_if_different(path, conflist(config).as_bytes())
}

/// Removes the list: the runtime takes the node for not ready and starts no more pods. Absent is success.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_conflist(path: &Path) -> Result<(), Error> {
    remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_json_of_one_plugin_of_our_type() {
        let text = conflist(&CniConfig { bridge: "br\"x".to_owned(), ..CniConfig::default() });
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["cniVersion"], "0.4.0");
        assert_eq!(value["plugins"][0]["type"], "netd-cni");
        assert_eq!(value["plugins"][0]["bridge"], "br\"x");
        assert_eq!(value["plugins"][0]["ipam"]["rangesFile"], "/run/netd/podcidrs.json");
        assert_eq!(value["plugins"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn it_is_written_once_and_removed_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.d/00-netd.conflist");
        assert!(write_conflist(&path, &CniConfig::default()).unwrap());
        assert!(!write_conflist(&path, &CniConfig::default()).unwrap());
        remove_conflist(&path).unwrap();
        remove_conflist(&path).unwrap();
        assert!(!path.exists());
    }
}
