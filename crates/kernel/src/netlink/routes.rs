//! Routes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Parseable};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags,
    RouteProtocol, RouteScope, RouteType,
};

use super::wire::Message;
use super::{Batch, Family, Netlink};
use crate::Result;
use crate::link::Ifindex;

/// The number that marks netd's own routes, so that they are known again without a memory (`ip route show proto 141`).
pub const ROUTE_PROTOCOL: u8 = 141;
/// The number that marks the routes to pods of this node that hang on no bridge (`ip route show proto 142`).
pub const POD_ROUTE_PROTOCOL: u8 = 142;
/// The table that packets are routed by unless a rule says otherwise (linux/rtnetlink.h).
pub const TABLE_MAIN: u32 = 254;
/// The table of the machine's own addresses.
pub const TABLE_LOCAL: u32 = 255;

/// The metric of [`Route::no_pod`]: behind every route that an operator or another program makes.
const NO_POD_METRIC: u32 = 0x7fff_ffff;
/// The metric an IPv6 route gets that asks for none (`IP6_RT_PRIO_USER`); read as 0.
const V6_DEFAULT_METRIC: u32 = 1024;

/// How far away a destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Anywhere: through a gateway. All IPv6 routes say this.
    Universe,
    /// Within the site.
    Site,
    /// On the link itself.
    Link,
    /// This machine.
    Host,
    /// Another number.
    Other(u8),
}

/// What happens to packets to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// They are sent on.
    Unicast,
    /// They are for this machine.
    Local,
    /// They are for this machine and others on the link.
    Broadcast,
    /// They are for a group.
    Multicast,
    /// They are dropped silently.
    Blackhole,
    /// They are answered with "unreachable".
    Unreachable,
    /// They are answered with "administratively prohibited".
    Prohibit,
    /// Another number.
    Other(u8),
}

/// A route: one to make, or one as the kernel tells it. Equal routes do the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// Where packets go; `0.0.0.0/0` and `::/0` are the default routes. Bits behind the prefix are 0.
    pub destination: IpNetwork,
    /// The next machine on the way; of a multipath route, the first one's.
    pub gateway: Option<IpAddr>,
    /// The link they leave by; of a multipath route, the first one's.
    pub link: Option<Ifindex>,
    /// Who made it; [`ROUTE_PROTOCOL`] for netd.
    pub protocol: u8,
    /// Whether the gateway is taken to be on the link although no address says so.
    pub onlink: bool,
    /// The address that packets of this machine get as their source.
    pub source: Option<IpAddr>,
    /// How far away the destination is.
    pub scope: Scope,
    /// The table it is in; [`TABLE_MAIN`] unless said otherwise.
    pub table: u32,
    /// The lower, the better, among routes to one destination; 0 is the kernel's choice.
    pub metric: u32,
    /// What happens to packets.
    pub kind: RouteKind,
    /// The largest packet in bytes on this way; 0 is the link's.
    pub mtu: u32,
    /// The largest segment in bytes that peers on this way are told of (TCP MSS); 0 follows from the largest packet.
    pub advertised_mss: u32,
}

impl Route {
    /// Returns netd's route to `destination` in the main table, on the link until [`Route::via`] says otherwise.
    pub fn to(destination: IpNetwork) -> Self {
        Self {
            destination: network_of(destination),
            gateway: None,
            link: None,
            protocol: ROUTE_PROTOCOL,
            onlink: false,
            source: None,
            scope: if destination.is_ipv4() { Scope::Link } else { Scope::Universe },
            table: TABLE_MAIN,
            metric: 0,
            kind: RouteKind::Unicast,
            mtu: 0,
            advertised_mss: 0,
        }
    }

    /// Returns the route to one of this node's pods, which is behind `link`.
    pub fn to_pod(address: IpAddr, link: Ifindex) -> Self {
        Self { protocol: POD_ROUTE_PROTOCOL, ..Self::to(IpNetwork::from(address)).dev(link) }
    }

    /// Returns the answer to packets for addresses of this node's range that no pod has: without it they would leave by
    /// the default route and come back. Every other route to the same destination is better.
    pub fn no_pod(range: IpNetwork) -> Self {
        Self {
            protocol: POD_ROUTE_PROTOCOL,
            scope: Scope::Universe,
            metric: NO_POD_METRIC,
            kind: RouteKind::Unreachable,
            ..Self::to(range)
        }
    }

