//! Masquerade of what pods send out of the cluster: one static nftables table a family, over netlink, no program.
//!
//! ```text
//! table ip netd-masq {
//!     chain postrouting {
//!         type nat hook postrouting priority srcnat;
//!         ip saddr 172.16.1.0/24 jump keep-5d2c…            first everybody's exceptions,
//!         ip saddr 172.16.1.0/24 masquerade fully-random     then everybody's pods
//!     }
//!     chain keep-5d2c… { ip daddr 172.16.0.0/16 accept; ip daddr 224.0.0.0/4 accept }
//! }
//! ```
//!
//! Each range of pods of each owner (a network of the CNI plugin, or the daemon for the node) has a rule of each kind
//! and a chain of its own, and nobody rewrites another's. Where ranges overlap, packets are masqueraded when one owner
//! says so, unless any owner of the range excepts their destination: so all come to the same result in whatever order.
//! There is never a rule a pod: adding a pod costs a read of these few rules and no write.
//!
//! The tables are netd's by name, and each rule says in its comment what it is for: whoever starts with no memory reads
//! all of it back ([`list`]), and what is nobody's is taken away. Works in the network namespace of the calling thread.
//! Needs nf_tables with nat (Linux 4.18 or later).

use ipnetwork::IpNetwork;

use crate::nft::{self, Batch, Conversation, Family, Found, Hook};
use crate::{Error, Result};

/// The name of both tables.
pub const TABLE: &str = "netd-masq";
/// The owner of the rules that the daemon makes for the node's ranges.
pub const NODE: &str = "node";

