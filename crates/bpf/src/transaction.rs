//! From what is installed and what is wanted to the map writes between them. Pure.
//!
//! The order of the writes keeps every destination served at every moment: endpoints under a new generation,
//! then the services that point there, each by one write, then what nobody points to any more. Slots of the
//! generation before stay until the next apply, for a program may still be reading them.

use std::collections::{BTreeMap, BTreeSet};

use netd_ebpf_abi::{MemberKey, Peer, ServiceKey, ServiceValue, Side, SlotKey, SlotValue, action};

use crate::compile::{PoolName, Wanted, WantedSide};

/// A pool in the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InstalledPool {
    /// Generation of its slots.
    pub generation: u32,
    /// Endpoints in the order of the slots.
    pub endpoints: Vec<Peer>,
}

/// What the maps hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Installed {
    pub services: BTreeMap<ServiceKey, ServiceValue>,
    /// By number.
    pub pools: BTreeMap<u32, InstalledPool>,
    /// Numbers of the pools that this process has named.
    pub names: BTreeMap<PoolName, u32>,
    /// Slots that no service leads to.
    pub garbage: Vec<SlotKey>,
    /// Slots of a generation that some service still has though its pool is in a newer one: a kill came
    /// between two flips. The next apply turns them into garbage.
    pub stale: Vec<SlotKey>,
    /// Members of no pool.
    pub strays: Vec<MemberKey>,
    /// Above every number in use.
    pub next_pool: u32,
    /// Above every generation in use.
    pub next_generation: u32,
}

/// The writes, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Transaction {
    pub add_slots: Vec<SlotValue>,
    pub add_members: Vec<MemberKey>,
    pub set_services: Vec<ServiceValue>,
    pub remove_services: Vec<ServiceKey>,
    pub remove_members: Vec<MemberKey>,
    /// What is installed afterwards.
    pub result: Installed,
}

impl Transaction {
    /// Number of map elements written or removed.
    pub(crate) fn len(&self) -> usize {
        self.add_slots.len()
            + self.add_members.len()
            + self.set_services.len()
            + self.remove_services.len()
            + self.remove_members.len()
    }
}

/// Elements that each map must be able to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub services: usize,
    pub slots: usize,
    pub members: usize,
}

impl Room {
    /// What the maps hold at most while `transaction` runs on `installed`, whose garbage is gone.
    pub(crate) fn during(installed: &Installed, transaction: &Transaction) -> Self {
        let endpoints: usize = installed.pools.values().map(|pool| pool.endpoints.len()).sum();
        let added_services = transaction
            .set_services
            .iter()
            .filter(|value| !installed.services.contains_key(&value.key))
            .count();
        Self {
            services: installed.services.len() + added_services,
            slots: endpoints + installed.stale.len() + transaction.add_slots.len(),
            members: endpoints + installed.strays.len() + transaction.add_members.len(),
        }
    }
}

