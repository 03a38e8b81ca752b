//! Sets and maps of nf_tables, and their elements.

use super::attributes::each;
use super::rule::value;
use super::{
    Attributes, Batch, CREATE, Conversation, DUMP, EXCL, Family, REQUEST, comment_data, find_attribute,
    message, retried, text, wire,
};
use crate::Result;

/// A set, or a map where it has data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SetSpec {
    pub(crate) name: &'static str,
    /// nft's type of the key and its length in bytes, each part padded to four.
    pub(crate) key: (u32, u32),
    /// The same of the data of a map.
    pub(crate) data: Option<(u32, u32)>,
}

/// An element with its comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    /// Empty in a set.
    pub(crate) data: Vec<u8>,
    pub(crate) comment: String,
}

impl Batch {
    /// Adds a set unless it is there.
    pub(crate) fn add_set(&mut self, family: Family, table: &str, spec: &SetSpec) {
        let mut attributes = Attributes::default();
        attributes.text(wire::NFTA_SET_TABLE, table);
        attributes.text(wire::NFTA_SET_NAME, spec.name);
        attributes.number(wire::NFTA_SET_FLAGS, if spec.data.is_some() { wire::NFT_SET_MAP } else { 0 });
        attributes.number(wire::NFTA_SET_KEY_TYPE, spec.key.0);
        attributes.number(wire::NFTA_SET_KEY_LEN, spec.key.1);
        if let Some((kind, length)) = spec.data {
            attributes.number(wire::NFTA_SET_DATA_TYPE, kind);
            attributes.number(wire::NFTA_SET_DATA_LEN, length);
        }
        // Any number that no other set of the batch has.
        attributes.number(wire::NFTA_SET_ID, u32::try_from(self.0.len() + 1).unwrap_or(u32::MAX));
        self.push(wire::NEW_SET, CREATE, family, attributes);
    }

    /// Adds an element; of a map it must be new, or the batch fails with [`crate::Error::is_exists`].
    pub(crate) fn add_element(&mut self, family: Family, table: &str, set: &str, element: &Element) {
        let flags = if element.data.is_empty() { CREATE } else { CREATE | EXCL };
        self.push(wire::NEW_ELEMENTS, flags, family, elements(table, set, Some(element)));
    }

    pub(crate) fn delete_element(&mut self, family: Family, table: &str, set: &str, key: &[u8]) {
        let element = Element { key: key.to_vec(), data: Vec::new(), comment: String::new() };
        self.push(wire::DEL_ELEMENTS, 0, family, elements(table, set, Some(&element)));
    }
}

impl Conversation {
    /// Every element of a set; none where there is no such set.
    pub(crate) fn elements(&mut self, family: Family, table: &str, set: &str) -> Result<Vec<Element>> {
        match retried(|| self.elements_once(family, table, set)) {
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            other => other,
        }
    }

    fn elements_once(&mut self, family: Family, table: &str, set: &str) -> Result<Vec<Element>> {
        let action = "list the elements of a set";
        let filter = elements(table, set, None);
        let kind = wire::SUBSYSTEM << 8 | wire::GET_ELEMENTS;
        self.send(&[message(kind, REQUEST | DUMP, family.number(), 0, filter.encoded())], action)?;
        let mut found = Vec::new();
        self.receive(action, |kind, content| {
            if kind == wire::SUBSYSTEM << 8 | wire::NEW_ELEMENTS {
                let list = find_attribute(content, wire::NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
                found.extend(each(list).map(|(_, element)| read(element)));
            }
            false
        })?;
        Ok(found)
    }
}

fn elements(table: &str, set: &str, element: Option<&Element>) -> Attributes {
    let mut attributes = Attributes::default();
    attributes.text(wire::NFTA_SET_ELEM_LIST_TABLE, table);
    attributes.text(wire::NFTA_SET_ELEM_LIST_SET, set);
    if let Some(Element { key, data, comment }) = element {
        let mut one = Attributes::default();
        one.nest(wire::NFTA_SET_ELEM_KEY, value(key));
        if !data.is_empty() {
            one.nest(wire::NFTA_SET_ELEM_DATA, value(data));
        }
        if !comment.is_empty() {
            one.bytes(wire::NFTA_SET_ELEM_USERDATA, &comment_data(comment));
        }
        let mut list = Attributes::default();
        list.nest(wire::NFTA_LIST_ELEM, one);
        attributes.nest(wire::NFTA_SET_ELEM_LIST_ELEMENTS, list);
    }
    attributes
}

fn read(element: &[u8]) -> Element {
    let bytes = |kind| {
        let data = find_attribute(element, kind).and_then(|data| find_attribute(data, wire::NFTA_DATA_VALUE));
        data.unwrap_or_default().to_vec()
    };
    let comment = find_attribute(element, wire::NFTA_SET_ELEM_USERDATA).and_then(|data| data.get(2..));
    Element {
        key: bytes(wire::NFTA_SET_ELEM_KEY),
        data: bytes(wire::NFTA_SET_ELEM_DATA),
        comment: comment.map(text).unwrap_or_default(),
    }
}
