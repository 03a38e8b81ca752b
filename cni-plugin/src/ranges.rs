//! The node's address ranges: from the configuration, or from the small file that the daemon writes.

use std::path::Path;

use ipnetwork::IpNetwork;
use netd_ipam::{Pool, Range};
use serde::Deserialize;

use crate::config::Config;
use crate::error::{CniError, Code};

/// What is known of the node's part of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRanges {
    /// One address of each pool goes to every attachment.
    pub pools: Vec<Pool>,
    /// Gateways with their subnets' prefixes, where another plugin hands out addresses.
    pub granted: Vec<IpNetwork>,
    /// Destinations that see the pod's own address.
    pub keep: Vec<IpNetwork>,
    /// The largest packet in bytes, where somebody has said it.
    pub mtu: Option<u32>,
}

/// What the daemon writes; keys of a later daemon are left alone.
#[derive(Debug, Deserialize)]
struct RangesFile {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<IpNetwork>,
    #[serde(rename = "clusterCIDRs", default)]
    cluster_cidrs: Vec<IpNetwork>,
    #[serde(rename = "nonMasqueradeCIDRs", default)]
    non_masquerade_cidrs: Vec<IpNetwork>,
    mtu: Option<u32>,
}

impl NodeRanges {
    /// Finds the ranges out.
    ///
    /// # Errors
    /// Code 11 when neither the configuration nor the daemon has said them yet.
    pub fn of(config: &Config) -> Result<Self, CniError> {
        if !config.pools.is_empty() {
            return Ok(Self {
                pools: config.pools.clone(),
                granted: Vec::new(),
                keep: config.keep.clone(),
                mtu: config.mtu,
            });
        }
        let file = read(&config.ranges_file)?;
        let pools = pools_of(&file.pod_cidrs).map_err(|e| unusable(&config.ranges_file, &e))?;
        if pools.is_empty() {
            return Err(unusable(&config.ranges_file, &"it names no podCIDR"));
        }
        let keep = [config.keep.as_slice(), &file.cluster_cidrs, &file.non_masquerade_cidrs].concat();
        let mtu = config.mtu.or(file.mtu.filter(|mtu| (68..=65_535).contains(mtu)));
        Ok(Self { pools, granted: Vec::new(), keep, mtu })
    }

    /// What another plugin gave.
    pub fn granted(config: &Config, gateways: Vec<IpNetwork>) -> Self {
        Self { pools: Vec::new(), granted: gateways, keep: config.keep.clone(), mtu: config.mtu }
    }

    /// The subnets of all ranges.
    pub fn subnets(&self) -> Vec<IpNetwork> {
        let granted = self
            .granted
            .iter()
            .filter_map(|gateway| IpNetwork::new(gateway.network(), gateway.prefix()).ok());
        self.pools.iter().flat_map(Pool::ranges).map(Range::subnet).chain(granted).collect()
    }

    /// Gateway addresses with the length of their subnet's prefix.
    pub fn gateways(&self) -> Vec<IpNetwork> {
        let ranges = self.pools.iter().flat_map(Pool::ranges);
        let own = ranges.filter_map(|range| IpNetwork::new(range.gateway(), range.subnet().prefix()).ok());
        own.chain(self.granted.iter().copied()).collect()
    }

    /// Whether pods get an IPv6 address.
    pub fn has_ipv6(&self) -> bool {
        self.gateways().iter().any(IpNetwork::is_ipv6)
    }

    /// Whether pods get an IPv4 address.
    pub fn has_ipv4(&self) -> bool {
        self.gateways().iter().any(IpNetwork::is_ipv4)
    }
}

fn read(path: &Path) -> Result<RangesFile, CniError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| unusable(path, &e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(CniError::new(Code::TryAgainLater, "the node's pod address ranges are not known yet")
                .because(format!("neither ipam.ranges is set nor has netd written {}", path.display()))
                .and("is netd running on this node, and has the node a podCIDR?"))
        }
        Err(e) => Err(unusable(path, &e)),
    }
}

/// One pool a family, in the order the families appear.
fn pools_of(networks: &[IpNetwork]) -> netd_ipam::Result<Vec<Pool>> {
    let range = |network: &IpNetwork| Range::new(*network, None, None, None);
    let ranges = networks.iter().map(range).collect::<netd_ipam::Result<Vec<_>>>()?;
    let first_is_v4 = ranges.first().is_some_and(Range::is_ipv4);
    let (first, second): (Vec<_>, Vec<_>) =
        ranges.into_iter().partition(|range| range.is_ipv4() == first_is_v4);
    [first, second].into_iter().filter(|ranges| !ranges.is_empty()).map(Pool::new).collect()
}

fn unusable(path: &Path, cause: &dyn std::fmt::Display) -> CniError {
    CniError::new(
        Code::TryAgainLater,
        format!("{} does not tell the node's pod address ranges", path.display()),
    )
    .because(cause)
    .and("restart netd on this node, which writes it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(content: Option<&str>) -> Result<NodeRanges, CniError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("podcidrs.json");
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let document = serde_json::json!({
            "name": "pods", "type": "netd", "nonMasqueradeCIDRs": ["192.168.0.0/16"], "ipam": { "rangesFile": path }
        });
        NodeRanges::of(&Config::parse(document.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn unknown_ranges_are_a_reason_to_try_again() {
        for content in
            [None, Some(""), Some("{}"), Some(r#"{"podCIDRs":[]}"#), Some(r#"{"podCIDRs":["10.0.0.1/24"]}"#)]
        {
            let error = with_file(content).unwrap_err();
            assert_eq!(error.code, Code::TryAgainLater, "{content:?}");
            assert!(error.details.contains("netd"), "the next step is named: {error}");
        }
    }

    #[test]
    fn the_daemons_file_gives_one_pool_a_family() {
        let ranges = with_file(Some(
            r#"{"podCIDRs":["172.16.1.0/24","fd00:1::/64","172.16.9.0/24"],"clusterCIDRs":["172.16.0.0/16"],"mtu":1450,"x":1}"#,
        ));
        let ranges = ranges.unwrap();
        assert_eq!(ranges.pools.len(), 2);
        assert_eq!(ranges.pools[0].ranges().len(), 2);
        assert_eq!((ranges.mtu, ranges.keep.len()), (Some(1450), 2));
        let gateways: Vec<String> = ranges.gateways().iter().map(ToString::to_string).collect();
        assert_eq!(gateways, ["172.16.1.1/24", "172.16.9.1/24", "fd00:1::1/64"]);
    }
}
