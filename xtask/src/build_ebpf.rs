//! Builds the eBPF programs into ebpf/prebuilt.
//!
//! The object is the same bytes wherever the checkout, the registry and the toolchain lie: paths are remapped,
//! debug sections are stripped (BTF stays), and compiler, linker and crates are pinned.

#[path = "../../ebpf/sources.rs"]
mod sources;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::setup;
use crate::step::{self, cache, command, output, root};

const TARGET: &str = "bpfel-unknown-none";
/// The linker's LLVM is at least as new as the compiler's.
const LLVM_PACKAGE: &str = "llvm-22-dev";
const LLVM_FEATURE: &str = "llvm-22";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LINKER_VERSION: &str = "0.13.0";

/// Builds the object and its list of hashes, installing what that needs; with `check`, changes nothing and
/// fails when the committed object does not belong to the sources or, where the tools are there, when a fresh
/// build gives other bytes.
pub(crate) fn run(check: bool) -> Result<()> {
    let root = root();
    let channel = channel(&root)?;
    if check {
        check_hashes(&root)?;
        if let Some(missing) = missing(&channel)? {
            eprintln!("the hashes match; not built again to compare, for {missing} is missing");
            return Ok(());
        }
        let fresh = build(&root, &channel)?;
        let path = root.join(sources::OBJECT);
        let committed = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        if fresh != committed {
            bail!("{}: a fresh build differs; run `cargo xtask build-ebpf` and commit", sources::OBJECT);
        }
        eprintln!("a fresh build gives the same {} bytes", fresh.len());
        return Ok(());
    }
    install(&channel)?;
    let object = build(&root, &channel)?;
    write(&root.join(sources::OBJECT), &object)?;
    let list = sources::list(&root).context("hash the sources of the eBPF object")?;
    write(&root.join(sources::HASHES), list.as_bytes())?;
    eprintln!("wrote {} ({} bytes) and {}", sources::OBJECT, object.len(), sources::HASHES);
    Ok(())
}

fn check_hashes(root: &Path) -> Result<()> {
    let list = sources::list(root).context("hash the sources of the eBPF object")?;
    let path = root.join(sources::HASHES);
    let committed = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    for line in list.lines().filter(|line| !committed.lines().any(|old| old == *line)) {
        eprintln!("changed: {line}");
    }
    if list != committed {
        bail!("{} is not of these sources; run `cargo xtask build-ebpf` and commit", sources::OBJECT);
    }
    Ok(())
}

/// The toolchain that ebpf/progs names.
fn channel(root: &Path) -> Result<String> {
    let path = root.join("ebpf/progs/rust-toolchain.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("channel = \"")?.strip_suffix('"'))
        .map(str::to_owned)
        .with_context(|| format!("{}: no channel", path.display()))
}

// === The tools ===

fn linker() -> PathBuf {
    cache().join("tools/bin/bpf-linker")
}

fn strip() -> PathBuf {
    Path::new(LLVM_PREFIX).join("bin/llvm-strip")
}

fn has_linker() -> bool {
    let path = linker();
    path.exists() && output(command(path).arg("--version")).is_ok_and(|text| text.contains(LINKER_VERSION))
}

fn has_toolchain(channel: &str) -> Result<bool> {
    if setup::find("rustup").is_none() {
        return Ok(false);
    }
    let toolchains = output(command("rustup").args(["toolchain", "list"]))?;
    if !toolchains.lines().any(|line| line.starts_with(channel)) {
        return Ok(false);
    }
    let components =
        output(command("rustup").args(["component", "list", "--installed", "--toolchain", channel]))?;
    Ok(components.lines().any(|line| line.starts_with("rust-src")))
}

/// The first tool that is missing.
fn missing(channel: &str) -> Result<Option<String>> {
    if !has_toolchain(channel)? {
        return Ok(Some(format!("the Rust toolchain {channel} with rust-src")));
    }
    if !strip().exists() {
        return Ok(Some(format!("{LLVM_PACKAGE} ({})", strip().display())));
    }
    Ok((!has_linker()).then(|| format!("bpf-linker {LINKER_VERSION}")))
}

