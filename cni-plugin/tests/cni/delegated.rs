//! Another IPAM plugin in place of the ledger: the reference host-local, under a name that is not ours.

use serde_json::{Value, json};

use super::harness::{Host, Space, environment, error_of, pod_address, text};

const HOST_LOCAL: &str = "/usr/lib/cni/host-local";

/// A host whose addresses come from host-local, called `other-ipam`; the directory of its files, and of the plugin.
fn host() -> (Host, std::path::PathBuf, String) {
    let mut host = Host::new();
    let plugins = host.data.path().join("plugins");
    std::fs::create_dir(&plugins).unwrap();
    std::os::unix::fs::symlink(HOST_LOCAL, plugins.join("other-ipam")).unwrap();
    let files = host.data.path().join("files");
    host.config["cniVersion"] = json!("1.0.0");
    host.config["ipam"] = json!({
        "type": "other-ipam", "dataDir": files, "ranges": [[{ "subnet": "10.55.0.0/24" }], [{ "subnet": "fd55::/64" }]],
        "routes": [{ "dst": "0.0.0.0/0" }],
    });
    (host, files.join("pods"), plugins.to_str().unwrap().to_owned())
}

#[expect(clippy::too_many_arguments, reason = "a call has that many parts")]
fn call(
    host: &Host,
    verb: &str,
    id: &str,
    netns: &str,
    plugins: &str,
    config: &Value,
) -> (i32, Value, String) {
    let mut env = environment(verb, id, netns).to_vec();
    env.push(("CNI_PATH", plugins));
    let output = host.call(&env, config.to_string().as_bytes());
    let value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status, value, text(&output))
}

fn files(directory: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with(['1', 'f'])).count()
}

#[test]
fn addresses_come_from_the_other_plugin_and_go_back_to_it() {
    let (host, directory, plugins) = host();
    let (pod, other) = (Space::new("pod"), Space::new("pod"));
    let (status, result, told) = call(&host, "ADD", "c1", pod.path(), &plugins, &host.config);
    assert_eq!(status, 0, "{told}");
    assert_eq!(result["ips"][0]["address"], "10.55.0.2/24");
    assert_eq!(result["ips"][1]["address"], "fd55::2/64");
    assert_eq!(files(&directory), 2);
    assert!(!host.data.path().join("ipam").exists(), "the ledger is not used");
    let (_, second, _) = call(&host, "ADD", "c2", other.path(), &plugins, &host.config);
    assert!(other.connect(&pod.listen(&pod_address(&result))).is_ok());
    let mut checked = host.config.clone();
    checked["prevResult"] = second;
    let (status, _, told) = call(&host, "CHECK", "c2", other.path(), &plugins, &checked);
    assert_eq!(status, 0, "{told}");
    for id in ["c1", "c2", "c2"] {
        let (status, _, told) = call(&host, "DEL", id, "", &plugins, &host.config);
        assert_eq!((status, told.as_str()), (0, ""));
    }
    assert_eq!(files(&directory), 0);
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn what_fails_gives_the_addresses_back() {
    let (mut host, directory, plugins) = host();
    let (pod, other) = (Space::new("pod"), Space::new("pod"));
    assert_eq!(error_of(&host.verb("ADD", "c1", pod.path(), &host.config))["code"], 7, "no such plugin");
    host.config["ipam"]["routes"] = json!([{ "dst": "10.9.0.0/16", "gw": "224.0.0.1" }]);
    let (status, error, told) = call(&host, "ADD", "c1", pod.path(), &plugins, &host.config);
    assert!(status != 0 && error["code"] == 100, "{told}");
    assert!(pod.links().is_empty());
    assert_eq!(files(&directory), 0);
    host.config["ipam"] =
        json!({ "type": "other-ipam", "dataDir": host.data.path().join("files"), "subnet": "10.55.0.0/30" });
    assert_eq!(call(&host, "ADD", "c1", pod.path(), &plugins, &host.config).0, 0);
    let (_, error, told) = call(&host, "ADD", "c2", other.path(), &plugins, &host.config);
    assert_eq!(error["code"], 107, "{told}");
    assert!(told.contains("other-ipam") && told.contains("10.55.0.1-10.55.0.2"), "{told}");
    assert!(other.links().is_empty());
    host.config["cniVersion"] = json!("1.1.0");
    host.config["cni.dev/valid-attachments"] = json!([]);
    call(&host, "GC", "", "", &plugins, &host.config);
    assert!(pod.links().is_empty());
}
