//! netd and kube-proxy with thousands of Services, one after the other on machines of their own, against one API
//! server: from start to programmed, from a change at the API server to the first connection that follows it, and what
//! that costs.
//!
//! Every endpoint is alive: all their addresses are local to the machine, where one program answers which it was
//! reached under.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::binaries::Binaries;
use crate::control_plane::ControlPlane;
use crate::kubectl::Kubectl;
use crate::lan;
use crate::machine::Machine;
use crate::run::Run;
use crate::tool::ip;

mod contender;
mod meter;
mod options;
mod report;

use contender::Contender;
use meter::Meter;
pub use options::Options;
use report::Row;

/// All endpoints' addresses.
const ENDPOINTS: &str = "172.20.0.0/14";
/// How long a contender may take to program all Services; kube-proxy with the nft variant of iptables takes minutes.
const COLD: Duration = Duration::from_secs(1500);
/// How long one change may take.
const CHANGE: Duration = Duration::from_secs(60);

/// Runs the benchmark and returns what came out, as text.
///
/// # Errors
/// When a part of it does not come up, or a contender never programs what it is to.
pub fn run(options: &Options) -> Result<String> {
    let run = Run::create()?;
    let outcome = measure(&run, options);
    // Machines are down by now, whatever happened.
    run.remove(outcome.is_err())?;
    if outcome.is_err() {
        eprintln!("bench-services: logs are in {}", run.logs().display());
    }
    let rows = outcome?;
    Ok(if options.json { format!("{:#}\n", report::json(&rows)) } else { report::table(&rows) })
}

fn measure(run: &Run, options: &Options) -> Result<Vec<Row>> {
    let binaries = Binaries::prepare(run)?;
    lan::create(run)?;
    let control = Machine::start(run, "m-k8s", "192.168.1.10")?;
    let plane = ControlPlane::start_storage(&control, &binaries)?;
    plane.wait_ready(&control, &binaries)?;
    let bench = Bench { run, binaries: &binaries, plane: &plane, control: &control, options };
    let rows = bench.all_sizes();
    ControlPlane::stop_storage(&control)?;
    rows
}

struct Bench<'a> {
    run: &'a Run,
    binaries: &'a Binaries,
    plane: &'a ControlPlane,
    control: &'a Machine,
    options: &'a Options,
}

