//! Cleanup removes what is ours and nothing else.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;
use netd_dataplane::conformance::site::{self, Actor};
use netd_kernel::exec::{Exec as _, SystemExec};
use netd_lab::agent::Connect;
use netd_lab::traffic::Outcome;
use netd_lab::{Node, Place as _};
use netd_model::{Family, Scope};
use netd_tests::backend::{Home, Kind};
use netd_tests::bed::Bed;
use netd_tests::worker::{SERVICE, plan_with};

/// Rules as kube-proxy, Calico, Docker and an administrator leave them, names close to ours included.
const FOREIGN: &str = "\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-SERVICES - [0:0]
:NETDATA - [0:0]
:cali-FORWARD - [0:0]
-A INPUT -p tcp -m tcp --dport 22 -m comment --comment \"netd stays away from this\" -j ACCEPT
-A INPUT -j KUBE-FIREWALL
-A FORWARD -j cali-FORWARD
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -j DOCKER
-A OUTPUT -j KUBE-SERVICES
-A DOCKER-USER -j RETURN
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-SERVICES -p tcp -m tcp --dport 9 -j REJECT
-A NETDATA -p tcp -m tcp --dport 19999 -j ACCEPT
-A cali-FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
:cali-PREROUTING - [0:0]
-A PREROUTING -j cali-PREROUTING
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -j DOCKER
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE
-A KUBE-SVC-NPX46M4PTMTKRN6Y -m statistic --mode random --probability 0.50000000000 -j KUBE-MARK-MASQ
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:KUBE-PROXY-CANARY - [0:0]
-A PREROUTING -p tcp -m tcp --dport 7 -j MARK --set-xmark 0x1/0x1
COMMIT
";
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn trials(kinds: &[Kind]) -> Vec<Trial> {
    let mut trials = Vec::new();
    for kind in kinds.iter().copied() {
        let name = format!("cleanup::{kind}::leaves_nothing_of_ours");
        trials.push(crate::trial(name, move || leaves_nothing(kind)));
        if kind.has_iptables() {
            let name = format!("cleanup::{kind}::leaves_foreign_rules_byte_identical");
            trials.push(crate::trial(name, move || leaves_foreign_rules(kind)));
        }
    }
    trials
}

fn leaves_foreign_rules(kind: Kind) -> Result<()> {
    let bed = Bed::with_one_port(&format!("foreign-{kind}"))?;
    let node = bed.node()?;
    let home = Home::of(node);
    let mut before = Vec::new();
    for v6 in [false, true] {
        load(node, kind, v6)?;
        before.push(saved(node, kind, v6)?);
    }
    let mut backend = node.run(|| kind.open(&home))??;
    node.run(|| backend.apply(&plan_with(&[1, 2], 1), &Scope::Full))??;
    for (v6, before) in [false, true].into_iter().zip(&before) {
        let during = saved(node, kind, v6)?;
        ensure!(during != *before, "nothing was applied");
        check_kept_in_order(before, &during)?;
    }
    node.run(|| backend.cleanup())??;
    node.run(|| backend.cleanup())?.context("clean up what is clean")?;
    for (v6, before) in [false, true].into_iter().zip(&before) {
        let after = saved(node, kind, v6)?;
        for (table, lines) in &after {
            match before.get(table) {
                Some(wanted) => {
                    ensure!(lines == wanted, "table {table} differs:\n{lines:#?}\nbefore:\n{wanted:#?}")
                }
                // Merely looking makes a table appear; it must be as empty as the kernel makes it.
                None => {
                    let is_empty = lines.iter().all(|line| line.starts_with(':') && !line.ends_with('-'));
                    ensure!(is_empty, "table {table} is new and not empty: {lines:#?}");
                }
            }
        }
        ensure!(before.keys().all(|table| after.contains_key(table)), "a table is gone");
    }
    Ok(())
}

