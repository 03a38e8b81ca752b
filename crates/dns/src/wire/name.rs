//! Domain names in wire format.

use std::fmt;
use std::sync::Arc;

/// The longest name in bytes, root label included (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 255;
/// The longest label in bytes.
const MAX_LABEL: usize = 63;

/// Why a text or packet holds no domain name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A label is empty.
    #[error("a label is empty")]
    EmptyLabel,
    /// A label has more than 63 bytes.
    #[error("a label is longer than 63 bytes")]
    LongLabel,
    /// The name has more than 255 bytes.
    #[error("the name is longer than 255 bytes")]
    LongName,
    /// The packet ends within the name, or a compression pointer stands where none may.
    #[error("the name is cut short or compressed")]
    Malformed,
}

/// A domain name: wire format, uncompressed, ASCII lower case. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name {
    wire: Arc<[u8]>,
}

impl Name {
    /// Parses dotted text, with or without the trailing dot.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Ok(Self { wire: Arc::new([0]) });
        }
        Self::from_labels(text.split('.').map(str::as_bytes))
    }

    /// Joins labels, leftmost first.
    pub fn from_labels<'l>(labels: impl IntoIterator<Item = &'l [u8]>) -> Result<Self, NameError> {
        let mut wire = Vec::with_capacity(64);
        for label in labels {
            push_label(&mut wire, label)?;
        }
        Self::finish(wire)
    }

    /// Reads the uncompressed name at `at`; returns it and the offset behind it.
    pub fn read(message: &[u8], at: usize) -> Result<(Self, usize), NameError> {
        let mut wire = Vec::with_capacity(64);
        let mut cursor = at;
        loop {
            let length = usize::from(*message.get(cursor).ok_or(NameError::Malformed)?);
            if length > MAX_LABEL {
                return Err(if length & 0xc0 == 0xc0 { NameError::Malformed } else { NameError::LongLabel });
            }
            cursor += 1;
            if length == 0 {
                return Ok((Self::finish(wire)?, cursor));
            }
            push_label(&mut wire, message.get(cursor..cursor + length).ok_or(NameError::Malformed)?)?;
            if wire.len() >= MAX_NAME {
                return Err(NameError::LongName);
            }
            cursor += length;
        }
    }

    /// This name with one more label in front.
    pub fn child(&self, label: &str) -> Result<Self, NameError> {
        let mut wire = Vec::with_capacity(self.wire.len() + label.len() + 1);
        push_label(&mut wire, label.as_bytes())?;
        wire.extend_from_slice(&self.wire);
        if wire.len() > MAX_NAME { Err(NameError::LongName) } else { Ok(Self { wire: wire.into() }) }
    }

    /// The name's wire format, the root label's zero byte included.
    pub fn as_wire(&self) -> &[u8] {
        &self.wire
    }

    /// Labels from the left, without the root.
    pub fn labels(&self) -> Labels<'_> {
        Labels { rest: &self.wire }
    }

    /// The labels in front of `suffix`, rightmost first; `None` when the name is not within it.
    pub fn within(&self, suffix: &Self) -> Option<Vec<&[u8]>> {
        let extra = self.wire.len().checked_sub(suffix.wire.len())?;
        let mut labels = Vec::new();
        let mut all = self.labels();
        while self.wire.len() - all.rest.len() < extra {
            labels.push(all.next()?);
        }
        if all.rest != &*suffix.wire {
            return None;
        }
        labels.reverse();
        Some(labels)
    }

    fn finish(mut wire: Vec<u8>) -> Result<Self, NameError> {
        wire.push(0);
        if wire.len() > MAX_NAME { Err(NameError::LongName) } else { Ok(Self { wire: wire.into() }) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for label in self.labels() {
            for byte in label {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                    0x21..=0x7e => write!(f, "{}", char::from(*byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
            f.write_str(".")?;
        }
        if self.wire.len() == 1 { f.write_str(".") } else { Ok(()) }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Iterates over the labels of a [`Name`].
#[derive(Clone, Debug)]
pub struct Labels<'n> {
    rest: &'n [u8],
}

impl<'n> Iterator for Labels<'n> {
    type Item = &'n [u8];

    fn next(&mut self) -> Option<&'n [u8]> {
        let (length, behind) = self.rest.split_first()?;
        if *length == 0 {
            return None;
        }
        let (label, rest) = behind.split_at_checked(usize::from(*length))?;
        self.rest = rest;
        Some(label)
    }
}

fn push_label(wire: &mut Vec<u8>, label: &[u8]) -> Result<(), NameError> {
    if label.is_empty() {
        return Err(NameError::EmptyLabel);
    }
    let length = u8::try_from(label.len()).map_err(|_too_long| NameError::LongLabel)?;
    if label.len() > MAX_LABEL {
        return Err(NameError::LongLabel);
    }
    wire.push(length);
    wire.extend(label.iter().map(u8::to_ascii_lowercase));
    Ok(())
}
