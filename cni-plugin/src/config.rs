//! The network configuration on standard input: CNI spec, section "Network configuration format".
//!
//! A key that is not known is an error which names it: what a typo switches off would be found out weeks later.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::IpNetwork;
use netd_ipam::{Owner, Pool, Range};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::bandwidth::Bandwidth;
use crate::call::{Call, is_plain_name};
use crate::delegate::Delegate;
use crate::error::{CniError, Code};
use crate::guard;
use crate::version::Version;

mod document;
mod resolv;
mod route;
mod wiring;
mod wishes;

use document::{Document, RangeDocument};
pub use route::ExtraRoute;
pub use wiring::{GATEWAY_V4, GATEWAY_V6, Mode, Vlans, Wiring};
pub use wishes::{PortWish, Wishes, address, machine_mac};

/// What a configuration may call this plugin: runtimes look for a program of that name.
pub const TYPES: [&str; 3] = ["netd", "netd-cni", REFERENCE];
/// The reference plugin whose configurations are read with its defaults.
const REFERENCE: &str = "bridge";
/// The bridge of the reference plugin unless its configuration names another.
const REFERENCE_BRIDGE: &str = "cni0";
/// The reference address plugin whose configurations are read with its defaults.
const HOST_LOCAL: &str = "host-local";
/// What `ipam.type` calls the ledger.
const LEDGER: &str = "netd";
/// Where host-local keeps its files, a directory a network.
const HOST_LOCAL_DIRECTORY: &str = "/var/lib/cni/networks";
/// The bridge unless the configuration names another.
pub const DEFAULT_BRIDGE: &str = "netd0";
/// Where the daemon says what the node's ranges are.
pub const DEFAULT_RANGES_FILE: &str = "/run/netd/podcidrs.json";
/// How long a released address rests unless the configuration says otherwise.
pub const DEFAULT_COOL_DOWN: Duration = Duration::from_secs(30);
/// The longest configuration that is read, in bytes.
pub const MAX_LENGTH: u64 = 4 << 20;

/// A configuration that can be meant.
#[derive(Debug, Clone)]
pub struct Config {
    /// The version the answer is written in.
    pub version: Version,
    /// The network's name.
    pub network: String,
    /// How pods hang on the node.
    pub wiring: Wiring,
    /// The bridge's name; where pods are routed, that of pods from before.
    pub bridge: String,
    /// The largest packet of a pod's link in bytes; `None` to find it out.
    pub mtu: Option<u32>,
    /// Whether what leaves the cluster gets the node's address.
    pub masquerade: bool,
    /// Destinations that see the pod's own address.
    pub keep: Vec<IpNetwork>,
    /// Whether frames may leave by the port they came in by.
    pub hairpin: bool,
    /// Whether the bridge takes every frame for its own.
    pub promiscuous: bool,
    /// Whether an address of the bridge that stands in the way is taken away.
    pub force_address: bool,
    /// Whether IPv6 addresses wait for duplicate detection.
    pub detect_duplicates: bool,
    /// Whether DEL waits until the link is deleted.
    pub strict_delete: bool,
    /// Whether the pod gets a default route that the configuration does not spell out.
    pub default_route: bool,
    /// The other plugin that hands out addresses; the ledger is not used then.
    pub delegate: Option<Delegate>,
    /// Ranges written in the configuration; empty when [`Config::ranges_file`] is to be asked.
    pub pools: Vec<Pool>,
    /// Where the daemon writes the node's ranges.
    pub ranges_file: PathBuf,
    /// Routes of the pod besides the default route.
    pub routes: Vec<ExtraRoute>,
    /// The directory of the ledger.
    pub directory: PathBuf,
    /// host-local's directory of this network, whose leases a new ledger begins with.
    pub import: Option<PathBuf>,
    /// How long a released address rests.
    pub cool_down: Duration,
    /// DNS settings to pass through to the runtime.
    pub dns: Dns,
    /// How fast pods may receive and send.
    pub bandwidth: Bandwidth,
    /// Whether pods may send in their own name only.
    pub anti_spoofing: bool,
    /// The namespaces whose pods may switch that off.
    pub anti_spoofing_opt_out: Vec<String>,
    /// The result of the plugins before this one, or of ADD when it is a CHECK or DEL.
    pub previous: Option<Value>,
    /// The attachments that GC is to leave; `None` when the runtime told none.
    pub valid: Option<Vec<Owner>>,
    /// What the runtime wishes for this attachment.
    pub wishes: Wishes,
}