    /// Returns netd's default route through `gateway`.
    pub fn default_via(gateway: IpAddr) -> Self {
        let any = match gateway {
            IpAddr::V4(_) => IpNetwork::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            IpAddr::V6(_) => IpNetwork::from(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
        // A prefix of 0 is valid for both families, so the host prefix is never kept.
        Self::to(IpNetwork::new(any.ip(), 0).unwrap_or(any)).via(gateway)
    }

    /// Sends the packets to this gateway.
    #[must_use]
    pub fn via(mut self, gateway: IpAddr) -> Self {
        self.gateway = Some(gateway);
        self.scope = Scope::Universe;
        self
    }

    /// Sends the packets out of this link.
    #[must_use]
    pub fn dev(mut self, link: Ifindex) -> Self {
        self.link = Some(link);
        self
    }

    /// Takes the gateway to be on the link.
    #[must_use]
    pub fn onlink(mut self) -> Self {
        self.onlink = true;
        self
    }

    /// Gives packets of this machine this source address.
    #[must_use]
    pub fn from_source(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(link) = self.link {
            write!(f, " dev {link}")?;
        }
        if self.table != TABLE_MAIN { write!(f, " table {}", self.table) } else { Ok(()) }
    }
}

/// Which routes are wanted; what is `None` does not matter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RouteFilter {
    /// Of this family only.
    pub family: Option<Family>,
    /// Made by this protocol only.
    pub protocol: Option<u8>,
    /// In this table only.
    pub table: Option<u32>,
    /// Leaving by this link only.
    pub link: Option<Ifindex>,
}

impl RouteFilter {
    /// Returns the filter for netd's own routes in every table.
    pub fn own() -> Self {
        Self { protocol: Some(ROUTE_PROTOCOL), ..Self::default() }
    }

    fn wants(&self, route: &Route) -> bool {
        self.family.is_none_or(|family| family == Family::of(route.destination.ip()))
            && self.protocol.is_none_or(|protocol| protocol == route.protocol)
            && self.table.is_none_or(|table| table == route.table)
            && self.link.is_none_or(|link| Some(link) == route.link)
    }
}

impl Netlink {
    /// Lists the routes that pass `filter`.
    pub fn routes(&mut self, filter: RouteFilter) -> Result<Vec<Route>> {
        let mut found = Vec::new();
        for family in Family::ALL {
            if filter.family.is_some_and(|wanted| wanted != family) {
                continue;
            }
            let mut message = RouteMessage::default();
            message.header.address_family = family.wire();
            message.header.protocol = RouteProtocol::from(filter.protocol.unwrap_or_default());
            // No filter by table here: a table that does not exist is an error for the kernel, but just empty for us.
            let request = Message::of(libc::RTM_GETROUTE, &message);
            let all = self.socket.dump_raw("list routes", &request, read_answer)?;
            found.extend(all.into_iter().filter(|route| filter.wants(route)));
        }
        Ok(found)
    }

    /// Asks which way packets to `destination` would take.
    ///
    /// The answer names the address itself, not the prefix of the route that was chosen.
    ///
    /// # Errors
    /// `ENETUNREACH` or `EHOSTUNREACH` when there is no way.
    pub fn route_to(&mut self, destination: IpAddr) -> Result<Route> {
        let mut message = RouteMessage::default();
        message.header.address_family = Family::of(destination).wire();
        message.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(destination.into()));
        let action = format!("look up the route to {destination}");
        // The answer to a lookup is marked as cloned although it is the answer.
        let request = Message::of(libc::RTM_GETROUTE, &message);
        self.socket.ask_raw(&action, &request, |told| Ok(message_of(told).as_ref().and_then(read_route)))
    }
}

impl Batch {
    /// Adds a route.
    pub fn add_route(&mut self, route: &Route) -> &mut Self {
        let message = Message::of(libc::RTM_NEWROUTE, &write_route(route));
        self.push(message, NLM_F_CREATE | NLM_F_EXCL, format!("add route {route}"))
    }

    /// Adds a route or replaces the one with the same destination, table and metric.
    pub fn replace_route(&mut self, route: &Route) -> &mut Self {
        let message = Message::of(libc::RTM_NEWROUTE, &write_route(route));
        self.push(message, NLM_F_CREATE | NLM_F_REPLACE, format!("replace route {route}"))
    }

    /// Deletes the route that has all that `route` says.
    pub fn delete_route(&mut self, route: &Route) -> &mut Self {
        let message = Message::of(libc::RTM_DELROUTE, &write_route(route));
        self.push(message, 0, format!("delete route {route}"))
    }
}

/// Clears the bits behind the prefix: the kernel refuses an IPv4 route that has some.
fn network_of(prefix: IpNetwork) -> IpNetwork {
    IpNetwork::new(prefix.network(), prefix.prefix()).unwrap_or(prefix)
}

