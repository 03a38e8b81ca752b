//! kubectl as the tests use it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::machine::Machine;
use crate::tool::eventually;

/// kubectl with the administrator's credentials, run on the control plane's machine.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: String,
    kubeconfig: String,
}

impl Kubectl {
    /// Takes the paths of the program and of a kubeconfig.
    #[must_use]
    pub fn new(program: String, kubeconfig: String) -> Kubectl {
        Kubectl { program, kubeconfig }
    }

    /// Runs kubectl with the given words and standard input.
    ///
    /// # Errors
    /// When it exits with anything but 0.
    pub fn call(&self, machine: &Machine, words: &[&str], stdin: &str) -> Result<String> {
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig);
        let mut argv = vec![self.program.as_str(), &kubeconfig, "--request-timeout=20s"];
        argv.extend(words);
        machine.check(&argv, stdin)
    }

    /// Applies objects. In the first second of an API server its schema may be missing, so it is tried again
    /// for a while.
    ///
    /// # Errors
    /// When the server refuses them.
    pub fn apply(&self, machine: &Machine, objects: &[Value]) -> Result<()> {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        self.apply_text(machine, &list)
    }

    /// Applies manifests as they are in a file.
    ///
    /// # Errors
    /// When the server refuses them.
    pub fn apply_text(&self, machine: &Machine, manifests: &str) -> Result<()> {
        eventually("kubectl apply", Duration::from_secs(15), || {
            self.call(machine, &["apply", "-f", "-"], manifests).map(drop)
        })
    }

    /// Reads an object or a list as JSON.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn get(&self, machine: &Machine, words: &[&str]) -> Result<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(words);
        serde_json::from_str(&self.call(machine, &all, "")?).context("kubectl prints JSON")
    }

    /// Waits until a Deployment is rolled out whole.
    ///
    /// # Errors
    /// When it is not within two minutes.
    pub fn rolled_out(&self, machine: &Machine, namespace: &str, deployment: &str) -> Result<()> {
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig);
        let name = format!("deployment/{deployment}");
        let argv = [
            self.program.as_str(),
            &kubeconfig,
            "-n",
            namespace,
            "rollout",
            "status",
            &name,
            "--timeout=110s",
        ];
        machine.check(&argv, "").map(drop)
    }

    /// Returns the addresses of the Ready endpoints of a Service, sorted.
    ///
    /// # Errors
    /// When the slices cannot be read.
    pub fn endpoints(&self, machine: &Machine, namespace: &str, service: &str) -> Result<Vec<String>> {
        let selector = format!("kubernetes.io/service-name={service}");
        let slices = self.get(machine, &["-n", namespace, "endpointslices", "-l", &selector])?;
        let mut addresses: Vec<String> = slices["items"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default())
            .filter(|endpoint| endpoint["conditions"]["ready"] != Value::Bool(false))
            .filter_map(|endpoint| endpoint["addresses"][0].as_str().map(str::to_owned))
            .collect();
        addresses.sort();
        Ok(addresses)
    }

    /// Waits until a Service has exactly `count` Ready endpoints and returns their addresses.
    ///
    /// # Errors
    /// When it has not within a minute.
    pub fn wait_endpoints(
        &self,
        machine: &Machine,
        namespace: &str,
        service: &str,
        count: usize,
    ) -> Result<Vec<String>> {
        eventually(&format!("{count} endpoints of {namespace}/{service}"), Duration::from_secs(60), || {
            let found = self.endpoints(machine, namespace, service)?;
            ensure!(found.len() == count, "there are {found:?}");
            Ok(found)
        })
    }
}
