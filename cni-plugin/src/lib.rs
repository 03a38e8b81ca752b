//! The CNI plugin `netd-cni`: an address for a pod, a veth pair to the bridge, masquerade for what leaves the cluster.
//!
//! It stands alone: no daemon, no other program, one netlink conversation a namespace. What the runtime says comes in
//! as a [`call::Call`] and a [`config::Config`]; what the kernel shall have is done by one module a verb.
//!
//! | module | what it does |
//! |---|---|
//! | [`call`], [`config`], [`ranges`] | what the runtime says: environment, configuration, the node's address ranges |
//! | [`version`], [`error`], [`result`] | the words of the CNI spec, in every version of it |
//! | [`naming`] | names and MAC addresses that follow from the attachment alone |
//! | [`node`] | the bridge, forwarding and masquerade: shared by all pods, ensured by each ADD |
//! | [`attachment`] | one pod's link, address and routes: wired, unwired |
//! | [`guard`], [`bandwidth`] | what a pod may not send, and how fast it may send and receive |
//! | [`delegate`] | another IPAM plugin in place of the ledger |
//! | [`import`] | leases that the host-local plugin gave before |
//! | [`ports`] | ports of the node that lead to a pod |
//! | [`leases`] | the ledger, with the leases that the kernel shows as its second memory |
//! | [`add`], [`del`], [`check`], [`gc`], [`status`] | the verbs |
//! | [`loopback`] | the plugin of that name, for runtimes that call one |
//! | [`plugin`] | one call from beginning to end |

#![forbid(unsafe_code)]

pub mod add;
pub mod attachment;
pub mod bandwidth;
pub mod call;
pub mod check;
pub mod config;
pub mod del;
pub mod delegate;
pub mod error;
pub mod gc;
pub mod guard;
pub mod import;
pub mod leases;
pub mod loopback;
pub mod naming;
pub mod node;
pub mod plugin;
pub mod ports;
pub mod ranges;
pub mod result;
pub mod status;
pub mod version;
