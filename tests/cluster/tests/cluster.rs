//! netd on a real cluster, once for each dataplane, one cluster for all tests.
//!
//! `NETD_DATAPLANE` names the dataplanes to test, separated by commas. The arguments are those of any Rust
//! test: a filter, `--list`, `--nocapture`. With `NETD_CLUSTER_HOLD` set, a failure leaves the cluster
//! standing until Enter is pressed; with `NETD_CLUSTER_LOGS` set, the logs are kept without a failure as
//! well.

use std::env;
use std::io;
use std::mem;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use libtest_mimic::{Arguments, Failed, Trial};
use netd_cluster_tests::netd::Dataplane;
use netd_cluster_tests::scenario::{self, Scenario};
use netd_cluster_tests::{Cluster, inside, prerequisites};

/// The one cluster, started by the first test that runs; what does not start once is not tried again.
#[derive(Default)]
enum Place {
    #[default]
    Empty,
    Up(Box<Cluster>),
    Failed,
}
type Shared = Arc<Mutex<Place>>;

fn main() -> ExitCode {
    let mut words = env::args().skip(1);
    if words.next().as_deref() == Some(inside::ARGUMENT) {
        return exit(inside::run(&words.next().unwrap_or_default()));
    }
    exit(run(Arguments::from_args()))
}

fn exit(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: Arguments) -> Result<()> {
    // All tests share the cluster, and each changes it.
    arguments.test_threads = Some(1);
    if !arguments.list {
        prerequisites().map_err(anyhow::Error::msg)?;
    }
    let shared = Shared::default();
    let mut trials = Vec::new();
    for dataplane in dataplanes()? {
        for scenario in scenario::ALL {
            let shared = Arc::clone(&shared);
            let check = move || {
                perform(&shared, dataplane, scenario).map_err(|error| Failed::from(format!("{error:#}")))
            };
            trials.push(Trial::test(format!("{dataplane}::{}", scenario.name), check));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let failed = conclusion.has_failed();
    let place = mem::take(&mut *shared.lock().unwrap_or_else(PoisonError::into_inner));
    if let Place::Up(cluster) = place {
        finish(*cluster, failed)?;
    }
    if failed { bail!("{} tests failed", conclusion.num_failed) } else { Ok(()) }
}

fn dataplanes() -> Result<Vec<Dataplane>> {
    let names = env::var("NETD_DATAPLANE").unwrap_or_else(|_| "iptables,ebpf".into());
    names.split(',').map(|name| name.trim().parse().context("NETD_DATAPLANE")).collect()
}

fn perform(shared: &Shared, dataplane: Dataplane, scenario: Scenario) -> Result<()> {
    let mut place = shared.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(*place, Place::Empty) {
        *place = Place::Failed;
        *place = Place::Up(Box::new(Cluster::start(dataplane)?));
    }
    let Place::Up(cluster) = &mut *place else { bail!("the cluster did not start") };
    if cluster.dataplane() != dataplane {
        cluster.switch_dataplane(dataplane)?;
    }
    (scenario.check)(cluster).inspect_err(|error| {
        eprintln!("{}: {error:#}\n{}", scenario.name, cluster.last_words());
        hold();
    })
}

/// Nothing may be left, whatever the tests did.
fn finish(cluster: Cluster, failed: bool) -> Result<()> {
    let logs = cluster.run.logs();
    let keep = failed || env::var_os("NETD_CLUSTER_LOGS").is_some();
    let left = cluster.stop(keep)?;
    if keep {
        eprintln!("logs are kept in {}", logs.display());
    }
    if !left.is_empty() {
        bail!("left behind:\n{}", left.join("\n"));
    }
    eprintln!("cluster is down, nothing is left");
    Ok(())
}

fn hold() {
    if env::var_os("NETD_CLUSTER_HOLD").is_some() {
        eprintln!("the cluster stands until Enter is pressed");
        // Whether there is a terminal or not, the tests go on.
        let _ = io::stdin().read_line(&mut String::new());
    }
}
