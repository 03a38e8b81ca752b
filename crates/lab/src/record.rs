//! The record of what a lab has made, and its removal.
//!
//! A line is written before the thing is made, so that a lab killed at any instruction can be removed. The record is
//! checked against the lab's name before anything is touched, and no path outside of the lab's own places is believed.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use netd_kernel::netns::{NETNS_DIR, Namespace};
use netd_kernel::{cgroup, mount};
use serde::{Deserialize, Serialize};

use crate::spec::{LAN, check_name};
use crate::{Error, Result};

/// The record's name in the state directory.
const FILE: &str = "record";
/// What a pod's cgroup is named by, before its name.
pub(crate) const POD_CGROUP: &str = "pod-";
/// The record's format.
const VERSION: u32 = 1;

/// One line of the record.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Line {
    /// Whose record this is; the first line.
    Lab { name: String, version: u32 },
    /// A network namespace's path.
    Namespace(PathBuf),
    /// A cgroup's path; those below it are the lab's as well.
    Cgroup(PathBuf),
}

/// How much of a lab was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Processes killed.
    pub processes: usize,
    /// Network namespaces.
    pub namespaces: usize,
    /// Control groups.
    pub cgroups: usize,
    /// Mounts below the state directory.
    pub mounts: usize,
    /// State directories.
    pub directories: usize,
}

impl Removed {
    /// Whether there was nothing to remove.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} processes, {} network namespaces, {} cgroups, {} mounts, {} directories",
            self.processes, self.namespaces, self.cgroups, self.mounts, self.directories
        )
    }
}

/// The open record of a standing lab.
#[derive(Debug)]
pub(crate) struct Record {
    file: File,
}

impl Record {
    /// Starts the record of a lab, making the state directory.
    pub(crate) fn start(name: &str, state_dir: &Path) -> Result<Self> {
        let path = state_dir.join(FILE);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(|e| Error::io(format!("make directory {}", state_dir.display()), e))?;
        let mut entries =
            fs::read_dir(state_dir).map_err(|e| Error::io(format!("list {}", state_dir.display()), e))?;
        if path.exists() {
            return Err(Error::Standing { name: name.to_owned(), state_dir: state_dir.to_owned() });
        }
        if entries.next().is_some() {
            // It is removed with the lab, so nobody else's files may be in it.
            return Err(Error::Invalid {
                what: format!("state directory {}: not empty", state_dir.display()),
            });
        }
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| Error::io(format!("make {}", path.display()), e))?;
        let record = Self { file };
        record.write(&Line::Lab { name: name.to_owned(), version: VERSION })?;
        Ok(record)
    }

    /// Notes a namespace that is about to be made.
    pub(crate) fn namespace(&self, path: &Path) -> Result<()> {
        self.write(&Line::Namespace(path.to_owned()))
    }

    /// Notes a cgroup that is about to be made.
    pub(crate) fn cgroup(&self, path: &Path) -> Result<()> {
        self.write(&Line::Cgroup(path.to_owned()))
    }

    fn write(&self, line: &Line) -> Result<()> {
        let failed = |e| Error::io("write the lab's record", e);
        let mut text = serde_json::to_string(line).map_err(|e| failed(e.into()))?;
        text.push('\n');
        (&self.file).write_all(text.as_bytes()).map_err(failed)
    }
}

/// Removes what the record in `state_dir` tells of, and the directory; without a record, what the cgroups tell of.
pub(crate) fn remove(name: &str, state_dir: &Path) -> Result<Removed> {
    check_name("lab", name)?;
    let Some(lines) = read(state_dir)? else { return remove_unrecorded(name) };
    match lines.first() {
        Some(Line::Lab { name: owner, version: VERSION }) if owner == name => {}
        Some(Line::Lab { name: owner, .. }) => {
            let what = format!("lab name {name:?}: {} is the state of {owner:?}", state_dir.display());
            return Err(Error::Invalid { what });
        }
        // Killed before the first line was written: then nothing was made but the directory.
        Some(Line::Namespace(_) | Line::Cgroup(_)) | None => {}
    }
    let mut removal = Removal::new(name);
    removal.cgroups(&lines);
    removal.namespaces(&lines);
    removal.mounts(state_dir);
    removal.directory(state_dir);
    removal.end()
}

/// Removes a lab whose state directory someone emptied: each machine and pod has a cgroup that names it.
fn remove_unrecorded(name: &str) -> Result<Removed> {
    let root = mount::cgroup2_root()?.join(name);
    let namespace = |parts: &[&str]| Path::new(NETNS_DIR).join([&[name], parts].concat().join("-"));
    if !root.join(LAN).is_dir() || !namespace(&[LAN]).exists() {
        // Not a lab's cgroup, whoever's it is.
        return Ok(Removed::default());
    }
    let mut lines = vec![Line::Cgroup(root.clone())];
    for machine in directories(&root) {
        lines.push(Line::Namespace(namespace(&[&machine])));
        for pod in directories(&root.join(&machine)) {
            lines
                .extend(pod.strip_prefix(POD_CGROUP).map(|pod| Line::Namespace(namespace(&[&machine, pod]))));
        }
    }
    let mut removal = Removal::new(name);
    removal.cgroups(&lines);
    removal.namespaces(&lines);
    removal.end()
}

/// The names of the directories in a directory.
fn directories(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Reads the record; a torn last line is left out, for then the thing was not made.
fn read(state_dir: &Path) -> Result<Option<Vec<Line>>> {
    let path = state_dir.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(format!("read {}", path.display()), e)),
    }
}

