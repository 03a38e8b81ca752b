//! Against an imitation of the programs: what is written when, and what failures become.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use netd_kernel::Output;

use super::*;
use crate::testing::{PlanBuilder, everything};

mod namespace;

/// Saves and restores of an imagined kernel: tables with chains of rule lines.
#[derive(Default)]
struct Imitation {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    chains: BTreeMap<(String, String), Vec<String>>,
    restores: usize,
    /// The next restore ends so.
    fail: Option<(i32, &'static str)>,
    /// The next restore takes effect up to this many tables, then ends so.
    fail_after: Option<usize>,
}

impl State {
    fn save(&self) -> String {
        let mut text = String::new();
        for table in ["filter", "nat"] {
            text.push_str(&format!("*{table}\n"));
            let chains: Vec<_> = self.chains.iter().filter(|((of, _), _)| of == table).collect();
            for ((_, name), _) in &chains {
                text.push_str(&format!(":{name} - [0:0]\n"));
            }
            for ((_, name), rules) in &chains {
                rules.iter().for_each(|rule| text.push_str(&format!("-A {name} {rule}\n")));
            }
            text.push_str("COMMIT\n");
        }
        text
    }

    fn restore(&mut self, input: &str) -> Option<()> {
        let mut table = String::new();
        let mut tables = 0;
        for line in input.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.to_owned();
                tables += 1;
                if self.fail_after == Some(tables - 1) {
                    return None;
                }
                continue;
            }
            if line == "COMMIT" {
                continue;
            }
            if let Some(declared) = line.strip_prefix(':') {
                let name = declared.split(' ').next()?;
                self.chains.insert((table.clone(), name.to_owned()), Vec::new());
                continue;
            }
            let (command, rest) = line.split_once(' ')?;
            let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
            let key = (table.clone(), chain.to_owned());
            match command {
                "-X" => drop(self.chains.remove(&key)?),
                "-A" => self.chains.entry(key).or_default().push(rule.to_owned()),
                "-I" => self.chains.entry(key).or_default().insert(0, rule.strip_prefix("1 ")?.to_owned()),
                "-D" => {
                    let rules = self.chains.get_mut(&key)?;
                    let at = rules.iter().position(|found| found == rule)?;
                    rules.remove(at);
                }
                _ => return None,
            }
        }
        Some(())
    }
}

impl Exec for Imitation {
    fn run(
        &self,
        program: &Path,
        args: &[&str],
        stdin: &[u8],
        _timeout: Duration,
    ) -> netd_kernel::Result<Output> {
        let mut state = self.state.lock().unwrap();
        let name = program.to_str().unwrap();
        let said = |status: i32, stdout: String, stderr: &str| {
            Ok(Output { status, stdout: stdout.into_bytes(), stderr: stderr.as_bytes().to_vec() })
        };
        if args == ["--version"] {
            return said(0, "iptables v1.8.9 (nf_tables)".to_owned(), "");
        }
        if name.ends_with("-save") {
            return said(0, state.save(), "");
        }
        state.restores += 1;
        if let Some((status, stderr)) = state.fail.take() {
            return said(status, String::new(), stderr);
        }
        let done = state.restore(std::str::from_utf8(stdin).unwrap());
        state.fail_after = None;
        if done.is_some() { said(0, String::new(), "") } else { said(1, String::new(), "line 7 failed") }
    }
}

struct OneVariant;

impl Host for OneVariant {
    fn find(&self, name: &str) -> Option<PathBuf> {
        name.starts_with("iptables-nft").then(|| PathBuf::from(name))
    }

    fn has_family(&self, family: Family) -> bool {
        family == Family::V4
    }

    fn generation(&self, _variant: Implementation) -> fn() -> Option<u32> {
        || None
    }
}

fn started(exec: &Arc<Imitation>) -> Iptables {
    let exec: Arc<dyn Exec> = Arc::<Imitation>::clone(exec);
    Iptables::on(&OneVariant, IptablesConfig::default(), exec).unwrap()
}

#[test]
fn an_equal_plan_starts_no_program() {
    let exec = Arc::new(Imitation::default());
    let mut iptables = started(&exec);
    let plan = everything(Family::V4).whole();
    let first = iptables.apply(&plan, &Scope::Full).unwrap();
    assert!(first.changed > 50, "{first:?}");
    assert_eq!(first.frontends, plan.v4.frontends.len());
    let restores = exec.state.lock().unwrap().restores;
    let second = iptables.apply(&plan, &Scope::Full).unwrap();
    assert_eq!((second.changed, exec.state.lock().unwrap().restores), (0, restores));
    assert!(iptables.intact().unwrap());
}

#[test]
fn a_restarted_daemon_adopts_what_it_finds() {
    let exec = Arc::new(Imitation::default());
    let plan = everything(Family::V4).whole();
    started(&exec).apply(&plan, &Scope::Full).unwrap();
    let mut again = started(&exec);
    again.resync().unwrap();
    assert_eq!(again.apply(&plan, &Scope::Full).unwrap().changed, 0);
}

#[test]
fn an_absent_family_is_refused_by_name() {
    let exec = Arc::new(Imitation::default());
    let plan = everything(Family::V6).whole();
    let applied = started(&exec).apply(&plan, &Scope::Full).unwrap();
    assert_eq!(applied.refused.len(), plan.v6.frontends.len());
    assert!(applied.refused[0].reason.contains("kernel has no IPv6"), "{:?}", applied.refused[0]);
}

