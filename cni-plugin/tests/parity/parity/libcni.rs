//! The runtime's side as runtimes have it: libcni, by its own tool `cnitool`, drives netd-cni and lists with it; and a later
//! reference than Debian's as the other side of the comparison.
//!
//! `cargo xtask test` builds the programs with Go and names their directory in `NETD_CNI_PEERS`.

use std::path::{Path, PathBuf};

use netd_kernel::exec::{Output, Spawn};
use serde_json::{Value, json};

use super::harness::{Host, LIMIT, Space, pod_address, text};
use super::rows::{later_rows, rows};
use super::same::run;
use super::world::Side;

/// Where the programs are that Go has built.
fn peers() -> PathBuf {
    let directory = std::env::var_os("NETD_CNI_PEERS");
    directory
        .expect("NETD_CNI_PEERS names no directory: `cargo xtask test` builds the programs and sets it")
        .into()
}

/// Plugins and a list of them as a runtime finds them.
struct Runtime {
    host: Host,
    network: String,
    plugins: PathBuf,
    lists: PathBuf,
}

/// Where cnitool remembers results, whatever it is told.
const RESULTS: &str = "/var/lib/cni/results";

impl Runtime {
    /// A host whose network is this list; `later` are plugins of the reference that stand behind netd.
    fn new(version: &str, later: &[(&str, Value)]) -> Self {
        let mut host = Host::new();
        let network = format!(
            "nd-{}",
            host.space.path.file_name().unwrap().to_str().unwrap().trim_start_matches("nd-")
        );
        let (plugins, lists) = (host.data.path().join("plugins"), host.data.path().join("net.d"));
        for directory in [&plugins, &lists] {
            std::fs::create_dir(directory).unwrap();
        }
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_netd-cni"), plugins.join("netd")).unwrap();
        for (plugin, _) in later {
            std::os::unix::fs::symlink(peers().join(plugin), plugins.join(plugin)).unwrap();
        }
        let mut own = host.config.clone();
        for key in ["cniVersion", "name"] {
            own.as_object_mut().unwrap().remove(key);
        }
        own["capabilities"] = json!({ "ips": true, "mac": true, "portMappings": true });
        let mut list = vec![own];
        for (plugin, keys) in later {
            let mut keys = keys.clone();
            keys["type"] = json!(plugin);
            list.push(keys);
        }
        let document = json!({ "cniVersion": version, "name": network, "plugins": list });
        std::fs::write(lists.join("10-netd.conflist"), document.to_string()).unwrap();
        host.config["name"] = json!(network);
        Self { host, network, plugins, lists }
    }

    fn call(&self, verb: &str, pod: &Space, wishes: &Value) -> Output {
        let mut spawn = Spawn::new(peers().join("cnitool"), [verb, &self.network, pod.path()]);
        let path = |path: &Path| path.as_os_str().to_owned();
        spawn.env = vec![("CNI_PATH".into(), path(&self.plugins)), ("NETCONFPATH".into(), path(&self.lists))];
        if !wishes.is_null() {
            spawn.env.push(("CAP_ARGS".into(), wishes.to_string().into()));
        }
        spawn.netns = Some(self.host.space.path.clone());
        spawn.output(b"", LIMIT).unwrap()
    }

    /// A call that must succeed.
    fn done(&self, verb: &str, pod: &Space) -> String {
        let output = self.call(verb, pod, &Value::Null);
        assert_eq!(output.status, 0, "{verb}: {}{}", text(&output), output.complaint());
        text(&output)
    }

    /// What libcni remembers of the network.
    fn remembered(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(RESULTS).into_iter().flatten().map(|entry| entry.unwrap().path());
        let ours = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(&self.network);
        entries.filter(ours).collect()
    }