impl Installed {
    /// What the maps say, from their elements in any order.
    pub(crate) fn read_back(
        services: Vec<(ServiceKey, ServiceValue)>,
        slots: Vec<(SlotKey, SlotValue)>,
        members: Vec<MemberKey>,
    ) -> Self {
        let members: BTreeSet<MemberKey> = members.into_iter().collect();
        let slots: BTreeMap<SlotKey, Peer> =
            slots.into_iter().map(|(key, value)| (key, value.endpoint)).collect();
        let services: BTreeMap<ServiceKey, ServiceValue> = services.into_iter().collect();
        let mut pools: BTreeMap<u32, InstalledPool> = BTreeMap::new();
        for side in services.values().flat_map(|value| value.sides) {
            // After a kill between two flips, services may disagree on the generation: the newest counts, the
            // others differ from what is wanted and are written again.
            let is_newer = pools.get(&side.pool).is_none_or(|pool| pool.generation < side.generation);
            if side.action == action::BALANCE
                && is_newer
                && let Some(endpoints) = complete_generation(&side, &slots, &members)
            {
                pools.insert(side.pool, InstalledPool { generation: side.generation, endpoints });
            }
        }
        let is_current = |key: &&SlotKey| {
            pools
                .get(&key.pool)
                .is_some_and(|pool| pool.generation == key.generation && key.index < count(&pool.endpoints))
        };
        let referred: BTreeSet<(u32, u32)> = services
            .values()
            .flat_map(|value| value.sides)
            .map(|side| (side.pool, side.generation))
            .collect();
        let is_member =
            |key: &MemberKey| pools.get(&key.pool).is_some_and(|pool| pool.endpoints.contains(&key.endpoint));
        let (stale, garbage) = slots
            .keys()
            .filter(|key| !is_current(key))
            .partition(|key| referred.contains(&(key.pool, key.generation)));
        let strays = members.iter().filter(|key| !is_member(key)).copied().collect();
        let sides = || services.values().flat_map(|value| value.sides);
        let top_pool = sides().map(|side| side.pool).chain(slots.keys().map(|key| key.pool)).max();
        let top_generation =
            sides().map(|side| side.generation).chain(slots.keys().map(|key| key.generation)).max();
        Self {
            pools,
            names: BTreeMap::new(),
            garbage,
            stale,
            strays,
            next_pool: next(top_pool.unwrap_or(0)),
            next_generation: next(top_generation.unwrap_or(0)),
            services,
        }
    }

    /// The same numbers in maps that hold nothing yet.
    pub(crate) fn emptied(&self) -> Self {
        Self {
            services: BTreeMap::new(),
            pools: BTreeMap::new(),
            garbage: Vec::new(),
            stale: Vec::new(),
            strays: Vec::new(),
            names: self.names.clone(),
            next_pool: self.next_pool,
            next_generation: self.next_generation,
        }
    }
}

/// The endpoints of a side's generation, if every one of them is there.
fn complete_generation(
    side: &Side,
    slots: &BTreeMap<SlotKey, Peer>,
    members: &BTreeSet<MemberKey>,
) -> Option<Vec<Peer>> {
    let endpoints: Vec<Peer> = (0..side.count)
        .map_while(|index| {
            slots.get(&SlotKey { pool: side.pool, generation: side.generation, index }).copied()
        })
        .collect();
    let are_members =
        endpoints.iter().all(|peer| members.contains(&MemberKey { pool: side.pool, endpoint: *peer }));
    (endpoints.len() == side.count as usize && are_members).then_some(endpoints)
}

/// The next number; 0 is never one, so that a zeroed value names nothing.
fn next(number: u32) -> u32 {
    number.checked_add(1).unwrap_or(1)
}

/// Says which writes turn `installed` into `wanted`. O(n log n).
pub(crate) fn plan(installed: &Installed, wanted: &Wanted) -> Transaction {
    let mut transaction = Transaction {
        remove_members: installed.strays.clone(),
        result: Installed {
            names: name_pools(installed, wanted),
            next_pool: installed.next_pool,
            next_generation: installed.next_generation,
            garbage: installed.stale.clone(),
            ..Installed::default()
        },
        ..Transaction::default()
    };
    for (name, endpoints) in &wanted.pools {
        set_pool(&mut transaction, installed, name, endpoints);
    }
    for (number, pool) in &installed.pools {
        if !transaction.result.pools.contains_key(number) {
            transaction.remove_members.extend(members(*number, &pool.endpoints));
            transaction.result.garbage.extend(slot_keys(*number, pool));
        }
    }
    for (key, sides) in &wanted.services {
        let value = ServiceValue { key: *key, sides: [0, 1].map(|at| side(&transaction.result, &sides[at])) };
        if installed.services.get(key) != Some(&value) {
            transaction.set_services.push(value);
        }
        transaction.result.services.insert(*key, value);
    }
    transaction.remove_services =
        installed.services.keys().filter(|key| !wanted.services.contains_key(key)).copied().collect();
    transaction
}

