//! Which implementation of iptables this host uses.
//!
//! A host can have two, each with rules of its own: "nft" (iptables 1.8 over nf_tables) and "legacy". Rules
//! in both are in force, so a second one in use confuses people and other tools; the choice follows
//! those who were there first, as Kubernetes' `iptables-wrappers` does.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use netd_dataplane::ApplyError;
use netd_kernel::exec::{Exec, find_program};
use netd_model::Family;
use tracing::{debug, info};

use crate::config::IptablesConfig;
use crate::names;
use crate::tool::{Tool, Version};

/// Chains that kubelet keeps in the variant it uses (KEP-3178), and before 1.25.
const KUBELET_CHAINS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

/// An implementation of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Implementation {
    /// Over the kernel's nf_tables.
    Nft,
    /// Over the kernel's ip_tables.
    Legacy,
}

impl Implementation {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    /// The word in names of programs.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }

    /// The variant that `--version` names; before 1.8 there was one only.
    fn named_by(version_text: &str) -> Self {
        if version_text.contains("nf_tables") { Self::Nft } else { Self::Legacy }
    }
}

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iptables-{}", self.word())
    }
}

/// What detection asks of the host.
pub(crate) trait Host: Send + Sync {
    /// Finds a program.
    fn find(&self, name: &str) -> Option<PathBuf>;
    /// Whether the kernel has a family.
    fn has_family(&self, family: Family) -> bool;
    /// What asks for the generation of an implementation's rules.
    fn generation(&self, variant: Implementation) -> fn() -> Option<u32>;
}

/// The host this process runs on.
pub(crate) struct ThisHost;

impl Host for ThisHost {
    fn find(&self, name: &str) -> Option<PathBuf> {
        find_program(name)
    }

    fn has_family(&self, family: Family) -> bool {
        match family {
            Family::V4 => true,
            Family::V6 => std::path::Path::new("/proc/sys/net/ipv6").exists(),
        }
    }

    fn generation(&self, variant: Implementation) -> fn() -> Option<u32> {
        match variant {
            Implementation::Nft => || netd_kernel::nftables::generation().ok(),
            Implementation::Legacy => || None,
        }
    }
}

/// The first word of the programs of a family.
const fn stem(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// Finds the tool of a variant and family, if this host has it.
fn find_tool(
    host: &dyn Host,
    variant: Implementation,
    family: Family,
    lock_wait: Duration,
    exec: &Arc<dyn Exec>,
) -> Option<Tool> {
    let version_of = |program: &PathBuf| {
        let output = exec.run(program, &["--version"], b"", Duration::from_secs(10)).ok()?;
        output.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let named = format!("{}-{}", stem(family), variant.word());
    let (save, restore, text) = if let (Some(save), Some(restore)) =
        (host.find(&format!("{named}-save")), host.find(&format!("{named}-restore")))
    {
        let text = version_of(&restore).unwrap_or_default();
        (save, restore, text)
    } else {
        let text = version_of(&host.find(stem(family))?)?;
        if Implementation::named_by(&text) != variant {
            return None;
        }
        let find = |what| host.find(&format!("{}-{what}", stem(family)));
        (find("save")?, find("restore")?, text)
    };
    let version = Version::parse(&text).unwrap_or_default();
    let generation = host.generation(variant);
    Some(Tool { variant, family, version, save, restore, lock_wait, exec: Arc::clone(exec), generation })
}

/// All tools this host has, v4 before v6.
pub(crate) fn find_tools(host: &dyn Host, lock_wait: Duration, exec: &Arc<dyn Exec>) -> Vec<Tool> {
    let mut tools = Vec::new();
    for family in Family::ALL {
        if host.has_family(family) {
            tools.extend(
                Implementation::ALL
                    .into_iter()
                    .filter_map(|variant| find_tool(host, variant, family, lock_wait, exec)),
            );
        }
    }
    tools
}

/// What speaks for a variant; the greatest wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Evidence {
    /// Kubelet uses it.
    kubelet: bool,
    /// netd used it before.
    ours: bool,
    /// Rules of others.
    rules: usize,
    /// `iptables` itself is this one.
    host_default: bool,
}

impl Evidence {
    fn add(&mut self, save: &str) {
        for line in save.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                let chain = chain.split_whitespace().next().unwrap_or_default();
                self.kubelet |= KUBELET_CHAINS.contains(&chain);
                self.ours |= chain == names::SERVICES;
            } else if line.starts_with("-A ") && !line.contains(names::PREFIX) {
                self.rules += 1;
            }
        }
    }
}

/// Chooses the variant to use.
pub(crate) fn choose(
    config: &IptablesConfig,
    tools: &[Tool],
    host: &dyn Host,
) -> Result<Implementation, ApplyError> {
    let present = |variant| tools.iter().any(|tool| tool.variant == variant);
    let candidates: Vec<_> = Implementation::ALL.into_iter().filter(|variant| present(*variant)).collect();
    if let Some(variant) = config.variant.fixed() {
        return if present(variant) { Ok(variant) } else { Err(not_installed(&variant.to_string())) };
    }
    let (Some(first), more) = (candidates.first(), candidates.len() > 1) else {
        return Err(not_installed("iptables"));
    };
    if !more {
        return Ok(*first);
    }
    let default = tools.first().and_then(|tool| host_default(host, &tool.exec));
    let mut best = None;
    let mut failure = None;
    for variant in candidates {
        let mut evidence = Evidence { host_default: default == Some(variant), ..Evidence::default() };
        let saves: Result<Vec<_>, _> =
            tools.iter().filter(|tool| tool.variant == variant).map(Tool::save_text).collect();
        match saves {
            Ok(texts) => {
                texts.iter().for_each(|text| evidence.add(text));
                debug!(%variant, ?evidence, "looked at an iptables variant");
                if best.is_none_or(|(best, _)| evidence > best) {
                    best = Some((evidence, variant));
                }
            }
            // It cannot run here at all; any other failure may pass and must not decide.
            Err(error @ ApplyError::Config(_)) => {
                debug!(%variant, %error, "an iptables variant does not work here");
                failure = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    match (best, failure) {
        (Some((_, variant)), _) => {
            info!(%variant, "chose the iptables variant");
            Ok(variant)
        }
        (None, Some(error)) => Err(error),
        (None, None) => Err(not_installed("iptables")),
    }
}

fn host_default(host: &dyn Host, exec: &Arc<dyn Exec>) -> Option<Implementation> {
    let program = host.find(stem(Family::V4))?;
    let output = exec.run(&program, &["--version"], b"", Duration::from_secs(10)).ok()?;
    Some(Implementation::named_by(&String::from_utf8_lossy(&output.stdout)))
}

fn not_installed(what: &str) -> ApplyError {
    ApplyError::Config(format!(
        "{what} is not installed: install the package iptables (apt-get install iptables, dnf install \
         iptables-nft, apk add iptables), or choose another dataplane"
    ))
}

#[cfg(test)]
mod tests;
