//! Streams: pipelined requests, replies as they become ready (RFC 7766).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::timeout;
use tracing::{debug, error};

use super::{Next, Service};
use crate::Error;
use crate::answer::Transport;
use crate::metrics::count;
use crate::wire::HEADER_LEN;

/// How long a client has for its next whole request, and to take a reply.
const IDLE: Duration = Duration::from_secs(10);
/// The largest request in bytes; a client that announces more is cut off.
const MAX_REQUEST: usize = 4096;
/// How many replies of one connection wait, and how many of its queries are on their way to upstreams.
const MAX_PENDING: usize = 32;
/// How many connections one client address may have open to one listener.
const MAX_PER_CLIENT: usize = 64;
/// Pause after a failure to accept, such as too many open files.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// Serves one listener for ever.
pub(super) async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    service: Arc<Service>,
) -> Result<(), Error> {
    let mut connections = JoinSet::new();
    let mut clients: HashMap<Id, IpAddr> = HashMap::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next_with_id() => {
                let id = ended.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
                clients.remove(&id);
                if let Err(failure) = ended {
                    error!(%failure, "dns connection ended badly");
                }
                continue;
            }
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(failure) => {
                debug!(%failure, %address, "dns accept failed");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        let crowded = clients.values().filter(|c| **c == client.ip()).count() >= MAX_PER_CLIENT;
        let permit = Arc::clone(&service.connections).try_acquire_owned().ok().filter(|_| !crowded);
        let Some(permit) = permit else {
            count(&service.metrics.tcp_rejected);
            continue;
        };
        count(&service.metrics.tcp_connections);
        let service = Arc::clone(&service);
        let task = connections.spawn(async move {
            converse(stream, client, service).await;
            drop(permit);
        });
        clients.insert(task.id(), client.ip());
    }
}

/// Reads requests until the client ends, idles or errs; then waits for the replies under way.
async fn converse(stream: TcpStream, client: SocketAddr, service: Arc<Service>) {
    if let Err(failure) = stream.set_nodelay(true) {
        debug!(%failure, %client, "dns connection without TCP_NODELAY");
    }
    let (mut reader, writer) = stream.into_split();
    let (replies, queue) = mpsc::channel(MAX_PENDING);
    let room = Arc::new(Semaphore::new(MAX_PENDING));
    let mut tasks = JoinSet::new();
    tasks.spawn(write_replies(writer, queue));
    let mut out = Vec::new();
    while let Ok(Ok(Some(packet))) = timeout(IDLE, read_request(&mut reader)).await {
        match service.take(&packet, (Transport::Tcp, client), &mut out) {
            Next::Nothing => break,
            Next::Send => {
                if replies.send(out.clone()).await.is_err() {
                    break;
                }
            }
            Next::Ask(question) => {
                let Ok(permit) = Arc::clone(&room).acquire_owned().await else { break };
                let replies = replies.clone();
                tasks.spawn(async move {
                    // A closed queue is a client that went away.
                    let _sent = replies.send(question.ask().await).await;
                    drop(permit);
                });
            }
        }
        while let Some(ended) = tasks.try_join_next() {
            if let Err(failure) = ended {
                error!(%failure, "dns query to upstream ended badly");
            }
        }
    }
    drop(replies);
    while tasks.join_next().await.is_some() {}
}

/// Reads one length-prefixed request; `None` at the end of the stream or for a length that is none.
async fn read_request(reader: &mut OwnedReadHalf) -> io::Result<Option<Vec<u8>>> {
    let length = match reader.read_u16().await {
        Ok(length) => usize::from(length),
        Err(end) if end.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(failure) => return Err(failure),
    };
    if !(HEADER_LEN..=MAX_REQUEST).contains(&length) {
        return Ok(None);
    }
    let mut packet = vec![0; length];
    reader.read_exact(&mut packet).await?;
    Ok(Some(packet))
}

/// Writes replies until the queue is closed and empty, or the client does not take them.
async fn write_replies(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(reply) = queue.recv().await {
        let Ok(length) = u16::try_from(reply.len()) else { continue };
        let mut framed = Vec::with_capacity(reply.len() + 2);
        framed.extend_from_slice(&length.to_be_bytes());
        framed.extend_from_slice(&reply);
        match timeout(IDLE, writer.write_all(&framed)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
