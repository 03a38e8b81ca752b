//! The plugin under faults: killed at every system call and at random, calls that cannot be meant, files and daemons that fail.
//!
//! Each test prints what it counted (`cargo test -p netd-cni --test faults -- --nocapture`); docs/design/faults-cni.md lists
//! all of them. Needs root. What is random is seeded: the seed is printed, `NETD_TEST_SEED=N` repeats it.

#[cfg(test)]
mod chance;
#[cfg(test)]
mod crowd;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod every_call;
#[cfg(test)]
mod experiments;
#[cfg(test)]
mod firewall;
#[cfg(test)]
mod generated;
#[cfg(test)]
#[path = "../cni/harness.rs"]
mod harness;
#[cfg(test)]
mod node;
#[cfg(test)]
mod random;
#[cfg(test)]
mod reused;
#[cfg(test)]
mod table;
#[cfg(test)]
mod tracer;
