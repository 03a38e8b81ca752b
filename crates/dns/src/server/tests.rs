use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::answer::tests::{packet, show, view, zone};
use crate::wire::rtype;

const WEB: &str = "web.default.svc.cluster.local";
const ANSWER: &str = "NOERROR | web.default.svc.cluster.local 5 A 10.96.0.10";

/// A running server on loopback.
struct Running {
    address: SocketAddr,
    views: SharedView,
    metrics: Arc<Metrics>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), Error>>,
}

fn start(config: ServerConfig) -> Running {
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let server = Server::bind(ServerConfig { listen, ..config }).unwrap();
    let (address, metrics) = (server.local_addresses()[0], server.metrics());
    let views = Arc::new(ArcSwap::from_pointee(view()));
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async move {
        let _signal = stopped.await;
    };
    let task = tokio::spawn(server.run(Arc::clone(&views), shutdown));
    Running { address, views, metrics, stop, task }
}

async fn soon<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(15), future).await.expect("nothing happened within 15 s")
}

async fn ask_udp(server: SocketAddr, packet: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(packet).await.unwrap();
    let mut buffer = vec![0; 4096];
    let length = soon(socket.recv(&mut buffer)).await.unwrap();
    buffer.truncate(length);
    buffer
}

fn framed(packet: &[u8]) -> Vec<u8> {
    let mut framed = u16::try_from(packet.len()).unwrap().to_be_bytes().to_vec();
    framed.extend_from_slice(packet);
    framed
}

async fn read_reply(stream: &mut TcpStream) -> Vec<u8> {
    let length = soon(stream.read_u16()).await.unwrap();
    let mut reply = vec![0; usize::from(length)];
    soon(stream.read_exact(&mut reply)).await.unwrap();
    reply
}

#[tokio::test]
async fn udp_and_tcp_answer_on_the_same_port() {
    let server = start(ServerConfig::default());
    let query = packet(WEB, rtype::A);
    assert_eq!(show(&ask_udp(server.address, &query).await), ANSWER);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&framed(&query)).await.unwrap();
    assert_eq!(show(&read_reply(&mut stream).await), ANSWER);
    let counters = server.metrics.snapshot();
    assert_eq!(counters.total_requests(), 2);
    assert_eq!(counters.total_responses("NOERROR"), 2);
    assert_eq!(
        counters.requests.iter().map(|r| (r.transport, r.record_type, r.count)).collect::<Vec<_>>(),
        [(Transport::Udp, "A", 1), (Transport::Tcp, "A", 1)]
    );
    server.stop.send(()).unwrap();
    soon(server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_new_view_is_served_at_once() {
    let server = start(ServerConfig::default());
    let query = packet(WEB, rtype::A);
    server.views.store(Arc::new(View::unsynced(zone())));
    assert_eq!(show(&ask_udp(server.address, &query).await), "SERVFAIL");
    server.views.store(Arc::new(view()));
    assert_eq!(show(&ask_udp(server.address, &query).await), ANSWER);
}

#[tokio::test]
async fn pipelined_requests_are_all_answered() {
    let server = start(ServerConfig::default());
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let mut sent = Vec::new();
    for id in 0..50u8 {
        let mut query = packet(WEB, rtype::A);
        query[1] = id;
        sent.extend(framed(&query));
    }
    // In pieces that cut through length prefixes and messages.
    for piece in sent.chunks(7) {
        stream.write_all(piece).await.unwrap();
    }
    for id in 0..50u8 {
        let reply = read_reply(&mut stream).await;
        assert_eq!(reply[1], id);
        assert_eq!(show(&reply), ANSWER);
    }
}

#[tokio::test]
async fn lengths_that_are_no_request_close_the_connection() {
    let server = start(ServerConfig::default());
    for length in [0u16, 11, 4097, 65_535] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&length.to_be_bytes()).await.unwrap();
        let mut rest = Vec::new();
        // A reset counts as closed too.
        let _closed = soon(stream.read_to_end(&mut rest)).await;
        assert!(rest.is_empty());
    }
    assert_eq!(show(&ask_udp(server.address, &packet(WEB, rtype::A)).await), ANSWER);
}