/// DNS settings as the spec writes them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are the spec's")]
pub struct Dns {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// One entry of `cni.dev/valid-attachments`.
#[derive(Deserialize)]
struct Attachment {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

/// The version a configuration asks to be answered in; the latest where that cannot be told.
pub fn version_of(bytes: &[u8]) -> Version {
    let document: Option<Value> = serde_json::from_slice(bytes).ok();
    let text = document.as_ref().and_then(|d| d.get("cniVersion")).and_then(Value::as_str);
    text.and_then(|text| Version::parse(text).ok()).unwrap_or(Version::LATEST)
}

/// A configuration of whatever plugin: read as far as every plugin's is the same.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// The version the answer is written in.
    pub version: Version,
    /// The plugin that is meant.
    pub kind: String,
    keys: Map<String, Value>,
}

impl Envelope {
    /// Reads a configuration's version and type.
    ///
    /// # Errors
    /// Code 6 when it is not JSON, 1 for an unknown version, 7 without a type.
    pub fn parse(bytes: &[u8]) -> Result<Self, CniError> {
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|e| CniError::new(Code::Decode, "the network configuration is not JSON").because(e))?;
        let Value::Object(keys) = value else {
            return Err(CniError::new(Code::Decode, "the network configuration is not a JSON object"));
        };
        let version = match keys.get("cniVersion") {
            None => Version::parse("")?,
            Some(Value::String(text)) => Version::parse(text)?,
            Some(other) => return Err(invalid(format!("cniVersion is no string but {other}"))),
        };
        let kind = keys.get("type").and_then(Value::as_str).map(str::to_owned);
        let kind = kind.ok_or_else(|| invalid("the network configuration has no type"))?;
        Ok(Self { version, kind, keys })
    }

    /// The result of the plugins before this one, or of ADD when it is a CHECK or DEL.
    pub fn previous(&self) -> Option<&Value> {
        self.keys.get("prevResult").filter(|result| !result.is_null())
    }
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// As [`Envelope::parse`], and code 7 when it names an unknown key or says the impossible.
    pub fn parse(bytes: &[u8]) -> Result<Self, CniError> {
        Self::read(Envelope::parse(bytes)?)
    }

    /// Reads the rest of a configuration.
    ///
    /// # Errors
    /// Code 7 when it names an unknown key or says the impossible.
    pub fn read(envelope: Envelope) -> Result<Self, CniError> {
        let Envelope { version, mut keys, .. } = envelope;
        let delegate = Delegate::take(&mut keys, &[LEDGER, HOST_LOCAL])?;
        let valid = valid_attachments(&mut keys)?;
        let document: Document = serde_path_to_error::deserialize(Value::Object(keys)).map_err(|e| {
            let path = e.path().to_string();
            let place = if path == "." { String::new() } else { format!(" at {path}") };
            invalid(format!("the network configuration is not valid{place}")).because(e.inner())
        })?;
        Ok(Self { delegate, ..Self::check(version, valid, document)? })
    }

