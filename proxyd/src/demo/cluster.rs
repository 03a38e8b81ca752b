//! The demo's cluster: namespaces, a netd on each node, pods wired by the real plugin, manifests in a directory.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use ipnetwork::{IpNetwork, Ipv4Network};
use netd_admin::{Client, StateDoc};
use netd_kernel::clock::eventually;
use netd_kernel::exec::{Child, Spawn, Stream};
use netd_kernel::process::Signal;
use netd_lab::agent::{AgentHandle, Serve};
use netd_lab::{CniRuntime, Lab, LabSpec, Node, NodeSpec, Place, Pod, PodSpec, Removed};

use super::slices::{self, Backend};
use crate::config::{
    CniConfig, Config, DataplaneChoice, DnsConfig, EbpfOptions, HttpConfig, PathsConfig, ProxyConfig,
    SourceConfig,
};

/// The notes' topology: name, last octets of the LAN address, third octet of the pods' prefix.
const NODES: [(&str, u8, u8); 4] = [("m-k8s", 10, 0), ("w1", 101, 1), ("w2", 102, 2), ("w3", 103, 3)];
/// A machine on the LAN that is no part of the cluster.
pub(super) const OUTSIDE: &str = "outside";
/// Port of the web pods.
const WEB_PORT: u16 = 8080;
/// How long anything may take that should take milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// The cluster; parts exist as the scenes make them.
pub(super) struct Cluster {
    name: String,
    state_dir: PathBuf,
    plugin: PathBuf,
    dataplane: DataplaneChoice,
    lab: Option<Lab>,
    daemons: BTreeMap<String, Child>,
    pods: BTreeMap<String, Pod>,
    servers: BTreeMap<String, AgentHandle>,
    runtime: tokio::runtime::Runtime,
}

fn lan(host: u8) -> Result<IpNetwork> {
    let address = Ipv4Addr::new(192, 168, 1, host);
    Ok(IpNetwork::V4(Ipv4Network::new(address, 24).context("the LAN's prefix")?))
}

impl Cluster {
    /// A cluster of which nothing exists yet, with the prefix of its namespaces and the directory of its state.
    pub(super) fn new(
        (name, state_dir): (&str, &Path),
        plugin: PathBuf,
        dataplane: DataplaneChoice,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime")?;
        Ok(Self {
            name: name.to_owned(),
            state_dir: state_dir.to_owned(),
            plugin,
            dataplane,
            lab: None,
            daemons: BTreeMap::new(),
            pods: BTreeMap::new(),
            servers: BTreeMap::new(),
            runtime,
        })
    }