fn install(channel: &str) -> Result<()> {
    if !has_toolchain(channel)? {
        eprintln!("installing the Rust toolchain {channel} with rust-src");
        step::run(command("rustup").args([
            "toolchain",
            "install",
            channel,
            "--profile",
            "minimal",
            "--component",
            "rust-src",
        ]))?;
    }
    if !strip().exists() {
        setup::install(&[LLVM_PACKAGE])?;
    }
    if !has_linker() {
        let tools = cache().join("tools");
        eprintln!("installing bpf-linker {LINKER_VERSION} into {}", tools.display());
        // Not with the toolchain of the programs: the linker is an ordinary program of the host.
        step::run(
            command("cargo")
                .args(["install", "bpf-linker", "--locked", "--version", LINKER_VERSION])
                .args(["--no-default-features", "--features", LLVM_FEATURE, "--root"])
                .arg(&tools)
                .env("LLVM_PREFIX", LLVM_PREFIX)
                .env("CARGO_TARGET_DIR", tools.join("target")),
        )?;
    }
    Ok(())
}

// === The build ===

fn build(root: &Path, channel: &str) -> Result<Vec<u8>> {
    let manifest = root.join("ebpf/progs/Cargo.toml");
    let target = cache().join("ebpf-target");
    step::run(cargo(channel).args(["fetch", "--locked", "--manifest-path"]).arg(&manifest))?;
    step::run(
        cargo(channel)
            .args(["build", "--locked", "--release", "--quiet", "--target", TARGET, "-Zbuild-std=core"])
            .arg("--manifest-path")
            .arg(&manifest)
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker())
            .env("CARGO_ENCODED_RUSTFLAGS", flags(root, channel)?),
    )?;
    let built = target.join(TARGET).join("release/netd");
    let stripped = target.join("netd.bpf.o");
    step::run(command(strip()).arg("--strip-debug").arg("-o").arg(&stripped).arg(&built))?;
    fs::read(&stripped).with_context(|| format!("read {}", stripped.display()))
}

/// `cargo` of the pinned toolchain, free of what the calling cargo has put into the environment.
fn cargo(channel: &str) -> std::process::Command {
    let mut cargo = command("rustup");
    cargo.args(["run", channel, "cargo"]);
    for name in
        ["CARGO", "RUSTC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN", "CARGO_BUILD_TARGET", "CARGO_ENCODED_RUSTFLAGS"]
    {
        cargo.env_remove(name);
    }
    cargo
}

/// Compiler flags, separated as `CARGO_ENCODED_RUSTFLAGS` wants them.
fn flags(root: &Path, channel: &str) -> Result<OsString> {
    let sysroot = output(command("rustup").args(["run", channel, "rustc", "--print", "sysroot"]))?;
    let mut flags: Vec<OsString> = vec!["-Cdebuginfo=2".into(), "-Clink-arg=--btf".into()];
    let mut remap = |from: &Path, to: &str| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push("=");
        flag.push(to);
        flags.push(flag);
    };
    remap(root, "/netd");
    remap(Path::new(sysroot.trim()), "/rust");
    for directory in registry_sources()? {
        remap(&directory, "/crates");
    }
    Ok(flags.join(&OsString::from("\x1f")))
}

/// Directories in which cargo keeps the sources of crates.
fn registry_sources() -> Result<Vec<PathBuf>> {
    let home = match std::env::var_os("CARGO_HOME") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?)
            .join(".cargo"),
    };
    let path = home.join("registry/src");
    let entries = fs::read_dir(&path).with_context(|| format!("list {}", path.display()))?;
    let mut directories: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    directories.sort();
    Ok(directories)
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    fs::write(path, content).with_context(|| format!("write {}", path.display()))
}
