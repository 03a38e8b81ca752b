//! Memory for a program that lives for a millisecond.
//!
//! The allocator of musl gives pages back to the kernel as soon as a group of blocks is free, and asks for them again a
//! moment later: a sixth of a CNI call was spent in mmap(2) and munmap(2). [`Heap`] takes memory in large pieces, keeps
//! what is freed for blocks of the same size, and gives nothing back; what it has is bounded by twice the program's peak
//! in each size. Not for a daemon.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};

/// Blocks have sizes of powers of two from this, which is also their alignment.
const SMALLEST: usize = 16;
/// Larger blocks come from the system's allocator.
const LARGEST: usize = 128 << 10;
/// What is taken from the kernel at a time; pages that are not touched cost nothing.
const PIECE: usize = 512 << 10;
/// What of that is made ready at once: nearly every call touches as much.
const PREPARED: usize = 48 << 10;
const CLASSES: usize = (LARGEST / SMALLEST).trailing_zeros() as usize + 1;

/// A global allocator: `#[global_allocator] static HEAP: Heap = Heap::new();`
#[derive(Debug)]
pub struct Heap {
    locked: AtomicBool,
    store: UnsafeCell<Store>,
}

// SAFETY: the store is only touched by the thread that has set `locked`.
unsafe impl Sync for Heap {}

#[derive(Debug)]
struct Store {
    /// Blocks that were freed, a list a size: the first bytes of each say where the next is.
    free: [Option<NonNull<u8>>; CLASSES],
    /// The part of the last piece that was never handed out, all zero.
    fresh: *mut u8,
    left: usize,
}

/// A block, and whether it is all zero.
struct Block {
    at: *mut u8,
    zero: bool,
}

/// The place of the free list of a layout's blocks; `None` for what the system's allocator serves.
fn class_of(layout: Layout) -> Option<usize> {
    if layout.size() > LARGEST || layout.align() > SMALLEST {
        return None;
    }
    let size = layout.size().max(SMALLEST).next_power_of_two();
    Some((size / SMALLEST).trailing_zeros() as usize)
}

// === impl Heap ===

impl Heap {
    /// Returns a heap that has no memory yet.
    pub const fn new() -> Self {
        let store = Store { free: [None; CLASSES], fresh: ptr::null_mut(), left: 0 };
        Self { locked: AtomicBool::new(false), store: UnsafeCell::new(store) }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Store) -> T) -> T {
        while self.locked.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            // Whoever has it needs nanoseconds, unless it waits for this processor.
            std::thread::yield_now();
        }
        // SAFETY: `locked` was not set and is now, so nobody else has a reference; `work` does not allocate from us.
        let done = work(unsafe { &mut *self.store.get() });
        self.locked.store(false, Ordering::Release);
        done
    }
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: every block is of one piece, used by nothing else until it is freed, at least as long as asked for (the size of
// its class) and aligned to 16 bytes (pieces are, and classes are multiples of it); no method unwinds.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match class_of(layout) {
            Some(class) => self.with(|store| store.take(class)).at,
            // SAFETY: the caller keeps the contract of `alloc`, which is the same there.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(class) = class_of(layout) else {
            // SAFETY: the caller keeps the contract of `alloc_zeroed`, which is the same there.
            return unsafe { System.alloc_zeroed(layout) };
        };
        let block = self.with(|store| store.take(class));
        if !block.zero && !block.at.is_null() {
            // SAFETY: the block is at least `layout.size()` bytes and ours alone.
            unsafe { block.at.write_bytes(0, layout.size()) };
        }
        block.at
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match (class_of(layout), NonNull::new(block)) {
            (Some(class), Some(block)) => self.with(|store| store.put(class, block)),
            (Some(_), None) => {}
            // SAFETY: a block of this layout is from `System`, and the caller gives it up.
            (None, _) => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that `size`, rounded up to the alignment, does not overflow.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (class_of(layout), class_of(wanted)) {
            (Some(old), Some(new)) if old == new => return block,
            // SAFETY: both the old and the new block are the business of `System`.
            (None, None) => return unsafe { System.realloc(block, layout, size) },
            _ => {}
        }
        // SAFETY: `size` is not zero, as the caller promises.
        let moved = unsafe { self.alloc(wanted) };
        if !moved.is_null() {
            // SAFETY: both blocks are at least that long, and the new one is nobody else's.
            unsafe { ptr::copy_nonoverlapping(block, moved, layout.size().min(size)) };
            // SAFETY: the old block is of this heap with this layout, and the caller gives it up.
            unsafe { self.dealloc(block, layout) };
        }
        moved
    }
}

// === impl Store ===

impl Store {
    /// A block of a class; null when the system has no memory.
    fn take(&mut self, class: usize) -> Block {
        if let Some(list) = self.free.get_mut(class)
            && let Some(block) = *list
        {
            // SAFETY: `put` has written the next block's place there, and nobody has had the block since.
            *list = unsafe { block.cast::<Option<NonNull<u8>>>().read() };
            return Block { at: block.as_ptr(), zero: false };
        }
        let size = SMALLEST << class;
        if self.left < size && !self.refill() {
            return Block { at: ptr::null_mut(), zero: false };
        }
        let at = self.fresh;
        // SAFETY: `left` bytes from `fresh` are of one piece, and `size` is not more.
        self.fresh = unsafe { at.add(size) };
        self.left -= size;
        Block { at, zero: true }
    }

    /// Takes a block of a class back.
    fn put(&mut self, class: usize, block: NonNull<u8>) {
        let Some(list) = self.free.get_mut(class) else { return };
        // SAFETY: a block has at least 16 bytes, is aligned to 16, and its owner has given it up.
        unsafe { block.cast::<Option<NonNull<u8>>>().write(*list) };
        *list = Some(block);
    }

    /// Takes a new piece; what was left of the last one is lost, which is pages never touched.
    fn refill(&mut self) -> bool {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that exists.
        let piece = unsafe { libc::mmap(ptr::null_mut(), PIECE, access, kind, -1, 0) };
        if piece == libc::MAP_FAILED {
            return false;
        }
        // One call in place of a fault a page; a kernel before 5.14 refuses, which does not matter.
        // SAFETY: the range is the beginning of the mapping just made, which nobody uses yet.
        unsafe { libc::madvise(piece, PREPARED, libc::MADV_POPULATE_WRITE) };
        (self.fresh, self.left) = (piece.cast(), PIECE);
        true
    }
}

#[cfg(test)]
mod tests;
