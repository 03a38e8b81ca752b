//! What a state document means in one word.

use crate::StateDoc;

/// The overall state of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// All that is switched on works.
    Ok,
    /// All works, but something needs a look.
    Degraded,
    /// A part that is switched on does not work.
    Down,
}

impl StateDoc {
    /// Names of the parts that are switched on and not ready.
    pub fn failed_parts(&self) -> Vec<&str> {
        let failed = self.parts.iter().filter(|(_, part)| part.enabled && !part.ready);
        failed.map(|(name, _)| name.as_str()).collect()
    }

    /// Why the node is not simply well, most important first; empty when it is.
    pub fn concerns(&self) -> Vec<String> {
        let mut concerns: Vec<String> =
            self.failed_parts().iter().map(|part| format!("{part} is not ready")).collect();
        if let Some(dataplane) = &self.dataplane {
            if dataplane.last_error.is_some() {
                concerns.push("the last change is not applied".to_owned());
            }
            if !dataplane.refused.is_empty() {
                concerns.push(counted(dataplane.refused.len(), "frontend or feature", "not programmed"));
            }
        }
        if self.source.stale {
            concerns.push("the source is not reachable, serving the last known state".to_owned());
        } else if let Some(kind) = self.source.kinds.iter().find(|kind| !kind.message.is_empty()) {
            concerns.push(format!("the source is not reachable: {}", kind.message));
        }
        let routes = self.nodes.iter().filter(|n| !n.ready).count();
        if routes > 0 {
            concerns.push(counted(routes, "node", "without a route"));
        }
        if let Some(dns) = &self.dns {
            let silent = dns.upstreams.iter().filter(|u| !u.healthy).count();
            if silent > 0 {
                concerns.push(counted(silent, "dns upstream", "not answering"));
            }
        }
        if !self.problems.is_empty() {
            concerns.push(counted(self.problems.len(), "object", "refused"));
        }
        concerns
    }

    /// The overall state.
    pub fn health(&self) -> Health {
        if !self.failed_parts().is_empty() {
            Health::Down
        } else if !self.concerns().is_empty() {
            Health::Degraded
        } else {
            Health::Ok
        }
    }
}

/// The exit code of `netd status`: 0 well, 1 a part is down, 3 degraded and `strict`.
///
/// 2 (usage) and 4 (daemon unreachable) belong to the command line.
pub fn exit_code(state: &StateDoc, strict: bool) -> u8 {
    match state.health() {
        Health::Ok => 0,
        Health::Degraded if strict => 3,
        Health::Degraded => 0,
        Health::Down => 1,
    }
}

fn counted(count: usize, noun: &str, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural} {what}")
}
