//! `netd ipam check`.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::audit::{Audit, audit};
use super::{CheckArgs, node};
use crate::cli::{Output, exit, print};
use crate::config::Config;
use crate::daemon::require_root;

/// A pod that is just being wired or taken down has a lease and no link for some milliseconds.
const SECOND_LOOK: Duration = Duration::from_millis(500);

pub(super) fn check(args: &CheckArgs) -> Result<u8> {
    let config = args.ledgers.config()?;
    require_root("netd ipam check")?;
    let mut audit = look(&config)?;
    if !audit.problems.is_empty() {
        std::thread::sleep(SECOND_LOOK);
        let again = look(&config)?;
        audit.problems.retain(|problem| again.problems.contains(problem));
    }
    match args.output {
        Output::Json => super::json(&json!({
            "apiVersion": netd_admin::API_VERSION,
            "kind": "IpamProblemList",
            "leases": audit.leases,
            "links": audit.links,
            "items": audit.problems,
            "notes": audit.notes,
        }))?,
        Output::Table | Output::Wide => print::out(&text(&audit))?,
    }
    Ok(if audit.problems.is_empty() { 0 } else { exit::FAILED })
}

fn look(config: &Config) -> Result<Audit> {
    let directory = &config.cni.data_dir;
    let mut audit = audit(&node::networks(directory)?, &node::links()?);
    name_directory(&mut audit, directory);
    Ok(audit)
}

/// The commands to run next are for these ledgers, wherever the configuration of the next call has them.
fn name_directory(audit: &mut Audit, directory: &Path) {
    if directory == Path::new(netd_ipam::DEFAULT_DIRECTORY) {
        return;
    }
    let named = format!("netd ipam release --data-dir {}", directory.display());
    for problem in &mut audit.problems {
        problem.next = problem.next.replace("netd ipam release", &named);
    }
}

fn text(audit: &Audit) -> String {
    let mut text = String::new();
    for problem in &audit.problems {
        let kind = serde_json::to_value(problem.kind).ok();
        let kind = kind.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
        text.push_str(&format!("{kind}   {}\n   next: {}\n", problem.message, problem.next));
    }
    for note in &audit.notes {
        text.push_str(&format!("note   {note}\n"));
    }
    let verdict = match audit.problems.len() {
        0 => "all fit".to_owned(),
        1 => "1 problem".to_owned(),
        many => format!("{many} problems"),
    };
    text.push_str(&format!("{} leases, {} links: {verdict}\n", audit.leases, audit.links));
    text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}
