//! The file of a ledger as blocks, changed by whole changes that survive a kill at any instruction.
//!
//! ```text
//! 0       which file this is: magic, format, network, boot id; never changes
//! 512     the root: counts, and where everything begins
//! 1024    the journal: all blocks that the last change wrote, the root among them, and a checksum over them
//! 66560   block 1, block 2, … of 264 bytes, each with a checksum over its number and content
//! ```
//!
//! A change is written to the journal first, by one `pwrite`, then block by block to its place, the root last. So
//! the journal always has the last change, and doing it again is never wrong: whoever opens the file does so when the
//! root is older than the journal, or unreadable. A journal that was not written whole belongs to a change that never
//! began; since damage looks the same, everything is verified before such a file is believed.
//!
//! Nothing is synced: after a power loss the boot id is another, and nothing in the file counts.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::storage::Storage;
use crate::{Error, Result};

mod block;
mod head;

pub(crate) use block::{Block, Id, Kind, PAYLOAD};
pub(crate) use head::{FORMAT, NETWORK_MAX, Root, Unfit};

use block::BLOCK;
use head::{BLOCKS_AT, Change, JOURNAL_AT, JOURNAL_HEAD, ROOT_AT};

/// Bytes read at once when opening: the root, and the journal of most changes.
const HEAD: usize = 5120;
/// The file grows by so many blocks at least: a full disk is noticed before a change begins.
const GROWTH: u64 = 64;
/// Blocks kept in memory besides those that are being changed.
const KEPT: usize = 128;

/// How the file is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// By the journal.
    Journaled,
    /// At once: nobody sees the file before it is complete.
    Direct,
    /// Not at all: what the journal says is only remembered.
    ReadOnly,
}

/// Why a file cannot be opened.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It is not one to go on with.
    Unfit(Unfit),
    /// It cannot be read or written.
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

#[derive(Debug)]
struct Cached {
    block: Block,
    dirty: bool,
}

/// An open file of blocks.
#[derive(Debug)]
pub(crate) struct Store {
    storage: Box<dyn Storage>,
    path: PathBuf,
    mode: Mode,
    /// The root as the change that is being made has it.
    pub(crate) root: Root,
    /// The root of the last whole change.
    saved: Root,
    /// Ordered, so that neighbours are written together.
    cache: BTreeMap<Id, Cached>,
    length: u64,
    /// Whether the last change is in the journal, but not everywhere in its place.
    pending: bool,
    /// Whether the journal was not whole: the file is to be verified.
    doubtful: bool,
    /// The head of the journal as it was read, to see whether it has changed.
    seen: Vec<u8>,
}

// === impl Store ===

impl Store {
    /// Begins a file.
    pub(crate) fn create(
        mut storage: Box<dyn Storage>,
        path: &Path,
        network: &str,
        boot: &str,
    ) -> Result<Self> {
        let root = Root { blocks: 1, ..Root::default() };
        let journal = Change::render(0, std::iter::empty()).unwrap_or_default();
        let mut head = head::fixed(network, boot);
        head.extend_from_slice(&root.block().sealed(0));
        head.resize(JOURNAL_AT as usize, 0);
        head.extend_from_slice(&journal);
        head.resize(BLOCKS_AT as usize, 0);
        storage.write_at(&head, 0).map_err(|cause| failed(path, "write", cause))?;
        Ok(Self::with(storage, path, Mode::Direct, root))
    }

    fn with(storage: Box<dyn Storage>, path: &Path, mode: Mode, root: Root) -> Self {
        Self {
            length: BLOCKS_AT,
            storage,
            path: path.to_owned(),
            mode,
            root,
            saved: root,
            cache: BTreeMap::new(),
            pending: false,
            doubtful: false,
            seen: Vec::new(),
        }
    }

    /// Opens a file, and finishes a change that was begun.
    pub(crate) fn open(
        storage: Box<dyn Storage>,
        path: &Path,
        (network, boot): (&str, &str),
        mode: Mode,
    ) -> Result<Self, Refusal> {
        let damaged = |what: &str| Refusal::Unfit(Unfit::Damaged(what.to_owned()));
        let head = read(storage.as_ref(), path, 0, HEAD)?;
        head::check_fixed(&head, network, boot).map_err(Refusal::Unfit)?;
        let root = head.get(ROOT_AT as usize..ROOT_AT as usize + BLOCK);
        let root = root.and_then(|bytes| Block::read(0, bytes)).and_then(|block| Root::of(&block));
        let journal = head.get(JOURNAL_AT as usize..).unwrap_or_default();
        let seen = journal.get(..JOURNAL_HEAD.min(journal.len())).unwrap_or_default().to_vec();
        let change = match Change::length(journal) {
            Some(length) if length > journal.len() => {
                Change::parse(&read(storage.as_ref(), path, JOURNAL_AT, length)?)
            }
            _ => Change::parse(journal),
        };
        let mut store = Self::with(storage, path, mode, Root::default());
        store.seen = seen;
        store.length = store.storage.length().map_err(|cause| store.failed("read", cause))?;
        match (root, change) {
            (Some(root), Some(change)) if change.number == root.change => store.root = root,
            (root, Some(change)) if root.is_none_or(|root| root.change.wrapping_add(1) == change.number) => {
                store.root = change.root().ok_or_else(|| damaged("the root is unreadable"))?;
                store.redo(change)?;
            }
            (Some(root), None) => {
                store.root = root;
                store.doubtful = true;
            }
            (Some(_), Some(_)) => return Err(damaged("the journal is of another change than the root")),
            (None, _) => return Err(damaged("the root is unreadable")),
        }
        store.saved = store.root;
        if store.length < store.needed() {
            return Err(damaged("it is shorter than it says"));
        }
        Ok(store)
    }

