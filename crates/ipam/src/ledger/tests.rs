use std::collections::{HashMap, HashSet};
use std::convert::Infallible;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::range::Range;

const BOOT: &str = "b007";

fn pool(subnet: &str) -> Pool {
    Pool::new(vec![Range::new(subnet.parse().unwrap(), None, None, None).unwrap()]).unwrap()
}

fn owner(name: &str) -> Owner {
    Owner { container: name.to_owned(), interface: "eth0".to_owned() }
}

fn options(dir: &Path, seconds: u64) -> Options<'_> {
    let now = Moment { boot: BOOT.to_owned(), uptime: Duration::from_secs(seconds) };
    Options { directory: dir, network: "pods", cool_down: Duration::from_secs(30), now }
}

fn open(dir: &Path, seconds: u64) -> (Ledger, Opened) {
    open_with(dir, seconds, vec![])
}

fn open_with(dir: &Path, seconds: u64, live: Vec<Lease>) -> (Ledger, Opened) {
    Ledger::open(options(dir, seconds), || Ok::<_, Infallible>(live)).unwrap()
}

fn written(dir: &TempDir) -> PathBuf {
    dir.path().join("pods.ledger")
}

#[test]
fn a_lease_survives_reopening_and_is_read_with_its_pod() {
    let dir = TempDir::new().unwrap();
    let pod = Pod { namespace: "default".into(), name: "web-0".into(), uid: "u1".into() };
    let both = [pool("10.0.0.0/24"), pool("fd00::/64")];
    let lease = open(dir.path(), 1).0.allocate(&owner("a"), Some(&pod), &both).unwrap();
    assert_eq!(open(dir.path(), 2).0.lease_of(&owner("a")), Some(&lease));
    let leases = Ledger::read_at(&written(&dir), BOOT).unwrap();
    assert_eq!(leases.pod_at("10.0.0.2".parse().unwrap()), Some(&pod));
    assert_eq!(leases.pod_at("fd00::2".parse().unwrap()), Some(&pod));
    assert_eq!(leases.len(), 1);
}

#[test]
fn the_same_owner_gets_no_second_lease() {
    let dir = TempDir::new().unwrap();
    let pools = [pool("10.0.0.0/24")];
    let (mut ledger, _) = open(dir.path(), 1);
    ledger.allocate(&owner("a"), None, &pools).unwrap();
    assert!(matches!(ledger.allocate(&owner("a"), None, &pools), Err(Error::Exists { .. })));
    let other = Owner { container: "a".into(), interface: "net1".into() };
    assert!(ledger.allocate(&other, None, &pools).is_ok());
}

#[test]
fn a_late_release_frees_nothing_of_the_next_owner() {
    let dir = TempDir::new().unwrap();
    let pools = [pool("10.0.0.0/30")];
    let first = open(dir.path(), 1).0.allocate(&owner("old"), None, &pools).unwrap();
    assert!(open(dir.path(), 2).0.release(&owner("old")).unwrap().is_some());
    let second = open(dir.path(), 100).0.allocate(&owner("new"), None, &pools).unwrap();
    assert_eq!(first.addresses, second.addresses);
    assert_eq!(open(dir.path(), 101).0.release(&owner("old")).unwrap(), None);
    assert_eq!(open(dir.path(), 102).0.lease_of(&owner("new")), Some(&second));
}

#[test]
fn leases_of_an_earlier_boot_are_void() {
    let dir = TempDir::new().unwrap();
    let pools = [pool("10.0.0.0/30")];
    open(dir.path(), 1000).0.allocate(&owner("a"), None, &pools).unwrap();
    let now = Moment { boot: "another".to_owned(), uptime: Duration::from_secs(3) };
    let options = Options { now, ..options(dir.path(), 0) };
    let (mut ledger, opened) = Ledger::open(options, || Ok::<_, Infallible>(vec![])).unwrap();
    assert!(opened.voided);
    assert!(ledger.allocate(&owner("b"), None, &pools).is_ok());
    assert!(
        Ledger::read_at(&written(&dir), BOOT).unwrap().is_empty(),
        "read as if the machine had booted again"
    );
}

