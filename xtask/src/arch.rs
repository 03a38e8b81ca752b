//! The arrows of the layout: which crate of ours may depend on which, and who may know a foreign one.
//!
//! deny.toml holds the same for the whole dependency tree of foreign crates; this check is quicker, needs
//! no tool, and covers our own crates.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::step::{cargo, output};

/// Allowed dependencies (normal and build) of our crates on each other. ARCHITECTURE.md draws them.
const ARROWS: &[(&str, &[&str])] = &[
    ("netd-model", &[]),
    ("netd-kernel", &[]),
    ("netd-ebpf-abi", &[]),
    ("netd-ipam", &["netd-kernel"]),
    ("netd-watch", &["netd-model"]),
    ("netd-dns", &["netd-model"]),
    ("netd-admin", &["netd-model"]),
    ("netd-dataplane", &["netd-model"]),
    ("netd-iptables", &["netd-dataplane", "netd-kernel", "netd-model"]),
    ("netd-bpf", &["netd-dataplane", "netd-ebpf-abi", "netd-kernel", "netd-model"]),
    ("netd-fabric", &["netd-kernel", "netd-model"]),
    ("netd-lab", &["netd-kernel"]),
    ("netd-cni", &["netd-ipam", "netd-kernel"]),
    ("netd", LIBRARIES),
    ("netd-tests", LIBRARIES),
    ("netd-cluster-tests", &["netd-kernel", "netd-lab"]),
    ("netd-bench", &["netd-kernel"]),
    ("xtask", &[]),
];

/// What the composition root and the tests may know: everything but each other and the plugin.
const LIBRARIES: &[&str] = &[
    "netd-admin",
    "netd-bpf",
    "netd-dataplane",
    "netd-dns",
    "netd-fabric",
    "netd-ipam",
    "netd-iptables",
    "netd-kernel",
    "netd-lab",
    "netd-model",
    "netd-watch",
];

/// Foreign crates that only these of ours may name.
const WRAPPERS: &[(&str, &[&str])] = &[
    ("kube", &["netd-watch"]),
    ("k8s-openapi", &["netd-watch"]),
    ("aya", &["netd-bpf"]),
    ("aya-obj", &["netd-bpf"]),
    ("rtnetlink", &["netd-kernel"]),
    ("netlink-packet-core", &["netd-kernel"]),
    ("netlink-packet-route", &["netd-kernel"]),
    ("netlink-packet-netfilter", &["netd-kernel"]),
    ("netlink-sys", &["netd-kernel"]),
    ("iptables", &["netd-iptables"]),
    ("domain", &["netd-dns", "netd-lab"]),
    ("anyhow", &["netd", "netd-bench", "netd-cluster-tests", "netd-tests", "xtask"]),
];

/// A crate of ours and the names of its normal and build dependencies.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// Fails when an arrow is turned, naming it.
pub(crate) fn check() -> Result<()> {
    let text = output(&mut cargo(&["metadata", "--format-version", "1", "--no-deps", "--locked"]))?;
    let wrong = violations(&graph(&serde_json::from_str(&text).context("read cargo metadata")?)?);
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("the layout forbids:\n  {}\nsee ARCHITECTURE.md", wrong.join("\n  "));
}

fn graph(metadata: &Value) -> Result<Graph> {
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let mut graph = Graph::new();
    for package in packages {
        let name = package["name"].as_str().context("a package without a name")?;
        let dependencies = package["dependencies"].as_array().context("a package without dependencies")?;
        let names = dependencies
            .iter()
            .filter(|dependency| dependency["kind"].as_str() != Some("dev"))
            .filter_map(|dependency| dependency["name"].as_str().map(str::to_owned));
        graph.insert(name.to_owned(), names.collect());
    }
    Ok(graph)
}

fn violations(graph: &Graph) -> Vec<String> {
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let wrappers: BTreeMap<&str, &[&str]> = WRAPPERS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (name, dependencies) in graph {
        let Some(allowed) = arrows.get(name.as_str()) else {
            wrong.push(format!(
                "{name} is not in the layout: add it to xtask/src/arch.rs and ARCHITECTURE.md"
            ));
            continue;
        };
        for dependency in dependencies {
            let ours = graph.contains_key(dependency);
            if ours && !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("{name} -> {dependency}"));
            }
            if wrappers.get(dependency.as_str()).is_some_and(|who| !who.contains(&name.as_str())) {
                wrong.push(format!("{name} -> {dependency} (a foreign crate kept behind another)"));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph_of(edges: &[(&str, &[&str])]) -> Graph {
        edges
            .iter()
            .map(|(name, to)| ((*name).to_owned(), to.iter().map(|name| (*name).to_owned()).collect()))
            .collect()
    }

    #[test]
    fn the_tree_as_it_is_passes() {
        check().unwrap();
    }

    #[test]
    fn a_turned_arrow_is_named() {
        let graph = graph_of(&[("netd-model", &["netd-dataplane"]), ("netd-dataplane", &["netd-model"])]);
        assert_eq!(violations(&graph), ["netd-model -> netd-dataplane"]);
    }

    #[test]
    fn a_foreign_crate_outside_its_wrapper_is_named() {
        let wrong = violations(&graph_of(&[("netd-dns", &["kube"])]));
        assert_eq!(wrong, ["netd-dns -> kube (a foreign crate kept behind another)"]);
    }

    #[test]
    fn a_crate_that_the_layout_does_not_know_is_named() {
        assert_eq!(violations(&graph_of(&[("netd-surprise", &[])])).len(), 1);
    }
}
