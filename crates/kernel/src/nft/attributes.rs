//! Netlink attributes: type, length, content.

const NESTED: u16 = libc::NLA_F_NESTED as u16;
const TYPE_MASK: u16 = 0x3fff;

/// Netlink attributes, each padded to four bytes.
#[derive(Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    /// The encoded attributes.
    pub(super) fn encoded(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn bytes(&mut self, kind: u16, content: &[u8]) {
        // No attribute of ours comes near 64 KiB.
        let length = u16::try_from(content.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn nest(&mut self, kind: u16, content: Self) {
        self.bytes(kind | NESTED, &content.0);
    }

    /// nf_tables numbers are big-endian.
    pub(super) fn number(&mut self, kind: u16, number: u32) {
        self.bytes(kind, &number.to_be_bytes());
    }

    pub(super) fn text(&mut self, kind: u16, text: &str) {
        self.bytes(kind, &[text.as_bytes(), &[0]].concat());
    }
}

/// Finds the content of the first attribute of a type.
pub(crate) fn find_attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    each(bytes).find(|(kind, _)| *kind == wanted).map(|(_, content)| content)
}

/// Type and content of each attribute, up to the first that is not whole.
pub(crate) fn each(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let content = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE_MASK, content))
    })
}

/// nf_tables numbers are big-endian.
pub(super) fn number(content: &[u8]) -> u32 {
    content.try_into().map(u32::from_be_bytes).unwrap_or_default()
}

/// The text up to its final zero.
pub(crate) fn text(content: &[u8]) -> String {
    let end = content.iter().position(|byte| *byte == 0).unwrap_or(content.len());
    String::from_utf8_lossy(content.get(..end).unwrap_or_default()).into_owned()
}
