//! Clients: one question each.

use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use netd_kernel::clock::Deadline;

use super::{Outcome, Protocol, plain};

/// The longest answer, in bytes.
const ANSWER_MAX: u64 = 512;

/// What a server says: its name, and the client's address as it sees it.
type Answer = (String, SocketAddr, SocketAddr);

/// Asks once, by the protocol.
pub fn probe_once(protocol: Protocol, target: SocketAddr, timeout: Duration) -> Outcome {
    match protocol {
        Protocol::Tcp => connect_once(target, timeout),
        Protocol::Udp => udp_once(target, timeout),
        Protocol::UdpUnconnected => udp_unconnected_once(target, timeout),
    }
}

/// Connects once over TCP and reads who answered; connecting and reading may each take `timeout`.
pub fn connect_once(target: SocketAddr, timeout: Duration) -> Outcome {
    outcome(ask_tcp(target, timeout))
}

/// Asks once from a connected UDP socket.
pub fn udp_once(target: SocketAddr, timeout: Duration) -> Outcome {
    outcome(ask_udp(target, timeout, true))
}

/// Asks once from an unconnected UDP socket; an answer from another address than `target` does not count.
///
/// The kernel tells such a socket of no ICMP error, so a refusal is [`Outcome::TimedOut`] here.
pub fn udp_unconnected_once(target: SocketAddr, timeout: Duration) -> Outcome {
    outcome(ask_udp(target, timeout, false))
}

fn outcome(answer: io::Result<Answer>) -> Outcome {
    match answer {
        Ok((server, peer, remote)) => Outcome::Answered { server, peer, remote },
        Err(error) => Outcome::of_error(&error),
    }
}

fn ask_tcp(target: SocketAddr, timeout: Duration) -> io::Result<Answer> {
    let stream = TcpStream::connect_timeout(&target, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    let remote = stream.peer_addr()?;
    let mut line = String::new();
    BufReader::new(stream.take(ANSWER_MAX)).read_line(&mut line)?;
    let (server, peer) = read_answer(&line)?;
    Ok((server, peer, plain(remote)))
}

fn ask_udp(target: SocketAddr, timeout: Duration, connected: bool) -> io::Result<Answer> {
    let any = match target.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    let question = question();
    if connected {
        socket.connect(target)?;
        socket.send(question.as_bytes())?;
    } else {
        socket.send_to(question.as_bytes(), target)?;
    }
    let deadline = Deadline::after(timeout);
    let mut buffer = [0; ANSWER_MAX as usize];
    loop {
        let left = deadline.left();
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let (length, from) = match socket.recv_from(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
        // A late answer to an earlier question may come to the same port.
        let Some(answer) = text.strip_prefix(&question).and_then(|rest| rest.strip_prefix(' ')) else {
            continue;
        };
        let remote = if connected { socket.peer_addr()? } else { from };
        if !connected && plain(remote) != target {
            return Err(io::Error::other(format!("an answer came from {remote}")));
        }
        let (server, peer) = read_answer(answer)?;
        return Ok((server, peer, plain(remote)));
    }
}

/// A text that no other question of this process has.
fn question() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("q{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn read_answer(line: &str) -> io::Result<(String, SocketAddr)> {
    let parsed =
        line.trim_end().rsplit_once(' ').and_then(|(name, peer)| Some((name.to_owned(), peer.parse().ok()?)));
    let closed =
        || if line.is_empty() { "closed without an answer".to_owned() } else { format!("answer {line:?}") };
    parsed.ok_or_else(|| io::Error::other(closed()))
}
