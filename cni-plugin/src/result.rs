//! The result of an ADD in every version of the CNI spec, section "Success".

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netd_kernel::Mac;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::config::{Dns, ExtraRoute};
use crate::error::{CniError, Code};
use crate::version::Version;

mod merge;

/// A link that an ADD made or uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    pub mac: Mac,
    /// The largest packet in bytes.
    pub mtu: u32,
    /// The container's namespace as the runtime wrote it; `None` on the host.
    pub sandbox: Option<String>,
}

/// An address of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address with its prefix.
    pub address: IpNetwork,
    /// The gateway of its family; none on loopback.
    pub gateway: Option<IpAddr>,
}

/// What an ADD did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddResult {
    /// Bridge (where there is one), host's end, pod's end, VLAN's gateway (where there is one): in this order.
    pub interfaces: Vec<Interface>,
    /// Which of them is the pod's end.
    pub place: usize,
    /// All of them are on the pod's end.
    pub addresses: Vec<Address>,
    /// Routes of the pod.
    pub routes: Vec<ExtraRoute>,
    /// What the configuration says about DNS.
    pub dns: Dns,
}

impl AddResult {
    /// Writes the result in the version that the configuration asks for, behind that of the plugins before this one.
    ///
    /// # Errors
    /// Code 6 when `previous` is no result of that version.
    pub fn to_json(&self, version: Version, previous: Option<&Value>) -> Result<String, CniError> {
        let families = matches!(version, Version::V0_1_0 | Version::V0_2_0);
        let mut body = if families { self.by_family() } else { self.by_interface(version) };
        body.insert("dns".to_owned(), json!(self.dns));
        if let Some(previous) = previous {
            body = merge::behind(previous, body, families)?;
        }
        body.insert("cniVersion".to_owned(), json!(version.name()));
        Ok(Value::Object(body).to_string())
    }

    /// 0.1.0 and 0.2.0 know one address a family and no interfaces.
    fn by_family(&self) -> Map<String, Value> {
        let mut body = Map::new();
        for (key, v4) in [("ip4", true), ("ip6", false)] {
            let Some(found) = self.addresses.iter().find(|a| a.address.is_ipv4() == v4) else { continue };
            let of_family = self.routes.iter().filter(|route| route.dst.is_ipv4() == v4);
            let routes: Vec<_> = of_family.map(ExtraRoute::before_1_1).collect();
            let mut value = json!({ "ip": found.address, "routes": routes });
            if let Some(gateway) = found.gateway {
                value["gateway"] = json!(gateway);
            }
            body.insert(key.to_owned(), value);
        }
        body
    }

    fn by_interface(&self, version: Version) -> Map<String, Value> {
        let interfaces: Vec<Value> = self.interfaces.iter().map(|link| interface(link, version)).collect();
        let ips: Vec<Value> = self
            .addresses
            .iter()
            .map(|found| {
                let mut ip = json!({ "interface": self.place, "address": found.address });
                if let Some(gateway) = found.gateway {
                    ip["gateway"] = json!(gateway);
                }
                if version < Version::V1_0_0 {
                    let family = if found.address.is_ipv4() { "4" } else { "6" };
                    ip["version"] = json!(family);
                }
                ip
            })
            .collect();
        let mut body = Map::new();
        body.insert("interfaces".to_owned(), json!(interfaces));
        if !ips.is_empty() {
            body.insert("ips".to_owned(), json!(ips));
        }
        let known = |route: &ExtraRoute| {
            if version >= Version::V1_1_0 { *route } else { route.before_1_1() }
        };
        let routes: Vec<ExtraRoute> = self.routes.iter().map(known).collect();
        body.insert("routes".to_owned(), json!(routes));
        body
    }
}

fn interface(link: &Interface, version: Version) -> Value {
    let mut value = json!({ "name": link.name, "mac": link.mac.to_string() });
    if let Some(sandbox) = &link.sandbox {
        value["sandbox"] = json!(sandbox);
    }
    if version >= Version::V1_1_0 {
        value["mtu"] = json!(link.mtu);
    }
    value
}

/// What CHECK needs of an earlier result, of whatever version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Previous {
    /// The addresses of the interface that is checked.
    pub addresses: Vec<IpNetwork>,
    /// Its MAC address, where the result tells it.
    pub mac: Option<Mac>,
    /// The gateways of the addresses with their subnets' prefixes, where the result tells them.
    pub gateways: Vec<IpNetwork>,
}

#[derive(Deserialize)]
struct PreviousDocument {
    #[serde(default)]
    interfaces: Vec<PreviousInterface>,
    #[serde(default)]
    ips: Vec<PreviousAddress>,
}

#[derive(Deserialize)]
struct PreviousInterface {
    #[serde(default)]
    name: String,
    #[serde(default)]
    sandbox: String,
    #[serde(default)]
    mac: String,
}

#[derive(Deserialize)]
struct PreviousAddress {
    address: IpNetwork,
    interface: Option<usize>,
    gateway: Option<IpAddr>,
}

