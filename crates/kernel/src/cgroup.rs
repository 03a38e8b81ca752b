//! cgroup v2: groups of processes that socket hooks are attached to.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock::eventually;
use crate::process::{self, Signal};
use crate::{Error, Result};

/// How long processes may take to end once they were killed.
const END: Duration = Duration::from_secs(10);

/// Makes the cgroup `path` with missing parents and says whether it was new.
pub fn create(path: &Path) -> Result<bool> {
    let new = !path.exists();
    fs::create_dir_all(path).map_err(|e| Error::io(format!("make cgroup {}", path.display()), e))?;
    Ok(new)
}

/// Returns the processes in exactly this cgroup, without those of cgroups below it.
///
/// A process of another PID namespace is listed by the kernel as 0 and left out.
pub fn processes(path: &Path) -> Result<Vec<u32>> {
    let file = path.join("cgroup.procs");
    let text = fs::read_to_string(&file).map_err(|e| Error::io(format!("read {}", file.display()), e))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect())
}

/// Moves a process into the cgroup.
pub fn enter(path: &Path, pid: u32) -> Result<()> {
    let file = path.join("cgroup.procs");
    fs::write(&file, pid.to_string())
        .map_err(|e| Error::io(format!("move process {pid} to {}", path.display()), e))
}

/// Kills all processes in the cgroup and below it, waits until they are gone, and returns how many it saw.
///
/// Uses `cgroup.kill` (Linux 5.14) and, where that is absent, `SIGKILL` for each.
pub fn kill(path: &Path) -> Result<usize> {
    let victims = all_processes(path)?;
    if victims.is_empty() {
        return Ok(0);
    }
    match fs::write(path.join("cgroup.kill"), "1") {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io(format!("kill cgroup {}", path.display()), e));
        }
        Ok(()) | Err(_) => {}
    }
    let gone = eventually(END, || {
        let left = all_processes(path).unwrap_or_default();
        for pid in &left {
            // A process that ended meanwhile is what we want.
            let _ = process::kill(*pid, Signal::Kill);
        }
        left.is_empty().then_some(())
    });
    let action = || format!("kill the processes of {}", path.display());
    gone.map(|()| victims.len()).ok_or_else(|| Error::Timeout { action: action(), limit: END, hint: None })
}

/// Removes the cgroup and those below it, killing their processes first; absent is success.
///
/// Returns the number of cgroups removed and of processes killed.
pub fn remove(path: &Path) -> Result<(usize, usize)> {
    if !path.exists() {
        return Ok((0, 0));
    }
    let killed = kill(path)?;
    let mut removed = 0;
    for cgroup in subtree(path)? {
        // The last process may be a zombie for a moment, which keeps its cgroup busy.
        let mut last = None;
        let done = eventually(END, || match fs::remove_dir(&cgroup) {
            Ok(()) => Some(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Some(false),
            Err(e) => {
                last = Some(e);
                None
            }
        });
        match (done, last) {
            (Some(counted), _) => removed += usize::from(counted),
            (None, Some(cause)) => {
                return Err(Error::io(format!("remove cgroup {}", cgroup.display()), cause));
            }
            (None, None) => {}
        }
    }
    Ok((removed, killed))
}

fn all_processes(path: &Path) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for cgroup in subtree(path)? {
        match processes(&cgroup) {
            Ok(pids) => all.extend(pids),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// Lists the cgroup and all below it, children first.
fn subtree(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![path.to_owned()];
    while let Some(cgroup) = open.pop() {
        let entries = match fs::read_dir(&cgroup) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|e| Error::io(format!("list cgroup {}", cgroup.display()), e))?,
        };
        open.extend(
            entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
                .map(|entry| entry.path()),
        );
        found.push(cgroup);
    }
    // A parent was always found before its children.
    found.reverse();
    Ok(found)
}
