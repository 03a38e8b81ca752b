//! One side of a comparison: a node with pods and a machine outside, and the plugins that are called there.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use netd_kernel::exec::{Output, Spawn};
use netd_kernel::netlink::VethSpec;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::harness::{LIMIT, Space, network};

/// Where Debian's containernetworking-plugins has the reference plugins.
pub(crate) const DEBIAN: &str = "/usr/lib/cni";

/// Whose plugins are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Side {
    /// The reference's, in this directory.
    Reference(PathBuf),
    /// netd-cni, installed under the reference's names.
    Ours,
}

impl Side {
    pub(crate) fn is_reference(&self) -> bool {
        matches!(self, Self::Reference(_))
    }
}

/// A node: host, two pods and a machine outside that has a route to the pods.
pub(crate) struct World {
    pub(crate) side: Side,
    pub(crate) host: Space,
    pub(crate) pods: [Space; 2],
    pub(crate) outside: Space,
    pub(crate) data: TempDir,
    plugins: PathBuf,
}

/// The node's own addresses, and those of the machine outside.
pub(crate) const NODE: [&str; 2] = ["192.168.77.1", "fd77::1"];
pub(crate) const OUTSIDE: [&str; 2] = ["192.168.77.2", "fd77::2"];

impl World {
    pub(crate) fn new(side: &Side) -> Self {
        let data = TempDir::new().unwrap();
        let plugins = match side {
            Side::Reference(directory) => directory.clone(),
            Side::Ours => install(&data.path().join("bin")),
        };
        let role = |role| Space::new(role);
        let world = Self {
            side: side.clone(),
            host: role("host"),
            pods: [role("pod"), role("pod")],
            outside: role("out"),
            data,
            plugins,
        };
        world.connect();
        world
    }

    /// Joins the node to the machine outside. Nobody waits for duplicate address detection on the node.
    fn connect(&self) {
        for space in [&self.host, &self.outside] {
            space.run(|| {
                for which in ["all", "default"] {
                    netd_kernel::sysctl::write(&format!("net/ipv6/conf/{which}/accept_dad"), "0").unwrap();
                }
            });
        }
        let spec = VethSpec {
            name: "up0",
            peer_name: "up0",
            peer_namespace: Some(self.outside.namespace.fd()),
            ..VethSpec::default()
        };
        self.host.netlink().add_veth(&spec).unwrap();
        for (space, own, other) in [(&self.host, NODE, OUTSIDE), (&self.outside, OUTSIDE, NODE)] {
            let mut netlink = space.netlink();
            let link = netlink.link("up0").unwrap().unwrap().index;
            netlink.set_up(link).unwrap();
            for (own, (length, any)) in own.iter().zip([(24, "0.0.0.0/0"), (64, "::/0")]) {
                netlink.add_address(link, network(&format!("{own}/{length}")), true).unwrap();
                let gateway = if any == "::/0" { other[1] } else { other[0] };
                let route = netd_kernel::netlink::Route::to(network(any)).via(gateway.parse().unwrap());
                netlink.add_route(&route.dev(link)).unwrap();
            }
            let lo = netlink.link("lo").unwrap().unwrap().index;
            netlink.set_up(lo).unwrap();
        }
    }

    /// Calls a plugin of this side as a runtime would.
    pub(crate) fn call(&self, plugin: &str, verb: &str, pod: Option<usize>, config: &Value) -> Output {
        self.call_with(plugin, verb, pod, config, &[])
    }

    /// As [`Self::call`], with variables that replace or add to the usual ones.
    #[expect(clippy::too_many_arguments, reason = "a call has that many parts")]
    pub(crate) fn call_with(
        &self,
        plugin: &str,
        verb: &str,
        pod: Option<usize>,
        config: &Value,
        variables: &[(&str, &str)],
    ) -> Output {
        let id = pod.map_or(String::new(), |pod| format!("container{pod}"));
        let netns = pod.map_or(String::new(), |pod| self.pods[pod].path().to_owned());
        let mut env = vec![
            ("CNI_COMMAND", verb.to_owned()),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", self.plugins.display().to_string()),
        ];
        for (key, value) in variables {
            env.retain(|(known, _)| known != key);
            env.push((key, (*value).to_owned()));
        }
        let mut spawn = Spawn::new(self.plugins.join(plugin), Vec::<OsString>::new());
        spawn.env = env.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        spawn.netns = Some(self.host.path.clone());
        let needed = "this test needs the reference plugins (package containernetworking-plugins)";
        spawn.output(config.to_string().as_bytes(), LIMIT).expect(needed)
    }

    /// Switches the pod's loopback link on, as a runtime does beside every network.
    pub(crate) fn loopback(&self, pod: usize) {
        let config = json!({ "cniVersion": "0.3.1", "name": "lo", "type": "loopback" });
        let output = self.call("loopback", "ADD", Some(pod), &config);
        assert_eq!(output.status, 0, "{}", output.complaint());
    }

    /// Runs a program in a namespace and returns its standard output.
    pub(crate) fn show(space: &Space, line: &str) -> String {
        let mut words = line.split(' ');
        let program = words.next().unwrap();
        let program =
            netd_kernel::exec::find_program(program).unwrap_or_else(|| panic!("{program} is missing"));
        let mut spawn = Spawn::new(program, words);
        spawn.netns = Some(space.path.clone());
        let output = spawn.output(b"", LIMIT).unwrap();
        assert_eq!(output.status, 0, "{line}: {}", output.complaint());
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Installs netd-cni under the names of the plugins that it replaces.
fn install(directory: &Path) -> PathBuf {
    std::fs::create_dir(directory).unwrap();
    for name in ["bridge", "loopback"] {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_netd-cni"), directory.join(name)).unwrap();
    }
    directory.to_owned()
}
