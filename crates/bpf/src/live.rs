//! The kernel objects of one pin directory, and what is known to be in them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use netd_ebpf_abi::{MemberKey, NodeValue, ServiceKey, SlotKey, SlotValue};

use crate::compile::Wanted;
use crate::config::Config;
use crate::error::Error;
use crate::links::{self, Cgroup};
use crate::maps::{self, Maps};
use crate::pins::Pins;
use crate::programs::{Programs, Sizes};
use crate::sys;
use crate::transaction::{self, Installed, Room, Transaction};

/// Elements that the maps are made for at least.
const LEAST: Sizes = Sizes { services: 16_384, slots: 65_536, members: 65_536, remembered: 32_768 };

/// One pin directory, locked.
pub(crate) struct Live {
    pins: Pins,
    cgroup_root: PathBuf,
    /// The maps in use; `None` until the first apply when there was nothing to adopt.
    maps: Option<Maps>,
    dir: Option<PathBuf>,
    installed: Installed,
    /// True once this process has put its own programs behind the links.
    attached: bool,
}

impl Live {
    /// Opens what is there and reads it back. Changes nothing but that the pin directory exists.
    pub(crate) fn open(config: &Config) -> Result<Self, Error> {
        let cgroup_root = config.cgroup_root()?;
        let pins = Pins::open(&config.pin_dir())?;
        let (dir, maps) = match pins.current()? {
            Some(dir) => adopt(dir),
            None => (None, None),
        };
        let installed = maps.as_ref().map(read_back).transpose()?.unwrap_or_default();
        tracing::debug!(
            adopted = ?dir,
            services = installed.services.len(),
            garbage = installed.garbage.len(),
            "read back the eBPF maps"
        );
        Ok(Self { pins, cgroup_root, maps, dir, installed, attached: false })
    }

    /// The maps in use.
    pub(crate) fn maps(&self) -> Option<&Maps> {
        self.maps.as_ref()
    }

    /// Makes the kernel equal `wanted`; returns the number of map elements written or removed.
    pub(crate) fn apply(&mut self, wanted: &Wanted) -> Result<usize, Error> {
        let cgroup = Cgroup::open(&self.cgroup_root)?;
        let changed = match self.write_in_place(wanted)? {
            Some(changed) => changed,
            None => self.rebuild(wanted)?,
        };
        self.attach(&cgroup)?;
        Ok(changed)
    }

    /// Writes to the maps in use; `None` when there are none or they have no room.
    fn write_in_place(&mut self, wanted: &Wanted) -> Result<Option<usize>, Error> {
        let Some(maps) = &mut self.maps else { return Ok(None) };
        let removed = collect_garbage(maps, &mut self.installed)?;
        let transaction = transaction::plan(&self.installed, wanted);
        let room = Room::during(&self.installed, &transaction);
        if room.services > maps.services.capacity()
            || room.slots > maps.slots.capacity()
            || room.members > maps.members.capacity()
        {
            tracing::info!(?room, "the eBPF maps are too small");
            return Ok(None);
        }
        write(maps, &self.installed, &transaction)?;
        let changed = transaction.len() + removed;
        self.installed = transaction.result;
        Ok(Some(changed))
    }

    /// Fills maps of their own size beside those in use. The programs move over in [`Live::attach`].
    fn rebuild(&mut self, wanted: &Wanted) -> Result<usize, Error> {
        let empty = self.installed.emptied();
        let transaction = transaction::plan(&empty, wanted);
        let sizes = sizes(&Room::during(&empty, &transaction))?;
        let unfinished = self.pins.begin()?;
        if let Some(dir) = &self.dir {
            maps::share(&maps::REMEMBERED, dir, &unfinished)?;
        }
        // Loading makes and pins the maps, and shows that the kernel accepts the programs with them.
        drop(Programs::load(&unfinished, &sizes)?);
        let mut maps = Maps::open(&unfinished)?;
        write(&mut maps, &empty, &transaction)?;
        let dir = self.pins.finish(&unfinished)?;
        tracing::info!(dir = %dir.display(), ?sizes, "made eBPF maps");
        let changed = transaction.len();
        (self.maps, self.dir, self.installed, self.attached) =
            (Some(maps), Some(dir), transaction.result, false);
        Ok(changed)
    }

    /// Puts this version's programs behind the links unless they are there.
    fn attach(&mut self, cgroup: &Cgroup) -> Result<(), Error> {
        let (Some(maps), Some(dir)) = (&mut self.maps, &self.dir) else { return Ok(()) };
        let links = self.pins.links()?;
        if self.attached && links::are_attached(&links, cgroup) {
            return Ok(());
        }
        let host_netns_cookie =
            sys::netns_cookie().map_err(Error::bpf("read the cookie of the network namespace"))?;
        maps.set_node(NodeValue { host_netns_cookie })?;
        let mut programs = Programs::load(dir, &LEAST)?;
        links::put(&mut programs, &links, cgroup)?;
        self.pins.remove_others(dir)?;
        self.attached = true;
        tracing::info!(cgroup = %self.cgroup_root.display(), maps = %dir.display(), "attached the eBPF programs");
        Ok(())
    }
}

