//! A CNI plugin that does nothing but note how it was called, and the tests of the runtime that calls it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

use netd_lab::{CniRuntime, Error, PodSpec};
use serde_json::{Value, json};

use super::*;

/// Whether this process was started as a plugin.
pub(super) fn is_called() -> bool {
    std::env::var_os("CNI_COMMAND").is_some()
}

/// The plugin's side: appends its parameters and configuration to the configuration's `log`.
pub(super) fn answer() -> i32 {
    let mut text = String::new();
    let call = std::io::stdin().read_to_string(&mut text).ok().and_then(|_| note(&text));
    let Some((verb, configuration)) = call else { return 3 };
    let answer = match (verb.as_str(), configuration.get("refuse").and_then(Value::as_bool)) {
        ("ADD", Some(true)) => {
            print(&json!({"cniVersion": "1.1.0", "code": 11, "msg": "not now", "details": "try later"}));
            return 1;
        }
        ("ADD", _) => json!({"cniVersion": "1.1.0", "ips": [{"address": "172.16.1.9/24"}]}),
        _ => return 0,
    };
    print(&answer);
    0
}

fn print(value: &Value) {
    let _ = writeln!(std::io::stdout(), "{value}");
}

fn note(text: &str) -> Option<(String, Value)> {
    let configuration: Value = serde_json::from_str(text).ok()?;
    let variables: BTreeMap<String, String> = std::env::vars().collect();
    let verb = variables.get("CNI_COMMAND")?.clone();
    let namespace = netd_kernel::Namespace::current().ok()?;
    let node = netd_kernel::Namespace::open(Path::new(configuration.get("node")?.as_str()?)).ok()?;
    let line = json!({
        "verb": verb, "env": variables, "config": configuration, "on_node": namespace.is_same(&node).ok()?,
    });
    let log = configuration.get("log")?.as_str()?.to_owned();
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(log).ok()?;
    file.write_all(format!("{line}\n").as_bytes()).ok()?;
    Some((verb, configuration))
}

fn runtime(lab: &Lab, refuse: bool) -> Result<(CniRuntime, PathBuf), Failed> {
    let log = lab.state_dir().join("calls");
    let plugin = json!({
        "type": "fake", "log": &log, "refuse": refuse, "node": lab.node("w1")?.netns(),
    });
    let conflist = json!({"cniVersion": "1.1.0", "name": "net", "plugins": [plugin]});
    Ok((CniRuntime { plugin: std::env::current_exe()?, conflist }, log))
}

fn calls(log: &Path) -> Result<Vec<Value>, Failed> {
    Ok(std::fs::read_to_string(log)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

fn verbs(calls: &[Value]) -> Vec<&str> {
    calls.iter().filter_map(|call| call["verb"].as_str()).collect()
}

pub(super) fn called_as_a_runtime_does() -> Checked {
    let lab = build()?;
    let (cni, log) = runtime(&lab, false)?;
    let spec = PodSpec { name: "web-0".to_owned(), namespace: "shop".to_owned(), cni: &cni };
    let pod = lab.node("w1")?.add_pod(&spec)?;
    check(pod.addresses() == ["172.16.1.9".parse::<IpAddr>()?], format!("{:?}", pod.addresses()))?;
    pod.check()?;
    pod.remove()?;
    check(!pod.netns().exists(), "the namespace is left")?;
    let calls = calls(&log)?;
    check(verbs(&calls) == ["ADD", "CHECK", "DEL"], format!("{:?}", verbs(&calls)))?;
    for call in &calls {
        let env = &call["env"];
        check(call["on_node"] == true, "called outside of the node's namespace")?;
        check(env["CNI_NETNS"] == json!(pod.netns()) && env["CNI_IFNAME"] == "eth0", env.to_string())?;
        let args = env["CNI_ARGS"].as_str().unwrap_or_default();
        check(args.contains("K8S_POD_NAME=web-0;") && args.contains("K8S_POD_NAMESPACE=shop;"), args)?;
        check(call["config"]["name"] == "net" && call["config"]["cniVersion"] == "1.1.0", call.to_string())?;
    }
    check(calls[0]["config"]["prevResult"].is_null(), "ADD with an earlier result")?;
    check(
        calls.iter().skip(1).all(|call| Some(&call["config"]["prevResult"]) == pod.cni_result()),
        "no prevResult",
    )
}

pub(super) fn quoted_when_it_refuses() -> Checked {
    let lab = build()?;
    let (cni, log) = runtime(&lab, true)?;
    let spec = PodSpec { name: "web-0".to_owned(), namespace: "shop".to_owned(), cni: &cni };
    let error = lab.node("w1")?.add_pod(&spec).err().ok_or("the pod was made")?;
    check(matches!(&error, Error::Cni { verb: "ADD", code: 11, .. }), format!("{error:?}"))?;
    check(
        error.to_string().contains("not now") && error.to_string().contains("try later"),
        error.to_string(),
    )?;
    check(verbs(&calls(&log)?) == ["ADD", "DEL"], "DEL was not called after the failure")?;
    check(lab.node("w1")?.pods().is_empty(), "a pod that failed is listed")?;
    let (cni, _) = runtime(&lab, false)?;
    lab.node("w1")?.add_pod(&PodSpec { cni: &cni, ..spec })?;
    Ok(())
}
