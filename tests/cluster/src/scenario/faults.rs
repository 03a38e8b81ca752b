//! Something is taken away while clients connect.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use super::rollout::{loads, none_failed};
use super::web::{NAMESPACE, REPLICAS, Web, answer};
use crate::cluster::Cluster;
use crate::netd;
use crate::probe::{Kind, Load};
use crate::tool::eventually;

/// How long a fault lasts.
const FAULT: Duration = Duration::from_secs(3);

/// Loads of [`loads`] and, since nothing that is tested with them changes an endpoint, sockets that stay
/// open.
fn all_loads(web: &Web<'_>) -> Result<Vec<(String, Load)>> {
    let mut all = loads(web)?;
    for probe in &web.probes {
        all.push((format!("{} stream", probe.place()), probe.load(Kind::Stream, &web.lines, 10)?));
        all.push((format!("{} open UDP", probe.place()), probe.load(Kind::OpenUdp, &web.service, 10)?));
    }
    Ok(all)
}

pub(super) fn api_server(cluster: &Cluster) -> Result<()> {
    let web = Web::up(cluster)?;
    let loads = all_loads(&web)?;
    cluster.plane.stop_apiserver(&cluster.control)?;
    thread::sleep(FAULT);
    cluster.plane.start_apiserver(&cluster.control)?;
    cluster.plane.wait_ready(&cluster.control, &cluster.binaries)?;
    let back = Instant::now();
    cluster.apply(&[json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "late", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    })])?;
    // The controllers come back in their own time.
    cluster.wait_endpoints(NAMESPACE, "late", REPLICAS)?;
    let published = Instant::now();
    for probe in &web.probes {
        eventually("a Service made after the restart is served", Duration::from_secs(10), || {
            answer(probe, Kind::Http, "late:80").map(drop)
        })?;
    }
    eprintln!(
        "    new Service published {:.1} s after the API server was back, served {:.1} s after that",
        published.duration_since(back).as_secs_f64(),
        published.elapsed().as_secs_f64()
    );
    none_failed(loads)?;
    cluster.kubectl(&["-n", NAMESPACE, "delete", "service", "late"])?;
    Ok(())
}

pub(super) fn netd_killed(cluster: &Cluster) -> Result<()> {
    let web = Web::up(cluster)?;
    let loads = all_loads(&web)?;
    for node in cluster.nodes() {
        netd::kill(node)?;
    }
    thread::sleep(FAULT);
    for node in cluster.nodes() {
        netd::spawn(node)?;
    }
    for node in cluster.nodes() {
        netd::wait_ready(node, &cluster.binaries)?;
    }
    thread::sleep(FAULT);
    none_failed(loads)?;
    for probe in &web.probes {
        web.every_pod_answers(probe, Kind::Http, "web:80")?;
    }
    Ok(())
}

/// The check of the tests themselves: what they see is netd's work.
pub(super) fn without_netd(cluster: &Cluster) -> Result<()> {
    let web = Web::up(cluster)?;
    for node in cluster.nodes() {
        netd::stop(node)?;
        netd::cleanup(node)?;
    }
    let without = everything_fails(&web);
    for node in cluster.nodes() {
        netd::spawn(node)?;
    }
    for node in cluster.nodes() {
        netd::wait_ready(node, &cluster.binaries)?;
    }
    without?;
    Web::up(cluster).map(drop)
}

fn everything_fails(web: &Web<'_>) -> Result<()> {
    let limit = Duration::from_millis(500);
    for probe in &web.probes {
        for kind in [Kind::Http, Kind::Udp] {
            let got = probe.once_within(kind, &web.service, limit)?;
            ensure!(got.is_err(), "{kind:?} from {} was answered without netd: {got:?}", probe.place());
        }
        let got = probe.lookup("A", "web")?;
        ensure!(got.is_err(), "a look-up from {} was answered without netd: {got:?}", probe.place());
    }
    let outside = web.cluster.probe_host(&web.cluster.outside)?;
    for node in &web.cluster.workers {
        let target = format!("{}:{}", node.address(), web.node_port_tcp);
        let got = outside.once_within(Kind::Http, &target, limit)?;
        ensure!(got.is_err(), "{target} was answered without netd: {got:?}");
    }
    Ok(())
}