/// Opens the maps of an earlier process. Pins that somebody damaged are made anew by the next apply; until
/// then the programs in the kernel go on with the maps they hold.
fn adopt(dir: PathBuf) -> (Option<PathBuf>, Option<Maps>) {
    match Maps::open(&dir) {
        Ok(maps) => (Some(dir), Some(maps)),
        Err(error) => {
            tracing::warn!(dir = %dir.display(), %error, "cannot adopt the pinned eBPF maps and makes new ones");
            (None, None)
        }
    }
}

/// Reads back the maps that are pinned in a directory.
fn read_back(maps: &Maps) -> Result<Installed, Error> {
    let members = maps.members.entries()?.into_iter().map(|(key, _)| key).collect();
    Ok(Installed::read_back(maps.services.entries()?, maps.slots.entries()?, members))
}

fn collect_garbage(maps: &mut Maps, installed: &mut Installed) -> Result<usize, Error> {
    let mut removed = 0;
    while let Some(key) = installed.garbage.last() {
        maps.slots.remove(*key)?;
        installed.garbage.pop();
        removed += 1;
    }
    Ok(removed)
}

/// Room for twice what is needed now, so that growth is rare.
fn sizes(room: &Room) -> Result<Sizes, Error> {
    let size = |need: usize, least: u32, map: &str| {
        u32::try_from(need.saturating_mul(2))
            .ok()
            .and_then(u32::checked_next_power_of_two)
            .map(|size| size.max(least))
            .ok_or_else(|| Error::Bpf {
                action: format!("make map {map} for {need} elements"),
                source: std::io::Error::from_raw_os_error(libc::E2BIG),
            })
    };
    use netd_ebpf_abi::map;
    Ok(Sizes {
        services: size(room.services, LEAST.services, map::SERVICES)?,
        slots: size(room.slots, LEAST.slots, map::SLOTS)?,
        members: size(room.members, LEAST.members, map::MEMBERS)?,
        remembered: LEAST.remembered,
    })
}

/// Runs a transaction; takes back what was written if a write fails.
fn write(maps: &mut Maps, installed: &Installed, transaction: &Transaction) -> Result<(), Error> {
    let Err(failure) = forward(maps, transaction) else { return Ok(()) };
    match backward(maps, installed, transaction) {
        Ok(()) => Err(failure),
        Err(rollback) => Err(Error::Rollback { failure: Box::new(failure), rollback: Box::new(rollback) }),
    }
}

fn forward(maps: &mut Maps, transaction: &Transaction) -> Result<(), Error> {
    for slot in &transaction.add_slots {
        maps.slots.set(slot.key, *slot)?;
    }
    for member in &transaction.add_members {
        maps.members.set(*member, 1)?;
    }
    for service in &transaction.set_services {
        maps.services.set(service.key, *service)?;
    }
    for service in &transaction.remove_services {
        maps.services.remove(*service)?;
    }
    for member in &transaction.remove_members {
        maps.members.remove(*member)?;
    }
    Ok(())
}

/// Restores what was installed, whatever part of the transaction was run.
fn backward(maps: &mut Maps, installed: &Installed, transaction: &Transaction) -> Result<(), Error> {
    let strays: BTreeSet<&MemberKey> = installed.strays.iter().collect();
    for member in transaction.remove_members.iter().filter(|member| !strays.contains(member)) {
        maps.members.set(*member, 1)?;
    }
    let removed = transaction.remove_services.iter();
    let set = transaction.set_services.iter().map(|value| &value.key);
    for key in removed.chain(set) {
        restore_service(maps, installed, *key)?;
    }
    for member in &transaction.add_members {
        maps.members.remove(*member)?;
    }
    for SlotValue { key, .. } in &transaction.add_slots {
        maps.slots.remove(*key)?;
    }
    Ok(())
}

fn restore_service(maps: &mut Maps, installed: &Installed, key: ServiceKey) -> Result<(), Error> {
    match installed.services.get(&key) {
        Some(value) => maps.services.set(key, *value),
        None => maps.services.remove(key),
    }
}

/// The slots of one side of a service, for a trace.
pub(crate) fn slot(maps: &Maps, pool: u32, generation: u32, index: u32) -> Result<Option<SlotValue>, Error> {
    maps.slots.value(SlotKey { pool, generation, index })
}

/// The maps in use in a pin directory that another process may hold.
pub(crate) fn observe(dir: &Path) -> Result<Option<Maps>, Error> {
    crate::pins::current(dir)?.as_deref().map(Maps::open).transpose()
}
