//! What can be chosen about the iptables dataplane.

use std::time::Duration;

use netd_model::Family;

use crate::detect::Implementation;

/// Bit of the packet mark that asks for masquerade.
///
/// Chosen to stay clear of those with a known meaning on Kubernetes nodes: 13 (the portmap plugin), 14
/// (kube-proxy), 15 (kubelet before 1.28: drop), 0-11 (Istio's ambient mask, Cilium's 8-11), 16 and above
/// (kube-router, Tailscale, Calico, Cilium's identities).
pub const DEFAULT_MASQUERADE_BIT: u8 = 12;

/// Which implementation of iptables is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// The one the host already uses, see [`crate::Iptables::new`].
    #[default]
    Auto,
    /// The one over nf_tables.
    Nft,
    /// The one over ip_tables.
    Legacy,
}

impl Variant {
    /// The implementation, where it is not left open.
    pub(crate) const fn fixed(self) -> Option<Implementation> {
        match self {
            Self::Auto => None,
            Self::Nft => Some(Implementation::Nft),
            Self::Legacy => Some(Implementation::Legacy),
        }
    }
}

impl From<Implementation> for Variant {
    fn from(implementation: Implementation) -> Self {
        match implementation {
            Implementation::Nft => Self::Nft,
            Implementation::Legacy => Self::Legacy,
        }
    }
}

/// Configuration of the iptables dataplane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IptablesConfig {
    /// Which implementation of iptables is used.
    pub variant: Variant,
    /// How long to wait for the xtables lock; rounded up to whole seconds.
    pub lock_wait: Duration,
    /// Families that are programmed; frontends of another one are refused by name.
    pub families: Vec<Family>,
    /// Bit of the packet mark that asks for masquerade, 0 to 31.
    pub masquerade_bit: u8,
}

impl Default for IptablesConfig {
    fn default() -> Self {
        Self {
            variant: Variant::Auto,
            lock_wait: Duration::from_secs(5),
            families: Family::ALL.to_vec(),
            masquerade_bit: DEFAULT_MASQUERADE_BIT,
        }
    }
}
