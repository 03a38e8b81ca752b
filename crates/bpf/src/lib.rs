//! The eBPF service dataplane: Services become endpoints when a socket connects or sends.
//!
//! - [`EbpfDataplane`]: the [`Dataplane`](netd_dataplane::Dataplane)
//! - [`Config`]: which cgroup it serves and where it pins
//! - [`probe()`]: whether this host can run it, with the reason if not
//! - [`LIMITS`], [`abilities()`]: what it does not do, for people and for the conformance suite
//!
//! Inside, from pure to impure: `compile` (plan to wanted map contents), `transaction` (wanted and installed to
//! map writes), `maps`, `pins`, `links` and `programs` (kernel objects), `sys` (bpf(2) calls that aya does not
//! have), `live` (all of it for one pin directory), `dataplane` and `trace`.
//!
//! # What is in the kernel
//!
//! ```text
//! <pin dir>/links/<hook>               one bpf_link a hook; the link holds its program
//! <pin dir>/v1-<layout>-<n>/<map>      the maps; <layout> is a hash of netd-ebpf-abi, <n> counts rebuilds
//! <pin dir>/v1-<layout>-<n>_new/       a rebuild that is not finished; removed by the next start
//! ```
//!
//! # Restarted with no memory
//!
//! Links, programs and maps stay while netd is down, so running traffic notices nothing. A start takes the
//! newest finished maps of its own layout, reads them back, writes the difference, and puts the programs it
//! carries under the pinned links, each by one atomic `BPF_LINK_UPDATE`. Maps of another layout (a newer or
//! older netd) serve until the new ones are filled and attached. A rebuild for more room goes the same way.

mod abilities;
mod compile;
mod config;
mod dataplane;
mod error;
mod links;
mod live;
mod maps;
mod pins;
mod probe;
mod programs;
mod sys;
mod trace;
mod transaction;

pub use abilities::{LIMITS, abilities};
pub use config::Config;
pub use dataplane::EbpfDataplane;
pub use error::Error;
pub use probe::{Support, Unsupported, probe};
