use super::*;

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

fn fill(block: *mut u8, size: usize, byte: u8) {
    // SAFETY: the tests pass blocks of at least that size.
    unsafe { block.write_bytes(byte, size) };
}

fn bytes<'a>(block: *mut u8, size: usize) -> &'a [u8] {
    // SAFETY: the tests pass blocks of at least that size that they have filled.
    unsafe { std::slice::from_raw_parts(block, size) }
}

fn alloc(heap: &Heap, size: usize) -> *mut u8 {
    // SAFETY: no size in these tests is zero.
    unsafe { heap.alloc(layout(size)) }
}

fn free(heap: &Heap, block: *mut u8, size: usize) {
    // SAFETY: the tests free what they have allocated with that size, once.
    unsafe { heap.dealloc(block, layout(size)) };
}

#[test]
fn classes_hold_what_they_are_for() {
    for size in [1, 15, 16, 17, 1000, 4096, 65_536, 65_537, LARGEST] {
        let class = class_of(layout(size)).unwrap();
        assert!(class < CLASSES && SMALLEST << class >= size, "{size}");
        assert!(size <= SMALLEST || SMALLEST << (class - 1) < size, "{size}");
    }
    assert_eq!(class_of(layout(LARGEST + 1)), None);
    assert_eq!(class_of(Layout::from_size_align(8, 64).unwrap()), None);
}

#[test]
fn blocks_are_apart_and_aligned() {
    let heap = Heap::new();
    let sizes: Vec<usize> = (0..2000).map(|i| 1 + i * 37 % 3000).collect();
    let blocks: Vec<*mut u8> = sizes.iter().map(|size| alloc(&heap, *size)).collect();
    for (i, (block, size)) in blocks.iter().zip(&sizes).enumerate() {
        assert_eq!(block.addr() % SMALLEST, 0);
        fill(*block, *size, i as u8);
    }
    for (i, (block, size)) in blocks.iter().zip(&sizes).enumerate() {
        assert!(bytes(*block, *size).iter().all(|byte| *byte == i as u8), "block {i} was overwritten");
        free(&heap, *block, *size);
    }
}

#[test]
fn a_freed_block_is_used_again_and_zeroed_on_request() {
    let heap = Heap::new();
    let first = alloc(&heap, 100);
    fill(first, 100, 0xff);
    free(&heap, first, 100);
    // SAFETY: the size is not zero.
    let second = unsafe { heap.alloc_zeroed(layout(128)) };
    assert_eq!(first, second);
    assert!(bytes(second, 128).iter().all(|byte| *byte == 0));
    free(&heap, second, 128);
    // SAFETY: the size is not zero.
    let fresh = unsafe { heap.alloc_zeroed(layout(60_000)) };
    assert!(bytes(fresh, 60_000).iter().all(|byte| *byte == 0));
    free(&heap, fresh, 60_000);
}

#[test]
fn what_grows_and_shrinks_keeps_its_content() {
    let heap = Heap::new();
    let (mut block, mut size) = (alloc(&heap, 10), 10);
    fill(block, 10, 7);
    for wanted in [16, 17, 5000, LARGEST, LARGEST + 1, 3 * LARGEST, 200, 10] {
        // SAFETY: the block is of this size, and the new one is not zero.
        block = unsafe { heap.realloc(block, layout(size), wanted) };
        size = wanted;
        assert_eq!(bytes(block, 10), [7; 10], "at {wanted}");
    }
    free(&heap, block, size);
}

#[test]
fn threads_do_not_get_the_same_block() {
    let heap = Heap::new();
    std::thread::scope(|scope| {
        for byte in 1..=4 {
            let heap = &heap;
            scope.spawn(move || {
                for round in 0..2000_usize {
                    let size = 1 + round % 300;
                    let block = alloc(heap, size);
                    fill(block, size, byte);
                    assert!(bytes(block, size).iter().all(|found| *found == byte));
                    free(heap, block, size);
                }
            });
        }
    });
}
