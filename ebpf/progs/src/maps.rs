//! The maps. The loader overrides the sizes written here.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, SkStorage};
use aya_ebpf::macros::btf_map;
use netd_ebpf_abi::{
    AffinityKey, AffinityValue, FlowKey, MemberKey, NodeValue, Peer, ServiceKey, ServiceValue, SlotKey,
    SlotValue, SocketValue,
};

const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "netd_services")]
pub static SERVICES: HashMap<ServiceKey, ServiceValue, 65536, ON_DEMAND> = HashMap::new();

#[btf_map(name = "netd_slots")]
pub static SLOTS: HashMap<SlotKey, SlotValue, 262144, ON_DEMAND> = HashMap::new();

#[btf_map(name = "netd_members")]
pub static MEMBERS: HashMap<MemberKey, u32, 262144, ON_DEMAND> = HashMap::new();

#[btf_map(name = "netd_affinity")]
pub static AFFINITY: LruHashMap<AffinityKey, AffinityValue, 32768> = LruHashMap::new();

#[btf_map(name = "netd_sticky")]
pub static STICKY: LruHashMap<FlowKey, Peer, 32768> = LruHashMap::new();

#[btf_map(name = "netd_reverse")]
pub static REVERSE: LruHashMap<FlowKey, Peer, 32768> = LruHashMap::new();

#[btf_map(name = "netd_sockets")]
pub static SOCKETS: SkStorage<SocketValue> = SkStorage::new();

#[btf_map(name = "netd_node")]
pub static NODE: Array<NodeValue, 1> = Array::new();
