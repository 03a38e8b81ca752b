//! The maps, opened by their pins and typed as `netd_ebpf_abi` has them.

use std::path::Path;

use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use netd_ebpf_abi::{MemberKey, NodeValue, Plain, ServiceKey, ServiceValue, SlotKey, SlotValue, map};

use crate::error::Error;

/// Every map of the object, for pinning.
pub(crate) const ALL: [&str; 8] = [
    map::SERVICES,
    map::SLOTS,
    map::MEMBERS,
    map::AFFINITY,
    map::STICKY,
    map::REVERSE,
    map::SOCKETS,
    map::NODE,
];

/// Maps that only the programs write; they outlive a rebuild of the others.
pub(crate) const REMEMBERED: [&str; 4] = [map::AFFINITY, map::STICKY, map::REVERSE, map::SOCKETS];

/// Carries a type of the abi into aya.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Raw<T>(T);

// SAFETY: `Plain` promises what `Pod` asks for: no padding, every bit pattern is a value.
unsafe impl<T: Plain> Pod for Raw<T> {}

/// A pinned hash map.
pub(crate) struct Table<K: Plain, V: Plain> {
    name: &'static str,
    capacity: u32,
    map: HashMap<MapData, Raw<K>, Raw<V>>,
}

impl<K: Plain, V: Plain> Table<K, V> {
    fn open(dir: &Path, name: &'static str) -> Result<Self, Error> {
        let data = open(dir, name)?;
        let capacity = data.info().map_err(failed("inspect", name))?.max_entries();
        let map = HashMap::try_from(Map::HashMap(data)).map_err(failed("understand", name))?;
        Ok(Self { name, capacity, map })
    }

    /// How many elements fit.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// All elements, in no order.
    pub(crate) fn entries(&self) -> Result<Vec<(K, V)>, Error> {
        self.map
            .iter()
            .map(|entry| entry.map(|(key, value)| (key.0, value.0)))
            .collect::<Result<_, _>>()
            .map_err(failed("read", self.name))
    }

    /// The value of a key, if there is one.
    pub(crate) fn value(&self, key: K) -> Result<Option<V>, Error> {
        match self.map.get(&Raw(key), 0) {
            Ok(value) => Ok(Some(value.0)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed("read", self.name)(error)),
        }
    }

    /// Writes an element, replacing it atomically if it is there.
    pub(crate) fn set(&mut self, key: K, value: V) -> Result<(), Error> {
        self.map.insert(Raw(key), Raw(value), 0).map_err(failed("write to", self.name))
    }

    /// Removes an element; one that is absent is no error.
    pub(crate) fn remove(&mut self, key: K) -> Result<(), Error> {
        match self.map.remove(&Raw(key)) {
            Ok(()) => Ok(()),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(failed("remove from", self.name)(error)),
        }
    }
}

/// The maps that netd writes.
pub(crate) struct Maps {
    pub services: Table<ServiceKey, ServiceValue>,
    pub slots: Table<SlotKey, SlotValue>,
    pub members: Table<MemberKey, u32>,
    node: Array<MapData, Raw<NodeValue>>,
}

impl Maps {
    /// Opens the maps pinned in a directory.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        let node =
            Array::try_from(Map::Array(open(dir, map::NODE)?)).map_err(failed("understand", map::NODE))?;
        Ok(Self {
            services: Table::open(dir, map::SERVICES)?,
            slots: Table::open(dir, map::SLOTS)?,
            members: Table::open(dir, map::MEMBERS)?,
            node,
        })
    }

    /// Tells the programs about the node.
    pub(crate) fn set_node(&mut self, value: NodeValue) -> Result<(), Error> {
        self.node.set(0, Raw(value), 0).map_err(failed("write to", map::NODE))
    }
}

/// Pins the maps of `names` from one directory in another too, those that are there.
pub(crate) fn share(names: &[&'static str], from: &Path, to: &Path) -> Result<(), Error> {
    for name in names {
        if !from.join(name).exists() {
            continue;
        }
        open(from, name)?.pin(to.join(name)).map_err(|error| Error::Bpf {
            action: format!("pin map {name} in {}", to.display()),
            source: std::io::Error::other(error),
        })?;
    }
    Ok(())
}

fn open(dir: &Path, name: &'static str) -> Result<MapData, Error> {
    MapData::from_pin(dir.join(name)).map_err(failed("open", name))
}

fn is_absent(error: &MapError) -> bool {
    if let MapError::SyscallError(error) = error {
        return error.io_error.raw_os_error() == Some(libc::ENOENT);
    }
    matches!(error, MapError::KeyNotFound)
}

fn failed(action: &'static str, map: &'static str) -> impl Fn(MapError) -> Error {
    move |source| Error::Map { action, map, source: Box::new(source) }
}
