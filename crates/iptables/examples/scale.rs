//! What many Services cost: `scale VARIANT SERVICES ENDPOINTS [NAMESPACE]`, as root.
//!
//! Makes a network namespace of its own, or takes that one as it is and leaves it there, applies a plan of cluster addresses to it, changes one endpoint of one
//! Service after the other, and prints seconds, processor time (that of the iptables programs included) and how
//! many rules and chains `iptables-save` shows.

use std::collections::BTreeSet;
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use netd_dataplane::{Applied, Dataplane as _};
use netd_iptables::{Iptables, IptablesConfig, Variant};
use netd_kernel::clock::{Clock as _, SystemClock};
use netd_kernel::exec::{Exec as _, SystemExec, find_program};
use netd_kernel::netns::{NETNS_DIR, Namespace};
use netd_model::{
    Family, FamilyPlan, Frontend, FrontendAddress, FrontendKey, FrontendKind, LocalPods, Masquerade,
    ObjectName, Pool, PoolEndpoint, PoolId, PoolScope, Protocol, Scope, ServicePlan, ServicePortName,
    Verdict, VerdictBySource,
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// One-endpoint changes that are timed.
const CHANGES: u32 = 20;
/// Ticks a second of `/proc/PID/stat` (`USER_HZ` on every architecture netd runs on).
const TICKS: f64 = 100.0;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let usage = "scale (nft|legacy) SERVICES ENDPOINTS [NAMESPACE]";
    let [variant, services, endpoints, namespace @ ..] = args.as_slice() else { return Err(usage.into()) };
    let variant = match variant.as_str() {
        "nft" => Variant::Nft,
        "legacy" => Variant::Legacy,
        _ => return Err(usage.into()),
    };
    let (services, endpoints) = (services.parse()?, endpoints.parse()?);
    let leave = !namespace.is_empty();
    let measure = || measure(variant, services, endpoints, leave);
    match namespace.first() {
        Some(name) => Namespace::open(&PathBuf::from(NETNS_DIR).join(name))?.run(measure)?,
        None => Place::make()?.namespace.run(measure)?,
    }
}

/// A namespace that goes with this value.
struct Place {
    namespace: Namespace,
    path: PathBuf,
}

impl Place {
    fn make() -> Outcome<Self> {
        let path = PathBuf::from(NETNS_DIR).join(format!("nd-{}-scale", std::process::id()));
        Ok(Self { namespace: Namespace::create(&path)?, path })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = Namespace::remove(&self.path) {
            eprintln!("remove {}: {error}", self.path.display());
        }
    }
}

fn measure(variant: Variant, services: u32, endpoints: u32, leave: bool) -> Outcome<()> {
    let config = IptablesConfig {
        variant,
        lock_wait: Duration::from_secs(60),
        families: vec![Family::V4],
        ..IptablesConfig::default()
    };
    let mut plan = plan(services, endpoints);
    let mut backend = Iptables::new(config, Arc::new(SystemExec))?;
    cost(|| backend.resync())?.tell("read back");
    let cold = cost(|| backend.apply(&plan, &Scope::Full))?;
    cold.tell(&format!("cold start, {} written", cold.done.changed));
    count(variant)?;
    change_endpoints(&mut backend, &mut plan, services)?;
    let last = service_port(services.saturating_sub(1)).service;
    plan.v4.frontends.retain(|_, frontend| frontend.port.service != last);
    let scope = Scope::Services(BTreeSet::from([last]));
    cost(|| backend.apply(&plan, &scope))?.tell("a Service goes");
    if !backend.intact()? {
        return Err("the rules are not what was applied".into());
    }
    if !leave {
        cost(|| backend.cleanup())?.tell("cleanup");
    }
    Ok(())
}

/// Changes one endpoint of a Service, of the next one, and so on.
fn change_endpoints(backend: &mut Iptables, plan: &mut ServicePlan, services: u32) -> Outcome<()> {
    let mut costs = Vec::new();
    for change in 0..CHANGES {
        let number = change * (services / CHANGES).max(1) % services.max(1);
        let id = pool_id(number);
        let mut pool = plan.v4.pools.get(&id).cloned().ok_or("the plan lacks a pool")?;
        pool.endpoints.pop();
        pool.endpoints.push(endpoint(Ipv4Addr::from_bits(0xac1f_0000 + change)));
        plan.v4.pools.insert(id, pool);
        let scope = Scope::Services(BTreeSet::from([service_port(number).service]));
        let cost = cost(|| backend.apply(plan, &scope))?;
        if cost.done.changed == 0 {
            return Err("a changed endpoint changed nothing".into());
        }
        costs.push(cost);
    }
    let mean = |of: fn(&Cost<Applied>) -> f64| costs.iter().map(of).sum::<f64>() / f64::from(CHANGES);
    let (own, programs) = (mean(|cost| cost.own), mean(|cost| cost.programs));
    costs.sort_by(|one, other| one.passed.total_cmp(&other.passed));
    let middle = costs.get(costs.len() / 2).map_or(0.0, |cost| cost.passed);
    Cost { passed: middle, own, programs, done: () }.tell("a changed endpoint (median)");
    Ok(())
}

