//! A container runtime's half of the Container Network Interface (CNI specification 1.1.0), as small as it can be.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::IpNetwork;
use netd_kernel::exec::Spawn;
use serde_json::{Value, json};

use crate::node::POD_LINK;
use crate::place::Seat;
use crate::spec::PodSpec;
use crate::{Error, Result};

/// How long a plugin may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A plugin and its network configuration.
#[derive(Debug, Clone)]
pub struct CniRuntime {
    /// The plugin's path; it runs for every entry of the list.
    pub plugin: PathBuf,
    /// The network configuration list, as it would be in `/etc/cni/net.d/*.conflist`.
    pub conflist: Value,
}

/// A pod's attachment to the network: what DEL and CHECK need.
#[derive(Debug)]
pub(crate) struct Attached {
    runtime: CniRuntime,
    call: Call,
    result: Value,
}

/// What a runtime tells the plugin about a container.
#[derive(Debug, Clone)]
struct Call {
    pod: String,
    container: String,
    netns: PathBuf,
    args: String,
}

impl CniRuntime {
    /// Calls ADD for a pod in the node's namespace; on failure DEL, as runtimes do.
    pub(crate) fn attach(&self, node: &Seat, pod: &Seat, spec: &PodSpec<'_>) -> Result<Attached> {
        let netns = pod.namespace.path().to_owned();
        let container = netns.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={container};K8S_POD_UID={container}",
            spec.namespace, spec.name
        );
        let call = Call { pod: spec.name.clone(), container, netns, args };
        let added = self.plugins()?.iter().try_fold(None, |previous, plugin| {
            self.call(node, &call, "ADD", &self.configuration(plugin, previous.as_ref()))
        });
        match added {
            Ok(Some(result)) => Ok(Attached { runtime: self.clone(), call, result }),
            Ok(None) => Err(call.refusal("ADD", "the plugin answered with no result")),
            Err(error) => {
                if let Err(again) = self.detach(node, &call, None) {
                    tracing::warn!(error = %again, pod = %call.pod, "DEL after a failed ADD failed as well");
                }
                Err(error)
            }
        }
    }

    /// Calls DEL of all plugins, last first, and goes on after a failure.
    fn detach(&self, node: &Seat, call: &Call, result: Option<&Value>) -> Result<()> {
        let mut outcome = Ok(());
        for plugin in self.plugins()?.iter().rev() {
            let deleted = self.call(node, call, "DEL", &self.configuration(plugin, result)).map(drop);
            outcome = outcome.and(deleted);
        }
        outcome
    }

    fn plugins(&self) -> Result<&[Value]> {
        let list = self.conflist.get("plugins").and_then(Value::as_array).map(Vec::as_slice);
        list.filter(|plugins| !plugins.is_empty())
            .ok_or_else(|| Error::Invalid { what: "CNI configuration list: no plugins".to_owned() })
    }

    /// A plugin's configuration: its entry with the list's name and version (specification, section 3).
    fn configuration(&self, plugin: &Value, previous: Option<&Value>) -> Value {
        let mut configuration = plugin.clone();
        if let Some(object) = configuration.as_object_mut() {
            for key in ["cniVersion", "name"] {
                object.insert(key.to_owned(), self.conflist.get(key).cloned().unwrap_or_default());
            }
            if let Some(previous) = previous {
                object.insert("prevResult".to_owned(), previous.clone());
            }
        }
        configuration
    }

    /// Runs the plugin and returns what it answered, if anything.
    fn call(
        &self,
        node: &Seat,
        call: &Call,
        verb: &'static str,
        configuration: &Value,
    ) -> Result<Option<Value>> {
        let mut spawn = Spawn::new(&self.plugin, [""; 0]);
        spawn.netns = Some(node.namespace.path().to_owned());
        spawn.cgroup = Some(node.cgroup.clone());
        spawn.env = call.environment(verb, &self.plugin);
        let output = spawn.output(configuration.to_string().as_bytes(), LIMIT)?;
        let answer: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        if output.success() {
            return Ok(answer);
        }
        // Without an error on standard output, standard error is quoted, as libcni does.
        let Some(error) = answer else { return Err(call.refusal(verb, &output.complaint())) };
        let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let code = error.get("code").and_then(Value::as_u64).and_then(|code| u32::try_from(code).ok());
        Err(Error::Cni {
            verb,
            pod: call.pod.clone(),
            code: code.unwrap_or_default(),
            message: text("msg"),
            details: text("details"),
        })
    }
}

impl Attached {
    /// What the last plugin answered to ADD.
    pub(crate) fn result(&self) -> &Value {
        &self.result
    }

    /// The addresses in the result.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let ips = self.result.get("ips").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let texts = ips.iter().filter_map(|ip| ip.get("address").and_then(Value::as_str));
        texts.filter_map(|text| text.parse::<IpNetwork>().ok()).map(|prefix| prefix.ip()).collect()
    }

    pub(crate) fn check(&self, node: &Seat) -> Result<()> {
        for plugin in self.runtime.plugins()? {
            let configuration = self.runtime.configuration(plugin, Some(&self.result));
            self.runtime.call(node, &self.call, "CHECK", &configuration)?;
        }
        Ok(())
    }

    pub(crate) fn detach(&self, node: &Seat) -> Result<()> {
        self.runtime.detach(node, &self.call, Some(&self.result))
    }
}

impl Call {
    /// The parameters of section 2 of the specification.
    fn environment(&self, verb: &str, plugin: &Path) -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
        vec![
            ("CNI_COMMAND".into(), verb.into()),
            ("CNI_CONTAINERID".into(), self.container.clone().into()),
            ("CNI_NETNS".into(), self.netns.clone().into()),
            ("CNI_IFNAME".into(), POD_LINK.into()),
            ("CNI_ARGS".into(), self.args.clone().into()),
            ("CNI_PATH".into(), plugin.parent().unwrap_or(Path::new("/")).into()),
        ]
    }

    fn refusal(&self, verb: &'static str, message: &str) -> Error {
        let message = if message.is_empty() { "the plugin failed without a word" } else { message };
        Error::Cni {
            verb,
            pod: self.pod.clone(),
            code: 0,
            message: message.to_owned(),
            details: String::new(),
        }
    }
}

impl Default for CniRuntime {
    /// Returns a list with netd's plugin at its usual place and with its defaults.
    fn default() -> Self {
        let conflist = json!({ "cniVersion": "1.1.0", "name": "netd", "plugins": [{ "type": "netd-cni" }] });
        Self { plugin: PathBuf::from("/opt/cni/bin/netd-cni"), conflist }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_has_the_lists_name_and_the_earlier_result() {
        let runtime = CniRuntime::default();
        let plugin = runtime.plugins().unwrap()[0].clone();
        let configuration = runtime.configuration(&plugin, Some(&json!({"ips": []})));
        assert_eq!(
            configuration,
            json!({"type": "netd-cni", "name": "netd", "cniVersion": "1.1.0", "prevResult": {"ips": []}})
        );
    }

    #[test]
    fn addresses_are_read_from_the_result() {
        let call = Call { pod: "p".into(), container: "c".into(), netns: "/x".into(), args: String::new() };
        let result =
            json!({"ips": [{"address": "172.16.1.2/24"}, {"address": "fd00::2/64"}, {"address": "x"}]});
        let attached = Attached { runtime: CniRuntime::default(), call, result };
        assert_eq!(
            attached.addresses(),
            ["172.16.1.2".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]
        );
    }
}