#[test]
fn a_newer_ledger_is_left_alone() {
    let dir = TempDir::new().unwrap();
    drop(open(dir.path(), 1));
    let text = fs::read_to_string(written(&dir)).unwrap();
    let json = r#"{"format":2,"network":"pods","boot":"b007"}"#;
    let sum = &format::header("pods", BOOT);
    let newer = text.replace(sum, &format!("{:08x} {json}\n", crc(json)));
    fs::write(written(&dir), &newer).unwrap();
    let refused = Ledger::open(options(dir.path(), 2), || Ok::<_, Infallible>(vec![])).unwrap_err();
    assert!(matches!(refused, Error::Newer { found: 2, .. }));
    assert_eq!(fs::read_to_string(written(&dir)).unwrap(), newer);
}

fn crc(text: &str) -> u32 {
    let line = text.as_bytes();
    !line.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xEDB8_8320 } else { c >> 1 })
    })
}

/// The law of the damaged ledger: whatever byte it is cut at, or which byte is turned, no live address is handed out.
#[test]
fn a_ledger_damaged_at_any_byte_never_hands_out_a_live_address() {
    let dir = TempDir::new().unwrap();
    let pools = [pool("10.0.0.0/28")];
    let mut live = Vec::new();
    for name in ["a", "b", "c", "d"] {
        live.push(open(dir.path(), 1).0.allocate(&owner(name), None, &pools).unwrap());
    }
    open(dir.path(), 2).0.release(&owner("b")).unwrap();
    live.retain(|lease| lease.owner != owner("b"));
    let whole = fs::read(written(&dir)).unwrap();
    for at in 0..whole.len() {
        let mut turned = whole.clone();
        turned[at] ^= 0x10;
        for bytes in [&whole[..at], turned.as_slice()] {
            fs::write(written(&dir), bytes).unwrap();
            let (mut ledger, opened) = open_with(dir.path(), 100, live.clone());
            assert!(opened.damaged.is_some() || opened.voided, "damage at byte {at} was not noticed");
            assert_eq!(opened.rebuilt, live.len());
            let got = ledger.allocate(&owner("new"), None, &pools).unwrap().addresses;
            assert!(live.iter().all(|lease| lease.addresses != got), "{got:?} is live (byte {at})");
            if let Some((kept, reason)) = opened.damaged {
                assert_eq!(fs::read(&kept).unwrap(), bytes, "the damaged file is kept as it was");
                assert!(!reason.is_empty());
            }
        }
    }
}

#[test]
fn a_torn_last_record_is_cut_off_without_losing_another() {
    let dir = TempDir::new().unwrap();
    let pools = [pool("10.0.0.0/28")];
    open(dir.path(), 1).0.allocate(&owner("a"), None, &pools).unwrap();
    let whole = fs::read(written(&dir)).unwrap();
    let record = format::take(
        &Lease { owner: owner("b"), pod: None, addresses: vec!["10.0.0.3".parse().unwrap()] },
        Duration::ZERO,
    );
    for length in 1..record.len() {
        let torn = [whole.as_slice(), &record.as_bytes()[..length]].concat();
        fs::write(written(&dir), torn).unwrap();
        let (mut ledger, opened) = open(dir.path(), 2);
        assert_eq!(opened, Opened::default());
        assert!(ledger.lease_of(&owner("a")).is_some() && ledger.lease_of(&owner("b")).is_none());
        ledger.allocate(&owner("c"), None, &pools).unwrap();
        drop(ledger);
        assert_eq!(open(dir.path(), 3).0.leases().count(), 2);
    }
}

#[test]
fn a_record_written_but_not_committed_counts() {
    let dir = TempDir::new().unwrap();
    open(dir.path(), 1).0.allocate(&owner("a"), None, &[pool("10.0.0.0/28")]).unwrap();
    let mut bytes = fs::read(written(&dir)).unwrap();
    let lease = Lease { owner: owner("b"), pod: None, addresses: vec!["10.0.0.3".parse().unwrap()] };
    bytes.extend(format::take(&lease, Duration::ZERO).into_bytes());
    fs::write(written(&dir), bytes).unwrap();
    assert_eq!(open(dir.path(), 2).0.lease_of(&owner("b")), Some(&lease));
}

