//! The node's routes to pods that hang on no bridge: a link that was switched off and on, or a network manager that
//! sweeps routes it did not make, takes them away and the pod with them.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use netd_kernel::Netlink;
use netd_kernel::netlink::{Batch, POD_ROUTE_PROTOCOL, Route, RouteFilter, RouteKind};

use super::inventory::PodLink;
use super::upkeep::{Absent, Kept, Pods};

/// Puts missing routes back; what a DEL is just removing is missing for less than two looks.
pub(super) fn keep(netlink: &mut Netlink, pods: &Pods, absent: &mut Absent, kept: &mut Kept) {
    if routed(pods).next().is_none() {
        return;
    }
    let present = match netlink.routes(filter()) {
        Ok(routes) => routes,
        Err(error) => return kept.problems.push(error.to_string()),
    };
    let present: BTreeSet<IpNetwork> = present.iter().map(|route| route.destination).collect();
    let mut batch = Batch::new();
    for pod in routed(pods) {
        for address in &pod.alias.lease.addresses {
            let missing = !present.contains(&IpNetwork::from(*address));
            if missing && absent.confirmed(format!("route {address} {}", pod.link.index)) {
                batch.replace_route(&Route::to_pod(*address, pod.link.index));
            }
        }
    }
    if batch.is_empty() {
        return;
    }
    match netlink.send(&batch) {
        Ok(()) => kept.repaired.push(("routes", format!("{} routes to pods", batch.len()))),
        Err(error) => kept.problems.push(error.to_string()),
    }
}

/// Takes the answers away that the plugin gave for addresses without a pod; the routes to pods stay, with their pods.
///
/// # Errors
/// The first refusal of the kernel, after the others are done.
pub(crate) fn remove_answers() -> netd_kernel::Result<()> {
    let mut netlink = Netlink::open()?;
    let mut outcome = Ok(());
    for route in netlink.routes(filter())?.iter().filter(|route| route.kind == RouteKind::Unreachable) {
        match netlink.delete_route(route) {
            Err(error) if !error.is_not_found() => outcome = outcome.and(Err(error)),
            Ok(()) | Err(_) => {}
        }
    }
    outcome
}

fn filter() -> RouteFilter {
    RouteFilter { protocol: Some(POD_ROUTE_PROTOCOL), ..RouteFilter::default() }
}

/// Pods on no bridge whose link is up: one that is down was switched off on purpose. A pod of a bridge that somebody
/// deleted has a lease that names it.
fn routed(pods: &Pods) -> impl Iterator<Item = &PodLink> {
    let on_bridge = |pod: &PodLink| {
        let own = pods
            .ledgers
            .leases
            .iter()
            .find(|leased| leased.network == pod.alias.network && pod.alias.is_of(&leased.lease.owner));
        own.is_some_and(|leased| leased.lease.bridge.is_some())
    };
    pods.pods.iter().filter(move |pod| pod.link.up && pod.link.master.is_none() && !on_bridge(pod))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use netd_ipam::Alias;
    use netd_kernel::Namespace;
    use netd_kernel::link::Link;
    use netd_kernel::netlink::VethSpec;
    use netd_kernel::netns::NETNS_DIR;

    use super::super::upkeep::Upkeep;
    use super::*;

    struct Space(Namespace, PathBuf);

    impl Drop for Space {
        fn drop(&mut self) {
            let _ = Namespace::remove(&self.1);
        }
    }

    fn pods(netlink: &mut Netlink) -> Pods {
        let links: Vec<Link> = netlink.links().unwrap();
        let own = |link: &Link| {
            Alias::parse(link.alias.as_deref()?).map(|alias| PodLink { link: link.clone(), alias })
        };
        Pods { pods: links.iter().filter_map(own).collect(), links, ..Pods::default() }
    }

    #[test]
    fn a_route_to_a_pod_comes_back_and_cleanup_leaves_it() {
        let path = Path::new(NETNS_DIR).join(format!("nd-{}-podroutes", std::process::id()));
        let space = Space(Namespace::create(&path).expect("needs root"), path);
        let run = || {
            let mut netlink = Netlink::open().unwrap();
            let alias = Some("netd net=pods ip=10.9.0.2,fd09::2 if=eth0 id=c1");
            let spec = VethSpec { name: "p0", peer_name: "q0", up: true, alias, ..VethSpec::default() };
            let index = netlink.add_veth(&spec).unwrap();
            netlink.add_route(&Route::no_pod("10.9.0.0/24".parse().unwrap())).unwrap();
            let mut upkeep = Upkeep::new("netd0");
            let start = netd_kernel::Clock::now(&netd_kernel::SystemClock);
            let pods = pods(&mut netlink);
            assert_eq!(pods.pods.len(), 1);
            let first = upkeep.ensure(&pods, &[], None, start).unwrap();
            assert!(first.unsure && first.repaired.is_empty(), "a DEL may be under way: {first:?}");
            let second = upkeep.ensure(&pods, &[], None, start + Duration::from_secs(1)).unwrap();
            assert_eq!(second.repaired, [("routes", "2 routes to pods".to_owned())], "{second:?}");
            let third = upkeep.ensure(&pods, &[], None, start + Duration::from_secs(2)).unwrap();
            assert!(third.repaired.is_empty() && third.problems.is_empty(), "{third:?}");
            for address in ["10.9.0.2", "fd09::2"] {
                assert_eq!(netlink.route_to(address.parse().unwrap()).unwrap().link, Some(index));
            }
            remove_answers().unwrap();
            remove_answers().unwrap();
            let left = netlink.routes(filter()).unwrap();
            assert!(left.len() == 2 && left.iter().all(|route| route.kind == RouteKind::Unicast), "{left:?}");
        };
        space.0.run(run).unwrap();
    }
}
