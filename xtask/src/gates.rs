//! The gates that look at the tree without running netd.

use anyhow::{Context, Result, bail};

use crate::step::{Report, cargo, output, root, run};
use crate::{arch, build_ebpf, setup};

/// Runs every gate.
pub(crate) fn all(report: &mut Report) {
    report.step("fmt", fmt);
    report.step("arrows of the layout", arch::check);
    report.step("lock file of fuzz/ follows the manifests", fuzz_lock);
    report.step("no file is too long", file_lengths);
    report.step("deny: licences, bans, sources", deny);
    report.step("clippy", || {
        run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
    });
    report.step("docs", || {
        run(cargo(&["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"])
            .env("RUSTDOCFLAGS", "-D warnings"))
    });
    report.step("prebuilt eBPF object matches its sources", || build_ebpf::run(true));
}

fn fmt() -> Result<()> {
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    run(cargo(&["fmt", "--check"]).current_dir(root().join("ebpf/progs")))?;
    run(cargo(&["fmt", "--check"]).current_dir(root().join("fuzz")))
}

fn fuzz_lock() -> Result<()> {
    let metadata = ["metadata", "--locked", "--format-version", "1"];
    output(cargo(&metadata).current_dir(root().join("fuzz")))
        .map(drop)
        .context("run `cargo metadata` in fuzz/ and commit its Cargo.lock")
}

fn deny() -> Result<()> {
    setup::cargo_deny()?;
    // Advisories need a database that is fetched from a public repository: `cargo deny check advisories` by hand.
    run(crate::step::command(setup::cargo_deny_path())
        .args(["--locked", "check", "bans", "licenses", "sources"]))
}

/// Production lines a file may have (CONTRIBUTING.md); tests at its end do not count.
const MAX_LINES: usize = 600;

fn file_lengths() -> Result<()> {
    let files = output(crate::step::command("git").args(["ls-files", "*.rs"]))?;
    let mut long = Vec::new();
    for file in files.lines().filter(|file| !file.contains("/tests")) {
        // A file that is tracked but deleted in the work tree is not there to be read.
        let Ok(text) = std::fs::read_to_string(root().join(file)) else { continue };
        let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
        if lines > MAX_LINES {
            long.push(format!("{file}: {lines}"));
        }
    }
    if !long.is_empty() {
        bail!("more than {MAX_LINES} production lines: {}", long.join(", "));
    }
    Ok(())
}

/// Reads a file of the work tree.
pub(crate) fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(root().join(path)).with_context(|| format!("read {path}"))
}