    /// Opens what is left of a damaged file, to look at single blocks of it; `None` where it is not known to be of this
    /// network and this boot.
    pub(crate) fn salvage(storage: Box<dyn Storage>, path: &Path, whose: (&str, &str)) -> Option<Self> {
        let head = read(storage.as_ref(), path, 0, HEAD).ok()?;
        head::check_fixed(&head, whose.0, whose.1).ok()?;
        let blocks = storage.length().ok()?.checked_sub(BLOCKS_AT)? / BLOCK as u64 + 1;
        let root = Root { blocks: u32::try_from(blocks).ok()?, ..Root::default() };
        Some(Self::with(storage, path, Mode::ReadOnly, root))
    }

    fn redo(&mut self, change: Change) -> Result<()> {
        let blocks = change.blocks.into_iter().filter(|(id, _)| *id != 0);
        self.cache = blocks.map(|(id, block)| (id, Cached { block, dirty: true })).collect();
        match self.mode {
            Mode::Journaled | Mode::Direct => self.apply().map_err(|cause| self.failed("write", cause)),
            Mode::ReadOnly => Ok(()),
        }
    }

    /// Whether everything is to be verified before the file is believed.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    /// Says that a doubtful file was verified.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.doubtful = false;
        if self.mode == Mode::ReadOnly {
            return Ok(());
        }
        let journal = Change::render(self.root.change, std::iter::empty()).unwrap_or_default();
        self.storage.write_at(&journal, JOURNAL_AT).map_err(|cause| self.failed("write", cause))
    }

    /// Whether another change was begun since the file was opened.
    pub(crate) fn is_stale(&self) -> bool {
        read(self.storage.as_ref(), &self.path, JOURNAL_AT, JOURNAL_HEAD).ok().as_ref() != Some(&self.seen)
    }

    /// The bytes of a file that was made in memory.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.storage.into_bytes()
    }

    /// The error of a file that says impossible things.
    pub(crate) fn damaged(&self, reason: impl Into<String>) -> Error {
        Error::Corrupt { path: self.path.clone(), reason: reason.into() }
    }

    /// The block `id`, which has to be of this kind.
    pub(crate) fn block(&mut self, id: Id, kind: Kind) -> Result<&Block> {
        self.load(id)?;
        let block = self.cache.get(&id).map(|cached| &cached.block);
        block.filter(|block| block.kind() == Some(kind)).ok_or_else(|| Error::Corrupt {
            path: self.path.clone(),
            reason: format!("block {id} is no {kind:?}"),
        })
    }

    /// The kind of block `id`.
    pub(crate) fn kind(&mut self, id: Id) -> Result<Kind> {
        self.load(id)?;
        let kind = self.cache.get(&id).and_then(|cached| cached.block.kind());
        kind.ok_or_else(|| self.damaged(format!("block {id} is unreadable")))
    }

    /// Like [`Store::block`], to be changed.
    pub(crate) fn block_mut(&mut self, id: Id, kind: Kind) -> Result<&mut Block> {
        self.block(id, kind)?;
        let damaged = self.damaged(format!("block {id} is unreadable"));
        let cached = self.cache.get_mut(&id).ok_or(damaged)?;
        cached.dirty = true;
        Ok(&mut cached.block)
    }

    fn load(&mut self, id: Id) -> Result<()> {
        if self.cache.contains_key(&id) {
            return Ok(());
        }
        if id == 0 || id >= self.root.blocks {
            return Err(self.damaged(format!("it points to block {id} of {}", self.root.blocks)));
        }
        let bytes = read(self.storage.as_ref(), &self.path, place(id), BLOCK)?;
        let block = Block::read(id, &bytes).ok_or_else(|| self.damaged(format!("block {id} is damaged")))?;
        if self.cache.len() >= KEPT {
            self.cache.retain(|_, cached| cached.dirty);
        }
        self.cache.insert(id, Cached { block, dirty: false });
        Ok(())
    }

    /// A new, empty block.
    pub(crate) fn allocate(&mut self, kind: Kind) -> Result<Id> {
        let id = match self.root.free_block {
            0 => {
                let id = self.root.blocks;
                // The high bit of a cell says what it points to, and an address's number has two bits more.
                if id >= 1 << 28 {
                    return Err(Error::TooLong { what: "the ledger", length: u64::from(id), limit: 1 << 28 });
                }
                self.root.blocks += 1;
                id
            }
            id => {
                self.root.free_block = self.block(id, Kind::Free)?.u32(0);
                id
            }
        };
        self.cache.insert(id, Cached { block: Block::new(kind), dirty: true });
        Ok(id)
    }

    /// Puts a block into the list of unused ones.
    pub(crate) fn free(&mut self, id: Id) -> Result<()> {
        self.kind(id)?;
        let mut block = Block::new(Kind::Free);
        block.put_u32(0, self.root.free_block);
        self.cache.insert(id, Cached { block, dirty: true });
        self.root.free_block = id;
        Ok(())
    }

    /// Does all of a change or nothing of it.
    pub(crate) fn change<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.pending {
            self.apply().map_err(|cause| self.failed("write", cause))?;
        }
        let done = work(self).and_then(|value| self.commit().map(|()| value));
        if done.is_err() {
            self.cache.retain(|_, cached| !cached.dirty);
            self.root = self.saved;
        }
        done
    }

    fn commit(&mut self) -> Result<()> {
        if self.root == self.saved && !self.cache.values().any(|cached| cached.dirty) {
            return Ok(());
        }
        self.root.change = self.root.change.wrapping_add(1);
        self.grow()?;
        match self.mode {
            Mode::Journaled => {
                let root = self.root.block();
                let dirty = self.cache.iter().filter(|(_, cached)| cached.dirty);
                let blocks = dirty.map(|(id, cached)| (*id, &cached.block)).chain([(0, &root)]);
                let journal = Change::render(self.root.change, blocks).ok_or(Error::TooLong {
                    what: "a change",
                    length: self.cache.values().filter(|c| c.dirty).count() as u64 * BLOCK as u64,
                    limit: head::JOURNAL as u64,
                })?;
                self.storage
                    .write_at(&journal, JOURNAL_AT)
                    .map_err(|cause| self.failed("write the journal of", cause))?;
                // From here on it is done, whatever becomes of this process: the next who opens the file finishes it.
                self.pending = self.apply().is_err();
            }
            Mode::Direct => self.apply().map_err(|cause| self.failed("write", cause))?,
            Mode::ReadOnly => {
                let cause = io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
                return Err(self.failed("write", cause));
            }
        }
        self.saved = self.root;
        Ok(())
    }

    /// Makes room for the blocks of a change before it begins.
    fn grow(&mut self) -> Result<()> {
        let needed = self.needed();
        if needed <= self.length {
            return Ok(());
        }
        let more = (self.length / 8).clamp(GROWTH * BLOCK as u64, 1 << 20);
        let target = needed.max(self.length + more);
        let zeroes = vec![0; usize::try_from(target - self.length).unwrap_or_default()];
        self.storage.write_at(&zeroes, self.length).map_err(|cause| self.failed("enlarge", cause))?;
        self.length = target;
        Ok(())
    }

    fn needed(&self) -> u64 {
        place(self.root.blocks)
    }

    /// Writes the change to its place, neighbours together, the root last.
    fn apply(&mut self) -> io::Result<()> {
        let mut run: Option<(Id, Vec<u8>)> = None;
        for (id, cached) in self.cache.iter().filter(|(_, cached)| cached.dirty) {
            let bytes = cached.block.sealed(*id);
            match &mut run {
                Some((first, run)) if *first as usize + run.len() / BLOCK == *id as usize => {
                    run.extend_from_slice(&bytes);
                }
                _ => {
                    if let Some((first, bytes)) = run.replace((*id, bytes.to_vec())) {
                        self.storage.write_at(&bytes, place(first))?;
                    }
                }
            }
        }
        if let Some((first, bytes)) = run {
            self.storage.write_at(&bytes, place(first))?;
        }
        self.storage.write_at(&self.root.block().sealed(0), ROOT_AT)?;
        self.cache.values_mut().for_each(|cached| cached.dirty = false);
        self.pending = false;
        Ok(())
    }

    fn failed(&self, action: &'static str, cause: io::Error) -> Error {
        failed(&self.path, action, cause)
    }
}

/// Where block `id` is.
fn place(id: Id) -> u64 {
    BLOCKS_AT + u64::from(id.saturating_sub(1)) * BLOCK as u64
}

fn read(storage: &dyn Storage, path: &Path, at: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let read = storage.read_at(&mut bytes, at).map_err(|cause| failed(path, "read", cause))?;
    bytes.truncate(read);
    Ok(bytes)
}

fn failed(path: &Path, action: &'static str, cause: io::Error) -> Error {
    Error::Io { action, path: path.to_owned(), cause }
}

/// Writes the checksums of a file anew, so that what was put into it is read: for tests.
pub(crate) fn reseal(bytes: &mut [u8]) {
    head::reseal(bytes);
    let at = |id: Id| if id == 0 { ROOT_AT as usize } else { place(id) as usize };
    let mut id = 0;
    while let Some(place) = bytes.get_mut(at(id)..at(id) + BLOCK) {
        Block::reseal(id, place);
        id += 1;
    }
}
