//! The scenarios, and the few words they are written in.

mod change;
mod external;
mod internal;

use std::collections::BTreeSet;
use std::net::IpAddr;

use netd_model::build::{
    EndpointBuilder, ServiceBuilder, SliceBuilder, SnapshotBuilder, endpoint, node_view, port, service,
    slice, snapshot,
};
use netd_model::{Family, FrontendAddress, FrontendKey, LocalPods, Masquerade, NodeView, Protocol};

use super::site::{self, Actor};
use super::{Feature, Row, Scenario, Sketch, Step};

const HERE: &str = site::NODE;
const ELSEWHERE: &str = site::OTHER_NODE;
/// A pod that is never an endpoint.
const CLIENT: Actor = Actor::Pod(0);
/// Everybody who connects.
const EVERYBODY: [Actor; 3] = [CLIENT, Actor::Host, Actor::Outside];

/// All scenarios, in the order they are run.
pub fn scenarios() -> Vec<Scenario> {
    let mut all = internal::scenarios();
    all.extend(external::scenarios());
    all.extend(change::scenarios());
    all
}

fn scenario(name: &str, steps: impl IntoIterator<Item = Step>) -> Scenario {
    Scenario { name: name.to_owned(), steps: steps.into_iter().collect() }
}

fn step(name: &str, snapshot: SnapshotBuilder, node: NodeView, rows: impl IntoIterator<Item = Row>) -> Step {
    Step { name: name.to_owned(), snapshot: snapshot.build(), node, rows: rows.into_iter().collect() }
}

/// The node as netd configures it: pods told by prefix, external addresses allowed in the VIP prefix.
fn standard() -> NodeView {
    NodeView {
        zone: Some("zone-a".into()),
        local_pods: LocalPods::Prefixes(Family::ALL.map(site::cluster_cidr).to_vec()),
        allowed_external_ips: Family::ALL.map(site::vip_cidr).to_vec(),
        ..node_view(HERE)
    }
}

/// The node when its pods cannot be told.
fn undetected() -> NodeView {
    NodeView { local_pods: LocalPods::None, ..standard() }
}

/// A cluster with only its node.
fn cluster() -> SnapshotBuilder {
    let addresses = Family::ALL.map(|family| site::node(family).to_string());
    snapshot().node(HERE, &addresses.each_ref().map(String::as_str))
}

/// A Service with the cluster address of this number in both families.
fn dual(name: &str, number: u8) -> ServiceBuilder {
    let [v4, v6] = Family::ALL.map(|family| site::cluster_ip(number, family).to_string());
    service(name).cluster_ip(&v4).cluster_ip(&v6)
}

