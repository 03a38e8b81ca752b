//! Ranges of pods that this node had before: a Node that is made anew may get another podCIDR while pods run.
//!
//! Pods that have an address of an earlier range keep it, and with it need its gateway on the bridge and its masquerade,
//! until the last of them is gone. Earlier ranges are remembered in the plugin's ranges file, so a restarted netd knows
//! them; a reboot forgets file and pods alike.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use serde::Deserialize;

/// How long an earlier range must be without a pod: an ADD that has just read the file still uses it.
const REST: Duration = Duration::from_secs(5);

/// What is read back of the file.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RangesFile {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<IpNetwork>,
    #[serde(rename = "formerPodCIDRs")]
    former_pod_cidrs: Vec<IpNetwork>,
}

/// The node's ranges, now and before.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Ranges {
    current: Vec<IpNetwork>,
    /// Since when each has had no pod.
    former: BTreeMap<IpNetwork, Option<Instant>>,
}

impl Ranges {
    /// The ranges that an earlier netd left in the file; none where there is no such file, or no sense in it.
    pub(in crate::daemon) fn load(file: &Path) -> Self {
        let bytes = std::fs::read(file).unwrap_or_default();
        let found: RangesFile = serde_json::from_slice(&bytes).unwrap_or_default();
        let former = found.former_pod_cidrs.into_iter().map(|range| (range, None)).collect();
        Self { current: found.pod_cidrs, former }
    }

    /// Notes the node's ranges of now, and returns those of before that have had no pod for a while: see
    /// [`Ranges::end`]. `has_pods` tells whether a pod has an address of a range.
    pub(in crate::daemon) fn note(
        &mut self,
        current: &[IpNetwork],
        now: Instant,
        has_pods: impl Fn(&IpNetwork) -> bool,
    ) -> Vec<IpNetwork> {
        for range in std::mem::replace(&mut self.current, current.to_vec()) {
            self.former.entry(range).or_default();
        }
        self.former.retain(|range, _| !current.contains(range));
        let mut over = Vec::new();
        for (range, empty_since) in &mut self.former {
            if has_pods(range) {
                *empty_since = None;
                continue;
            }
            let since = *empty_since.get_or_insert(now);
            if now.saturating_duration_since(since) >= REST {
                over.push(*range);
            }
        }
        over
    }

    /// Forgets a range of before, of which nothing is left.
    pub(in crate::daemon) fn end(&mut self, range: &IpNetwork) {
        self.former.remove(range);
    }

    /// Ranges of before that may still have pods.
    pub(in crate::daemon) fn former(&self) -> Vec<IpNetwork> {
        self.former.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a moment to count from")]
    fn an_earlier_range_stays_until_its_last_pod_has_been_gone_for_a_while() {
        let (old, new, start) = (net("172.16.0.0/24"), net("172.16.9.0/24"), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut ranges = Ranges::default();
        assert_eq!(ranges.note(&[old], start, |_| true), []);
        assert_eq!(ranges.former(), []);
        assert_eq!(ranges.note(&[new], start, |range| *range == old), []);
        assert_eq!(ranges.former(), [old]);
        assert_eq!(ranges.note(&[new], after(100), |range| *range == old), []);
        assert_eq!(ranges.note(&[new], after(101), |_| false), []);
        assert_eq!(ranges.note(&[new], after(105), |_| false), []);
        // A pod that was just being added starts the time anew.
        assert_eq!(ranges.note(&[new], after(106), |range| *range == old), []);
        assert_eq!(ranges.note(&[new], after(107), |_| false), []);
        assert_eq!(ranges.note(&[new], after(112), |_| false), [old]);
        assert_eq!(ranges.former(), [old], "until nothing is left of it");
        ranges.end(&old);
        assert_eq!(ranges.former(), []);
        // And back again: a range of now is none of before.
        ranges.note(&[old], after(113), |_| true);
        ranges.note(&[new], after(114), |_| true);
        assert_eq!(ranges.former(), [old]);
    }

    #[test]
    fn the_file_tells_a_restarted_netd_and_no_sense_tells_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ranges.json");
        assert_eq!(Ranges::load(&file).current, []);
        std::fs::write(&file, r#"{"podCIDRs":["172.16.0.0/24"],"formerPodCIDRs":["172.16.7.0/24"],"x":1}"#)
            .unwrap();
        let ranges = Ranges::load(&file);
        assert_eq!(
            (ranges.current.clone(), ranges.former()),
            (vec![net("172.16.0.0/24")], vec![net("172.16.7.0/24")])
        );
        std::fs::write(&file, "torn").unwrap();
        assert_eq!(Ranges::load(&file).former(), []);
    }
}
