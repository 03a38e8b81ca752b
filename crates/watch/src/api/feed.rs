//! One kind's watch: events to the index, errors to decisions.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::core::Status;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info};

use super::backoff::{Backoff, Failure};
use super::connection::{Timeouts, chain};
use crate::decode::{self, Interner, key_of};
use crate::index::task::Message;
use crate::index::{Entry, Kind};
use crate::wire::{Body, Wire};

/// Shortest time between two watch requests of a kind, so that a server (or a proxy before it) that ends watches
/// at once is not asked in a tight loop.
const WATCH_SPACING: Duration = Duration::from_millis(200);
/// How often to ask again for a kind that we may not see and can do without.
const UNLISTED_PAUSE: Duration = Duration::from_secs(60);
/// This many 401 in a row mean that the credentials are no longer good.
const RENEW_AFTER: u32 = 3;
/// Objects of a page when lists are not streamed.
const PAGE: u32 = 500;

/// Why a feed ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The index is gone.
    Closed,
    /// The credentials were refused; read the configuration again.
    Renew,
    /// The server may have another set of APIs now.
    Rediscover,
}

/// What all feeds of a session share.
#[derive(Clone)]
pub(super) struct Feed {
    pub(super) client: Client,
    pub(super) to: mpsc::Sender<Message>,
    pub(super) streaming: bool,
    pub(super) timeouts: Timeouts,
}

/// How a kind becomes an entry.
type Decode<B> = fn(&B, &mut Interner) -> Entry;

/// The state of one kind's feed.
struct Progress {
    streaming: bool,
    listing: bool,
    unauthorized: u32,
    backoff: Backoff,
    strings: Interner,
}

/// What to do after an error.
enum Step {
    /// Let the watcher go on.
    Resume,
    /// Begin anew with a list.
    Relist,
    /// Give up this feed.
    End(Ended),
}

// === impl Feed ===

impl Feed {
    /// Lists and watches a kind until something else must be decided first.
    pub(super) async fn follow<B: Body>(&self, kind: Kind, decode: Decode<B>) -> Ended {
        let api: Api<Wire<B>> = Api::all(observed(self.client.clone(), kind, self.to.clone()));
        let mut progress = Progress {
            streaming: self.streaming,
            listing: false,
            unauthorized: 0,
            backoff: Backoff::default(),
            strings: Interner::default(),
        };
        loop {
            let mut events = watcher(api.clone(), self.settings(progress.streaming)).boxed();
            progress.listing = true;
            loop {
                let event = if progress.streaming && progress.listing {
                    timeout(self.timeouts.streaming, events.next()).await
                } else {
                    Ok(events.next().await)
                };
                let step = match event {
                    Ok(Some(Ok(event))) => self.forward(kind, decode, event, &mut progress).await,
                    Ok(Some(Err(error))) => self.judge::<B>(kind, &error, &mut progress).await,
                    Ok(None) => Step::Relist,
                    Err(_elapsed) => {
                        info!(%kind, "the server does not finish a streaming list; using plain lists");
                        progress.streaming = false;
                        Step::Relist
                    }
                };
                match step {
                    Step::Resume => {}
                    Step::Relist => break,
                    Step::End(ended) => return ended,
                }
            }
        }
    }

    fn settings(&self, streaming: bool) -> watcher::Config {
        let settings = watcher::Config::default().timeout(self.timeouts.watch_seconds).page_size(PAGE);
        if streaming { settings.streaming_lists() } else { settings }
    }

    /// Projects an event on arrival; the wire object ends here.
    async fn forward<B: Body>(
        &self,
        kind: Kind,
        decode: Decode<B>,
        event: Event<Wire<B>>,
        progress: &mut Progress,
    ) -> Step {
        let entry = |wire: &Wire<B>, strings: &mut Interner| {
            Box::new(match &wire.body {
                Ok(body) => decode(body, strings),
                Err(unreadable) => {
                    let decoded = decode::unreadable::<B, netd_model::Service>(unreadable);
                    Entry { kind, ..Entry::from(decoded) }
                }
            })
        };
        let message = match event {
            Event::Init => {
                progress.listing = true;
                Message::Begin(kind)
            }
            Event::InitApply(wire) | Event::Apply(wire) => {
                progress.worked();
                Message::Apply(entry(&wire, &mut progress.strings))
            }
            Event::Delete(wire) => {
                progress.worked();
                let meta = match &wire.body {
                    Ok(body) => body.metadata(),
                    Err(unreadable) => &unreadable.meta,
                };
                Message::Remove(kind, key_of(meta))
            }
            Event::InitDone => {
                progress.worked();
                progress.listing = false;
                Message::Finish(kind)
            }
        };
        match self.to.send(message).await {
            Ok(()) => Step::Resume,
            Err(_) => Step::End(Ended::Closed),
        }
    }

