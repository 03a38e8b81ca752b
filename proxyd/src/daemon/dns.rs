//! Cluster DNS: an interface of its own carries the address, one task keeps the view, one serves.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use ipnetwork::IpNetwork;
use netd_dns::{Forwarder, Server, ServerConfig, SharedView, Upstreams, View, Zone, ZoneConfig};
use netd_kernel::link::Link;
use netd_kernel::netlink::{BridgeSpec, Netlink};
use netd_watch::Subscriber;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::Surroundings;
use super::board::{DnsHandles, Part};
use crate::config::{Config, DnsConfig};

/// The interface that carries the DNS addresses. A bridge without ports: kernels without the dummy driver
/// have it too. Recognised by its name after a restart without memory; `netd cleanup` deletes it.
pub(crate) const INTERFACE: &str = "netd-dns";
const RETRY: Duration = Duration::from_secs(1);
/// How often the address is looked after.
const CHECK: Duration = Duration::from_secs(2);

/// Answers DNS until the daemon drains. A server that dies is bound again, a panic is told and everything
/// here is started anew: nothing here ends the daemon.
pub(super) async fn run(around: Surroundings, subscriber: Subscriber) -> Result<()> {
    let zone = Arc::new(zone(&around.config)?);
    let mut shutdown = around.shutdown.clone();
    loop {
        let mut tasks = JoinSet::new();
        tasks.spawn(work(around.clone(), Arc::clone(&zone), subscriber.clone()));
        let ended = tokio::select! {
            ended = tasks.join_next() => ended,
            _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
        };
        let Some(Err(panic)) = ended else { return Ok(()) };
        around.board.set(Part::Dns, false, format!("starting again after a defect: {panic}"));
        error!(%panic, "DNS hit a defect of netd and is started again; the other parts go on");
        tokio::time::sleep(RETRY).await;
    }
}

async fn work(around: Surroundings, zone: Arc<Zone>, subscriber: Subscriber) {
    let views: SharedView = Arc::new(ArcSwap::from_pointee(View::unsynced(Arc::clone(&zone))));
    tokio::join!(
        keep_view(zone, Arc::clone(&views), subscriber),
        serve(&around, &views),
        keep_address(&around)
    );
}

fn zone(config: &Config) -> Result<Zone> {
    Zone::new(ZoneConfig {
        cluster_domain: config.dns.domain.trim_end_matches('.').to_owned(),
        ttl: config.dns.ttl,
        addresses: config.dns.addresses.clone(),
        cidrs: config.cluster_cidrs.clone(),
    })
    .context("set up the cluster's DNS zone")
}

async fn keep_view(zone: Arc<Zone>, views: SharedView, mut subscriber: Subscriber) {
    while let Some(update) = subscriber.next().await {
        views.store(Arc::new(View::new(Arc::clone(&zone), update.snapshot, SystemTime::now())));
    }
}

async fn keep_address(around: &Surroundings) {
    loop {
        tokio::time::sleep(CHECK).await;
        match ensure_interface(&around.config.dns.addresses) {
            Ok(false) => {}
            Ok(true) => {
                warn!(interface = INTERFACE, "the DNS address was gone; put it back");
                around.metrics.repaired("dns-address");
            }
            Err(error) => warn!(error = format!("{error:#}"), "could not look after the DNS address"),
        }
    }
}

