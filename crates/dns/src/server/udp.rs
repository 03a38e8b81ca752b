//! Datagrams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tracing::{debug, error};

use super::{Next, Service};
use crate::Error;
use crate::answer::Transport;

/// Room for a request; no client sends larger ones.
const DATAGRAM: usize = 4096;
/// How many receive errors in a row end the task.
const MAX_ERRORS: u32 = 100;
/// Pause after a receive error.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Serves one socket until it fails for good.
pub(super) async fn serve(
    socket: UdpSocket,
    address: SocketAddr,
    service: Arc<Service>,
) -> Result<(), Error> {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; DATAGRAM];
    let mut out = Vec::with_capacity(DATAGRAM);
    let mut questions = JoinSet::new();
    let mut errors = 0;
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(ended) = questions.join_next() => {
                if let Err(failure) = ended {
                    error!(%failure, "dns query to upstream ended badly");
                }
                continue;
            }
        };
        let (length, client) = match received {
            Ok(received) => received,
            Err(source) if errors >= MAX_ERRORS => {
                return Err(Error::Receive { transport: "udp", address, source });
            }
            Err(failure) => {
                errors += 1;
                debug!(%failure, %address, "dns receive failed");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        errors = 0;
        let packet = buffer.get(..length).unwrap_or_default();
        match service.take(packet, (Transport::Udp, client), &mut out) {
            Next::Send => send(&socket, &out, client).await,
            Next::Ask(question) => {
                let socket = Arc::clone(&socket);
                questions.spawn(async move { send(&socket, &question.ask().await, client).await });
            }
            Next::Nothing => {}
        }
    }
}

/// Sends a reply; one that cannot be sent is lost, as datagrams may be, and the client asks again.
async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(failure) = socket.send_to(reply, client).await {
        debug!(%failure, %client, "dns reply not sent");
    }
}
