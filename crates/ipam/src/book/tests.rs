use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use netd_kernel::conntrack::Transport;
use proptest::prelude::*;

use super::*;
use crate::lease::{Pod, PortMapping};
use crate::storage::{Memory, Storage};
use crate::store::{Mode, Refusal};

const WHOSE: (&str, &str) = ("pods", "b007");
const COOL: Duration = Duration::from_secs(30);

/// A disk that outlives the process, which is killed after so many bytes were written.
#[derive(Debug, Clone)]
struct Disk {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// Bytes that may still be written; `None` for as many as anybody wants.
    left: Arc<Mutex<Option<usize>>>,
    /// How long each write was.
    writes: Arc<Mutex<Vec<usize>>>,
}

impl Disk {
    fn with(bytes: Vec<u8>) -> Self {
        let shared = |left| Arc::new(Mutex::new(left));
        Self { bytes: Arc::new(Mutex::new(bytes)), left: shared(None), writes: Arc::default() }
    }

    fn new() -> Self {
        Self::with(build(&Snapshot::default(), &[], Path::new("test"), WHOSE).unwrap().0)
    }

    fn book(&self) -> Book {
        self.try_book().unwrap()
    }

    fn try_book(&self) -> Result<Book, String> {
        let path = PathBuf::from("test");
        match Store::open(Box::new(self.clone()), &path, WHOSE, Mode::Journaled) {
            Ok(store) => Book::of(store).map_err(|error| error.to_string()),
            Err(Refusal::Failed(error)) => Err(error.to_string()),
            Err(Refusal::Unfit(unfit)) => Err(format!("{unfit:?}")),
        }
    }

    fn copy(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }
}

impl Storage for Disk {
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        let mut all = self.bytes.lock().unwrap();
        let memory = Memory(std::mem::take(&mut *all));
        let read = memory.read_at(bytes, at);
        *all = memory.0;
        read
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut left = self.left.lock().unwrap();
        let count = left.map_or(bytes.len(), |left| left.min(bytes.len()));
        let mut all = self.bytes.lock().unwrap();
        let mut memory = Memory(std::mem::take(&mut *all));
        memory.write_at(&bytes[..count], at).unwrap();
        *all = memory.0;
        self.writes.lock().unwrap().push(bytes.len());
        if let Some(left) = left.as_mut() {
            *left -= count;
        }
        if count < bytes.len() { Err(io::Error::other("killed")) } else { Ok(()) }
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }
}

pub(crate) fn pools(subnets: &[&str]) -> Vec<Pool> {
    let range = |subnet: &&str| Range::new(subnet.parse().unwrap(), None, None, None).unwrap();
    subnets.iter().map(|subnet| Pool::new(vec![range(subnet)]).unwrap()).collect()
}

fn owner(name: &str) -> Owner {
    Owner { container: name.to_owned(), interface: "eth0".to_owned() }
}

fn when(seconds: u64) -> When {
    When { now: Duration::from_secs(seconds), cool_down: COOL }
}

fn take(book: &mut Book, name: &str, pools: &[Pool], now: u64) -> Result<Vec<IpAddr>> {
    assert_eq!(book.misfit(pools).unwrap(), None);
    Ok(book.allocate(&Request::of(&owner(name), None), pools, when(now))?.addresses)
}

fn free(book: &mut Book, name: &str, now: u64) -> Option<Lease> {
    book.release(&owner(name), Duration::from_secs(now)).unwrap()
}

#[test]
fn fresh_addresses_come_before_used_ones() {
    let pools = pools(&["10.0.0.0/29"]);
    let mut book = Disk::new().book();
    let first = take(&mut book, "a", &pools, 0).unwrap()[0];
    free(&mut book, "a", 0).unwrap();
    for name in ["b", "c", "d", "e"] {
        assert_ne!(take(&mut book, name, &pools, 1000).unwrap()[0], first);
    }
    assert_eq!(take(&mut book, "f", &pools, 1000).unwrap()[0], first);
    let full = take(&mut book, "g", &pools, 1000);
    assert!(matches!(full, Err(Error::Exhausted { leased: 5, cooling: 0, .. })));
    book.verify().unwrap();
}