    fn check(version: Version, valid: Option<Vec<Owner>>, document: Document) -> Result<Self, CniError> {
        let network =
            document.name.clone().ok_or_else(|| invalid("the network configuration has no name"))?;
        if !is_plain_name(&network) || network.len() > 200 {
            return Err(invalid(format!("network name {network:?} is not valid")));
        }
        if !TYPES.contains(&document.kind.as_str()) {
            return Err(unknown_type(&document.kind));
        }
        let wiring = Wiring::read(&document, version)?;
        let ours = document.kind != REFERENCE;
        let wishes = Wishes::read(&document.runtime_config, document.args.as_ref())?;
        let addresses = Addresses::of(&document, &network)?;
        check_room(version, &addresses.pools)?;
        let bandwidth = limits(document.limits(), &wishes);
        let anti_spoofing = guard::configured(document.anti_spoofing, &wiring, ours)?;
        let keep = [document.cluster_cidrs, document.non_masquerade_cidrs].concat();
        Ok(Self {
            version,
            bridge: bridge_name(document.bridge, if ours { DEFAULT_BRIDGE } else { REFERENCE_BRIDGE })?,
            mtu: mtu(document.mtu)?,
            masquerade: document.ip_masq.unwrap_or(ours && wiring.gateway) && wiring.addressed,
            keep,
            hairpin: document.hairpin_mode.unwrap_or(ours && !document.promisc_mode),
            promiscuous: document.promisc_mode,
            force_address: document.force_address,
            detect_duplicates: document.enabledad,
            strict_delete: document.strict_delete,
            default_route: document.is_default_gateway.unwrap_or(ours) && wiring.gateway,
            wiring,
            delegate: None,
            pools: addresses.pools,
            ranges_file: document.ipam.ranges_file.unwrap_or_else(|| DEFAULT_RANGES_FILE.into()),
            routes: document.ipam.routes,
            directory: addresses.directory,
            import: addresses.import,
            cool_down: addresses.cool_down,
            dns: dns(&wishes, document.dns, document.ipam.resolv_conf.as_deref())?,
            previous: document.prev_result.filter(|result| !result.is_null()),
            valid,
            bandwidth,
            anti_spoofing,
            anti_spoofing_opt_out: document.anti_spoofing_opt_out,
            wishes,
            network,
        })
    }

    /// Adds what the call's environment wishes.
    pub fn hear(&mut self, call: &Call) {
        self.wishes.or(&call.addresses, call.mac);
    }
}

/// Where a pod's addresses come from.
struct Addresses {
    pools: Vec<Pool>,
    directory: PathBuf,
    import: Option<PathBuf>,
    cool_down: Duration,
}

impl Addresses {
    fn of(document: &Document, network: &str) -> Result<Self, CniError> {
        let ipam = &document.ipam;
        let host_local = match ipam.kind.as_deref() {
            Some(HOST_LOCAL) => true,
            Some(LEDGER) => false,
            // Where it is the reference plugin's, pods have no addresses.
            None => false,
            Some(kind) => {
                return Err(invalid(format!("ipam.type {kind:?} is not supported"))
                    .and("leave it out or set it to netd"));
            }
        };
        let ranges = [wishes::ranges(&document.runtime_config)?, ipam.all_ranges()?].concat();
        if host_local && ranges.is_empty() {
            return Err(invalid("ipam.type host-local has no ranges").and("set ipam.ranges"));
        }
        let default = if host_local { HOST_LOCAL_DIRECTORY } else { netd_ipam::DEFAULT_DIRECTORY };
        let directory = absolute(ipam.data_dir.clone(), default)?;
        let import = match &ipam.import_dir {
            Some(path) => Some(absolute(Some(path.clone()), "")?),
            None => host_local.then(|| directory.clone()),
        };
        Ok(Self {
            pools: pools_of(&ranges)?,
            directory,
            import: import.map(|path| path.join(network)),
            cool_down: ipam.cool_down_seconds.map_or(DEFAULT_COOL_DOWN, |s| Duration::from_secs(s.into())),
        })
    }
}

/// DNS settings: each from the first who says something of it: the runtime, the configuration, `ipam.resolvConf`.
fn dns(wishes: &Wishes, configured: Dns, file: Option<&Path>) -> Result<Dns, CniError> {
    let written = match file.filter(|_| configured == Dns::default()) {
        Some(path) => resolv::read(path)?,
        None => configured,
    };
    let first = |wish: &Vec<String>, other: Vec<String>| if wish.is_empty() { other } else { wish.clone() };
    Ok(Dns {
        nameservers: first(&wishes.dns.nameservers, written.nameservers),
        domain: written.domain,
        search: first(&wishes.dns.search, written.search),
        options: first(&wishes.dns.options, written.options),
    })
}