/// Ports of slices: name, protocol, number.
type Ports<'a> = &'a [(&'a str, Protocol, u16)];

const TCP_8080: Ports<'static> = &[("", Protocol::Tcp, 8080)];
const UDP_5353: Ports<'static> = &[("", Protocol::Udp, 5353)];

/// Pods behind a Service, in both families.
struct Backs<'a> {
    ports: Ports<'a>,
    local: &'a [u8],
    remote: &'a [u8],
}

/// Adds slices of both families with ready endpoints.
fn back(snapshot: SnapshotBuilder, service: &str, backs: &Backs<'_>) -> SnapshotBuilder {
    back_as(snapshot, service, backs, |_, endpoint| endpoint)
}

/// Adds slices of both families whose endpoints are adjusted; the first argument says whether it is local.
fn back_as(
    mut snapshot: SnapshotBuilder,
    service: &str,
    backs: &Backs<'_>,
    adjust: impl Fn(bool, EndpointBuilder) -> EndpointBuilder,
) -> SnapshotBuilder {
    for family in Family::ALL {
        let name = format!("{service}-{family}").to_lowercase();
        let mut made: SliceBuilder = slice(service).named(&name);
        for (name, protocol, number) in backs.ports {
            made = made.port(name, *protocol, *number);
        }
        for number in backs.local {
            let address = site::pod(*number, family).to_string();
            made = made.endpoint(adjust(true, endpoint(&address).node(HERE)));
        }
        for number in backs.remote {
            let address = site::remote_pod(*number, family).to_string();
            made = made.endpoint(adjust(false, endpoint(&address).node(ELSEWHERE)));
        }
        snapshot = snapshot.slice(made);
    }
    snapshot
}

/// Rows for both families.
fn both(rows: impl Fn(Family) -> Vec<Row>) -> Vec<Row> {
    Family::ALL.into_iter().flat_map(rows).collect()
}

/// A row of each actor.
fn each(actors: &[Actor], row: impl Fn(Actor) -> Row) -> Vec<Row> {
    actors.iter().copied().map(row).collect()
}

/// Where a row goes.
#[derive(Clone, Copy)]
struct To {
    address: IpAddr,
    kind: Feature,
    protocol: Protocol,
    port: u16,
}

impl To {
    /// A cluster address, by TCP.
    fn cluster_ip(number: u8, family: Family, port: u16) -> Self {
        Self {
            address: site::cluster_ip(number, family),
            kind: Feature::ClusterIP,
            protocol: Protocol::Tcp,
            port,
        }
    }

    /// A node port on the node's LAN address, by TCP.
    fn node_port(family: Family, port: u16) -> Self {
        Self { address: site::node(family), kind: Feature::NodePort, protocol: Protocol::Tcp, port }
    }

    /// A load balancer address, by TCP.
    fn load_balancer(number: u8, family: Family, port: u16) -> Self {
        Self {
            address: site::vip(number, family),
            kind: Feature::LoadBalancer,
            protocol: Protocol::Tcp,
            port,
        }
    }

    /// An external address, by TCP.
    fn external_ip(number: u8, family: Family, port: u16) -> Self {
        Self { kind: Feature::ExternalIP, ..Self::load_balancer(number, family, port) }
    }

    /// The same by another protocol.
    fn by(self, protocol: Protocol) -> Self {
        Self { protocol, ..self }
    }

    /// The same at another address.
    fn at(self, address: IpAddr) -> Self {
        Self { address, ..self }
    }
}

/// A flow and its expectation's shape; the features follow from it, more may be added.
fn row(from: Actor, to: To, sketch: Sketch) -> Row {
    let frontend_address = if to.kind == Feature::NodePort {
        FrontendAddress::NodePort
    } else {
        FrontendAddress::Ip(to.address)
    };
    let mut features = BTreeSet::from([
        to.kind,
        match Family::of(to.address) {
            Family::V4 => Feature::IPv4,
            Family::V6 => Feature::IPv6,
        },
        match to.protocol {
            Protocol::Tcp => Feature::Tcp,
            Protocol::Udp => Feature::Udp,
            Protocol::Sctp => Feature::Sctp,
        },
        match from {
            Actor::Pod(_) => Feature::FromPod,
            Actor::Host => Feature::FromHost,
            Actor::Outside => Feature::FromOutside,
        },
    ]);
    match sketch {
        Sketch::Reject => features.insert(Feature::Reject),
        Sketch::Drop => features.insert(Feature::Drop),
        Sketch::Balance(..) | Sketch::Pass => false,
    };
    Row {
        from,
        to: to.address,
        protocol: to.protocol,
        port: to.port,
        frontend: FrontendKey { address: frontend_address, protocol: to.protocol, port: port(to.port) },
        features,
        sketch,
    }
}

impl Row {
    /// Adds features that the Service behind the row needs.
    fn needs(mut self, features: impl IntoIterator<Item = Feature>) -> Self {
        self.features.extend(features);
        self
    }
}

/// Balanced over this many endpoints, masqueraded only for hairpin.
const fn plain(endpoints: usize) -> Sketch {
    Sketch::Balance(endpoints, Masquerade::Hairpin)
}

/// Balanced over this many endpoints, always masqueraded.
const fn masqueraded(endpoints: usize) -> Sketch {
    Sketch::Balance(endpoints, Masquerade::Always)
}

/// What an actor experiences at a cluster address when pods are told by prefix.
fn internal(actor: Actor, endpoints: usize) -> Sketch {
    match actor {
        Actor::Pod(_) => plain(endpoints),
        Actor::Host | Actor::Outside => masqueraded(endpoints),
    }
}
