//! What this dataplane does and what it leaves to others.

use netd_dataplane::conformance::{Abilities, Feature};

/// What this dataplane leaves to others for every Service, for status and documentation.
///
/// What it leaves for single frontends is in [`Applied::refused`](netd_dataplane::Applied::refused).
pub const LIMITS: &[&str] = &[
    "only sockets in its cgroup are served: packets that arrive from other machines, virtual machines or raw \
     sockets pass by",
    "a pod is any network namespace but the node's, whatever its address",
    "a pod that reaches itself through a Service sees its own address as the peer of the connection",
    "session affinity is kept for a network namespace and apart from that of other dataplanes",
    "a connected UDP socket keeps its endpoint until it connects again",
];

/// What the conformance suite may ask of this dataplane: the rest it must refuse by name, or never sees.
pub fn abilities() -> Abilities {
    Abilities::all()
        .without([
            Feature::Drop,
            Feature::ExternalIP,
            Feature::LoadBalancer,
            Feature::Masquerade,
            Feature::NodePort,
            Feature::Sctp,
            Feature::SourceRanges,
        ])
        .blind_to([Feature::FromOutside])
}
