//! What changes in the kernel's links, addresses, routes and rules, as it happens (feature `monitor`).

mod rules;

use std::time::Duration;

use futures::stream::{Stream, StreamExt, unfold};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;
use tokio::task::JoinHandle;

use crate::link::Link;
use crate::netlink::{Address, Family, Route, read_address, read_link, read_route};
use crate::{Error, Result};

pub use rules::{RuleChange, rule_changes};

/// How long to wait before listening again after the socket broke.
const PAUSE: Duration = Duration::from_millis(200);

/// Something that changed in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A link came, changed or went.
    Link {
        /// The link as it is now, or was last.
        link: Link,
        /// Whether it is no more.
        gone: bool,
    },
    /// An address came, changed or went.
    Address {
        /// The address as it is now, or was last.
        address: Address,
        /// Whether it is no more.
        gone: bool,
    },
    /// A route came, changed or went.
    ///
    /// The kernel does not tell of IPv4 routes that went because their link was switched off or deleted: look at
    /// [`Change::Link`] for those (`net/ipv4/fib_semantics.c:fib_sync_down_dev`).
    Route {
        /// The route as it is now, or was last.
        route: Route,
        /// Whether it is no more.
        gone: bool,
    },
    /// A neighbour went; told by [`changes_with_neighbours`] only. Those that come or age are not told.
    NeighbourGone,
    /// Some changes were not told (the socket's buffer was full, or broke): read everything again.
    ///
    /// What happens after this is told again, so that nothing is lost when the reading begins now.
    Missed,
}

type Messages = futures::channel::mpsc::UnboundedReceiver<(
    NetlinkMessage<RouteNetlinkMessage>,
    rtnetlink::sys::SocketAddr,
)>;

/// An open subscription; its task ends with it.
struct Subscription {
    messages: Messages,
    task: JoinHandle<()>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens, and listens again when the socket breaks.
struct Listener {
    groups: Vec<MulticastGroup>,
    subscription: Option<Subscription>,
}

/// Returns the changes of links, and of addresses and routes of `families`, from now on.
///
/// The stream does not end. It listens in the network namespace of the thread that calls this, and must be polled on
/// a runtime whose threads are in the same namespace.
///
/// # Errors
/// When the first subscription fails; a later failure is told as [`Change::Missed`] and tried again.
pub fn changes(families: &[Family]) -> Result<impl Stream<Item = Change> + Send + use<>> {
    listen(groups_of(families))
}

/// As [`changes`], and neighbours that went.
///
/// # Errors
/// As [`changes`].
pub fn changes_with_neighbours(families: &[Family]) -> Result<impl Stream<Item = Change> + Send + use<>> {
    let mut groups = groups_of(families);
    groups.push(MulticastGroup::Neigh);
    listen(groups)
}

fn listen(groups: Vec<MulticastGroup>) -> Result<impl Stream<Item = Change> + Send + use<>> {
    let subscription = Some(subscribe(&groups)?);
    let listener = Listener { groups, subscription };
    Ok(unfold(listener, |mut listener| async move {
        let change = listener.next().await;
        Some((change, listener))
    })
    .boxed())
}

impl Listener {
    async fn next(&mut self) -> Change {
        loop {
            let Some(subscription) = &mut self.subscription else {
                self.listen_again().await;
                // Between the two subscriptions anything may have happened.
                return Change::Missed;
            };
            match subscription.messages.next().await.map(|(message, _)| message.payload) {
                Some(NetlinkPayload::InnerMessage(message)) => {
                    if let Some(change) = read_change(message) {
                        return change;
                    }
                }
                // The kernel tells of an overrun once and then drops silently until the queue is empty
                // (`net/netlink/af_netlink.c:netlink_overrun`): only a new socket has no gap.
                Some(NetlinkPayload::Overrun(_)) | None => self.subscription = None,
                Some(_) => {}
            }
        }
    }

