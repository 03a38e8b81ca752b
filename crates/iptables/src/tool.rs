//! The iptables programs of one variant and family.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use netd_dataplane::ApplyError;
use netd_kernel::exec::Exec;
use netd_kernel::lock::FileLock;
use netd_kernel::{Error as KernelError, Output};
use netd_model::Family;

use crate::detect::Implementation;
use crate::restore::BATCH;
use crate::ruleset::{Ruleset, parse_save};

/// Where every iptables takes its lock unless told otherwise.
const LOCK_FILE: &str = "/run/xtables.lock";

/// What a program gets beyond the wait for the lock; a restore of 100,000 rules takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Exit status of iptables when another program holds the lock (`RESOURCE_PROBLEM`).
const STATUS_RESOURCE: i32 = 4;

/// A version of iptables, `1.8.9`; zeros when it does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(u32, u32, u32);

impl Version {
    /// From `iptables v1.8.9 (nf_tables)`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let word = text.split_whitespace().find_map(|word| word.strip_prefix('v'))?;
        let mut parts = word.split('.').map(|part| {
            let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        });
        Some(Self(parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)))
    }

    /// `iptables-restore -w` and `MASQUERADE --random-fully` came together.
    pub(crate) fn has_wait_and_random_fully(self) -> bool {
        self >= Self(1, 6, 2)
    }
}

/// The save and restore programs of a variant for a family.
#[derive(Clone)]
pub(crate) struct Tool {
    pub(crate) variant: Implementation,
    pub(crate) family: Family,
    pub(crate) version: Version,
    pub(crate) save: PathBuf,
    pub(crate) restore: PathBuf,
    pub(crate) lock_wait: Duration,
    pub(crate) exec: Arc<dyn Exec>,
    /// Asks the kernel for the generation of its rules, where the variant has one.
    pub(crate) generation: fn() -> Option<u32>,
}

impl Tool {
    /// A number that every change of any rule makes grow; `None` where there is none.
    pub(crate) fn generation(&self) -> Option<u32> {
        (self.generation)()
    }

    /// How many new chains may be in a commit: a commit of the old interface writes the whole table.
    pub(crate) const fn batch(&self) -> usize {
        match self.variant {
            Implementation::Nft => BATCH,
            Implementation::Legacy => usize::MAX,
        }
    }

    /// What the save program prints.
    pub(crate) fn save_text(&self) -> Result<String, ApplyError> {
        let output = self.run(&self.save, &[], b"")?;
        if !output.success() {
            return Err(self.failure(&self.save, &output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// All that is ours in this family.
    pub(crate) fn installed(&self) -> Result<Ruleset, ApplyError> {
        Ok(parse_save(&self.save_text()?))
    }

    /// Feeds `text` to the restore program.
    pub(crate) fn restore(&self, text: &str) -> Result<(), ApplyError> {
        let wait = self.lock_seconds().to_string();
        let args: &[&str] = if self.version.has_wait_and_random_fully() {
            &["--noflush", "-w", &wait]
        } else {
            &["--noflush"]
        };
        let output = self.run(&self.restore, args, text.as_bytes())?;
        if output.success() { Ok(()) } else { Err(self.failure(&self.restore, &output)) }
    }

    fn lock_seconds(&self) -> u64 {
        self.lock_wait.as_secs() + u64::from(self.lock_wait.subsec_nanos() > 0)
    }

    fn run(&self, program: &Path, args: &[&str], stdin: &[u8]) -> Result<Output, ApplyError> {
        let timeout = self.lock_wait.saturating_add(PATIENCE);
        self.exec
            .run(program, args, stdin, timeout)
            .map_err(|error| ApplyError::refused(format!("run {}", program.display()), error))
    }

    fn failure(&self, program: &Path, output: &Output) -> ApplyError {
        let complaint = output.complaint();
        let one_line = complaint.lines().map(str::trim).collect::<Vec<_>>().join("; ");
        let action = format!("run {} for {}", program.display(), self.family);
        if ["must be root", "Permission denied", "Operation not permitted"]
            .iter()
            .any(|words| complaint.contains(words))
        {
            return ApplyError::Config(format!(
                "{} may not be changed by this process ({one_line}): run netd as root or with CAP_NET_ADMIN",
                self.variant
            ));
        }
        if ["can't initialize", "Protocol not supported", "Failed to initialize nft"]
            .iter()
            .any(|words| complaint.contains(words))
        {
            return ApplyError::Config(format!(
                "the kernel cannot run {} ({one_line}): load its modules, or choose another variant or dataplane",
                self.variant
            ));
        }
        if output.status == STATUS_RESOURCE && complaint.contains("xtables lock") {
            return ApplyError::refused(action, format!("the xtables lock is taken{}", lock_holder()));
        }
        ApplyError::refused(action, format!("status {}: {one_line}", output.status))
    }
}

/// Tells who holds the lock now, where the kernel tells.
fn lock_holder() -> String {
    match FileLock::exclusive(Path::new(LOCK_FILE), Duration::ZERO) {
        Err(KernelError::Timeout { hint: Some(holder), .. }) => format!(", {holder}"),
        Ok(_) | Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        let parse = |text| Version::parse(text).unwrap();
        assert_eq!(parse("iptables v1.8.9 (nf_tables)"), Version(1, 8, 9));
        assert_eq!(parse("iptables v1.4.21"), Version(1, 4, 21));
        assert_eq!(parse("ip6tables-restore v1.8.10-rc1 (legacy)"), Version(1, 8, 10));
        assert!(parse("iptables v1.6.1") < parse("iptables v1.6.2"));
        assert!(!parse("iptables v1.6.1").has_wait_and_random_fully());
        assert_eq!(Version::parse("no version"), None);
    }
}
