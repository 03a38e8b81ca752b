//! Rows of the conformance suite, tried with real connections.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use netd_dataplane::Dataplane;
use netd_dataplane::conformance::site::{self, Actor};
use netd_dataplane::conformance::{Abilities, Row, Ruling, Scenario, Step, check_trace};
use netd_kernel::conntrack::Conntrack;
use netd_kernel::netlink;
use netd_lab::Place as _;
use netd_lab::agent::Connect;
use netd_lab::traffic::Outcome;
use netd_model::{Expected, Family, PoolEndpoint, Protocol, ServicePlan, verdict};

use crate::bed::{Bed, server_name};

/// Batches until an endpoint that has not answered is a failure: with four endpoints, even choice leaves one
/// out once in 10^9 rows.
const MOST_BATCHES: usize = 5;
/// Connections made by one agent process.
const BATCH: u32 = 16;
/// How long an answer may take; everything is on one machine.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long silence lasts until it counts as a drop.
const SILENCE: Duration = Duration::from_millis(350);

/// What was done with the rows of some steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rows whose trace was compared with the oracle.
    pub traced: usize,
    /// Rows tried with packets.
    pub tried: usize,
    /// Connections made for them.
    pub connections: u64,
    /// Rows whose frontend was refused by name.
    pub refused: usize,
    /// Rows that never reach the backend.
    pub unseen: usize,
}

impl Tally {
    /// Adds another tally.
    pub fn add(&mut self, other: Self) {
        self.traced += other.traced;
        self.tried += other.tried;
        self.connections += other.connections;
        self.refused += other.refused;
        self.unseen += other.unseen;
    }
}

/// A backend on the node of a bed.
pub struct Rig<'a> {
    /// The bed.
    pub bed: &'a Bed,
    /// The backend.
    pub backend: &'a mut dyn Dataplane,
    /// What it can do.
    pub abilities: &'a Abilities,
    /// What was done so far.
    pub tally: &'a mut Tally,
}

/// Applies the steps of a scenario one after the other and tries every row; returns what went wrong.
///
/// # Errors
/// When an apply fails or an agent cannot be run.
pub fn try_scenario(rig: &mut Rig<'_>, scenario: &Scenario) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    let mut before = None;
    for step in &scenario.steps {
        let found = try_step(rig, before, step).with_context(|| format!("step {:?}", step.name))?;
        failures.extend(found.into_iter().map(|failure| format!("{}: {failure}", step.name)));
        before = Some(step);
    }
    Ok(failures)
}

fn try_step(rig: &mut Rig<'_>, before: Option<&Step>, step: &Step) -> Result<Vec<String>> {
    let Rig { bed, backend, abilities, tally } = rig;
    let (plan, scope) = step.plan_after(before);
    let node = bed.node()?;
    let (applied, rulings) = node.run(|| -> Result<_> {
        let applied = backend.apply(&plan, &scope)?;
        forget_flows()?;
        let trace = |row| check_trace(&**backend, abilities, &plan, &applied, row);
        let rulings: Vec<Result<Ruling, String>> = step.rows.iter().map(trace).collect();
        Ok((applied, rulings))
    })??;
    let mut failures = Vec::new();
    if applied.generation != plan.generation {
        failures.push(format!("applied generation {} for {}", applied.generation, plan.generation));
    }
    for (row, ruling) in step.rows.iter().zip(rulings) {
        let ruling = ruling.unwrap_or_else(|why| {
            failures.push(format!("{row}: trace: {why}"));
            abilities.rule(row)
        });
        match ruling {
            Ruling::MustBeRefused(_) => tally.refused += 1,
            Ruling::Unseen(_) => tally.unseen += 1,
            Ruling::Check => {
                tally.traced += 1;
                if row.has_packets()
                    && let Err(why) = try_row(bed, &plan, abilities, row, tally)?
                {
                    failures.push(format!("{row}: packets: {why}"));
                }
            }
        }
    }
    Ok(failures)
}

