//! From a plan to what the maps must hold. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netd_dataplane::Refusal;
use netd_ebpf_abi::{Address, Peer, ServiceKey};
use netd_model::{
    Family, FamilyPlan, Frontend, FrontendAddress, FrontendKey, FrontendKind, LocalPods, Masquerade,
    PoolEndpoint, PoolId, Protocol, ServicePlan, Verdict,
};

/// A pool of one family; both families of a Service port have pools of the same id.
pub(crate) type PoolName = (Family, PoolId);

/// What the maps must hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// By destination: what is done for [`HOST`](netd_ebpf_abi::HOST) and [`POD`](netd_ebpf_abi::POD).
    pub services: BTreeMap<ServiceKey, [WantedSide; 2]>,
    /// Endpoints of the pools that the services name.
    pub pools: BTreeMap<PoolName, Vec<Peer>>,
    /// What was left out.
    pub refused: Vec<Refusal>,
}

/// What is done with the flows of one class of sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WantedSide {
    Reject,
    Balance { pool: PoolName, masquerade: bool, affinity_seconds: u32 },
}

/// Compiles a plan. O(frontends + endpoints).
pub(crate) fn compile(plan: &ServicePlan) -> Wanted {
    let mut wanted = Wanted::default();
    for family in [&plan.v4, &plan.v6] {
        for (key, frontend) in &family.frontends {
            if let Err(reason) = add(&mut wanted, family, key, frontend) {
                wanted.refused.push(Refusal {
                    frontend: key.to_string(),
                    service: frontend.port.to_string(),
                    reason: reason.to_owned(),
                });
            }
        }
    }
    wanted
}

fn add(
    wanted: &mut Wanted,
    plan: &FamilyPlan,
    key: &FrontendKey,
    frontend: &Frontend,
) -> Result<(), &'static str> {
    let service = service_key(key, frontend)?;
    let of_pods = match plan.local_pods {
        // Nothing tells pods from other sources, so they are treated as those.
        LocalPods::None => &frontend.verdicts.other,
        LocalPods::Prefixes(_) | LocalPods::BridgeInterface(_) | LocalPods::InterfaceNamePrefix(_) => {
            &frontend.verdicts.pod
        }
    };
    let host = side(plan, &frontend.verdicts.host)?;
    let pod = side(plan, of_pods)?;
    if matches!(pod, WantedSide::Balance { masquerade: true, .. }) {
        return Err("masquerading pods: a socket keeps its own address");
    }
    for side in [&host, &pod] {
        if let WantedSide::Balance { pool, .. } = side
            && !wanted.pools.contains_key(pool)
        {
            wanted.pools.insert(pool.clone(), endpoints(plan, &pool.1).iter().map(peer).collect());
        }
    }
    wanted.services.insert(service, [host, pod]);
    Ok(())
}

/// The map key of a frontend that a socket hook can serve in full.
fn service_key(key: &FrontendKey, frontend: &Frontend) -> Result<ServiceKey, &'static str> {
    match frontend.kind {
        FrontendKind::ClusterIP => {}
        FrontendKind::NodePort => return Err("node port: a socket hook does not see traffic from outside"),
        FrontendKind::LoadBalancer => {
            return Err("load balancer address: a socket hook does not see traffic from outside");
        }
        FrontendKind::ExternalIP => {
            return Err("external address: a socket hook does not see traffic from outside");
        }
    }
    if frontend.allowed_sources.is_some() {
        return Err("source ranges: a socket hook does not know the source address yet");
    }
    match key.protocol {
        Protocol::Tcp | Protocol::Udp => {}
        Protocol::Sctp => return Err("SCTP: not translated by the socket hooks"),
    }
    let FrontendAddress::Ip(ip) = key.address else {
        return Err("node port: a socket hook does not see traffic from outside");
    };
    Ok(ServiceKey {
        address: address(ip),
        port: key.port.get().to_be(),
        protocol: key.protocol.number(),
        reserved: 0,
    })
}

fn side(plan: &FamilyPlan, verdict: &Verdict) -> Result<WantedSide, &'static str> {
    match verdict {
        Verdict::Reject => Ok(WantedSide::Reject),
        Verdict::Drop => Err("drop: a socket hook can only refuse"),
        // Nothing could answer, so it is the same as no pool.
        Verdict::Balance { pool, .. } if endpoints(plan, pool).is_empty() => Ok(WantedSide::Reject),
        Verdict::Balance { pool, masquerade, affinity } => Ok(WantedSide::Balance {
            pool: (plan.family, pool.clone()),
            masquerade: *masquerade == Masquerade::Always,
            // Kubernetes allows a day at most; 0 would be no affinity.
            affinity_seconds: affinity
                .map_or(0, |affinity| u32::try_from(affinity.timeout.as_secs()).unwrap_or(u32::MAX).max(1)),
        }),
    }
}

fn endpoints<'p>(plan: &'p FamilyPlan, pool: &PoolId) -> &'p [PoolEndpoint] {
    plan.pools.get(pool).map_or(&[], |pool| &pool.endpoints)
}

fn peer(endpoint: &PoolEndpoint) -> Peer {
    Peer { address: address(endpoint.address), port: endpoint.port.get().to_be(), reserved: 0 }
}

/// An address as the maps have it.
pub(crate) fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => Address::from_octets(v4.to_ipv6_mapped().octets()),
        IpAddr::V6(v6) => Address::from_octets(v6.octets()),
    }
}

/// An address of the maps as people write it.
pub(crate) fn ip(address: Address) -> IpAddr {
    IpAddr::from(address.octets()).to_canonical()
}

#[cfg(test)]
mod tests;