impl Bench<'_> {
    fn all_sizes(&self) -> Result<Vec<Row>> {
        let kubectl = Kubectl::new(self.binaries.kubernetes("kubectl"), self.admin());
        kubectl.apply_text(self.control, include_str!("../../../manifests/base/rbac.yaml"))?;
        let (mut rows, mut loaded, mut machines) = (Vec::new(), 0, 0);
        for size in &self.options.sizes {
            ensure!(*size >= loaded, "sizes must grow");
            self.load(loaded, *size)?;
            loaded = *size;
            for contender in &self.options.contenders {
                machines += 1;
                let row = self.one(&kubectl, contender, *size, machines);
                rows.push(row.with_context(|| format!("{contender} with {size} Services"))?);
            }
        }
        Ok(rows)
    }

    fn admin(&self) -> String {
        self.plane.kubeconfig("admin").display().to_string()
    }

    fn load(&self, from: usize, to: usize) -> Result<()> {
        let begin = Instant::now();
        let (from, to, count) = (from.to_string(), to.to_string(), self.options.endpoints.to_string());
        let course = self.binaries.own("course");
        let argv = [
            &course,
            "load",
            "--kubeconfig",
            &self.admin(),
            "--from",
            &from,
            "--to",
            &to,
            "--endpoints",
            &count,
        ];
        self.control.run_within(&argv, "", COLD)?.success("m-k8s", &argv)?;
        eprintln!("{to} Services x {count} endpoints are there after {:.0} s", begin.elapsed().as_secs_f64());
        Ok(())
    }

    /// One contender on a machine of its own.
    fn one(&self, kubectl: &Kubectl, contender: &Contender, size: usize, number: usize) -> Result<Row> {
        let (name, address) = (format!("w{number}"), format!("192.168.1.{}", 100 + number));
        kubectl.apply(self.control, &[node(&name, number)])?;
        let status =
            json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}}).to_string();
        let words = ["patch", "node", &name, "--subresource=status", "--type=merge", "-p", &status];
        kubectl.call(self.control, &words, "")?;
        let machine = Machine::start(self.run, &name, &address)?;
        ip(&format!("-n {} route add local {ENDPOINTS} dev lo", self.run.netns(&name)))?;
        machine.spawn("serve", &[&self.binaries.own("course"), "serve", "--address", "0.0.0.0:8080"])?;
        let row = self.time(contender, size, &machine);
        if row.is_err() {
            eprintln!("{}", crate::tool::tail(&machine.log(contender::DAEMON), 15));
        }
        row
    }

    fn time(&self, contender: &Contender, size: usize, machine: &Machine) -> Result<Row> {
        contender.prepare(machine, self.plane, self.binaries)?;
        let meter = Meter::new(machine)?;
        eprint!("{contender} with {size} Services: ");
        let begin = Instant::now();
        contender.start(machine, self.binaries, &meter)?;
        self.await_all(machine, size)?;
        let cold = begin.elapsed();
        let cold_cpu = meter.cpu()?;
        eprintln!("programmed after {:.2} s", cold.as_secs_f64());
        // What is done in the background after the start is not a change's.
        let idle = meter.settle()?;
        let (cpu, start) = (meter.cpu()?, Instant::now());
        let alone = self.change(machine, size, 0)?;
        let spent = meter.cpu()?.saturating_sub(cpu).saturating_sub(start.elapsed().mul_f64(idle));
        let samples = u32::try_from(alone.milliseconds.len().max(1))?;
        let busy = self.change(machine, size, 10)?;
        let (rules, peak) = (contender.rules(machine)?, meter.peak()?);
        Ok(Row {
            contender: contender.to_string(),
            services: size,
            endpoints: self.options.endpoints,
            cold,
            cold_cpu,
            idle,
            alone,
            cpu_a_change: spent / samples,
            busy,
            rules,
            daemon: peak.daemon,
            tree: peak.tree,
        })
    }

    fn await_all(&self, machine: &Machine, size: usize) -> Result<()> {
        let (course, to, deadline) =
            (self.binaries.own("course"), size.to_string(), format!("{}s", COLD.as_secs()));
        let admin = self.admin();
        let argv = [&course, "await", "--kubeconfig", &admin, "--to", &to, "--deadline", &deadline];
        machine.run_within(&argv, "", COLD + CHANGE)?.success(machine.name(), &argv).map(drop)
    }

    fn change(&self, machine: &Machine, size: usize, churn: usize) -> Result<Changes> {
        let (samples, to) = (self.options.samples.to_string(), size.to_string());
        let (churn, count) = (churn.to_string(), self.options.endpoints.to_string());
        let (course, admin, deadline) =
            (self.binaries.own("course"), self.admin(), format!("{}s", CHANGE.as_secs()));
        let argv = [
            &course,
            "change",
            "--kubeconfig",
            &admin,
            "--samples",
            &samples,
            "--to",
            &to,
            "--endpoints",
            &count,
            "--churn",
            &churn,
            "--deadline",
            &deadline,
        ];
        let limit = CHANGE * u32::try_from(self.options.samples + 1)?;
        let text = machine.run_within(&argv, "", limit)?.success(machine.name(), &argv)?;
        Changes::read(&serde_json::from_str(&text).context("course prints JSON")?)
    }
}

/// What became of changes of one endpoint.
#[derive(Debug)]
struct Changes {
    /// From the write at the API server to the first answer of the new endpoint; in order of size.
    milliseconds: Vec<f64>,
    refused: u64,
    tried: u64,
}

impl Changes {
    fn read(value: &Value) -> Result<Changes> {
        let mut milliseconds: Vec<f64> =
            serde_json::from_value(value["milliseconds"].clone()).context("milliseconds")?;
        if milliseconds.is_empty() {
            bail!("no change was timed");
        }
        milliseconds.sort_by(f64::total_cmp);
        let count = |key: &str| value[key].as_u64().with_context(|| format!("no {key}"));
        Ok(Changes { milliseconds, refused: count("refused")?, tried: count("tried")? })
    }

    /// The smallest value that `share` of all are not above.
    fn quantile(&self, share: f64) -> f64 {
        let last = self.milliseconds.len() - 1;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a place in a short list"
        )]
        let place = (share * last as f64).ceil() as usize;
        self.milliseconds[place.min(last)]
    }
}

fn node(name: &str, number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"podCIDR": format!("172.16.{number}.0/24"), "podCIDRs": [format!("172.16.{number}.0/24")]},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let value = json!({"milliseconds": [4.0, 1.0, 3.0, 2.0, 5.0], "refused": 0, "tried": 9});
        let changes = Changes::read(&value).unwrap();
        assert_eq!((changes.quantile(0.5), changes.quantile(0.99)), (3.0, 5.0));
        assert!(Changes::read(&json!({"milliseconds": [], "refused": 0, "tried": 0})).is_err());
    }
}
