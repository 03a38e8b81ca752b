//! An in-memory dataplane.
