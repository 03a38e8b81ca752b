//! ADD: attaches a container to the network, all of it or nothing.

use ipnetwork::IpNetwork;
use netd_ipam::{Error as IpamError, Lease};
use netd_kernel::{Mac, Netlink};

use crate::attachment::{self, Attachment, Wired};
use crate::bandwidth;
use crate::call::{Call, Container};
use crate::config::{Config, Dns, ExtraRoute, Mode};
use crate::del;
use crate::delegate::Grant;
use crate::error::{CniError, Code};
use crate::guard;
use crate::leases;
use crate::naming;
use crate::node::{self, Anchor, Ground};
use crate::ports;
use crate::ranges::NodeRanges;
use crate::result::{AddResult, Address, Interface};

/// Does an ADD.
///
/// # Errors
/// Nothing of this call is left when it fails, unless the details say so.
pub fn add(call: &Call, config: &Config) -> Result<AddResult, CniError> {
    refuse_wishes(call, config)?;
    refuse_previous(config)?;
    let namespace = call.open_namespace()?;
    if !config.wiring.addressed {
        return add_without_address(call, config, &namespace);
    }
    let Some(delegate) = &config.delegate else {
        let ranges = NodeRanges::of(config)?;
        check_routes(config, &ranges)?;
        let mut netlink = open_netlink()?;
        let mut inside = refuse_taken_interface(call, &mut netlink, &namespace)?;
        let _under_way = leases::announce(config)?;
        let ground = node::prepare(&mut netlink, config, &ranges)?;
        let lease = allocate(call, config, &ranges)?;
        let gateways = gateways_of(&lease, &ranges);
        let pod = (&namespace, &mut inside);
        let outcome = connect(call, config, (&mut netlink, &ground, pod), &lease, &gateways);
        return outcome.map_err(|error| undo(call, config, &mut netlink, error));
    };
    let mut netlink = open_netlink()?;
    let mut inside = refuse_taken_interface(call, &mut netlink, &namespace)?;
    let grant = delegate.add(call)?;
    let outcome = connect_granted(call, config, &mut netlink, (&namespace, &mut inside), grant);
    outcome.map_err(|error| undo(call, config, &mut netlink, error))
}

/// Wires a pod that has no addresses: the network is a LAN and nothing else.
fn add_without_address(call: &Call, config: &Config, namespace: &Container) -> Result<AddResult, CniError> {
    if !config.wishes.addresses.is_empty() {
        return Err(CniError::new(Code::InvalidConfig, "an address is asked for, and the network has none")
            .and("set ipam in the configuration, or ask for none"));
    }
    let mut netlink = open_netlink()?;
    let mut inside = refuse_taken_interface(call, &mut netlink, namespace)?;
    let ground = node::prepare(&mut netlink, config, &NodeRanges::granted(config, Vec::new()))?;
    let lease = Lease { owner: call.owner.clone(), pod: call.pod.clone(), ..Lease::default() };
    let pod = (namespace, &mut inside);
    let outcome = connect(call, config, (&mut netlink, &ground, pod), &lease, &[]);
    outcome.map_err(|error| undo(call, config, &mut netlink, error))
}

fn open_netlink() -> Result<Netlink, CniError> {
    Netlink::open().map_err(|e| {
        CniError::new(Code::Wiring, "the kernel's netlink cannot be used").because(e).and("is this root?")
    })
}

/// Wires a pod with the addresses that another plugin gave.
fn connect_granted(
    call: &Call,
    config: &Config,
    netlink: &mut Netlink,
    pod: (&Container, &mut Netlink),
    grant: Grant,
) -> Result<AddResult, CniError> {
    let lonely = grant.addresses.iter().find(|(address, gateway)| *address == gateway.ip());
    if let Some((address, _)) = lonely.filter(|_| config.wiring.gateway) {
        return Err(CniError::new(Code::Ipam, "the IPAM plugin's result cannot be used")
            .because(format!("address {address} has no gateway")));
    }
    let (addresses, gateways): (Vec<_>, Vec<_>) = grant.addresses.into_iter().unzip();
    let dns = if config.dns == Dns::default() { grant.dns } else { config.dns.clone() };
    let mut config = Config { routes: grant.routes, dns, ..config.clone() };
    if config.wiring.mode == Mode::Routed {
        // The node is the pod's only neighbour, whoever the other plugin takes for one.
        config.routes.iter_mut().for_each(|route| route.gw = None);
    }
    let ranges = NodeRanges::granted(&config, gateways.clone());
    check_routes(&config, &ranges)?;
    let ground = node::prepare(netlink, &config, &ranges)?;
    let lease = Lease { owner: call.owner.clone(), pod: call.pod.clone(), addresses, ..Lease::default() };
    let mut result = connect(call, &config, (netlink, &ground, pod), &lease, &gateways)?;
    // CHECK is to know the subnet again.
    for (found, gateway) in result.addresses.iter_mut().zip(&gateways) {
        found.address = IpNetwork::new(found.address.ip(), gateway.prefix()).unwrap_or(found.address);
        if grant.guessed && !config.wiring.gateway {
            found.gateway = None;
        }
    }
    Ok(result)
}

