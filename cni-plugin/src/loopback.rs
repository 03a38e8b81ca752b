//! The type `loopback`: switches the container's `lo` on.
//!
//! containerd before 2.1 calls a program of that name for every pod, beside the network's (its
//! `use_internal_loopback` is off or missing), and no pod starts without it. Installed under that name as
//! well, this program is all that a node needs; the configuration's `type` tells which plugin is meant.

use netd_kernel::{Mac, Netlink};
use serde_json::{Value, json};

use crate::call::{Call, Verb};
use crate::config::{Dns, Envelope};
use crate::error::{CniError, Code};
use crate::result::{AddResult, Address, Interface};

/// What a configuration calls it.
pub const TYPE: &str = "loopback";

/// The link, whatever interface the runtime names.
const NAME: &str = "lo";

/// Does a call and returns the answer's text.
///
/// # Errors
/// Code 8 for a namespace that is none, 100 when the kernel refuses, 103 when CHECK finds the link down.
pub fn run(call: &Call, envelope: &Envelope) -> Result<String, CniError> {
    match call.verb {
        Verb::Add => add(call, envelope),
        Verb::Check => check(call).map(|()| String::new()),
        // The link goes with its namespace; there is nothing on the host.
        Verb::Del | Verb::Gc | Verb::Status | Verb::Version => Ok(String::new()),
    }
}

fn add(call: &Call, envelope: &Envelope) -> Result<String, CniError> {
    let namespace = call.open_namespace()?;
    let addresses = namespace
        .run(|| {
            let mut netlink = Netlink::open()?;
            let link = netlink.link(NAME)?.ok_or_else(missing)?;
            netlink.set_up(link.index)?;
            netlink.addresses(Some(link.index))
        })
        .and_then(|done| done)
        .map_err(|e| CniError::new(Code::Wiring, "the loopback link cannot be switched on").because(e))?;
    if let Some(Value::Object(previous)) = envelope.previous() {
        let mut previous = previous.clone();
        previous.insert("cniVersion".to_owned(), json!(envelope.version.name()));
        return Ok(Value::Object(previous).to_string());
    }
    let sandbox = call.netns.as_ref().map(|path| path.to_string_lossy().into_owned());
    let link = Interface { name: NAME.to_owned(), mac: Mac([0; 6]), mtu: 65_536, sandbox };
    let addresses = addresses.iter().map(|found| Address { address: found.prefix, gateway: None }).collect();
    let result =
        AddResult { interfaces: vec![link], place: 0, addresses, routes: Vec::new(), dns: Dns::default() };
    result.to_json(envelope.version, None)
}

fn check(call: &Call) -> Result<(), CniError> {
    let link = call
        .open_namespace()?
        .run(|| Netlink::open()?.link(NAME))
        .and_then(|found| found)
        .map_err(|e| CniError::new(Code::Wiring, "the kernel cannot be asked").because(e))?;
    if link.is_some_and(|link| link.up) {
        return Ok(());
    }
    Err(CniError::new(Code::CheckFailed, "the loopback link is down"))
}

fn missing() -> netd_kernel::Error {
    netd_kernel::Error::NotFound { what: format!("link {NAME}") }
}