async fn serve(around: &Surroundings, views: &SharedView) {
    let mut told = String::new();
    loop {
        let error = match serve_once(around, views).await {
            Ok(()) => return,
            Err(error) => crate::cli::on_one_line(&error),
        };
        around.board.set(Part::Dns, false, error.clone());
        if told != error {
            warn!(error, "DNS does not serve; trying again every second");
            told = error;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn serve_once(around: &Surroundings, views: &SharedView) -> Result<()> {
    let dns = &around.config.dns;
    ensure_interface(&dns.addresses)?;
    let listen: Vec<SocketAddr> = dns.addresses.iter().map(|address| SocketAddr::new(*address, 53)).collect();
    let server = Server::bind(ServerConfig {
        listen,
        freebind: true,
        upstreams: upstreams(dns)?,
        ..ServerConfig::default()
    })?;
    let addresses: Vec<String> = server.local_addresses().iter().map(ToString::to_string).collect();
    info!(listen = addresses.join(","), domain = dns.domain, "DNS serves");
    around.board.set_dns(DnsHandles {
        metrics: server.metrics(),
        forwarder: server.forwarder(),
        listen: addresses.clone(),
        domain: dns.domain.clone(),
    });
    let forwarder = server.forwarder();
    tokio::select! {
        served = server.run(Arc::clone(views), std::future::pending()) => Ok(served?),
        never = tell(around, views, &forwarder, &addresses) => match never {},
    }
}

/// Says on the board how DNS is: ready once it can tell what does not exist, with a word on the upstreams.
async fn tell(
    around: &Surroundings,
    views: &SharedView,
    forwarder: &Forwarder,
    addresses: &[String],
) -> std::convert::Infallible {
    let head = format!("{} on {}", around.config.dns.domain, addresses.join(", "));
    loop {
        let synced = views.load().is_synced();
        let mut words = vec![head.clone()];
        if !synced {
            words.push("waiting for the first snapshot".to_owned());
        }
        words.extend(forwarder.notes());
        around.board.set(Part::Dns, synced, words.join("; "));
        // Until the first snapshot readiness is what somebody waits for.
        tokio::time::sleep(if synced { CHECK } else { Duration::from_millis(20) }).await;
    }
}

fn upstreams(dns: &DnsConfig) -> Result<Upstreams> {
    if dns.upstreams.is_empty() {
        return Ok(Upstreams::ResolvConf(dns.resolv_conf.clone()));
    }
    let parse = |text: &String| match text.parse::<SocketAddr>() {
        Ok(address) => Ok(address),
        Err(_) => text
            .parse::<IpAddr>()
            .map(|address| SocketAddr::new(address, 53))
            .with_context(|| format!("dns.upstreams: {text:?} is neither an address nor address:port")),
    };
    dns.upstreams.iter().map(parse).collect::<Result<Vec<_>>>().map(Upstreams::List)
}

/// Makes the interface carry exactly these addresses. Returns whether anything had to be done.
fn ensure_interface(addresses: &[IpAddr]) -> Result<bool> {
    let mut netlink = Netlink::open().context("open a netlink socket")?;
    let (link, created) = ensure_link(&mut netlink)?;
    let mut changed = created;
    let present = netlink.addresses(Some(link.index)).context("list the addresses of the DNS interface")?;
    for address in addresses {
        let prefix = IpNetwork::from(*address);
        if present.iter().any(|have| have.prefix.ip() == *address) {
            continue;
        }
        netlink
            .add_address(link.index, prefix, true)
            .with_context(|| format!("give {address} to the interface {INTERFACE}"))?;
        changed = true;
    }
    let unwanted =
        present.iter().filter(|have| !addresses.contains(&have.prefix.ip()) && !link_local(have.prefix.ip()));
    for have in unwanted {
        netlink
            .delete_address(link.index, have.prefix)
            .with_context(|| format!("take {} from the interface {INTERFACE}", have.prefix))?;
        changed = true;
    }
    Ok(changed)
}

fn link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn ensure_link(netlink: &mut Netlink) -> Result<(Link, bool)> {
    let find = |netlink: &mut Netlink| {
        netlink.link(INTERFACE).with_context(|| format!("look for the interface {INTERFACE}"))
    };
    let mut created = false;
    if find(netlink)?.is_none() {
        let spec = BridgeSpec { name: INTERFACE, alias: Some("netd cluster DNS"), ..BridgeSpec::default() };
        netlink.add_bridge(&spec).with_context(|| format!("add the interface {INTERFACE}"))?;
        created = true;
    }
    let link =
        find(netlink)?.with_context(|| format!("the interface {INTERFACE} vanished while it was made"))?;
    if !link.up {
        netlink.set_up(link.index).with_context(|| format!("set the interface {INTERFACE} up"))?;
        created = true;
    }
    Ok((link, created))
}

/// Deletes the interface; an absent one is no error. Returns whether there was one.
pub(crate) fn remove_interface() -> Result<bool> {
    let mut netlink = Netlink::open().context("open a netlink socket")?;
    let Some(link) = netlink.link(INTERFACE).context("look for the DNS interface")? else { return Ok(false) };
    netlink.delete_link(link.index).with_context(|| format!("delete the interface {INTERFACE}"))?;
    Ok(true)
}
