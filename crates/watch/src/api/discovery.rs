//! What the server can do.

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
        let found = match client.list_api_group_resources(DISCOVERY_V1).await {
            Ok(list) if list.resources.iter().any(|r| r.name == EndpointSlice::PLURAL) => SliceSource::Slices,
            Ok(_) => SliceSource::Endpoints,
            Err(kube::Error::Api(status)) if status.code == 404 => SliceSource::Endpoints,
            Err(kube::Error::Api(status)) if status.code == 403 => SliceSource::Slices,
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
