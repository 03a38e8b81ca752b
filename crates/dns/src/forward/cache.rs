//! Answers of upstreams, kept for as long as their time to live says, half a minute at most.
//!
//! Cluster names never come here. Bounded in bytes; the oldest answers go first.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::wire::{
    RecordPlace, Request, Section, flag3, header_rcode, is_truncated, rcode, record_places, rtype,
};

/// The longest an answer is kept (kubeadm's `cache 30`).
const MAX_AGE: Duration = Duration::from_secs(30);
/// What an entry costs beside its bytes, roughly.
const OVERHEAD: usize = 200;

/// A bounded store of replies.
#[derive(Debug)]
pub(super) struct Cache {
    limit: usize,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    by_key: HashMap<Key, Entry>,
    /// Keys in the order they came, each with the number of its entry.
    order: VecDeque<(Key, u64)>,
    bytes: usize,
    last: u64,
}

/// The question in lower case, and the bits of a request that change the answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    question: Vec<u8>,
    edns: bool,
    dnssec_ok: bool,
    checking_disabled: bool,
}

#[derive(Debug)]
struct Entry {
    reply: Vec<u8>,
    ttl_offsets: Vec<usize>,
    stored: Instant,
    keep: Duration,
    number: u64,
}

impl Entry {
    const fn cost(&self) -> usize {
        self.reply.len() + self.ttl_offsets.len() * size_of::<usize>() + OVERHEAD
    }
}

impl Key {
    /// `None` for a request with EDNS options, which may make its answer the client's own.
    fn of(request: &Request<'_>) -> Option<Self> {
        if request.edns.is_some_and(|edns| edns.has_options) {
            return None;
        }
        let mut question = request.question.name.as_wire().to_vec();
        question.extend_from_slice(&request.question.qtype.to_be_bytes());
        Some(Self {
            question,
            edns: request.edns.is_some(),
            dnssec_ok: request.edns.is_some_and(|edns| edns.dnssec_ok),
            checking_disabled: request.flags[1] & flag3::CHECKING_DISABLED != 0,
        })
    }
}

impl Cache {
    /// Makes a cache of at most `limit` bytes; 0 keeps nothing.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, entries: Mutex::default() }
    }

    /// The reply to a request, with its id and with what is left of the times to live.
    pub(super) fn get(&self, request: &Request<'_>, now: Instant) -> Option<Vec<u8>> {
        let key = Key::of(request)?;
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.by_key.get(&key)?;
        let age = now.saturating_duration_since(entry.stored);
        if age >= entry.keep {
            return None;
        }
        let (mut reply, offsets) = (entry.reply.clone(), entry.ttl_offsets.clone());
        drop(entries);
        let seconds = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        for offset in offsets {
            let ttl = reply.get_mut(offset..offset + 4)?;
            let left = u32::from_be_bytes(ttl.as_ref().try_into().ok()?).saturating_sub(seconds);
            ttl.copy_from_slice(&left.to_be_bytes());
        }
        super::message::set_id(&mut reply, request.id);
        Some(reply)
    }

    /// Keeps a reply, if it may be kept.
    pub(super) fn put(&self, request: &Request<'_>, reply: &[u8], now: Instant) {
        let Some(key) = Key::of(request) else { return };
        let Some((keep, ttl_offsets)) = keep_for(request.question.qtype, reply) else { return };
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.last += 1;
        let number = entries.last;
        let entry = Entry { reply: reply.to_vec(), ttl_offsets, stored: now, keep, number };
        if entry.cost() > self.limit {
            return;
        }
        entries.bytes += entry.cost() + key.question.len();
        entries.order.push_back((key.clone(), number));
        if let Some(old) = entries.by_key.insert(key.clone(), entry) {
            entries.bytes = entries.bytes.saturating_sub(old.cost() + key.question.len());
        }
        entries.shrink(self.limit);
    }

    /// Forgets everything, because the upstreams changed.
    pub(super) fn clear(&self) {
        *self.entries.lock().unwrap_or_else(PoisonError::into_inner) = Entries::default();
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> (usize, usize, usize) {
        let entries = self.entries.lock().unwrap();
        (entries.by_key.len(), entries.order.len(), entries.bytes)
    }
}

impl Entries {
    /// Drops the oldest until the rest fits; keys of entries that were replaced go with them.
    fn shrink(&mut self, limit: usize) {
        while self.bytes > limit || self.order.len() > 2 * self.by_key.len() + 16 {
            let Some((key, number)) = self.order.pop_front() else { return };
            if self.by_key.get(&key).is_some_and(|entry| entry.number == number)
                && let Some(entry) = self.by_key.remove(&key)
            {
                self.bytes = self.bytes.saturating_sub(entry.cost() + key.question.len());
            }
        }
    }
}

/// How long a reply may be kept and where its times to live stand; `None` when it may not be kept.
///
/// Negative answers need their SOA (RFC 2308 section 5).
fn keep_for(qtype: u16, reply: &[u8]) -> Option<(Duration, Vec<usize>)> {
    let code = header_rcode(reply);
    if is_truncated(reply) || !matches!(code, rcode::NOERROR | rcode::NXDOMAIN) {
        return None;
    }
    let places = record_places(reply)?;
    let mut keep = u32::try_from(MAX_AGE.as_secs()).unwrap_or(30);
    let mut conclusive = false;
    let mut offsets = Vec::new();
    for place in &places {
        if place.kind == rtype::OPT {
            if !is_plain_opt(place) {
                return None;
            }
            continue;
        }
        offsets.push(place.ttl_offset);
        let answers = place.section == Section::Answer && (place.kind == qtype || qtype == rtype::ANY);
        let denies = place.section == Section::Authority && place.kind == rtype::SOA;
        conclusive |= denies || (answers && code == rcode::NOERROR);
        if place.section == Section::Answer {
            keep = keep.min(place.ttl);
        } else if denies {
            let minimum = place.data.len().checked_sub(4).and_then(|at| place.data.get(at..))?;
            keep = keep.min(place.ttl).min(u32::from_be_bytes(minimum.try_into().ok()?));
        }
    }
    (conclusive && keep > 0).then(|| (Duration::from_secs(u64::from(keep)), offsets))
}

/// An OPT record without options and without a part of the response code.
fn is_plain_opt(place: &RecordPlace<'_>) -> bool {
    place.data.is_empty() && place.ttl >> 24 == 0
}

#[cfg(test)]
mod tests;
