//! Another IPAM plugin in place of the ledger: CNI spec, section "Plugin Delegation".

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::IpNetwork;
use netd_ipam::Owner;
use netd_kernel::exec::Spawn;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::call::{Call, is_plain_name};
use crate::config::{Dns, ExtraRoute};
use crate::error::{CniError, Code};

/// How long the other plugin may take: a DHCP server answers after some seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// The plugin that hands out addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegate {
    kind: String,
    /// The configuration as it came.
    input: String,
}

/// What the other plugin gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    /// The addresses, each with its gateway and the subnet's prefix; where there can be none, with itself.
    pub addresses: Vec<(IpAddr, IpNetwork)>,
    /// Whether a gateway follows from the subnet alone, since the other plugin named none.
    pub guessed: bool,
    /// Routes of the pod.
    pub routes: Vec<ExtraRoute>,
    /// DNS settings.
    pub dns: Dns,
}

#[derive(Deserialize)]
struct GrantDocument {
    #[serde(default)]
    ips: Vec<AddressDocument>,
    #[serde(default)]
    routes: Vec<RouteDocument>,
    #[serde(default)]
    dns: Dns,
    ip4: Option<FamilyDocument>,
    ip6: Option<FamilyDocument>,
}

#[derive(Deserialize)]
struct AddressDocument {
    address: IpNetwork,
    gateway: Option<IpAddr>,
}

/// Before 0.3.0.
#[derive(Deserialize)]
struct FamilyDocument {
    ip: IpNetwork,
    gateway: Option<IpAddr>,
    #[serde(default)]
    routes: Vec<RouteDocument>,
}

/// A route as any version writes it.
#[derive(Deserialize)]
struct RouteDocument {
    dst: IpNetwork,
    gw: Option<IpAddr>,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    advmss: u32,
    #[serde(default)]
    priority: u32,
    table: Option<u32>,
    scope: Option<u8>,
}

impl RouteDocument {
    fn route(self) -> ExtraRoute {
        let Self { dst, gw, mtu, advmss, priority, table, scope } = self;
        ExtraRoute { dst, gw, mtu, advmss, priority, table, scope }
    }
}

#[derive(Deserialize)]
struct ErrorDocument {
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl Delegate {
    /// Takes `ipam` out of a configuration where it is another plugin's; `ours` are the types that are not.
    ///
    /// # Errors
    /// Code 7 when the type is no name of a program.
    pub fn take(keys: &mut Map<String, Value>, ours: &[&str]) -> Result<Option<Self>, CniError> {
        let kind = keys.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str);
        let Some(kind) = kind.filter(|kind| !ours.contains(kind)).map(str::to_owned) else { return Ok(None) };
        if !is_plain_name(&kind) {
            return Err(CniError::new(
                Code::InvalidConfig,
                format!("ipam.type {kind:?} is no name of a plugin"),
            ));
        }
        let input = Value::Object(keys.clone()).to_string();
        keys.insert("ipam".to_owned(), serde_json::json!({ "type": "netd" }));
        Ok(Some(Self { kind, input }))
    }

    /// Asks for addresses.
    ///
    /// # Errors
    /// What the other plugin said, or code 107 when its answer cannot be used; nothing is kept then.
    pub fn add(&self, call: &Call) -> Result<Grant, CniError> {
        let answer = self.call(call, &call.owner, "ADD")?;
        read_grant(&answer).map_err(|error| match self.del(call, &call.owner) {
            Ok(()) => error,
            Err(cause) => error.and(format!("and it was not undone: {cause}")),
        })
    }

    /// Gives an owner's addresses back.
    ///
    /// # Errors
    /// What the other plugin said.
    pub fn del(&self, call: &Call, owner: &Owner) -> Result<(), CniError> {
        self.call(call, owner, "DEL").map(drop)
    }

    /// Passes a CHECK, GC or STATUS on; a plugin that does not know the verb has nothing to say.
    ///
    /// # Errors
    /// What the other plugin said.
    pub fn pass(&self, call: &Call, verb: &str) -> Result<(), CniError> {
        match self.call(call, &call.owner, verb) {
            Err(error) if error.code == Code::InvalidEnvironment => Ok(()),
            other => other.map(drop),
        }
    }

    /// Finds the plugin's program.
    ///
    /// # Errors
    /// Code 7 when it is not installed.
    pub fn locate(&self, call: &Call) -> Result<PathBuf, CniError> {
        self.find(&call.plugin_path)
    }

