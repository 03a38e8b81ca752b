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
        owner: owner_of("dual"),
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

fn single(owner: &str, pods: &str, keep: &[&str]) -> Masquerade {
    Masquerade { owner: owner_of(owner), pod_cidrs: networks(&[pods]), keep: networks(keep) }
}

#[test]
fn networks_with_different_pods_stand_side_by_side() {
    Scratch::new().run(|| {
        let other = single("other", "172.16.9.0/24", &[]);
        ensure(&dual()).unwrap();
        assert_eq!(check(&other).unwrap(), State::Different);
        assert!(ensure(&other).unwrap());
        for network in [&dual(), &other] {
            assert_eq!(check(network).unwrap(), State::Installed);
            assert!(!ensure(network).unwrap());
        }
        let changed = single("other", "172.16.9.0/24", &["10.0.0.0/8"]);
        assert!(ensure(&changed).unwrap());
        assert_eq!(check(&other).unwrap(), State::Different, "its old rules are replaced");
        assert_eq!(check(&dual()).unwrap(), State::Installed);
    });
}

#[test]
fn owners_of_overlapping_and_of_the_same_pods_never_rewrite_each_other() {
    Scratch::new().run(|| {
        let all = [
            single("narrow", "10.1.0.0/24", &["10.9.0.0/16"]),
            single("wide", "10.1.0.0/16", &["10.8.0.0/16"]),
            Masquerade { owner: NODE.to_owned(), ..single("", "10.1.0.0/24", &[]) },
        ];
        for network in &all {
            assert!(ensure(network).unwrap());
        }
        for network in &all {
            assert_eq!(check(network).unwrap(), State::Installed, "{network:?}");
            assert!(!ensure(network).unwrap(), "{network:?}");
        }
    });
}

#[test]
fn ranges_are_told_and_removed_one_by_one() {
    Scratch::new().run(|| {
        assert_eq!(list().unwrap(), []);
        ensure(&dual()).unwrap();
        let (old, new) = (single("pods", "172.16.1.0/24", &[]), single("pods", "172.16.2.0/24", &[]));
        ensure(&old).unwrap();
        ensure(&new).unwrap();
        assert_eq!(check(&old).unwrap(), State::Installed, "another range of the same network stays");
        let told = list().unwrap();
        assert_eq!(told.len(), 4);
        assert!(told.iter().all(|range| range.whole), "{told:?}");
        let first = told.iter().find(|range| range.owner == "net=dual").unwrap();
        assert!(first.keep.contains(&"10.0.0.0/8".parse().unwrap()), "{first:?}");
        // What was told is enough to make it again.
        remove().unwrap();
        for range in told.clone() {
            let again = Masquerade { owner: range.owner, pod_cidrs: vec![range.pods], keep: range.keep };
            assert!(ensure(&again).unwrap());
        }
        let again = list().unwrap();
        assert!(again.len() == 4 && told.iter().all(|range| again.contains(range)), "{again:?}");

        assert!(remove_range("net=pods", &old.pod_cidrs[0]).unwrap());
        assert!(!remove_range("net=pods", &old.pod_cidrs[0]).unwrap());
        assert_eq!(check(&new).unwrap(), State::Installed);
        assert_eq!(check(&dual()).unwrap(), State::Installed);
        assert_eq!(list().unwrap().len(), 3);
    });
}

#[test]
fn a_lost_rule_of_either_kind_is_put_back_before_those_that_masquerade() {
    Scratch::new().run(|| {
        let other = single("other", "172.16.9.0/24", &[]);
        ensure(&dual()).unwrap();
        ensure(&other).unwrap();
        let rules = Conversation::open().unwrap().rules(Family::V4, TABLE).unwrap();
        let own: Vec<_> = rules.iter().filter(|rule| rule.comment.contains("net=other")).collect();
        assert_eq!(own.len(), 4, "{rules:?}");
        for index in 0..own.len() {
            let rules = Conversation::open().unwrap().rules(Family::V4, TABLE).unwrap();
            let lost = rules.iter().filter(|rule| rule.comment.contains("net=other")).nth(index).unwrap();
            let mut batch = Batch::new();
            batch.delete_rule(Family::V4, TABLE, &lost.chain, lost.handle);
            Conversation::open().unwrap().commit(batch, "lose").unwrap();
            assert_eq!(check(&other).unwrap(), State::Different, "{lost:?}");
            assert!(ensure(&other).unwrap());
            assert_eq!(check(&other).unwrap(), State::Installed);
            assert_eq!(check(&dual()).unwrap(), State::Installed);
        }
    });
}

#[test]
fn a_rule_of_nobody_is_noticed_and_removed() {
    Scratch::new().run(|| {
        ensure(&dual()).unwrap();
        let chain = Range { owner: dual().owner, pods: dual().pod_cidrs[0] }.chain();
        for (chain, comment) in
            [(BASE_CHAIN, "mine"), (&chain, "mine"), (BASE_CHAIN, "netd-masq 5d 5d 1/2 172.16.1.0/24")]
        {
            let mut batch = Batch::new();
            batch.add_rule(Family::V4, TABLE, chain, nft::Rule::new(comment.to_owned()).return_());
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
        "ip saddr 172.16.1.0/24 jump keep-",
        "ip daddr 10.0.0.0/8 accept",
        "ip daddr 192.168.7.9 accept",
        "ip daddr 224.0.0.0/4 accept",
        "ip saddr 172.16.1.0/24 masquerade fully-random",
        "ip6 saddr fd00:1::/64 jump keep-",
        "ip6 daddr ff00::/8 accept",
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