const BASE_CHAIN: &str = "postrouting";
const KEEP_CHAIN: &str = "keep-";
/// How the comment of a rule begins, with the layout's version.
const MARK: &str = "netd-masq 3 ";
/// The last word of the comment of a rule that leads to exceptions, and of one that masquerades.
const KEEP: &str = "keep";
const ALL: &str = "all";
/// nft calls it srcnat (`NF_IP_PRI_NAT_SRC`).
const PRIORITY: i32 = 100;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`: source ports are chosen at random, which keeps parallel flows from colliding.
const FULLY_RANDOM: u32 = 1 << 4;
/// The longest owner in bytes; a comment has room for 254 with two networks.
const OWNER_MAX: usize = 120;
/// How often [`ensure`] starts anew when another process installs the same table at the same moment.
const ATTEMPTS: usize = 6;

/// What is masqueraded: packets from `pod_cidrs` to anything but `keep`, the pods themselves and multicast.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Masquerade {
    /// Who says so: [`NODE`], or a network by [`owner_of`].
    pub owner: String,
    /// The pods of this node.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Destinations that see the pod's own address: the cluster's pods, networks that route back to them.
    pub keep: Vec<IpNetwork>,
}

/// What the kernel has of a [`Masquerade`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All of it, and nothing that is nobody's.
    Installed,
    /// Nothing.
    Absent,
    /// Something else: a missing or an added rule, a dormant table.
    Different,
}

/// A range of pods as the kernel's rules tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasqueradedRange {
    /// Whose it is.
    pub owner: String,
    /// The pods.
    pub pods: IpNetwork,
    /// Destinations that are excepted.
    pub keep: Vec<IpNetwork>,
    /// Whether none of its rules is missing.
    pub whole: bool,
}

/// The owner of the rules of a network of the CNI plugin.
pub fn owner_of(network: &str) -> String {
    format!("net={network}")
}

/// Installs the rules where they are absent or different, in one transaction, and says whether that was so. Rules of
/// the owner's other ranges stay: see [`remove_range`].
///
/// # Errors
/// [`Error::Netlink`] when the kernel refuses, such as without `CAP_NET_ADMIN` or without nf_tables.
pub fn ensure(masquerade: &Masquerade) -> Result<bool> {
    change("install masquerade rules", |conversation, family, batch| {
        let rules = Rules::of(masquerade, family);
        if rules.pods.is_empty() {
            return Ok(());
        }
        let present = present(conversation, family)?;
        if rules.state(present.as_ref()) != State::Installed {
            rules.install(&present.unwrap_or_default(), batch);
        }
        Ok(())
    })
}

/// Takes the rules of one range of an owner away, and says whether there were any.
///
/// # Errors
/// [`Error::Netlink`] when the kernel refuses.
pub fn remove_range(owner: &str, pods: &IpNetwork) -> Result<bool> {
    let (owner, pods) = (short(owner), canonical(pods));
    change("remove masquerade rules", |conversation, family, batch| {
        let Some(present) = present(conversation, family)?.filter(|_| family.has(&pods)) else {
            return Ok(());
        };
        let range = Range { owner: owner.clone(), pods };
        let own: Vec<&Found> = present.rules.iter().filter(|rule| range.leads(rule)).collect();
        for rule in &own {
            batch.delete_rule(family, TABLE, &rule.chain, rule.handle);
        }
        if !own.is_empty() || present.rules.iter().any(|rule| rule.chain == range.chain()) {
            // Adding it first makes the deletion succeed.
            batch.add_chain(family, TABLE, &range.chain());
            batch.delete_chain(family, TABLE, &range.chain());
        }
        Ok(())
    })
}

/// Every range that has rules, in their order.
///
/// # Errors
/// [`Error::Netlink`] when the kernel refuses.
pub fn list() -> Result<Vec<MasqueradedRange>> {
    let mut conversation = Conversation::open()?;
    let mut all: Vec<MasqueradedRange> = Vec::new();
    for family in Family::BOTH {
        let Some(present) = present(&mut conversation, family)? else { continue };
        for range in present.rules.iter().filter_map(Said::of).map(|said| said.range) {
            if all.iter().any(|known| known.owner == range.owner && known.pods == range.pods) {
                continue;
            }
            let keep: Vec<IpNetwork> = present
                .rules
                .iter()
                .filter(|rule| rule.chain == range.chain())
                .filter_map(|rule| Said::of(rule)?.what.parse().ok())
                .collect();
            let whole = !present.dormant && range.is_whole(&present.rules, &keep);
            all.push(MasqueradedRange { owner: range.owner, pods: range.pods, keep, whole });
        }
    }
    Ok(all)
}

/// Compares the kernel's rules with `masquerade`; of two families that differ, the worse state is told.
pub fn check(masquerade: &Masquerade) -> Result<State> {
    let mut conversation = Conversation::open()?;
    let mut worst = State::Installed;
    for family in Family::BOTH {
        let rules = Rules::of(masquerade, family);
        match rules.state(present(&mut conversation, family)?.as_ref()) {
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

/// Commits what `plan` puts into a batch, anew when another process changed the same rules meanwhile; says whether
/// there was anything.
fn change(action: &str, plan: impl Fn(&mut Conversation, Family, &mut Batch) -> Result<()>) -> Result<bool> {
    let mut conversation = Conversation::open()?;
    let mut clash = None;
    for _ in 0..ATTEMPTS {
        let mut batch = Batch::new();
        for family in Family::BOTH {
            plan(&mut conversation, family, &mut batch)?;
        }
        if batch.is_empty() {
            return Ok(false);
        }
        match conversation.commit(batch, action) {
            Err(error) if is_clash(&error) => clash = Some(error),
            done => return done.map(|()| true),
        }
    }
    Err(clash.unwrap_or_else(|| Error::Invalid { what: "number of attempts".to_owned() }))
}

/// A range of pods of an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    owner: String,
    pods: IpNetwork,
}

impl Range {
    fn chain(&self) -> String {
        format!("{KEEP_CHAIN}{:016x}", hash(&format!("{} {}", self.owner, self.pods)))
    }

    fn comment(&self, what: &str) -> String {
        format!("{MARK}{} {} {what}", self.owner, self.pods)
    }

    /// Whether a rule of the base chain is of this range.
    fn leads(&self, rule: &Found) -> bool {
        rule.chain == BASE_CHAIN && Said::of(rule).is_some_and(|said| said.range == *self)
    }

    /// Whether it has one rule of each kind, in an order that works, and just these exceptions.
    fn is_whole(&self, rules: &[Found], keep: &[IpNetwork]) -> bool {
        let base = || rules.iter().filter(|rule| rule.chain == BASE_CHAIN);
        let own: Vec<String> =
            base().filter(|rule| self.leads(rule)).map(|rule| rule.comment.clone()).collect();
        let (lead, first) = (self.comment(KEEP), base().position(|rule| rule.comment.ends_with(ALL)));
        let at = base().position(|rule| rule.comment == lead);
        let ordered = at.is_some_and(|at| first.is_none_or(|first| at < first));
        let chain = self.chain();
        let kept = rules.iter().filter(|rule| rule.chain == chain).map(|rule| rule.comment.clone());
        ordered
            && own == [lead, self.comment(ALL)]
            && kept.eq(keep.iter().map(|network| self.comment(&network.to_string())))
    }
}

/// What a rule's comment says.
struct Said {
    range: Range,
    what: String,
}

impl Said {
    fn of(rule: &Found) -> Option<Self> {
        let mut words = rule.comment.strip_prefix(MARK)?.split(' ');
        let (owner, pods, what) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
        let range = Range { owner: owner.to_owned(), pods };
        let placed =
            if rule.chain == BASE_CHAIN { [KEEP, ALL].contains(&what) } else { rule.chain == range.chain() };
        placed.then(|| Self { range, what: what.to_owned() })
    }
}

/// The rules of one family; none where the owner has no pods of it.
struct Rules {
    family: Family,
    owner: String,
    pods: Vec<IpNetwork>,
    keep: Vec<IpNetwork>,
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
        Self { family, owner: short(&masquerade.owner), pods, keep }
    }

    fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.pods.iter().map(|pods| Range { owner: self.owner.clone(), pods: *pods })
    }

    fn state(&self, present: Option<&Present>) -> State {
        if self.pods.is_empty() {
            return State::Installed;
        }
        let Some(present) = present else { return State::Absent };
        let right = !present.dormant
            && present.rules.iter().all(|rule| Said::of(rule).is_some())
            && self.ranges().all(|range| range.is_whole(&present.rules, &self.keep));
        if right { State::Installed } else { State::Different }
    }

    /// Replaces whatever there is of the ranges that are not right, and takes away what is nobody's.
    fn install(&self, present: &Present, batch: &mut Batch) {
        let family = self.family;
        let broken: Vec<Range> =
            self.ranges().filter(|range| !range.is_whole(&present.rules, &self.keep)).collect();
        for rule in &present.rules {
            if Said::of(rule).is_none() || broken.iter().any(|range| range.leads(rule)) {
                batch.delete_rule(family, TABLE, &rule.chain, rule.handle);
            }
        }
        batch.add_table(family, TABLE, false);
        let hook = Hook { number: Hook::POST_ROUTING, priority: PRIORITY, kind: "nat" };
        batch.add_base_chain(family, TABLE, BASE_CHAIN, hook);
        for range in broken {
            let chain = range.chain();
            // Adding it first makes the deletion succeed. While another process's new rules lead to it, that fails.
            batch.add_chain(family, TABLE, &chain);
            batch.delete_chain(family, TABLE, &chain);
            batch.add_chain(family, TABLE, &chain);
            for network in &self.keep {
                let rule = nft::Rule::new(range.comment(&network.to_string())).destination(*network).accept();
                batch.add_rule(family, TABLE, &chain, rule);
            }
            let lead = nft::Rule::new(range.comment(KEEP)).source(range.pods).jump(&chain);
            batch.insert_rule(family, TABLE, BASE_CHAIN, lead);
            let all = nft::Rule::new(range.comment(ALL)).source(range.pods).masquerade(FULLY_RANDOM);
            batch.add_rule(family, TABLE, BASE_CHAIN, all);
        }
    }
}

/// What the kernel has of a family.
#[derive(Default)]
struct Present {
    dormant: bool,
    rules: Vec<Found>,
}

/// What the kernel has; `None` without a table.
fn present(conversation: &mut Conversation, family: Family) -> Result<Option<Present>> {
    let Some(flags) = conversation.table(family, TABLE)? else { return Ok(None) };
    Ok(Some(Present { dormant: flags != 0, rules: conversation.rules(family, TABLE)? }))
}

/// Whether another process has changed the same rules meanwhile.
fn is_clash(error: &Error) -> bool {
    error.is_exists() || error.is_not_found() || error.errno() == Some(libc::EBUSY)
}

/// The network without host bits, so that two ways to write it are one.
fn canonical(network: &IpNetwork) -> IpNetwork {
    IpNetwork::new(network.network(), network.prefix()).unwrap_or(*network)
}

/// An owner as one word that fits into a comment.
fn short(owner: &str) -> String {
    if owner.len() <= OWNER_MAX && !owner.contains(char::is_whitespace) && !owner.is_empty() {
        owner.to_owned()
    } else {
        format!("{:016x}", hash(owner))
    }
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
