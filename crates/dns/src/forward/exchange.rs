//! One question to one upstream, over UDP or TCP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};

use super::message::is_reply_to;

/// Room for a datagram: more than an upstream is told it may send.
const DATAGRAM: usize = 4096;

/// Asks over UDP; datagrams that do not belong to the question are passed over.
///
/// # Errors
/// `TimedOut` at `until`, or what the kernel says, such as `ConnectionRefused`.
pub(super) async fn udp(
    upstream: SocketAddr,
    message: &[u8],
    question: &[u8],
    until: Instant,
) -> io::Result<Vec<u8>> {
    let exchange = async {
        let any = match upstream.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(upstream).await?;
        socket.send(message).await?;
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let length = socket.recv(&mut buffer).await?;
            let datagram = buffer.get(..length).unwrap_or_default();
            if is_reply_to(datagram, message, question) {
                buffer.truncate(length);
                return Ok(buffer);
            }
        }
    };
    timeout_at(until, exchange).await.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Asks over TCP.
///
/// # Errors
/// As [`udp`], and `InvalidData` for a reply to something else.
pub(super) async fn tcp(
    upstream: SocketAddr,
    message: &[u8],
    question: &[u8],
    until: Instant,
) -> io::Result<Vec<u8>> {
    let exchange = async {
        let mut stream = TcpStream::connect(upstream).await?;
        let length =
            u16::try_from(message.len()).map_err(|_too_long| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut framed = Vec::with_capacity(message.len() + 2);
        framed.extend_from_slice(&length.to_be_bytes());
        framed.extend_from_slice(message);
        stream.write_all(&framed).await?;
        let length = stream.read_u16().await?;
        let mut reply = vec![0; usize::from(length)];
        stream.read_exact(&mut reply).await?;
        if is_reply_to(&reply, message, question) {
            Ok(reply)
        } else {
            Err(io::Error::from(io::ErrorKind::InvalidData))
        }
    };
    timeout_at(until, exchange).await.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))?
}
