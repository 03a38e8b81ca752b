//! The plugin as a runtime calls it: the real binary, in network namespaces of the test's own.
//!
//! Needs root. Each test has a host namespace, pod namespaces and a data directory of its own, named after the process.

#[cfg(test)]
mod cni {
    mod harness;

    mod bandwidth;
    mod chained;
    mod delegated;
    mod kill;
    mod lan;
    mod lifecycle;
    mod malformed;
    mod migrated;
    mod pathways;
    mod ports;
    mod reaped;
    mod routed;
    mod spoofing;
    mod traffic;
}
