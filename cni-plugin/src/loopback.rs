//! The `loopback` plugin: brings the container's `lo` up.
//!
//! containerd before 2.1 calls a program of that name for every pod, beside the network (its `use_internal_loopback` is
//! off or missing), and no pod starts on a node without one. So that netd needs no other plugin, netd-cni can stand under
//! that name too; the configuration's `type` tells which is meant.

use netd_kernel::Netlink;
use serde_json::{Value, json};

use crate::call::{Call, Verb};
use crate::error::{CniError, Code};
use crate::version::Version;

/// The `type` of a configuration that is meant for this plugin.
const TYPE: &str = "loopback";
/// The one interface this plugin knows.
const INTERFACE: &str = "lo";
/// What the kernel gives to `lo` as it comes up.
const ADDRESSES: [(&str, &str); 2] = [("4", "127.0.0.1/8"), ("6", "::1/128")];

/// Tells whether a configuration is meant for this plugin.
pub fn is_meant(configuration: &[u8]) -> bool {
    parse(configuration).get("type").is_some_and(|kind| kind == TYPE)
}

/// Does a call; the answer is empty for all but ADD.
///
/// # Errors
/// When the namespace cannot be used; CHECK also when `lo` is down.
pub fn run(call: &Call, configuration: &[u8], version: Version) -> Result<String, CniError> {
    match call.verb {
        Verb::Add => {
            with_lo(call, |netlink, lo| netlink.set_up(lo.index))?;
            Ok(result(call, &parse(configuration), version))
        }
        Verb::Check => {
            let up = with_lo(call, |_, lo| Ok(lo.up))?;
            let down = || CniError::new(Code::CheckFailed, "lo of the container is down");
            if up { Ok(String::new()) } else { Err(down()) }
        }
        // lo ends with the namespace, and there is nothing else to be undone.
        Verb::Del | Verb::Gc | Verb::Status | Verb::Version => Ok(String::new()),
    }
}

fn with_lo<T: Send>(
    call: &Call,
    work: impl FnOnce(&mut Netlink, &netd_kernel::Link) -> netd_kernel::Result<T> + Send,
) -> Result<T, CniError> {
    let namespace = call.open_namespace()?;
    let done = namespace.run(|| {
        let mut netlink = Netlink::open()?;
        netlink.link(INTERFACE)?.map(|lo| work(&mut netlink, &lo)).transpose()
    });
    let failed = |cause| CniError::new(Code::Wiring, "lo of the container cannot be used").because(cause);
    match done.and_then(|done| done) {
        Ok(Some(value)) => Ok(value),
        Ok(None) => Err(CniError::new(Code::InvalidNamespace, "the container has no lo")),
        Err(cause) => Err(failed(cause)),
    }
}

/// The result of the plugin before this one goes on as it is; without one, `lo` is the result.
fn result(call: &Call, configuration: &Value, version: Version) -> String {
    if let Some(previous) = configuration.get("prevResult").filter(|previous| previous.is_object()) {
        return previous.to_string();
    }
    let mut body = if version < Version::V0_3_0 {
        json!({"ip4": {"ip": "127.0.0.1/8"}, "ip6": {"ip": "::1/128"}})
    } else {
        let ips = ADDRESSES.map(|(family, address)| {
            let mut ip = json!({"address": address, "interface": 0});
            if version < Version::V1_0_0 {
                ip["version"] = json!(family);
            }
            ip
        });
        let lo = json!({"name": INTERFACE, "mac": "00:00:00:00:00:00", "sandbox": call.netns});
        json!({"interfaces": [lo], "ips": ips})
    };
    body["cniVersion"] = json!(version.name());
    body["dns"] = json!({});
    body.to_string()
}

fn parse(configuration: &[u8]) -> Value {
    serde_json::from_slice(configuration).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add() -> Call {
        let variable = |name: &str| match name {
            "CNI_COMMAND" => Some("ADD".to_owned()),
            "CNI_CONTAINERID" => Some("pod".to_owned()),
            "CNI_NETNS" => Some("/run/netns/pod".to_owned()),
            "CNI_IFNAME" => Some("lo".to_owned()),
            _ => None,
        };
        Call::read(variable).unwrap().unwrap()
    }

    #[test]
    fn only_a_configuration_of_its_type_is_meant_for_it() {
        assert!(is_meant(br#"{"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"}"#));
        for other in [&br#"{"type": "netd"}"#[..], b"{}", b"[]", b"loopback", b""] {
            assert!(!is_meant(other));
        }
    }

    #[test]
    fn each_version_gets_the_addresses_in_its_own_words() {
        for version in Version::ALL {
            let told: Value = serde_json::from_str(&result(&add(), &json!({}), version)).unwrap();
            assert_eq!(told["cniVersion"], version.name());
            if version < Version::V0_3_0 {
                assert_eq!(told["ip4"]["ip"], "127.0.0.1/8");
            } else {
                assert_eq!(told["interfaces"][0]["sandbox"], "/run/netns/pod");
                assert_eq!(told["ips"][1]["address"], "::1/128");
                assert_eq!(told["ips"][0].get("version").is_some(), version < Version::V1_0_0);
            }
        }
    }

    #[test]
    fn an_earlier_result_goes_on_unchanged() {
        let before = json!({"cniVersion": "1.0.0", "ips": [{"address": "172.16.1.2/24"}]});
        let told = result(&add(), &json!({"prevResult": before}), Version::V1_0_0);
        assert_eq!(serde_json::from_str::<Value>(&told).unwrap(), before);
    }
}
