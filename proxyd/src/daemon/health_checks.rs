//! The servers of `spec.healthCheckNodePort`: a load balancer asks each node for the ready endpoints there
//! (Kubernetes 1.36, `pkg/proxy/healthcheck/service_health.go`).
//!
//! One listener for each Service, family and address; one that cannot be opened is told and tried again, and
//! none of the others waits for it. The counts change only after the rules that go with them are in the
//! kernel.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::http::header::{CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};
use ipnetwork::IpNetwork;
use netd_kernel::netlink::Netlink;
use netd_model::{Dirty, Family, Notice, ObjectName, Snapshot, health_checks};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::Surroundings;
use super::health::ProxyHealth;
use super::http::status;

/// How long until a port that could not be opened is tried again, and until the node's addresses are looked
/// at again where only some of them serve.
const RETRY: Duration = Duration::from_secs(1);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// The reason of upstream's Event for a port that cannot be opened.
const FAILED: &str = "FailedToStartServiceHealthcheck";
/// What a load balancer may weigh the node by (KEP-3836 is about the node, this about a Service).
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The health checks of one Service in one family.
pub(super) type Wanted = BTreeMap<Name, Check>;

/// Whose health check it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    service: ObjectName,
    family: Family,
}

/// Where it is asked and what the answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Check {
    port: NonZeroU16,
    local_endpoints: usize,
}

/// The health checks of the newest snapshot.
#[derive(Debug, Default)]
pub(super) struct Checks {
    wanted: Wanted,
    changed: bool,
}

impl Checks {
    /// Takes over what changed; the cost is that of the Services in `dirty`.
    pub(super) fn update(&mut self, snapshot: &Snapshot, node: &str, dirty: &Dirty) {
        match dirty {
            Dirty::All => {
                let all =
                    snapshot.services.keys().flat_map(|name| of_service(snapshot, name, node)).collect();
                self.changed |= self.wanted != all;
                self.wanted = all;
            }
            Dirty::Services(names) => {
                for name in names {
                    self.replace(name, of_service(snapshot, name, node).collect());
                }
            }
        }
    }

    fn replace(&mut self, service: &ObjectName, checks: Wanted) {
        for family in Family::ALL {
            let name = Name { service: service.clone(), family };
            let before = match checks.get(&name) {
                Some(check) => self.wanted.insert(name.clone(), *check),
                None => self.wanted.remove(&name),
            };
            self.changed |= before.as_ref() != checks.get(&name);
        }
    }

    /// Makes `told` the same; returns whether it was not.
    pub(super) fn tell(&mut self, told: &mut Wanted) -> bool {
        let changed = std::mem::take(&mut self.changed);
        if changed {
            told.clone_from(&self.wanted);
        }
        changed
    }
}

fn of_service(snapshot: &Snapshot, name: &ObjectName, node: &str) -> impl Iterator<Item = (Name, Check)> {
    let service = snapshot.services.get(name);
    service.into_iter().flat_map(move |service| {
        health_checks(service, snapshot.slices_of(name), node).map(|check| {
            let name = Name { service: name.clone(), family: check.family };
            (name, Check { port: check.port, local_endpoints: check.local_endpoints })
        })
    })
}

/// Keeps the servers as wanted until the daemon drains.
pub(super) async fn run(around: Surroundings, mut wanted: watch::Receiver<Wanted>) -> Result<()> {
    let mut shutdown = around.shutdown.clone();
    let mut servers = Servers { around, running: BTreeMap::new(), failing: Vec::new() };
    loop {
        let now = wanted.borrow_and_update().clone();
        servers.reconcile(&now).await;
        let look_again = !now.is_empty() && servers.may_differ_later();
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
            changed = wanted.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(RETRY), if look_again => {}
        }
    }
}

struct Servers {
    around: Surroundings,
    running: BTreeMap<(Name, SocketAddr), Server>,
    failing: Vec<Notice>,
}

