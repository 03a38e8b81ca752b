//! A block: the unit that is read, checked and written.

/// Bytes of a block.
pub(crate) const BLOCK: usize = 264;
/// Bytes of a block that its kind can use.
pub(crate) const PAYLOAD: usize = BLOCK - HEAD;
/// Checksum, kind, three bytes unused.
const HEAD: usize = 8;

/// The number of a block; 0 is the root, and nothing where a block is pointed to.
pub(crate) type Id = u32;

/// What a block is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The root: counts, and where everything begins.
    Root = 1,
    /// Unused, in the list of unused blocks.
    Free = 2,
    /// 64 cells of an index.
    Node = 3,
    /// The beginning of a lease.
    Lease = 4,
    /// The rest of a lease.
    Rest = 5,
    /// Four addresses.
    Addresses = 6,
    /// A stretch of addresses.
    Segment = 7,
}

impl Kind {
    /// The kind with this number.
    pub(crate) fn of(number: u8) -> Option<Self> {
        [Self::Root, Self::Free, Self::Node, Self::Lease, Self::Rest, Self::Addresses, Self::Segment]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

/// A block's bytes. Places count from the start of its payload, numbers are little-endian.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Block([u8; BLOCK]);

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Block").field("kind", &self.kind()).finish_non_exhaustive()
    }
}

impl Block {
    /// An empty block.
    pub(crate) fn new(kind: Kind) -> Self {
        let mut bytes = [0; BLOCK];
        if let Some(place) = bytes.get_mut(4) {
            *place = kind as u8;
        }
        Self(bytes)
    }

    /// Takes over what was read as block `id`; `None` when its checksum or kind is wrong.
    pub(crate) fn read(id: Id, bytes: &[u8]) -> Option<Self> {
        let block = Self(bytes.try_into().ok()?);
        let sum = u32::from_le_bytes(block.0.first_chunk::<4>().copied()?);
        (sum == block.sum(id) && block.kind().is_some()).then_some(block)
    }

    /// The bytes to write as block `id`, with their checksum.
    pub(crate) fn sealed(&self, id: Id) -> [u8; BLOCK] {
        let mut bytes = self.0;
        if let Some(place) = bytes.first_chunk_mut::<4>() {
            *place = self.sum(id).to_le_bytes();
        }
        bytes
    }

    /// Writes the checksum anew of whatever stands where block `id` is.
    pub(super) fn reseal(id: Id, bytes: &mut [u8]) {
        if let Ok(content) = <[u8; BLOCK]>::try_from(&*bytes) {
            bytes.copy_from_slice(&Self(content).sealed(id));
        }
    }

    /// CRC-32 of the block's number and everything behind the checksum.
    fn sum(&self, id: Id) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&id.to_le_bytes());
        hasher.update(self.0.get(4..).unwrap_or_default());
        hasher.finalize()
    }

    pub(crate) fn kind(&self) -> Option<Kind> {
        Kind::of(self.0.get(4).copied()?)
    }

    fn payload(&self) -> &[u8] {
        self.0.get(HEAD..).unwrap_or_default()
    }

    /// `length` bytes from `at`; shorter where the block ends.
    pub(crate) fn bytes(&self, at: usize, length: usize) -> &[u8] {
        let payload = self.payload();
        let start = at.min(payload.len());
        payload.get(start..(start + length).min(payload.len())).unwrap_or_default()
    }

    /// Writes `bytes` from `at`; every place in this crate lies inside.
    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(HEAD + at..HEAD + at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    pub(crate) fn u8(&self, at: usize) -> u8 {
        self.payload().get(at).copied().unwrap_or_default()
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    pub(crate) fn u128(&self, at: usize) -> u128 {
        u128::from_le_bytes(self.array(at))
    }

    pub(crate) fn put_u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    pub(crate) fn put_u64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    pub(crate) fn put_u128(&mut self, at: usize, value: u128) {
        self.put(at, &value.to_le_bytes());
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.payload().get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turned_bit_or_another_place_is_noticed() {
        let mut block = Block::new(Kind::Node);
        block.put_u32(12, 7);
        let bytes = block.sealed(5);
        assert_eq!(Block::read(5, &bytes).unwrap().u32(12), 7);
        assert!(Block::read(6, &bytes).is_none(), "a block that was put elsewhere");
        for bit in 0..BLOCK * 8 {
            let mut turned = bytes;
            turned[bit / 8] ^= 1 << (bit % 8);
            assert!(Block::read(5, &turned).is_none(), "bit {bit}");
        }
        assert!(Block::read(5, &[0; BLOCK]).is_none(), "zeroes are no block");
    }
}
