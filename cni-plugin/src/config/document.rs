//! The configuration as it is written, key by key; [`super::Config`] says what it means.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::wiring::{Mode, TrunkDocument};
use super::{Dns, ExtraRoute, invalid};
use crate::bandwidth::Bandwidth;
use crate::error::CniError;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Document {
    #[serde(rename = "cniVersion")]
    _cni_version: Option<String>,
    pub(super) name: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) bridge: Option<String>,
    pub(super) mtu: Option<u32>,
    pub(super) ip_masq: Option<bool>,
    #[serde(rename = "clusterCIDRs", default)]
    pub(super) cluster_cidrs: Vec<IpNetwork>,
    #[serde(rename = "nonMasqueradeCIDRs", default)]
    pub(super) non_masquerade_cidrs: Vec<IpNetwork>,
    pub(super) hairpin_mode: Option<bool>,
    #[serde(default)]
    pub(super) promisc_mode: bool,
    pub(super) is_gateway: Option<bool>,
    pub(super) is_default_gateway: Option<bool>,
    #[serde(default)]
    pub(super) force_address: bool,
    #[serde(default)]
    pub(super) enabledad: bool,
    #[serde(default)]
    pub(super) strict_delete: bool,
    pub(super) anti_spoofing: Option<bool>,
    #[serde(default)]
    pub(super) anti_spoofing_opt_out: Vec<String>,
    #[serde(default)]
    ingress_rate: u64,
    #[serde(default)]
    ingress_burst: u64,
    #[serde(default)]
    egress_rate: u64,
    #[serde(default)]
    egress_burst: u64,
    pub(super) ip_masq_backend: Option<String>,
    pub(super) mode: Option<Mode>,
    #[serde(default)]
    pub(super) vlan: i64,
    pub(super) vlan_trunk: Option<Vec<TrunkDocument>>,
    #[serde(default)]
    pub(super) preserve_default_vlan: bool,
    #[serde(default)]
    pub(super) macspoofchk: bool,
    #[serde(default)]
    pub(super) port_isolation: bool,
    #[serde(default)]
    pub(super) disable_container_interface: bool,
    #[serde(default)]
    pub(super) ipam: Ipam,
    #[serde(default)]
    pub(super) dns: Dns,
    pub(super) prev_result: Option<Value>,
    #[serde(default)]
    pub(super) runtime_config: Map<String, Value>,
    #[serde(rename = "capabilities")]
    _capabilities: Option<Map<String, Value>>,
    pub(super) args: Option<Value>,
}

#[derive(Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Ipam {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    #[serde(default)]
    pub(super) ranges: Vec<Vec<RangeDocument>>,
    pub(super) ranges_file: Option<PathBuf>,
    #[serde(default)]
    pub(super) routes: Vec<ExtraRoute>,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) import_dir: Option<PathBuf>,
    pub(super) cool_down_seconds: Option<u32>,
    pub(super) resolv_conf: Option<PathBuf>,
    // One range without the two brackets around it.
    subnet: Option<IpNetwork>,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RangeDocument {
    pub(super) subnet: IpNetwork,
    pub(super) range_start: Option<IpAddr>,
    pub(super) range_end: Option<IpAddr>,
    pub(super) gateway: Option<IpAddr>,
}

impl Document {
    /// The keys of the reference plugin `bandwidth`.
    pub(super) fn limits(&self) -> Bandwidth {
        let Self { ingress_rate, ingress_burst, egress_rate, egress_burst, .. } = *self;
        Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst }
    }
}

impl Ipam {
    /// All lists of ranges: that of the flat form comes first, as in host-local.
    pub(super) fn all_ranges(&self) -> Result<Vec<Vec<RangeDocument>>, CniError> {
        let Some(subnet) = self.subnet else {
            if self.range_start.or(self.range_end).or(self.gateway).is_some() {
                return Err(invalid("ipam.rangeStart, rangeEnd and gateway need ipam.subnet"));
            }
            return Ok(self.ranges.clone());
        };
        let flat = RangeDocument {
            subnet,
            range_start: self.range_start,
            range_end: self.range_end,
            gateway: self.gateway,
        };
        Ok([vec![vec![flat]], self.ranges.clone()].concat())
    }
}
