//! Endpoints come and go while clients connect.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::web::{NAMESPACE, REPLICAS, Web};
use crate::cluster::Cluster;
use crate::probe::{Kind, Load, Probe, Report};
use crate::tool::eventually;

/// Connections a second of one load.
const RATE: u32 = 50;

/// Loads on the Service from every side, each exchange on a fresh socket.
pub(super) fn loads(web: &Web<'_>) -> Result<Vec<(String, Load)>> {
    let mut loads = Vec::new();
    let mut add = |probe: &Probe, kind: Kind, target: &str| -> Result<()> {
        loads.push((format!("{} {kind:?} {target}", probe.place()), probe.load(kind, target, RATE)?));
        Ok(())
    };
    for probe in &web.probes {
        add(probe, Kind::Http, &web.service)?;
        add(probe, Kind::Udp, &web.service)?;
    }
    let outside = web.cluster.probe_host(&web.cluster.outside)?;
    for node in &web.cluster.workers {
        add(&outside, Kind::Http, &format!("{}:{}", node.address(), web.node_port_tcp))?;
    }
    Ok(loads)
}

/// One UDP socket in each probe's pod that stays open.
fn open_datagrams(web: &Web<'_>) -> Result<Vec<(String, Load)>> {
    let start = |probe: &Probe| {
        let load = probe.load(Kind::OpenUdp, &web.service, RATE)?;
        Ok((format!("{} open UDP", probe.place()), load))
    };
    web.probes.iter().map(start).collect()
}

/// Ends loads and prints what each counted, whatever that is.
fn counted(loads: Vec<(String, Load)>) -> Result<()> {
    for (what, load) in loads {
        eprintln!("    {what}: {}", load.finish()?);
    }
    Ok(())
}

/// Ends loads, prints what each counted, and fails if any exchange failed.
pub(super) fn none_failed(loads: Vec<(String, Load)>) -> Result<Vec<Report>> {
    let mut failed = Vec::new();
    let mut reports = Vec::new();
    for (what, load) in loads {
        let report = load.finish()?;
        eprintln!("    {what}: {report}");
        ensure!(report.attempts > 0, "{what}: nothing was tried");
        if report.failed > 0 {
            failed.push(format!("{what}: {report}"));
        }
        reports.push(report);
    }
    ensure!(failed.is_empty(), "failures under load:\n{}", failed.join("\n"));
    Ok(reports)
}

pub(super) fn rolling_update(cluster: &Cluster) -> Result<()> {
    let web = Web::up(cluster)?;
    let before = web.pods()?;
    let loads = loads(&web)?;
    let open = open_datagrams(&web)?;
    let round = before.first().map(|pod| pod.name.clone()).unwrap_or_default();
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {"replaces": round}}}}}).to_string();
    cluster.kubectl(&["-n", NAMESPACE, "patch", "deployment", "web", "-p", &patch])?;
    cluster.rolled_out(NAMESPACE, "web")?;
    web.wait_pods(REPLICAS)?;
    let after = web.pods()?;
    ensure!(after.iter().all(|pod| before.iter().all(|old| old.name != pod.name)), "all pods are new");
    counted(open)?;
    for report in none_failed(loads)? {
        let of = |pods: &[super::web::Pod]| pods.iter().any(|pod| report.answers.contains_key(&pod.name));
        ensure!(of(&before) && of(&after), "old and new pods answered: {:?}", report.answers);
    }
    Ok(())
}

pub(super) fn zero_and_back(cluster: &Cluster) -> Result<()> {
    let web = Web::up(cluster)?;
    let outside = cluster.probe_host(&cluster.outside)?;
    let inside = cluster.probe_host(cluster.worker("w1")?)?;
    cluster.kubectl(&["-n", NAMESPACE, "scale", "deployment", "web", "--replicas=0"])?;
    cluster.wait_endpoints(NAMESPACE, "web", 0)?;
    web.wait_pods(0)?;
    for probe in web.probes.iter().chain([&inside]) {
        refused(probe, Kind::Http, &web.service)?;
        refused(probe, Kind::Udp, &web.service)?;
    }
    for node in &cluster.workers {
        refused(&outside, Kind::Http, &format!("{}:{}", node.address(), web.node_port_tcp))?;
        refused(&outside, Kind::Udp, &format!("{}:{}", node.address(), web.node_port_udp))?;
    }
    let again = Web::up(cluster)?;
    for probe in &again.probes {
        again.every_pod_answers(probe, Kind::Http, &again.service)?;
        again.every_pod_answers(probe, Kind::Udp, &again.service)?;
    }
    Ok(())
}

/// Waits until attempts are refused at once, rather than timing out. A node's own datagram may be denied by
/// its own kernel as it is sent, before there is a packet that could be answered.
fn refused(probe: &Probe, kind: Kind, target: &str) -> Result<()> {
    eventually("a Service without endpoints refuses", Duration::from_secs(5), || {
        match probe.once_within(kind, target, Duration::from_millis(900))? {
            Ok(name) => anyhow::bail!("{} {kind:?} to {target}: {name} answered", probe.place()),
            Err(failure) => {
                let denied = kind == Kind::Udp && failure.kind == "denied";
                ensure!(
                    failure.kind == "refused" || denied,
                    "{} {kind:?} to {target}: {failure}",
                    probe.place()
                );
                Ok(())
            }
        }
    })
}
