//! The peers of netd-cni in its tests: libcni's tool and the latest reference plugins, built with Go.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::step::{Report, cache, cargo, command, output, root, run};

/// Where their go.mod is.
const SOURCE: &str = "cni-plugin/tests/parity/go";

/// Builds them and runs the tests that need them; without Go these are left out like those on a real cluster, which says
/// so.
pub(crate) fn test(report: &mut Report, go: Option<&Path>) {
    let Some(go) = go else {
        println!(
            "left out: libcni and the latest reference plugins beside netd-cni (they are built with Go)"
        );
        return;
    };
    report.step("libcni and the latest reference plugins beside netd-cni", || {
        let directory = build(go)?;
        run(cargo(&["test", "--locked", "--package", "netd-cni", "--test", "parity", "--", "--ignored"])
            .env("NETD_CNI_PEERS", directory))
    });
}

/// Builds them unless they are in the cache; returns their directory, which is named after go.mod and go.sum.
fn build(go: &Path) -> Result<PathBuf> {
    let source = root().join(SOURCE);
    let sums = output(command("sha256sum").current_dir(&source).args(["go.mod", "go.sum"]))?;
    let key: Vec<String> = sums.lines().map(|line| line.chars().take(12).collect()).collect();
    let directory = cache().join("cni-peers").join(key.join("-"));
    if directory.exists() {
        return Ok(directory);
    }
    eprintln!("building libcni's tool and the reference plugins into {} (once)", directory.display());
    // Built beside and renamed, so that a killed build leaves nothing that looks whole.
    let fresh = directory.with_extension(format!("new-{}", std::process::id()));
    std::fs::create_dir_all(&fresh).with_context(|| format!("make {}", fresh.display()))?;
    run(command(go)
        .current_dir(&source)
        .env("CGO_ENABLED", "0")
        .args(["build", "-trimpath", "-ldflags", "-s -w", "-o"])
        .arg(&fresh)
        .arg("tool"))?;
    match std::fs::rename(&fresh, &directory) {
        // Another process was quicker.
        Err(_) if directory.exists() => std::fs::remove_dir_all(&fresh).context("remove what another built"),
        other => other.with_context(|| format!("rename to {}", directory.display())),
    }?;
    Ok(directory)
}
