//! A host with pods, and calls of the plugin.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ipnetwork::IpNetwork;
use netd_ipam::{Leases, Ledger};
use netd_kernel::exec::{Output, Spawn};
use netd_kernel::netlink::{NeighbourState, VethSpec};
use netd_kernel::netns::NETNS_DIR;
use netd_kernel::{Namespace, Netlink};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Much longer than a call takes on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A named network namespace, removed when dropped.
pub(crate) struct Space {
    pub(crate) namespace: Namespace,
    pub(crate) path: PathBuf,
}

impl Space {
    pub(crate) fn new(role: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("nd-{}-{}-{role}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(NETNS_DIR).join(name);
        let namespace = Namespace::create(&path).expect("making network namespaces needs root");
        Self { namespace, path }
    }

    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(work).unwrap()
    }

    pub(crate) fn netlink(&self) -> Netlink {
        Netlink::open_in(&self.namespace).unwrap()
    }

    pub(crate) fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// The names of all links but loopback.
    pub(crate) fn links(&self) -> Vec<String> {
        self.netlink().links().unwrap().into_iter().filter(|l| !l.loopback).map(|l| l.name).collect()
    }

    pub(crate) fn listen(&self, address: &str) -> TcpListener {
        self.run(|| TcpListener::bind((address.parse::<IpAddr>().unwrap(), 0))).unwrap()
    }

    /// Connects and returns the address the listener saw.
    pub(crate) fn connect(&self, listener: &TcpListener) -> std::io::Result<IpAddr> {
        let to: SocketAddr = listener.local_addr()?;
        let _stream = self.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))?;
        listener.accept().map(|(_, peer)| peer.ip())
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Namespace::remove(&self.path);
    }
}

/// A node: its namespace and its data directory.
pub(crate) struct Host {
    pub(crate) space: Space,
    pub(crate) data: TempDir,
    pub(crate) config: Value,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::with_ranges(json!([[{ "subnet": "172.16.1.0/24" }]]))
    }

    pub(crate) fn with_ranges(ranges: Value) -> Self {
        let data = TempDir::new().unwrap();
        let config = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "netd", "clusterCIDRs": ["172.16.0.0/16"],
            "ipam": { "type": "netd", "ranges": ranges, "dataDir": data.path().join("ipam"), "coolDownSeconds": 0 },
        });
        Self { space: Space::new("host"), data, config }
    }

    /// Calls the plugin with this environment, besides a `CNI_PATH` that has nothing in it.
    pub(crate) fn call(&self, env: &[(&str, &str)], stdin: &[u8]) -> Output {
        self.spawn(env).output(stdin, LIMIT).unwrap()
    }

    pub(crate) fn spawn(&self, env: &[(&str, &str)]) -> Spawn {
        let mut spawn = Spawn::new(env!("CARGO_BIN_EXE_netd-cni"), Vec::<OsString>::new());
        spawn.env = env.iter().map(|(key, value)| (OsString::from(key), OsString::from(value))).collect();
        spawn.netns = Some(self.space.path.clone());
        spawn
    }

    pub(crate) fn verb(&self, verb: &str, id: &str, netns: &str, config: &Value) -> Output {
        self.call(&environment(verb, id, netns), config.to_string().as_bytes())
    }

    /// An ADD that must succeed.
    pub(crate) fn add(&self, id: &str, pod: &Space) -> Value {
        let output = self.verb("ADD", id, pod.path(), &self.config);
        assert_eq!(output.status, 0, "{}{}", text(&output), output.complaint());
        assert!(output.stderr.is_empty(), "{}", output.complaint());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// A DEL that must succeed.
    pub(crate) fn del(&self, id: &str, netns: &str) {
        let output = self.verb("DEL", id, netns, &self.config);
        assert_eq!(output.status, 0, "{}{}", text(&output), output.complaint());
        assert!(output.stdout.is_empty(), "{}", text(&output));
    }

    pub(crate) fn check(&self, id: &str, pod: &Space, previous: &Value) -> Output {
        let mut config = self.config.clone();
        config["prevResult"] = previous.clone();
        self.verb("CHECK", id, pod.path(), &config)
    }

    pub(crate) fn leases(&self) -> Leases {
        Ledger::read(&Ledger::path_of(&self.data.path().join("ipam"), "pods")).unwrap()
    }

    /// Everything that may be left of pods: links but the bridge, permanent neighbours, leases.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut netlink = self.space.netlink();
        let mut left: Vec<String> = self.space.links().into_iter().filter(|name| name != "netd0").collect();
        let neighbours = netlink.neighbours(None).unwrap();
        left.extend(
            neighbours
                .iter()
                .filter(|n| n.state == NeighbourState::Permanent && !n.ip.is_multicast())
                .map(|n| n.ip.to_string()),
        );
        left.extend(self.leases().iter().map(|lease| lease.owner.to_string()));
        left
    }

    /// Joins the host to an outside machine that has no route to the pods: 192.168.77.1 and .2.
    pub(crate) fn outside(&self) -> Space {
        let outside = Space::new("out");
        let mut netlink = self.space.netlink();
        let index = netlink
            .add_veth(&VethSpec {
                name: "up0",
                peer_name: "up0",
                peer_namespace: Some(outside.namespace.fd()),
                ..VethSpec::default()
            })
            .unwrap();
        netlink.add_address(index, network("192.168.77.1/24"), true).unwrap();
        netlink.set_up(index).unwrap();
        let mut netlink = outside.netlink();
        let index = netlink.link("up0").unwrap().unwrap().index;
        netlink.add_address(index, network("192.168.77.2/24"), true).unwrap();
        netlink.set_up(index).unwrap();
        outside
    }
}

pub(crate) fn network(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

pub(crate) fn environment<'a>(verb: &'a str, id: &'a str, netns: &'a str) -> [(&'static str, &'a str); 5] {
    [
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", id),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u-1"),
    ]
}

pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The error that a failed call told: it must be one, on standard output.
pub(crate) fn error_of(output: &Output) -> Value {
    assert_ne!(output.status, 0, "the call succeeded: {}", text(output));
    let error: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {:?}, stderr {}", text(output), output.complaint()));
    assert!(
        error["cniVersion"].is_string() && error["msg"].as_str().is_some_and(|msg| !msg.is_empty()),
        "{error}"
    );
    assert!(error["code"].as_u64().is_some_and(|code| code != 0), "{error}");
    error
}

pub(crate) fn pod_address(result: &Value) -> String {
    let address = result["ips"][0]["address"].as_str().unwrap();
    address.split('/').next().unwrap().to_owned()
}
