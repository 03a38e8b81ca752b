//! One run of the cluster tests: its names, directories and cgroups, all of which carry the pid of the test
//! process, so that a later run can tell what a killed one left and remove it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::tool::{eventually, ip};

const STATE_PARENT: &str = "/tmp";
const STATE_PREFIX: &str = "nd-cluster-";
const CGROUPS: &str = "/sys/fs/cgroup";

/// The names and directories of one run.
#[derive(Debug, Clone)]
pub struct Run {
    pid: u32,
}

impl Run {
    /// Removes what killed runs left, and makes the directories of this one.
    ///
    /// # Errors
    /// When a directory or cgroup cannot be made.
    pub fn create() -> Result<Run> {
        sweep()?;
        let run = Run { pid: process::id() };
        fs::create_dir_all(run.logs())?;
        let start = start_time(run.pid).context("read the start time of this process")?;
        fs::write(run.dir().join("owner"), start)?;
        Ok(run)
    }

    /// The state directory, below /tmp.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        Path::new(STATE_PARENT).join(format!("{STATE_PREFIX}{}", self.pid))
    }

    /// The directory of the log files.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.dir().join("logs")
    }

    /// The log file of one daemon.
    #[must_use]
    pub fn log(&self, machine: &str, daemon: &str) -> PathBuf {
        self.logs().join(format!("{machine}-{daemon}.log"))
    }

    /// The name of a machine's network namespace.
    #[must_use]
    pub fn netns(&self, machine: &str) -> String {
        format!("{}{machine}", netns_prefix(self.pid))
    }

    /// The name of the run's cgroup in every hierarchy, relative to the mount point.
    #[must_use]
    pub fn cgroup(&self) -> String {
        cgroup_name(self.pid)
    }

    /// Makes a cgroup for a machine in every hierarchy; returns its directory in the version 2 hierarchy.
    ///
    /// # Errors
    /// When there is no version 2 hierarchy, or a cgroup cannot be made.
    pub fn create_cgroups(&self, machine: &str) -> Result<PathBuf> {
        let mut unified = None;
        for hierarchy in hierarchies()? {
            let parent = hierarchy.join(self.cgroup());
            for dir in [&parent, &parent.join(machine)] {
                fs::create_dir_all(dir).with_context(|| format!("create cgroup {}", dir.display()))?;
                inherit_cpuset(dir)?;
            }
            if is_version_2(&hierarchy) {
                // Beside version 1 the controllers are not wanted: a cgroup that hands them down takes no
                // process.
                if only_version_2() {
                    enable_controllers(&hierarchy)?;
                    enable_controllers(&parent)?;
                    enable_controllers(&parent.join(machine))?;
                }
                unified = Some(parent.join(machine));
            }
        }
        unified.with_context(|| format!("no version 2 cgroup hierarchy below {CGROUPS}"))
    }

    /// Removes everything but the log files: processes, namespaces, cgroups, directories.
    ///
    /// # Errors
    /// Names what could not be removed, after trying all.
    pub fn remove(&self, keep_logs: bool) -> Result<()> {
        remove_all(self.pid, keep_logs)
    }

    /// Lists what is left of this run: processes, namespaces, mounts, cgroups, directories.
    ///
    /// # Errors
    /// When the system cannot be read.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        leftovers(self.pid)
    }
}

fn netns_prefix(pid: u32) -> String {
    format!("nd-{pid}-c-")
}

fn cgroup_name(pid: u32) -> String {
    format!("nd-{pid}-cluster")
}

// === cgroups ===

/// The mount points of all hierarchies. Where version 2 is the only one, its mount point is `/sys/fs/cgroup`
/// itself.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = PathBuf::from(CGROUPS);
    if is_version_2(&root) {
        return Ok(vec![root]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(&root)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() && path.join("cgroup.procs").exists() {
            found.push(path);
        }
    }
    Ok(found)
}

/// Tells whether the machine has version 2 cgroups only.
pub(crate) fn only_version_2() -> bool {
    is_version_2(Path::new(CGROUPS))
}

fn is_version_2(dir: &Path) -> bool {
    dir.join("cgroup.controllers").exists()
}

/// A new version 1 cpuset has no CPUs and takes no process until it is given its parent's.
fn inherit_cpuset(dir: &Path) -> Result<()> {
    let Some(parent) = dir.parent() else { return Ok(()) };
    for file in ["cpuset.mems", "cpuset.cpus"] {
        if dir.join(file).exists() && parent.join(file).exists() && !is_version_2(dir) {
            fs::write(dir.join(file), fs::read(parent.join(file))?)?;
        }
    }
    Ok(())
}

/// Hands every controller down to the children of a version 2 cgroup; there may be none.
fn enable_controllers(dir: &Path) -> Result<()> {
    let controllers = fs::read_to_string(dir.join("cgroup.controllers"))?;
    let words: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    if !words.is_empty() {
        fs::write(dir.join("cgroup.subtree_control"), words.join(" "))
            .with_context(|| format!("enable controllers below {}", dir.display()))?;
    }
    Ok(())
}