/// Gives every wanted pool the number it has; those without one get theirs in [`set_pool`].
///
/// A process that has just started knows no names: it takes the number from the first service that leads to
/// the pool now and led to one before.
fn name_pools(installed: &Installed, wanted: &Wanted) -> BTreeMap<PoolName, u32> {
    let mut names: BTreeMap<PoolName, u32> = installed
        .names
        .iter()
        .filter(|(name, _)| wanted.pools.contains_key(*name))
        .map(|(name, number)| (name.clone(), *number))
        .collect();
    let mut taken: BTreeSet<u32> = names.values().copied().collect();
    for (key, sides) in &wanted.services {
        let Some(value) = installed.services.get(key) else { continue };
        for (wanted_side, side) in sides.iter().zip(&value.sides) {
            if let WantedSide::Balance { pool, .. } = wanted_side
                && side.action == action::BALANCE
                && !names.contains_key(pool)
                && taken.insert(side.pool)
            {
                names.insert(pool.clone(), side.pool);
            }
        }
    }
    names
}

fn set_pool(transaction: &mut Transaction, installed: &Installed, name: &PoolName, endpoints: &[Peer]) {
    let result = &mut transaction.result;
    let number = *result.names.entry(name.clone()).or_insert_with(|| {
        let number = result.next_pool.max(1);
        result.next_pool = next(number);
        number
    });
    let before = installed.pools.get(&number);
    if let Some(before) = before
        && before.endpoints == endpoints
    {
        result.pools.insert(number, before.clone());
        return;
    }
    let generation = result.next_generation.max(1);
    result.next_generation = next(generation);
    let pool = InstalledPool { generation, endpoints: endpoints.to_vec() };
    transaction.add_slots.extend(
        slot_keys(number, &pool).zip(endpoints).map(|(key, endpoint)| SlotValue { key, endpoint: *endpoint }),
    );
    let new: BTreeSet<MemberKey> = members(number, endpoints).collect();
    let old: BTreeSet<MemberKey> =
        before.map_or_else(BTreeSet::new, |old| members(number, &old.endpoints).collect());
    transaction.add_members.extend(new.difference(&old));
    transaction.remove_members.extend(old.difference(&new));
    // A stray that is wanted now stays.
    transaction.remove_members.retain(|member| !new.contains(member));
    if let Some(before) = before {
        result.garbage.extend(slot_keys(number, before));
    }
    result.pools.insert(number, pool);
}

fn members(pool: u32, endpoints: &[Peer]) -> impl Iterator<Item = MemberKey> {
    endpoints.iter().map(move |endpoint| MemberKey { pool, endpoint: *endpoint })
}

fn slot_keys(pool: u32, installed: &InstalledPool) -> impl Iterator<Item = SlotKey> + use<> {
    let generation = installed.generation;
    (0..count(&installed.endpoints)).map(move |index| SlotKey { pool, generation, index })
}

/// The number of endpoints; a map cannot hold more than fit into a `u32`.
fn count(endpoints: &[Peer]) -> u32 {
    u32::try_from(endpoints.len()).unwrap_or(u32::MAX)
}

fn side(result: &Installed, wanted: &WantedSide) -> Side {
    let reject = Side { action: action::REJECT, ..Side::default() };
    match wanted {
        WantedSide::Reject => reject,
        WantedSide::Balance { pool, masquerade, affinity_seconds } => {
            let installed =
                result.names.get(pool).and_then(|number| Some((*number, result.pools.get(number)?)));
            installed.map_or(reject, |(number, pool)| Side {
                action: action::BALANCE,
                masquerade: u8::from(*masquerade),
                reserved: 0,
                pool: number,
                generation: pool.generation,
                count: count(&pool.endpoints),
                affinity_seconds: *affinity_seconds,
            })
        }
    }
}

#[cfg(test)]
mod tests;
