//! The CNI network configuration list. Its presence tells the container runtime that pods may come, so it is
//! written last.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::Error;
use crate::node::{remove_file, write_if_different};

/// Versions of the CNI spec that the plugin speaks; runtimes of spec 1.1 choose from these.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The key by which a list is known to be netd's; runtimes pass over keys that they do not know.
const MARK: &str = "netd.io/managed-by";
/// The plugin's type in a list of netd's.
const PLUGIN: &str = "netd-cni";

/// What the list says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniConfig {
    /// Name of the network.
    pub network: String,
    /// The version for runtimes that know of one only; libcni before 1.1 refuses a later one than it knows.
    pub version: String,
    /// Whether the node has a route to each pod, in place of a bridge.
    pub routed: bool,
    /// Name of the bridge; where pods are routed, that of pods from before.
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
            routed: false,
            bridge: "netd0".to_owned(),
            ranges_file: PathBuf::from("/run/netd/podcidrs.json"),
            data_dir: PathBuf::from("/var/lib/netd/ipam"),
            masquerade: true,
        }
    }
}

/// Renders the list as JSON with a newline at its end.
pub fn conflist(config: &CniConfig) -> String {
    let mut list = json!({
        "cniVersion": config.version,
        "cniVersions": VERSIONS,
        "name": config.network,
        MARK: "netd run; netd cleanup removes it",
        "plugins": [{
            "type": PLUGIN,
            "bridge": config.bridge,
            "ipMasq": config.masquerade,
            "capabilities": { "bandwidth": true, "portMappings": true },
            "ipam": {
                "type": "netd",
                "rangesFile": config.ranges_file,
                "dataDir": config.data_dir,
            },
        }],
    });
    if config.routed {
        list["plugins"][0]["mode"] = json!("routed");
    }
    format!("{list:#}\n")
}

/// Writes the list in one step and says whether it changed the file.
///
/// # Errors
/// When the file or its directory cannot be written, and when somebody else's list is in its place.
pub fn write_conflist(path: &Path, config: &CniConfig) -> Result<bool, Error> {
    if path.exists() && !is_managed(path) {
        let reason = "it is not netd's: move it away, or name another file (cni.conflist)";
        return Err(Error::file("replace", path, reason));
    }
    write_if_different(path, conflist(config).as_bytes())
}

/// Removes the list if it is netd's, and says whether it did: the runtime then takes the node for not ready and starts
/// no more pods. Absent is success.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_conflist(path: &Path) -> Result<bool, Error> {
    if !is_managed(path) {
        return Ok(false);
    }
    remove_file(path).map(|()| true)
}

/// Whether the list in a file is one that a netd wrote: it says so, or has netd's plugin alone with the keys that a netd
/// of before wrote. One that names netd's plugin among others is its author's.
fn is_managed(path: &Path) -> bool {
    let bytes = std::fs::read(path).unwrap_or_default();
    let Ok(Value::Object(list)) = serde_json::from_slice::<Value>(&bytes) else { return false };
    if list.contains_key(MARK) {
        return true;
    }
    let known = |keys: &[&str], object: &serde_json::Map<String, Value>| {
        object.len() == keys.len() && keys.iter().all(|key| object.contains_key(*key))
    };
    let plugin = match list.get("plugins").and_then(Value::as_array).map(Vec::as_slice) {
        Some([Value::Object(plugin)]) => plugin,
        _ => return false,
    };
    known(&["cniVersion", "cniVersions", "name", "plugins"], &list)
        && known(&["type", "bridge", "ipMasq", "ipam"], plugin)
        && plugin.get("type").and_then(Value::as_str) == Some(PLUGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_json_of_one_plugin_of_our_type() {
        let text = conflist(&CniConfig { bridge: "br\"x".to_owned(), ..CniConfig::default() });
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["cniVersion"], "0.4.0");
        assert_eq!(value["plugins"][0]["type"], "netd-cni");
        assert_eq!(value["plugins"][0]["bridge"], "br\"x");
        assert_eq!(value["plugins"][0]["ipam"]["rangesFile"], "/run/netd/podcidrs.json");
        assert_eq!(value["plugins"][0].get("mode"), None, "a plugin of before knows no modes");
        let routed = conflist(&CniConfig { routed: true, ..CniConfig::default() });
        let routed: Value = serde_json::from_str(&routed).unwrap();
        assert_eq!(routed["plugins"][0]["mode"], "routed");
        assert_eq!(value["plugins"].as_array().unwrap().len(), 1);
        for capability in ["bandwidth", "portMappings"] {
            assert_eq!(value["plugins"][0]["capabilities"][capability], true, "{capability}");
        }
    }

    #[test]
    fn it_is_written_once_and_removed_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.d/00-netd.conflist");
        assert!(write_conflist(&path, &CniConfig::default()).unwrap());
        assert!(!write_conflist(&path, &CniConfig::default()).unwrap());
        assert!(write_conflist(&path, &CniConfig { masquerade: false, ..CniConfig::default() }).unwrap());
        assert!(remove_conflist(&path).unwrap() && !remove_conflist(&path).unwrap());
        assert!(!path.exists());
        let left: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert!(left.is_empty(), "a temporary file stays: {left:?}");
    }

    #[test]
    fn a_list_of_somebody_else_is_neither_replaced_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("10-own.conflist");
        let chained = r#"{"cniVersion":"1.0.0","cniVersions":[],"name":"own","plugins":[{"type":"netd-cni"},{"type":"tuning"}]}"#;
        let single =
            r#"{"cniVersion":"1.0.0","name":"own","plugins":[{"type":"netd-cni","ipam":{"type":"netd"}}]}"#;
        for text in [chained, single, "", "{", "[]", "{}"] {
            std::fs::write(&path, text).unwrap();
            let error = write_conflist(&path, &CniConfig::default()).unwrap_err().to_string();
            assert!(error.contains("10-own.conflist") && error.contains("cni.conflist"), "{error}");
            assert!(!remove_conflist(&path).unwrap());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        // What a netd of before wrote had no mark.
        let mut list: Value = serde_json::from_str(&conflist(&CniConfig::default())).unwrap();
        list.as_object_mut().unwrap().remove(MARK);
        list["plugins"][0].as_object_mut().unwrap().remove("capabilities");
        std::fs::write(&path, list.to_string()).unwrap();
        assert!(write_conflist(&path, &CniConfig::default()).unwrap());
        assert!(remove_conflist(&path).unwrap());
    }
}