#[test]
fn a_held_lock_is_refused_and_the_retry_succeeds() {
    let exec = Arc::new(Imitation::default());
    let mut iptables = started(&exec);
    let plan = PlanBuilder::new(Family::V4).whole();
    exec.state.lock().unwrap().fail = Some((
        4,
        "Another app is currently holding the xtables lock. Perhaps you want to use the -w option?",
    ));
    let error = iptables.apply(&plan, &Scope::Full).unwrap_err();
    assert!(matches!(error, ApplyError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("the xtables lock is taken"), "{error}");
    assert!(iptables.apply(&plan, &Scope::Full).unwrap().changed > 0);
    assert!(iptables.intact().unwrap());
}

#[test]
fn a_restore_that_stopped_between_tables_is_torn_and_the_next_apply_heals() {
    let exec = Arc::new(Imitation::default());
    let mut iptables = started(&exec);
    let plan = PlanBuilder::new(Family::V4).whole();
    iptables.planes[0].same_address = Some(true);
    exec.state.lock().unwrap().fail_after = Some(1);
    let error = iptables.apply(&plan, &Scope::Full).unwrap_err();
    assert!(matches!(error, ApplyError::Torn { .. }), "{error}");
    assert!(iptables.apply(&plan, &Scope::Full).unwrap().changed > 0);
    assert!(iptables.intact().unwrap());
}

#[test]
fn missing_privilege_is_a_configuration_error() {
    let exec = Arc::new(Imitation::default());
    let mut iptables = started(&exec);
    exec.state.lock().unwrap().fail = Some((
        4,
        "iptables-restore v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)",
    ));
    let error = iptables.apply(&everything(Family::V4).whole(), &Scope::Full).unwrap_err();
    assert!(matches!(&error, ApplyError::Config(text) if text.contains("as root")), "{error}");
}

#[test]
fn a_kernel_without_recent_costs_affinity_services_only() {
    let exec = Arc::new(Imitation::default());
    let mut iptables = started(&exec);
    exec.state.lock().unwrap().fail = Some((2, "Couldn't load match `recent':No such file or directory"));
    let applied = iptables.apply(&everything(Family::V4).whole(), &Scope::Full).unwrap();
    let refused: Vec<_> = applied.refused.iter().map(|refusal| refusal.service.as_str()).collect();
    assert_eq!(refused, ["default/sticky:p"]);
}

#[test]
fn a_kernel_without_bpf_gets_a_chain_for_each_endpoint() {
    let exec = Arc::new(Imitation::default());
    let mut iptables = started(&exec);
    iptables.planes[0].affinity = Some(true);
    exec.state.lock().unwrap().fail =
        Some((1, "Warning: Extension bpf revision 0 not supported, missing kernel module?"));
    let applied = iptables.apply(&everything(Family::V4).whole(), &Scope::Full).unwrap();
    assert_eq!(applied.refused, []);
    let state = exec.state.lock().unwrap();
    assert!(!state.save().contains("--bytecode"));
    let of_endpoints = state.chains.keys().filter(|(_, name)| name.starts_with("NETD-SEP-"));
    assert_eq!(of_endpoints.count(), 9);
}

#[test]
fn a_kernel_that_has_the_rule_of_an_earlier_run_is_not_asked_again() {
    let exec = Arc::new(Imitation::default());
    let plan = PlanBuilder::new(Family::V4).whole();
    started(&exec).apply(&plan, &Scope::Full).unwrap();
    let restores = exec.state.lock().unwrap().restores;
    let mut again = started(&exec);
    again.resync().unwrap();
    assert_eq!(again.apply(&plan, &Scope::Full).unwrap().changed, 0);
    assert_eq!(exec.state.lock().unwrap().restores, restores);
}

#[test]
fn a_mark_bit_out_of_range_is_a_configuration_error() {
    let exec: Arc<dyn Exec> = Arc::new(Imitation::default());
    let config = IptablesConfig { masquerade_bit: 32, ..IptablesConfig::default() };
    assert!(matches!(Iptables::on(&OneVariant, config, exec), Err(ApplyError::Config(_))));
}

#[test]
fn words_that_are_new_to_us_do_not_look_like_tampering() {
    let exec = Arc::new(Imitation::default());
    let mut iptables = started(&exec);
    iptables.apply(&everything(Family::V4).whole(), &Scope::Full).unwrap();
    let key = ("nat".to_owned(), names_of_masquerade().to_owned());
    let print_differently = || {
        let mut state = exec.state.lock().unwrap();
        let rules = state.chains.get_mut(&key).unwrap();
        rules.iter_mut().for_each(|rule| *rule = rule.replace("--random-fully", "--fully-random"));
    };
    print_differently();
    assert!(!iptables.intact().unwrap());
    let plane = &mut iptables.planes[0];
    let written = plane.installed.clone().unwrap().chains;
    let found = plane.tool.installed().unwrap();
    plane.learn(&written, &found).unwrap();
    assert!(iptables.intact().unwrap());
    exec.state.lock().unwrap().chains.get_mut(&key).unwrap().pop();
    assert!(!iptables.intact().unwrap());
}

fn names_of_masquerade() -> &'static str {
    crate::names::POSTROUTING
}
