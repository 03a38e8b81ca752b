//! A plan that follows the snapshots: the work of a change is that of the Services it is about.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use crate::object::{Family, ObjectName, Service};
use crate::plan::build::{self, Claims, FamilyClaims};
use crate::plan::{
    Dirty, FamilyPlan, Frontend, FrontendKey, FrontendKind, NodeView, Notice, Pool, PoolId, PoolScope, Scope,
    ServicePlan, ServicePortName,
};
use crate::shared::Shared;
use crate::snapshot::Snapshot;

/// The notice of a Service that another one kept from a destination.
const FRONTEND_CONFLICT: &str = "FrontendConflict";

/// Keeps the plan of one node.
///
/// Its plan always equals [`plan`](crate::plan()) of the newest snapshot it was shown, provided that each
/// update names every Service that changed (or whose slices did) since the one before.
#[derive(Debug)]
pub struct Planner {
    node: NodeView,
    /// Addresses of this node's object, which source ranges are compared with.
    own_addresses: Vec<IpAddr>,
    /// Nothing has been planned yet.
    fresh: bool,
    services: HashMap<ObjectName, Planned>,
    v4: Contests,
    v6: Contests,
    plan: ServicePlan,
}

/// What is remembered of a planned Service.
#[derive(Debug)]
struct Planned {
    age: Age,
    /// Its destinations, whether it has them or not; each once.
    v4: Box<[FrontendKey]>,
    v6: Box<[FrontendKey]>,
    notices: BTreeSet<Notice>,
}

/// Orders Services: the oldest first, those of unknown age last, ties by name.
type Age = (bool, Option<i64>, ObjectName);

/// Destinations that more than one Service port claims, with all claims in order of precedence.
type Contests = BTreeMap<FrontendKey, Vec<Claim>>;

/// A claim to a destination; the lowest wins.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    rank: (bool, Age, usize),
    frontend: Frontend,
}

/// What an update has touched so far.
#[derive(Default)]
struct Touched {
    /// Services whose frontends or pools may differ.
    services: BTreeSet<ObjectName>,
    /// Services that won or lost a destination to another one: their pools are to be looked at again.
    moved: BTreeSet<ObjectName>,
    notices: bool,
}

// === impl Planner ===

impl Planner {
    /// A planner for a node, without a plan yet.
    pub fn new(node: NodeView) -> Self {
        Self {
            node,
            own_addresses: Vec::new(),
            fresh: true,
            services: HashMap::new(),
            v4: Contests::new(),
            v6: Contests::new(),
            plan: ServicePlan::empty(),
        }
    }

    /// The plan of the last update; clones share what they have in common.
    pub const fn current(&self) -> &ServicePlan {
        &self.plan
    }

    /// Destinations that a Service asks for in a family, whether it has them or another Service does; each
    /// once, none for a Service that is not planned.
    pub fn asked_for(&self, service: &ObjectName, family: Family) -> &[FrontendKey] {
        self.services.get(service).map_or(&[], |planned| planned.keys(family))
    }

    /// Follows to `snapshot`: plans the Services in `dirty` and those that win or lose a destination by
    /// that. All of them are planned anew the first time, and when something of the node changed that
    /// concerns all. The scope names every Service whose frontends or pools may differ from the plan before.
    pub fn update(&mut self, snapshot: &Snapshot, node: &NodeView, dirty: &Dirty) -> (ServicePlan, Scope) {
        let own = snapshot.nodes.get(&node.name).map_or(&[][..], |own| &own.addresses);
        let same_ground = !self.fresh && self.node == *node && self.own_addresses == own;
        let mut touched = Touched::default();
        let scope = match dirty {
            Dirty::Services(names) if same_ground => {
                for name in names {
                    self.replan(snapshot, name, &mut touched);
                }
                self.settle_moved(snapshot, &mut touched);
                Scope::Services(std::mem::take(&mut touched.services))
            }
            Dirty::Services(_) | Dirty::All => {
                self.start_anew(node, own);
                for name in snapshot.services.keys() {
                    self.replan(snapshot, name, &mut touched);
                }
                self.settle_moved(snapshot, &mut touched);
                touched.notices = true;
                Scope::Full
            }
        };
        if touched.notices {
            self.collect_notices();
        }
        self.plan.generation = snapshot.generation;
        (self.plan.clone(), scope)
    }

