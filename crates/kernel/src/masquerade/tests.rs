use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::netns::{NETNS_DIR, Namespace};

/// A namespace of one test; removed with it.
struct Scratch {
    namespace: Namespace,
    path: PathBuf,
}

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("nd-{}-masq{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = PathBuf::from(NETNS_DIR).join(name);
        Self { namespace: Namespace::create(&path).expect("network namespaces need root"), path }
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(work).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = Namespace::remove(&self.path);
    }
}

fn networks(texts: &[&str]) -> Vec<IpNetwork> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn dual() -> Masquerade {
    Masquerade {
        pod_cidrs: networks(&["172.16.1.0/24", "fd00:1::/64"]),
        keep: networks(&["172.16.0.0/16", "10.0.0.0/8", "fd00::/16", "192.168.7.9/32"]),
    }
}

#[test]
fn ensuring_twice_writes_once() {
    Scratch::new().run(|| {
        assert_eq!(check(&dual()).unwrap(), State::Absent);
        assert!(ensure(&dual()).unwrap());
        assert_eq!(check(&dual()).unwrap(), State::Installed);
        assert!(!ensure(&dual()).unwrap());
        let turned = Masquerade { keep: dual().keep.into_iter().rev().collect(), ..dual() };
        assert!(!ensure(&turned).unwrap(), "the order of writing does not matter");
    });
}

fn single(pods: &str, keep: &[&str]) -> Masquerade {
    Masquerade { pod_cidrs: networks(&[pods]), keep: networks(keep) }
}

#[test]
fn networks_with_different_pods_stand_side_by_side() {
    Scratch::new().run(|| {
        let other = single("172.16.9.0/24", &[]);
        ensure(&dual()).unwrap();
        assert_eq!(check(&other).unwrap(), State::Different);
        assert!(ensure(&other).unwrap());
        for network in [&dual(), &other] {
            assert_eq!(check(network).unwrap(), State::Installed);
            assert!(!ensure(network).unwrap());
        }
        let changed = single("172.16.9.0/24", &["10.0.0.0/8"]);
        assert!(ensure(&changed).unwrap());
        assert_eq!(check(&other).unwrap(), State::Different, "its old rules are replaced");
        assert_eq!(check(&dual()).unwrap(), State::Installed);
    });
}

#[test]
fn of_overlapping_networks_the_last_one_stays() {
    Scratch::new().run(|| {
        let (narrow, wide) = (single("10.1.0.0/24", &[]), single("10.1.0.0/16", &[]));
        ensure(&narrow).unwrap();
        assert!(ensure(&wide).unwrap());
        assert_eq!(check(&wide).unwrap(), State::Installed);
        assert_eq!(check(&narrow).unwrap(), State::Different);
    });
}

#[test]
fn a_rule_of_nobody_is_noticed_and_removed() {
    Scratch::new().run(|| {
        ensure(&dual()).unwrap();
        for chain in [BASE_CHAIN, &Rules::of(&dual(), Family::V4).chain()] {
            let mut batch = Batch::new();
            batch.add_rule(Family::V4, TABLE, chain, nft::Rule::new("mine".to_owned()).return_());
            Conversation::open().unwrap().commit(batch, "meddle").unwrap();
            assert_eq!(check(&dual()).unwrap(), State::Different);
            assert!(ensure(&dual()).unwrap());
            assert_eq!(check(&dual()).unwrap(), State::Installed);
        }
    });
}

#[test]
fn removing_takes_both_tables_and_may_be_done_twice() {
    Scratch::new().run(|| {
        assert!(!remove().unwrap());
        ensure(&dual()).unwrap();
        assert!(remove().unwrap());
        assert_eq!(check(&dual()).unwrap(), State::Absent);
        assert!(!remove().unwrap());
    });
}

#[test]
fn a_flushed_table_is_noticed_and_restored() {
    Scratch::new().run(|| {
        ensure(&dual()).unwrap();
        let mut batch = Batch::new();
        batch.flush_table(Family::V4, TABLE);
        Conversation::open().unwrap().commit(batch, "flush").unwrap();
        assert_eq!(check(&dual()).unwrap(), State::Different);
        assert!(ensure(&dual()).unwrap());
        assert_eq!(check(&dual()).unwrap(), State::Installed);
    });
}

#[test]
fn many_at_once_come_to_the_same_end() {
    let scratch = Scratch::new();
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..12).map(|_| scope.spawn(|| scratch.run(|| ensure(&dual())))).collect();
        for one in all {
            one.join().unwrap().unwrap();
        }
    });
    scratch.run(|| assert_eq!(check(&dual()).unwrap(), State::Installed));
}

/// nft reads the rules as they are meant; without nft there is nobody else to ask.
#[test]
fn nft_reads_what_is_meant() {
    use crate::exec::{Exec, SystemExec, find_program};
    let Some(nft) = find_program("nft") else { return };
    let text = Scratch::new().run(|| {
        ensure(&dual()).unwrap();
        let output =
            SystemExec.run(&nft, &["list", "ruleset"], &[], std::time::Duration::from_secs(10)).unwrap();
        String::from_utf8(output.stdout).unwrap()
    });
    for line in [
        "type nat hook postrouting priority srcnat; policy accept;",
        "ip saddr 172.16.1.0/24 goto pods-",
        "ip daddr 10.0.0.0/8 return",
        "ip daddr 192.168.7.9 return",
        "ip daddr 224.0.0.0/4 return",
        "masquerade fully-random",
        "ip6 saddr fd00:1::/64 goto pods-",
        "ip6 daddr ff00::/8 return",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
}

#[test]
fn cut_short_answers_are_no_panic() {
    let bytes = [16_u8, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0];
    for length in 0..bytes.len() {
        let part = bytes.get(..length).unwrap();
        assert!(nft::split_first(part).is_none());
        assert!(nft::find_attribute(part, 7).is_none());
    }
    assert!(nft::find_attribute(&[0, 0, 1, 0, 0, 0, 0, 0], 7).is_none(), "a length of nothing does not loop");
}