/// Makes the calling thread's namespace forget the flows it tracks. A socket of an earlier step had, sooner or
/// later, the port that a socket of this one gets, and its datagrams would go where that one's went.
fn forget_flows() -> Result<()> {
    let mut conntrack = Conntrack::open()?;
    for family in [netlink::Family::V4, netlink::Family::V6] {
        for flow in conntrack.flows(family, |_| true)? {
            conntrack.forget(&flow)?;
        }
    }
    Ok(())
}

/// Makes the row's connections and compares every answer with the oracle; the inner error says what differs.
fn try_row(
    bed: &Bed,
    plan: &ServicePlan,
    abilities: &Abilities,
    row: &Row,
    tally: &mut Tally,
) -> Result<Result<(), String>> {
    tally.tried += 1;
    let expected = verdict(plan, &row.flow());
    match &expected {
        Expected::Balance { endpoints, .. } => {
            let answers =
                Answers { row, expected: &expected, endpoints, compare_source: abilities.masquerades() };
            match try_balance(bed, &answers, tally)? {
                Ok(seen) if row.protocol == Protocol::Udp => try_unconnected(bed, &answers, &seen, tally),
                tried => Ok(tried.map(drop)),
            }
        }
        Expected::Reject => try_all(bed, row, PATIENCE, tally, &|outcome| is_refused(row, outcome)),
        Expected::Drop => try_all(bed, row, SILENCE, tally, &|outcome| *outcome == Outcome::TimedOut),
        Expected::Pass => Ok(Ok(())),
    }
}

/// Refused at once. A datagram of the host's own that a rule rejects on its way out fails in send(2) already:
/// with EPERM, before the ICMP error that the rule sends comes back (`__ip_local_out`, `nf_hook_slow`).
fn is_refused(row: &Row, outcome: &Outcome) -> bool {
    let is_own_datagram = row.from == Actor::Host && row.protocol == Protocol::Udp;
    match outcome {
        Outcome::Refused => true,
        Outcome::Other(text) => is_own_datagram && text.contains("Operation not permitted"),
        Outcome::Answered { .. } | Outcome::TimedOut | Outcome::Reset => false,
    }
}

/// Two connections that must all end like this.
fn try_all(
    bed: &Bed,
    row: &Row,
    timeout: Duration,
    tally: &mut Tally,
    is_right: &dyn Fn(&Outcome) -> bool,
) -> Result<Result<(), String>> {
    let outcomes = bed.connect(row.from, connect(row, 2, timeout))?;
    tally.connections += outcomes.len() as u64;
    let wrong = outcomes.iter().find(|outcome| !is_right(outcome));
    Ok(match wrong {
        None if outcomes.len() == 2 => Ok(()),
        None => Err(format!("{} outcomes of 2", outcomes.len())),
        Some(outcome) => Err(format!("{outcome:?}")),
    })
}

/// Connects until every endpoint has answered; each answer must be right. Returns who answered.
fn try_balance(
    bed: &Bed,
    answers: &Answers<'_>,
    tally: &mut Tally,
) -> Result<Result<BTreeSet<PoolEndpoint>, String>> {
    let mut seen = BTreeSet::new();
    // The first one alone, so that a Service that does not answer takes no batch of time-outs to tell.
    let batch = if answers.endpoints.len() == 1 { 3 } else { BATCH };
    let counts = std::iter::once(1).chain(std::iter::repeat_n(batch, MOST_BATCHES));
    for (number, count) in counts.enumerate() {
        let outcomes = bed.connect(answers.row.from, connect(answers.row, count, PATIENCE))?;
        tally.connections += u64::from(count);
        match answers.endpoints_of(&outcomes, count) {
            Ok(found) => seen.extend(found),
            Err(why) => return Ok(Err(why)),
        }
        let is_enough =
            if answers.row.is_sticky() { number > 0 } else { seen.len() == answers.endpoints.len() };
        if is_enough {
            break;
        }
    }
    if answers.row.is_sticky() {
        let is_right = seen.len() == 1;
        return Ok(if is_right {
            Ok(seen)
        } else {
            Err(format!("affinity: {} endpoints answered", seen.len()))
        });
    }
    let missing: Vec<_> = answers.endpoints.difference(&seen).map(|endpoint| endpoint.address).collect();
    Ok(if missing.is_empty() { Ok(seen) } else { Err(format!("{missing:?} never answered")) })
}