fn write_route(route: &Route) -> RouteMessage {
    let destination = network_of(route.destination);
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = Family::of(destination.ip()).wire();
    header.destination_prefix_length = destination.prefix();
    // Tables above 255 are told by the attribute alone (RT_TABLE_COMPAT is 252, unspecified works as well).
    header.table = u8::try_from(route.table).unwrap_or_default();
    header.protocol = RouteProtocol::from(route.protocol);
    header.scope = write_scope(route.scope);
    header.kind = write_kind(route.kind);
    if route.onlink {
        header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    if destination.prefix() > 0 {
        attributes.push(RouteAttribute::Destination(destination.ip().into()));
    }
    attributes.push(RouteAttribute::Table(route.table));
    attributes.extend(route.gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
    attributes.extend(route.link.map(|link| RouteAttribute::Oif(link.0)));
    attributes.extend(route.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    attributes.extend((route.metric != 0).then_some(RouteAttribute::Priority(route.metric)));
    let mtu = (route.mtu != 0).then_some(RouteMetric::Mtu(route.mtu));
    let mss = (route.advertised_mss != 0).then_some(RouteMetric::Advmss(route.advertised_mss));
    let metrics: Vec<RouteMetric> = mtu.into_iter().chain(mss).collect();
    attributes.extend((!metrics.is_empty()).then_some(RouteAttribute::Metrics(metrics)));
    message
}

/// Reads a route that is told in a list; a cloned entry is a cache of path MTUs, not a route.
fn read_answer(told: (u16, &[u8])) -> Option<Route> {
    let route = message_of(told)?;
    if route.header.flags.contains(RouteFlags::Cloned) { None } else { read_route(&route) }
}

fn message_of((kind, payload): (u16, &[u8])) -> Option<RouteMessage> {
    if kind != libc::RTM_NEWROUTE {
        return None;
    }
    // One exotic entry must not hide all others.
    RouteMessage::parse(payload).inspect_err(|error| tracing::warn!(%error, "left out a route")).ok()
}

/// Reads a route of the two IP families; others (MPLS, multicast) are `None`.
#[expect(clippy::wildcard_enum_match_arm, reason = "the attribute enum is foreign and open")]
pub(crate) fn read_route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let mut ip = match header.address_family {
        family if family == Family::V4.wire() => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        family if family == Family::V6.wire() => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut route = Route {
        destination: IpNetwork::from(ip),
        gateway: None,
        link: None,
        protocol: u8::from(header.protocol),
        onlink: header.flags.contains(RouteFlags::Onlink),
        source: None,
        scope: read_scope(header.scope),
        table: u32::from(header.table),
        metric: 0,
        kind: read_kind(header.kind),
        mtu: 0,
        advertised_mss: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => ip = read_ip(address)?,
            RouteAttribute::Gateway(address) => route.gateway = read_ip(address),
            RouteAttribute::Oif(index) => route.link = Some(Ifindex(*index)),
            RouteAttribute::PrefSource(address) => route.source = read_ip(address),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Metrics(metrics) => read_metrics(&mut route, metrics),
            RouteAttribute::MultiPath(hops) => read_first_hop(&mut route, hops),
            _ => {}
        }
    }
    if ip.is_ipv6() && route.metric == V6_DEFAULT_METRIC {
        route.metric = 0;
    }
    route.destination = IpNetwork::new(ip, header.destination_prefix_length).ok()?;
    Some(route)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the attribute enum is foreign and open")]
fn read_metrics(route: &mut Route, metrics: &[RouteMetric]) {
    for metric in metrics {
        match metric {
            RouteMetric::Mtu(mtu) => route.mtu = *mtu,
            RouteMetric::Advmss(mss) => route.advertised_mss = *mss,
            _ => {}
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the attribute enum is foreign and open")]
fn read_first_hop(route: &mut Route, hops: &[RouteNextHop]) {
    let Some(hop) = hops.first() else { return };
    route.link = Some(Ifindex(hop.interface_index));
    route.onlink = hop.flags.contains(RouteNextHopFlags::Onlink);
    route.gateway = hop.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => read_ip(address),
        _ => None,
    });
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the address enum is foreign and open")]
fn read_ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn read_scope(scope: RouteScope) -> Scope {
    match u8::from(scope) {
        0 => Scope::Universe,
        200 => Scope::Site,
        253 => Scope::Link,
        254 => Scope::Host,
        other => Scope::Other(other),
    }
}

fn write_scope(scope: Scope) -> RouteScope {
    match scope {
        Scope::Universe => RouteScope::Universe,
        Scope::Site => RouteScope::Site,
        Scope::Link => RouteScope::Link,
        Scope::Host => RouteScope::Host,
        Scope::Other(number) => RouteScope::from(number),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the type enum is foreign and open")]
fn read_kind(kind: RouteType) -> RouteKind {
    match kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local => RouteKind::Local,
        RouteType::Broadcast => RouteKind::Broadcast,
        RouteType::Multicast => RouteKind::Multicast,
        RouteType::BlackHole => RouteKind::Blackhole,
        RouteType::Unreachable => RouteKind::Unreachable,
        RouteType::Prohibit => RouteKind::Prohibit,
        other => RouteKind::Other(u8::from(other)),
    }
}

fn write_kind(kind: RouteKind) -> RouteType {
    match kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Local => RouteType::Local,
        RouteKind::Broadcast => RouteType::Broadcast,
        RouteKind::Multicast => RouteType::Multicast,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Prohibit => RouteType::Prohibit,
        RouteKind::Other(number) => RouteType::from(number),
    }
}
