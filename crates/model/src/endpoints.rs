//! Which endpoints of a Service port this node uses.
