//! The machine a run was made on, and the stage it is made on.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netd_kernel::exec::{Exec, SystemExec, find_program};
use netd_kernel::netns::NETNS_DIR;
use netd_kernel::process::is_root;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// How long `iptables --version` and the like may take.
const SHORT: Duration = Duration::from_secs(10);

/// Mounts of our own: what is bound below `/run/netns` is seen by this process and its children only, and is gone with
/// them however they end. Also keeps Ctrl-C until [`Stage::check`], so that things are cleaned up.
#[derive(Debug)]
pub(crate) struct Stage {
    signals: SignalFd,
}

impl Stage {
    /// Moves this process, which must have one thread, to mounts of its own.
    pub(crate) fn set() -> Result<Self> {
        if !is_root() {
            bail!("making network namespaces needs root");
        }
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGINT);
        mask.add(Signal::SIGTERM);
        mask.thread_block().context("block signals")?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .context("open a signalfd")?;
        unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .context("keep our mounts to ourselves")?;
        fs::create_dir_all(NETNS_DIR).with_context(|| format!("make {NETNS_DIR}"))?;
        mount(Some("netd-bench"), NETNS_DIR, Some("tmpfs"), MsFlags::empty(), none)
            .with_context(|| format!("mount a tmpfs at {NETNS_DIR}"))?;
        Ok(Self { signals })
    }

    /// Fails when the user wants an end.
    pub(crate) fn check(&self) -> Result<()> {
        match self.signals.read_signal().context("read the signalfd")? {
            Some(_) => bail!("interrupted"),
            None => Ok(()),
        }
    }
}

/// What a reader of the numbers wants to know of the machine.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// Processors that this process may use.
    pub(crate) processors: usize,
    /// The kernel's release.
    pub(crate) kernel: String,
    /// The reference's name and version.
    pub(crate) reference: String,
    /// The iptables that the reference starts.
    pub(crate) iptables: String,
}

impl Machine {
    /// Asks the machine.
    pub(crate) fn look(reference: &Path) -> Self {
        Self {
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease"),
            reference: reference_version(reference),
            iptables: find_program("iptables")
                .map_or_else(String::new, |path| first_line(&path, &["--version"])),
        }
    }
}

/// The load average of the last minute: above 1 before a run, others use the machine.
pub(crate) fn load() -> f64 {
    read("/proc/loadavg").split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

/// The most memory that this process has had, in bytes.
pub(crate) fn own_peak() -> u64 {
    let status = read("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.unwrap_or_default() * 1024
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// What Debian calls it; its plugins do not know their version.
fn reference_version(directory: &Path) -> String {
    const PACKAGE: &str = "containernetworking-plugins";
    match find_program("dpkg-query") {
        Some(query) if directory == Path::new("/usr/lib/cni") => {
            first_line(&query, &["--show", "--showformat=${Package} ${Version}", PACKAGE])
        }
        Some(_) | None => first_line(&directory.join("bridge"), &[]),
    }
}

/// The first line of what a program says of itself; a plugin says it on standard error.
fn first_line(program: &Path, args: &[&str]) -> String {
    let Ok(output) = SystemExec.run(program, args, b"", SHORT) else { return "unknown".to_owned() };
    let said = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned()
}
