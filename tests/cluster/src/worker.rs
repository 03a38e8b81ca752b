//! containerd and kubelet on one machine.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::binaries::Binaries;
use crate::control_plane::{ControlPlane, DNS, DOMAIN};
use crate::machine::Machine;
use crate::run::Run;
use crate::tool::eventually;

/// The image of the sandbox of every pod.
pub const PAUSE_IMAGE: &str = "netd.invalid/pause:1";
/// The image of the test pods: `probe` as entry point, busybox beside it.
pub const PROBE_IMAGE: &str = "netd.invalid/probe:1";

const DEADLINE: Duration = Duration::from_secs(60);
const APPLETS: [&str; 8] = ["sh", "cat", "wget", "nslookup", "nc", "ip", "sleep", "ping"];

/// Writes the two images as archives and returns their paths.
///
/// # Errors
/// When one cannot be written.
pub fn write_images(run: &Run, binaries: &Binaries) -> Result<Vec<PathBuf>> {
    let probe = binaries.own("probe");
    let links: Vec<String> = APPLETS.iter().map(|name| format!("bin/{name}=busybox")).collect();
    let mut archives = Vec::new();
    for (file, tag, entry, files, links) in [
        ("pause.tar", PAUSE_IMAGE, "/bin/probe pause", format!("bin/probe={probe}"), String::new()),
        (
            "probe.tar",
            PROBE_IMAGE,
            "/bin/probe",
            format!("bin/probe={probe},bin/busybox=/bin/busybox"),
            links.join(","),
        ),
    ] {
        let out = run.dir().join(file);
        let mut kit = std::process::Command::new(binaries.own("kit"));
        kit.args(["image", "--tag", tag, "--entrypoint", entry, "--files", &files, "--links", &links]);
        crate::tool::output(kit.arg("--out").arg(&out))?;
        archives.push(out);
    }
    Ok(archives)
}

/// Starts containerd and kubelet.
///
/// # Errors
/// When containerd does not come up, or an image cannot be imported.
pub fn start(
    machine: &Machine,
    run: &Run,
    plane: &ControlPlane,
    binaries: &Binaries,
    images: &[PathBuf],
) -> Result<()> {
    machine.write("/etc/containerd/config.toml", CONTAINERD)?;
    machine.spawn("containerd", &["containerd", "--config", "/etc/containerd/config.toml"])?;
    eventually("containerd", DEADLINE, || machine.check(&["ctr", "version"], "").map(drop))?;
    for image in images {
        let path = image.display().to_string();
        machine
            .check(&["ctr", "-n", "k8s.io", "images", "import", &path], "")
            .with_context(|| format!("import {path}"))?;
    }
    machine.write("/etc/kubernetes/kubelet.json", &kubelet_config(machine, run, plane))?;
    let user = format!("system:node:{}", machine.name());
    machine.spawn(
        "kubelet",
        &[
            &binaries.kubernetes("kubelet"),
            "--config=/etc/kubernetes/kubelet.json",
            &format!("--kubeconfig={}", plane.kubeconfig(&user).display()),
            &format!("--hostname-override={}", machine.name()),
            &format!("--node-ip={}", machine.address()),
        ],
    )
}

/// Ends kubelet and containerd; pods end with the machine.
///
/// # Errors
/// When one does not end.
pub fn stop(machine: &Machine) -> Result<()> {
    for daemon in ["kubelet", "containerd"] {
        machine.end(daemon, Signal::SIGKILL, Duration::from_secs(20))?;
    }
    Ok(())
}

/// Without CAP_SYS_RESOURCE an OOM score cannot be lowered.
const CONTAINERD: &str = r#"
version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "netd.invalid/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/opt/cni/bin"
  conf_dir = "/etc/cni/net.d"
"#;

fn kubelet_config(machine: &Machine, run: &Run, plane: &ControlPlane) -> String {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": false},
            "x509": {"clientCAFile": plane.ca()},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}/{}", run.cgroup(), machine.name()),
        "failCgroupV1": false,
        "enforceNodeAllocatable": ["pods"],
        "clusterDNS": [DNS],
        "clusterDomain": DOMAIN,
        "resolvConf": "/etc/resolv.conf",
        "failSwapOn": false,
        "evictionHard": {
            "memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "4s",
        "syncFrequency": "5s",
        "oomScoreAdj": 0,
    })
    .to_string()
}
