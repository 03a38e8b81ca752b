//! Flows that go on to endpoints which have left.
//!
//! Connection tracking decides once where a flow goes. UDP has no end: the kernel keeps sending what comes
//! from a client's port to the endpoint that was chosen for its first datagram, for as long as more come, and
//! a fresh socket that happens to get the same port follows too. And a TCP or SCTP connection that was never
//! answered is kept alive by its own repeats: whoever gets its source port next follows it to the dead
//! endpoint as well. So what leads to an endpoint that a frontend no longer has is forgotten, once the rules
//! no longer choose it: all of UDP, and of TCP and SCTP what no answer has been seen of. A connection that was
//! made stays with its endpoint.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use netd_kernel::clock::{Clock, SystemClock};
use netd_kernel::conntrack::{Conntrack, TrackedFlow, Transport};
use netd_kernel::netlink;
use netd_model::{
    Dirty, Family, FamilyPlan, Frontend, FrontendAddress, FrontendKey, Planner, Protocol, Scope, ServicePlan,
    Verdict,
};

/// What the flows were last looked through for, and what may differ since.
#[derive(Debug, Default)]
pub(super) struct Flows {
    /// `None` before the first look.
    looked: Option<ServicePlan>,
    touched: Touched,
}

/// Destinations that may have other endpoints than at the last look.
#[derive(Debug)]
enum Touched {
    All,
    Some(BTreeSet<(Family, FrontendKey)>),
}

/// A look through the flows of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Looked {
    /// The family.
    pub(super) family: Family,
    /// How many flows were forgotten.
    pub(super) forgotten: usize,
    /// How long it took.
    pub(super) took: Duration,
}

/// What of a family is to be looked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// Whether a UDP flow can be stale.
    udp: bool,
    /// Whether a connection that was never answered can be.
    unanswered: bool,
    /// Destinations that are no longer programmed.
    gone: BTreeSet<FrontendKey>,
}

impl Default for Touched {
    fn default() -> Self {
        Self::Some(BTreeSet::new())
    }
}

// === impl Flows ===

impl Flows {
    /// Notes destinations of Services that are about to be planned; the work is theirs.
    pub(super) fn before(&mut self, planner: &Planner, dirty: &Dirty) {
        match dirty {
            Dirty::All => self.touched = Touched::All,
            Dirty::Services(services) => services.iter().for_each(|service| self.touch(planner, service)),
        }
    }

    /// Notes destinations of Services that were planned; the work is theirs.
    pub(super) fn after(&mut self, planner: &Planner, scope: &Scope) {
        match scope {
            Scope::Full => self.touched = Touched::All,
            Scope::Services(services) => services.iter().for_each(|service| self.touch(planner, service)),
        }
    }

    fn touch(&mut self, planner: &Planner, service: &netd_model::ObjectName) {
        let Touched::Some(touched) = &mut self.touched else { return };
        for family in Family::ALL {
            touched.extend(planner.asked_for(service, family).iter().map(|key| (family, *key)));
        }
    }

    /// Forgets the stale flows, now that `plan` is in the kernel; tells the families that were looked through.
    ///
    /// # Errors
    /// When connection tracking cannot be read or changed; the next call looks again.
    pub(super) fn forget_stale(&mut self, plan: &ServicePlan) -> netd_kernel::Result<Vec<Looked>> {
        let mut done = Vec::new();
        for family in Family::ALL {
            let wanted = self.wanted(family, plan);
            if wanted.udp || wanted.unanswered {
                done.push(look(plan.family(family), &wanted)?);
            }
        }
        *self = Self { looked: Some(plan.clone()), touched: Touched::default() };
        Ok(done)
    }

    fn wanted(&self, family: Family, plan: &ServicePlan) -> Wanted {
        let now = plan.family(family);
        let Some(before) = &self.looked else {
            let there = !now.frontends.is_empty();
            return Wanted { udp: there, unanswered: there, gone: BTreeSet::new() };
        };
        let before = before.family(family);
        let mut wanted = Wanted::default();
        match &self.touched {
            Touched::All => {
                before.frontends.keys().for_each(|key| wanted.add(before, now, key));
                let new = now.frontends.keys().filter(|key| before.frontends.get(key).is_none());
                new.for_each(|key| wanted.add(before, now, key));
            }
            Touched::Some(keys) => {
                let own = keys.iter().filter(|(of, _)| *of == family);
                own.for_each(|(_, key)| wanted.add(before, now, key));
            }
        }
        wanted
    }
}