#[test]
fn the_least_recently_released_address_is_next_and_only_after_the_cool_down() {
    let pools = pools(&["10.0.0.0/29"]);
    let mut book = Disk::new().book();
    let names = ["a", "b", "c", "d", "e"];
    let all: Vec<IpAddr> = names.iter().map(|name| take(&mut book, name, &pools, 0).unwrap()[0]).collect();
    free(&mut book, "d", 100).unwrap();
    free(&mut book, "b", 110).unwrap();
    let refused = take(&mut book, "x", &pools, 120).unwrap_err();
    assert!(matches!(refused, Error::Exhausted { cooling: 2, retry_in: Some(d), .. } if d.as_secs() == 10));
    assert_eq!(take(&mut book, "x", &pools, 130).unwrap()[0], all[3]);
    assert!(take(&mut book, "y", &pools, 139).is_err());
    assert_eq!(take(&mut book, "y", &pools, 140).unwrap()[0], all[1]);
    book.verify().unwrap();
}

#[test]
fn dual_stack_takes_both_or_none() {
    let both = pools(&["10.0.0.0/29", "fd00::/126"]);
    let disk = Disk::new();
    let mut book = disk.book();
    assert_eq!(take(&mut book, "a", &both, 0).unwrap().len(), 2);
    assert_eq!(take(&mut book, "b", &both, 0).unwrap().len(), 2);
    let before = disk.copy();
    assert!(take(&mut book, "c", &both, 0).is_err());
    assert_eq!(disk.copy(), before, "a refused change writes nothing");
    assert_eq!(book.used(&both[0]).unwrap(), Some(2));
    book.verify().unwrap();
}

#[test]
fn several_ranges_are_used_in_order() {
    let range = |subnet: &str| Range::new(subnet.parse().unwrap(), None, None, None).unwrap();
    let pools = [Pool::new(vec![range("10.0.0.0/30"), range("10.9.0.0/30")]).unwrap()];
    let mut book = Disk::new().book();
    assert_eq!(take(&mut book, "a", &pools, 0).unwrap()[0].to_string(), "10.0.0.2");
    assert_eq!(take(&mut book, "b", &pools, 0).unwrap()[0].to_string(), "10.9.0.2");
    assert!(take(&mut book, "c", &pools, 0).is_err());
}

#[test]
fn a_wanted_address_is_given_unless_it_is_in_use_or_of_no_pool() {
    let pools = pools(&["10.0.0.0/29", "fd00::/125"]);
    let mut book = Disk::new().book();
    let mut want = |name: &str, texts: &[&str]| {
        let wanted: Vec<IpAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
        let owner = owner(name);
        let request = Request { wanted: &wanted, ..Request::of(&owner, None) };
        book.allocate(&request, &pools, when(0)).map(|lease| lease.addresses)
    };
    let got = want("a", &["fd00::5"]).unwrap();
    assert_eq!(got, ["10.0.0.2".parse::<IpAddr>().unwrap(), "fd00::5".parse().unwrap()]);
    assert!(matches!(want("b", &["fd00::5"]), Err(Error::InUse { owner, .. }) if owner.container == "a"));
    for outside in ["10.0.0.1", "10.0.0.7", "10.9.9.9"] {
        assert!(matches!(want("b", &[outside]), Err(Error::Outside { .. })), "{outside}");
    }
    assert!(matches!(want("b", &["10.0.0.3", "10.0.0.4"]), Err(Error::Outside { .. })), "two of one pool");
    free(&mut book, "a", 0).unwrap();
    let (owner, wanted) = (owner("b"), ["fd00::5".parse().unwrap()]);
    let request = Request { wanted: &wanted, ..Request::of(&owner, None) };
    assert!(book.allocate(&request, &pools, when(0)).is_ok(), "no cool-down for a wish");
    book.verify().unwrap();
}

