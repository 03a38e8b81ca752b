//! `netd demo`: a master and three workers in network namespaces, a netd on each, and what it does under load.
//!
//! - [`cluster`]: the namespaces, the daemons, the pods and the directory of manifests
//! - [`scenes`]: what is shown, one function a step
//! - [`report`]: lines for a person or JSON lines for a machine

mod cluster;
mod report;
mod scenes;
mod slices;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use netd_lab::Lab;

use crate::cli::out;
use crate::config::DataplaneChoice;
use cluster::Cluster;
use report::Report;

/// Name of the lab: prefix of its namespaces (`/run/netns/netd-demo-…`) and of its cgroup.
const NAME: &str = "netd-demo";
/// Everything the demo writes.
const STATE_DIR: &str = "/run/netd-demo";

/// Builds a cluster of four nodes in network namespaces and shows netd at work.
#[derive(Args, Clone, Debug)]
pub(crate) struct DemoArgs {
    /// Dataplane of the daemons.
    #[arg(long, value_enum, default_value_t)]
    dataplane: DataplaneChoice,
    /// JSON lines for machines: one a step, then a summary; the exit code tells whether all went well.
    #[arg(long)]
    script: bool,
    /// Leave everything standing at the end, and say how to enter a pod.
    #[arg(long, conflicts_with = "script")]
    keep: bool,
    /// Remove what a demo left standing, then exit.
    #[arg(long, conflicts_with_all = ["script", "keep"])]
    cleanup: bool,
    /// The CNI plugin [default: netd-cni beside this program, then /opt/cni/bin/netd-cni].
    #[arg(long, value_name = "FILE")]
    cni_plugin: Option<PathBuf>,
}

/// Runs the demo. Returns the exit code.
pub(crate) fn run(args: &DemoArgs) -> Result<u8> {
    crate::daemon::require_root("netd demo")?;
    if args.cleanup {
        return cleanup();
    }
    let plugin = plugin(args)?;
    remove_on_signal()?;
    let mut report = Report::new(args.script);
    let dataplane = clap::ValueEnum::to_possible_value(&args.dataplane)
        .map_or_else(String::new, |value| value.get_name().to_owned());
    report.say(&format!("netd demo: a cluster in network namespaces, dataplane {dataplane}\n"))?;
    let mut cluster = Cluster::new(plugin, args.dataplane)?;
    let played = scenes::play(&mut cluster, &mut report);
    let ended =
        if args.keep && played.is_ok() { keep(cluster, &report) } else { end(cluster, &mut report, &played) };
    played.with_context(|| {
        format!("the demo stopped; logs of the daemons were in {STATE_DIR}/<node>/netd.log")
    })?;
    ended?;
    report.finish()
}

fn cleanup() -> Result<u8> {
    let removed = Lab::remove(NAME, STATE_DIR.as_ref()).context("remove the demo")?;
    out(&format!("removed {removed}\n"))?;
    Ok(0)
}

fn end(cluster: Cluster, report: &mut Report, played: &Result<()>) -> Result<()> {
    if played.is_err() {
        cluster.show_logs();
    }
    let removed = cluster.close()?;
    report.say(&format!("\nremoved {removed}"))
}

fn keep(cluster: Cluster, report: &Report) -> Result<()> {
    let client = cluster.client_netns()?;
    cluster.keep();
    report.say(&format!(
        "\nThe cluster is left standing. In the client's pod:\n\n  ip netns exec {client} bash -c 'exec 3<>/dev/tcp/10.96.10.10/80; head -1 <&3'\n\nThe daemon of its node:\n\n  netd status --socket {STATE_DIR}/w1/run/netd.sock\n  netd svc --socket {STATE_DIR}/w1/run/netd.sock\n\nRemove all of it:\n\n  netd demo --cleanup"
    ))
}

/// Finds the CNI plugin that the demo's runtime calls.
fn plugin(args: &DemoArgs) -> Result<PathBuf> {
    if let Some(path) = &args.cni_plugin {
        if path.is_file() {
            return Ok(path.clone());
        }
        bail!("--cni-plugin {}: no such file", path.display());
    }
    let beside = std::env::current_exe().context("find this program")?.with_file_name("netd-cni");
    [beside, PathBuf::from("/opt/cni/bin/netd-cni")]
        .into_iter()
        .find(|path| path.is_file())
        .context("netd-cni is neither beside netd nor in /opt/cni/bin: name it with --cni-plugin, or use `cargo xtask demo`")
}

/// On SIGINT or SIGTERM everything is removed before the process ends.
fn remove_on_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let (mut interrupt, mut terminate) = runtime.block_on(async {
        Ok::<_, std::io::Error>((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
    })?;
    std::thread::Builder::new()
        .name("demo-signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            });
            eprintln!("\ninterrupted: removing the demo");
            match Lab::remove(NAME, STATE_DIR.as_ref()) {
                Ok(removed) => eprintln!("removed {removed}"),
                Err(error) => eprintln!("netd: remove the demo: {error}; run `netd demo --cleanup`"),
            }
            std::process::exit(130);
        })
        .context("start the thread that waits for signals")?;
    Ok(())
}