    fn start_anew(&mut self, node: &NodeView, own_addresses: &[IpAddr]) {
        *self = Self { own_addresses: own_addresses.to_vec(), fresh: false, ..Self::new(node.clone()) };
        self.plan.v4 = build::ground(Family::V4, node);
        self.plan.v6 = build::ground(Family::V6, node);
    }

    /// Plans one Service.
    fn replan(&mut self, snapshot: &Snapshot, name: &ObjectName, touched: &mut Touched) {
        let claims = build::claims(snapshot, &self.node, name);
        let old = self.services.remove(name);
        touched.services.insert(name.clone());
        touched.notices |=
            old.as_ref().map_or(!claims.notices.is_empty(), |old| old.notices != claims.notices);
        let service = snapshot.services.get(name).filter(|service| service.is_programmed());
        let age = service.map(|service| age(service));
        for family in Family::ALL {
            let asked = Asked { name, age: age.as_ref(), claims: claims.family(family) };
            let before = old.as_ref().map_or(&[][..], |old| old.keys(family));
            self.settle(family, before, &asked, touched);
            self.set_pools(family, name, asked.claims);
        }
        if let Some(age) = age {
            let Claims { v4, v6, notices } = claims;
            let planned = Planned { age, v4: keys(&v4), v6: keys(&v6), notices };
            self.services.insert(name.clone(), planned);
        }
    }

    /// Gives every destination that the Service had or asks for to whom it belongs now.
    fn settle(&mut self, family: Family, before: &[FrontendKey], asked: &Asked<'_>, touched: &mut Touched) {
        let given_up = before.iter().filter(|key| !asked.claims.frontends.iter().any(|(new, _)| new == *key));
        for key in given_up {
            self.settle_one(family, key, asked, touched);
        }
        let mut done: BTreeSet<&FrontendKey> = BTreeSet::new();
        for (key, _) in &asked.claims.frontends {
            if done.insert(key) {
                self.settle_one(family, key, asked, touched);
            }
        }
    }

    fn settle_one(&mut self, family: Family, key: &FrontendKey, asked: &Asked<'_>, touched: &mut Touched) {
        let name = asked.name;
        let (plan, contests) = match family {
            Family::V4 => (&mut self.plan.v4, &mut self.v4),
            Family::V6 => (&mut self.plan.v6, &mut self.v6),
        };
        let holder = plan.frontends.get(key);
        let contested = contests.remove(key);
        touched.notices |= contested.is_some();
        // An uncontested destination has one claim: its holder's.
        let mut line = contested.unwrap_or_else(|| {
            let others = holder.filter(|holder| holder.port.service != *name);
            let claim = others.and_then(|holder| {
                let age = self.services.get(&holder.port.service)?.age.clone();
                Some(Claim { rank: (is_secondary(holder), age, 0), frontend: holder.clone() })
            });
            claim.into_iter().collect()
        });
        line.retain(|claim| claim.frontend.port.service != *name);
        line.extend(asked.claims_to(key));
        line.sort_by(|a, b| a.rank.cmp(&b.rank));
        let winner = line.first().map(|claim| &claim.frontend);
        let service_of = |frontend: Option<&Frontend>| frontend.map(|frontend| frontend.port.service.clone());
        let (from, to) = (service_of(holder), service_of(winner));
        if from != to {
            touched.moved.extend(from.into_iter().chain(to));
        }
        match winner {
            Some(winner) if holder != Some(winner) => {
                plan.frontends.insert(*key, winner.clone());
            }
            Some(_) => {}
            None => {
                plan.frontends.remove(key);
            }
        }
        if line.len() > 1 {
            touched.notices = true;
            contests.insert(*key, line);
        }
    }