#[test]
fn a_lease_keeps_pod_ports_and_bridge() {
    let disk = Disk::new();
    let pod = Pod { namespace: "default".into(), name: "web".into(), uid: "u".into() };
    let host_ip = Some("192.0.2.1".parse().unwrap());
    let port = |n| PortMapping { transport: Transport::Udp, host_port: n, container_port: 53, host_ip };
    let ports: Vec<PortMapping> = (1..200).map(port).collect();
    let owner = owner(&"c".repeat(1024));
    let request =
        Request { pod: Some(&pod), ports: &ports, bridge: Some("netd0"), ..Request::of(&owner, None) };
    let lease = disk.book().allocate(&request, &pools(&["10.0.0.0/24"]), when(7)).unwrap();
    assert_eq!((&lease.ports, lease.bridge.as_deref()), (&ports, Some("netd0")));
    let mut book = disk.book();
    let record = book.lease_of(&owner).unwrap().unwrap();
    assert_eq!((record.lease, record.taken), (lease.clone(), Duration::from_secs(7)));
    book.verify().unwrap();
    assert_eq!(book.release(&owner, Duration::ZERO).unwrap(), Some(lease));
    book.verify().unwrap();
}

/// As many as a node can have, and again in another order: nothing is lost, and nothing grows without end.
#[test]
fn thousands_come_and_go() {
    let pools = pools(&["10.0.0.0/21", "fd00::/64"]);
    let bytes = build(&Snapshot::default(), &[], Path::new("test"), WHOSE).unwrap().0;
    let store = Store::open(Box::new(Memory(bytes)), Path::new("test"), WHOSE, Mode::Journaled).unwrap();
    let mut book = Book::of(store).unwrap();
    let mut size = 0;
    const LEASES: u32 = 1500;
    for turn in 0..3_u64 {
        for name in 0..LEASES {
            take(&mut book, &format!("{turn}-{name}"), &pools, 1000 * turn).unwrap();
        }
        book.verify().unwrap();
        assert_eq!(book.len(), LEASES);
        for name in 0..LEASES {
            free(&mut book, &format!("{turn}-{}", name * 7 % LEASES), 1000 * turn + 1).unwrap();
        }
        book.verify().unwrap();
        let blocks = book.store.root.blocks;
        assert!(turn < 2 || blocks < size + size / 2, "{blocks} blocks after {size}");
        size = size.max(blocks);
    }
}

#[test]
fn ranges_that_reach_into_each_other_need_a_new_file() {
    let path = Path::new("test");
    let mut book = Disk::new().book();
    let all = pools(&["10.0.0.0/24"]);
    take(&mut book, "a", &all, 0).unwrap();
    take(&mut book, "b", &all, 0).unwrap();
    free(&mut book, "b", 1).unwrap();
    assert_eq!(book.misfit(&pools(&["10.0.1.0/24"])).unwrap(), None, "beside it is room");
    assert_eq!(book.misfit(&pools(&["10.0.0.0/23"])).unwrap(), None, "and around it");
    let ip = |text: &str| Some(text.parse().unwrap());
    let part = Range::new("10.0.0.0/24".parse().unwrap(), ip("10.0.0.3"), ip("10.0.0.9"), None).unwrap();
    let part = [Pool::new(vec![part]).unwrap()];
    assert_eq!(book.used(&part[0]).unwrap(), None, "to be counted");
    let spans = book.misfit(&part).unwrap().unwrap();
    let (bytes, count) = build(&book.snapshot().unwrap(), &spans, path, WHOSE).unwrap();
    assert_eq!(count, 1);
    let mut book = Disk::with(bytes).book();
    book.verify().unwrap();
    assert_eq!((book.misfit(&part).unwrap(), book.misfit(&all).unwrap()), (None, None), "both are served");
    assert_eq!((book.used(&part[0]).unwrap(), book.used(&all[0]).unwrap()), (Some(0), Some(1)));
    assert_eq!(take(&mut book, "c", &part, 2).unwrap()[0].to_string(), "10.0.0.4", "the other one cools");
    book.verify().unwrap();
}

/// What is to be after a kill: what was, or what was asked for.
type Model = BTreeMap<String, Vec<IpAddr>>;

