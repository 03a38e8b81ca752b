//! Masquerade of what pods send out of the cluster: one static nftables table a family, over netlink, no program.
//!
//! ```text
//! table ip netd-masq {
//!     chain postrouting { type nat hook postrouting priority srcnat; ip saddr 172.16.1.0/24 goto pods-5d2c… }
//!     chain pods-5d2c… { ip daddr 172.16.0.0/16 return; ip daddr 224.0.0.0/4 return; masquerade fully-random }
//! }
//! ```
//!
//! Networks with different pods have a chain each, named after their pods' addresses, and leave each other alone; of two
//! whose pods overlap, the last one stays. There is never a rule a pod, so adding a pod costs a read of these few rules and no write. The tables are netd's by
//! name: whoever starts with no memory finds them again, and [`remove`] takes nothing else away. Every rule carries a
//! comment with a fingerprint of its network's, by which [`ensure`] sees that nothing is missing, old or added.
//!
//! Works in the network namespace of the calling thread. Needs nf_tables with nat (Linux 4.18 or later).

use std::fmt::Write as _;

use ipnetwork::IpNetwork;

use crate::nft::{self, Batch, Conversation, Family, Found, Hook};
use crate::{Error, Result};

/// The name of both tables.
pub const TABLE: &str = "netd-masq";

