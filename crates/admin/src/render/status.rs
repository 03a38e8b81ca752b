//! One screen: how netd is on this node.

use std::fmt::Write as _;

use super::table::{Cell, Table, printable};
use super::{Paint, Style, age};
use crate::health::Health;
use crate::{DataplaneState, DnsState, GarbageState, IpamState, PoolState, SourceState, StateDoc, Timestamp};

/// How many problems and notices are listed unless the output may be wide.
const SHOWN: usize = 10;
/// Width of the labels of the lines below the parts.
const LABEL: usize = 12;

/// The screen of `netd status`.
pub fn status(state: &StateDoc, style: Style) -> String {
    let now = state.started_at.unix().saturating_add(state.uptime_seconds);
    let mut text = headline(state, style);
    text.push('\n');
    text.push_str(&parts(state, now, style));
    text.push('\n');
    line(&mut text, ("SOURCE", Paint::Plain), &source(&state.source, now), style);
    if let Some(dataplane) = &state.dataplane {
        line(&mut text, ("DATAPLANE", Paint::Plain), &dataplane_line(dataplane, now), style);
        if let Some(error) = &dataplane.last_error {
            line(&mut text, ("", Paint::Bad), &format!("last error: {error}"), style);
        }
        if let (Some(companion), Some(first)) = (&dataplane.companion, dataplane.delegated.first()) {
            let more = match dataplane.delegated.len() {
                1 => String::new(),
                n => format!(" and {} more", n - 1),
            };
            let beside = format!("{companion} serves {} ({}){more}", first.subject, first.reason);
            line(&mut text, ("", Paint::Plain), &beside, style);
        }
        for refusal in &dataplane.refused {
            let reason = format!("not programmed: {}: {}", refusal.subject, refusal.reason);
            line(&mut text, ("", Paint::Warn), &reason, style);
        }
    }
    line(&mut text, ("SERVICES", Paint::Plain), &services(state), style);
    if !state.nodes.is_empty() {
        line(&mut text, ("NODES", Paint::Plain), &nodes(state), style);
    }
    if let Some(ipam) = &state.ipam {
        line(&mut text, ("PODS", Paint::Plain), &pods(ipam), style);
    }
    if state.garbage.waiting > 0 || !state.garbage.collected.is_empty() {
        line(&mut text, ("GARBAGE", Paint::Plain), &garbage(&state.garbage, now), style);
    }
    if let Some(dns) = &state.dns {
        line(&mut text, ("DNS", Paint::Plain), &dns_line(dns), style);
    }
    let problems = state.problems.iter().map(|p| format!("{} {}: {}", p.kind, p.object, p.message));
    listing(&mut text, ("PROBLEMS", Paint::Bad), &problems.collect::<Vec<_>>(), style);
    let notices = state.notices.iter().map(|n| format!("{} {}: {}", n.service, n.reason, n.message));
    listing(&mut text, ("NOTICES", Paint::Warn), &notices.collect::<Vec<_>>(), style);
    text
}

fn headline(state: &StateDoc, style: Style) -> String {
    let (word, paint) = match state.health() {
        Health::Ok => ("OK", Paint::Good),
        Health::Degraded => ("DEGRADED", Paint::Warn),
        Health::Down => ("DOWN", Paint::Bad),
    };
    let mut text = paint.apply(word, style);
    let concerns = state.concerns();
    if !concerns.is_empty() {
        let _infallible = write!(text, ": {}", printable(&concerns.join("; ")));
    }
    let node = printable(if state.node.is_empty() { "<unknown>" } else { &state.node });
    let up = age(state.uptime_seconds);
    let version = printable(&state.version);
    let _infallible = write!(text, "\nnetd {version} on node {node}, pid {}, up {up}\n", state.pid);
    text
}

fn parts(state: &StateDoc, now: u64, style: Style) -> String {
    let mut table = Table::new(&["PART", "STATE", "SINCE", "MESSAGE"]);
    for (name, part) in &state.parts {
        let (word, paint) = match (part.enabled, part.ready) {
            (false, _) => ("off", Paint::Plain),
            (true, true) => ("ready", Paint::Good),
            (true, false) => ("not ready", Paint::Bad),
        };
        let since = part.since.map(|since| age(now.saturating_sub(since.unix()))).unwrap_or_default();
        let message = if part.message.is_empty() { Cell::plain("-") } else { Cell::plain(&part.message) };
        table.row(vec![Cell::plain(name), Cell::painted(word, paint), Cell::plain(&since), message]);
    }
    table.render(style)
}

fn source(source: &SourceState, now: u64) -> String {
    let mut text = source.kind.clone();
    if !source.location.is_empty() {
        let _infallible = write!(text, " {}", source.location);
    }
    let word = match (source.synced, source.stale) {
        (_, true) => "stale (last known state)",
        (true, false) => "synced",
        (false, false) => "not synced",
    };
    let _infallible = write!(text, ", {word}, generation {}", source.generation);
    if let Some(change) = source.last_change {
        let _infallible = write!(text, ", changed {} ago", ago(change, now));
    }
    let kinds: Vec<String> = source.kinds.iter().map(|k| format!("{} {}", k.objects, k.kind)).collect();
    if !kinds.is_empty() {
        let _infallible = write!(text, " ({})", kinds.join(", "));
    }
    text
}