fn content(book: &mut Book) -> Model {
    let snapshot = book.snapshot().unwrap();
    snapshot.leases.into_iter().map(|kept| (kept.lease.owner.container, kept.lease.addresses)).collect()
}

/// The law of the kill: whatever byte is the last that is written, all of the change is done or nothing.
#[test]
fn a_kill_at_every_byte_of_every_change_leaves_all_or_nothing() {
    let pools = pools(&["10.0.0.0/29", "fd00::/125"]);
    let disk = Disk::new();
    let steps: [(&str, bool); 9] = [
        ("a", true),
        ("b", true),
        ("c", true),
        ("b", false),
        ("d", true),
        ("e", true),
        ("a", false),
        ("f", true),
        ("c", false),
    ];
    for (turn, (name, takes)) in steps.into_iter().enumerate() {
        let now = 100 * turn as u64;
        let step = |book: &mut Book| match takes {
            true => take(book, name, &pools, now).map(drop),
            false => book.release(&owner(name), Duration::from_secs(now)).map(drop),
        };
        let before = disk.copy();
        let old = content(&mut disk.book());
        disk.writes.lock().unwrap().clear();
        step(&mut disk.book()).unwrap();
        let (after, new) = (disk.copy(), content(&mut disk.book()));
        let total: usize = disk.writes.lock().unwrap().iter().sum();
        let mut seen = HashMap::from([(true, 0), (false, 0)]);
        // Every byte of the first change; of the others, which are alike, some.
        for count in (0..total).filter(|count| turn == 0 || count % 29 == turn) {
            let crashed = Disk::with(before.clone());
            *crashed.left.lock().unwrap() = Some(count);
            let answer = step(&mut crashed.book());
            *crashed.left.lock().unwrap() = None;
            let mut book = crashed.book();
            let found = content(&mut book);
            assert!(found == old || found == new, "{name} {takes}, killed after {count} of {total} bytes");
            assert!(answer.is_err() || found == new, "what was answered is lost, {count} of {total} bytes");
            *seen.entry(found == new).or_default() += 1;
            if turn > 0 || count % 37 == 0 {
                book.verify().unwrap();
            }
        }
        assert!(seen.values().all(|count| *count > 0), "{seen:?}");
        *disk.bytes.lock().unwrap() = after;
    }
}

