//! List and watch of a Kubernetes API server.
//!
//! kube's watcher lists (by streaming where the server can), watches with bookmarks, resumes and lists again
//! after 410. This module decides when to retry and with what, and tells the index about contact: kube's watcher
//! is silent when a watch is resumed, so contact is seen at the client, below it.

mod backoff;
mod connection;
mod discovery;
#[cfg(test)]
mod fake;
mod feed;

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{info, warn};

pub(crate) use connection::Connection;

use crate::decode;
use crate::error::Error;
use crate::index::task::Message;
use crate::index::{Entry, Kind};
use crate::wire::endpoints::{EndpointSlice, Endpoints};
use crate::wire::node::{Namespace, Node};
use crate::wire::service::Service;
use backoff::Backoff;
use discovery::SliceSource;
use feed::{Ended, Feed};

/// How long to wait before the configuration is read again after it failed.
const RENEW_PAUSE: Duration = Duration::from_secs(1);

/// Follows all kinds for ever. Returns only when the index is gone.
pub(crate) async fn follow(mut connection: Connection, to: mpsc::Sender<Message>) -> Result<(), Error> {
    loop {
        match session(&connection, &to).await? {
            Ended::Renew => info!("credentials were refused; reading the configuration again"),
            Ended::Rediscover => {}
            Ended::Closed => return Ok(()),
        }
        match connection.renewed().await {
            Ok(renewed) => connection = renewed,
            Err(error) => {
                warn!(
                    error = connection::chain(&error),
                    "the configuration cannot be read; using the old one"
                );
                tokio::time::sleep(RENEW_PAUSE).await;
            }
        }
    }
}

/// Follows all kinds with one client, until the first of them needs another.
async fn session(connection: &Connection, to: &mpsc::Sender<Message>) -> Result<Ended, Error> {
    let client = connection.client()?;
    let streaming = discovery::streaming_lists(&client, to).await;
    let feed = Feed { client, to: to.clone(), streaming, timeouts: connection.timeouts() };
    let mut kinds: JoinSet<Ended> = JoinSet::new();
    let services = feed.clone();
    kinds.spawn(async move {
        services.follow::<Service>(Kind::Service, |wire, s| decode::service(wire, s).into()).await
    });
    let slices = feed.clone();
    kinds.spawn(async move { follow_slices(slices).await });
    let nodes = feed.clone();
    kinds
        .spawn(async move { nodes.follow::<Node>(Kind::Node, |wire, s| decode::node(wire, s).into()).await });
    kinds.spawn(async move {
        feed.follow::<Namespace>(Kind::Namespace, |wire, s| decode::namespace(wire, s).into()).await
    });
    match kinds.join_next().await {
        Some(Ok(ended)) => Ok(ended),
        Some(Err(join)) => Err(Error::Task(join)),
        None => Ok(Ended::Closed),
    }
}

/// Follows EndpointSlices, or Endpoints while the server has no slices; looks again after each loss of contact.
async fn follow_slices(feed: Feed) -> Ended {
    let mut backoff = Backoff::default();
    loop {
        let ended = match discovery::slice_source(&feed.client, &feed.to, &mut backoff).await {
            SliceSource::Slices => {
                feed.follow::<EndpointSlice>(Kind::Slice, |wire, s| {
                    Entry::from(decode::slice(wire, s)).triggered_by(&wire.metadata)
                })
                .await
            }
            SliceSource::Endpoints => {
                tokio::select! {
                    ended = feed.follow::<Endpoints>(Kind::Slice, |w, s| {
                        Entry::from(decode::endpoints(w, s)).triggered_by(&w.metadata)
                    }) => ended,
                    () = discovery::slices_appear(&feed.client, feed.timeouts.discovery) => Ended::Rediscover,
                }
            }
        };
        match ended {
            Ended::Rediscover => {}
            Ended::Renew | Ended::Closed => return ended,
        }
    }
}

#[cfg(test)]
mod tests;
