//! Reading without the lock.
//!
//! The journal tells whether the file was changed while it was read: its number grows with every change. What was
//! begun and not finished, by a call that goes on or one that was killed, is finished in memory.

use std::fs::File;
use std::io;
use std::path::Path;

use netd_kernel::file::boot_id;
use netd_kernel::lock::FileLock;

use super::{LOCK_TIMEOUT, Ledger};
use crate::book::{Book, Snapshot, build};
use crate::contents::{Contents, Usage};
use crate::lease::{Lease, Leases, Owner};
use crate::range::Pool;
use crate::storage::Memory;
use crate::store::{FORMAT, Mode, Refusal, Store, Unfit};
use crate::text;
use crate::{Error, Result};

/// How often a file that is being changed is read again before its lock is taken.
const ATTEMPTS: usize = 5;

/// What is to be found out.
type Question<'q, T> = &'q mut dyn FnMut(&mut Book) -> Result<T>;

impl Ledger<'_> {
    /// Reads the leases of a ledger without locking it.
    ///
    /// A ledger that does not exist yet, or was written before a reboot, has no leases.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the file is damaged; the next ADD repairs it.
    pub fn read(path: &Path) -> Result<Leases> {
        Self::read_at(path, &boot_id()?)
    }

    /// Reads all that a ledger says of leases and releases, verified, without locking it: for who wants to show it.
    ///
    /// A ledger that does not exist yet, or was written before a reboot, says nothing.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the file is damaged; the next ADD that meets the damage repairs it.
    pub fn inspect(path: &Path) -> Result<Contents> {
        Self::inspect_at(path, &boot_id()?)
    }

    /// Reads the lease of one owner without locking the ledger: a few blocks of the file.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when what was read is damaged.
    pub fn find(path: &Path, owner: &Owner) -> Result<Option<Lease>> {
        let mut question = |book: &mut Book| Ok(book.lease_of(owner)?.map(|record| record.lease));
        Ok(ask(path, &boot_id()?, false, &mut question)?.flatten())
    }

    /// Reads how much of the pools is in use without locking the ledger: a few blocks of the file.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when what was read is damaged.
    pub fn usage(path: &Path, pools: &[Pool]) -> Result<Usage> {
        Self::usage_at(path, pools, &boot_id()?)
    }

    pub(super) fn usage_at(path: &Path, pools: &[Pool], boot: &str) -> Result<Usage> {
        let mut question = |book: &mut Book| {
            let used = pools.iter().map(|pool| book.used(pool)).collect::<Result<Option<Vec<_>>>>()?;
            let leases = usize::try_from(book.len()).unwrap_or(usize::MAX);
            let used = match used {
                Some(used) => used,
                // Ranges have changed since the last ADD.
                None => {
                    let contents = Contents::of(book.snapshot()?);
                    pools.iter().map(|pool| contents.used(pool)).collect()
                }
            };
            Ok(Usage { leases, used })
        };
        let none = || Usage { leases: 0, used: vec![0; pools.len()] };
        Ok(ask(path, boot, false, &mut question)?.unwrap_or_else(none))
    }

    pub(super) fn read_at(path: &Path, boot: &str) -> Result<Leases> {
        let snapshot = ask(path, boot, true, &mut Book::snapshot)?.unwrap_or_default();
        Ok(Contents::of(snapshot).into())
    }

    pub(super) fn inspect_at(path: &Path, boot: &str) -> Result<Contents> {
        let mut question = |book: &mut Book| {
            book.verify()?;
            book.snapshot()
        };
        Ok(Contents::of(ask(path, boot, true, &mut question)?.unwrap_or_default()))
    }
}