/// A listener with the task that serves it; both end when it is dropped.
struct Server {
    local_endpoints: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Servers {
    /// Whether a later look may open what this one could not, though nothing else changes.
    fn may_differ_later(&self) -> bool {
        !self.failing.is_empty() || !self.around.config.proxy.node_port_addresses.is_empty()
    }

    async fn reconcile(&mut self, wanted: &Wanted) {
        let sockets = self.sockets(wanted);
        let gone: Vec<_> = self.running.keys().filter(|key| !sockets.contains_key(key)).cloned().collect();
        for key in gone {
            if let Some(mut server) = self.running.remove(&key) {
                server.task.abort();
                // Until then the port is taken, and another Service may want it. An abort is no failure.
                drop((&mut server.task).await);
                debug!(service = %key.0.service, address = %key.1, "closed a health check");
            }
        }
        let mut failing = Vec::new();
        for ((name, address), local_endpoints) in sockets {
            if let Some(server) = self.running.get(&(name.clone(), address)) {
                server.local_endpoints.store(local_endpoints, Ordering::Relaxed);
                continue;
            }
            match self.open(&name, address, local_endpoints) {
                Ok(server) => {
                    debug!(service = %name.service, %address, "opened a health check");
                    self.running.insert((name, address), server);
                }
                Err(error) => failing.push(failure(&name.service, address, &error)),
            }
        }
        for notice in failing.iter().filter(|notice| !self.failing.contains(notice)) {
            warn!(service = %notice.service, problem = notice.message, "a health check cannot be served");
        }
        if failing != self.failing {
            self.around.board.set_health_checks(failing.clone());
            self.failing = failing;
        }
    }

    /// Every socket that is to be open, with its answer.
    fn sockets(&self, wanted: &Wanted) -> BTreeMap<(Name, SocketAddr), usize> {
        let prefixes = &self.around.config.proxy.node_port_addresses;
        let own = if prefixes.is_empty() || wanted.is_empty() { Vec::new() } else { own_addresses(prefixes) };
        let mut sockets = BTreeMap::new();
        for (name, check) in wanted {
            let addresses = match (prefixes.is_empty(), name.family) {
                (true, Family::V4) => vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)],
                (true, Family::V6) => vec![IpAddr::V6(Ipv6Addr::UNSPECIFIED)],
                (false, family) => own.iter().copied().filter(|own| Family::of(*own) == family).collect(),
            };
            for address in addresses {
                let socket = SocketAddr::new(address, check.port.get());
                sockets.insert((name.clone(), socket), check.local_endpoints);
            }
        }
        sockets
    }

    fn open(&self, name: &Name, address: SocketAddr, local_endpoints: usize) -> io::Result<Server> {
        let listener = listen(address)?;
        let local_endpoints = Arc::new(AtomicUsize::new(local_endpoints));
        let answer = Arc::new(Answer {
            service: name.service.clone(),
            local_endpoints: Arc::clone(&local_endpoints),
            health: Arc::clone(&self.around.health),
        });
        let router = Router::new().fallback(move || std::future::ready(answer.give()));
        let service = name.service.clone();
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                warn!(%service, %address, %error, "a health check is no longer served");
            }
        });
        Ok(Server { local_endpoints, task })
    }
}

/// The node's addresses in the prefixes; none when they cannot be read, which is tried again.
fn own_addresses(prefixes: &[IpNetwork]) -> Vec<IpAddr> {
    let addresses = Netlink::open().and_then(|mut netlink| netlink.addresses(None));
    let addresses = addresses.unwrap_or_else(|error| {
        warn!(%error, "the node's addresses cannot be read; health checks wait for them");
        Vec::new()
    });
    let own = addresses.into_iter().map(|address| address.prefix.ip());
    own.filter(|own| prefixes.iter().any(|prefix| prefix.contains(*own))).collect()
}

/// Listens in one family only: the other has a server of its own.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

fn failure(service: &ObjectName, address: SocketAddr, error: &io::Error) -> Notice {
    let port = address.port();
    let message = format!(
        "health checks of Service {service} cannot be answered on {address}: {error}; see who holds the port \
         with ss -ltnp 'sport = :{port}', or give the Service another healthCheckNodePort; tried again every second"
    );
    Notice { service: service.clone(), reason: FAILED.to_owned(), message }
}

/// What one server says, whatever it is asked.
struct Answer {
    service: ObjectName,
    local_endpoints: Arc<AtomicUsize>,
    health: Arc<ProxyHealth>,
}

impl Answer {
    fn give(&self) -> Response {
        let count = self.local_endpoints.load(Ordering::Relaxed);
        let healthy = self.health.is_healthy();
        let headers = [
            (CONTENT_TYPE, "application/json".to_owned()),
            (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
            (WEIGHT, count.to_string()),
        ];
        (status(count > 0 && healthy), headers, body(&self.service, count, healthy)).into_response()
    }
}

/// kube-proxy's body, to the byte.
fn body(service: &ObjectName, local_endpoints: usize, healthy: bool) -> String {
    let ObjectName { namespace, name } = service;
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace:?},\n\t\t\"name\": {name:?}\n\t}},\n\t\
         \"localEndpoints\": {local_endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    )
}

#[cfg(test)]
mod tests;
