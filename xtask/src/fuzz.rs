//! Builds and runs the fuzz targets of `fuzz/` with libFuzzer, on the stable toolchain.
//!
//! `cargo fuzz` needs a nightly compiler for its sanitizers; netd's parsers forbid unsafe code, so what is to be found
//! is a panic, an overflow or an assertion, for which the coverage instrumentation alone will do.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::step::{cargo, command, root, run, target};

/// What `cargo fuzz` passes to the compiler, without the sanitizer.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "--cfg=fuzzing",
];
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// The largest input in bytes.
const MAX_INPUT: usize = 8192;
/// The most memory of one target in MiB; a parser needs a few.
const MAX_MEMORY: usize = 512;
/// The longest time for one input in seconds.
const MAX_TIME: usize = 5;

/// Builds all targets and runs `only` one of them, or each, for `seconds`.
pub(crate) fn targets(only: Option<&str>, seconds: u32) -> Result<()> {
    let names = names()?;
    if let Some(name) = only.filter(|name| !names.iter().any(|known| known == name)) {
        bail!("no fuzz target {name}; there are: {}", names.join(", "));
    }
    build()?;
    for name in names.iter().filter(|name| only.is_none_or(|only| only == *name)) {
        fuzz(name, seconds)?;
    }
    Ok(())
}

/// Each file in fuzz/targets is a target.
fn names() -> Result<Vec<String>> {
    let directory = root().join("fuzz/targets");
    let entries = fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", directory.display()))?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn directory() -> PathBuf {
    target().join("fuzz")
}

fn build() -> Result<()> {
    // The flags are for the target only: a build script with them would not link.
    run(cargo(&["build", "--release", "--locked", "--target", TRIPLE, "--bins"])
        .current_dir(root().join("fuzz"))
        .env("CARGO_TARGET_DIR", directory())
        .env("RUSTFLAGS", FLAGS.join(" ")))
}

fn fuzz(name: &str, seconds: u32) -> Result<()> {
    let corpus = directory().join("corpus").join(name);
    let findings = directory().join("findings").join(name);
    let scratch = scratch();
    for path in [&corpus, &findings, &scratch] {
        fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
    }
    let program = directory().join(TRIPLE).join("release").join(name);
    let outcome = command(program)
        .arg(&corpus)
        .arg(root().join("fuzz/seeds").join(name))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={MAX_INPUT}"))
        .arg(format!("-rss_limit_mb={MAX_MEMORY}"))
        .arg(format!("-timeout={MAX_TIME}"))
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .args(["-print_final_stats=1", "-verbosity=0"])
        .env("NETD_FUZZ_DIRECTORY", &scratch)
        .output();
    // The targets write there; what is left is nobody's.
    drop(fs::remove_dir_all(&scratch));
    let outcome = outcome.with_context(|| format!("start {name}"))?;
    let said = String::from_utf8_lossy(&outcome.stderr);
    if !outcome.status.success() {
        eprintln!("{said}");
        bail!("{name}: {}; the input is in {}: give it to the program", outcome.status, findings.display());
    }
    let figure = |key: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix("stat::")?.strip_prefix(key));
        line.map_or("?", |value| value.trim_start_matches(':').trim()).to_owned()
    };
    let (inputs, memory) = (figure("number_of_executed_units"), figure("peak_rss_mb"));
    println!("{name}: {inputs} inputs in {seconds} s, nothing found, {memory} MiB");
    Ok(())
}

/// A directory in memory, one a process.
fn scratch() -> PathBuf {
    PathBuf::from(format!("/dev/shm/nd-{}-xtask-fuzz", std::process::id()))
}
