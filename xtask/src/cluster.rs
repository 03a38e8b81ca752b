//! The tests on a real Kubernetes cluster: they need Go to build its programs.

use anyhow::{Result, bail};

use crate::setup;
use crate::step::{Report, cargo, programs, run};

/// Runs the cluster tests; without Go says how to get them, which under CI is a failure.
pub(crate) fn test(report: &mut Report, ci: bool) {
    if setup::find("go").is_none() {
        let message = "the tests on a real cluster were left out: they build kube-apiserver and kubelet with Go \
                       1.26 or later; install Go, then run `cargo xtask test` again";
        println!("{message}");
        if ci {
            report.step("cluster tests", || bail!("{message}"));
        }
        return;
    }
    report.step("packages of the cluster tests", setup::cluster_packages);
    report.step("cluster tests", cluster_tests);
}

fn cluster_tests() -> Result<()> {
    run(cargo(&["test", "--locked", "--package", "netd-cluster-tests"]).env("NETD_BIN_DIR", programs()))
}