/// Prints how many rules and chains there are.
fn count(variant: Variant) -> Outcome<()> {
    let name = if variant == Variant::Legacy { "iptables-legacy-save" } else { "iptables-nft-save" };
    let program = find_program(name).ok_or("iptables is not installed")?;
    let output = SystemExec.run(&program, &[], b"", Duration::from_secs(60))?;
    let text = String::from_utf8(output.stdout)?;
    let starting = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
    eprintln!("{} rules, {} chains, {} bytes printed", starting("-A "), starting(":NETD"), text.len());
    Ok(())
}

/// What work took, in seconds.
struct Cost<T> {
    passed: f64,
    /// Processor time of this process.
    own: f64,
    /// Processor time of the programs it started.
    programs: f64,
    done: T,
}

impl<T> Cost<T> {
    fn tell(&self, what: &str) {
        let [passed, own, programs] = [self.passed, self.own, self.programs].map(|seconds| seconds * 1000.0);
        eprintln!("{what}: {passed:.1} ms; processor: {programs:.1} ms of the programs, {own:.1} ms our own");
    }
}

fn cost<T, E: Into<Box<dyn Error + Send + Sync>>>(work: impl FnOnce() -> Result<T, E>) -> Outcome<Cost<T>> {
    let ((own, programs), start) = (processor_times()?, SystemClock.now());
    let done = work().map_err(Into::into)?;
    let (own_after, programs_after) = processor_times()?;
    let passed = SystemClock.now().saturating_duration_since(start).as_secs_f64();
    Ok(Cost { passed, own: own_after - own, programs: programs_after - programs, done })
}

/// Seconds that this process has run, and those its ended children have.
fn processor_times() -> Outcome<(f64, f64)> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    let ticks: Vec<f64> = fields.split(' ').skip(11).take(4).map(str::parse).collect::<Result<_, _>>()?;
    let [user, system, users, systems] = ticks.as_slice() else { return Err("short /proc/self/stat".into()) };
    Ok(((user + system) / TICKS, (users + systems) / TICKS))
}

fn service_port(number: u32) -> ServicePortName {
    let service = ObjectName::new("scale", format!("service-{number}"));
    ServicePortName { service, port: "http".into(), protocol: Protocol::Tcp }
}

fn pool_id(number: u32) -> PoolId {
    PoolId { port: service_port(number), scope: PoolScope::Cluster }
}

fn endpoint(address: Ipv4Addr) -> PoolEndpoint {
    PoolEndpoint { address: IpAddr::V4(address), port: NonZeroU16::MIN.saturating_add(8079), local: false }
}

/// Services with a cluster address each, as they are with a cluster CIDR.
fn plan(services: u32, endpoints: u32) -> ServicePlan {
    let prefix = "172.16.0.0/12".parse().into_iter().collect();
    let mut v4 = FamilyPlan { local_pods: LocalPods::Prefixes(prefix), ..FamilyPlan::empty(Family::V4) };
    for number in 0..services {
        let first = number * endpoints;
        let members = (first..first + endpoints).map(|n| endpoint(Ipv4Addr::from_bits(0xac10_0000 + n)));
        v4.pools.insert(pool_id(number), Pool { endpoints: members.collect() });
        let balance = |masquerade| Verdict::Balance { pool: pool_id(number), masquerade, affinity: None };
        let verdicts = VerdictBySource {
            pod: balance(Masquerade::Hairpin),
            host: balance(Masquerade::Always),
            other: balance(Masquerade::Always),
        };
        let key = FrontendKey {
            address: FrontendAddress::Ip(IpAddr::V4(Ipv4Addr::from_bits(0x0a60_0000 + number))),
            protocol: Protocol::Tcp,
            port: NonZeroU16::MIN.saturating_add(79),
        };
        let frontend = Frontend {
            port: service_port(number),
            kind: FrontendKind::ClusterIP,
            allowed_sources: None,
            verdicts,
        };
        v4.frontends.insert(key, frontend);
    }
    ServicePlan { v4, ..ServicePlan::empty() }
}
