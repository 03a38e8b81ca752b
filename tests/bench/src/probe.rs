//! How much memory a plugin has, which the kernel tells of a child only together with that of its parent.
//!
//! At execve a process keeps the peak of what it was before (`fs/exec.c:exec_mmap`), and until then it shares its
//! parent's memory. So a plugin is started by a parent that has touched next to nothing: this program again, as
//! `netd-bench probe <file> <program>`, which writes what wait4 tells to the file.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netd_kernel::exec::{Spawn, Stream};
use tempfile::TempDir;

use crate::machine;

/// The first argument that makes this program a probe.
pub(crate) const WORD: &str = "probe";
/// Longer than the caller waits.
const LIMIT: Duration = Duration::from_secs(120);

/// A program that starts another and passes on its standard streams and exit status.
pub(crate) trait Around {
    /// Starts `program` that way.
    fn around(&self, program: &Path) -> Spawn;
}

/// The probe as its user sees it.
#[derive(Debug)]
pub(crate) struct Probe {
    directory: TempDir,
}

impl Probe {
    pub(crate) fn new() -> Result<Self> {
        let directory = TempDir::with_prefix("nd-bench-").context("make a directory for the probe")?;
        Ok(Self { directory })
    }

    /// Returns the most memory of a process since the last time, in bytes; an error where the probe itself had more.
    pub(crate) fn take(&self) -> Result<u64> {
        let text = fs::read_to_string(self.file()).context("read what the probe wrote")?;
        fs::remove_file(self.file()).context("remove what the probe wrote")?;
        let numbers: Option<Vec<u64>> = text.split_whitespace().map(|word| word.parse().ok()).collect();
        let numbers = numbers.filter(|numbers| !numbers.is_empty());
        numbers.and_then(|numbers| numbers.into_iter().max()).context("the probe wrote no number")
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("memory")
    }
}

impl Around for Probe {
    fn around(&self, program: &Path) -> Spawn {
        let arguments = [OsString::from(WORD), self.file().into_os_string(), program.as_os_str().to_owned()];
        Spawn::new("/proc/self/exe", arguments)
    }
}

/// Is a probe: appends the peak of the program's memory to the file and returns its exit status.
pub(crate) fn run(mut arguments: impl Iterator<Item = OsString>) -> Result<i32> {
    let (Some(file), Some(program)) = (arguments.next(), arguments.next()) else {
        bail!("a probe needs a file and a program");
    };
    let mut spawn = Spawn::new(program, Vec::<OsString>::new());
    spawn.env = std::env::vars_os().collect();
    (spawn.stdin, spawn.stdout, spawn.stderr) = (Stream::Inherit, Stream::Inherit, Stream::Inherit);
    let child = spawn.start()?;
    let floor = machine::own_peak();
    let usage = child.finish(LIMIT)?;
    if usage.peak_memory <= floor {
        bail!("the plugin's memory cannot be told from that of the probe, {floor} bytes");
    }
    let mut text = fs::read_to_string(&file).unwrap_or_default();
    text.push_str(&format!("{}\n", usage.peak_memory));
    fs::write(&file, text).context("write the memory")?;
    Ok(usage.status)
}
