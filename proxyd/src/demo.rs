//! `netd demo`: a master and three workers in network namespaces, a netd on each, and what it does under load.
//!
//! - [`cluster`]: the namespaces, the daemons, the pods and the directory of manifests
//! - [`scenes`]: what is shown, one function a step
//! - [`report`]: lines for a person or JSON lines for a machine

mod cluster;
mod report;
mod scenes;
mod slices;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use netd_kernel::process::{self, Signal};
use netd_lab::Lab;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{exit, out};
use crate::config::DataplaneChoice;
use crate::daemon::HostError;
use cluster::Cluster;
use report::Report;

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
    /// Prefix of the namespaces (`/run/netns/NAME-…`), name of the cgroup and of the directory below /run.
    #[arg(long, hide = true, default_value = "netd-demo")]
    name: String,
    /// With `--cleanup`: this demo was interrupted; the exit code says so.
    #[arg(long, hide = true, requires = "cleanup")]
    interrupted: bool,
    /// The CNI plugin [default: netd-cni beside this program, then /opt/cni/bin/netd-cni].
    #[arg(long, value_name = "FILE")]
    cni_plugin: Option<PathBuf>,
}

impl DemoArgs {
    /// Everything the demo writes.
    fn state_dir(&self) -> PathBuf {
        Path::new("/run").join(&self.name)
    }

    /// How the demo is removed.
    fn cleanup_command(&self) -> Vec<String> {
        let name =
            if self.name == "netd-demo" { Vec::new() } else { vec!["--name".to_owned(), self.name.clone()] };
        ["demo".to_owned(), "--cleanup".to_owned()].into_iter().chain(name).collect()
    }
}

/// Runs the demo. Returns the exit code.
pub(crate) fn run(args: &DemoArgs) -> Result<u8> {
    crate::daemon::require_root("netd demo")?;
    if args.cleanup {
        return cleanup(args);
    }
    let plugin = plugin(args)?;
    let state_dir = args.state_dir();
    refuse_standing(args)?;
    remove_on_signal(args)?;
    let mut report = Report::new(args.script);
    let dataplane = clap::ValueEnum::to_possible_value(&args.dataplane)
        .map_or_else(String::new, |value| value.get_name().to_owned());
    report.say(&format!("netd demo: a cluster in network namespaces, dataplane {dataplane}\n"))?;
    let mut cluster = Cluster::new((&args.name, &state_dir), plugin, args.dataplane)?;
    let played = scenes::play(&mut cluster, &mut report);
    if let Err(error) = &played {
        cluster.show_logs();
        report.broke(&crate::cli::on_one_line(error))?;
    }
    let ended =
        if args.keep && played.is_ok() { keep(cluster, args, &report) } else { end(cluster, &report) };
    played.context("the demo stopped")?;
    ended?;
    report.finish()
}

/// Two demos at a time would be in each other's way, and Ctrl-C in this one would remove the other.
fn refuse_standing(args: &DemoArgs) -> Result<()> {
    let directory = args.state_dir();
    if std::fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_some()) {
        let message = format!(
            "a demo is running or was left standing ({} exists): wait for its end, or remove it with `netd {}`",
            directory.display(),
            args.cleanup_command().join(" ")
        );
        return Err(HostError(message).into());
    }
    Ok(())
}

fn cleanup(args: &DemoArgs) -> Result<u8> {
    let directory = args.state_dir();
    let removed =
        Lab::remove(&args.name, &directory).context("remove the demo; run `netd demo --cleanup` again")?;
    // An empty directory is all that a demo leaves that was killed before it noted anything.
    match std::fs::remove_dir(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            bail!(
                "{} holds files, but no record of what a demo made: look at them and remove it ({error})",
                directory.display()
            );
        }
        Ok(()) | Err(_) => {}
    }
    if args.interrupted {
        eprintln!("removed {removed}");
        return Ok(exit::INTERRUPTED);
    }
    out(&if removed.is_nothing() {
        "there is no demo to remove\n".to_owned()
    } else {
        format!("removed {removed}\n")
    })?;
    Ok(0)
}

fn end(cluster: Cluster, report: &Report) -> Result<()> {
    let removed = cluster.close()?;
    report.say(&format!("\nremoved {removed}"))
}

fn keep(cluster: Cluster, args: &DemoArgs, report: &Report) -> Result<()> {
    let client = cluster.client_netns()?;
    cluster.keep();
    let netd = std::env::current_exe().context("find this program")?;
    let (netd, directory) = (netd.display(), args.state_dir());
    let (directory, cleanup) = (directory.display(), args.cleanup_command().join(" "));
    report.say(&format!(
        "\nThe cluster is left standing. In the client's pod:\n\n  ip netns exec {client} bash -c 'exec 3<>/dev/tcp/10.96.10.10/80; head -1 <&3'\n\nThe daemon of its node:\n\n  {netd} status --socket {directory}/w1/run/netd.sock\n  {netd} svc --socket {directory}/w1/run/netd.sock\n\nRemove all of it:\n\n  {netd} {cleanup}"
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

/// On SIGINT, SIGTERM or SIGHUP everything is removed before the process ends.
///
/// The process becomes `netd demo --cleanup`: only so is the thread that plays the demo stopped where it is, and makes
/// nothing anew behind the removal's back.
fn remove_on_signal(args: &DemoArgs) -> Result<()> {
    let mut command = args.cleanup_command();
    command.push("--interrupted".to_owned());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let signals = runtime.block_on(async {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        kinds.into_iter().map(signal).collect::<Result<Vec<_>, _>>()
    });
    let mut signals = signals.context("listen for signals")?;
    std::thread::Builder::new()
        .name("demo-signals".to_owned())
        .spawn(move || {
            let received = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
            runtime.block_on(futures::future::select_all(received));
            eprintln!("\ninterrupted: removing the demo");
            // An impatient second Ctrl-C must not stop the removal halfway.
            for signal in [Signal::Interrupt, Signal::Terminate, Signal::Hangup] {
                if let Err(error) = process::ignore(signal) {
                    eprintln!("netd: {error}");
                }
            }
            let error = process::restart_with(&command);
            eprintln!("netd: {error}; run `netd demo --cleanup`");
            std::process::exit(exit::FAILED.into());
        })
        .context("start the thread that waits for signals")?;
    Ok(())
}