    fn call(&self, call: &Call, owner: &Owner, verb: &str) -> Result<Vec<u8>, CniError> {
        let program = self.locate(call)?;
        let failed = |what: String| CniError::new(Code::Ipam, format!("IPAM plugin {}: {what}", self.kind));
        let netns = call.netns.as_deref().unwrap_or(Path::new(""));
        let mut spawn = Spawn::new(&program, Vec::<OsString>::new());
        let text = |value: &str| OsString::from(value);
        spawn.env = vec![
            (text("CNI_COMMAND"), text(verb)),
            (text("CNI_CONTAINERID"), text(&owner.container)),
            (text("CNI_IFNAME"), text(&owner.interface)),
            (text("CNI_NETNS"), netns.into()),
            (text("CNI_ARGS"), text(&call.arguments)),
            (text("CNI_PATH"), text(&call.plugin_path)),
        ];
        let output = spawn.output(self.input.as_bytes(), LIMIT).map_err(|e| failed(e.to_string()))?;
        if output.success() {
            return Ok(output.stdout);
        }
        let Ok(told) = serde_json::from_slice::<ErrorDocument>(&output.stdout) else {
            return Err(failed(format!("exit status {}", output.status)).because(output.complaint()));
        };
        let code = match told.code {
            4 => Code::InvalidEnvironment,
            11 => Code::TryAgainLater,
            50 => Code::NotAvailable,
            51 => Code::LimitedConnectivity,
            _ => Code::Ipam,
        };
        let error = CniError { code, ..failed(told.msg) };
        Err(if told.details.is_empty() { error } else { error.because(told.details) })
    }

    fn find(&self, path: &str) -> Result<PathBuf, CniError> {
        let directories = path.split(':').map(Path::new).filter(|directory| directory.is_absolute());
        directories.map(|directory| directory.join(&self.kind)).find(|program| program.is_file()).ok_or_else(
            || {
                CniError::new(Code::InvalidConfig, format!("no plugin for ipam.type {:?}", self.kind))
                    .because(format!("it is in none of the directories of CNI_PATH {path:?}"))
                    .and("install it, or leave ipam.type out")
            },
        )
    }
}

fn read_grant(answer: &[u8]) -> Result<Grant, CniError> {
    let unusable =
        |why: String| CniError::new(Code::Ipam, "the IPAM plugin's result cannot be used").because(why);
    let document: GrantDocument = serde_json::from_slice(answer).map_err(|e| unusable(e.to_string()))?;
    let mut grant = Grant { dns: document.dns, ..Grant::default() };
    let mut routes = document.routes;
    let mut ips = document.ips;
    for family in [document.ip4, document.ip6].into_iter().flatten() {
        ips.push(AddressDocument { address: family.ip, gateway: family.gateway });
        routes.extend(family.routes);
    }
    for AddressDocument { address, gateway } in ips {
        grant.guessed |= gateway.is_none();
        let gateway = gateway.or_else(|| first_of(address));
        let gateway = gateway.filter(|gateway| gateway.is_ipv4() == address.is_ipv4());
        let gateway = gateway.and_then(|gateway| IpNetwork::new(gateway, address.prefix()).ok());
        let gateway = gateway.ok_or_else(|| unusable(format!("address {address} has no gateway")))?;
        grant.addresses.push((address.ip(), gateway));
    }
    if grant.addresses.is_empty() {
        return Err(unusable("it has no address".to_owned()));
    }
    grant.routes = routes.into_iter().map(RouteDocument::route).collect();
    Ok(grant)
}

/// The first address of a subnet: the gateway where nobody names another.
fn first_of(address: IpNetwork) -> Option<IpAddr> {
    match address.network() {
        IpAddr::V4(network) => Some(IpAddr::from(network.to_bits().checked_add(1)?.to_be_bytes())),
        IpAddr::V6(network) => Some(IpAddr::from(network.to_bits().checked_add(1)?.to_be_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_read_in_every_version() {
        let new = br#"{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{}}"#;
        let old = br#"{"ip4":{"ip":"10.1.2.3/24","gateway":"10.1.2.1","routes":[{"dst":"0.0.0.0/0"}]}}"#;
        let (new, old) = (read_grant(new).unwrap(), read_grant(old).unwrap());
        assert!(new.guessed && !old.guessed);
        assert_eq!(new, Grant { guessed: true, ..old });
        assert_eq!(new.addresses, [("10.1.2.3".parse().unwrap(), "10.1.2.1/24".parse().unwrap())]);
        assert_eq!(new.routes.len(), 1);
        let wrong_family = r#"{"ips":[{"address":"10.0.0.1/24","gateway":"fd00::1"}]}"#;
        for bad in ["", "{}", wrong_family, r#"{"ips":[{"address":"x"}]}"#] {
            assert_eq!(read_grant(bad.as_bytes()).unwrap_err().code, Code::Ipam, "{bad}");
        }
    }
}
