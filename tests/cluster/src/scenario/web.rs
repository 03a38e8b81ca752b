//! The workload of the scenarios: a Deployment `web` spread over both workers, its Services, and a probe on
//! each worker.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::probe::{Kind, Probe};
use crate::tool::eventually;
use crate::worker::PROBE_IMAGE;

/// Namespace of all objects of the scenarios.
pub(super) const NAMESPACE: &str = "shop";
/// Pods of the Deployment.
pub(super) const REPLICAS: usize = 4;

/// The workload, up and Ready.
pub(super) struct Web<'a> {
    pub(super) cluster: &'a Cluster,
    /// `ClusterIP:80`, TCP and UDP.
    pub(super) service: String,
    /// `ClusterIP:81`, where connections stay open.
    pub(super) lines: String,
    pub(super) cluster_ip: String,
    pub(super) node_port_tcp: u64,
    pub(super) node_port_udp: u64,
    /// A pod on w1 and one on w2.
    pub(super) probes: Vec<Probe>,
}

/// A pod of the Deployment.
#[derive(Debug, Clone)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) node: String,
}

impl<'a> Web<'a> {
    /// Applies everything and waits until it is Ready and served.
    pub(super) fn up(cluster: &'a Cluster) -> Result<Web<'a>> {
        cluster.apply(&objects())?;
        cluster.rolled_out(NAMESPACE, "web").with_context(|| cluster.why_not_running(NAMESPACE))?;
        cluster.wait_endpoints(NAMESPACE, "web", REPLICAS)?;
        let service = cluster.get(&["-n", NAMESPACE, "service", "web"])?;
        let cluster_ip = service["spec"]["clusterIP"].as_str().context("web has a ClusterIP")?.to_owned();
        let probes = ["w1", "w2"]
            .iter()
            .map(|node| cluster.probe_pod(NAMESPACE, &format!("probe-{node}"), node))
            .collect::<Result<Vec<_>>>()?;
        let web = Web {
            cluster,
            service: format!("{cluster_ip}:80"),
            lines: format!("{cluster_ip}:81"),
            cluster_ip,
            node_port_tcp: node_port(&service, "http")?,
            node_port_udp: node_port(&service, "datagrams")?,
            probes,
        };
        web.wait_served()?;
        Ok(web)
    }

    /// Waits until every node serves the Service, which needs every netd to have seen it.
    pub(super) fn wait_served(&self) -> Result<()> {
        eventually("the Service is served", Duration::from_secs(20), || {
            for probe in &self.probes {
                answer(probe, Kind::Http, &self.service)?;
            }
            let outside = self.cluster.probe_host(&self.cluster.outside)?;
            for node in &self.cluster.workers {
                answer(&outside, Kind::Http, &format!("{}:{}", node.address(), self.node_port_tcp))?;
            }
            Ok(())
        })
    }

    /// The running pods of the Deployment; those that end are not among them.
    pub(super) fn pods(&self) -> Result<Vec<Pod>> {
        let list = self.cluster.get(&["-n", NAMESPACE, "pods", "-l", "app=web"])?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .map(|pod| Pod {
                name: text(&pod["metadata"]["name"]),
                address: text(&pod["status"]["podIP"]),
                node: text(&pod["spec"]["nodeName"]),
            })
            .collect())
    }

    /// Waits until the pods that end have ended, and the Deployment has `count`.
    pub(super) fn wait_pods(&self, count: usize) -> Result<()> {
        eventually(&format!("{count} pods and no more"), Duration::from_secs(60), || {
            let list = self.cluster.get(&["-n", NAMESPACE, "pods", "-l", "app=web"])?;
            let there = list["items"].as_array().map_or(0, Vec::len);
            ensure!(there == count, "there are {there}");
            Ok(())
        })
    }

    /// Connects until every running pod has answered; fails when one does not, or when anything else does.
    pub(super) fn every_pod_answers(&self, probe: &Probe, kind: Kind, target: &str) -> Result<()> {
        let expected: BTreeSet<String> = self.pods()?.into_iter().map(|pod| pod.name).collect();
        let mut seen = BTreeSet::new();
        // With four endpoints chosen evenly, 100 connections miss one of them once in 10^12 runs.
        for _ in 0..100 {
            seen.insert(answer(probe, kind, target)?);
            if seen == expected {
                return Ok(());
            }
        }
        anyhow::bail!("{} to {target}: {seen:?} answered, not {expected:?}", probe.place())
    }
}

/// One exchange that must be answered.
pub(super) fn answer(probe: &Probe, kind: Kind, target: &str) -> Result<String> {
    match probe.once(kind, target)? {
        Ok(name) => Ok(name),
        Err(failure) => anyhow::bail!("{} to {target}: {failure}", probe.place()),
    }
}

fn node_port(service: &Value, name: &str) -> Result<u64> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let mut ports = ports.filter(|port| port["name"] == name);
    ports.next().and_then(|port| port["nodePort"].as_u64()).with_context(|| format!("{name} has a node port"))
}

fn objects() -> Vec<Value> {
    let labels = json!({"app": "web"});
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": NAMESPACE},
            "spec": {"type": "NodePort", "selector": labels, "ports": [
                {"name": "http", "port": 80, "targetPort": 8080},
                {"name": "datagrams", "port": 80, "targetPort": 8080, "protocol": "UDP"},
                {"name": "lines", "port": 81, "targetPort": 8081},
            ]},
        }),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web-pods", "namespace": NAMESPACE},
            "spec": {"clusterIP": "None", "selector": labels, "ports": [
                {"name": "http", "port": 8080, "targetPort": 8080},
            ]},
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "namespace": NAMESPACE},
            "spec": {
                "replicas": REPLICAS,
                "selector": {"matchLabels": labels},
                "strategy": {"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 1}},
                "template": {"metadata": {"labels": labels}, "spec": pod_spec()},
            },
        }),
    ]
}

fn pod_spec() -> Value {
    json!({
        "terminationGracePeriodSeconds": 15,
        "topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
            "nodeTaintsPolicy": "Honor", "labelSelector": {"matchLabels": {"app": "web"}},
            "matchLabelKeys": ["pod-template-hash"],
        }],
        "containers": [{
            "name": "web", "image": PROBE_IMAGE, "args": ["serve"],
            "ports": [{"containerPort": 8080}, {"containerPort": 8080, "protocol": "UDP"}, {"containerPort": 8081}],
            "readinessProbe": {"httpGet": {"path": "/hostname", "port": 8080}, "periodSeconds": 1, "timeoutSeconds": 5},
            // The pod serves on while the nodes learn that it leaves.
            "lifecycle": {"preStop": {"sleep": {"seconds": 3}}},
        }],
    })
}
