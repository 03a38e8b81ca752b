//! The programs: the object that is built in, and loading it.

use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, ProgramFd};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel, include_bytes_aligned};
use netd_ebpf_abi::map;

use crate::error::Error;
use crate::maps;

/// The object of `ebpf/prebuilt`; the build script has checked that it is of these sources.
static OBJECT: &[u8] = include_bytes_aligned!(env!("NETD_EBPF_OBJECT"));

/// A hook: where it is pinned and which program serves it.
pub(crate) struct Hook {
    /// Name of the attach point, and of the pinned link.
    pub name: &'static str,
    /// Name of the program in the object.
    pub program: &'static str,
}

/// Every hook. Replies first: a flow that is translated finds its way back from the first moment on.
pub(crate) const HOOKS: [Hook; 8] = [
    Hook { name: "getpeername4", program: "netd_getpeer4" },
    Hook { name: "getpeername6", program: "netd_getpeer6" },
    Hook { name: "recvmsg4", program: "netd_recvmsg4" },
    Hook { name: "recvmsg6", program: "netd_recvmsg6" },
    Hook { name: "sendmsg4", program: "netd_sendmsg4" },
    Hook { name: "sendmsg6", program: "netd_sendmsg6" },
    Hook { name: "connect4", program: "netd_connect4" },
    Hook { name: "connect6", program: "netd_connect6" },
];

/// How many elements the maps are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub services: u32,
    pub slots: u32,
    pub members: u32,
    /// Each of the maps in which the programs remember flows.
    pub remembered: u32,
}

/// Programs in the kernel, attached to nothing.
pub(crate) struct Programs(Ebpf);

impl Programs {
    /// Loads the programs with the maps pinned in `dir`; maps that are not there yet are made and pinned.
    pub(crate) fn load(dir: &Path, sizes: &Sizes) -> Result<Self, Error> {
        let mut loader = loader(sizes);
        for name in maps::ALL {
            loader.map_pin_path(name, dir.join(name));
        }
        Self::verify(loader.load(OBJECT))
    }

    /// Loads the programs with maps of their own, which vanish with them.
    pub(crate) fn load_unpinned(sizes: &Sizes) -> Result<Self, Error> {
        Self::verify(loader(sizes).load(OBJECT))
    }

    fn verify(loaded: Result<Ebpf, aya::EbpfError>) -> Result<Self, Error> {
        let mut programs = Self(loaded.map_err(|error| Error::Load(Box::new(error)))?);
        for hook in &HOOKS {
            programs.program(hook)?.load().map_err(failed("load", hook))?;
        }
        Ok(programs)
    }

    /// The descriptor of a hook's program.
    pub(crate) fn fd(&mut self, hook: &Hook) -> Result<&ProgramFd, Error> {
        self.program(hook)?.fd().map_err(failed("load", hook))
    }

    /// Attaches a hook's program to a cgroup; it stays as long as the link is held or pinned.
    pub(crate) fn attach(&mut self, hook: &Hook, cgroup: &std::fs::File) -> Result<FdLink, Error> {
        let program = self.program(hook)?;
        // A link always shares the cgroup with others; the flag to allow that is not one of links.
        let id = program.attach(cgroup, CgroupAttachMode::Single).map_err(failed("attach", hook))?;
        let link = program.take_link(id).map_err(failed("attach", hook))?;
        FdLink::try_from(link).map_err(|error| Error::Bpf {
            action: format!("attach eBPF program {} by a link", hook.program),
            source: std::io::Error::other(error),
        })
    }

    fn program(&mut self, hook: &Hook) -> Result<&mut CgroupSockAddr, Error> {
        let program = self.0.program_mut(hook.program).ok_or(Error::NoProgram(hook.program))?;
        program.try_into().map_err(failed("find", hook))
    }
}

fn loader<'a>(sizes: &Sizes) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    // The log takes time and thousands of lines, so it is made only for those who look for it.
    let level = if tracing::enabled!(tracing::Level::DEBUG) {
        VerifierLogLevel::DEBUG
    } else {
        VerifierLogLevel::DISABLE
    };
    // The programs read no kernel structures, so nothing is relocated against the kernel's BTF.
    loader
        .btf(None)
        .verifier_log_level(level)
        .map_max_entries(map::SERVICES, sizes.services)
        .map_max_entries(map::SLOTS, sizes.slots)
        .map_max_entries(map::MEMBERS, sizes.members)
        .map_max_entries(map::AFFINITY, sizes.remembered)
        .map_max_entries(map::STICKY, sizes.remembered)
        .map_max_entries(map::REVERSE, sizes.remembered);
    loader
}

fn failed(action: &'static str, hook: &Hook) -> impl Fn(aya::programs::ProgramError) -> Error + use<> {
    let program = hook.program;
    move |source| Error::Program { action, program, source: Box::new(source) }
}
