//! Repository tasks. `cargo xtask demo` and `cargo xtask test` are the two commands of the README.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a command line tool talks to its user")]
#![expect(clippy::disallowed_methods, reason = "this tool exists to start other programs and to time them")]

mod arch;
mod bench;
mod build_ebpf;
mod cluster;
mod fuzz;
mod gates;
mod peers;
mod setup;
mod step;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use step::{Report, cargo, run};

/// Repository tasks of netd.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Installs what is missing, builds netd and runs `netd demo` (arguments go on to it).
    Demo {
        /// Arguments of `netd demo`, e.g. `--script --dataplane ebpf`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Installs what is missing and runs everything that must pass: the gates, then all tests.
    Test {
        /// Leave out the tests on a real cluster (never under CI=true).
        #[arg(long)]
        no_cluster: bool,
    },
    /// The gates that need no root: fmt, clippy, deny, arrows, docs, prebuilt eBPF object.
    Ci,
    /// Fails when a crate depends on one that the layout forbids.
    Arch,
    /// Builds the eBPF programs into ebpf/prebuilt (installing the toolchain).
    BuildEbpf {
        /// Only compare a fresh build with ebpf/prebuilt.
        #[arg(long)]
        check: bool,
    },
    /// Installs the packages and tools that the other tasks need, and says what they are.
    Setup,
    /// Fuzzes what netd reads from others (fuzz/targets) with libFuzzer.
    Fuzz {
        /// One target; all of them when absent.
        target: Option<String>,
        /// How long each target runs.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Measures netd beside what it replaces; see docs/benchmarks.md.
    Bench {
        #[command(subcommand)]
        subject: Subject,
    },
}

#[derive(Subcommand)]
enum Subject {
    /// netd-cni beside Debian's bridge, host-local and portmap.
    Cni {
        /// `--quick`: a short run; `--json`: for programs; `--live N`: pods of the crowded node (250).
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// netd beside kube-proxy with thousands of Services, against a real API server (needs Go).
    Services {
        /// `--quick`; `--sizes 1000,5000`; `--endpoints 10`; `--samples 20`; `--contenders netd-nft,kube-proxy-nft`; `--json`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Demo { args } => demo(args),
        Task::Test { no_cluster } => test(no_cluster),
        Task::Ci => ci(),
        Task::Arch => arch::check(),
        Task::BuildEbpf { check } => build_ebpf::run(check),
        Task::Bench { subject: Subject::Cni { args } } => bench::cni(args),
        Task::Bench { subject: Subject::Services { args } } => bench::services(args),
        Task::Fuzz { target, seconds } => fuzz::targets(target.as_deref(), seconds),
        Task::Setup => setup::packages().and_then(|()| setup::tools()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(args: Vec<OsString>) -> Result<()> {
    // `--script` promises JSON lines on standard output, so set-up and build talk on standard error.
    setup::require_root("the demo makes network namespaces")?;
    setup::packages()?;
    setup::tools()?;
    build_binaries()?;
    run(step::command(step::programs().join("netd")).arg("demo").args(args))
}

fn ci() -> Result<()> {
    let mut report = Report::default();
    gates::all(&mut report);
    report.finish()
}

fn test(no_cluster: bool) -> Result<()> {
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    if no_cluster && ci {
        anyhow::bail!("--no-cluster is not for CI: a test left out is a failed test there");
    }
    setup::require_root("the tests make network namespaces")?;
    let mut report = Report::default();
    report.step("packages and tools", || setup::test_packages().and_then(|()| setup::tools()));
    report.stop_on_failure()?;
    gates::all(&mut report);
    report.step("build netd and netd-cni", build_binaries);
    report.step("unit, golden and namespace tests", || {
        run(&mut cargo(&[
            "test",
            "--locked",
            "--workspace",
            "--exclude",
            "netd-cluster-tests",
            "--no-fail-fast",
        ]))
    });
    report.step("fuzz targets, 10 s each", || fuzz::targets(None, 10));
    for dataplane in ["iptables", "ebpf"] {
        report.step(&format!("demo with {dataplane}"), || {
            run(step::command(step::programs().join("netd")).args([
                "demo",
                "--script",
                "--dataplane",
                dataplane,
            ]))
        });
    }
    peers::test(&mut report, setup::find("go").as_deref());
    if no_cluster {
        println!("left out: the tests on a real cluster (--no-cluster)");
    } else {
        cluster::test(&mut report, ci, setup::find("go").as_deref());
    }
    report.finish()
}

/// Builds the two programs as the demo and the tests run them, side by side: netd as the tests have it anyway,
/// netd-cni static and optimised, as a runtime would start it.
fn build_binaries() -> Result<()> {
    run(&mut cargo(&["build", "--locked", "--package", "netd"]))?;
    run(&mut cargo(&[
        "build",
        "--locked",
        "--profile",
        "cni",
        "--package",
        "netd-cni",
        "--target",
        setup::MUSL,
    ]))?;
    let target = step::target();
    place(&target.join("debug/netd"))?;
    place(&target.join(setup::MUSL).join("cni/netd-cni"))
}

/// Copies a built program to where the demo and the tests find it, by rename: the old one may be running.
fn place(built: &Path) -> Result<()> {
    let name = built.file_name().context("a program without a name")?;
    let placed = step::programs().join(name);
    let fresh = placed.with_extension("new");
    std::fs::create_dir_all(step::programs())
        .and_then(|()| std::fs::copy(built, &fresh))
        .and_then(|_| std::fs::rename(&fresh, &placed))
        .with_context(|| format!("copy {} to {}", built.display(), placed.display()))
}
