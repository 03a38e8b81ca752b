//! The plan as people read it: Services, their destinations and endpoints.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use netd_model::{
    FamilyPlan, Frontend, FrontendKey, FrontendKind, LocalPods, Masquerade, ObjectName, Service, ServicePlan,
    ServiceType, Snapshot, Verdict,
};

use crate::{FrontendState, ServiceState};

/// All Services of a snapshot with what the plan makes of them, ordered by namespace and name.
pub fn services(snapshot: &Snapshot, plan: &ServicePlan) -> Vec<ServiceState> {
    let mut frontends: BTreeMap<&ObjectName, Vec<FrontendState>> = BTreeMap::new();
    for family in [&plan.v4, &plan.v6] {
        for (key, frontend) in &family.frontends {
            let state = frontend_state(key, frontend, family);
            frontends.entry(&frontend.port.service).or_default().push(state);
        }
    }
    let states = snapshot.services.values().map(|service| ServiceState {
        namespace: service.name.namespace.to_string(),
        name: service.name.name.to_string(),
        service_type: type_name(service).to_owned(),
        frontends: frontends.remove(&service.name).unwrap_or_default(),
    });
    states.collect()
}

const fn type_name(service: &Service) -> &'static str {
    match service.service_type {
        ServiceType::ClusterIP if service.headless => "Headless",
        ServiceType::ClusterIP => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
        ServiceType::ExternalName => "ExternalName",
    }
}

const fn kind_name(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIP => "ClusterIP",
        FrontendKind::NodePort => "NodePort",
        FrontendKind::LoadBalancer => "LoadBalancer",
        FrontendKind::ExternalIP => "ExternalIP",
    }
}

const fn verdict_name(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Balance { .. } => "Balance",
        Verdict::Reject => "Reject",
        Verdict::Drop => "Drop",
    }
}

fn frontend_state(key: &FrontendKey, frontend: &Frontend, plan: &FamilyPlan) -> FrontendState {
    let by_source = &frontend.verdicts;
    let mut state = FrontendState {
        key: key.to_string(),
        port: frontend.port.port.to_string(),
        kind: kind_name(frontend.kind).to_owned(),
        verdict: verdict_name(&by_source.other).to_owned(),
        allowed_sources: frontend.allowed_sources.iter().flatten().map(ToString::to_string).collect(),
        ..FrontendState::default()
    };
    let mut sources = vec![("host", &by_source.host), ("other", &by_source.other)];
    if plan.local_pods != LocalPods::None {
        sources.insert(0, ("pod", &by_source.pod));
    }
    let differing = |of: &dyn Fn(&Verdict) -> Option<&'static str>| {
        let differing: Vec<String> = sources
            .iter()
            .filter_map(|(source, verdict)| Some((source, of(verdict)?)))
            .filter(|(_, name)| Some(*name) != of(&by_source.other))
            .map(|(source, name)| format!("{source}: {name}"))
            .collect();
        if differing.is_empty() { String::new() } else { format!(" ({})", differing.join(", ")) }
    };
    state.verdict += &differing(&|verdict| Some(verdict_name(verdict)));
    state.masquerade = masquerade_of(&by_source.other).unwrap_or_default().to_owned();
    state.masquerade += &differing(&masquerade_of);
    state.masquerade = state.masquerade.trim_start().to_owned();
    let mut endpoints = BTreeSet::new();
    for verdict in [&by_source.pod, &by_source.host, &by_source.other] {
        let Verdict::Balance { pool, affinity, .. } = verdict else { continue };
        state.affinity_seconds = affinity.map(|a| a.timeout.as_secs());
        let members = plan.pools.get(pool).into_iter().flat_map(|pool| &pool.endpoints);
        endpoints.extend(members.map(|e| (e.address, e.port)));
    }
    state.endpoints = endpoints
        .into_iter()
        .map(|(ip, port)| std::net::SocketAddr::new(ip, port.get()).to_string())
        .collect();
    state
}

const fn masquerade_of(verdict: &Verdict) -> Option<&'static str> {
    match verdict {
        Verdict::Balance { masquerade: Masquerade::Hairpin, .. } => Some("Hairpin"),
        Verdict::Balance { masquerade: Masquerade::Always, .. } => Some("Always"),
        Verdict::Reject | Verdict::Drop => None,
    }
}

#[cfg(test)]
mod tests;