#[test]
fn a_long_history_is_rewritten_and_keeps_leases_and_order() {
    let dir = TempDir::new().unwrap();
    let pools = [pool("10.0.0.0/29")];
    open(dir.path(), 1).0.allocate(&owner("stays"), None, &pools).unwrap();
    let mut longest = 0;
    let mut last = Vec::new();
    for turn in 0..600_u64 {
        let (mut ledger, _) = open(dir.path(), 100 * turn + 100);
        last.push(ledger.allocate(&owner("comes"), None, &pools).unwrap().addresses);
        ledger.release(&owner("comes")).unwrap();
        drop(ledger);
        longest = longest.max(fs::metadata(written(&dir)).unwrap().len());
    }
    assert!(longest < 100_000, "the ledger grew to {longest} bytes");
    for four in last.windows(4) {
        assert_eq!(
            four.iter().collect::<HashSet<_>>().len(),
            4,
            "the least recently used address comes next"
        );
    }
    assert!(open(dir.path(), 1_000_000).0.lease_of(&owner("stays")).is_some());
}

#[test]
fn an_allocation_at_65_536_leases_is_quick() {
    let dir = TempDir::new().unwrap();
    let pools = [pool("10.0.0.0/15")];
    let (mut ledger, _) = open(dir.path(), 1);
    let range = pools[0].ranges()[0];
    let leases = range.addresses_after(None).take(65_536).enumerate();
    for (turn, address) in leases {
        ledger.book.take(Lease {
            owner: owner(&format!("{turn:064x}")),
            pod: None,
            addresses: vec![address],
        });
    }
    ledger.rewrite().unwrap();
    drop(ledger);
    let start = SystemTime::now();
    let (mut ledger, _) = open(dir.path(), 2);
    ledger.allocate(&owner("one more"), None, &pools).unwrap();
    println!("one allocation with 65536 leases: {:?}", start.elapsed().unwrap());
    assert!(start.elapsed().unwrap() < Duration::from_secs(5));
}

/// How long calls take with `count` leases of pods and as many releases: the quickest allocation and look-up of five.
fn cost(count: usize) -> [Duration; 2] {
    let dir = TempDir::new().unwrap();
    let pools = [pool("10.0.0.0/14")];
    let (mut ledger, _) = open(dir.path(), 1);
    let addresses: Vec<IpAddr> = pools[0].ranges()[0].addresses_after(None).take(2 * count).collect();
    for (turn, address) in addresses.iter().enumerate() {
        let pod = Pod {
            namespace: "default".into(),
            name: format!("web-7d4b9c6f5d-{turn:05x}"),
            uid: format!("0b1e5a52-7c1f-4c3e-9d55-{turn:012x}"),
        };
        ledger.book.take(Lease {
            owner: owner(&format!("{turn:064x}")),
            pod: Some(pod),
            addresses: vec![*address],
        });
    }
    for address in addresses.iter().take(count) {
        ledger.book.free(*address, Duration::from_secs(1)).unwrap();
    }
    ledger.rewrite().unwrap();
    drop(ledger);
    let last = owner(&format!("{:064x}", 2 * count - 1));
    let mut took = [Duration::MAX; 2];
    for turn in 0..5 {
        let start = SystemTime::now();
        open(dir.path(), 2).0.allocate(&owner(&format!("one more {turn}")), None, &pools).unwrap();
        took[0] = took[0].min(start.elapsed().unwrap());
        let start = SystemTime::now();
        open(dir.path(), 2).0.lease_of(&last).unwrap();
        took[1] = took[1].min(start.elapsed().unwrap());
    }
    let size = fs::metadata(written(&dir)).unwrap().len();
    println!(
        "{count} leases and {count} releases, {size} bytes: allocate {:?}, look up {:?}",
        took[0], took[1]
    );
    took
}

