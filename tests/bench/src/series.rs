//! The numbers of many calls.

use std::time::Duration;

/// What one call, or one chain of calls, took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Took {
    /// From before the first program was started to the end of the last.
    pub(crate) time: Duration,
    /// Processor time of all of them.
    pub(crate) processor: Duration,
}

/// Calls of one verb in one case by one side.
#[derive(Debug, Clone, Default)]
pub(crate) struct Series {
    calls: Vec<Took>,
    /// The median of each turn.
    turns: Vec<Duration>,
    wall: Duration,
}

impl Series {
    /// Adds the calls of one turn, which took `wall` together.
    pub(crate) fn add_turn(&mut self, calls: &[Took], wall: Duration) {
        self.turns.push(quantile(calls.iter().map(|call| call.time).collect(), 0.5));
        self.calls.extend_from_slice(calls);
        self.wall += wall;
    }

    /// The number of calls.
    pub(crate) fn count(&self) -> usize {
        self.calls.len()
    }

    /// The time that `share` of the calls did not exceed.
    pub(crate) fn time(&self, share: f64) -> Duration {
        quantile(self.calls.iter().map(|call| call.time).collect(), share)
    }

    /// The least and the greatest median of a turn.
    pub(crate) fn range(&self) -> (Duration, Duration) {
        let least = self.turns.iter().min().copied().unwrap_or_default();
        (least, self.turns.iter().max().copied().unwrap_or_default())
    }

    /// The median of the processor time.
    pub(crate) fn processor(&self) -> Duration {
        quantile(self.calls.iter().map(|call| call.processor).collect(), 0.5)
    }

    /// Calls a second.
    pub(crate) fn rate(&self) -> f64 {
        // Counts are far below 2^52.
        self.calls.len() as f64 / self.wall.as_secs_f64()
    }
}

/// The smallest value that at least `share` of the values do not exceed (nearest rank); zero of nothing.
fn quantile(mut values: Vec<Duration>, share: f64) -> Duration {
    values.sort_unstable();
    // Between 0 and the length, by the bounds of `share`.
    let rank = (share.clamp(0.0, 1.0) * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let values: Vec<Duration> = (1..=20).rev().map(Duration::from_millis).collect();
        assert_eq!(quantile(values.clone(), 0.5), Duration::from_millis(10));
        assert_eq!(quantile(values.clone(), 0.95), Duration::from_millis(19));
        assert_eq!(quantile(values, 1.0), Duration::from_millis(20));
        assert_eq!(quantile(Vec::new(), 0.5), Duration::ZERO);
    }

    #[test]
    fn the_rate_is_that_of_the_wall_clock_and_the_range_that_of_turns() {
        let took = |ms| Took { time: Duration::from_millis(ms), ..Took::default() };
        let mut series = Series::default();
        series.add_turn(&[took(10), took(20), took(30)], Duration::from_millis(30));
        series.add_turn(&[took(40)], Duration::from_millis(50));
        assert!((series.rate() - 50.0).abs() < 1e-9);
        assert_eq!(series.range(), (Duration::from_millis(20), Duration::from_millis(40)));
    }
}