    /// Looks at the pools of those that won or lost a destination because of another Service.
    fn settle_moved(&mut self, snapshot: &Snapshot, touched: &mut Touched) {
        for name in std::mem::take(&mut touched.moved) {
            let claims = build::claims(snapshot, &self.node, &name);
            for family in Family::ALL {
                self.set_pools(family, &name, claims.family(family));
            }
            touched.services.insert(name);
        }
    }

    /// Makes the plan have those pools of a Service that its frontends name, and no others.
    fn set_pools(&mut self, family: Family, name: &ObjectName, claims: &FamilyClaims) {
        let plan = match family {
            Family::V4 => &mut self.plan.v4,
            Family::V6 => &mut self.plan.v6,
        };
        let mut named: BTreeSet<&PoolId> = BTreeSet::new();
        for (key, claimed) in &claims.frontends {
            if plan.frontends.get(key).is_some_and(|held| held == claimed) {
                named.extend(build::named_pools(claimed));
            }
        }
        let unnamed: Vec<PoolId> = pools_of(plan, name).filter(|id| !named.contains(id)).cloned().collect();
        for id in unnamed {
            plan.pools.remove(&id);
        }
        for (id, endpoints) in claims.pools.iter().filter(|(id, _)| named.contains(id)) {
            if plan.pools.get(id).is_none_or(|pool| pool.endpoints != *endpoints) {
                plan.pools.insert(id.clone(), Pool { endpoints: endpoints.clone() });
            }
        }
    }

    fn collect_notices(&mut self) {
        let mut notices: BTreeSet<Notice> =
            self.services.values().flat_map(|planned| &planned.notices).cloned().collect();
        for (key, line) in self.v4.iter().chain(&self.v6) {
            let Some((winner, losers)) = line.split_first() else { continue };
            for loser in losers.iter().filter(|loser| loser.frontend.port != winner.frontend.port) {
                notices.insert(conflict(key, &loser.frontend, &winner.frontend));
            }
        }
        self.plan.notices = Shared::from(notices.into_iter().collect::<Vec<_>>());
    }
}

impl Planned {
    fn keys(&self, family: Family) -> &[FrontendKey] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// What a Service asks for in one family.
struct Asked<'a> {
    name: &'a ObjectName,
    age: Option<&'a Age>,
    claims: &'a FamilyClaims,
}

impl Asked<'_> {
    fn claims_to(&self, key: &FrontendKey) -> Vec<Claim> {
        let Some(age) = self.age else { return Vec::new() };
        let mine = self.claims.frontends.iter().enumerate().filter(|(_, (claimed, _))| claimed == key);
        mine.map(|(i, (_, frontend))| Claim {
            rank: (is_secondary(frontend), age.clone(), i),
            frontend: frontend.clone(),
        })
        .collect()
    }
}

/// True for what gives way to a cluster address.
fn is_secondary(frontend: &Frontend) -> bool {
    frontend.kind != FrontendKind::ClusterIP
}

fn age(service: &Service) -> Age {
    (service.created.is_none(), service.created, service.name.clone())
}

fn keys(claims: &FamilyClaims) -> Box<[FrontendKey]> {
    let keys: BTreeSet<FrontendKey> = claims.frontends.iter().map(|(key, _)| *key).collect();
    keys.into_iter().collect()
}

/// Pools of a plan that belong to a Service; they are neighbours.
fn pools_of<'p>(plan: &'p FamilyPlan, name: &ObjectName) -> impl Iterator<Item = &'p PoolId> {
    let first = PoolId {
        port: ServicePortName {
            service: name.clone(),
            port: "".into(),
            protocol: crate::object::Protocol::Tcp,
        },
        scope: PoolScope::Cluster,
    };
    let pools = plan.pools.range_from(&first).map(|(id, _)| id);
    pools.take_while(move |id| id.port.service == first.port.service)
}

fn conflict(key: &FrontendKey, loser: &Frontend, winner: &Frontend) -> Notice {
    let message = format!(
        "{key} of Service port {} is not programmed: Service port {} has the same destination and comes first; \
         change one of them",
        loser.port, winner.port
    );
    Notice { service: loser.port.service.clone(), reason: FRONTEND_CONFLICT.to_owned(), message }
}

#[cfg(test)]
mod tests;