impl Previous {
    /// Reads the addresses that an earlier result gives to the container's interface `name`.
    ///
    /// # Errors
    /// Code 6 when it is no result of the versions that have a CHECK.
    pub fn read(result: &Value, name: &str) -> Result<Self, CniError> {
        let document = PreviousDocument::deserialize(result)
            .map_err(|e| CniError::new(Code::Decode, "prevResult is not valid").because(e))?;
        let is_it = |link: &PreviousInterface| link.name == name && !link.sandbox.is_empty();
        let on_interface = |address: &PreviousAddress| {
            address.interface.and_then(|place| document.interfaces.get(place)).is_some_and(is_it)
        };
        let addresses = document.ips.iter().filter(|a| on_interface(a)).map(|a| a.address).collect();
        let mac = document.interfaces.iter().find(|link| is_it(link)).and_then(|link| link.mac.parse().ok());
        let gateway = |a: &PreviousAddress| IpNetwork::new(a.gateway?, a.address.prefix()).ok();
        let gateways = document.ips.iter().filter(|a| on_interface(a)).filter_map(gateway).collect();
        Ok(Self { addresses, mac, gateways })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result() -> AddResult {
        let link = |name: &str, last: u8, sandbox: Option<&str>| Interface {
            name: name.to_owned(),
            mac: Mac([2, 0, 0, 0, 0, last]),
            mtu: 1500,
            sandbox: sandbox.map(str::to_owned),
        };
        let address = |text: &str, gateway: &str| Address {
            address: text.parse().unwrap(),
            gateway: Some(gateway.parse().unwrap()),
        };
        AddResult {
            interfaces: vec![
                link("netd0", 1, None),
                link("netdx", 2, None),
                link("eth0", 3, Some("/run/netns/x")),
            ],
            place: 2,
            addresses: vec![address("172.16.1.2/32", "172.16.1.1"), address("fd00::2/128", "fd00::1")],
            routes: vec![
                ExtraRoute {
                    mtu: 1400,
                    table: Some(100),
                    ..ExtraRoute::new("0.0.0.0/0".parse().unwrap(), "172.16.1.1".parse().ok())
                },
                ExtraRoute::new("::/0".parse().unwrap(), None),
            ],
            dns: Dns::default(),
        }
    }

    fn written(version: Version) -> Value {
        serde_json::from_str(&result().to_json(version, None).unwrap()).unwrap()
    }

    #[test]
    fn the_latest_result_has_everything() {
        let expected = json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                { "name": "netd0", "mac": "02:00:00:00:00:01", "mtu": 1500 },
                { "name": "netdx", "mac": "02:00:00:00:00:02", "mtu": 1500 },
                { "name": "eth0", "mac": "02:00:00:00:00:03", "mtu": 1500, "sandbox": "/run/netns/x" },
            ],
            "ips": [
                { "interface": 2, "address": "172.16.1.2/32", "gateway": "172.16.1.1" },
                { "interface": 2, "address": "fd00::2/128", "gateway": "fd00::1" },
            ],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "172.16.1.1", "mtu": 1400, "table": 100 }, { "dst": "::/0" }],
            "dns": {},
        });
        assert_eq!(written(Version::V1_1_0), expected);
    }

    #[test]
    fn earlier_results_have_what_their_version_knows() {
        assert!(written(Version::V1_0_0)["interfaces"][2].get("mtu").is_none());
        assert!(written(Version::V1_0_0)["ips"][0].get("version").is_none());
        assert_eq!(written(Version::V1_0_0)["routes"][0], json!({ "dst": "0.0.0.0/0", "gw": "172.16.1.1" }));
        for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0] {
            let value = written(version);
            assert_eq!(value["cniVersion"], version.name());
            assert_eq!(
                (&value["ips"][0]["version"], &value["ips"][1]["version"]),
                (&json!("4"), &json!("6"))
            );
        }
        for version in [Version::V0_1_0, Version::V0_2_0] {
            let expected = json!({
                "cniVersion": version.name(),
                "ip4": { "ip": "172.16.1.2/32", "gateway": "172.16.1.1",
                         "routes": [{ "dst": "0.0.0.0/0", "gw": "172.16.1.1" }] },
                "ip6": { "ip": "fd00::2/128", "gateway": "fd00::1", "routes": [{ "dst": "::/0" }] },
                "dns": {},
            });
            assert_eq!(written(version), expected);
        }
    }

    #[test]
    fn an_earlier_result_is_read_back_in_every_version_with_a_check() {
        for version in [Version::V0_4_0, Version::V1_0_0, Version::V1_1_0] {
            let previous = Previous::read(&written(version), "eth0").unwrap();
            assert_eq!(
                previous.addresses,
                ["172.16.1.2/32".parse().unwrap(), "fd00::2/128".parse().unwrap()]
            );
        }
        assert!(Previous::read(&written(Version::V1_0_0), "netd0").unwrap().addresses.is_empty());
        assert_eq!(Previous::read(&json!({ "ips": 1 }), "eth0").unwrap_err().code, Code::Decode);
    }
}
