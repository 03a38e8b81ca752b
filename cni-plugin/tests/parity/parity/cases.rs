//! Cases of the reference's own tests, and the tests of ours that stand for them.