/// `cargo test --release -p netd-ipam quick -- --nocapture` shows the figures of docs/cni.md.
#[test]
fn a_call_is_quick_at_256_and_at_65_536_leases_of_pods() {
    for count in [256, 65_536] {
        assert!(cost(count).iter().all(|took| *took < Duration::from_secs(5)));
    }
}

#[test]
fn a_rewrite_keeps_since_when_a_lease_is_held() {
    let dir = TempDir::new().unwrap();
    let pools = [pool("10.0.0.0/24")];
    let address = open(dir.path(), 7).0.allocate(&owner("a"), None, &pools).unwrap().addresses[0];
    open(dir.path(), 8).0.rewrite().unwrap();
    let (ledger, _) = open(dir.path(), 10);
    let (lease, held) = ledger.holder(address).unwrap();
    assert_eq!((lease.owner.clone(), held), (owner("a"), Some(Duration::from_secs(3))));
    let contents = Ledger::inspect_at(&written(&dir), BOOT).unwrap();
    assert_eq!(contents.leases(Duration::from_secs(9)).next().unwrap().1, Some(Duration::from_secs(2)));
    assert_eq!(contents.occupancy(&pools[0], Duration::from_secs(9), Duration::from_secs(30)).leased, 1);
}

#[derive(Debug, Clone)]
enum Step {
    Allocate(u8),
    Release(u8),
    Reopen,
    Tear(u8),
    Wait(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (0..12_u8).prop_map(Step::Allocate),
        4 => (0..12_u8).prop_map(Step::Release),
        1 => Just(Step::Reopen),
        1 => any::<u8>().prop_map(Step::Tear),
        1 => (0..60_u8).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Leases equal a plain map, no address has two owners, none comes back before its cool-down, however often the
    /// ledger is closed, opened or torn.
    #[test]
    fn the_ledger_equals_a_plain_map(steps in steps()) {
        let dir = TempDir::new().unwrap();
        let pools = [pool("10.0.0.0/29"), pool("fd00::/125")];
        let (mut now, mut model) = (1_u64, HashMap::<u8, Lease>::new());
        let mut released = HashMap::<IpAddr, u64>::new();
        let mut ledger = Some(open(dir.path(), now).0);
        for step in steps {
            match step {
                Step::Wait(seconds) => { ledger = None; now += u64::from(seconds); }
                Step::Reopen => ledger = None,
                Step::Tear(extra) => {
                    ledger = None;
                    let mut bytes = fs::read(written(&dir)).unwrap();
                    bytes.extend(vec![b'x'; usize::from(extra)]);
                    fs::write(written(&dir), bytes).unwrap();
                }
                Step::Allocate(who) => {
                    let ledger = ledger.get_or_insert_with(|| open(dir.path(), now).0);
                    match ledger.allocate(&owner(&who.to_string()), None, &pools) {
                        Ok(lease) => {
                            prop_assert!(!model.contains_key(&who));
                            for address in &lease.addresses {
                                prop_assert!(model.values().all(|other| !other.addresses.contains(address)));
                                prop_assert!(released.get(address).is_none_or(|at| at + 30 <= now));
                            }
                            model.insert(who, lease);
                        }
                        Err(Error::Exists { .. }) => prop_assert!(model.contains_key(&who)),
                        Err(Error::Exhausted { .. }) => {}
                        Err(other) => prop_assert!(false, "{other}"),
                    }
                }
                Step::Release(who) => {
                    let ledger = ledger.get_or_insert_with(|| open(dir.path(), now).0);
                    let freed = ledger.release(&owner(&who.to_string())).unwrap();
                    prop_assert_eq!(&freed, &model.remove(&who));
                    released.extend(freed.into_iter().flat_map(|lease| lease.addresses).map(|a| (a, now)));
                }
            }
        }
        drop(ledger);
        let read = Ledger::read_at(&written(&dir), BOOT).unwrap();
        prop_assert_eq!(read.len(), model.len());
        prop_assert!(read.iter().all(|lease| model.values().any(|other| other == lease)));
    }
}