    async fn listen_again(&mut self) {
        while self.subscription.is_none() {
            tokio::time::sleep(PAUSE).await;
            match subscribe(&self.groups) {
                Ok(subscription) => self.subscription = Some(subscription),
                Err(error) => tracing::warn!(%error, "cannot listen to the kernel's changes, trying again"),
            }
        }
    }
}

fn groups_of(families: &[Family]) -> Vec<MulticastGroup> {
    let mut groups = vec![MulticastGroup::Link];
    for family in families {
        groups.extend(match family {
            Family::V4 => [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route],
            Family::V6 => [MulticastGroup::Ipv6Ifaddr, MulticastGroup::Ipv6Route],
        });
    }
    groups
}

fn subscribe(groups: &[MulticastGroup]) -> Result<Subscription> {
    let (connection, _handle, messages) = rtnetlink::new_multicast_connection(groups)
        .map_err(|e| Error::io("listen to the kernel's network changes", e))?;
    Ok(Subscription { messages, task: tokio::spawn(connection) })
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the message enum is foreign and open")]
fn read_change(message: RouteNetlinkMessage) -> Option<Change> {
    Some(match message {
        RouteNetlinkMessage::NewLink(link) => Change::Link { link: read_link(link), gone: false },
        RouteNetlinkMessage::DelLink(link) => Change::Link { link: read_link(link), gone: true },
        RouteNetlinkMessage::NewAddress(message) => {
            Change::Address { address: read_address(&message)?, gone: false }
        }
        RouteNetlinkMessage::DelAddress(message) => {
            Change::Address { address: read_address(&message)?, gone: true }
        }
        RouteNetlinkMessage::NewRoute(message) => Change::Route { route: read_route(&message)?, gone: false },
        RouteNetlinkMessage::DelRoute(message) => Change::Route { route: read_route(&message)?, gone: true },
        RouteNetlinkMessage::DelNeighbour(_) => Change::NeighbourGone,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use ipnetwork::IpNetwork;

    use super::*;
    use crate::netlink::{Batch, BridgeSpec, Netlink, ROUTE_PROTOCOL};
    use crate::netns::{NETNS_DIR, Namespace};

    /// Collects changes until `wanted` has seen what it waits for.
    async fn until(
        stream: &mut (impl Stream<Item = Change> + Unpin),
        wanted: impl Fn(&Change) -> bool,
    ) -> Change {
        let wait = async {
            loop {
                let change = stream.next().await.unwrap();
                if wanted(&change) {
                    return change;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("the change was not told in time")
    }

    async fn watch_a_route_go() {
        let mut stream = changes(&Family::ALL).unwrap();
        let mut netlink = Netlink::open().unwrap();
        let link = netlink.add_bridge(&BridgeSpec { name: "br0", ..BridgeSpec::default() }).unwrap();
        netlink.set_up(link).unwrap();
        netlink.add_address(link, "10.9.0.1/24".parse().unwrap(), true).unwrap();
        let route = Route::to("10.1.0.0/24".parse().unwrap()).via("10.9.0.2".parse().unwrap()).dev(link);
        netlink.add_route(&route).unwrap();
        netlink.delete_route(&route).unwrap();
        until(
            &mut stream,
            |c| matches!(c, Change::Link { link, gone: false } if link.name == "br0" && link.up),
        )
        .await;
        until(&mut stream, |c| matches!(c, Change::Address { address, gone: false } if address.link == link))
            .await;
        let seen = until(&mut stream, |c| matches!(c, Change::Route { gone: true, .. })).await;
        let Change::Route { route: seen, .. } = seen else { panic!("{seen:?}") };
        assert_eq!(seen, route);
        assert_eq!(seen.protocol, ROUTE_PROTOCOL);
        netlink.delete_link(link).unwrap();
        until(&mut stream, |c| matches!(c, Change::Link { link, gone: true } if link.name == "br0")).await;
    }

    /// Runs a test on a runtime in a namespace of its own, which is removed even when the test panics.
    pub(super) fn in_namespace<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F + Send) {
        assert!(crate::process::is_root(), "this test makes a network namespace and needs root");
        let path = PathBuf::from(format!("{NETNS_DIR}/nd-{}-{name}", std::process::id()));
        let namespace = Namespace::create(&path).unwrap();
        let ran = namespace.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                runtime.block_on(async { test().await })
            }))
        });
        Namespace::remove(&path).unwrap();
        if let Err(panic) = ran.unwrap() {
            std::panic::resume_unwind(panic);
        }
    }

    #[test]
    fn a_deleted_route_is_told_with_all_that_is_needed_to_put_it_back() {
        in_namespace("monitor", watch_a_route_go);
    }

    #[test]
    fn more_changes_than_the_socket_holds_are_told_as_missed() {
        in_namespace("overrun", || async {
            let mut stream = changes(&Family::ALL).unwrap();
            let mut netlink = Netlink::open().unwrap();
            let link = netlink.add_bridge(&BridgeSpec { name: "br0", ..BridgeSpec::default() }).unwrap();
            netlink.set_up(link).unwrap();
            // Nobody reads meanwhile: the runtime has one thread and this one is on it.
            let mut routes = Batch::new();
            for number in 0..4000_u16 {
                let [high, low] = number.to_be_bytes();
                let destination = IpNetwork::new([10, high, low, 0].into(), 24).unwrap();
                routes.add_route(&Route::to(destination).dev(link));
            }
            netlink.send(&routes).unwrap();
            until(&mut stream, |change| *change == Change::Missed).await;
            let last = Route::to("192.168.7.0/24".parse().unwrap()).dev(link);
            netlink.add_route(&last).unwrap();
            until(&mut stream, |c| matches!(c, Change::Route { route, gone: false } if *route == last)).await;
        });
    }
}
