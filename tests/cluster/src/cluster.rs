//! The whole cluster: control plane on `m-k8s`, workers `w1` and `w2`, and `ext`, a host on the LAN that is
//! no node and the name server for names outside the cluster.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::binaries::Binaries;
use crate::control_plane::ControlPlane;
use crate::kubectl::Kubectl;
use crate::machine::Machine;
use crate::netd::{self, Dataplane};
use crate::probe::Probe;
use crate::run::Run;
use crate::tool::eventually;
use crate::{lan, worker};

/// Machines by name and address.
const CONTROL: (&str, &str) = ("m-k8s", "192.168.1.10");
const WORKERS: [(&str, &str); 2] = [("w1", "192.168.1.101"), ("w2", "192.168.1.102")];
const OUTSIDE: (&str, &str) = ("ext", "192.168.1.200");
/// Where the probe of a pod finds its socket's directory; on the machine it is below its state directory.
const PROBE_DIR: &str = "/run/probe";

/// A cluster that is up.
#[derive(Debug)]
pub struct Cluster {
    /// Names and directories.
    pub run: Run,
    /// Programs.
    pub binaries: Binaries,
    /// Control plane.
    pub plane: ControlPlane,
    /// Machine of the control plane.
    pub control: Machine,
    /// Worker machines.
    pub workers: Vec<Machine>,
    /// The host outside.
    pub outside: Machine,
    kubectl: Kubectl,
    dataplane: Dataplane,
}

impl Cluster {
    /// Starts everything and waits until both nodes are Ready.
    ///
    /// # Errors
    /// When a part does not come up; what was started is removed, log files stay.
    pub fn start(dataplane: Dataplane) -> Result<Cluster> {
        let run = Run::create()?;
        eprintln!("cluster: state and logs in {}", run.dir().display());
        let started = start_all(&run, dataplane);
        if let Err(error) = &started {
            eprintln!("cluster: {error:#}");
            run.remove(true)?;
        }
        started
    }

    /// Which dataplane netd was told to use.
    #[must_use]
    pub fn dataplane(&self) -> Dataplane {
        self.dataplane
    }

    /// Every machine netd runs on.
    pub fn nodes(&self) -> impl Iterator<Item = &Machine> {
        std::iter::once(&self.control).chain(&self.workers)
    }