/// Asks a ledger, again when it was changed meanwhile, at last under its lock; `None` when it says nothing.
fn ask<T>(path: &Path, boot: &str, whole: bool, question: Question<'_, T>) -> Result<Option<T>> {
    for _ in 0..ATTEMPTS {
        match ask_once(path, boot, whole, question)? {
            Answer::Said(said) => return Ok(said),
            Answer::Changed(_) => {}
        }
    }
    let lock = FileLock::exclusive(&path.with_extension("lock"), LOCK_TIMEOUT)?;
    let answer = ask_once(path, boot, whole, question)?;
    drop(lock);
    match answer {
        Answer::Said(said) => Ok(said),
        Answer::Changed(error) => {
            let reason = error.unwrap_or_else(|| "somebody changes it without its lock".to_owned());
            Err(Error::Corrupt { path: path.to_owned(), reason })
        }
    }
}

enum Answer<T> {
    /// `None` when there is nothing to be asked.
    Said(Option<T>),
    /// Somebody was writing, or it is damaged: that looks the same.
    Changed(Option<String>),
}

fn ask_once<T>(path: &Path, boot: &str, whole: bool, question: Question<'_, T>) -> Result<Answer<T>> {
    let failed = |cause| Error::Io { action: "read", path: path.to_owned(), cause };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Answer::Said(None)),
        Err(cause) => return Err(failed(cause)),
    };
    let network = path.file_stem().unwrap_or_default().to_string_lossy();
    let whose = (network.as_ref(), boot);
    let watch = Store::open(Box::new(file.try_clone().map_err(failed)?), path, whose, Mode::ReadOnly);
    let opened = match watch {
        // All of it at once: to change the file while it is read takes no more than that long.
        Ok(watch) if whole => {
            let bytes = all(&file).map_err(failed)?;
            if watch.is_stale() {
                return Ok(Answer::Changed(None));
            }
            Store::open(Box::new(Memory(bytes)), path, whose, Mode::Direct)
        }
        other => other,
    };
    let mut book = match opened {
        Ok(store) => match Book::of(store) {
            Ok(book) => book,
            Err(Error::Corrupt { reason, .. }) => return Ok(Answer::Changed(Some(reason))),
            Err(error) => return Err(error),
        },
        Err(Refusal::Unfit(Unfit::OtherBoot)) => return Ok(Answer::Said(None)),
        Err(Refusal::Unfit(Unfit::Newer(found))) => {
            return Err(Error::Newer { path: path.to_owned(), found, known: FORMAT });
        }
        Err(Refusal::Unfit(Unfit::Damaged(reason))) => return Ok(Answer::Changed(Some(reason))),
        Err(Refusal::Unfit(Unfit::Foreign)) => {
            return ask_text(path, whose, &all(&file).map_err(failed)?, question);
        }
        Err(Refusal::Failed(error)) => return Err(error),
    };
    match question(&mut book) {
        Ok(_) if !whole && book.is_stale() => Ok(Answer::Changed(None)),
        Ok(said) => Ok(Answer::Said(Some(said))),
        Err(Error::Corrupt { reason, .. }) => Ok(Answer::Changed(Some(reason))),
        Err(error) => Err(error),
    }
}

/// Asks a ledger of the earlier format, which the next ADD or DEL takes over.
fn ask_text<T>(
    path: &Path,
    whose: (&str, &str),
    bytes: &[u8],
    question: Question<'_, T>,
) -> Result<Answer<T>> {
    let snapshot = match text::replay(bytes, whose.0, whose.1) {
        Ok(snapshot) => snapshot,
        Err(Unfit::OtherBoot) => Snapshot::default(),
        Err(Unfit::Newer(found)) => {
            return Err(Error::Newer { path: path.to_owned(), found, known: FORMAT });
        }
        Err(Unfit::Damaged(reason)) => return Ok(Answer::Changed(Some(reason))),
        Err(Unfit::Foreign) => return Ok(Answer::Changed(None)),
    };
    let (bytes, _) = build(&snapshot, &[], path, whose)?;
    match Store::open(Box::new(Memory(bytes)), path, whose, Mode::Direct) {
        Ok(store) => Ok(Answer::Said(Some(question(&mut Book::of(store)?)?))),
        Err(Refusal::Failed(error)) => Err(error),
        Err(Refusal::Unfit(_)) => Ok(Answer::Changed(None)),
    }
}

fn all(file: &File) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let mut bytes = vec![0; length];
    let read = crate::storage::Storage::read_at(file, &mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}
