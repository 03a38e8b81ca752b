use netd_ebpf_abi::Address;
use netd_model::{Family, ObjectName, PoolId, PoolScope, Protocol, ServicePortName};

use super::*;

fn peer(last: u8) -> Peer {
    Peer { address: Address::v4(u32::from_ne_bytes([172, 16, 1, last])), port: 8080_u16.to_be(), reserved: 0 }
}

fn key(last: u8) -> ServiceKey {
    ServiceKey {
        address: Address::v4(u32::from_ne_bytes([10, 96, 0, last])),
        port: 80_u16.to_be(),
        protocol: 6,
        reserved: 0,
    }
}

fn pool(name: &str) -> PoolName {
    let port = ServicePortName {
        service: ObjectName::new("default", name),
        port: "".into(),
        protocol: Protocol::Tcp,
    };
    (Family::V4, PoolId { port, scope: PoolScope::Cluster })
}

/// Services 10.96.0.`n`, each with a pool of its own.
fn wanted(services: &[(u8, &[u8])]) -> Wanted {
    let mut wanted = Wanted::default();
    for (last, endpoints) in services {
        let name = pool(&format!("s{last}"));
        let side = WantedSide::Balance { pool: name.clone(), masquerade: false, affinity_seconds: 0 };
        wanted.services.insert(key(*last), [side.clone(), side]);
        wanted.pools.insert(name, endpoints.iter().map(|last| peer(*last)).collect());
    }
    wanted
}

/// The maps as plain collections: runs transactions the way the kernel does.
#[derive(Clone, Default)]
struct Kernel {
    services: BTreeMap<ServiceKey, ServiceValue>,
    slots: BTreeMap<SlotKey, SlotValue>,
    members: BTreeSet<MemberKey>,
}

/// One map write.
enum Write {
    Slot(SlotValue),
    Member(MemberKey),
    Service(ServiceValue),
    NoService(ServiceKey),
    NoMember(MemberKey),
}

impl Kernel {
    fn collect(&mut self, installed: &mut Installed) {
        for key in installed.garbage.drain(..) {
            self.slots.remove(&key);
        }
    }

    fn writes(transaction: &Transaction) -> Vec<Write> {
        let mut writes = Vec::new();
        writes.extend(transaction.add_slots.iter().copied().map(Write::Slot));
        writes.extend(transaction.add_members.iter().copied().map(Write::Member));
        writes.extend(transaction.set_services.iter().copied().map(Write::Service));
        writes.extend(transaction.remove_services.iter().copied().map(Write::NoService));
        writes.extend(transaction.remove_members.iter().copied().map(Write::NoMember));
        writes
    }

    fn run(&mut self, write: &Write) {
        match write {
            Write::Slot(value) => drop(self.slots.insert(value.key, *value)),
            Write::Member(key) => drop(self.members.insert(*key)),
            Write::Service(value) => drop(self.services.insert(value.key, *value)),
            Write::NoService(key) => drop(self.services.remove(key)),
            Write::NoMember(key) => drop(self.members.remove(key)),
        }
    }

    fn apply(&mut self, installed: &mut Installed, wanted: &Wanted) -> Transaction {
        self.collect(installed);
        let transaction = plan(installed, wanted);
        for write in Self::writes(&transaction) {
            self.run(&write);
        }
        *installed = transaction.result.clone();
        transaction
    }

    fn read_back(&self) -> Installed {
        Installed::read_back(
            self.services.iter().map(|(key, value)| (*key, *value)).collect(),
            self.slots.iter().map(|(key, value)| (*key, *value)).collect(),
            self.members.iter().copied().collect(),
        )
    }

    /// The endpoints a socket can reach through a service; fails if a slot that may be picked is missing.
    fn reach(&self, key: ServiceKey) -> Option<BTreeSet<Peer>> {
        let side = self.services.get(&key)?.sides[0];
        let slot = |index| {
            let key = SlotKey { pool: side.pool, generation: side.generation, index };
            self.slots.get(&key).expect("a service leads to slots that exist").endpoint
        };
        Some((0..side.count).map(slot).collect())
    }
}

fn peers(last: &[u8]) -> BTreeSet<Peer> {
    last.iter().map(|last| peer(*last)).collect()
}

#[test]
fn a_first_apply_writes_everything_and_a_second_nothing() {
    let (mut kernel, mut installed) = (Kernel::default(), Installed::default());
    let target = wanted(&[(1, &[1, 2]), (2, &[3])]);
    assert_eq!(kernel.apply(&mut installed, &target).len(), 3 + 3 + 2);
    assert_eq!(kernel.reach(key(1)), Some(peers(&[1, 2])));
    assert_eq!(kernel.reach(key(2)), Some(peers(&[3])));
    assert_eq!(kernel.apply(&mut installed, &target).len(), 0);
}

#[test]
fn a_changed_pool_flips_its_services_and_touches_no_other() {
    let (mut kernel, mut installed) = (Kernel::default(), Installed::default());
    kernel.apply(&mut installed, &wanted(&[(1, &[1, 2]), (2, &[3])]));
    let before = installed.clone();
    let transaction = kernel.apply(&mut installed, &wanted(&[(1, &[2, 4]), (2, &[3])]));
    assert_eq!(transaction.set_services.len(), 1);
    assert_eq!(transaction.add_slots.len(), 2);
    assert_eq!(transaction.add_members.len(), 1);
    assert_eq!(transaction.remove_members.len(), 1);
    assert_eq!(kernel.reach(key(1)), Some(peers(&[2, 4])));
    let side = |state: &Installed| state.services[&key(1)].sides[0];
    assert_eq!(side(&before).pool, side(&installed).pool, "affinity is kept by the number of the pool");
    assert!(side(&before).generation < side(&installed).generation);
}

