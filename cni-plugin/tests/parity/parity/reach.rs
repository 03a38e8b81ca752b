//! Who reaches whom, with packets, and by which address the other sees them.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use netd_kernel::{Clock, SystemClock};

use super::harness::Space;

/// Much longer than an answer takes, also on a busy machine; only what fails waits for it.
const WAIT: Duration = Duration::from_secs(4);

/// Connects `from` to `to` of `server`, which listens at `listen`, and says what address the server saw.
pub(crate) fn tcp(
    from: &Space,
    to: SocketAddr,
    server: &Space,
    listen: SocketAddr,
) -> Result<IpAddr, String> {
    let listener = patiently(|| server.run(|| TcpListener::bind(listen)))?;
    listener.set_nonblocking(true).unwrap();
    let to = SocketAddr::new(
        to.ip(),
        if to.port() == 0 { listener.local_addr().unwrap().port() } else { to.port() },
    );
    let stream = from.run(|| TcpStream::connect_timeout(&to, WAIT)).map_err(|e| failure(&e))?;
    let own = stream.local_addr().unwrap();
    // The handshake is over for the one who connects before it is for the listener.
    let start = SystemClock.now();
    loop {
        match listener.accept() {
            Ok((_, peer)) => return Ok(peer.ip()),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && start.elapsed() < WAIT => {
                std::thread::yield_now();
            }
            Err(_) => return Err(format!("somebody else answered {own}")),
        }
    }
}

/// Sends a datagram and its answer; says what address the server saw.
pub(crate) fn udp(
    from: &Space,
    to: SocketAddr,
    server: &Space,
    listen: SocketAddr,
) -> Result<IpAddr, String> {
    let server = patiently(|| server.run(|| UdpSocket::bind(listen)))?;
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let client = from.run(|| UdpSocket::bind((any, 0))).unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(WAIT)).unwrap();
    }
    let mut buffer = [0; 16];
    client.send_to(b"question", to).map_err(|e| failure(&e))?;
    let (_, peer) = server.recv_from(&mut buffer).map_err(|_timeout| "no question came".to_owned())?;
    server.send_to(b"answer", peer).map_err(|e| failure(&e))?;
    let (_, by) = client.recv_from(&mut buffer).map_err(|_timeout| "no answer came".to_owned())?;
    if by == to { Ok(peer.ip()) } else { Err(format!("{by} answered")) }
}

/// Listens, also where a program that another test starts at this moment holds the last socket for a little while.
fn patiently<T>(listen: impl Fn() -> std::io::Result<T>) -> Result<T, String> {
    let start = SystemClock.now();
    loop {
        match listen() {
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && start.elapsed() < WAIT => {
                std::thread::yield_now()
            }
            other => return other.map_err(|e| format!("cannot listen: {}", e.kind())),
        }
    }
}

/// How it failed matters little (at once or after a while): that it did is what is compared.
fn failure(_cause: &std::io::Error) -> String {
    "not reached".to_owned()
}
