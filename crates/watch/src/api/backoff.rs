//! How long to wait after an error.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

use tokio::time::Instant;

/// First delay.
const FIRST: Duration = Duration::from_millis(100);
/// Longest delay while the server cannot be reached: the first change after its return is seen within this.
const MAX_AWAY: Duration = Duration::from_millis(900);
/// Longest delay while the server answers with a refusal, which a retry does not change.
const MAX_REFUSED: Duration = Duration::from_secs(5);
/// Longest wait that a busy server may ask for.
const MAX_ASKED: Duration = Duration::from_secs(30);
/// Errors further apart than this have nothing to do with each other.
const FORGET: Duration = Duration::from_secs(10);

/// What the error was like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No answer, or one that says to try again.
    Away,
    /// A refusal (401, 403, 404).
    Refused,
    /// A busy server that names the wait.
    Busy(Duration),
}

/// Delays that double up to a limit, with half of each random so that nodes do not return in step.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
    last: Option<Instant>,
    refused: bool,
}

impl Backoff {
    /// The exchange worked.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The exchange failed again; how long to wait.
    pub(crate) fn next(&mut self, failure: Failure) -> Duration {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) > FORGET) {
            self.reset();
        }
        self.last = Some(now);
        let refused = failure == Failure::Refused;
        if refused && !self.refused {
            // A server that has just come back refuses until its own caches of roles are filled: it is asked again soon,
            // however long it was away.
            self.reset();
        }
        self.refused = refused;
        let doubled = FIRST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = (self.failures + 1).min(16);
        let limit = match failure {
            Failure::Away => MAX_AWAY,
            Failure::Refused => MAX_REFUSED,
            Failure::Busy(asked) => {
                return jittered(asked.clamp(FIRST, MAX_ASKED)) + asked.min(MAX_ASKED) / 2;
            }
        };
        jittered(doubled.min(limit))
    }
}

/// Between half of the duration and all of it.
fn jittered(duration: Duration) -> Duration {
    // A fresh RandomState hashes with random keys; no need of a crate for one random number.
    let random = RandomState::new().hash_one(0_u8) % 1024;
    duration / 2 + duration.mul_f64(f64::from(u32::try_from(random).unwrap_or(0)) / 2048.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn retries_stay_below_a_second_while_the_server_is_away() {
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            let delay = backoff.next(Failure::Away);
            assert!(delay >= FIRST / 2 && delay <= MAX_AWAY, "{delay:?}");
        }
        assert!(backoff.next(Failure::Away) >= MAX_AWAY / 2);
        backoff.reset();
        assert!(backoff.next(Failure::Away) <= FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_refuses_after_it_was_away_is_asked_again_soon() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            backoff.next(Failure::Away);
        }
        assert!(backoff.next(Failure::Refused) <= FIRST);
        assert!(backoff.next(Failure::Refused) <= FIRST * 2);
        for _ in 0..20 {
            backoff.next(Failure::Refused);
        }
        assert!(backoff.next(Failure::Refused) >= MAX_REFUSED / 2, "a refusal that lasts is not pressed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_server_gets_the_time_it_asked_for_up_to_a_limit() {
        let mut backoff = Backoff::default();
        assert!(backoff.next(Failure::Busy(Duration::from_secs(4))) >= Duration::from_secs(4));
        assert!(backoff.next(Failure::Busy(Duration::from_secs(4000))) <= MAX_ASKED * 2);
    }
}
