//! Who reaches whom when nothing is wrong.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::web::{NAMESPACE, Pod, REPLICAS, Web, answer};
use crate::cluster::Cluster;
use crate::control_plane::DOMAIN;
use crate::probe::{Kind, Probe};
use crate::tool::eventually;

pub(super) fn pods(cluster: &Cluster) -> Result<()> {
    let web = Web::up(cluster)?;
    let pods = web.pods()?;
    ensure!(pods.len() == REPLICAS, "{pods:?}");
    for node in ["w1", "w2"] {
        let range = pod_prefix(cluster, node)?;
        let here: Vec<&Pod> = pods.iter().filter(|pod| pod.node == node).collect();
        ensure!(here.len() == REPLICAS / 2, "{node} has {here:?}");
        for pod in here {
            ensure!(pod.address.starts_with(&range), "{pod:?} is not within {range}0/24 of {node}");
        }
    }
    for probe in &web.probes {
        for pod in &pods {
            let name = answer(probe, Kind::Http, &format!("{}:8080", pod.address))?;
            ensure!(name == pod.name, "{} answered for {pod:?}", name);
        }
    }
    Ok(())
}

pub(super) fn service_by_name(cluster: &Cluster) -> Result<()> {
    let web = Web::up(cluster)?;
    for probe in &web.probes {
        for name in ["web".to_owned(), format!("web.{NAMESPACE}"), format!("web.{NAMESPACE}.svc.{DOMAIN}")] {
            web.every_pod_answers(probe, Kind::Http, &format!("{name}:80"))?;
            web.every_pod_answers(probe, Kind::Udp, &format!("{name}:80"))?;
        }
        answer(probe, Kind::Connect, "kubernetes.default:443")?;
    }
    // Processes of the nodes are clients as well.
    for node in &cluster.workers {
        let probe = cluster.probe_host(node)?;
        web.every_pod_answers(&probe, Kind::Http, &web.service)?;
        web.every_pod_answers(&probe, Kind::Udp, &web.service)?;
    }
    Ok(())
}

pub(super) fn names(cluster: &Cluster) -> Result<()> {
    let web = Web::up(cluster)?;
    let mut addresses: Vec<String> = web.pods()?.into_iter().map(|pod| pod.address).collect();
    addresses.sort();
    for probe in &web.probes {
        let look = |record: &str, name: &str| lookup(probe, record, name);
        let service = format!("web.{NAMESPACE}.svc.{DOMAIN}");
        ensure!(look("A", &service)? == [web.cluster_ip.clone()], "A {service}");
        ensure!(look("A", "web")? == [web.cluster_ip.clone()], "A web, by the search list");
        ensure!(look("A", "kubernetes.default")? == ["10.96.0.1"], "A kubernetes.default");
        ensure!(look("A", &format!("web-pods.{NAMESPACE}"))? == addresses, "A of the headless Service");
        let srv = look("SRV", &format!("_http._tcp.{service}."))?;
        ensure!(srv == [format!("80 {service}.")], "SRV is {srv:?}");
        let ptr = look("PTR", &web.cluster_ip)?;
        ensure!(ptr == [format!("{service}.")], "PTR is {ptr:?}");
        // Asked of the server outside, by the node's own resolver configuration.
        ensure!(look("A", "outside.test")? == ["203.0.113.7"], "A outside.test");
        for missing in [format!("nobody.{NAMESPACE}.svc.{DOMAIN}."), format!("nobody.{DOMAIN}.")] {
            match probe.lookup("A", &missing)? {
                Ok(found) => anyhow::bail!("{missing} is {found:?}"),
                Err(failure) => ensure!(failure.kind == "not-found", "{missing}: {failure}"),
            }
        }
    }
    Ok(())
}

pub(super) fn name_made_again(cluster: &Cluster) -> Result<()> {
    let web = Web::up(cluster)?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "again", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    for _ in 0..3 {
        cluster.apply(std::slice::from_ref(&service))?;
        let object = cluster.get(&["-n", NAMESPACE, "service", "again"])?;
        let address = object["spec"]["clusterIP"].as_str().context("again has a ClusterIP")?;
        for probe in &web.probes {
            eventually("the name of a new Service", Duration::from_secs(1), || {
                let found = lookup(probe, "A", "again")?;
                ensure!(found == [address], "again is {found:?}, not {address}");
                Ok(())
            })?;
        }
        cluster.kubectl(&["-n", NAMESPACE, "delete", "service", "again"])?;
        // Asked while it is away, so that whoever remembers that there is no such name would be found out.
        for probe in &web.probes {
            eventually("no name of a deleted Service", Duration::from_secs(1), || {
                let found = probe.lookup("A", "again")?;
                ensure!(found.is_err(), "again is {found:?}, and deleted");
                Ok(())
            })?;
        }
    }
    Ok(())
}

pub(super) fn node_port(cluster: &Cluster) -> Result<()> {
    let web = Web::up(cluster)?;
    let outside = cluster.probe_host(&cluster.outside)?;
    for node in cluster.nodes() {
        let tcp = format!("{}:{}", node.address(), web.node_port_tcp);
        let udp = format!("{}:{}", node.address(), web.node_port_udp);
        web.every_pod_answers(&outside, Kind::Http, &tcp)?;
        web.every_pod_answers(&outside, Kind::Udp, &udp)?;
        // Pods and nodes reach node ports too, of their own node and of another.
        for probe in &web.probes {
            web.every_pod_answers(probe, Kind::Http, &tcp)?;
        }
    }
    Ok(())
}

fn lookup(probe: &Probe, record: &str, name: &str) -> Result<Vec<String>> {
    match probe.lookup(record, name)? {
        Ok(mut answers) => {
            answers.sort();
            Ok(answers)
        }
        Err(failure) => anyhow::bail!("{} looks up {record} {name}: {failure}", probe.place()),
    }
}

/// `172.16.1.` of the node's `172.16.1.0/24`.
fn pod_prefix(cluster: &Cluster, node: &str) -> Result<String> {
    let object: Value = cluster.get(&["node", node])?;
    let range = object["spec"]["podCIDR"].as_str().context("the node has a pod range")?;
    Ok(range.strip_suffix("0/24").context("the pod range is a /24")?.to_owned())
}
