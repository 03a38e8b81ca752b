//! A daemon beside the plugin: netd with nothing but its part for the plugin, which deletes the links that DEL leaves.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netd_kernel::Namespace;
use netd_kernel::clock::eventually;
use netd_kernel::exec::{Child, Spawn, Stream};
use netd_kernel::reap::Reaper;
use serde_json::json;

/// How long it may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Clock ticks a second in `/proc/<pid>/stat` (`USER_HZ`), the same on every machine that Debian runs on.
const TICKS: u32 = 100;

/// A running netd, which ends with the thread that started it.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
}

/// What the daemon did for the DELs of a turn.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Aftermath {
    /// From the end of the last DEL until the last link was gone.
    pub(crate) settled: Duration,
    /// Processor time from before the first ADD until then.
    pub(crate) processor: Duration,
}

impl Daemon {
    /// Starts netd in the namespace at `host` with its files in `directory`, and waits until it takes links.
    pub(crate) fn start(program: &Path, host: &Path, directory: &Path) -> Result<Self> {
        let manifests = directory.join("manifests");
        fs::create_dir(&manifests).context("make a directory of manifests")?;
        let config = directory.join("netd.json");
        let text = json!({
            "apiVersion": "netd.io/v1alpha1", "kind": "NetdConfiguration", "nodeName": "bench",
            "source": { "manifests": manifests },
            "parts": { "proxy": false, "fabric": false, "dns": false, "cni": true },
            "cni": {
                "conflist": null, "rangesFile": directory.join("podcidrs.json"),
                "dataDir": directory.join("ledgers"),
            },
            "http": { "health": null, "metrics": null },
            "paths": { "stateDir": directory.join("state"), "runDir": directory.join("run") },
        });
        fs::write(&config, text.to_string()).context("write the daemon's configuration")?;
        let log = directory.join("netd.log");
        let mut spawn = Spawn::new(program, ["run".into(), "--config".into(), config.into_os_string()]);
        spawn.netns = Some(host.to_owned());
        (spawn.stdout, spawn.stderr) = (Stream::File(log.clone()), Stream::File(log.clone()));
        spawn.die_with_thread = true;
        let mut daemon = Self { child: spawn.start()? };
        let namespace = Namespace::open(host)?;
        let listens = || namespace.run(|| Reaper::find().is_some()).unwrap_or(false);
        if eventually(PATIENCE, || listens().then_some(())).is_none() {
            let ended = daemon.child.try_wait()?;
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("netd takes no links after {} s (exit status {ended:?}): {said}", PATIENCE.as_secs());
        }
        Ok(daemon)
    }

    /// Processor time since its start, of all its threads.
    pub(crate) fn processor(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.child.pid());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}: has netd ended?"))?;
        ticks(&text)
            .map(|ticks| Duration::from_secs(ticks) / TICKS)
            .with_context(|| format!("understand {path}"))
    }
}

/// `utime` and `stime`, the 14th and 15th field; the second is a name in parentheses that may have blanks (proc(5)).
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.child.stop(PATIENCE) {
            eprintln!("netd-bench: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_process_is_found_behind_its_name() {
        let stat = "4711 (a ) b) S 1 2 3 4 5 6 7 8 9 10 120 30 0 0 20 0 1 0 100 0 0";
        assert_eq!(ticks(stat), Some(150));
        assert_eq!(ticks("4711 (netd"), None);
    }
}