    fn leftovers(&self) -> Vec<String> {
        let directory = self.host.data.path().join("ipam");
        let leases = netd_ipam::Ledger::read(&netd_ipam::Ledger::path_of(&directory, &self.network)).unwrap();
        let links = self.host.space.links().into_iter().filter(|name| name != "netd0");
        links.chain(leases.iter().map(|lease| lease.owner.to_string())).collect()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        for path in self.remembered() {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[test]
#[ignore = "needs programs that are built with Go: cargo xtask test"]
fn libcni_does_every_verb_with_netd_in_every_version() {
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let (runtime, pod, other) = (Runtime::new(version, &[]), Space::new("pod"), Space::new("pod"));
        let wishes = json!({ "ips": ["172.16.1.77"], "mac": "c2:11:22:33:44:55", "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] });
        let added = runtime.call("add", &pod, &wishes);
        assert_eq!(added.status, 0, "{version}: {}", added.complaint());
        let result: Value = serde_json::from_slice(&added.stdout).unwrap();
        assert_eq!(
            (result["cniVersion"].as_str(), pod_address(&result).as_str()),
            (Some(version), "172.16.1.77")
        );
        assert_eq!(result["interfaces"][2]["mac"], "c2:11:22:33:44:55");
        runtime.done("add", &other);
        assert!(other.connect(&pod.listen("172.16.1.77")).is_ok());
        if version >= "0.4.0" {
            let checked = runtime.call("check", &pod, &wishes);
            assert_eq!(checked.status, 0, "{version}: {}", checked.complaint());
            runtime.done("check", &other);
        }
        if version == "1.1.0" {
            runtime.done("status", &pod);
            // cnitool names no valid attachment: libcni calls DEL for those it remembers, and then GC.
            runtime.done("gc", &pod);
            assert_eq!(runtime.leftovers(), Vec::<String>::new());
        }
        for _ in 0..2 {
            runtime.done("del", &pod);
            runtime.done("del", &other);
        }
        assert_eq!(runtime.leftovers(), Vec::<String>::new(), "{version}");
        assert_eq!(runtime.remembered(), Vec::<PathBuf>::new());
    }
}

#[test]
#[ignore = "needs programs that are built with Go: cargo xtask test"]
fn libcni_runs_a_list_of_netd_and_the_latest_reference_plugins() {
    let later = [
        ("tuning", json!({ "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" } })),
        ("bandwidth", json!({ "ingressRate": 80_000_000, "ingressBurst": 8_000_000 })),
        ("firewall", json!({ "backend": "iptables" })),
        ("portmap", json!({ "backend": "nftables" })),
    ];
    let (runtime, pod) = (Runtime::new("1.1.0", &later), Space::new("pod"));
    let result: Value = serde_json::from_str(&runtime.done("add", &pod)).unwrap();
    assert!(runtime.host.space.connect(&pod.listen(&pod_address(&result))).is_ok());
    runtime.done("check", &pod);
    runtime.done("status", &pod);
    runtime.done("del", &pod);
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
    // What a runtime forgot goes by GC when its link is gone, and not before.
    runtime.done("add", &pod);
    for path in runtime.remembered() {
        std::fs::remove_file(path).unwrap();
    }
    let of_netd =
        || runtime.leftovers().into_iter().filter(|name| !name.starts_with("bwp")).collect::<Vec<_>>();
    runtime.done("gc", &pod);
    assert_eq!(of_netd().len(), 2, "a link and a lease: {:?}", of_netd());
    let mut netlink = pod.netlink();
    let link = netlink.link("eth0").unwrap().unwrap().index;
    netlink.delete_link(link).unwrap();
    runtime.done("gc", &pod);
    assert_eq!(of_netd(), Vec::<String>::new());
}

#[test]
#[ignore = "needs programs that are built with Go: cargo xtask test"]
fn the_latest_reference_has_no_other_differences_than_debians() {
    let mut rows = rows();
    rows.extend(later_rows());
    run(rows, &Side::Reference(peers()));
}

#[test]
#[ignore = "needs programs that are built with Go: cargo xtask test"]
fn libcni_reads_netds_errors() {
    let (runtime, pod) = (Runtime::new("1.1.0", &[]), Space::new("pod"));
    let refused = runtime.call("add", &pod, &json!({ "ips": ["10.9.9.9"] }));
    assert_eq!(refused.status, 1);
    let told = refused.complaint();
    assert!(told.contains("the address asked for cannot be given") && told.contains("10.9.9.9"), "{told}");
    std::fs::write(runtime.lists.join("10-netd.conflist"), json!({
        "cniVersion": "1.1.0", "name": runtime.network,
        "plugins": [{ "type": "netd", "ipam": { "rangesFile": "/nonexistent", "dataDir": runtime.host.data.path() } }],
    }).to_string()).unwrap();
    let status = runtime.call("status", &pod, &Value::Null);
    assert_eq!(status.status, 1);
    assert!(status.complaint().contains("ranges"), "{}", status.complaint());
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}
