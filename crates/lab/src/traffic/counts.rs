//! Counting how probes ended.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Outcome;

/// How many probes ended how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Probes begun.
    pub attempts: u64,
    /// Probes answered, by the server's name.
    pub answered: BTreeMap<String, u64>,
    /// See [`Outcome::Refused`].
    pub refused: u64,
    /// See [`Outcome::TimedOut`].
    pub timed_out: u64,
    /// See [`Outcome::Reset`].
    pub reset: u64,
    /// See [`Outcome::Other`].
    pub other: u64,
    /// Probes begun and not ended.
    pub in_flight: u64,
    /// Probes that were due but not begun, as too many were in flight.
    pub skipped: u64,
    /// The longest time from a probe's begin to its end.
    pub slowest: Duration,
    /// The last failure that was not an answer, in words.
    pub complaint: Option<String>,
}

impl Counts {
    /// Notes that a probe has begun.
    pub(crate) fn begin(&mut self) {
        self.attempts += 1;
        self.in_flight += 1;
    }

    /// Notes how a probe ended and how long it took.
    pub(crate) fn end(&mut self, outcome: &Outcome, took: Duration) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.slowest = self.slowest.max(took);
        match outcome {
            Outcome::Answered { server, .. } => {
                *self.answered.entry(server.clone()).or_default() += 1;
                return;
            }
            Outcome::Refused => self.refused += 1,
            Outcome::TimedOut => self.timed_out += 1,
            Outcome::Reset => self.reset += 1,
            Outcome::Other(_) => self.other += 1,
        }
        self.complaint = Some(match outcome {
            Outcome::Other(text) => text.clone(),
            Outcome::Answered { .. } | Outcome::Refused | Outcome::TimedOut | Outcome::Reset => {
                format!("{outcome:?}")
            }
        });
    }

    /// Probes answered, by whomever.
    pub fn answered_total(&self) -> u64 {
        self.answered.values().sum()
    }

    /// Probes that ended without an answer; a skipped one counts, for the client saw no service.
    pub fn failed(&self) -> u64 {
        self.refused + self.timed_out + self.reset + self.other + self.skipped
    }

    /// What was added since an earlier reading; `slowest` and `complaint` are those of the whole time.
    pub fn since(&self, earlier: &Self) -> Self {
        let answered = self
            .answered
            .iter()
            .map(|(name, count)| {
                (name.clone(), count.saturating_sub(earlier.answered.get(name).copied().unwrap_or(0)))
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        Self {
            attempts: self.attempts.saturating_sub(earlier.attempts),
            answered,
            refused: self.refused.saturating_sub(earlier.refused),
            timed_out: self.timed_out.saturating_sub(earlier.timed_out),
            reset: self.reset.saturating_sub(earlier.reset),
            other: self.other.saturating_sub(earlier.other),
            in_flight: self.in_flight,
            skipped: self.skipped.saturating_sub(earlier.skipped),
            slowest: self.slowest,
            complaint: self.complaint.clone(),
        }
    }
}
