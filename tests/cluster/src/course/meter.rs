//! Processor time and memory of a daemon with its children, by a cgroup of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::machine::Machine;

/// How often memory is looked at; shorter peaks of child processes are missed.
const LOOK: Duration = Duration::from_millis(20);
/// How long a daemon is watched doing nothing.
const IDLE: Duration = Duration::from_secs(6);

/// Measures what is in a cgroup until it is dropped.
#[derive(Debug)]
pub(super) struct Meter {
    cgroup: PathBuf,
    most: Arc<Most>,
    watcher: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Most {
    done: AtomicBool,
    tree: AtomicU64,
    daemon: AtomicU64,
}

/// The most memory in MiB.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peak {
    /// Of the largest process.
    pub(super) daemon: f64,
    /// Of all processes at a time.
    pub(super) tree: f64,
}

impl Meter {
    /// Makes the cgroup below the machine's.
    pub(super) fn new(machine: &Machine) -> Result<Meter> {
        let cgroup = machine.cgroup().join("contender");
        fs::create_dir_all(&cgroup).with_context(|| format!("create {}", cgroup.display()))?;
        let most = Arc::new(Most::default());
        let (path, shared) = (cgroup.clone(), Arc::clone(&most));
        let watcher = thread::spawn(move || {
            while !shared.done.load(Ordering::Relaxed) {
                look(&path, &shared);
                thread::sleep(LOOK);
            }
        });
        Ok(Meter { cgroup, most, watcher: Some(watcher) })
    }

    /// Directory of the cgroup.
    pub(super) fn cgroup(&self) -> std::path::Display<'_> {
        self.cgroup.display()
    }

    /// Processor time so far, that of ended children included.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let path = self.cgroup.join("cpu.stat");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        let usage = usage.and_then(|word| word.trim().parse().ok());
        usage.map(Duration::from_micros).with_context(|| format!("{}: no usage_usec", path.display()))
    }

    /// Waits until the daemon has less to do, and returns which share of one processor it takes then.
    pub(super) fn settle(&self) -> Result<f64> {
        let mut least = f64::MAX;
        for _ in 0..10 {
            let (begin, cpu) = (Instant::now(), self.cpu()?);
            thread::sleep(IDLE);
            let share = self.cpu()?.saturating_sub(cpu).as_secs_f64() / begin.elapsed().as_secs_f64();
            if share > 0.9 * least {
                return Ok(share.min(least));
            }
            least = share;
        }
        Ok(least)
    }

    /// The most memory so far.
    pub(super) fn peak(&self) -> Result<Peak> {
        #[expect(clippy::cast_precision_loss, reason = "kilobytes")]
        let mib = |value: &AtomicU64| value.load(Ordering::Relaxed) as f64 / 1024.0;
        Ok(Peak { daemon: mib(&self.most.daemon), tree: mib(&self.most.tree) })
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.most.done.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            // A look that panicked has been told of on standard error.
            drop(watcher.join());
        }
    }
}

fn look(cgroup: &Path, most: &Most) {
    let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut tree = 0;
    for pid in pids.lines() {
        // A process may end while it is looked at.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        tree += kilobytes(&status, "VmRSS:");
        most.daemon.fetch_max(kilobytes(&status, "VmHWM:"), Ordering::Relaxed);
    }
    most.tree.fetch_max(tree, Ordering::Relaxed);
}

fn kilobytes(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
