//! What the server can do.

use std::time::Duration;

use kube::Client;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{debug, info};

use super::backoff::Backoff;
use super::connection::chain;
use super::feed::failure_of;
use crate::index::Kind;
use crate::index::task::Message;
use crate::wire::Body;
use crate::wire::endpoints::{EndpointSlice, Endpoints};

/// The API that has EndpointSlices.
const DISCOVERY_V1: &str = "discovery.k8s.io/v1";
/// Servers from this minor version on may answer a watch with the initial objects (KEP-3157).
const STREAMING_SINCE: u32 = 27;

/// Where endpoints come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SliceSource {
    /// discovery.k8s.io/v1 EndpointSlices.
    Slices,
    /// core/v1 Endpoints.
    Endpoints,
}

/// Whether lists may be streamed; waits for the server.
pub(super) async fn streaming_lists(client: &Client, to: &mpsc::Sender<Message>) -> bool {
    let mut backoff = Backoff::default();
    loop {
        match client.apiserver_version().await {
            Ok(version) => {
                let minor: String = version.minor.chars().take_while(char::is_ascii_digit).collect();
                let minor: u32 = minor.parse().unwrap_or(0);
                info!(version = version.git_version, "reached the API server");
                return version.major != "1" || minor >= STREAMING_SINCE;
            }
            // A server that hides its version still lists.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => return false,
            Err(error) => {
                debug!(error = chain(&error), "no contact with the API server");
                // The index logs the change of state; if it is gone, this task is about to end.
                let _ = to.send(Message::Contact(None, Some(chain(&error)))).await;
                sleep(backoff.next(failure_of(&error))).await;
            }
        }
    }
}

/// Whether the server has EndpointSlices; waits for the server.
pub(super) async fn slice_source(
    client: &Client,
    to: &mpsc::Sender<Message>,
    backoff: &mut Backoff,
) -> SliceSource {
    loop {
        let found = match look(client).await {
            Ok(found) => found,
            Err(error) => {
                // As above.
                let _ = to.send(Message::Contact(Some(Kind::Slice), Some(chain(&error)))).await;
                sleep(backoff.next(failure_of(&error))).await;
                continue;
            }
        };
        let kind = match found {
            SliceSource::Slices => EndpointSlice::KIND,
            SliceSource::Endpoints => Endpoints::KIND,
        };
        debug!(kind, "endpoints come from");
        // As above.
        let _ = to.send(Message::SliceKind(kind)).await;
        return found;
    }
}

/// Returns once the server has EndpointSlices.
pub(super) async fn slices_appear(client: &Client, every: Duration) {
    loop {
        sleep(every).await;
        if matches!(look(client).await, Ok(SliceSource::Slices)) {
            return;
        }
    }
}

/// What the server has now.
async fn look(client: &Client) -> Result<SliceSource, kube::Error> {
    match client.list_api_group_resources(DISCOVERY_V1).await {
        Ok(list) if list.resources.iter().any(|resource| resource.name == EndpointSlice::PLURAL) => {
            Ok(SliceSource::Slices)
        }
        Ok(_) => Ok(SliceSource::Endpoints),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(SliceSource::Endpoints),
        // Hidden discovery says nothing; every supported server has slices.
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(SliceSource::Slices),
        Err(error) => Err(error),
    }
}