const BASE_CHAIN: &str = "postrouting";
const POD_CHAIN: &str = "pods-";
/// nft calls it srcnat (`NF_IP_PRI_NAT_SRC`).
const PRIORITY: i32 = 100;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`: source ports are chosen at random, which keeps parallel flows from colliding.
const FULLY_RANDOM: u32 = 1 << 4;
/// How often [`ensure`] starts anew when another process installs the same table at the same moment.
const ATTEMPTS: usize = 4;

/// What is masqueraded: packets from `pod_cidrs` to anything but `keep`, the pods themselves and multicast.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Masquerade {
    /// The pods of this node.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Destinations that see the pod's own address: the cluster's pods, networks that route back to them.
    pub keep: Vec<IpNetwork>,
}

/// What the kernel has of a [`Masquerade`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All of it and nothing else.
    Installed,
    /// Nothing.
    Absent,
    /// Something else: other networks, a missing or an added rule, a dormant table.
    Different,
}

/// Installs the rules where they are absent or different, in one transaction, and says whether that was so.
///
/// # Errors
/// [`Error::Netlink`] when the kernel refuses, such as without `CAP_NET_ADMIN` or without nf_tables.
pub fn ensure(masquerade: &Masquerade) -> Result<bool> {
    let mut conversation = Conversation::open()?;
    let mut clash = None;
    for _ in 0..ATTEMPTS {
        let mut batch = Batch::new();
        for family in Family::BOTH {
            let rules = Rules::of(masquerade, family);
            let present = rules.present(&mut conversation)?;
            if rules.state(&present) != State::Installed {
                rules.install(&present.unwrap_or_default(), &mut batch);
            }
        }
        if batch.is_empty() {
            return Ok(false);
        }
        match conversation.commit(batch, "install masquerade rules") {
            Err(error) if is_clash(&error) => clash = Some(error),
            done => return done.map(|()| true),
        }
    }
    Err(clash.unwrap_or_else(|| Error::Invalid { what: "number of attempts".to_owned() }))
}

/// Compares the kernel's rules with `masquerade`; of two families that differ, the worse state is told.
pub fn check(masquerade: &Masquerade) -> Result<State> {
    let mut conversation = Conversation::open()?;
    let mut worst = State::Installed;
    for family in Family::BOTH {
        let rules = Rules::of(masquerade, family);
        match rules.state(&rules.present(&mut conversation)?) {
            State::Installed => {}
            State::Absent if worst != State::Different => worst = State::Absent,
            State::Absent => {}
            State::Different => worst = State::Different,
        }
    }
    Ok(worst)
}

/// Removes both tables and says whether there was one.
pub fn remove() -> Result<bool> {
    Conversation::open()?.remove_table(TABLE, "remove masquerade rules")
}

/// The rules of one family; none where the node has no pods of it.
struct Rules {
    family: Family,
    pods: Vec<IpNetwork>,
    keep: Vec<IpNetwork>,
    /// Which network: its pods.
    key: u64,
    fingerprint: u64,
}

impl Rules {
    fn of(masquerade: &Masquerade, family: Family) -> Self {
        let select = |networks: &mut dyn Iterator<Item = &IpNetwork>| {
            let mut chosen: Vec<IpNetwork> = networks.filter(|n| family.has(n)).map(canonical).collect();
            chosen.sort_unstable();
            chosen.dedup();
            chosen
        };
        let pods = select(&mut masquerade.pod_cidrs.iter());
        let keep =
            select(&mut masquerade.pod_cidrs.iter().chain(&masquerade.keep).chain([&family.multicast()]));
        let (key, fingerprint) = (fingerprint(&pods, &[]), fingerprint(&pods, &keep));
        Self { family, pods, keep, key, fingerprint }
    }

    /// What the kernel has; `None` without a table.
    fn present(&self, conversation: &mut Conversation) -> Result<Option<Present>> {
        let Some(flags) = conversation.table(self.family, TABLE)? else { return Ok(None) };
        Ok(Some(Present { dormant: flags != 0, rules: conversation.rules(self.family, TABLE)? }))
    }

    fn state(&self, present: &Option<Present>) -> State {
        let Some(present) = present else {
            return if self.pods.is_empty() { State::Installed } else { State::Absent };
        };
        if self.pods.is_empty() {
            return State::Installed;
        }
        let own = present.rules.iter().filter(|rule| self.is_own(rule));
        let own = own.map(|rule| (rule.chain.clone(), rule.comment.clone()));
        let stale = present.rules.iter().any(|rule| self.is_stale(rule));
        let same = !present.dormant && !stale && own.eq(self.comments());
        if same { State::Installed } else { State::Different }
    }

    /// Whether a rule is of this network, in whatever version.
    fn is_own(&self, rule: &Found) -> bool {
        rule.chain == self.chain() || (rule.chain == BASE_CHAIN && key_of(rule) == Some(self.key))
    }

    /// Whether a rule must not be there: one that is nobody's, or of a network with some of our pods.
    fn is_stale(&self, rule: &Found) -> bool {
        if self.is_own(rule) {
            return false;
        }
        if rule.chain != BASE_CHAIN {
            return !rule.chain.starts_with(POD_CHAIN);
        }
        let Some(network) = network_of(rule) else { return true };
        self.pods.iter().any(|own| own.contains(network.ip()) || network.contains(own.ip()))
    }

    /// Replaces whatever there is of this network by its rules.
    fn install(&self, present: &Present, batch: &mut Batch) {
        let chain = self.chain();
        for rule in &present.rules {
            let in_the_way = self.is_stale(rule) || (rule.chain == BASE_CHAIN && self.is_own(rule));
            if in_the_way {
                batch.delete_rule(self.family, TABLE, &rule.chain, rule.handle);
            }
        }
        let mut comments = self.comments().into_iter().map(|(_, comment)| comment);
        batch.add_table(self.family, TABLE, false);
        let hook = Hook { number: Hook::POST_ROUTING, priority: PRIORITY, kind: "nat" };
        batch.add_base_chain(self.family, TABLE, BASE_CHAIN, hook);
        // Adding it first makes the deletion succeed. While another process's new rules lead to it, that fails.
        batch.add_chain(self.family, TABLE, &chain);
        batch.delete_chain(self.family, TABLE, &chain);
        batch.add_chain(self.family, TABLE, &chain);
        for network in &self.pods {
            let rule = nft::Rule::new(comments.next().unwrap_or_default()).source(*network).goto(&chain);
            batch.add_rule(self.family, TABLE, BASE_CHAIN, rule);
        }
        for network in &self.keep {
            let rule = nft::Rule::new(comments.next().unwrap_or_default()).destination(*network).return_();
            batch.add_rule(self.family, TABLE, &chain, rule);
        }
        let rule = nft::Rule::new(comments.next().unwrap_or_default()).masquerade(FULLY_RANDOM);
        batch.add_rule(self.family, TABLE, &chain, rule);
    }

    fn chain(&self) -> String {
        format!("{POD_CHAIN}{:016x}", self.key)
    }

    /// Chain and comment of every rule, in the kernel's order: chain by chain as they were added.
    fn comments(&self) -> Vec<(String, String)> {
        let count = self.pods.len() + self.keep.len() + 1;
        let of_pods = self.pods.iter().map(|network| (BASE_CHAIN.to_owned(), format!(" {network}")));
        let others = (self.pods.len()..count).map(|_| (self.chain(), String::new()));
        let start = format!("{TABLE} {:016x} {:016x}", self.key, self.fingerprint);
        let numbered = of_pods.chain(others).enumerate();
        numbered.map(|(i, (chain, end))| (chain, format!("{start} {}/{count}{end}", i + 1))).collect()
    }
}

/// What the kernel has of a family.
#[derive(Default)]
struct Present {
    dormant: bool,
    rules: Vec<Found>,
}

/// The network that a rule of the base chain says it is of.
fn key_of(rule: &Found) -> Option<u64> {
    let mut words = rule.comment.split(' ');
    (words.next() == Some(TABLE)).then(|| u64::from_str_radix(words.next()?, 16).ok())?
}

/// The pods that a rule of the base chain says it is for.
fn network_of(rule: &Found) -> Option<IpNetwork> {
    key_of(rule)?;
    rule.comment.split(' ').nth(4)?.parse().ok()
}

/// Whether another process has changed the same rules meanwhile.
fn is_clash(error: &Error) -> bool {
    error.is_exists() || error.is_not_found() || error.errno() == Some(libc::EBUSY)
}

/// The network without host bits, so that two ways to write it are one.
fn canonical(network: &IpNetwork) -> IpNetwork {
    IpNetwork::new(network.network(), network.prefix()).unwrap_or(*network)
}

/// FNV-1a over the rules' text, with the layout's version.
fn fingerprint(pods: &[IpNetwork], keep: &[IpNetwork]) -> u64 {
    let mut text = String::from("2");
    for network in pods {
        let _ = write!(text, " saddr {network}");
    }
    for network in keep {
        let _ = write!(text, " daddr {network}");
    }
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
