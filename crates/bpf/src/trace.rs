//! What the programs would do with a flow, from the maps they read.

use std::collections::BTreeSet;
use std::num::NonZeroU16;

use netd_dataplane::{Outcome, Trace, TraceError};
use netd_ebpf_abi::{HOST, POD, Peer, ServiceKey, Side, action, map};
use netd_model::{Flow, Masquerade, Origin, PoolEndpoint};

use crate::compile;
use crate::error::Error;
use crate::live;
use crate::maps::Maps;

/// The name operators know.
pub(crate) const BACKEND: &str = "ebpf";

/// The trace of any flow where no maps are pinned.
pub(crate) fn nothing_installed() -> Trace {
    Trace { steps: vec!["no maps are pinned".to_owned()], outcome: Outcome::Pass }
}

/// How often a trace that met a change starts again; another process may be applying all the time.
const ATTEMPTS: usize = 16;

/// Follows `flow` through the maps. O(endpoints of its pool).
pub(crate) fn trace(maps: &Maps, flow: &Flow) -> Result<Trace, TraceError> {
    let (class, class_name) = match flow.origin {
        Origin::Host => (HOST, "host"),
        Origin::LocalPod => (POD, "pod"),
        Origin::Remote => {
            let steps = vec!["not a socket on this node: the socket hooks do not see it".to_owned()];
            return Ok(Trace { steps, outcome: Outcome::Pass });
        }
    };
    let key = ServiceKey {
        address: compile::address(flow.destination),
        port: flow.port.get().to_be(),
        protocol: flow.protocol.number(),
        reserved: 0,
    };
    let shown = format!("{}[{} port {} {}]", map::SERVICES, flow.destination, flow.port, flow.protocol);
    let mut missing = String::new();
    for _ in 0..ATTEMPTS {
        let Some(value) = maps.services.value(key).map_err(read)? else {
            return Ok(Trace { steps: vec![format!("{shown}: no such element")], outcome: Outcome::Pass });
        };
        let side = value.sides[class];
        let mut steps = vec![format!("{shown}, {class_name} side: {}", show(&side)?)];
        match outcome(maps, &side, &mut steps)? {
            Ok(outcome) => return Ok(Trace { steps, outcome }),
            Err(MissingSlot(slot)) => missing = slot,
        }
    }
    Err(unknown(format!("{missing} is missing")))
}

/// A slot that the service leads to and that is not there (any more); printed.
struct MissingSlot(String);

fn outcome(
    maps: &Maps,
    side: &Side,
    steps: &mut Vec<String>,
) -> Result<Result<Outcome, MissingSlot>, TraceError> {
    match side.action {
        action::REJECT => Ok(Ok(Outcome::Reject)),
        action::BALANCE => {
            let masquerade = if side.masquerade == 1 { Masquerade::Always } else { Masquerade::Hairpin };
            Ok(endpoints(maps, side, steps)?.map(|endpoints| Outcome::Balance { endpoints, masquerade }))
        }
        _ => Ok(Ok(Outcome::Pass)),
    }
}

fn show(side: &Side) -> Result<String, TraceError> {
    match side.action {
        action::PASS => Ok("left as it is".to_owned()),
        action::REJECT => Ok("refused".to_owned()),
        action::BALANCE => Ok(format!(
            "pool {} generation {} with {} slots, affinity {} s",
            side.pool, side.generation, side.count, side.affinity_seconds
        )),
        other => Err(unknown(format!("action {other} in {}", map::SERVICES))),
    }
}

fn endpoints(
    maps: &Maps,
    side: &Side,
    steps: &mut Vec<String>,
) -> Result<Result<BTreeSet<PoolEndpoint>, MissingSlot>, TraceError> {
    let mut endpoints = BTreeSet::new();
    for index in 0..side.count {
        let shown = format!("{}[{}.{}.{index}]", map::SLOTS, side.pool, side.generation);
        let Some(value) = live::slot(maps, side.pool, side.generation, index).map_err(read)? else {
            return Ok(Err(MissingSlot(shown)));
        };
        let endpoint = endpoint(&value.endpoint).ok_or_else(|| unknown(format!("{shown} has port 0")))?;
        steps.push(format!("{shown}: {} port {}", endpoint.address, endpoint.port));
        endpoints.insert(endpoint);
    }
    Ok(Ok(endpoints))
}

fn endpoint(peer: &Peer) -> Option<PoolEndpoint> {
    let port = NonZeroU16::new(u16::from_be(peer.port))?;
    // The maps do not say where an endpoint runs.
    Some(PoolEndpoint { address: compile::ip(peer.address), port, local: false })
}

fn read(error: Error) -> TraceError {
    TraceError::Read { backend: BACKEND, source: Box::new(error) }
}

fn unknown(detail: String) -> TraceError {
    TraceError::Unknown { backend: BACKEND, detail }
}