/// A kill while a kill is repaired.
#[test]
fn a_repair_may_be_killed_as_well() {
    let pools = pools(&["10.0.0.0/29"]);
    let disk = Disk::new();
    take(&mut disk.book(), "a", &pools, 0).unwrap();
    let before = disk.copy();
    disk.writes.lock().unwrap().clear();
    take(&mut disk.book(), "b", &pools, 0).unwrap();
    let journal = disk.writes.lock().unwrap()[0];
    let new = content(&mut disk.book());
    for first in (journal..journal + 2000).step_by(197) {
        for second in (0..1500).step_by(113) {
            let crashed = Disk::with(before.clone());
            *crashed.left.lock().unwrap() = Some(first);
            let _ = take(&mut crashed.book(), "b", &pools, 0);
            *crashed.left.lock().unwrap() = Some(second);
            let _ = crashed.try_book();
            *crashed.left.lock().unwrap() = None;
            let mut book = crashed.book();
            assert_eq!(content(&mut book), new);
            book.verify().unwrap();
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Allocate(u8),
    Want(u8, u8),
    Release(u8),
    Reopen,
    Kill(u16),
    Wait(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..14_u8).prop_map(Step::Allocate),
        2 => ((0..14_u8), (0..10_u8)).prop_map(|(who, which)| Step::Want(who, which)),
        5 => (0..14_u8).prop_map(Step::Release),
        1 => Just(Step::Reopen),
        2 => (0..6000_u16).prop_map(Step::Kill),
        2 => (0..60_u8).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..120)
}

/// What the ledger should do, written down plainly.
#[derive(Debug, Clone, Default)]
struct Oracle {
    leases: BTreeMap<u8, Vec<IpAddr>>,
    /// In the order of the releases.
    released: Vec<(IpAddr, u64)>,
}

impl Oracle {
    fn holds(&self, address: IpAddr) -> bool {
        self.leases.values().any(|addresses| addresses.contains(&address))
    }

    /// Whether an address could be given now, and none that comes before it.
    fn may_give(&self, address: IpAddr, pool: &Pool, now: u64) -> bool {
        let released = self.released.iter().find(|(other, _)| *other == address);
        let fresh_left = pool.capacity()
            > self.leases.values().flatten().filter(|a| pool.range_of(**a).is_some()).count() as u128
                + self.released.iter().filter(|(a, _)| pool.range_of(*a).is_some()).count() as u128;
        let oldest = self.released.iter().find(|(other, _)| pool.range_of(*other).is_some());
        match released {
            None => !self.holds(address),
            Some((_, at)) => !fresh_left && oldest == released && at + COOL.as_secs() <= now,
        }
    }

    fn take(&mut self, who: u8, addresses: &[IpAddr]) {
        self.released.retain(|(address, _)| !addresses.contains(address));
        self.leases.insert(who, addresses.to_vec());
    }

    fn release(&mut self, who: u8, now: u64) {
        let addresses = self.leases.remove(&who).into_iter().flatten();
        self.released.extend(addresses.map(|address| (address, now)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Leases, order of reuse and cool-down equal the oracle's, however often the file is closed or the process killed.
    #[test]
    fn the_book_equals_the_oracle(steps in steps()) {
        let pools = pools(&["10.0.0.0/29", "fd00::/125"]);
        let disk = Disk::new();
        let (mut now, mut oracle, mut killing) = (1_u64, Oracle::default(), None);
        let mut book = disk.book();
        for step in steps {
            let before = oracle.clone();
            match step {
                Step::Wait(seconds) => now += u64::from(seconds),
                Step::Reopen => book = disk.book(),
                Step::Kill(bytes) => killing = Some(usize::from(bytes)),
                Step::Allocate(who) | Step::Want(who, _) => {
                    *disk.left.lock().unwrap() = killing;
                    let wanted: Vec<IpAddr> = match step {
                        Step::Want(_, which) => vec![IpAddr::from([10, 0, 0, which])],
                        Step::Allocate(_) | Step::Release(_) | Step::Reopen | Step::Kill(_) | Step::Wait(_) => vec![],
                    };
                    let name = owner(&who.to_string());
                    let request = Request { wanted: &wanted, ..Request::of(&name, None) };
                    match book.allocate(&request, &pools, when(now)) {
                        Ok(lease) => {
                            prop_assert!(!oracle.leases.contains_key(&who));
                            for (address, pool) in lease.addresses.iter().zip(&pools) {
                                let right = if wanted.contains(address) { !oracle.holds(*address) } else {
                                    oracle.may_give(*address, pool, now)
                                };
                                prop_assert!(right, "{address} at {now}: {oracle:?}");
                            }
                            oracle.take(who, &lease.addresses);
                        }
                        Err(Error::Exists { .. }) => prop_assert!(oracle.leases.contains_key(&who)),
                        Err(Error::InUse { address, .. }) => prop_assert!(oracle.holds(address)),
                        Err(Error::Outside { .. }) => prop_assert!(!wanted.is_empty()),
                        Err(Error::Exhausted { .. }) => {
                            let can = |pool: &Pool| pool.ranges().iter().flat_map(Range::spans).any(|span| {
                                (span.first..=span.last).any(|n| oracle.may_give(to_address(n, span.v4), pool, now))
                            });
                            prop_assert!(!pools.iter().all(can), "{oracle:?}");
                        }
                        Err(Error::Io { .. }) => prop_assert!(killing.is_some()),
                        Err(other) => prop_assert!(false, "{other}"),
                    }
                }
                Step::Release(who) => {
                    *disk.left.lock().unwrap() = killing;
                    match book.release(&owner(&who.to_string()), Duration::from_secs(now)) {
                        Ok(lease) => {
                            let held = oracle.leases.get(&who).cloned();
                            prop_assert_eq!(lease.map(|lease| lease.addresses), held);
                            oracle.release(who, now);
                        }
                        Err(Error::Io { .. }) => prop_assert!(killing.is_some()),
                        Err(other) => prop_assert!(false, "{other}"),
                    }
                }
            }
            let left = disk.left.lock().unwrap().take();
            if left == Some(0) {
                killing = None;
                book = disk.book();
                let found = content(&mut book);
                let said = |oracle: &Oracle| -> Model {
                    oracle.leases.iter().map(|(who, addresses)| (who.to_string(), addresses.clone())).collect()
                };
                // A change that was begun and not answered may be done; the oracle learns of it.
                if found != said(&oracle) {
                    match step {
                        Step::Allocate(who) | Step::Want(who, _) => {
                            let addresses = found.get(&who.to_string()).cloned().unwrap_or_default();
                            oracle = before;
                            oracle.take(who, &addresses);
                        }
                        Step::Release(who) => { oracle = before; oracle.release(who, now); }
                        Step::Reopen | Step::Kill(_) | Step::Wait(_) => {}
                    }
                }
                prop_assert_eq!(found, said(&oracle));
            } else if left.is_some() {
                killing = left;
            }
        }
        disk.book().verify().unwrap();
        let released: Vec<IpAddr> = disk.book().snapshot().unwrap().released.iter().map(|r| r.address).collect();
        let expected: Vec<IpAddr> = oracle.released.iter().map(|(address, _)| *address).collect();
        prop_assert_eq!(released, expected);
    }

    /// Whatever stands behind right checksums, nothing panics or hangs.
    #[test]
    fn nonsense_behind_right_checksums_is_survived(
        words in prop::collection::vec((any::<usize>(), prop_oneof![Just(u32::MAX), Just(1 << 31), 0..40_u32, any::<u32>()]), 1..8),
    ) {
        let disk = Disk::with(build(&Snapshot::default(), &[], Path::new("test"), (crate::fuzz::NETWORK, crate::fuzz::BOOT)).unwrap().0);
        let whose = (crate::fuzz::NETWORK, crate::fuzz::BOOT);
        let store = Store::open(Box::new(disk.clone()), Path::new("test"), whose, Mode::Journaled).unwrap();
        let mut book = Book::of(store).unwrap();
        for name in ["c", "d", "e"] {
            take(&mut book, name, &pools(&["10.0.0.0/24"]), 0).unwrap();
        }
        free(&mut book, "d", 1).unwrap();
        let mut bytes = disk.copy();
        for (at, word) in words {
            // The root, and the blocks there are.
            let places = [512..776, 66_560..66_560 + 264 * 9];
            let place = places[at % 2].clone();
            let at = place.start + at / 2 % (place.len() / 4) * 4;
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        crate::fuzz::open(&bytes, true);
    }

    /// Whatever bits are turned, no address that is in use is given, and nothing panics.
    #[test]
    fn turned_bits_never_give_a_live_address(flips in prop::collection::vec((any::<usize>(), 0..8_u8), 1..12), cut in any::<usize>()) {
        let pools = pools(&["10.0.0.0/28"]);
        let disk = Disk::new();
        let mut book = disk.book();
        for name in ["a", "b", "c", "d", "e"] {
            take(&mut book, name, &pools, 0).unwrap();
        }
        free(&mut book, "c", 1).unwrap();
        let live: Vec<IpAddr> = content(&mut book).into_values().flatten().collect();
        let whole = disk.copy();
        let mut bytes = whole.clone();
        for (at, bit) in flips {
            // Where something is written, not the empty rest of the journal.
            let at = at % 12_000;
            let at = if at < 5_000 { at } else { 66_560 + (at - 5_000) % (whole.len() - 66_560) };
            bytes[at] ^= 1 << bit;
        }
        if cut % 3 == 0 {
            bytes.truncate(cut % whole.len());
        }
        if let Ok(mut book) = Disk::with(bytes).try_book() {
            for name in ["x", "y", "z"] {
                if let Ok(got) = book.allocate(&Request::of(&owner(name), None), &pools, when(1000)) {
                    prop_assert!(!live.contains(&got.addresses[0]), "{got:?}");
                }
            }
        }
    }
}