/// A removal on its way: it never stops at the first failure.
struct Removal<'a> {
    name: &'a str,
    removed: Removed,
    failures: Vec<String>,
}

impl<'a> Removal<'a> {
    fn new(name: &'a str) -> Self {
        Self { name, removed: Removed::default(), failures: Vec::new() }
    }

    fn end(self) -> Result<Removed> {
        if self.failures.is_empty() {
            Ok(self.removed)
        } else {
            Err(Error::Teardown { removed: self.removed, failures: self.failures })
        }
    }

    /// Kills the processes, which all live in the lab's cgroups, and removes those.
    fn cgroups(&mut self, lines: &[Line]) {
        let root = match mount::cgroup2_root() {
            Ok(root) => root.join(self.name),
            Err(error) => return self.failures.push(error.to_string()),
        };
        for line in lines.iter().rev() {
            let Line::Cgroup(path) = line else { continue };
            if !is_below_or_at(path, &root) {
                self.failures.push(format!("{} is not a cgroup of this lab", path.display()));
                continue;
            }
            match cgroup::remove(path) {
                Ok((cgroups, processes)) => {
                    self.removed.cgroups += cgroups;
                    self.removed.processes += processes;
                }
                Err(error) => self.failures.push(error.to_string()),
            }
        }
    }

    fn namespaces(&mut self, lines: &[Line]) {
        let prefix = format!("{}-", self.name);
        for line in lines.iter().rev() {
            let Line::Namespace(path) = line else { continue };
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            if path.parent() != Some(Path::new(NETNS_DIR)) || !file.starts_with(&prefix) {
                self.failures.push(format!("{} is not a namespace of this lab", path.display()));
                continue;
            }
            let there = path.symlink_metadata().is_ok();
            match Namespace::remove(path) {
                Ok(()) => self.removed.namespaces += usize::from(there),
                Err(error) => self.failures.push(error.to_string()),
            }
        }
    }

    /// Unmounts what netd mounted below its state directory, innermost first.
    fn mounts(&mut self, state_dir: &Path) {
        let mounts = match mount::mounts() {
            Ok(mounts) => mounts,
            Err(error) => return self.failures.push(error.to_string()),
        };
        for mounted in mounts.iter().rev().filter(|mounted| mounted.target.starts_with(state_dir)) {
            match mount::unmount(&mounted.target) {
                Ok(done) => self.removed.mounts += usize::from(done),
                Err(error) => self.failures.push(error.to_string()),
            }
        }
    }

    /// Removes the state, the record with it; not while something is mounted there that would be emptied.
    fn directory(&mut self, state_dir: &Path) {
        if !self.failures.is_empty() {
            return;
        }
        match remove_record_last(state_dir) {
            Ok(()) => self.removed.directories += 1,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => self.failures.push(format!("remove {}: {e}", state_dir.display())),
        }
    }
}

/// Whoever is killed in the middle leaves the record, so the next removal finds its way.
fn remove_record_last(state_dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(state_dir)? {
        let entry = entry?;
        if entry.file_name() == FILE {
            continue;
        }
        let removed = if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())
        } else {
            fs::remove_file(entry.path())
        };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
    }
    fs::remove_file(state_dir.join(FILE))?;
    fs::remove_dir(state_dir)
}

fn is_below_or_at(path: &Path, root: &Path) -> bool {
    path.starts_with(root) && !path.components().any(|part| part == Component::ParentDir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        (dir, path)
    }

    #[test]
    fn a_record_of_another_lab_is_not_touched() {
        let (_dir, path) = state();
        Record::start("nd-one", &path).unwrap();
        assert!(matches!(remove("nd-two", &path), Err(Error::Invalid { .. })));
        assert!(path.exists());
        assert_eq!(remove("nd-one", &path).unwrap().directories, 1);
        assert!(remove("nd-one", &path).unwrap().is_nothing());
    }

    #[test]
    fn paths_that_are_not_the_labs_are_not_touched() {
        let (dir, path) = state();
        let precious = dir.path().join("precious");
        fs::write(&precious, "x").unwrap();
        let record = Record::start("nd-one", &path).unwrap();
        record.namespace(&precious).unwrap();
        record.namespace(Path::new("/run/netns/nd-another-w1")).unwrap();
        record.cgroup(dir.path()).unwrap();
        let Err(Error::Teardown { failures, .. }) = remove("nd-one", &path) else { panic!("no failure") };
        assert_eq!(failures.len(), 3, "{failures:?}");
        assert!(precious.exists() && path.exists());
    }

    #[test]
    fn a_directory_with_files_of_others_is_refused() {
        let (_dir, path) = state();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("note"), "x").unwrap();
        assert!(matches!(Record::start("nd-one", &path), Err(Error::Invalid { .. })));
        assert!(remove("nd-one", &path).unwrap().is_nothing());
        assert!(path.join("note").exists());
    }

    #[test]
    fn a_standing_lab_is_named() {
        let (_dir, path) = state();
        Record::start("nd-one", &path).unwrap();
        assert!(matches!(Record::start("nd-one", &path), Err(Error::Standing { .. })));
    }

    #[test]
    fn a_torn_line_is_left_out() {
        let (_dir, path) = state();
        Record::start("nd-one", &path).unwrap();
        let mut file = OpenOptions::new().append(true).open(path.join(FILE)).unwrap();
        file.write_all(b"{\"namespace\":\"/run/net").unwrap();
        assert_eq!(remove("nd-one", &path).unwrap().directories, 1);
    }
}