    /// A machine by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn worker(&self, name: &str) -> Result<&Machine> {
        self.workers
            .iter()
            .find(|machine| machine.name() == name)
            .with_context(|| format!("no worker {name}"))
    }

    /// Runs kubectl as the administrator.
    ///
    /// # Errors
    /// When it exits with anything but 0.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.kubectl.call(&self.control, words, "")
    }

    /// Applies objects with kubectl.
    ///
    /// # Errors
    /// When the API server refuses them.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        self.kubectl.apply(&self.control, objects)
    }

    /// Reads an object or a list.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn get(&self, words: &[&str]) -> Result<Value> {
        self.kubectl.get(&self.control, words)
    }

    /// Waits until a Deployment is rolled out.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn rolled_out(&self, namespace: &str, deployment: &str) -> Result<()> {
        self.kubectl.rolled_out(&self.control, namespace, deployment)
    }

    /// Waits until a Service has exactly `count` Ready endpoints.
    ///
    /// # Errors
    /// When it has not in time.
    pub fn wait_endpoints(&self, namespace: &str, service: &str, count: usize) -> Result<Vec<String>> {
        self.kubectl.wait_endpoints(&self.control, namespace, service, count)
    }

    /// A probe in a pod on a worker: makes the pod and waits until it answers.
    ///
    /// # Errors
    /// When the pod does not come up.
    pub fn probe_pod(&self, namespace: &str, name: &str, worker: &str) -> Result<Probe> {
        let host_dir = self.worker(worker)?.dir().join("probes").join(namespace);
        std::fs::create_dir_all(&host_dir)?;
        let socket = format!("{PROBE_DIR}/{name}.sock");
        self.apply(&[json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
            "spec": {
                "nodeName": worker,
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "probe", "image": worker::PROBE_IMAGE, "args": ["agent", "--socket", socket],
                    "volumeMounts": [{"name": "probe", "mountPath": PROBE_DIR}],
                }],
                "volumes": [{"name": "probe", "hostPath": {"path": host_dir, "type": "Directory"}}],
            },
        })])?;
        let probe = Probe::new(host_dir.join(format!("{name}.sock")), &format!("pod {name} on {worker}"));
        eventually("probe pod", Duration::from_secs(60), || probe.ping())
            .context(self.why_not_running(namespace))?;
        Ok(probe)
    }

    /// A probe that is an ordinary process of a machine.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn probe_host(&self, machine: &Machine) -> Result<Probe> {
        let socket = machine.dir().join("probe.sock");
        if machine.alive("probe").ok() != Some(true) {
            let program = self.binaries.own("probe");
            machine.spawn("probe", &[&program, "agent", "--socket", &socket.display().to_string()])?;
        }
        let probe = Probe::new(socket, &format!("host {}", machine.name()));
        eventually("probe on a host", Duration::from_secs(20), || probe.ping())?;
        Ok(probe)
    }

    /// Starts netd on every node with another dataplane, after removing all of the former one's.
    ///
    /// # Errors
    /// When a netd does not end, clean up or become ready.
    pub fn switch_dataplane(&mut self, dataplane: Dataplane) -> Result<()> {
        for machine in self.nodes() {
            netd::stop(machine)?;
            netd::cleanup(machine)?;
            netd::configure(machine, &self.plane, dataplane)?;
            netd::spawn(machine)?;
        }
        for machine in self.nodes() {
            netd::wait_ready(machine, &self.binaries)?;
            netd::uses(machine, dataplane)?;
        }
        self.dataplane = dataplane;
        Ok(())
    }

    /// What the API server says about pods that do not run, for messages.
    #[must_use]
    pub fn why_not_running(&self, namespace: &str) -> String {
        let columns = "custom-columns=OBJECT:.involvedObject.name,TIMES:.count,MESSAGE:.message";
        let warnings = ["-n", namespace, "get", "events", "--field-selector=type=Warning", "-o", columns];
        [&["-n", namespace, "get", "pods", "-o", "wide"][..], &warnings]
            .iter()
            .map(|words| self.kubectl(words).unwrap_or_else(|error| format!("{error:#}")))
            .collect()
    }

    /// Log files with the last lines of the daemons that matter.
    #[must_use]
    pub fn last_words(&self) -> String {
        let mut text = format!("logs: {}\n", self.run.logs().display());
        for machine in self.nodes() {
            let log = machine.log("netd");
            text += &format!("--- {}\n{}\n", log.display(), crate::tool::tail(&log, 30));
        }
        text
    }

    /// Takes everything down, in order, and lists what is left.
    ///
    /// # Errors
    /// When a part does not end. Whatever can be removed is removed all the same.
    pub fn stop(mut self, keep_logs: bool) -> Result<Vec<String>> {
        let ended = self.end_daemons();
        for machine in self.workers.iter_mut().chain([&mut self.outside, &mut self.control]) {
            machine.power_off()?;
        }
        self.run.remove(keep_logs)?;
        ended?;
        let kept = keep_logs.then(|| format!("directory {}", self.run.dir().display()));
        Ok(self.run.leftovers()?.into_iter().filter(|left| Some(left) != kept.as_ref()).collect())
    }

    fn end_daemons(&self) -> Result<()> {
        for machine in &self.workers {
            worker::stop(machine)?;
        }
        self.plane.stop(&self.control)
    }
}

