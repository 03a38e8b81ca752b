//! The network the machines are on: one bridge in a namespace of its own.

use anyhow::Result;

use crate::run::Run;
use crate::tool::ip;

/// The default gateway of every machine: the bridge itself. Nothing is behind it.
pub const GATEWAY: &str = "192.168.1.1";

/// Makes the namespace with the bridge.
///
/// # Errors
/// When `ip` refuses.
pub fn create(run: &Run) -> Result<()> {
    let lan = run.netns("lan");
    ip(&format!("netns add {lan}"))?;
    ip(&format!("-n {lan} link set lo up"))?;
    ip(&format!("-n {lan} link add lan0 type bridge"))?;
    ip(&format!("-n {lan} addr add {GATEWAY}/24 dev lan0"))?;
    ip(&format!("-n {lan} link set lan0 up"))?;
    Ok(())
}

/// Makes a namespace for a machine and plugs it in: `eth0` with the given address.
///
/// # Errors
/// When `ip` refuses.
pub fn plug(run: &Run, machine: &str, address: &str) -> Result<()> {
    let lan = run.netns("lan");
    let netns = run.netns(machine);
    ip(&format!("netns add {netns}"))?;
    ip(&format!("-n {netns} link set lo up"))?;
    ip(&format!("-n {lan} link add {machine} type veth peer name eth0 netns {netns}"))?;
    ip(&format!("-n {lan} link set {machine} master lan0 up"))?;
    ip(&format!("-n {netns} addr add {address}/24 dev eth0"))?;
    ip(&format!("-n {netns} link set eth0 up"))?;
    ip(&format!("-n {netns} route add default via {GATEWAY}"))?;
    Ok(())
}