/// All cgroups of a run, parents after their children.
fn cgroups_of(pid: u32) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for hierarchy in hierarchies()? {
        collect_dirs(&hierarchy.join(cgroup_name(pid)), &mut found);
    }
    Ok(found)
}

fn collect_dirs(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.path().is_dir() {
            collect_dirs(&entry.path(), found);
        }
    }
    found.push(dir.to_path_buf());
}

fn processes_in(cgroups: &[PathBuf]) -> Vec<i32> {
    let mut pids: Vec<i32> = cgroups
        .iter()
        .filter_map(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok())
        .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<i32>>())
        .filter(|pid| *pid > 0)
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

// === removal ===

/// Removes what runs left whose process is gone: leftovers of killed ones, log files of failed ones.
fn sweep() -> Result<()> {
    for entry in fs::read_dir(STATE_PARENT)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(STATE_PREFIX)) else { continue };
        let Ok(pid) = pid.parse::<u32>() else { continue };
        let owner = fs::read_to_string(entry.path().join("owner")).ok();
        // No owner yet: the process of that pid is just making its directory.
        let runs = start_time(pid).is_some_and(|start| owner.is_none_or(|owner| owner == start));
        if runs {
            continue;
        }
        eprintln!("removing what an earlier run left: {}", entry.path().display());
        remove_all(pid, false)?;
    }
    Ok(())
}

/// The start time of a process in clock ticks since boot; with the pid it names a process for good.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name is in parentheses and may hold anything; field 22 is the 20th after it.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19).map(str::to_owned)
}

fn remove_all(pid: u32, keep_logs: bool) -> Result<()> {
    let mut problems = Vec::new();
    let mut note = |result: Result<()>| {
        if let Err(error) = result {
            problems.push(format!("{error:#}"));
        }
    };
    note(end_processes(pid));
    note(remove_namespaces(pid));
    note(remove_cgroups(pid));
    note(remove_directory(pid, keep_logs));
    if problems.is_empty() { Ok(()) } else { bail!("{}", problems.join("; ")) }
}

fn end_processes(pid: u32) -> Result<()> {
    eventually("end the processes of the run", Duration::from_secs(20), || {
        let left = processes_in(&cgroups_of(pid)?);
        for process in &left {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(*process), Signal::SIGKILL);
        }
        if left.is_empty() { Ok(()) } else { bail!("still running: {left:?}") }
    })
}

fn namespaces_of(pid: u32) -> Result<Vec<String>> {
    let prefix = netns_prefix(pid);
    let list = ip("netns list")?;
    Ok(list
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with(&prefix))
        .map(str::to_owned)
        .collect())
}

fn remove_namespaces(pid: u32) -> Result<()> {
    for name in namespaces_of(pid)? {
        ip(&format!("netns del {name}"))?;
    }
    Ok(())
}

fn remove_cgroups(pid: u32) -> Result<()> {
    // The kernel lets go of a cgroup a little after its last process.
    eventually("remove the cgroups of the run", Duration::from_secs(20), || {
        for dir in cgroups_of(pid)? {
            fs::remove_dir(&dir).with_context(|| format!("remove {}", dir.display()))?;
        }
        Ok(())
    })
}

fn remove_directory(pid: u32, keep_logs: bool) -> Result<()> {
    let dir = Run { pid }.dir();
    let mounts = mounts_below(&dir)?;
    if !mounts.is_empty() {
        bail!("still mounted: {}", mounts.join(" "));
    }
    if !dir.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(&dir)? {
        let entry = entry?;
        if keep_logs && entry.file_name() == "logs" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    if !keep_logs {
        fs::remove_dir(&dir)?;
    }
    Ok(())
}

fn mounts_below(dir: &Path) -> Result<Vec<String>> {
    let prefix = dir.display().to_string();
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .filter(|point| *point == prefix || point.starts_with(&format!("{prefix}/")))
        .map(str::to_owned)
        .collect())
}

fn leftovers(pid: u32) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let cgroups = cgroups_of(pid)?;
    left.extend(processes_in(&cgroups).iter().map(|process| format!("process {process}")));
    left.extend(cgroups.iter().map(|dir| format!("cgroup {}", dir.display())));
    left.extend(namespaces_of(pid)?.into_iter().map(|name| format!("network namespace {name}")));
    let dir = Run { pid }.dir();
    left.extend(mounts_below(&dir)?.into_iter().map(|point| format!("mount {point}")));
    left.extend(processes_naming(&dir)?);
    if dir.exists() {
        left.push(format!("directory {}", dir.display()));
    }
    Ok(left)
}

/// Processes whose command line or root names the run's directory, wherever their cgroup is.
fn processes_naming(dir: &Path) -> Result<Vec<String>> {
    let needle = dir.display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(words) = fs::read(entry.path().join("cmdline")) else { continue };
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        if pid != process::id() && words.contains(&needle) {
            found.push(format!("process {pid}: {words}"));
        }
    }
    Ok(found)
}
