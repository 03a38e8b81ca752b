//! Deletes the links of pods that are gone: the CNI plugin only switches them off and puts them aside, since the kernel
//! takes as long for one as for a hundred of them.

use std::time::Duration;

use anyhow::Result;
use netd_kernel::Netlink;
use netd_kernel::reap::{self, GROUP};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{Surroundings, stopped};

/// Links that are put aside together are deleted together: pods often end by the dozen. While the kernel deletes links,
/// calls of the plugin wait, so that is left until none has come for this long.
const SETTLE: Duration = Duration::from_millis(20);
/// The longest that a link waits while others keep coming.
const LATEST: Duration = Duration::from_millis(250);
/// How long one who has something to delete may take to say so; the plugin takes a millisecond.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a refusal, and while another process has the socket.
const PAUSE: Duration = Duration::from_secs(5);

/// Deletes links until the daemon drains, those that an earlier daemon left first.
pub(super) async fn run(context: Surroundings) -> Result<()> {
    tokio::select! {
        () = serve() => Ok(()),
        () = stopped(context.shutdown.clone()) => Ok(()),
    }
}

/// Links to delete, and when.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    due: Instant,
    latest: Instant,
}

impl Waiting {
    /// What is due at a moment whatever else comes.
    fn since(due: Instant) -> Self {
        Self { due, latest: due }
    }

    /// One more link, put aside `now`.
    fn with_another(waiting: Option<Self>, now: Instant) -> Self {
        let latest = waiting.map_or(now + LATEST, |waiting| waiting.latest);
        Self { due: latest.min(now + SETTLE), latest }
    }
}

async fn serve() {
    let listener = bind().await;
    let (caller, mut called) = tokio::sync::mpsc::unbounded_channel();
    // Before anybody listened nobody was called: what is there was left.
    let mut waiting = Some(Waiting::since(Instant::now()));
    loop {
        let due = async {
            match waiting {
                Some(Waiting { due, .. }) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            call = listener.accept() => match call {
                // Anybody can connect; only root has links to delete.
                Ok((stream, _)) if stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) => {
                    drop(tokio::spawn(hear(stream, caller.clone())));
                }
                Ok(_) => {}
                Err(error) => {
                    warn!(%error, "cannot take a call of the CNI plugin");
                    tokio::time::sleep(SETTLE).await;
                }
            },
            Some(()) = called.recv() => waiting = Some(Waiting::with_another(waiting, Instant::now())),
            () = due => waiting = sweep().await.map(Waiting::since),
        }
    }
}

/// Waits until a caller has put its link aside, has ended, or has had its time.
async fn hear(mut stream: UnixStream, caller: tokio::sync::mpsc::UnboundedSender<()>) {
    let mut said = [0];
    // Killed or hung, it may have done it: a look costs little.
    drop(tokio::time::timeout(PATIENCE, stream.read(&mut said)).await);
    // The receiver is gone only when the daemon ends.
    let _ = caller.send(());
}

/// Deletes all that was put aside; says when to try again.
async fn sweep() -> Option<Instant> {
    let deleted = tokio::task::spawn_blocking(|| Netlink::open()?.delete_group(GROUP)).await;
    let error = match deleted {
        Ok(Ok(())) => {
            debug!("deleted links of pods that are gone");
            return None;
        }
        Ok(Err(error)) if error.is_not_found() => return None,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic.to_string(),
    };
    warn!(error, seconds = PAUSE.as_secs(), "cannot delete the links of pods that are gone; trying again");
    Some(Instant::now() + PAUSE)
}

/// Takes the socket; while another process has it, links are deleted by the plugin itself.
async fn bind() -> UnixListener {
    let mut told = false;
    loop {
        match reap::listen().map_err(anyhow::Error::from).and_then(|l| Ok(UnixListener::from_std(l)?)) {
            Ok(listener) => return listener,
            Err(error) if !told => {
                told = true;
                info!(
                    error = format!("{error:#}"),
                    "cannot delete links for the CNI plugin yet, which does it itself"
                );
            }
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_wait_for_more_of_them_but_not_for_ever() {
        let start = Instant::now();
        let mut waiting = Waiting::with_another(None, start);
        assert_eq!(waiting.due, start + SETTLE);
        for step in 1..100 {
            let now = start + SETTLE / 2 * step;
            waiting = Waiting::with_another(Some(waiting), now);
            assert_eq!(waiting.due, (now + SETTLE).min(start + LATEST));
        }
        let later = start + LATEST;
        assert_eq!(Waiting::with_another(Some(Waiting::since(later)), start).due, start + SETTLE);
    }
}
