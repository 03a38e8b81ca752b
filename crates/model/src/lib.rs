//! What a Service means on a node, decided once and without any I/O.
//!
//! - [`object`]: names, protocols and the slim Kubernetes objects the planner reads
//! - [`snapshot`]: all objects at one generation
//! - [`endpoints`]: which endpoints a Service uses on this node (kube-proxy's `CategorizeEndpoints`)
//! - [`health`]: what load balancers are told of the endpoints on this node
//! - [`build`]: short ways to write all of these in tests and scenarios
//! - [`mod@plan`]: frontends, pools and verdicts that a dataplane renders
//! - [`ordered`], [`shared`]: collections whose clones share what they have in common
//! - [`oracle`]: what a flow must experience under a plan; the tests compare the kernel with it

#![forbid(unsafe_code)]

pub mod build;
pub mod endpoints;
pub mod health;
pub mod object;
pub mod oracle;
pub mod ordered;
pub mod plan;
pub mod shared;
pub mod snapshot;

pub use health::{HealthCheck, health_checks};
pub use object::{
    Endpoint, EndpointPort, EndpointSlice, Family, LoadBalancerIngress, Node, ObjectName, Protocol, Service,
    ServicePort, ServiceType, TrafficPolicy,
};
pub use oracle::{Expected, Flow, Origin, verdict};
pub use ordered::OrderedMap;
pub use plan::{
    Affinity, Dirty, FamilyPlan, Frontend, FrontendAddress, FrontendKey, FrontendKind, LocalPods, Masquerade,
    NodePortAddresses, NodeView, Notice, Planner, Pool, PoolEndpoint, PoolId, PoolScope, Scope, ServicePlan,
    ServicePortName, Verdict, VerdictBySource, plan,
};
pub use shared::Shared;
pub use snapshot::{Problem, Snapshot};
