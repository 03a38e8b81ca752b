//! UDP and TCP servers around the pure core.

mod tcp;
mod udp;

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::answer::{Disposition, Outcome, Query, Transport, answer, complete, fail, is_allowed, relay};
use crate::entropy::Entropy;
use crate::forward::ForwardLimits;
use crate::metrics::{Metrics, Origin, count};
use crate::wire::{header_rcode, is_truncated, rcode};
use crate::zone::View;
use crate::{Error, Forwarder, SharedView, Upstreams};

/// How many pending TCP connections the kernel keeps.
const BACKLOG: i32 = 128;
/// How often a port is drawn again when port 0 was asked for and TCP cannot have UDP's.
const PORT_DRAWS: usize = 16;

/// Settings of the servers.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Addresses to serve over UDP and TCP; none may be a wildcard.
    pub listen: Vec<SocketAddr>,
    /// Bind although the address is not on the node yet (`IP_FREEBIND`).
    pub freebind: bool,
    /// Sources that are answered; empty is all. Others get REFUSED.
    pub allow: Vec<IpNetwork>,
    /// Where other names are resolved.
    pub upstreams: Upstreams,
    /// How many queries may be on their way to upstreams; more are refused.
    pub max_forwards: usize,
    /// Bytes of upstreams' answers that are kept; 0 keeps none. Cluster names are never kept.
    pub cache_bytes: usize,
    /// How many TCP connections may be open; more are closed at once.
    pub max_tcp_connections: usize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            freebind: false,
            allow: Vec::new(),
            upstreams: Upstreams::None,
            max_forwards: 1000,
            cache_bytes: 4 << 20,
            max_tcp_connections: 512,
        }
    }
}

/// Bound sockets, ready to serve.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<SocketAddr>,
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    allow: Vec<IpNetwork>,
    max_tcp_connections: usize,
    metrics: Arc<Metrics>,
    forwarder: Arc<Forwarder>,
}

impl Server {
    /// Binds all addresses, in the network namespace of the calling thread; within a tokio runtime.
    ///
    /// # Errors
    /// The first address that cannot be bound, with what to do about it.
    pub fn bind(config: ServerConfig) -> Result<Self, Error> {
        if config.listen.is_empty() {
            return Err(Error::NoListenAddress);
        }
        let (mut addresses, mut udp, mut tcp) = (Vec::new(), Vec::new(), Vec::new());
        for address in &config.listen {
            if address.ip().is_unspecified() {
                return Err(Error::Wildcard { address: *address });
            }
            let (datagrams, stream, bound) = bind_pair(*address, config.freebind)?;
            addresses.push(bound);
            udp.push(datagrams);
            tcp.push(stream);
        }
        let metrics = Arc::new(Metrics::default());
        let own = addresses.clone();
        let limits = ForwardLimits { in_flight: config.max_forwards, cache_bytes: config.cache_bytes };
        let forwarder = Forwarder::new(config.upstreams, own, limits, Arc::clone(&metrics));
        Ok(Self {
            addresses,
            udp,
            tcp,
            allow: config.allow,
            max_tcp_connections: config.max_tcp_connections,
            metrics,
            forwarder: Arc::new(forwarder),
        })
    }

    /// The addresses that are served, with their real ports.
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        self.addresses.clone()
    }

    /// The counters; they live on after the server.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// The forwarder, for status.
    pub fn forwarder(&self) -> Arc<Forwarder> {
        Arc::clone(&self.forwarder)
    }

    /// Serves out of `views` until `shutdown` resolves.
    ///
    /// # Errors
    /// [`Error::TaskEnded`] or [`Error::Receive`] when a task ends by itself, a panic included; all others are
    /// stopped then, and the caller may bind again.
    pub async fn run(
        self,
        views: SharedView,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), Error> {
        let service = Arc::new(Service {
            views,
            allow: self.allow,
            metrics: self.metrics,
            forwarder: Arc::clone(&self.forwarder),
            entropy: Entropy::default(),
            connections: Arc::new(Semaphore::new(self.max_tcp_connections.min(Semaphore::MAX_PERMITS))),
        });
        let mut tasks = JoinSet::new();
        let mut names = HashMap::new();
        for ((socket, listener), address) in self.udp.into_iter().zip(self.tcp).zip(self.addresses) {
            let task = tasks.spawn(udp::serve(socket, address, Arc::clone(&service)));
            names.insert(task.id(), format!("udp {address}"));
            let task = tasks.spawn(tcp::serve(listener, address, Arc::clone(&service)));
            names.insert(task.id(), format!("tcp {address}"));
        }
        let forwarder = self.forwarder;
        let task = tasks.spawn(async move {
            forwarder.follow().await;
            Ok(())
        });
        names.insert(task.id(), "upstreams".to_owned());
        let ended = tokio::select! {
            () = shutdown => None,
            ended = tasks.join_next_with_id() => ended,
        };
        tasks.shutdown().await;
        let name = |id| names.get(&id).cloned().unwrap_or_default();
        match ended {
            None => Ok(()),
            Some(Ok((_, Err(error)))) => Err(error),
            Some(Ok((id, Ok(())))) => {
                Err(Error::TaskEnded { what: name(id), reason: "it returned".to_owned() })
            }
            Some(Err(error)) => Err(Error::TaskEnded { what: name(error.id()), reason: error.to_string() }),
        }
    }
}

