//! etcd, API server, controller manager and scheduler, all on one machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::binaries::Binaries;
use crate::machine::Machine;
use crate::tool::{eventually, output};

/// Pods get addresses out of this, a /24 for each node.
pub const CLUSTER_CIDR: &str = "172.16.0.0/16";
/// Services get addresses out of this.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// Address of the cluster's DNS.
pub const DNS: &str = "10.96.0.10";
/// Domain of the cluster.
pub const DOMAIN: &str = "cluster.local";

const DEADLINE: Duration = Duration::from_secs(90);

/// User, groups. The token of each is `token-USER`.
const USERS: [(&str, &str); 6] = [
    ("admin", "system:masters"),
    ("system:kube-controller-manager", ""),
    ("system:kube-scheduler", ""),
    ("system:node:w1", "system:nodes"),
    ("system:node:w2", "system:nodes"),
    ("netd", ""),
];

/// The control plane and the files it is reached with.
#[derive(Debug)]
pub struct ControlPlane {
    dir: PathBuf,
    url: String,
    apiserver: Vec<String>,
}

impl ControlPlane {
    /// Starts the four daemons on `machine` and waits until the API server is ready.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub fn start(machine: &Machine, binaries: &Binaries) -> Result<ControlPlane> {
        let plane = ControlPlane::start_storage(machine, binaries)?;
        let words = plane.controller_manager_command(binaries);
        machine.spawn("kube-controller-manager", &words.iter().map(String::as_str).collect::<Vec<_>>())?;
        let kubeconfig = format!("--kubeconfig={}", plane.kubeconfig("system:kube-scheduler").display());
        let scheduler = binaries.kubernetes("kube-scheduler");
        machine.spawn("kube-scheduler", &[&scheduler, &kubeconfig, "--leader-elect=false"])?;
        plane.wait_ready(machine, binaries)?;
        Ok(plane)
    }

    /// Starts etcd and the API server alone: objects are kept and watched, and nothing acts on them.
    ///
    /// # Errors
    /// When one of them cannot be started.
    pub fn start_storage(machine: &Machine, binaries: &Binaries) -> Result<ControlPlane> {
        let dir = machine.dir().join("control-plane");
        std::fs::create_dir_all(&dir)?;
        write_credentials(&dir, machine, binaries)?;
        let plane = ControlPlane {
            url: format!("https://{}:6443", machine.address()),
            apiserver: apiserver_command(&dir, machine.address(), binaries),
            dir,
        };
        for (user, _) in USERS {
            plane.write_kubeconfig(user)?;
        }
        let data = plane.file("etcd");
        machine.spawn("etcd", &["etcd", "--data-dir", &data, "--logger", "zap"])?;
        plane.start_apiserver(machine)?;
        Ok(plane)
    }

    /// Starts the API server and nothing else.
    ///
    /// # Errors
    /// When it runs already.
    pub fn start_apiserver(&self, machine: &Machine) -> Result<()> {
        machine.spawn("kube-apiserver", &self.apiserver.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Ends the API server; etcd stays.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_apiserver(&self, machine: &Machine) -> Result<()> {
        machine.end("kube-apiserver", Signal::SIGKILL, Duration::from_secs(10))
    }

    /// Waits until the API server says it is ready.
    ///
    /// # Errors
    /// When it is not within the deadline.
    pub fn wait_ready(&self, machine: &Machine, binaries: &Binaries) -> Result<()> {
        let kubectl = binaries.kubernetes("kubectl");
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig("admin").display());
        eventually("API server", DEADLINE, || {
            ensure!(machine.alive("etcd")?, "etcd has ended");
            ensure!(machine.alive("kube-apiserver")?, "the API server has ended");
            machine.check(&[&kubectl, &kubeconfig, "get", "--raw", "/readyz"], "").map(drop)
        })
    }

    /// Ends the daemons in the order that lets each end well: the API server before etcd.
    ///
    /// # Errors
    /// When one does not end.
    pub fn stop(&self, machine: &Machine) -> Result<()> {
        for daemon in ["kube-scheduler", "kube-controller-manager"] {
            machine.end(daemon, Signal::SIGKILL, Duration::from_secs(20))?;
        }
        ControlPlane::stop_storage(machine)
    }

    /// Ends what [`ControlPlane::start_storage`] started.
    ///
    /// # Errors
    /// When one does not end.
    pub fn stop_storage(machine: &Machine) -> Result<()> {
        for daemon in ["kube-apiserver", "etcd"] {
            machine.end(daemon, Signal::SIGKILL, Duration::from_secs(20))?;
        }
        Ok(())
    }

    /// Address of the API server.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Certificate of the authority that signed the API server's.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// Kubeconfig of one of the users.
    #[must_use]
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.dir.join(format!("{}.kubeconfig", user.replace(':', "-")))
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// JSON is YAML.
    fn write_kubeconfig(&self, user: &str) -> Result<()> {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url, "certificate-authority": self.ca()}}],
            "users": [{"name": user, "user": {"token": token(user)}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        });
        Ok(std::fs::write(self.kubeconfig(user), config.to_string())?)
    }

    fn controller_manager_command(&self, binaries: &Binaries) -> Vec<String> {
        vec![
            binaries.kubernetes("kube-controller-manager"),
            format!("--kubeconfig={}", self.kubeconfig("system:kube-controller-manager").display()),
            "--leader-elect=false".into(),
            "--use-service-account-credentials".into(),
            "--allocate-node-cidrs".into(),
            format!("--cluster-cidr={CLUSTER_CIDR}"),
            format!("--service-cluster-ip-range={SERVICE_CIDR}"),
            format!("--root-ca-file={}", self.ca().display()),
            format!("--service-account-private-key-file={}", self.file("sa.key")),
            // A change must reach the node at once for tests that measure what comes after.
            "--endpoint-updates-batch-period=0s".into(),
            "--endpointslice-updates-batch-period=0s".into(),
        ]
    }
}

fn token(user: &str) -> String {
    format!("token-{}", user.replace(':', "-"))
}

fn write_credentials(dir: &Path, machine: &Machine, binaries: &Binaries) -> Result<()> {
    let names = format!(
        "kubernetes,kubernetes.default,kubernetes.default.svc,kubernetes.default.svc.{DOMAIN},localhost,\
         127.0.0.1,10.96.0.1,{}",
        machine.address()
    );
    output(Command::new(binaries.own("kit")).args(["pki", "--names", &names, "--dir"]).arg(dir))?;
    let lines = USERS.iter().map(|(user, groups)| format!("{},{user},{user},\"{groups}\"\n", token(user)));
    Ok(std::fs::write(dir.join("tokens.csv"), lines.collect::<String>())?)
}

fn apiserver_command(dir: &Path, address: &str, binaries: &Binaries) -> Vec<String> {
    let file = |name: &str| dir.join(name).display().to_string();
    vec![
        binaries.kubernetes("kube-apiserver"),
        "--etcd-servers=http://127.0.0.1:2379".into(),
        format!("--advertise-address={address}"),
        format!("--service-cluster-ip-range={SERVICE_CIDR}"),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged".into(),
        format!("--token-auth-file={}", file("tokens.csv")),
        format!("--client-ca-file={}", file("ca.crt")),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
        format!("--kubelet-client-key={}", file("kubelet-client.key")),
        format!("--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}"),
        format!("--service-account-key-file={}", file("sa.pub")),
        format!("--service-account-signing-key-file={}", file("sa.key")),
    ]
}
