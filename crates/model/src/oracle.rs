//! What a flow must experience under a plan: the reference that kernels are compared with.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::object::{Family, Protocol};
use crate::plan::{
    FamilyPlan, Frontend, FrontendAddress, FrontendKey, LocalPods, Masquerade, NodePortAddresses,
    PoolEndpoint, ServicePlan, Verdict,
};

/// Where a new flow starts, as seen from the node that is planned for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A pod on this node.
    LocalPod,
    /// A process in the node's own network namespace.
    Host,
    /// Arrives from another machine.
    Remote,
}

/// The first packet of a new flow at this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Where it starts.
    pub origin: Origin,
    /// Interface it arrives on, where known (`LocalPods::BridgeInterface` and its kin need it).
    pub in_interface: Option<String>,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// True when the destination is an address of this node.
    pub destination_is_local: bool,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: NonZeroU16,
}

/// What the flow must experience.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expected {
    /// One of these endpoints answers.
    Balance {
        /// Candidates, never empty.
        endpoints: BTreeSet<PoolEndpoint>,
        /// Whether the endpoint sees the node's address instead of the client's.
        masquerade: Masquerade,
    },
    /// Refused at once.
    Reject,
    /// No answer.
    Drop,
    /// Not a Service: routed as if netd were not there.
    Pass,
}

impl Expected {
    /// Says whether an answer from `endpoint` to `source` shows the node's address instead of the client's.
    ///
    /// False for everything but [`Expected::Balance`].
    pub fn is_masqueraded(&self, source: IpAddr, endpoint: IpAddr) -> bool {
        match self {
            Self::Balance { masquerade: Masquerade::Always, .. } => true,
            Self::Balance { masquerade: Masquerade::Hairpin, .. } => source == endpoint,
            Self::Reject | Self::Drop | Self::Pass => false,
        }
    }
}

/// Says what `flow` must experience under `plan`. Pure; O(log n) plus the length of the source ranges.
///
/// This is the reference, so it reads the plan the way a packet meets a node and shares nothing with the
/// planner or a backend: which destination is it, may this source come in, whose source is it, what then.
pub fn verdict(plan: &ServicePlan, flow: &Flow) -> Expected {
    let family = Family::of(flow.destination);
    if Family::of(flow.source) != family {
        return Expected::Pass;
    }
    let plan = plan.family(family);
    let Some(frontend) = destination(plan, flow) else { return Expected::Pass };
    if let Some(ranges) = &frontend.allowed_sources
        && !contains(ranges, flow.source)
    {
        return Expected::Drop;
    }
    let verdicts = &frontend.verdicts;
    let verdict = if is_local_pod(&plan.local_pods, flow) {
        &verdicts.pod
    } else {
        match flow.origin {
            Origin::Host => &verdicts.host,
            Origin::LocalPod | Origin::Remote => &verdicts.other,
        }
    };
    match verdict {
        Verdict::Reject => Expected::Reject,
        Verdict::Drop => Expected::Drop,
        Verdict::Balance { pool, masquerade, affinity: _ } => match plan.pools.get(pool) {
            Some(pool) if !pool.endpoints.is_empty() => Expected::Balance {
                endpoints: pool.endpoints.iter().copied().collect(),
                masquerade: *masquerade,
            },
            // The planner never makes such a plan; nothing could answer.
            Some(_) | None => Expected::Reject,
        },
    }
}

/// The frontend a flow is for. An address of its own comes before a node port on the same address.
fn destination<'p>(plan: &'p FamilyPlan, flow: &Flow) -> Option<&'p Frontend> {
    let at = |address| plan.frontends.get(&FrontendKey { address, protocol: flow.protocol, port: flow.port });
    at(FrontendAddress::Ip(flow.destination)).or_else(|| {
        let serves_node_ports = match &plan.node_port_addresses {
            NodePortAddresses::AllLocal => true,
            NodePortAddresses::Prefixes(prefixes) => contains(prefixes, flow.destination),
        };
        let is_candidate = flow.destination_is_local && !flow.destination.is_loopback();
        if is_candidate && serves_node_ports { at(FrontendAddress::NodePort) } else { None }
    })
}

/// Where the interface decides and is not known, the origin does.
fn is_local_pod(local_pods: &LocalPods, flow: &Flow) -> bool {
    let arrives_on = |is_named: &dyn Fn(&str) -> bool| match &flow.in_interface {
        Some(interface) => is_named(interface),
        None => flow.origin == Origin::LocalPod,
    };
    match local_pods {
        LocalPods::None => false,
        LocalPods::Prefixes(prefixes) => contains(prefixes, flow.source),
        LocalPods::BridgeInterface(bridge) => arrives_on(&|interface| interface == bridge),
        LocalPods::InterfaceNamePrefix(prefix) => arrives_on(&|interface| interface.starts_with(prefix)),
    }
}

fn contains(prefixes: &[IpNetwork], address: IpAddr) -> bool {
    prefixes.iter().any(|prefix| prefix.contains(address))
}

#[cfg(test)]
mod tests;
