//! netd-cni beside the reference plugins: the same configuration to both, each in namespaces of its own, and what
//! comes of it compared: the results, the kernel's state, and who reaches whom.
//!
//! Needs root and Debian's containernetworking-plugins. The tests with libcni's own runtime need Go too and are
//! ignored by default; `cargo xtask test` runs them.

#[cfg(test)]
mod parity {
    #[path = "../../cni/harness.rs"]
    #[expect(dead_code, reason = "the other test program uses all of it")]
    mod harness;

    mod addresses;
    mod calls;
    mod cases;
    mod differences;
    mod libcni;
    mod observe;
    mod reach;
    mod rows;
    mod same;
    mod world;
}