fn start_all(run: &Run, dataplane: Dataplane) -> Result<Cluster> {
    let begin = Instant::now();
    let step = |what: &str| eprintln!("cluster: {:5.1} s {what}", begin.elapsed().as_secs_f64());
    let binaries = Binaries::prepare(run)?;
    let images = worker::write_images(run, &binaries)?;
    step("programs and images are there");
    lan::create(run)?;
    let control = Machine::start(run, CONTROL.0, CONTROL.1)?;
    let outside = Machine::start(run, OUTSIDE.0, OUTSIDE.1)?;
    let workers: Vec<Machine> =
        WORKERS.iter().map(|(name, address)| Machine::start(run, name, address)).collect::<Result<_>>()?;
    step("machines are up");
    let plane = ControlPlane::start(&control, &binaries)?;
    step("control plane is ready");
    let kubeconfig = plane.kubeconfig("admin").display().to_string();
    let kubectl = Kubectl::new(binaries.kubernetes("kubectl"), kubeconfig);
    let cluster =
        Cluster { run: run.clone(), binaries, plane, control, workers, outside, kubectl, dataplane };
    cluster.kubectl.apply_text(&cluster.control, include_str!("../../../manifests/base/rbac.yaml"))?;
    cluster.apply(&base_objects())?;
    let resolver = format!("nameserver {}\n", OUTSIDE.1);
    cluster.outside.spawn("dns", &[&cluster.binaries.own("probe"), "dns"])?;
    for machine in cluster.nodes() {
        machine.write("/etc/resolv.conf", &resolver)?;
        netd::install(machine, &cluster.binaries)?;
        netd::configure(machine, &cluster.plane, dataplane)?;
    }
    start_workers(&cluster, &images)?;
    step("containerd and kubelet run");
    wait_nodes(&cluster, "registered", |node| node["spec"]["podCIDR"].is_string())?;
    for machine in cluster.nodes() {
        netd::spawn(machine)?;
    }
    for machine in cluster.nodes() {
        netd::wait_ready(machine, &cluster.binaries).with_context(|| cluster.last_words())?;
        netd::uses(machine, dataplane)?;
    }
    step("netd is ready");
    wait_nodes(&cluster, "Ready", |node| {
        let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        let ready = conditions.filter(|one| one["type"] == "Ready").any(|one| one["status"] == "True");
        ready || node["metadata"]["name"] == CONTROL.0
    })?;
    step("nodes are Ready");
    Ok(cluster)
}

fn start_workers(cluster: &Cluster, images: &[PathBuf]) -> Result<()> {
    thread::scope(|scope| {
        let starts: Vec<_> = cluster
            .workers
            .iter()
            .map(|machine| {
                scope
                    .spawn(|| worker::start(machine, &cluster.run, &cluster.plane, &cluster.binaries, images))
            })
            .collect();
        starts.into_iter().try_for_each(|start| match start.join() {
            Ok(result) => result,
            Err(_) => Err(anyhow::anyhow!("starting a worker panicked")),
        })
    })
}

fn wait_nodes(cluster: &Cluster, what: &str, accept: impl Fn(&Value) -> bool) -> Result<()> {
    eventually(&format!("nodes {what}"), Duration::from_secs(90), || {
        let nodes = cluster.get(&["nodes"])?;
        let nodes = nodes["items"].as_array().cloned().unwrap_or_default();
        let good: Vec<&Value> =
            nodes.iter().filter(|node| accept(node)).map(|node| &node["metadata"]["name"]).collect();
        ensure!(good.len() == WORKERS.len() + 1, "only {good:?}");
        Ok(())
    })
}

/// The control plane's Node, for it has no kubelet to register it, and the role of rbac.yaml for netd's user here.
fn base_objects() -> Vec<Value> {
    vec![
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": CONTROL.0},
            "spec": {"unschedulable": true},
            "status": {"addresses": [
                {"type": "InternalIP", "address": CONTROL.1}, {"type": "Hostname", "address": CONTROL.0},
            ]},
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "netd-user"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "netd"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "netd"}],
        }),
    ]
}
