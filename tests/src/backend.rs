//! The kernel backends of this host and what each can do.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use netd_bpf::EbpfDataplane;
use netd_dataplane::conformance::{Abilities, Feature};
use netd_dataplane::{Applied, ApplyError, Dataplane, Outcome, Trace, TraceError};
use netd_iptables::{Iptables, IptablesConfig, Variant};
use netd_kernel::exec::{Exec as _, SystemExec, find_program};
use netd_lab::{Node, Place as _};
use netd_model::{Flow, Origin, Scope, ServicePlan};

/// A backend under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// iptables over nf_tables.
    IptablesNft,
    /// iptables of old.
    IptablesLegacy,
    /// Socket load balancing.
    Ebpf,
    /// Socket load balancing, and iptables for what it does not see: what netd runs by default.
    EbpfAndIptables,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::IptablesNft, Self::IptablesLegacy, Self::Ebpf, Self::EbpfAndIptables];

    /// The kinds that this host can be expected to run. The first iptables variant and eBPF are never left
    /// out: where they do not work, their tests fail and say why.
    pub fn of_this_host() -> Vec<Self> {
        let has_legacy = find_program("iptables-legacy-restore").is_some();
        Self::ALL.into_iter().filter(|kind| *kind != Self::IptablesLegacy || has_legacy).collect()
    }

    /// Whether it leaves pins.
    pub const fn has_ebpf(self) -> bool {
        matches!(self, Self::Ebpf | Self::EbpfAndIptables)
    }

    /// Whether it leaves rules.
    pub const fn has_iptables(self) -> bool {
        !matches!(self, Self::Ebpf)
    }

    /// The short word in names of tests and directories.
    pub const fn word(self) -> &'static str {
        match self {
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Ebpf => "ebpf",
            Self::EbpfAndIptables => "ebpf-and-iptables",
        }
    }

    /// The kind with this word.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }

    /// Makes an instance that acts on the calling thread's network namespace.
    ///
    /// # Errors
    /// When the host cannot run it.
    pub fn open(self, home: &Home) -> Result<Box<dyn Dataplane>> {
        let iptables = |variant| -> Result<Box<dyn Dataplane>> {
            let config =
                IptablesConfig { variant, lock_wait: Duration::from_secs(20), ..IptablesConfig::default() };
            Ok(Box::new(Iptables::new(config, Arc::new(SystemExec))?))
        };
        match self {
            Self::IptablesNft => iptables(Variant::Nft),
            Self::IptablesLegacy => iptables(Variant::Legacy),
            Self::Ebpf => Ok(Box::new(ebpf(home))),
            Self::EbpfAndIptables => {
                Ok(Box::new(Pair { main: Box::new(ebpf(home)), beside: iptables(Variant::Nft)? }))
            }
        }
    }

    /// What it can do on this host, asked in the node's namespace.
    ///
    /// # Errors
    /// When the host cannot be asked.
    pub fn abilities(self, node: &Node) -> Result<Abilities> {
        match self {
            Self::IptablesNft | Self::IptablesLegacy => {
                let all = Abilities::all();
                let missing = if self.has_recent_match(node)? { None } else { Some(Feature::Affinity) };
                Ok(all.without(missing))
            }
            Self::Ebpf => Ok(netd_bpf::abilities()),
            // Each half has a source of its own for a pod that reaches itself, so sources are not compared.
            Self::EbpfAndIptables => Ok(Self::IptablesNft.abilities(node)?.blind_to([Feature::Masquerade])),
        }
    }

    /// The `iptables`-like command of this kind, or of the other family.
    ///
    /// # Errors
    /// When it is not installed, or this is no iptables.
    pub fn iptables_program(self, v6: bool, suffix: &str) -> Result<PathBuf> {
        let variant = match self {
            Self::IptablesNft | Self::EbpfAndIptables => "nft",
            Self::IptablesLegacy => "legacy",
            Self::Ebpf => bail!("eBPF has no iptables"),
        };
        let name = format!("{}-{variant}{suffix}", if v6 { "ip6tables" } else { "iptables" });
        find_program(&name).with_context(|| format!("{name} is not installed: install the package iptables"))
    }

    /// Whether a rule with `-m recent`, which affinity needs, can be made; asked of the kernel itself.
    fn has_recent_match(self, node: &Node) -> Result<bool> {
        let program = self.iptables_program(false, "-restore")?;
        let rules = b"*nat\n:ND-PROBE - [0:0]\n-A ND-PROBE -m recent --name nd-probe --set\nCOMMIT\n";
        let run =
            |args: &[&str], input: &[u8]| SystemExec.run(&program, args, input, Duration::from_secs(20));
        node.run(|| -> Result<bool> {
            let made = run(&["--noflush", "-w", "20"], rules)?.success();
            if made {
                run(&["--noflush", "-w", "20"], b"*nat\n-F ND-PROBE\n-X ND-PROBE\nCOMMIT\n")?;
            }
            Ok(made)
        })?
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

fn ebpf(home: &Home) -> EbpfDataplane {
    EbpfDataplane::new(netd_bpf::Config {
        cgroup_root: Some(home.cgroup.clone()),
        pin_dir: Some(home.pins.clone()),
    })
}

/// Two dataplanes with the same plan; a flow that the main one does not touch meets the one beside it.
struct Pair {
    main: Box<dyn Dataplane>,
    beside: Box<dyn Dataplane>,
}

impl Dataplane for Pair {
    fn name(&self) -> &'static str {
        self.main.name()
    }

    fn resync(&mut self) -> Result<(), ApplyError> {
        self.main.resync()?;
        self.beside.resync()
    }

    fn apply(&mut self, plan: &ServicePlan, scope: &Scope) -> Result<Applied, ApplyError> {
        let mut applied = self.main.apply(plan, scope)?;
        let beside = self.beside.apply(plan, scope)?;
        applied.changed += beside.changed;
        applied.refused.retain(|one| beside.refused.iter().any(|other| other.frontend == one.frontend));
        Ok(applied)
    }

    fn intact(&mut self) -> Result<bool, ApplyError> {
        Ok(self.main.intact()? && self.beside.intact()?)
    }

    fn cleanup(&mut self) -> Result<(), ApplyError> {
        self.main.cleanup().and(self.beside.cleanup())
    }

    fn trace(&self, flow: &Flow) -> Result<Trace, TraceError> {
        let main = self.main.trace(flow)?;
        let is_seen = flow.origin != Origin::Remote;
        if is_seen && main.outcome != Outcome::Pass { Ok(main) } else { self.beside.trace(flow) }
    }
}

/// Where a backend that needs it finds the node's cgroup and keeps its pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// The node's cgroup.
    pub cgroup: PathBuf,
    /// Directory for pins.
    pub pins: PathBuf,
}

impl Home {
    /// The home of a node's backend.
    pub fn of(node: &Node) -> Self {
        Self { cgroup: node.cgroup().to_owned(), pins: node.state_dir().join("bpf") }
    }

    /// The home at these paths.
    pub fn at(cgroup: &Path, pins: &Path) -> Self {
        Self { cgroup: cgroup.to_owned(), pins: pins.to_owned() }
    }
}