#[tokio::test]
async fn a_client_that_sends_half_a_request_is_cut_off_after_the_idle_time() {
    let server = start(ServerConfig::default());
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = framed(&packet(WEB, rtype::A));
    stream.write_all(&request[..request.len() - 1]).await.unwrap();
    let started = Instant::now();
    let mut rest = Vec::new();
    let _closed = soon(stream.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
    assert!(started.elapsed() > Duration::from_secs(9), "{:?}", started.elapsed());
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_counted() {
    let server = start(ServerConfig { max_tcp_connections: 1, ..ServerConfig::default() });
    let query = framed(&packet(WEB, rtype::A));
    let mut first = TcpStream::connect(server.address).await.unwrap();
    first.write_all(&query).await.unwrap();
    read_reply(&mut first).await;
    let mut second = TcpStream::connect(server.address).await.unwrap();
    let _closed = soon(second.read_to_end(&mut Vec::new())).await;
    assert_eq!(server.metrics.snapshot().tcp_rejected, 1);
    first.write_all(&query).await.unwrap();
    assert_eq!(show(&read_reply(&mut first).await), ANSWER, "the one that is open goes on");
}

#[tokio::test]
async fn the_access_list_refuses_other_sources() {
    let allow = vec!["192.0.2.0/24".parse().unwrap()];
    let server = start(ServerConfig { allow, ..ServerConfig::default() });
    assert_eq!(show(&ask_udp(server.address, &packet(WEB, rtype::A)).await), "REFUSED");
    assert_eq!(server.metrics.snapshot().refused_by_acl, 1);
}

/// The next query of type A; the forwarder's probes are passed over.
async fn receive_a(upstream: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 512];
    loop {
        let (length, client) = soon(upstream.recv_from(&mut buffer)).await.unwrap();
        let query = &buffer[..length];
        if crate::wire::Request::parse(query).is_ok_and(|r| r.question.qtype == rtype::A) {
            return (query.to_vec(), client);
        }
    }
}

#[tokio::test]
async fn an_upstream_that_sends_queries_back_is_left_out() {
    // A relay whose own upstream is the server, as a local stub resolver may be.
    let relay = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let upstreams = Upstreams::List(vec![relay.local_addr().unwrap()]);
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let server = Server::bind(ServerConfig { listen, upstreams, ..ServerConfig::default() }).unwrap();
    let (address, forwarder) = (server.local_addresses()[0], server.forwarder());
    let views = Arc::new(ArcSwap::from_pointee(view()));
    let _server = tokio::spawn(server.run(views, std::future::pending()));
    let _relay = tokio::spawn(async move {
        let mut buffer = [0; 512];
        loop {
            let (length, _) = relay.recv_from(&mut buffer).await.unwrap();
            let outgoing = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            outgoing.send_to(&buffer[..length], address).await.unwrap();
        }
    });
    let left_out = async {
        while forwarder.enabled() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(left_out).await;
    assert!(forwarder.notes()[0].contains("sends queries back to this server"), "{:?}", forwarder.notes());
    assert_eq!(show(&ask_udp(address, &packet("www.example.com", rtype::A)).await), "REFUSED");
    assert_eq!(show(&ask_udp(address, &packet(WEB, rtype::A)).await), ANSWER);
}

#[tokio::test]
async fn other_names_go_upstream_and_its_silence_is_servfail_in_time_for_cluster_names_too() {
    // Nothing answers: a socket that is never read.
    let hole = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let upstreams = Upstreams::List(vec![hole.local_addr().unwrap()]);
    let server = start(ServerConfig { upstreams, max_forwards: 1, ..ServerConfig::default() });
    let outside = packet("www.example.com", rtype::A);
    let started = Instant::now();
    let address = server.address;
    let waiting = tokio::spawn(async move { ask_udp(address, &outside).await });
    // The hole has the query: the one place for a query under way is taken.
    receive_a(&hole).await;
    let refused = ask_udp(server.address, &packet("www.example.org", rtype::A)).await;
    assert_eq!(show(&refused), "REFUSED");
    let asked = Instant::now();
    assert_eq!(show(&ask_udp(server.address, &packet(WEB, rtype::A)).await), ANSWER);
    assert!(asked.elapsed() < Duration::from_secs(1), "cluster names do not wait for upstreams");
    assert_eq!(show(&soon(waiting).await.unwrap()), "SERVFAIL");
    assert!(started.elapsed() < Duration::from_millis(4900));
    let counters = server.metrics.snapshot();
    assert_eq!((counters.forwards, counters.forward_errors, counters.forward_rejected), (1, 1, 1));
}

#[tokio::test]
async fn an_upstreams_answer_completes_an_alias() {
    let upstream = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let upstreams = Upstreams::List(vec![upstream.local_addr().unwrap()]);
    let server = start(ServerConfig { upstreams, ..ServerConfig::default() });
    let answering = tokio::spawn(async move {
        let (query, client) = receive_a(&upstream).await;
        let mut reply = query[..query.len() - 11].to_vec();
        (reply[2], reply[7], reply[11]) = (0x81, 1, 0);
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
        upstream.send_to(&reply, client).await.unwrap();
    });
    let reply = ask_udp(server.address, &packet("ext.default.svc.cluster.local", rtype::A)).await;
    assert_eq!(
        show(&reply),
        "NOERROR | ext.default.svc.cluster.local 5 CNAME www.example.com, www.example.com 60 A 192.0.2.1"
    );
    soon(answering).await.unwrap();
}

#[tokio::test]
async fn a_taken_port_is_named_with_what_to_do() {
    let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap().into_std().unwrap();
    let address = taken.local_addr().unwrap();
    let config = ServerConfig { listen: vec![address], ..ServerConfig::default() };
    let error = Server::bind(config.clone()).unwrap_err();
    let text = error.to_string();
    let port = address.port();
    assert!(
        text.starts_with(&format!("port {port} on 127.0.0.1 is taken by another process: stop it")),
        "{text}"
    );
    drop(taken);
    let _tcp = std::net::TcpListener::bind(address).unwrap();
    assert!(matches!(Server::bind(config), Err(Error::PortTaken { .. })));
}

#[tokio::test]
async fn addresses_that_cannot_be_served_are_refused() {
    let bind = |listen: &str, freebind| {
        let listen = vec![listen.parse().unwrap()];
        Server::bind(ServerConfig { listen, freebind, ..ServerConfig::default() })
    };
    assert!(matches!(bind("0.0.0.0:0", false), Err(Error::Wildcard { .. })));
    assert!(matches!(bind("192.0.2.99:0", false), Err(Error::AddressMissing { .. })));
    assert!(bind("192.0.2.99:0", true).is_ok(), "an address may come later");
    assert!(bind("[2001:db8::99]:0", true).is_ok());
    assert!(matches!(Server::bind(ServerConfig::default()), Err(Error::NoListenAddress)));
}
