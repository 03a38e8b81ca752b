//! netd on one machine: configured, started, killed, cleaned up. It is the whole network of the node.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::binaries::Binaries;
use crate::control_plane::{CLUSTER_CIDR, ControlPlane, DNS, DOMAIN};
use crate::machine::Machine;
use crate::tool::eventually;

const CONFIG: &str = "/etc/netd/config.yaml";
const PROGRAM: &str = "/usr/local/bin/netd";
/// The plugin under each name it is called by: the network's, and that of the plugin containerd wants beside
/// it.
const PLUGINS: [&str; 2] = ["/opt/cni/bin/netd-cni", "/opt/cni/bin/loopback"];
const DAEMON: &str = "netd";
const READY: &str = "http://127.0.0.1:10256/readyz";

/// The kernel side under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dataplane {
    /// iptables alone.
    Iptables,
    /// Socket hooks, with iptables beside them.
    Ebpf,
}

impl fmt::Display for Dataplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dataplane::Iptables => "iptables",
            Dataplane::Ebpf => "ebpf",
        })
    }
}

impl FromStr for Dataplane {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Dataplane> {
        match text {
            "iptables" => Ok(Dataplane::Iptables),
            "ebpf" => Ok(Dataplane::Ebpf),
            other => bail!("no dataplane is called {other:?}"),
        }
    }
}

/// Copies the two programs onto a machine.
///
/// # Errors
/// When a file cannot be written.
pub fn install(machine: &Machine, binaries: &Binaries) -> Result<()> {
    machine.install(&binaries.netd("netd"), PROGRAM)?;
    PLUGINS.iter().try_for_each(|path| machine.install(&binaries.netd("netd-cni"), path))
}

/// Writes the configuration for a machine.
///
/// # Errors
/// When the file cannot be written.
pub fn configure(machine: &Machine, plane: &ControlPlane, dataplane: Dataplane) -> Result<()> {
    let config = json!({
        "apiVersion": "netd.io/v1alpha1",
        "kind": "NetdConfiguration",
        "nodeName": machine.name(),
        "clusterCIDRs": [CLUSTER_CIDR],
        "source": {"kubeconfig": plane.kubeconfig("netd")},
        "proxy": {
            "dataplane": dataplane.to_string(),
            "ebpf": {"cgroupRoot": machine.cgroup()},
        },
        "dns": {"addresses": [DNS], "domain": DOMAIN},
    });
    // JSON is YAML.
    machine.write(CONFIG, &config.to_string())
}

/// Starts netd and does not wait for anything.
///
/// # Errors
/// When it runs already.
pub fn spawn(machine: &Machine) -> Result<()> {
    machine.spawn(DAEMON, &[PROGRAM, "run", "--config", CONFIG])
}

/// Waits until netd says that every part has done its work.
///
/// # Errors
/// When it ends, or is not ready within the deadline; what its status says is quoted.
pub fn wait_ready(machine: &Machine, binaries: &Binaries) -> Result<()> {
    let probe = binaries.own("probe");
    let ready = eventually("netd ready", Duration::from_secs(60), || {
        ensure!(
            machine.alive(DAEMON)?,
            "netd on {} has ended: see {}",
            machine.name(),
            machine.log(DAEMON).display()
        );
        let done = machine.run(&[&probe, "get", READY], "")?;
        ensure!(done.code == 0, "not ready: {}{}", done.stdout, done.stderr);
        Ok(())
    });
    ready.with_context(|| match machine.run(&[PROGRAM, "status", "--config", CONFIG], "") {
        Ok(status) => format!("netd status on {}:\n{}{}", machine.name(), status.stdout, status.stderr),
        Err(error) => format!("{error:#}"),
    })
}

/// Reads `netd status -o json`.
///
/// # Errors
/// When netd does not answer.
pub fn status(machine: &Machine) -> Result<Value> {
    let text = machine.check(&[PROGRAM, "status", "--config", CONFIG, "-o", "json"], "")?;
    serde_json::from_str(&text).context("netd status prints JSON")
}

/// Makes sure that netd programs Services with the dataplane it was told to use.
///
/// # Errors
/// When its status names another.
pub fn uses(machine: &Machine, dataplane: Dataplane) -> Result<()> {
    let name = &status(machine)?["dataplane"]["name"];
    ensure!(*name == dataplane.to_string(), "netd on {} uses {name}, not {dataplane}", machine.name());
    Ok(())
}

/// Ends netd at once, without any chance to tidy up.
///
/// # Errors
/// When it still runs.
pub fn kill(machine: &Machine) -> Result<()> {
    machine.end(DAEMON, Signal::SIGKILL, Duration::from_secs(10))
}

/// Ends netd as the kubelet does.
///
/// # Errors
/// When it still runs after the time a pod is given.
pub fn stop(machine: &Machine) -> Result<()> {
    machine.end(DAEMON, Signal::SIGTERM, Duration::from_secs(30))
}

/// Runs `netd cleanup`, which removes everything netd ever put into the kernel.
///
/// # Errors
/// When it fails.
pub fn cleanup(machine: &Machine) -> Result<String> {
    machine.check(&[PROGRAM, "cleanup", "--config", CONFIG], "")
}
