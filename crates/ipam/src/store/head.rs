//! The first bytes of a ledger: which file it is, its root, and the journal of the last change.

use super::block::{BLOCK, Block, Id, Kind};

/// The format written, and the latest that is read. Format 1 was a log of text.
pub(crate) const FORMAT: u32 = 2;
/// How a ledger begins.
pub(crate) const MAGIC: [u8; 8] = *b"netdIPAM";
/// Bytes of the part that never changes.
pub(super) const FIXED: usize = 512;
/// Where the root is.
pub(super) const ROOT_AT: u64 = 512;
/// Where the journal is.
pub(super) const JOURNAL_AT: u64 = 1024;
/// Bytes that a change may have.
pub(super) const JOURNAL: usize = 64 * 1024;
/// Where block 1 is.
pub(super) const BLOCKS_AT: u64 = JOURNAL_AT + JOURNAL as u64;

/// Bytes of the network's name at most.
pub(crate) const NETWORK_MAX: usize = 256;
const BOOT_MAX: usize = 64;
const NETWORK_AT: usize = 16;
const BOOT_AT: usize = NETWORK_AT + 2 + NETWORK_MAX;

const JOURNAL_MAGIC: [u8; 4] = *b"redo";
/// Magic, checksum, number, count, length.
pub(super) const JOURNAL_HEAD: usize = 24;
const ENTRY: usize = 4 + BLOCK;

/// Why the first bytes are not those of a ledger to go on with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// Not the beginning of this format: perhaps of an earlier one.
    Foreign,
    /// Written by a later netd.
    Newer(u32),
    /// Written before a reboot: nothing in it counts.
    OtherBoot,
    /// Not what was written.
    Damaged(String),
}

/// The part that never changes: format, network, boot.
pub(super) fn fixed(network: &str, boot: &str) -> Vec<u8> {
    let mut bytes = vec![0; FIXED];
    let mut put = |at: usize, content: &[u8]| {
        if let Some(place) = bytes.get_mut(at..at + content.len()) {
            place.copy_from_slice(content);
        }
    };
    put(0, &MAGIC);
    put(8, &FORMAT.to_le_bytes());
    for (at, text, max) in [(NETWORK_AT, network, NETWORK_MAX), (BOOT_AT, boot, BOOT_MAX)] {
        let text = text.as_bytes().get(..text.len().min(max)).unwrap_or_default();
        put(at, &u16::try_from(text.len()).unwrap_or_default().to_le_bytes());
        put(at + 2, text);
    }
    let sum = fixed_sum(&bytes);
    if let Some(place) = bytes.get_mut(12..16) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
    bytes
}

/// Looks whether the file is the ledger of this network and this boot.
pub(super) fn check_fixed(head: &[u8], network: &str, boot: &str) -> Result<(), Unfit> {
    if !head.starts_with(&MAGIC) {
        return Err(Unfit::Foreign);
    }
    let damaged = || Unfit::Damaged("the checksum of the first 512 bytes is wrong".to_owned());
    let bytes = head.get(..FIXED).ok_or_else(damaged)?;
    if word(bytes, 12) != Some(fixed_sum(bytes)) {
        return Err(damaged());
    }
    match word(bytes, 8) {
        Some(format) if format > FORMAT => return Err(Unfit::Newer(format)),
        Some(FORMAT) => {}
        Some(_) | None => return Err(Unfit::Damaged("it has a format that was never written".to_owned())),
    }
    if text(bytes, BOOT_AT) != Some(boot) {
        return Err(Unfit::OtherBoot);
    }
    match text(bytes, NETWORK_AT) {
        Some(found) if found == network => Ok(()),
        found => Err(Unfit::Damaged(format!("it belongs to network {}", found.unwrap_or_default()))),
    }
}

/// Writes the checksum of the first bytes anew.
pub(super) fn reseal(bytes: &mut [u8]) {
    let sum = fixed_sum(bytes);
    if let Some(place) = bytes.get_mut(12..16) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
}

fn fixed_sum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(bytes.get(..12).unwrap_or_default());
    hasher.update(bytes.get(16..FIXED).unwrap_or_default());
    hasher.finalize()
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn text(bytes: &[u8], at: usize) -> Option<&str> {
    let length = u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?);
    std::str::from_utf8(bytes.get(at + 2..at + 2 + usize::from(length))?).ok()
}

