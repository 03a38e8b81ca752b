//! Servers: a thread for each port and connection.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};
use serde::{Deserialize, Serialize};

use super::plain;

/// How often a UDP server looks whether it is to end.
const UDP_LOOK: Duration = Duration::from_millis(100);
/// A connection that is silent for so long is closed.
const IDLE: Duration = Duration::from_secs(600);

/// What to serve: IPv4 and IPv6 on all addresses.
///
/// TCP: the line `NAME CLIENT` at once, then every line comes back. UDP: `QUESTION NAME CLIENT`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Serve {
    /// The name it answers with; a word.
    pub name: String,
    /// TCP ports; 0 takes a free one, see [`Server::tcp`].
    pub tcp: Vec<u16>,
    /// UDP ports.
    pub udp: Vec<u16>,
    /// As an agent: go on when the starter ends. Then only the lab's removal ends it.
    #[serde(default)]
    pub stay: bool,
}

impl Serve {
    /// Returns a server of one port, for TCP and UDP.
    pub fn both(name: impl Into<String>, port: u16) -> Self {
        Self { name: name.into(), tcp: vec![port], udp: vec![port], stay: false }
    }
}

/// A running server; it ends when dropped, its open connections when their clients close them.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    listeners: Vec<Arc<TcpListener>>,
    threads: Vec<JoinHandle<()>>,
    tcp: Vec<SocketAddr>,
    udp: Vec<SocketAddr>,
}

impl Server {
    /// Starts serving in the calling thread's network namespace; all ports are open when this returns.
    pub fn start(serve: &Serve) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut server = Self { stop, listeners: vec![], threads: vec![], tcp: vec![], udp: vec![] };
        let name: Arc<str> = serve.name.as_str().into();
        for port in &serve.tcp {
            server.listen(*port, Arc::clone(&name))?;
        }
        for port in &serve.udp {
            server.receive(*port, Arc::clone(&name))?;
        }
        Ok(server)
    }

    /// The TCP addresses it listens on, in the order asked for.
    pub fn tcp(&self) -> &[SocketAddr] {
        &self.tcp
    }

    /// The UDP addresses it listens on, in the order asked for.
    pub fn udp(&self) -> &[SocketAddr] {
        &self.udp
    }

    fn listen(&mut self, port: u16, name: Arc<str>) -> io::Result<()> {
        let listener = Arc::new(dual_stack(port, TcpListener::bind)?);
        self.tcp.push(listener.local_addr()?);
        self.listeners.push(Arc::clone(&listener));
        let stop = Arc::clone(&self.stop);
        self.threads.push(std::thread::spawn(move || accept(&listener, &name, &stop)));
        Ok(())
    }

    fn receive(&mut self, port: u16, name: Arc<str>) -> io::Result<()> {
        let socket = dual_stack(port, UdpSocket::bind)?;
        socket.set_read_timeout(Some(UDP_LOOK))?;
        self.udp.push(socket.local_addr()?);
        let stop = Arc::clone(&self.stop);
        self.threads.push(std::thread::spawn(move || answer_datagrams(&socket, &name, &stop)));
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for listener in &self.listeners {
            // On Linux this wakes the thread that sleeps in accept.
            let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Opens a socket for both families, or for IPv4 alone where IPv6 is switched off.
fn dual_stack<S>(port: u16, open: impl Fn(SocketAddr) -> io::Result<S>) -> io::Result<S> {
    match open(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
        Err(error) if lacks_ipv6(&error) => open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
        other => other,
    }
}

/// Whether the error is that of a machine without IPv6.
fn lacks_ipv6(error: &io::Error) -> bool {
    error
        .raw_os_error()
        .map(Errno::from_raw)
        .is_some_and(|e| matches!(e, Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL))
}

fn accept(listener: &TcpListener, name: &Arc<str>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((stream, peer)) = listener.accept() else { continue };
        let name = Arc::clone(name);
        // A client that leaves early is no error of the server.
        let serve = move || drop(converse(&stream, &name, peer));
        if let Err(error) = std::thread::Builder::new().stack_size(128 * 1024).spawn(serve) {
            tracing::warn!(%error, "cannot start a thread for a connection");
        }
    }
}

fn converse(mut stream: &TcpStream, name: &str, peer: SocketAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE))?;
    stream.write_all(format!("{name} {}\n", plain(peer)).as_bytes())?;
    let mut line = String::new();
    let mut reader = BufReader::new(stream);
    while reader.read_line(&mut line)? > 0 {
        stream.write_all(line.as_bytes())?;
        line.clear();
    }
    Ok(())
}

fn answer_datagrams(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut buffer = [0; 256];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        let question = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
        // The client may be gone; it will have noticed that itself.
        let _ = socket.send_to(format!("{question} {name} {}\n", plain(peer)).as_bytes(), peer);
    }
}