fn dataplane_line(dataplane: &DataplaneState, now: u64) -> String {
    let mut text = dataplane.name.clone();
    if let Some(companion) = &dataplane.companion {
        let _infallible = write!(text, " + {companion}");
    }
    if !dataplane.requested.is_empty() {
        let _infallible = write!(text, " (requested {}", dataplane.requested);
        if !dataplane.reason.is_empty() {
            let said = format!("{}: ", dataplane.requested);
            let reason = dataplane.reason.strip_prefix(&said).unwrap_or(&dataplane.reason);
            let _infallible = write!(text, ": {reason}");
        }
        text.push(')');
    }
    let _infallible = write!(
        text,
        ", generation {}, {} frontends, {} endpoints",
        dataplane.generation, dataplane.frontends, dataplane.endpoints
    );
    if let Some(rules) = dataplane.rules {
        let _infallible = write!(text, ", {rules} rules");
    }
    if let Some(applied) = dataplane.last_apply {
        let _infallible = write!(text, ", applied {} ago", ago(applied, now));
        if let Some(took) = dataplane.last_apply_ms {
            let _infallible = write!(text, " in {took:.1} ms");
        }
    }
    text
}

fn services(state: &StateDoc) -> String {
    let frontends = || state.services.iter().flat_map(|s| &s.frontends);
    let idle = frontends().filter(|f| f.endpoints.is_empty()).count();
    let mut text = format!("{} services, {} frontends", state.services.len(), frontends().count());
    if idle > 0 {
        let _infallible = write!(text, ", {idle} without endpoints");
    }
    text
}

fn nodes(state: &StateDoc) -> String {
    let (ready, failing): (Vec<_>, Vec<_>) = state.nodes.iter().partition(|node| node.ready);
    let mut text = format!("{} of {} routed", ready.len(), state.nodes.len());
    for node in failing {
        let _infallible = write!(text, "; {}: {}", node.name, node.message);
    }
    text
}

fn pods(ipam: &IpamState) -> String {
    let pool = |p: &PoolState| match p.former {
        false => format!("{} of {} addresses in {}", p.used, p.total, p.range),
        true => format!("{} still in the former range {}", p.used, p.range),
    };
    let pools = ipam.pools.iter().map(pool);
    let text = pools.collect::<Vec<_>>().join(", ");
    if text.is_empty() { "no network yet: no pod was added on this node".to_owned() } else { text }
}

fn garbage(garbage: &GarbageState, now: u64) -> String {
    let total: u64 = garbage.collected.values().sum();
    let kinds: Vec<String> = garbage.collected.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let mut text = format!("{total} collected");
    if !kinds.is_empty() {
        let _infallible = write!(text, " ({})", kinds.join(", "));
    }
    let _infallible = write!(text, ", {} observed", garbage.waiting);
    if let (Some(last), Some(at)) = (&garbage.last, garbage.last_at) {
        let _infallible = write!(text, "; last {} ago: {last}", ago(at, now));
    }
    text
}

fn dns_line(dns: &DnsState) -> String {
    let listen = if dns.listen.is_empty() { "<none>".to_owned() } else { dns.listen.join(",") };
    let mut text = format!("{} on {listen}", dns.domain);
    if !dns.synced {
        text.push_str(", not synced (cluster names are answered SERVFAIL)");
    }
    let _infallible = write!(text, ", {} queries, {} failed", dns.queries, dns.failures);
    let upstreams = dns.upstreams.iter().map(|u| {
        let word = if u.healthy { "" } else { " (silent)" };
        format!("{}{word}", u.address)
    });
    let upstreams = upstreams.collect::<Vec<_>>().join(",");
    if upstreams.is_empty() {
        text.push_str(", no upstream");
    } else {
        let _infallible = write!(text, ", upstreams {upstreams}, {} forwarded", dns.forwards);
    }
    text
}

fn ago(moment: Timestamp, now: u64) -> String {
    age(now.saturating_sub(moment.unix()))
}

/// A labelled line.
fn line(text: &mut String, (label, paint): (&str, Paint), value: &str, style: Style) {
    let padding = " ".repeat(LABEL.saturating_sub(label.len()));
    let value = paint.apply(&printable(value), style);
    let label = if label.is_empty() { String::new() } else { Paint::Bold.apply(label, style) };
    let _infallible = writeln!(text, "{label}{padding}{value}");
}

fn listing(text: &mut String, (title, paint): (&str, Paint), items: &[String], style: Style) {
    if items.is_empty() {
        return;
    }
    let _infallible = writeln!(text, "\n{}", paint.apply(title, style));
    let shown = if style.wide { items.len() } else { SHOWN };
    for item in items.iter().take(shown) {
        let _infallible = writeln!(text, "  {}", printable(item));
    }
    if items.len() > shown {
        let _infallible = writeln!(text, "  and {} more: netd status -o wide", items.len() - shown);
    }
}