/// Counts, and where everything begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Root {
    /// The number of the last change.
    pub(crate) change: u64,
    /// Blocks there are, the root among them.
    pub(crate) blocks: u32,
    /// The first unused block.
    pub(crate) free_block: Id,
    /// The first unused place of an address.
    pub(crate) free_address: u32,
    /// The top cell of the index of owners.
    pub(crate) owners: u32,
    /// The top cell of the index of addresses.
    pub(crate) addresses: u32,
    /// The first segment.
    pub(crate) segments: Id,
    /// Leases there are.
    pub(crate) leases: u32,
    /// Addresses that lie in no segment.
    pub(crate) homeless: u32,
    /// Counts leases begun and ended, to tell their order.
    pub(crate) order: u64,
}

impl Root {
    pub(super) fn block(&self) -> Block {
        let mut block = Block::new(Kind::Root);
        block.put_u64(0, self.change);
        block.put_u64(8, self.order);
        let words = [
            self.blocks,
            self.free_block,
            self.free_address,
            self.owners,
            self.addresses,
            self.segments,
            self.leases,
            self.homeless,
        ];
        words.iter().enumerate().for_each(|(place, word)| block.put_u32(16 + 4 * place, *word));
        block
    }

    pub(super) fn of(block: &Block) -> Option<Self> {
        let word = |place: usize| block.u32(16 + 4 * place);
        let root = Self {
            change: block.u64(0),
            order: block.u64(8),
            blocks: word(0),
            free_block: word(1),
            free_address: word(2),
            owners: word(3),
            addresses: word(4),
            segments: word(5),
            leases: word(6),
            homeless: word(7),
        };
        (block.kind() == Some(Kind::Root) && root.blocks > 0).then_some(root)
    }
}

/// A change as the journal has it: the blocks as they are after it, the root among them.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) number: u64,
    pub(super) blocks: Vec<(Id, Block)>,
}

impl Change {
    /// The journal's bytes; `None` when they are too many.
    pub(super) fn render<'a>(number: u64, blocks: impl Iterator<Item = (Id, &'a Block)>) -> Option<Vec<u8>> {
        let mut bytes = vec![0; JOURNAL_HEAD];
        let mut count = 0_u32;
        for (id, block) in blocks {
            bytes.extend_from_slice(&id.to_le_bytes());
            bytes.extend_from_slice(&block.sealed(id));
            count += 1;
        }
        if bytes.len() > JOURNAL {
            return None;
        }
        bytes.get_mut(8..16)?.copy_from_slice(&number.to_le_bytes());
        bytes.get_mut(16..20)?.copy_from_slice(&count.to_le_bytes());
        let sum = crc32fast::hash(bytes.get(8..)?);
        bytes.get_mut(0..4)?.copy_from_slice(&JOURNAL_MAGIC);
        bytes.get_mut(4..8)?.copy_from_slice(&sum.to_le_bytes());
        Some(bytes)
    }

    /// How many bytes the journal that begins with `head` has; `None` when it is none.
    pub(super) fn length(head: &[u8]) -> Option<usize> {
        if head.get(..4) != Some(JOURNAL_MAGIC.as_slice()) {
            return None;
        }
        let count = usize::try_from(word(head, 16)?).ok()?;
        let length = count.checked_mul(ENTRY)?.checked_add(JOURNAL_HEAD)?;
        (length <= JOURNAL).then_some(length)
    }

    /// Reads the journal; `None` when it was not written whole.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..Self::length(bytes)?)?;
        if word(bytes, 4)? != crc32fast::hash(bytes.get(8..)?) {
            return None;
        }
        let number = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
        let entries = bytes.get(JOURNAL_HEAD..)?.chunks_exact(ENTRY);
        let block = |entry: &[u8]| {
            let id = word(entry, 0)?;
            Some((id, Block::read(id, entry.get(4..)?)?))
        };
        Some(Self { number, blocks: entries.map(block).collect::<Option<_>>()? })
    }

    /// The root as it is after the change.
    pub(super) fn root(&self) -> Option<Root> {
        self.blocks.iter().find(|(id, _)| *id == 0).and_then(|(_, block)| Root::of(block))
    }
}
