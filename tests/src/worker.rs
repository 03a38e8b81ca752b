//! A process of its own that applies plans and can be killed at any instruction.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use netd_dataplane::conformance::build::{service, slice, snapshot};
use netd_dataplane::conformance::site;
use netd_kernel::exec::{Child, Spawn, Stream};
use netd_lab::{Node, Place as _};
use netd_model::build::node_view;
use netd_model::{Family, LocalPods, NodeView, Scope, ServicePlan, plan};

use crate::backend::{Home, Kind};

/// The word after which the test binary is a worker.
pub const WORKER: &str = "apply-worker";
/// The number of the cluster address of the Service that is applied.
pub const SERVICE: u8 = 200;

/// The plan of a Service `loop` on TCP port 80 with these local pods behind it, in both families.
pub fn plan_with(pods: &[u8], generation: u64) -> ServicePlan {
    let [v4, v6] = Family::ALL.map(|family| site::cluster_ip(SERVICE, family).to_string());
    let mut made =
        snapshot().generation(generation).service(service("loop").cluster_ip(&v4).cluster_ip(&v6).tcp(80));
    for family in Family::ALL {
        let name = format!("loop-{family}").to_lowercase();
        let endpoints = pods.iter().map(|number| site::pod(*number, family).to_string());
        let slice = slice("loop").named(&name).tcp(8080);
        made = made.slice(endpoints.fold(slice, |slice, address| slice.on(site::NODE, &address)));
    }
    let node = NodeView {
        local_pods: LocalPods::Prefixes(Family::ALL.map(site::cluster_cidr).to_vec()),
        ..node_view(site::NODE)
    };
    plan(&made.build(), &node)
}

/// Starts a worker in the node's namespace and cgroup.
///
/// # Errors
/// When the process cannot be started.
pub fn start(node: &Node, kind: Kind) -> Result<Child> {
    let program = std::env::current_exe().context("find this program")?;
    let home = Home::of(node);
    let args = [WORKER.into(), kind.word().into(), home.cgroup.into_os_string(), home.pins.into_os_string()];
    let mut spawn = Spawn::new(program, args);
    spawn.stderr = Stream::File(node.state_dir().join("worker.log"));
    Ok(node.spawn(spawn)?)
}

/// Is the worker: resyncs, then applies two plans in turn for ever. Pod 2 is in both.
pub fn main(args: &[String]) -> ExitCode {
    let [kind, cgroup, pins] = args else { return complain("needs a kind, a cgroup and a pin directory") };
    let Some(kind) = Kind::named(kind) else { return complain("no such kind of backend") };
    match work(kind, &Home::at(Path::new(cgroup), Path::new(pins))) {
        Ok(never) => match never {},
        Err(error) => complain(&format!("{error:#}")),
    }
}

fn work(kind: Kind, home: &Home) -> Result<std::convert::Infallible> {
    let mut backend = kind.open(home)?;
    backend.resync()?;
    let plans = [plan_with(&[1, 2], 1), plan_with(&[2, 3], 2)];
    loop {
        for plan in &plans {
            backend.apply(plan, &Scope::Full)?;
        }
    }
}

fn complain(what: &str) -> ExitCode {
    eprintln!("{WORKER}: {what}");
    ExitCode::FAILURE
}
