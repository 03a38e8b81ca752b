//! The verdicts of one Service port, by traffic policy and source.

use crate::endpoints::EndpointSets;
use crate::object::{Service, TrafficPolicy};
use crate::plan::{Affinity, Masquerade, PoolId, PoolScope, ServicePortName, Verdict, VerdictBySource};

/// What decides the verdicts of one Service port.
pub(super) struct Decision<'a> {
    pub(super) id: ServicePortName,
    pub(super) service: &'a Service,
    pub(super) sets: &'a EndpointSets,
    pub(super) detects_pods: bool,
    pub(super) masquerade_all: bool,
}

impl Decision<'_> {
    /// Verdicts for a cluster address: `internalTrafficPolicy` chooses the pool; what does not come from a
    /// local pod is masqueraded where pods can be told, so that replies come back through this node.
    pub(super) fn internal(&self) -> VerdictBySource {
        let scope = match self.service.internal_traffic_policy {
            TrafficPolicy::Cluster => PoolScope::Cluster,
            TrafficPolicy::Local => PoolScope::Local,
        };
        let pod = if self.masquerade_all { Masquerade::Always } else { Masquerade::Hairpin };
        let rest = if self.detects_pods { Masquerade::Always } else { pod };
        VerdictBySource {
            pod: self.balance(scope, pod),
            host: self.balance(scope, rest),
            other: self.balance(scope, rest),
        }
    }

    /// Verdicts for node ports, load balancer and external addresses by `externalTrafficPolicy`.
    ///
    /// With `Local`, pods and the node itself get what they would get by way of the load balancer: any
    /// endpoint. All others keep their source and stay on this node.
    pub(super) fn external(&self) -> VerdictBySource {
        match self.service.external_traffic_policy {
            TrafficPolicy::Cluster => {
                VerdictBySource::same(self.balance(PoolScope::Cluster, Masquerade::Always))
            }
            TrafficPolicy::Local => {
                let other = self.balance(PoolScope::Local, Masquerade::Hairpin);
                let pod = if self.detects_pods {
                    self.balance(PoolScope::Cluster, Masquerade::Hairpin)
                } else {
                    other.clone()
                };
                VerdictBySource { pod, host: self.balance(PoolScope::Cluster, Masquerade::Always), other }
            }
        }
    }

    fn balance(&self, scope: PoolScope, masquerade: Masquerade) -> Verdict {
        let endpoints = match scope {
            PoolScope::Cluster => &self.sets.cluster,
            PoolScope::Local => &self.sets.local,
        };
        if !self.sets.any {
            return Verdict::Reject;
        }
        if endpoints.is_empty() {
            return Verdict::Drop;
        }
        Verdict::Balance {
            pool: PoolId { port: self.id.clone(), scope },
            masquerade,
            affinity: self.service.session_affinity.map(|timeout| Affinity { timeout }),
        }
    }
}