/// Wires a pod and its host ports; on an error some of it may be done.
fn connect(
    call: &Call,
    config: &Config,
    (netlink, ground, pod): (&mut Netlink, &Ground, (&Container, &mut Netlink)),
    lease: &Lease,
    gateways: &[IpNetwork],
) -> Result<AddResult, CniError> {
    let (host_mac, mac) = naming::link_macs(lease);
    let attachment = Attachment {
        network: &config.network,
        lease,
        wiring: &config.wiring,
        mac: config.wishes.mac.unwrap_or(mac),
        host_mac,
        gateways,
        default_route: config.default_route,
        routes: &config.routes,
        hairpin: config.hairpin,
        detect_duplicates: config.detect_duplicates,
        guarded: guard::is_wanted(call, config)?,
        limits: bandwidth::wanted(config, ground.mtu)?,
    };
    let wired = attachment.wire(netlink, ground, pod).map_err(|cause| wiring_error(call, &cause))?;
    ports::add(netlink, config, lease)?;
    let mut ground = ground.clone();
    ground.read_mac_again(netlink).map_err(|cause| wiring_error(call, &cause))?;
    Ok(result(call, config, &ground, &wired, &attachment))
}

/// Takes an ADD back whose result could not be told.
pub fn take_back(call: &Call, config: &Config, error: CniError) -> CniError {
    match Netlink::open() {
        Ok(mut netlink) => undo(call, config, &mut netlink, error),
        Err(cause) => error.and(format!("and it could not be undone: {cause}")),
    }
}

fn undo(call: &Call, config: &Config, netlink: &mut Netlink, error: CniError) -> CniError {
    let failures = del::remove_with_grant(netlink, call, config, &call.owner);
    failures.into_iter().fold(error, |error, failure| error.and(format!("and it was not undone: {failure}")))
}

/// Refuses what cannot be granted before anything is done.
fn refuse_wishes(call: &Call, config: &Config) -> Result<(), CniError> {
    guard::is_wanted(call, config)?;
    config.bandwidth.limits().map(drop)
}

/// Refuses a prevResult that the result could not be put behind, before anything is done.
fn refuse_previous(config: &Config) -> Result<(), CniError> {
    let nothing = AddResult {
        interfaces: vec![],
        place: 0,
        addresses: vec![],
        routes: vec![],
        dns: config.dns.clone(),
    };
    nothing.to_json(config.version, config.previous.as_ref()).map(drop)
}

/// An extra route without a gateway needs one of the pod's.
fn check_routes(config: &Config, ranges: &NodeRanges) -> Result<(), CniError> {
    config.routes.iter().try_for_each(ExtraRoute::check)?;
    let homeless = config.routes.iter().find(|route| {
        let family = if route.dst.is_ipv4() { ranges.has_ipv4() } else { ranges.has_ipv6() };
        !family || route.gw.is_some_and(|gateway| gateway.is_ipv4() != route.dst.is_ipv4())
    });
    match homeless {
        Some(route) => Err(CniError::new(
            Code::InvalidConfig,
            format!("the pod has no address or gateway for the route to {}", route.dst),
        )),
        None => Ok(()),
    }
}

/// Refuses before anything is done: the error must not harm what is there. Returns a conversation in the namespace.
fn refuse_taken_interface(
    call: &Call,
    netlink: &mut Netlink,
    namespace: &Container,
) -> Result<Netlink, CniError> {
    let name = call.owner.interface.as_str();
    let unusable = |e: netd_kernel::Error| {
        CniError::new(Code::InvalidNamespace, "the container's namespace cannot be used").because(e)
    };
    let inside = namespace.open_netlink().map_err(unusable)?;
    if inside.link_index(name).map_err(unusable)?.is_none() {
        return Ok(inside);
    }
    // A DEL of a moment ago may have left it to the daemon.
    attachment::delete_aside(netlink).map_err(unusable)?;
    if inside.link_index(name).map_err(unusable)?.is_none() {
        return Ok(inside);
    }
    Err(CniError::new(Code::Exists, format!("interface {name} exists in the container"))
        .and("an ADD is done once; DEL it first"))
}

