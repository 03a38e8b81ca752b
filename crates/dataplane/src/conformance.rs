//! Scenarios that every backend passes.
