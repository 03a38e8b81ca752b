//! Flows that go on to endpoints which have left.
//!
//! UDP has no end: the kernel's connection tracking keeps sending what comes from a client's port to the
//! endpoint that was chosen for its first datagram, for as long as more come, and a fresh socket that happens
//! to get the same port follows too. So what leads to an endpoint that a frontend no longer has is forgotten,
//! once the rules no longer choose it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use netd_kernel::conntrack::{Conntrack, TrackedFlow, Transport};
use netd_kernel::netlink::Family;
use netd_model::{FrontendAddress, FrontendKey, Protocol, ServicePlan, Verdict};

/// The endpoints of each UDP frontend, as they were when the flows were last looked through.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Destinations {
    endpoints: BTreeMap<FrontendKey, BTreeSet<SocketAddr>>,
}

impl Destinations {
    /// Reads them off a plan; the cost is that of its UDP frontends.
    pub(super) fn of(plan: &ServicePlan) -> Self {
        let mut endpoints: BTreeMap<FrontendKey, BTreeSet<SocketAddr>> = BTreeMap::new();
        for family in [&plan.v4, &plan.v6] {
            for (key, frontend) in family.frontends.iter().filter(|(key, _)| key.protocol == Protocol::Udp) {
                let verdicts = [&frontend.verdicts.pod, &frontend.verdicts.host, &frontend.verdicts.other];
                let pools = verdicts.into_iter().filter_map(|verdict| match verdict {
                    Verdict::Balance { pool, .. } => family.pools.get(pool),
                    Verdict::Reject | Verdict::Drop => None,
                });
                let addresses = pools.flat_map(|pool| &pool.endpoints);
                // A node port of both families is one key with the endpoints of both.
                let known = endpoints.entry(*key).or_default();
                known
                    .extend(addresses.map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port.get())));
            }
        }
        Self { endpoints }
    }

    /// Whether a flow that was right with `before` can be wrong now.
    fn can_have_stale(&self, before: &Self) -> bool {
        let lost = before.endpoints.iter().any(|(key, old)| match self.endpoints.get(key) {
            Some(new) => !old.is_subset(new),
            // Without a frontend the address is nobody's, and what is on its way ends by itself.
            None => false,
        });
        lost || self.endpoints.keys().any(|key| !before.endpoints.contains_key(key))
    }

    /// Whether a flow goes to one of these frontends and is answered by none of its endpoints.
    fn is_stale(&self, flow: &TrackedFlow) -> bool {
        let Ok(port) = flow.destination.port().try_into() else { return false };
        let key = |address| FrontendKey { address, protocol: Protocol::Udp, port };
        if flow.transport != Transport::Udp {
            return false;
        }
        if let Some(known) = self.endpoints.get(&key(FrontendAddress::Ip(flow.destination.ip()))) {
            return !known.contains(&flow.answers);
        }
        // The port number alone is no node port: only what was translated here came by one.
        let translated = flow.answers != flow.destination;
        self.endpoints
            .get(&key(FrontendAddress::NodePort))
            .is_some_and(|known| translated && !known.contains(&flow.answers))
    }
}

/// Forgets the stale flows, given what the frontends had when this was last done; returns how many there
/// were.
///
/// # Errors
/// When connection tracking cannot be read or changed.
pub(super) fn forget_stale(before: Option<&Destinations>, now: &Destinations) -> netd_kernel::Result<usize> {
    if before.is_some_and(|before| !now.can_have_stale(before)) || now.endpoints.is_empty() {
        return Ok(0);
    }
    let mut conntrack = Conntrack::open()?;
    let mut forgotten = 0;
    for family in Family::ALL {
        for flow in conntrack.flows(family, |flow| now.is_stale(flow))? {
            forgotten += usize::from(conntrack.forget(&flow)?);
        }
    }
    Ok(forgotten)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destinations(entries: &[(FrontendAddress, u16, &[&str])]) -> Destinations {
        let entry = |(address, port, endpoints): &(FrontendAddress, u16, &[&str])| {
            let key =
                FrontendKey { address: *address, protocol: Protocol::Udp, port: (*port).try_into().unwrap() };
            (key, endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect())
        };
        Destinations { endpoints: entries.iter().map(entry).collect() }
    }

    fn flow(destination: &str, answers: &str) -> TrackedFlow {
        TrackedFlow {
            transport: Transport::Udp,
            client: "172.16.1.9:40000".parse().unwrap(),
            destination: destination.parse().unwrap(),
            answers: answers.parse().unwrap(),
            answered: true,
        }
    }

    const SERVICE: FrontendAddress =
        FrontendAddress::Ip(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 20)));

    #[test]
    fn only_flows_of_a_frontend_to_none_of_its_endpoints_are_stale() {
        let now = destinations(&[
            (SERVICE, 80, &["172.16.1.2:8080"]),
            (FrontendAddress::NodePort, 30080, &["172.16.1.2:8080"]),
        ]);
        for (destination, answers, stale) in [
            ("10.96.0.20:80", "172.16.1.2:8080", false),
            ("10.96.0.20:80", "172.16.1.3:8080", true),
            // Sent before there were rules, and so not translated.
            ("10.96.0.20:80", "10.96.0.20:80", true),
            ("10.96.0.20:81", "172.16.1.3:8080", false),
            ("192.168.1.101:30080", "172.16.1.3:8080", true),
            ("192.168.1.101:30080", "172.16.1.2:8080", false),
            // Another machine's port of that number.
            ("203.0.113.9:30080", "203.0.113.9:30080", false),
        ] {
            assert_eq!(
                now.is_stale(&flow(destination, answers)),
                stale,
                "{destination} answered by {answers}"
            );
        }
        let tcp = TrackedFlow { transport: Transport::Tcp, ..flow("10.96.0.20:80", "172.16.1.3:8080") };
        assert!(!now.is_stale(&tcp), "a connection to an endpoint that leaves goes on");
    }

    #[test]
    fn flows_are_looked_through_only_when_one_can_be_stale() {
        let two = destinations(&[(SERVICE, 80, &["172.16.1.2:8080", "172.16.1.3:8080"])]);
        let one = destinations(&[(SERVICE, 80, &["172.16.1.2:8080"])]);
        let none = destinations(&[(SERVICE, 80, &[])]);
        let nothing = Destinations::default();
        assert!(one.can_have_stale(&two) && none.can_have_stale(&one), "an endpoint left");
        assert!(one.can_have_stale(&nothing), "what was sent before the frontend was there");
        assert!(!two.can_have_stale(&one) && !one.can_have_stale(&none), "an endpoint came");
        assert!(!one.can_have_stale(&one) && !nothing.can_have_stale(&one));
    }
}
