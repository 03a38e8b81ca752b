//! Benchmarks: builds what is measured, optimised as it is shipped, and the program that measures.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Result;

use crate::setup;
use crate::step::{self, cargo, command, run};

/// Where Debian's containernetworking-plugins has its programs.
const REFERENCE: &str = "/usr/lib/cni";

/// Measures netd-cni beside the reference plugins; `args` go on to netd-bench, but for `--reference DIR` (other builds of
/// the reference plugins) and `--no-daemon` (netd is not built, the cases with it are left out).
pub(crate) fn cni(args: Vec<OsString>) -> Result<()> {
    let named = args.iter().any(|word| word == "--reference");
    let with_daemon = !args.iter().any(|word| word == "--no-daemon");
    setup::require_root("the benchmark makes network namespaces")?;
    setup::packages()?;
    setup::install(&missing())?;
    setup::tools()?;
    // Both static: the kernel counts our own memory as the plugin's, and a small static program has least.
    run(&mut cargo(&[
        "build",
        "--locked",
        "--profile",
        "cni",
        "--target",
        setup::MUSL,
        "--package",
        "netd-cni",
        "--package",
        "netd-bench",
    ]))?;
    let built = step::target().join(setup::MUSL).join("cni");
    let mut bench = command(built.join("netd-bench"));
    bench.arg("--plugin").arg(built.join("netd-cni"));
    if with_daemon {
        run(&mut cargo(&["build", "--locked", "--release", "--package", "netd", "--bins"]))?;
        bench.arg("--daemon").arg(step::target().join("release").join("netd"));
    }
    if !named {
        bench.args(["--reference", REFERENCE]);
    }
    run(bench.args(args.into_iter().filter(|word| word != "--no-daemon")))
}

/// Measures netd beside kube-proxy with thousands of Services; `args` go on to bench-services.
pub(crate) fn services(args: Vec<OsString>) -> Result<()> {
    setup::require_root("the benchmark makes network namespaces")?;
    setup::packages()?;
    setup::cluster_packages()?;
    run(&mut cargo(&[
        "build",
        "--locked",
        "--release",
        "--package",
        "netd",
        "--package",
        "netd-cni",
        "--package",
        "netd-cluster-tests",
        "--bins",
    ]))?;
    let built = step::target().join("release");
    run(command(built.join("bench-services")).args(args).env("NETD_BIN_DIR", &built))
}

fn missing() -> Vec<&'static str> {
    let mut packages = Vec::new();
    let directory = Path::new(REFERENCE);
    if ["bridge", "host-local", "portmap"].iter().any(|plugin| !directory.join(plugin).exists()) {
        packages.push("containernetworking-plugins");
    }
    if setup::find("strace").is_none() {
        packages.push("strace");
    }
    packages
}
