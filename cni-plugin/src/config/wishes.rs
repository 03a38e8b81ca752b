//! What the runtime wishes for one attachment: `runtimeConfig`, `args.cni` and `CNI_ARGS`
//! (CNI conventions, sections "Dynamic plugin specific fields" and "args in network config").

use std::net::IpAddr;

use netd_kernel::Mac;
use netd_kernel::conntrack::Transport;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::document::RangeDocument;
use super::{Dns, invalid};
use crate::bandwidth::Bandwidth;
use crate::error::{CniError, Code};
use crate::guard;

/// The wishes that this plugin grants.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Addresses that the pod is to have.
    pub addresses: Vec<IpAddr>,
    /// The MAC address that the pod is to have.
    pub mac: Option<Mac>,
    /// Ports of the node that are to lead to the pod.
    pub ports: Vec<PortWish>,
    /// DNS settings, each of which replaces the configuration's.
    pub dns: Dns,
    /// How fast the pod may receive and send.
    pub bandwidth: Bandwidth,
    /// What the pod's annotation [`guard::ANNOTATION`] says.
    pub anti_spoofing: Option<String>,
}

/// A port of the node that is to lead to one of the pod's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortWish {
    /// The protocol.
    pub transport: Transport,
    /// The port of the node.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// The one address of the node that counts, or the unspecified one of the one family that counts.
    pub host_ip: Option<IpAddr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortDocument {
    host_port: u16,
    container_port: u16,
    #[serde(default)]
    protocol: String,
    #[serde(rename = "hostIP", default)]
    host_ip: String,
}

impl PortDocument {
    fn wish(self) -> Result<PortWish, CniError> {
        let Self { host_port, container_port, protocol, host_ip } = self;
        let wrong = |what: String| invalid(format!("runtimeConfig.portMappings has {what}"));
        if host_port == 0 || container_port == 0 {
            return Err(wrong("port 0".to_owned()));
        }
        let transport = match protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            "sctp" => Transport::Sctp,
            _ => return Err(wrong(format!("protocol {protocol:?}"))),
        };
        let host_ip = match host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_no_address| wrong(format!("hostIP {text:?}")))?),
        };
        Ok(PortWish { transport, host_port, container_port, host_ip })
    }
}

#[derive(Default, Deserialize)]
struct DnsWish {
    #[serde(default)]
    servers: Vec<String>,
    #[serde(default)]
    searches: Vec<String>,
    #[serde(default)]
    options: Vec<String>,
}

impl Wishes {
    /// Reads the wishes; those of `runtimeConfig` count more than those of `args`.
    pub(super) fn read(runtime: &Map<String, Value>, args: Option<&Value>) -> Result<Self, CniError> {
        let empty = Map::new();
        let args = args.and_then(|args| args.get("cni")).and_then(Value::as_object).unwrap_or(&empty);
        let mut addresses = addresses(runtime, "runtimeConfig.ips")?;
        if addresses.is_empty() {
            addresses = self::addresses(args, "args.cni.ips")?;
        }
        let mac = match mac(runtime, "runtimeConfig.mac")? {
            Some(mac) => Some(mac),
            None => mac(args, "args.cni.mac")?,
        };
        let wish: DnsWish = read(runtime, "dns", "runtimeConfig.dns")?.unwrap_or_default();
        let dns =
            Dns { nameservers: wish.servers, domain: None, search: wish.searches, options: wish.options };
        let ports: Vec<PortDocument> =
            read(runtime, "portMappings", "runtimeConfig.portMappings")?.unwrap_or_default();
        let ports = ports.into_iter().map(PortDocument::wish).collect::<Result<_, _>>()?;
        let bandwidth = read(runtime, "bandwidth", "runtimeConfig.bandwidth")?.unwrap_or_default();
        Ok(Self {
            addresses,
            mac,
            ports,
            dns,
            bandwidth,
            anti_spoofing: annotation(runtime, guard::ANNOTATION)?,
        })
    }

    /// Adds what `CNI_ARGS` wish, where nobody else wishes it.
    pub fn or(&mut self, addresses: &[IpAddr], mac: Option<Mac>) {
        if self.addresses.is_empty() {
            self.addresses = addresses.to_vec();
        }
        self.mac = self.mac.or(mac);
    }
}

/// The ranges that stand before those of the configuration.
pub(super) fn ranges(runtime: &Map<String, Value>) -> Result<Vec<Vec<RangeDocument>>, CniError> {
    Ok(read(runtime, "ipRanges", "runtimeConfig.ipRanges")?.unwrap_or_default())
}

/// Reads an address that may have a prefix length, which does not matter here.
pub fn address(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.trim().parse().ok()
}

/// Reads the address of one machine: neither a group's nor nobody's.
pub fn machine_mac(text: &str) -> Option<Mac> {
    let mac: Mac = text.parse().ok()?;
    let Mac([first, ..]) = mac;
    (first & 1 == 0 && mac != Mac([0; 6])).then_some(mac)
}

fn addresses(wishes: &Map<String, Value>, path: &str) -> Result<Vec<IpAddr>, CniError> {
    let texts: Vec<String> = read(wishes, "ips", path)?.unwrap_or_default();
    let parse = |text: &String| {
        address(text).ok_or_else(|| invalid(format!("{path} has {text:?}, which is no address")))
    };
    texts.iter().map(parse).collect()
}

fn mac(wishes: &Map<String, Value>, path: &str) -> Result<Option<Mac>, CniError> {
    let text: Option<String> = read(wishes, "mac", path)?;
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let mac = machine_mac(&text);
    mac.map(Some).ok_or_else(|| invalid(format!("{path} {text:?} is not the MAC address of a machine")))
}

/// One annotation of the pod, where the runtime tells them.
fn annotation(runtime: &Map<String, Value>, name: &str) -> Result<Option<String>, CniError> {
    const KEY: &str = "io.kubernetes.cri.pod-annotations";
    match runtime.get(KEY).and_then(|all| all.get(name)) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(invalid(format!("runtimeConfig: {KEY} has {name} {other}, which is no text"))),
    }
}

fn read<T: serde::de::DeserializeOwned>(
    wishes: &Map<String, Value>,
    key: &str,
    path: &str,
) -> Result<Option<T>, CniError> {
    match wishes.get(key).filter(|value| !is_empty(value)) {
        None => Ok(None),
        Some(value) => serde_json::from_value(value.clone())
            .map(Some)
            .map_err(|e| CniError::new(Code::InvalidConfig, format!("{path} is not valid")).because(e)),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}