/// The configuration's limits count more than the runtime's, as with the reference plugin.
fn limits(configured: Bandwidth, wishes: &Wishes) -> Bandwidth {
    if configured.is_empty() { wishes.bandwidth } else { configured }
}

/// Takes the keys out that the runtime's library adds for GC; both spellings are in use.
fn valid_attachments(keys: &mut Map<String, Value>) -> Result<Option<Vec<Owner>>, CniError> {
    let mut valid = None;
    let injected: Vec<String> = keys.keys().filter(|key| key.starts_with("cni.dev/")).cloned().collect();
    for key in injected {
        let Some(value) = keys.remove(&key) else { continue };
        if !matches!(key.as_str(), "cni.dev/valid-attachments" | "cni.dev/attachments") {
            continue;
        }
        let list: Option<Vec<Attachment>> =
            serde_json::from_value(value).map_err(|e| invalid(format!("{key} is not valid")).because(e))?;
        let owners = list.unwrap_or_default();
        let owners = owners.into_iter().map(|a| Owner { container: a.container, interface: a.ifname });
        valid.get_or_insert_with(Vec::new).extend(owners);
    }
    Ok(valid)
}

fn pools_of(documents: &[Vec<RangeDocument>]) -> Result<Vec<Pool>, CniError> {
    let mut pools: Vec<Pool> = Vec::new();
    for (place, ranges) in documents.iter().enumerate() {
        let named = |e: netd_ipam::Error| invalid(format!("ipam.ranges[{place}] is not valid")).because(e);
        let ranges: Result<Vec<Range>, _> =
            ranges.iter().map(|r| Range::new(r.subnet, r.range_start, r.range_end, r.gateway)).collect();
        let pool = Pool::new(ranges.map_err(named)?).map_err(named)?;
        for earlier in &pools {
            pool.check_apart_from(earlier).map_err(named)?;
        }
        pools.push(pool);
    }
    Ok(pools)
}

/// A result before 0.3.0 has one address of each family: a second would be lost.
fn check_room(version: Version, pools: &[Pool]) -> Result<(), CniError> {
    let of = |v4| pools.iter().filter(|p| p.ranges().first().is_some_and(|r| r.is_ipv4() == v4)).count();
    if version >= Version::V0_3_0 || (of(true) <= 1 && of(false) <= 1) {
        return Ok(());
    }
    Err(invalid(format!("cniVersion {} has room for one address of each family", version.name()))
        .and("use 0.3.0 or later, or one list of ipam.ranges for each family"))
}

fn bridge_name(name: Option<String>, default: &str) -> Result<String, CniError> {
    let name = name.unwrap_or_else(|| default.to_owned());
    if name.len() > 15 || !is_plain_name(&name) {
        return Err(invalid(format!("bridge {name:?} is no name for a link")));
    }
    Ok(name)
}

fn mtu(mtu: Option<u32>) -> Result<Option<u32>, CniError> {
    match mtu {
        None | Some(0) => Ok(None),
        // RFC 791 for the lower bound; IPv6 needs 1280, which the kernel checks.
        Some(size @ 68..=65_535) => Ok(Some(size)),
        Some(size) => Err(invalid(format!("mtu {size} is not between 68 and 65535")).and("0 finds it out")),
    }
}

fn absolute(path: Option<PathBuf>, default: &str) -> Result<PathBuf, CniError> {
    let path = path.unwrap_or_else(|| Path::new(default).to_owned());
    if path.is_absolute() {
        return Ok(path);
    }
    Err(invalid(format!("ipam: directory {} is not an absolute path", path.display())))
}

/// The error of a configuration that is for another plugin.
pub fn unknown_type(kind: &str) -> CniError {
    invalid(format!("the configuration is for plugin type {kind:?}, this is netd"))
}

fn invalid(msg: impl Into<String>) -> CniError {
    CniError::new(Code::InvalidConfig, msg)
}

#[cfg(test)]
mod tests;