    /// Names of the nodes.
    pub(super) fn nodes() -> impl Iterator<Item = &'static str> {
        NODES.iter().map(|(name, _, _)| *name)
    }

    /// LAN address of a node.
    pub(super) fn node_address(node: &str) -> Result<IpAddr> {
        let found = NODES.iter().find(|(name, _, _)| *name == node);
        let (_, host, _) = found.with_context(|| format!("the demo has no node {node}"))?;
        Ok(IpAddr::V4(Ipv4Addr::new(192, 168, 1, *host)))
    }

    /// Makes the namespaces and writes the manifests.
    pub(super) fn build(&mut self) -> Result<()> {
        let mut nodes = Vec::new();
        for (name, host, third) in NODES {
            let pods =
                Ipv4Network::new(Ipv4Addr::new(172, 16, third, 0), 24).context("a node's pod prefix")?;
            nodes.push(NodeSpec {
                name: name.to_owned(),
                addresses: vec![lan(host)?],
                pod_cidrs: vec![IpNetwork::V4(pods)],
            });
        }
        let outside = NodeSpec { name: OUTSIDE.to_owned(), addresses: vec![lan(50)?], pod_cidrs: Vec::new() };
        let program = std::env::current_exe().context("find this program")?;
        let spec = LabSpec {
            name: self.name.clone(),
            state_dir: self.state_dir.clone(),
            nodes,
            clients: vec![outside],
            gateway: vec![lan(1)?],
            agent: vec![program.into_os_string(), "lab-agent".into()],
        };
        let lab = Lab::create(&spec)
            .context("make the namespaces; if another demo is in the way: netd demo --cleanup")?;
        self.lab = Some(lab);
        let directory = self.manifests_dir();
        std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        self.write_manifest("nodes.yaml", include_str!("../../../manifests/demo/nodes.yaml"))?;
        self.write_manifest("web.yaml", include_str!("../../../manifests/demo/web.yaml"))?;
        self.publish(&[])
    }

    fn lab(&self) -> Result<&Lab> {
        self.lab.as_ref().context("the namespaces do not exist yet")
    }

    /// A node, or the machine outside of the cluster.
    pub(super) fn node(&self, name: &str) -> Result<&Node> {
        Ok(self.lab()?.node(name)?)
    }

    /// A pod.
    pub(super) fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods.get(name).with_context(|| format!("there is no pod {name}"))
    }

    /// The network namespace of the client's pod, by name.
    pub(super) fn client_netns(&self) -> Result<String> {
        let path = self.pod("client")?.netns();
        Ok(path.file_name().unwrap_or_default().to_string_lossy().into_owned())
    }

    /// Starts netd on a node.
    pub(super) fn start_netd(&mut self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        let directory = node.state_dir().to_owned();
        let config = self.config(node);
        let file = directory.join("netd.yaml");
        let text = serde_saphyr::to_string(&config).context("print a node's configuration")?;
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        let spawn = Spawn {
            program: std::env::current_exe().context("find this program")?,
            args: vec!["run".into(), "--config".into(), file.into_os_string()],
            stdout: Stream::Null,
            stderr: Stream::File(directory.join("netd.log")),
            own_group: true,
            ..Spawn::default()
        };
        let child = node.spawn(spawn).with_context(|| format!("start netd on {name}"))?;
        self.daemons.insert(name.to_owned(), child);
        Ok(())
    }

    fn config(&self, node: &Node) -> Config {
        let directory = node.state_dir();
        let run_dir = directory.join("run");
        Config {
            node_name: Some(node.name().to_owned()),
            source: SourceConfig { manifests: Some(self.manifests_dir()), ..SourceConfig::default() },
            proxy: ProxyConfig {
                dataplane: self.dataplane,
                ebpf: EbpfOptions {
                    cgroup_root: Some(node.cgroup().to_owned()),
                    pin_dir: Some(directory.join("bpf")),
                },
                ..ProxyConfig::default()
            },
            cni: CniConfig {
                conflist: Some(directory.join("00-netd.conflist")),
                ranges_file: run_dir.join("podcidrs.json"),
                data_dir: directory.join("ipam"),
                ..CniConfig::default()
            },
            // The namespaces have no way to the world: other names are refused.
            dns: DnsConfig { resolv_conf: PathBuf::from("/dev/null"), ..DnsConfig::default() },
            http: HttpConfig::default(),
            paths: PathsConfig { state_dir: directory.join("lib"), run_dir },
            ..Config::default()
        }
    }

    /// Kills a node's netd with SIGKILL and waits until it is gone.
    pub(super) fn kill_netd(&mut self, name: &str) -> Result<()> {
        let mut child = self.daemons.remove(name).with_context(|| format!("no netd runs on {name}"))?;
        child.kill(Signal::Kill).with_context(|| format!("kill netd on {name}"))?;
        child.wait_timeout(PATIENCE).with_context(|| format!("wait for the killed netd on {name}"))?;
        Ok(())
    }

    fn manifests_dir(&self) -> PathBuf {
        self.state_dir.join("manifests")
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.state_dir.join(name).join("run/netd.sock")
    }

    /// What a node's netd says of itself, if it answers.
    pub(super) fn state(&self, name: &str) -> Option<StateDoc> {
        let socket = self.socket(name);
        self.runtime.block_on(async { Client::connect(&socket).await.ok()?.state().await.ok() })
    }

    /// Waits until `wanted` holds for what a node's netd says.
    pub(super) fn wait_for(
        &self,
        name: &str,
        what: &str,
        mut wanted: impl FnMut(&StateDoc) -> bool,
    ) -> Result<StateDoc> {
        let mut last = None;
        let found = eventually(PATIENCE, || {
            last = self.state(name);
            last.clone().filter(&mut wanted)
        });
        found.with_context(|| {
            let state = last.map_or_else(
                || "it does not answer".to_owned(),
                |state| {
                    state
                        .parts
                        .iter()
                        .map(|(part, state)| format!("{part}: {}", state.message))
                        .collect::<Vec<_>>()
                        .join("; ")
                },
            );
            format!("netd on {name}: not {what} within {} s ({state})", PATIENCE.as_secs())
        })
    }

    /// Waits until every enabled part of a node's netd is ready.
    pub(super) fn wait_ready(&self, name: &str) -> Result<StateDoc> {
        self.wait_for(name, "ready", |state| {
            !state.parts.is_empty() && state.parts.values().all(|part| part.ready || !part.enabled)
        })
    }

    /// Adds a pod by calling the plugin as a container runtime does.
    pub(super) fn add_pod(&mut self, node: &str, name: &str) -> Result<IpAddr> {
        let path = self.state_dir.join(node).join("00-netd.conflist");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("read the network configuration {} that netd wrote", path.display()))?;
        let conflist = serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
        let cni = CniRuntime { plugin: self.plugin.clone(), conflist };
        let spec = PodSpec { name: name.to_owned(), namespace: "default".to_owned(), cni: &cni };
        let pod = self.node(node)?.add_pod(&spec).with_context(|| format!("add the pod {name} on {node}"))?;
        let address = pod.ipv4().with_context(|| format!("the pod {name} has no address"))?;
        self.pods.insert(name.to_owned(), pod);
        Ok(IpAddr::V4(address))
    }

    /// Starts the web server of a pod.
    pub(super) fn serve(&mut self, pod: &str) -> Result<()> {
        let serve = Serve { name: pod.to_owned(), tcp: vec![WEB_PORT], udp: vec![WEB_PORT], stay: true };
        let handle = self.pod(pod)?.serve(serve).with_context(|| format!("start the server of {pod}"))?;
        self.servers.insert(pod.to_owned(), handle);
        Ok(())
    }

    /// Ends the web server of a pod: connections to it are refused from now on.
    pub(super) fn stop_serving(&mut self, pod: &str) {
        // Dropping the handle kills the server.
        self.servers.remove(pod);
    }

    /// The web pods that serve.
    pub(super) fn backends(&self) -> Result<Vec<Backend>> {
        let mut backends = Vec::new();
        for name in self.servers.keys() {
            let pod = self.pod(name)?;
            let address = pod.ipv4().with_context(|| format!("the pod {name} has no address"))?;
            backends.push(Backend {
                pod: name.clone(),
                node: pod.node().to_owned(),
                address: IpAddr::V4(address),
            });
        }
        Ok(backends)
    }

    /// Writes the EndpointSlices with these pods.
    pub(super) fn publish(&self, backends: &[Backend]) -> Result<()> {
        self.write_manifest("slices.yaml", &slices::yaml(backends, WEB_PORT))
    }

    /// Writes a file of the directory of manifests in one step, as an editor or `kubectl` would replace it.
    fn write_manifest(&self, name: &str, text: &str) -> Result<()> {
        let path = self.manifests_dir().join(name);
        netd_kernel::file::atomic_write(&path, text.as_bytes(), 0o644)
            .with_context(|| format!("write {}", path.display()))
    }

    /// Waits until every node's dataplane sends `web` to exactly these pods.
    pub(super) fn wait_programmed(&self, backends: &[Backend]) -> Result<()> {
        let mut wanted: Vec<String> =
            backends.iter().map(|backend| SocketAddr::new(backend.address, WEB_PORT).to_string()).collect();
        wanted.sort();
        for node in Self::nodes() {
            self.wait_for(node, "programmed", |state| web_endpoints(state) == wanted)?;
        }
        Ok(())
    }

    /// Prints the last lines of every daemon's log to standard error.
    pub(super) fn show_logs(&self) {
        if self.lab.is_none() {
            // What is there is another demo's.
            return;
        }
        for node in Self::nodes() {
            let path = self.state_dir.join(node).join("netd.log");
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            eprintln!("--- the end of {}", path.display());
            let lines: Vec<&str> = text.lines().collect();
            for line in lines.iter().skip(lines.len().saturating_sub(12)) {
                eprintln!("{line}");
            }
        }
    }

    /// Removes everything.
    pub(super) fn close(mut self) -> Result<Removed> {
        self.servers.clear();
        match self.lab.take() {
            Some(lab) => Ok(lab.close().context("remove the demo; run `netd demo --cleanup`")?),
            None => Ok(Removed::default()),
        }
    }

    /// Leaves everything standing, daemons and servers included.
    pub(super) fn keep(mut self) {
        // Daemons outlive their handles; servers would be killed with theirs.
        for server in std::mem::take(&mut self.servers).into_values() {
            server.detach();
        }
        if let Some(lab) = self.lab.take() {
            lab.keep();
        }
    }
}

/// The endpoints that the cluster address of `web` goes to, sorted.
fn web_endpoints(state: &StateDoc) -> Vec<String> {
    let service = state.services.iter().find(|service| service.name == "web");
    let frontend = service.and_then(|service| {
        service.frontends.iter().find(|frontend| frontend.key.starts_with("10.96.10.10"))
    });
    let mut endpoints = frontend.map(|frontend| frontend.endpoints.clone()).unwrap_or_default();
    endpoints.sort();
    endpoints
}
