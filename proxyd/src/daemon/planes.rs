//! Which dataplanes run, and why: `auto` falls back with a reason, a named one that cannot run is an error.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use netd_dataplane::{ApplyError, Dataplane};
use netd_kernel::exec::SystemExec;
use netd_model::Scope;
use tracing::{debug, info, warn};

use super::HostError;
use crate::config::{Config, DataplaneChoice, IptablesVariant};

/// A dataplane with what it has not applied yet.
pub(super) struct Plane {
    /// The backend.
    pub(super) dataplane: Box<dyn Dataplane>,
    /// What may differ from its last successful apply.
    pub(super) scope: Scope,
    /// Its idea of the kernel is not to be trusted: resync first.
    pub(super) torn: bool,
}

impl Plane {
    fn new(dataplane: Box<dyn Dataplane>) -> Self {
        Self { dataplane, scope: Scope::Full, torn: false }
    }

    /// Adds to what the next apply must look at.
    pub(super) fn widen(&mut self, more: &Scope) {
        match (&mut self.scope, more) {
            (Scope::Full, Scope::Full | Scope::Services(_)) => {}
            (Scope::Services(_), Scope::Full) => self.scope = Scope::Full,
            (Scope::Services(mine), Scope::Services(more)) => mine.extend(more.iter().cloned()),
        }
    }
}

/// The dataplanes of this node, the main one first.
pub(super) struct Planes {
    planes: Vec<Plane>,
    requested: DataplaneChoice,
    reason: String,
}

impl Planes {
    /// Chooses by configuration and by what the host can do.
    ///
    /// # Errors
    /// When the configured dataplane cannot run here; says why and what to do.
    pub(super) fn choose(config: &Config) -> Result<Self> {
        let requested = config.proxy.dataplane;
        match requested {
            DataplaneChoice::Iptables => {
                let planes = vec![Plane::new(Box::new(iptables(config)?))];
                Ok(Self { planes, requested, reason: "configured".to_owned() })
            }
            DataplaneChoice::Ebpf => match netd_bpf::probe(&bpf_config(config)) {
                Ok(_) => Self::with_ebpf(config, requested, "configured".to_owned()),
                Err(unsupported) => Err(HostError(format!(
                    "--dataplane ebpf cannot run here: {unsupported}; use --dataplane auto to fall back to iptables"
                ))
                .into()),
            },
            DataplaneChoice::Auto => match netd_bpf::probe(&bpf_config(config)) {
                Ok(_) => Self::with_ebpf(config, requested, "auto: the kernel has all that eBPF needs".to_owned()),
                Err(unsupported) => {
                    warn!(reason = %unsupported, "eBPF cannot run here; falling back to iptables");
                    let planes = vec![Plane::new(Box::new(iptables(config)?))];
                    Ok(Self { planes, requested, reason: format!("auto: no eBPF, {unsupported}") })
                }
            },
        }
    }

    /// eBPF, with iptables beside it for what a socket hook cannot see, where the host has iptables.
    fn with_ebpf(config: &Config, requested: DataplaneChoice, mut reason: String) -> Result<Self> {
        let mut planes = vec![Plane::new(Box::new(netd_bpf::EbpfDataplane::new(bpf_config(config))))];
        match iptables(config) {
            Ok(iptables) => planes.push(Plane::new(Box::new(iptables))),
            Err(error) => {
                warn!(%error, "no iptables beside eBPF: what a socket hook cannot see is not served");
                reason.push_str("; nothing beside it: ");
                reason.push_str(&error.to_string());
            }
        }
        Ok(Self { planes, requested, reason })
    }

    /// The main dataplane's name.
    pub(super) fn name(&self) -> &'static str {
        self.planes.first().map_or("none", |plane| plane.dataplane.name())
    }

    /// The dataplane beside it, if any.
    pub(super) fn companion(&self) -> Option<&'static str> {
        self.planes.get(1).map(|plane| plane.dataplane.name())
    }

    /// What the configuration asked for.
    pub(super) const fn requested(&self) -> &'static str {
        match self.requested {
            DataplaneChoice::Auto => "auto",
            DataplaneChoice::Ebpf => "ebpf",
            DataplaneChoice::Iptables => "iptables",
        }
    }

    /// Why these.
    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    /// All of them, the main one first.
    pub(super) fn iter_mut(&mut self) -> std::slice::IterMut<'_, Plane> {
        self.planes.iter_mut()
    }

    /// Removes what a netd that ran with another dataplane left: only once this one serves.
    pub(super) fn sweep_others(&self, config: &Config) {
        let used: Vec<&str> = self.planes.iter().map(|plane| plane.dataplane.name()).collect();
        for mut other in every(config, &used) {
            match other.cleanup() {
                Ok(()) => {
                    debug!(dataplane = other.name(), "nothing is left of the dataplane that is not in use")
                }
                Err(error) => {
                    warn!(dataplane = other.name(), %error, "could not remove another dataplane's leftovers")
                }
            }
        }
    }
}

/// Every dataplane that the host has the means to look at, but those named; for cleaning up.
pub(crate) fn every(config: &Config, but: &[&str]) -> Vec<Box<dyn Dataplane>> {
    let mut all: Vec<Box<dyn Dataplane>> = Vec::new();
    let ebpf = netd_bpf::EbpfDataplane::new(bpf_config(config));
    if !but.contains(&ebpf.name()) {
        all.push(Box::new(ebpf));
    }
    if !but.contains(&"iptables") {
        match iptables(config) {
            Ok(iptables) => all.push(Box::new(iptables)),
            Err(error) => info!(%error, "no iptables to clean up"),
        }
    }
    all
}

fn iptables(config: &Config) -> Result<netd_iptables::Iptables, ApplyError> {
    let options = &config.proxy.iptables;
    let settings = netd_iptables::IptablesConfig {
        variant: match options.variant {
            IptablesVariant::Auto => netd_iptables::Variant::Auto,
            IptablesVariant::Nft => netd_iptables::Variant::Nft,
            IptablesVariant::Legacy => netd_iptables::Variant::Legacy,
        },
        masquerade_bit: options.masquerade_bit,
        lock_wait: Duration::from_secs(u64::from(options.lock_wait_seconds)),
        ..netd_iptables::IptablesConfig::default()
    };
    netd_iptables::Iptables::new(settings, Arc::new(SystemExec))
}

fn bpf_config(config: &Config) -> netd_bpf::Config {
    netd_bpf::Config {
        cgroup_root: config.proxy.ebpf.cgroup_root.clone(),
        pin_dir: config.proxy.ebpf.pin_dir.clone(),
    }
}
