//! `netd-cni`: started by the container runtime, once a call. See the library for what it does.

use std::process::ExitCode;

use netd_kernel::heap::Heap;

#[global_allocator]
static HEAP: Heap = Heap::new();

fn main() -> ExitCode {
    netd_cni::plugin::main()
}