fn allocate(call: &Call, config: &Config, ranges: &NodeRanges) -> Result<Lease, CniError> {
    leases::take(call, config, ranges, &mut leases::open(config)?).map_err(|error| {
        if matches!(error, IpamError::Exists { .. }) {
            CniError::new(Code::Exists, "the container has an address of this network")
                .because(error)
                .and("an ADD is done once; DEL it first")
        } else if matches!(error, IpamError::Exhausted { .. }) {
            CniError::new(Code::TryAgainLater, format!("network {} has no free address", config.network))
                .because(error)
                .and("remove pods from this node or give it a larger podCIDR")
        } else if matches!(error, IpamError::Outside { .. }) {
            CniError::new(Code::InvalidConfig, "the address asked for cannot be given").because(error)
        } else if matches!(error, IpamError::InUse { .. }) {
            CniError::new(Code::TryAgainLater, "the address asked for is not free").because(error)
        } else {
            leases::failed(&error)
        }
    })
}

/// The gateway of each address of the lease, with the subnet's prefix, in the same order.
pub fn gateways_of(lease: &Lease, ranges: &NodeRanges) -> Vec<IpNetwork> {
    let range = |address| ranges.pools.iter().find_map(|pool| pool.range_of(address));
    let ranges = lease.addresses.iter().filter_map(|address| range(*address));
    ranges.filter_map(|range| IpNetwork::new(range.gateway(), range.subnet().prefix()).ok()).collect()
}

fn wiring_error(call: &Call, cause: &netd_kernel::Error) -> CniError {
    let interface = &call.owner.interface;
    let (code, msg) = if cause.is_exists() {
        (Code::Exists, format!("interface {interface} or its host end exists"))
    } else {
        (Code::Wiring, format!("interface {interface} cannot be wired"))
    };
    let error = CniError::new(code, msg).because(cause);
    match guard::hint(cause).or_else(|| bandwidth::hint(cause)) {
        Some(next) => error.and(next),
        None => error,
    }
}

fn result(
    call: &Call,
    config: &Config,
    ground: &Ground,
    wired: &Wired,
    attachment: &Attachment<'_>,
) -> AddResult {
    let sandbox = call.netns.as_ref().map(|path| path.to_string_lossy().into_owned());
    let link =
        |name: &str, mac: Mac, sandbox| Interface { name: name.to_owned(), mac, mtu: ground.mtu, sandbox };
    let anchor = |anchor: &Anchor| link(&anchor.name, anchor.mac, None);
    let mut interfaces: Vec<Interface> = ground.bridge.iter().map(anchor).collect();
    interfaces.push(link(&wired.host_name, attachment.host_mac, None));
    let place = interfaces.len();
    interfaces.push(link(&call.owner.interface, attachment.mac, sandbox));
    interfaces.extend(ground.vlan_gateway.iter().map(anchor));
    let next_hops = attachment.gateways.iter().map(|gateway| attachment.wiring.next_hop(gateway));
    AddResult {
        interfaces,
        place,
        addresses: attachment
            .prefixed()
            .zip(next_hops)
            .map(|(address, gateway)| Address { address, gateway: Some(gateway) })
            .collect(),
        routes: routes(attachment),
        dns: config.dns.clone(),
    }
}

/// The pod's routes as the result tells them.
fn routes(attachment: &Attachment<'_>) -> Vec<ExtraRoute> {
    let mut defaults: Vec<ExtraRoute> = Vec::new();
    for gateway in attachment.gateways.iter().filter(|gateway| attachment.wants_default(gateway)) {
        let any = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        let Ok(dst) = any.parse() else { continue };
        let route = ExtraRoute::new(dst, Some(attachment.wiring.next_hop(gateway)));
        if !defaults.contains(&route) {
            defaults.push(route);
        }
    }
    if attachment.wiring.verbatim {
        return [attachment.routes, &defaults].concat();
    }
    attachment.routes_with_gateway().chain(defaults).collect()
}