/// Binds UDP and TCP on one address, with the same port where port 0 was asked for.
fn bind_pair(address: SocketAddr, freebind: bool) -> Result<(UdpSocket, TcpListener, SocketAddr), Error> {
    let mut draws = if address.port() == 0 { PORT_DRAWS } else { 1 };
    loop {
        draws -= 1;
        let udp = open(address, freebind, Type::DGRAM).and_then(|socket| UdpSocket::from_std(socket.into()));
        let udp = udp.map_err(|source| Error::bind("udp", address, source))?;
        let bound = udp.local_addr().map_err(|source| Error::bind("udp", address, source))?;
        let tcp = open(bound, freebind, Type::STREAM).and_then(|socket| TcpListener::from_std(socket.into()));
        match tcp {
            Ok(tcp) => return Ok((udp, tcp, bound)),
            Err(source) if draws == 0 => return Err(Error::bind("tcp", bound, source)),
            Err(_taken) => {}
        }
    }
}

fn open(address: SocketAddr, freebind: bool, kind: Type) -> std::io::Result<Socket> {
    let stream = kind == Type::STREAM;
    let protocol = if stream { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if freebind && address.is_ipv6() {
        socket.set_freebind_v6(true)?;
    } else if freebind {
        socket.set_freebind_v4(true)?;
    }
    if stream {
        // Over the remains of old connections, never over a listener.
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(address))?;
    if stream {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}

/// What all sockets share.
#[derive(Debug)]
struct Service {
    views: SharedView,
    allow: Vec<IpNetwork>,
    metrics: Arc<Metrics>,
    forwarder: Arc<Forwarder>,
    entropy: Entropy,
    connections: Arc<Semaphore>,
}

/// What a socket does after a request was looked at.
enum Next {
    /// Send the buffer.
    Send,
    /// Send what this question to an upstream yields.
    Ask(Box<Question>),
    /// Nothing.
    Nothing,
}

/// A request on its way to an upstream.
struct Question {
    service: Arc<Service>,
    view: Arc<View>,
    packet: Vec<u8>,
    transport: Transport,
    seed: u64,
    outcome: Outcome,
    started: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Service {
    /// Looks at a request; the reply, if there is one at once, is in `out`.
    fn take(
        self: &Arc<Self>,
        packet: &[u8],
        (transport, client): (Transport, SocketAddr),
        out: &mut Vec<u8>,
    ) -> Next {
        let started = Instant::now();
        let view = self.views.load();
        let query = Query {
            packet,
            transport,
            recursion: self.forwarder.enabled(),
            allowed: is_allowed(&self.allow, client),
            seed: self.entropy.next(),
        };
        let outcome = answer(&view, &query, out);
        if outcome.disposition == Disposition::Drop || self.is_loop(&outcome, packet) {
            count(&self.metrics.dropped);
            return Next::Nothing;
        }
        self.metrics.request(transport, client, outcome.qtype);
        if !query.allowed {
            count(&self.metrics.refused_by_acl);
        }
        if outcome.disposition == Disposition::Reply {
            self.replied(Origin::Zone, outcome.code, (started, out));
            return Next::Send;
        }
        let Some(permit) = self.forwarder.permit() else {
            let outcome = fail(&query, rcode::REFUSED, out);
            self.replied(Origin::Forward, outcome.code, (started, out));
            return Next::Send;
        };
        Next::Ask(Box::new(Question {
            service: Arc::clone(self),
            view: Arc::clone(&view),
            packet: packet.to_vec(),
            transport,
            seed: query.seed,
            outcome,
            started,
            _permit: permit,
        }))
    }

    /// True for a probe of the forwarder that an upstream sent back: it is not forwarded again.
    fn is_loop(&self, outcome: &Outcome, packet: &[u8]) -> bool {
        outcome.disposition == Disposition::Forward && self.forwarder.is_own_probe(packet)
    }

    fn replied(&self, origin: Origin, code: u16, (started, out): (Instant, &[u8])) {
        if is_truncated(out) {
            count(&self.metrics.truncated);
        }
        self.metrics.response(origin, code, started.elapsed());
    }
}

impl Question {
    /// Asks upstream; the reply is always one to send, an error included.
    async fn ask(self) -> Vec<u8> {
        let forwarder = &self.service.forwarder;
        let query = Query {
            packet: &self.packet,
            transport: self.transport,
            recursion: true,
            allowed: true,
            seed: self.seed,
        };
        let mut out = Vec::new();
        let answered = match (&self.outcome.disposition, self.outcome.qtype) {
            (Disposition::Chase(target), Some(qtype)) => match forwarder.resolve(target, qtype).await {
                Ok(completion) => {
                    complete(&self.view, &query, completion, &mut out);
                    true
                }
                Err(_unanswered) => false,
            },
            _ => match forwarder.forward(&self.packet).await {
                Ok(reply) => relay(&query, &reply, &mut out),
                Err(_unanswered) => false,
            },
        };
        if !answered {
            fail(&query, rcode::SERVFAIL, &mut out);
        }
        self.service.replied(Origin::Forward, header_rcode(&out), (self.started, &out));
        out
    }
}

#[cfg(test)]
mod tests;
