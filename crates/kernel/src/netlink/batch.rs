//! Changes to send to the kernel, one or several at a time.

use super::wire::Message;

/// One change with what it is called in an error message.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) message: Message,
    pub(super) flags: u16,
    pub(super) action: String,
}

/// Several changes that go to the kernel in one system call, in order; see [`super::Netlink::send`].
///
/// A descriptor given to a method (the namespace of a veth's other end) must stay open until the batch has been sent.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    requests: Vec<Request>,
}

impl Batch {
    /// Returns a batch of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of changes; making a bridge or a veth may count as several.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    pub(super) fn requests(&self) -> &[Request] {
        &self.requests
    }

    pub(super) fn push(
        &mut self,
        message: impl Into<Message>,
        flags: u16,
        action: impl Into<String>,
    ) -> &mut Self {
        self.requests.push(Request { message: message.into(), flags, action: action.into() });
        self
    }
}