    async fn judge<B: Body>(&self, kind: Kind, error: &watcher::Error, progress: &mut Progress) -> Step {
        let status = status_of(error);
        let code = status.map_or(0, |status| status.code);
        let starting = matches!(error, watcher::Error::WatchStartFailed(_));
        // 500: a server whose etcd is older than 3.4.25 begins the stream and then cannot tell where the list ends.
        if progress.streaming && progress.listing && refuses_streaming(error, code) {
            info!(%kind, error = chain(error), "the server does not stream lists; using plain lists");
            progress.streaming = false;
            return Step::Relist;
        }
        if code == 410 {
            debug!(%kind, "the watch is too old; listing again");
            sleep(progress.backoff.next(Failure::Away)).await;
            // After a refused start the watcher would ask for the same version again.
            return if starting { Step::Relist } else { Step::Resume };
        }
        if kind == Kind::Namespace && matches!(code, 403 | 404) {
            // A closed index is noticed by the next event.
            let _ = self.to.send(Message::Unlisted(kind)).await;
            sleep(UNLISTED_PAUSE).await;
            return Step::Resume;
        }
        let text = chain(error);
        debug!(%kind, error = text, "the watch failed");
        if self.to.send(Message::Contact(Some(kind), Some(text))).await.is_err() {
            return Step::End(Ended::Closed);
        }
        progress.unauthorized = if code == 401 { progress.unauthorized + 1 } else { 0 };
        sleep(progress.backoff.next(failure(status))).await;
        if progress.unauthorized >= RENEW_AFTER {
            return Step::End(Ended::Renew);
        }
        if unparsed(error) {
            // The watcher would go on after the event that it lost. A plain list does not depend on bookmarks.
            progress.streaming = false;
            return Step::Relist;
        }
        let gone = code == 404 && kind == Kind::Slice;
        // Endpoints are for servers without slices, and the next server may have them.
        if gone || B::KIND == "Endpoints" {
            return Step::End(Ended::Rediscover);
        }
        Step::Resume
    }
}

impl Progress {
    fn worked(&mut self) {
        self.backoff.reset();
        self.unauthorized = 0;
    }
}

/// A client that tells the index about each answer and spaces watch requests.
fn observed(client: Client, kind: Kind, to: mpsc::Sender<Message>) -> Client {
    let next_watch = Arc::new(Mutex::new(Instant::now()));
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let (client, to, next_watch) = (client.clone(), to.clone(), Arc::clone(&next_watch));
        async move {
            if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
                sleep_until(take_turn(&next_watch)).await;
            }
            let response = client.send(request).await?;
            if response.status().is_success() {
                // A closed index is noticed by the feed itself.
                let _ = to.send(Message::Contact(Some(kind), None)).await;
            }
            Ok::<_, kube::Error>(response)
        }
    });
    Client::new(service, "default")
}

/// When the next watch request may be sent, given that this one takes its turn.
fn take_turn(next: &Mutex<Instant>) -> Instant {
    let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
    let turn = Instant::now().max(*next);
    *next = turn + WATCH_SPACING;
    turn
}

/// What the server said, if it did.
fn status_of(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => None,
    }
}

/// True when the error is about the streaming list itself: the feature is off (a refused request), or the server
/// cannot do it with its storage (an error event; etcd before 3.4.25 gives a 500).
fn refuses_streaming(error: &watcher::Error, code: u16) -> bool {
    matches!(code, 400 | 422) || (matches!(error, watcher::Error::WatchError(_)) && code != 410)
}

/// True when an event or a list could not be parsed at all.
fn unparsed(error: &watcher::Error) -> bool {
    matches!(
        error,
        watcher::Error::InitialListFailed(kube::Error::SerdeError(_))
            | watcher::Error::WatchFailed(kube::Error::SerdeError(_))
    )
}

/// How to wait after an error of the client.
pub(super) fn failure_of(error: &kube::Error) -> Failure {
    if let kube::Error::Api(status) = error { failure(Some(status)) } else { Failure::Away }
}

fn failure(status: Option<&Status>) -> Failure {
    let asked = status.and_then(|s| s.details.as_ref()).map_or(0, |details| details.retry_after_seconds);
    match status.map_or(0, |status| status.code) {
        401 | 403 | 404 => Failure::Refused,
        429 => Failure::Busy(Duration::from_secs(u64::from(asked.max(1)))),
        _ => Failure::Away,
    }
}