// === impl Wanted ===

impl Wanted {
    /// Adds what the change of one destination makes stale.
    fn add(&mut self, before: &FamilyPlan, now: &FamilyPlan, key: &FrontendKey) {
        let (stale, is_gone) = match (before.frontends.get(key), now.frontends.get(key)) {
            // What was sent before the frontend was there. A connection is not looked for: it is found with
            // the next that is, and ends by itself.
            (None, Some(_)) => (key.protocol == Protocol::Udp, false),
            (Some(old), Some(new)) => (endpoints(before, old).any(|at| !has_endpoint(now, new, at)), false),
            (Some(old), None) => (endpoints(before, old).next().is_some(), true),
            (None, None) => (false, false),
        };
        if !stale {
            return;
        }
        match key.protocol {
            Protocol::Udp => self.udp = true,
            Protocol::Tcp | Protocol::Sctp => self.unanswered = true,
        }
        if is_gone {
            self.gone.insert(*key);
        }
    }

    /// Whether a flow goes to a frontend and is answered by none of its endpoints.
    fn is_stale(&self, now: &FamilyPlan, flow: &TrackedFlow) -> bool {
        let protocol = match flow.transport {
            Transport::Udp => Protocol::Udp,
            Transport::Tcp => Protocol::Tcp,
            Transport::Sctp => Protocol::Sctp,
        };
        let Ok(port) = flow.destination.port().try_into() else { return false };
        if protocol != Protocol::Udp && flow.answered {
            return false;
        }
        let key = |address| FrontendKey { address, protocol, port };
        let own = key(FrontendAddress::Ip(flow.destination.ip()));
        if let Some(frontend) = now.frontends.get(&own) {
            return !has_endpoint(now, frontend, flow.answers);
        }
        // What was not translated is on its way to somebody else: the address is nobody's here, and the
        // number of a node port alone makes none.
        if flow.answers == flow.destination {
            return false;
        }
        let node_port = key(FrontendAddress::NodePort);
        let by_port = now.frontends.get(&node_port);
        self.gone.contains(&own)
            || by_port.map_or_else(
                || self.gone.contains(&node_port),
                |frontend| !has_endpoint(now, frontend, flow.answers),
            )
    }
}

/// The pools of a frontend, whatever the source.
fn pools<'p>(plan: &'p FamilyPlan, frontend: &'p Frontend) -> impl Iterator<Item = &'p netd_model::Pool> {
    let verdicts = [&frontend.verdicts.pod, &frontend.verdicts.host, &frontend.verdicts.other];
    verdicts.into_iter().filter_map(|verdict| match verdict {
        Verdict::Balance { pool, .. } => plan.pools.get(pool),
        Verdict::Reject | Verdict::Drop => None,
    })
}

fn endpoints<'p>(plan: &'p FamilyPlan, frontend: &'p Frontend) -> impl Iterator<Item = SocketAddr> {
    let all = pools(plan, frontend).flat_map(|pool| &pool.endpoints);
    all.map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port.get()))
}

fn has_endpoint(plan: &FamilyPlan, frontend: &Frontend, at: SocketAddr) -> bool {
    pools(plan, frontend).any(|pool| {
        let found = pool
            .endpoints
            .binary_search_by(|other| (other.address, other.port.get()).cmp(&(at.ip(), at.port())));
        found.is_ok()
    })
}

/// Forgets the stale flows of a family.
fn look(now: &FamilyPlan, wanted: &Wanted) -> netd_kernel::Result<Looked> {
    let start = SystemClock.now();
    let family = match now.family {
        Family::V4 => netlink::Family::V4,
        Family::V6 => netlink::Family::V6,
    };
    let mut conntrack = Conntrack::open()?;
    let is_stale = |flow: &TrackedFlow| wanted.is_stale(now, flow);
    let stale = if wanted.udp {
        conntrack.flows(family, is_stale)?
    } else {
        conntrack.unanswered(family, is_stale)?
    };
    let mut forgotten = 0;
    for flow in stale {
        forgotten += usize::from(conntrack.forget(&flow)?);
    }
    Ok(Looked { family: now.family, forgotten, took: SystemClock.now().duration_since(start) })
}

#[cfg(test)]
mod tests;
