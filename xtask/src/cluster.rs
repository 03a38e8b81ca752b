//! The tests on a real Kubernetes cluster: they need Go to build its programs.

use std::path::Path;

use anyhow::{Result, bail};

use crate::setup;
use crate::step::{Report, cargo, programs, run};

const LEFT_OUT: &str = "the tests on a real cluster were left out: they build kube-apiserver and kubelet with Go 1.26 \
                        or later; install Go, then run `cargo xtask test` again";

/// Runs the cluster tests; without Go says how to get them, which under CI is a failure.
pub(crate) fn test(report: &mut Report, ci: bool, go: Option<&Path>) {
    if go.is_none() {
        println!("{LEFT_OUT}");
        if ci {
            report.step("cluster tests", || bail!("{LEFT_OUT}"));
        }
        return;
    }
    report.step("packages of the cluster tests", setup::cluster_packages);
    report.step("cluster tests", cluster_tests);
}

fn cluster_tests() -> Result<()> {
    run(cargo(&["test", "--locked", "--package", "netd-cluster-tests"]).env("NETD_BIN_DIR", programs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_go_the_cluster_tests_are_left_out_with_a_word() {
        let mut report = Report::default();
        test(&mut report, false, None);
        report.finish().unwrap();
    }

    #[test]
    fn without_go_under_ci_the_run_fails() {
        let mut report = Report::default();
        test(&mut report, true, None);
        assert!(report.stop_on_failure().unwrap_err().to_string().contains("install Go"));
    }
}