/// The same with sendto(2) and recvfrom(2), as DNS clients often do.
fn try_unconnected(
    bed: &Bed,
    answers: &Answers<'_>,
    seen: &BTreeSet<PoolEndpoint>,
    tally: &mut Tally,
) -> Result<Result<(), String>> {
    const COUNT: u32 = 4;
    let question =
        Connect { count: COUNT, timeout: PATIENCE, ..Connect::udp_unconnected(target(answers.row)) };
    let outcomes = bed.connect(answers.row.from, question)?;
    tally.connections += u64::from(COUNT);
    let found = answers.endpoints_of(&outcomes, COUNT).map_err(|why| format!("unconnected: {why}"));
    Ok(found.and_then(|found| {
        let is_same = !answers.row.is_sticky() || found == *seen;
        if is_same { Ok(()) } else { Err("unconnected: affinity chose another endpoint".to_owned()) }
    }))
}

/// What the answers of a balanced row are compared with.
struct Answers<'a> {
    row: &'a Row,
    expected: &'a Expected,
    endpoints: &'a BTreeSet<PoolEndpoint>,
    compare_source: bool,
}

impl Answers<'_> {
    /// The endpoints that answered, if all of `count` outcomes are right.
    fn endpoints_of(&self, outcomes: &[Outcome], count: u32) -> Result<BTreeSet<PoolEndpoint>, String> {
        if outcomes.len() != count as usize {
            return Err(format!("{} outcomes of {count}", outcomes.len()));
        }
        outcomes.iter().map(|outcome| self.endpoint_of(outcome)).collect()
    }

    /// The endpoint that answered, if it may and saw the right source.
    fn endpoint_of(&self, outcome: &Outcome) -> Result<PoolEndpoint, String> {
        let Outcome::Answered { server, peer, remote } = outcome else {
            return Err(format!("{outcome:?}"));
        };
        if *remote != target(self.row) {
            return Err(format!("the client sees {remote} as its peer"));
        }
        let endpoint =
            self.endpoints.iter().find(|endpoint| server_name(endpoint).as_deref() == Some(server));
        let Some(endpoint) = endpoint else { return Err(format!("{server} answered, which is no endpoint")) };
        if self.compare_source {
            self.check_source(endpoint, peer.ip().to_canonical())
                .map_err(|wanted| format!("{server} saw {}, expected {wanted}", peer.ip()))?;
        }
        Ok(*endpoint)
    }

    /// The source that an endpoint sees: one of the node's addresses, or the client's own.
    fn check_source(&self, endpoint: &PoolEndpoint, seen: IpAddr) -> Result<(), &'static str> {
        let family = Family::of(self.row.to);
        let client = self.row.from.address(family);
        let is_node = site::node_addresses(family).contains(&seen);
        if self.row.from == Actor::Host {
            return if is_node { Ok(()) } else { Err("an address of the node") };
        }
        if self.expected.is_masqueraded(client, endpoint.address) {
            if is_node { Ok(()) } else { Err("an address of the node") }
        } else if seen == client {
            Ok(())
        } else {
            Err("the client's own address")
        }
    }
}

fn connect(row: &Row, count: u32, timeout: Duration) -> Connect {
    let connect = match row.protocol {
        Protocol::Udp => Connect::udp(target(row)),
        Protocol::Tcp | Protocol::Sctp => Connect::tcp(target(row)),
    };
    Connect { count, timeout, ..connect }
}

fn target(row: &Row) -> SocketAddr {
    SocketAddr::new(row.to, row.port)
}
