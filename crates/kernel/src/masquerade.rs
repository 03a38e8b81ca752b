//! Masquerade of what pods send out of the cluster: one static nftables table a family, over netlink, no program.
//!
//! ```text
//! table ip netd-masq {
//!     chain postrouting { type nat hook postrouting priority srcnat; ip saddr 172.16.1.0/24 goto pods }
//!     chain pods { ip daddr 172.16.0.0/16 return; ip daddr 224.0.0.0/4 return; masquerade fully-random }
//! }
//! ```
//!
//! There is never a rule a pod, so adding a pod costs a read of these few rules and no write. The tables are netd's by
//! name: whoever starts with no memory finds them again, and [`remove`] takes nothing else away. Every rule carries a
//! comment with a fingerprint of the whole, by which [`ensure`] sees that nothing is missing, old or added.
//!
//! Works in the network namespace of the calling thread. Needs nf_tables with nat (Linux 4.18 or later).

use std::fmt::Write as _;

use ipnetwork::IpNetwork;

use crate::{Error, Result};

mod nft;

use nft::{Batch, Conversation, Family};

/// The name of both tables.
pub const TABLE: &str = "netd-masq";

const BASE_CHAIN: &str = "postrouting";
const POD_CHAIN: &str = "pods";
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
            match rules.state(&mut conversation)? {
                State::Installed => {}
                State::Absent => rules.install(&mut batch),
                State::Different => {
                    batch.add_table(family, TABLE, false);
                    batch.delete_table(family, TABLE);
                    rules.install(&mut batch);
                }
            }
        }
        if batch.is_empty() {
            return Ok(false);
        }
        match conversation.commit(batch, "install masquerade rules") {
            Err(error) if error.is_exists() || error.is_not_found() => clash = Some(error),
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
        match Rules::of(masquerade, family).state(&mut conversation)? {
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
    let mut conversation = Conversation::open()?;
    let mut batch = Batch::new();
    for family in Family::BOTH {
        if conversation.table(family, TABLE)?.is_some() {
            // Adding it first makes the deletion succeed when another process was quicker.
            batch.add_table(family, TABLE, false);
            batch.delete_table(family, TABLE);
        }
    }
    if batch.is_empty() {
        return Ok(false);
    }
    conversation.commit(batch, "remove masquerade rules").map(|()| true)
}

/// The rules of one family; none where the node has no pods of it.
struct Rules {
    family: Family,
    pods: Vec<IpNetwork>,
    keep: Vec<IpNetwork>,
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
        let fingerprint = fingerprint(&pods, &keep);
        Self { family, pods, keep, fingerprint }
    }

    fn state(&self, conversation: &mut Conversation) -> Result<State> {
        let Some(flags) = conversation.table(self.family, TABLE)? else {
            return Ok(if self.pods.is_empty() { State::Installed } else { State::Absent });
        };
        let found = conversation.rule_comments(self.family, TABLE)?;
        let same = flags == 0 && !self.pods.is_empty() && found == self.comments();
        Ok(if same { State::Installed } else { State::Different })
    }

    fn install(&self, batch: &mut Batch) {
        if self.pods.is_empty() {
            return;
        }
        let mut comments = self.comments().into_iter().map(|(_, comment)| comment);
        batch.add_table(self.family, TABLE, true);
        batch.add_nat_postrouting_chain(self.family, TABLE, BASE_CHAIN);
        batch.add_chain(self.family, TABLE, POD_CHAIN);
        for network in &self.pods {
            let rule = nft::Rule::new(comments.next().unwrap_or_default()).source(*network).goto(POD_CHAIN);
            batch.add_rule(self.family, TABLE, BASE_CHAIN, rule);
        }
        for network in &self.keep {
            let rule = nft::Rule::new(comments.next().unwrap_or_default()).destination(*network).return_();
            batch.add_rule(self.family, TABLE, POD_CHAIN, rule);
        }
        let rule = nft::Rule::new(comments.next().unwrap_or_default()).masquerade(FULLY_RANDOM);
        batch.add_rule(self.family, TABLE, POD_CHAIN, rule);
    }

    /// Chain and comment of every rule, in the kernel's order: chain by chain as they were added.
    fn comments(&self) -> Vec<(String, String)> {
        let count = self.pods.len() + self.keep.len() + 1;
        (0..count)
            .map(|place| {
                let chain = if place < self.pods.len() { BASE_CHAIN } else { POD_CHAIN };
                (chain.to_owned(), format!("{TABLE} {:016x} {}/{count}", self.fingerprint, place + 1))
            })
            .collect()
    }
}

/// The network without host bits, so that two ways to write it are one.
fn canonical(network: &IpNetwork) -> IpNetwork {
    IpNetwork::new(network.network(), network.prefix()).unwrap_or(*network)
}

/// FNV-1a over the rules' text, with the layout's version.
fn fingerprint(pods: &[IpNetwork], keep: &[IpNetwork]) -> u64 {
    let mut text = String::from("1");
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
