//! `netd-cni`: started by the container runtime, once a call. See the library for what it does.
//!
//! The C library calls `main` itself: what the standard library would do before it is a tenth of a call's system calls.

#![no_main]

use std::ffi::{c_char, c_int};

use netd_kernel::heap::Heap;
use netd_kernel::process;

#[global_allocator]
static HEAP: Heap = Heap::new();

/// Is called by the C library; the environment and the standard streams tell everything.
#[unsafe(no_mangle)]
pub extern "C" fn main(_count: c_int, _arguments: *const *const c_char) -> c_int {
    process::prepare_start();
    netd_cni::plugin::main()
}
