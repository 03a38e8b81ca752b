//! ADD: attaches a container to the network, all of it or nothing.

use ipnetwork::IpNetwork;
use netd_ipam::{Error as IpamError, Lease};
use netd_kernel::{Mac, Namespace, Netlink};

use crate::attachment::{self, Attachment, Wired};
use crate::call::Call;
use crate::config::{Config, Dns, ExtraRoute};
use crate::del;
use crate::delegate::Grant;
use crate::error::{CniError, Code};
use crate::leases;
use crate::naming;
use crate::node::{self, Bridge};
use crate::ports;
use crate::ranges::NodeRanges;
use crate::result::{AddResult, Address, Interface};

/// Does an ADD.
///
/// # Errors
/// Nothing of this call is left when it fails, unless the details say so.
pub fn add(call: &Call, config: &Config) -> Result<AddResult, CniError> {
    refuse_wishes(config)?;
    refuse_previous(config)?;
    let namespace = call.open_namespace()?;
    let Some(delegate) = &config.delegate else {
        let ranges = NodeRanges::of(config)?;
        check_routes(config, &ranges)?;
        let mut netlink = open_netlink()?;
        let mut inside = refuse_taken_interface(call, &mut netlink, &namespace)?;
        let bridge = node::prepare(&mut netlink, config, &ranges)?;
        let lease = allocate(call, config, &ranges)?;
        let gateways = gateways_of(&lease, &ranges);
        let pod = (&namespace, &mut inside);
        let outcome = connect(call, config, (&mut netlink, &bridge, pod), &lease, &gateways);
        return outcome.map_err(|error| undo(call, config, &mut netlink, error));
    };
    let mut netlink = open_netlink()?;
    let mut inside = refuse_taken_interface(call, &mut netlink, &namespace)?;
    let grant = delegate.add(call)?;
    let outcome = connect_granted(call, config, &mut netlink, (&namespace, &mut inside), grant);
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
    pod: (&Namespace, &mut Netlink),
    grant: Grant,
) -> Result<AddResult, CniError> {
    let (addresses, gateways): (Vec<_>, Vec<_>) = grant.addresses.into_iter().unzip();
    let dns = if config.dns == Dns::default() { grant.dns } else { config.dns.clone() };
    let config = Config { routes: grant.routes, dns, ..config.clone() };
    let ranges = NodeRanges::granted(&config, gateways.clone());
    check_routes(&config, &ranges)?;
    let bridge = node::prepare(netlink, &config, &ranges)?;
    let lease = Lease { owner: call.owner.clone(), pod: call.pod.clone(), addresses };
    let mut result = connect(call, &config, (netlink, &bridge, pod), &lease, &gateways)?;
    // CHECK is to know the subnet again.
    for (found, gateway) in result.addresses.iter_mut().zip(&gateways) {
        found.address = IpNetwork::new(found.address.ip(), gateway.prefix()).unwrap_or(found.address);
    }
    Ok(result)
}

/// Wires a pod and its host ports; on an error some of it may be done.
fn connect(
    call: &Call,
    config: &Config,
    (netlink, bridge, pod): (&mut Netlink, &Bridge, (&Namespace, &mut Netlink)),
    lease: &Lease,
    gateways: &[IpNetwork],
) -> Result<AddResult, CniError> {
    let attachment = Attachment {
        network: &config.network,
        lease,
        mac: config.wishes.mac.unwrap_or_else(|| naming::pod_mac(attachment::first_address(lease))),
        gateways,
        default_route: config.default_route,
        routes: &config.routes,
        hairpin: config.hairpin,
        detect_duplicates: config.detect_duplicates,
    };
    let wired = attachment.wire(netlink, bridge, pod).map_err(|cause| wiring_error(call, &cause))?;
    ports::add(netlink, config, lease)?;
    Ok(result(call, config, bridge, &wired, &attachment))
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

fn refuse_wishes(config: &Config) -> Result<(), CniError> {
    let Some(wish) = config.wishes.unsupported else { return Ok(()) };
    Err(CniError::new(Code::UnsupportedField, format!("runtimeConfig.{wish} is not supported"))
        .and("declare the capability for a plugin that has it and stands behind netd in the list"))
}

/// Refuses a prevResult that the result could not be put behind, before anything is done.
fn refuse_previous(config: &Config) -> Result<(), CniError> {
    let nothing =
        AddResult { interfaces: vec![], addresses: vec![], routes: vec![], dns: config.dns.clone() };
    nothing.to_json(config.version, config.previous.as_ref()).map(drop)
}

/// An extra route without a gateway needs one of the pod's.
fn check_routes(config: &Config, ranges: &NodeRanges) -> Result<(), CniError> {
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
    namespace: &Namespace,
) -> Result<Netlink, CniError> {
    let name = call.owner.interface.as_str();
    let unusable = |e: netd_kernel::Error| {
        CniError::new(Code::InvalidNamespace, "the container's namespace cannot be used").because(e)
    };
    let mut inside = Netlink::open_in(namespace).map_err(unusable)?;
    if inside.link(name).map_err(unusable)?.is_none() {
        return Ok(inside);
    }
    // A DEL of a moment ago may have left it to the daemon.
    attachment::delete_aside(netlink).map_err(unusable)?;
    if inside.link(name).map_err(unusable)?.is_none() {
        return Ok(inside);
    }
    Err(CniError::new(Code::Exists, format!("interface {name} exists in the container"))
        .and("an ADD is done once; DEL it first"))
}

fn allocate(call: &Call, config: &Config, ranges: &NodeRanges) -> Result<Lease, CniError> {
    let wanted = &config.wishes.addresses;
    let taken = leases::open(config)?.allocate_wanted(&call.owner, call.pod.as_ref(), &ranges.pools, wanted);
    taken.map_err(|error| {
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
    CniError::new(code, msg).because(cause)
}

fn result(
    call: &Call,
    config: &Config,
    bridge: &Bridge,
    wired: &Wired,
    attachment: &Attachment<'_>,
) -> AddResult {
    let sandbox = call.netns.as_ref().map(|path| path.to_string_lossy().into_owned());
    let first = attachment::first_address(attachment.lease);
    let link =
        |name: &str, mac: Mac, sandbox| Interface { name: name.to_owned(), mac, mtu: bridge.mtu, sandbox };
    let pairs = attachment.lease.addresses.iter().zip(attachment.gateways);
    let defaults = attachment.gateways.iter().filter(|gateway| attachment.wants_default(gateway));
    let defaults = defaults.filter_map(|gateway| {
        let any = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        Some(ExtraRoute { dst: any.parse().ok()?, gw: Some(gateway.ip()) })
    });
    let extra = attachment.routes_with_gateway().map(|(dst, gateway)| ExtraRoute { dst, gw: Some(gateway) });
    AddResult {
        interfaces: vec![
            link(&config.bridge, bridge.mac, None),
            link(&wired.host_name, naming::host_mac(first), None),
            link(&call.owner.interface, attachment.mac, sandbox),
        ],
        addresses: pairs
            .map(|(address, gateway)| Address { address: (*address).into(), gateway: Some(gateway.ip()) })
            .collect(),
        routes: defaults.chain(extra).collect(),
        dns: config.dns.clone(),
    }
}