#[test]
fn the_generation_before_is_freed_by_the_next_apply_only() {
    let (mut kernel, mut installed) = (Kernel::default(), Installed::default());
    kernel.apply(&mut installed, &wanted(&[(1, &[1, 2])]));
    kernel.apply(&mut installed, &wanted(&[(1, &[3])]));
    assert_eq!(kernel.slots.len(), 3);
    kernel.apply(&mut installed, &wanted(&[(1, &[3])]));
    assert_eq!(kernel.slots.len(), 1);
}

#[test]
fn a_removed_service_leaves_nothing_after_the_next_apply() {
    let (mut kernel, mut installed) = (Kernel::default(), Installed::default());
    kernel.apply(&mut installed, &wanted(&[(1, &[1, 2])]));
    kernel.apply(&mut installed, &wanted(&[]));
    assert!(kernel.services.is_empty());
    assert!(kernel.members.is_empty());
    kernel.apply(&mut installed, &wanted(&[]));
    assert!(kernel.slots.is_empty());
}

#[test]
fn a_restart_reads_back_and_has_nothing_to_write() {
    let (mut kernel, mut installed) = (Kernel::default(), Installed::default());
    let target = wanted(&[(1, &[1, 2]), (2, &[])]);
    kernel.apply(&mut installed, &target);
    let mut read = kernel.read_back();
    assert_eq!(kernel.apply(&mut read, &target).len(), 0);
    assert_eq!(read.services, installed.services);
}

#[test]
fn every_write_leaves_each_service_on_a_whole_generation() {
    let mut kernel = Kernel::default();
    let mut installed = Installed::default();
    kernel.apply(&mut installed, &wanted(&[(1, &[1, 2]), (2, &[3])]));
    let transaction = plan(&installed, &wanted(&[(1, &[2, 4]), (3, &[5])]));
    for write in Kernel::writes(&transaction) {
        kernel.run(&write);
        let reached = kernel.reach(key(1)).expect("the service stays");
        assert!(reached == peers(&[1, 2]) || reached == peers(&[2, 4]));
    }
}

#[test]
fn a_kill_after_any_write_is_repaired_by_the_next_start() {
    let before = wanted(&[(1, &[1, 2]), (2, &[3]), (4, &[6])]);
    let after = wanted(&[(1, &[2, 4]), (3, &[5]), (4, &[6, 7])]);
    let mut base = Kernel::default();
    let mut installed = Installed::default();
    base.apply(&mut installed, &before);
    let total = Kernel::writes(&plan(&installed, &after)).len();
    for survived in 0..=total {
        let mut kernel = base.clone();
        for write in Kernel::writes(&plan(&installed, &after)).iter().take(survived) {
            kernel.run(write);
        }
        let mut read = kernel.read_back();
        kernel.collect(&mut read);
        for last in [1, 4] {
            assert!(kernel.reach(key(last)).is_some(), "collecting garbage leaves what is in use");
        }
        kernel.apply(&mut read, &after);
        kernel.apply(&mut read, &after);
        assert_eq!(kernel.reach(key(1)), Some(peers(&[2, 4])), "after {survived} writes");
        assert_eq!(kernel.reach(key(2)), None);
        assert_eq!(kernel.reach(key(3)), Some(peers(&[5])));
        assert_eq!(kernel.reach(key(4)), Some(peers(&[6, 7])));
        assert_eq!(kernel.slots.len(), 5, "after {survived} writes");
        assert_eq!(kernel.members.len(), 5, "after {survived} writes");
    }
}

#[test]
fn two_services_that_share_a_pool_share_its_slots() {
    let (mut kernel, mut installed) = (Kernel::default(), Installed::default());
    let mut target = wanted(&[(1, &[1, 2])]);
    let sides = target.services[&key(1)].clone();
    target.services.insert(key(9), sides);
    kernel.apply(&mut installed, &target);
    assert_eq!(kernel.slots.len(), 2);
    let mut read = kernel.read_back();
    assert_eq!(kernel.apply(&mut read, &target).len(), 0);
}

#[test]
fn a_service_without_endpoints_refuses() {
    let (mut kernel, mut installed) = (Kernel::default(), Installed::default());
    kernel.apply(&mut installed, &wanted(&[(1, &[1])]));
    let mut target = Wanted::default();
    target.services.insert(key(1), [WantedSide::Reject, WantedSide::Reject]);
    kernel.apply(&mut installed, &target);
    assert_eq!(kernel.services[&key(1)].sides[0].action, action::REJECT);
    assert!(kernel.members.is_empty(), "unconnected sockets let go of the endpoint");
}

#[test]
fn room_counts_both_generations() {
    let (mut kernel, mut installed) = (Kernel::default(), Installed::default());
    kernel.apply(&mut installed, &wanted(&[(1, &[1, 2]), (2, &[3])]));
    let transaction = plan(&installed, &wanted(&[(1, &[4, 5]), (3, &[6])]));
    assert_eq!(Room::during(&installed, &transaction), Room { services: 3, slots: 6, members: 6 });
}