/// After cleanup a second instance finds nothing, and the Service is no longer served.
fn leaves_nothing(kind: Kind) -> Result<()> {
    let bed = Bed::with_one_port(&format!("clean-{kind}"))?;
    let node = bed.node()?;
    let home = Home::of(node);
    let plan = plan_with(&[1], 1);
    let mut backend = node.run(|| kind.open(&home))??;
    let first = node.run(|| backend.apply(&plan, &Scope::Full))??;
    ensure!(first.changed > 0, "nothing was applied");
    for family in Family::ALL {
        let outcome = connect(&bed, family, PATIENCE)?;
        ensure!(matches!(outcome, Outcome::Answered { .. }), "{family} before cleanup: {outcome:?}");
    }
    node.run(|| backend.cleanup())??;
    drop(backend);
    for family in Family::ALL {
        let outcome = connect(&bed, family, Duration::from_millis(400))?;
        ensure!(!matches!(outcome, Outcome::Answered { .. }), "{family} after cleanup: {outcome:?}");
    }
    if kind.has_ebpf() {
        let left: Vec<_> = match std::fs::read_dir(&home.pins) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(_) => Vec::new(),
        };
        ensure!(left.is_empty(), "pins are left: {left:?}");
    }
    if kind.has_iptables() {
        for v6 in [false, true] {
            let text = format!("{:?}", saved(node, kind, v6)?);
            ensure!(!text.contains("NETD"), "rules are left: {text}");
        }
    }
    let mut again = node.run(|| kind.open(&home))??;
    let second = node.run(|| -> Result<_> {
        again.resync()?;
        let applied = again.apply(&plan, &Scope::Full)?;
        again.cleanup()?;
        Ok(applied)
    })??;
    ensure!(second.changed > 0, "a new instance believes that the Service is still there");
    Ok(())
}

fn connect(bed: &Bed, family: Family, timeout: Duration) -> Result<Outcome> {
    let target = SocketAddr::new(site::cluster_ip(SERVICE, family), 80);
    let outcomes = bed.connect(Actor::Pod(0), Connect { timeout, ..Connect::tcp(target) })?;
    outcomes.into_iter().next().context("the agent made no connection")
}

fn load(node: &Node, kind: Kind, v6: bool) -> Result<()> {
    let program = kind.iptables_program(v6, "-restore")?;
    let run = || SystemExec.run(&program, &["-w", "20"], FOREIGN.as_bytes(), PATIENCE);
    let output = node.run(run)??;
    ensure!(output.success(), "load foreign rules: {}", output.complaint());
    Ok(())
}

/// Tables by name, each as its lines without packet counters.
fn saved(node: &Node, kind: Kind, v6: bool) -> Result<BTreeMap<String, Vec<String>>> {
    let program = kind.iptables_program(v6, "-save")?;
    let output = node.run(|| SystemExec.run(&program, &[], b"", PATIENCE))??;
    ensure!(output.success(), "save rules: {}", output.complaint());
    let text = String::from_utf8(output.stdout).context("rules are text")?;
    let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = None;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('*') {
            current = Some(tables.entry(name.to_owned()).or_default());
        } else if let Some(lines) = &mut current {
            let without_counters = line.split(" [").next().filter(|_| line.starts_with(':'));
            lines.push(without_counters.unwrap_or(line).to_owned());
        } else {
            bail!("a rule outside of a table: {line}");
        }
    }
    Ok(tables)
}

/// All lines of `before` are in `during`, in the same order.
fn check_kept_in_order(
    before: &BTreeMap<String, Vec<String>>,
    during: &BTreeMap<String, Vec<String>>,
) -> Result<()> {
    for (table, lines) in before {
        let mut rest = during.get(table).context("a foreign table is gone")?.iter();
        for line in lines.iter().filter(|line| !line.starts_with(':')) {
            ensure!(rest.any(|other| other == line), "table {table}: {line:?} is gone or moved");
        }
    }
    Ok(())
}
