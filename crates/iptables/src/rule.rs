//! A rule as a value: rendered as `iptables-save` prints it, and parsed from that.

mod parse;

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use ipnetwork::IpNetwork;
use netd_model::{Family, Protocol};

pub(crate) use parse::{parse_rule, split_words};

/// `xt_statistic` compares a random 31-bit number with the probability scaled by this.
const CHANCE_ONE: u32 = 1 << 31;

/// Says whether source and destination of an IPv4 packet are the same, as the classic BPF of `xt_bpf`: load the
/// source (offset 12, RFC 791), keep it, load the destination (16), compare.
const SAME_ADDRESS_V4: &str = "6,32 0 0 12,7 0 0 0,32 0 0 16,29 0 1 0,6 0 0 65535,6 0 0 0";

/// The same for IPv6, word by word from the offsets 8 and 24 on (RFC 8200).
const SAME_ADDRESS_V6: &str = "18,32 0 0 8,7 0 0 0,32 0 0 24,29 0 13 0,32 0 0 12,7 0 0 0,32 0 0 28,29 0 9 0,\
                               32 0 0 16,7 0 0 0,32 0 0 32,29 0 5 0,32 0 0 20,7 0 0 0,32 0 0 36,29 0 1 0,\
                               6 0 0 65535,6 0 0 0";

/// A table of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Table {
    /// Rejects, drops and accepts.
    Filter,
    /// Address rewriting.
    Nat,
}

impl Table {
    /// Both tables.
    pub(crate) const ALL: [Self; 2] = [Self::Filter, Self::Nat];

    /// The name iptables uses.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

/// A state that `-m conntrack --ctstate` knows; ordered as iptables prints them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum State {
    /// No packet was seen in both directions yet.
    New,
    /// Belongs to another connection.
    Related,
    /// Packets were seen in both directions.
    Established,
    /// The destination was rewritten.
    Dnat,
}

impl State {
    const ALL: [Self; 4] = [Self::New, Self::Related, Self::Established, Self::Dnat];

    const fn word(self) -> &'static str {
        match self {
            Self::New => "NEW",
            Self::Related => "RELATED",
            Self::Established => "ESTABLISHED",
            Self::Dnat => "DNAT",
        }
    }
}

/// A probability as the kernel keeps it: parts of 2^31.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Chance(u32);

impl Chance {
    /// One in `n`; `n` is at least 1.
    pub(crate) fn one_in(n: usize) -> Self {
        let n = u64::try_from(n).unwrap_or(u64::MAX).max(1);
        let parts = (u64::from(CHANCE_ONE) + n / 2) / n;
        Self(u32::try_from(parts).unwrap_or(CHANCE_ONE).max(1))
    }

    /// From the number that iptables prints.
    fn parse(text: &str) -> Option<Self> {
        let value: f64 = text.parse().ok()?;
        if !(0.0..=1.0).contains(&value) {
            return None;
        }
        let scaled = (value * f64::from(CHANCE_ONE)).round();
        // In range by the check above; `as` saturates.
        Some(Self(scaled as u32))
    }
}

impl fmt::Display for Chance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.11}", f64::from(self.0) / f64::from(CHANCE_ONE))
    }
}

/// One `-m` of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Match {
    /// A note for people.
    Comment(String),
    /// Destination port of the rule's protocol.
    Port(NonZeroU16),
    /// The source is an address of the node.
    SourceLocal,
    /// The destination is an address of the node.
    DestinationLocal,
    /// The source was put on this list at most so many seconds ago; older entries leave the list.
    RecentCheck { list: String, seconds: u64 },
    /// Puts the source on this list; always matches.
    RecentSet { list: String },
    /// Matches by chance.
    Random(Chance),
    /// Connection tracking state is one of these.
    State(BTreeSet<State>),
    /// Source and destination are the same address.
    SameAddress(Family),
    /// Packet mark under a mask equals a value, or does not.
    Mark { value: u32, mask: u32, invert: bool },
}

/// How a packet is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum RejectWith {
    /// A TCP reset.
    TcpReset,
    /// ICMP port unreachable.
    Icmp,
    /// ICMPv6 port unreachable.
    Icmp6,
}

impl RejectWith {
    const fn word(self) -> &'static str {
        match self {
            Self::TcpReset => "tcp-reset",
            Self::Icmp => "icmp-port-unreachable",
            Self::Icmp6 => "icmp6-port-unreachable",
        }
    }
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Target {
    /// Goes through a chain and comes back.
    Jump(String),
    /// Goes through a chain and comes back to this chain's caller.
    Goto(String),
    /// Ends the table's walk.
    Accept,
    /// Ends the chain.
    Return,
    /// Discards.
    Drop,
    /// Refuses.
    Reject(RejectWith),
    /// Rewrites the destination.
    Dnat(SocketAddr),
    /// `mark = (mark & !mask) ^ value`.
    SetMark { value: u32, mask: u32 },
    /// Rewrites the source to the address of the outgoing link.
    Masquerade { fully_random: bool },
}

/// A rule of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Rule {
    /// Source prefix, never /0 (which iptables does not print).
    pub(crate) source: Option<IpNetwork>,
    /// Whether all sources match but those of the prefix.
    pub(crate) not_source: bool,
    /// Destination prefix, never /0.
    pub(crate) destination: Option<IpNetwork>,
    /// Incoming interface; a trailing `+` makes it a prefix.
    pub(crate) input: Option<String>,
    /// Outgoing interface.
    pub(crate) output: Option<String>,
    /// Transport protocol.
    pub(crate) protocol: Option<Protocol>,
    /// Matches in order.
    pub(crate) matches: Vec<Match>,
    /// What it does.
    pub(crate) target: Target,
}

impl Rule {
    /// A rule that matches everything.
    pub(crate) const fn new(target: Target) -> Self {
        Self {
            source: None,
            not_source: false,
            destination: None,
            input: None,
            output: None,
            protocol: None,
            matches: Vec::new(),
            target,
        }
    }

    /// A rule that goes through `chain`.
    pub(crate) fn jump(chain: impl Into<String>) -> Self {
        Self::new(Target::Jump(chain.into()))
    }

    /// Restricted to sources within `prefix`.
    pub(crate) fn source(mut self, prefix: IpNetwork) -> Self {
        self.source = significant(prefix);
        self
    }

    /// Restricted to sources outside of `prefix`, which is not /0.
    pub(crate) fn not_source(self, prefix: IpNetwork) -> Self {
        Self { not_source: true, ..self.source(prefix) }
    }

    /// Restricted to destinations within `prefix`.
    pub(crate) fn destination(mut self, prefix: IpNetwork) -> Self {
        self.destination = significant(prefix);
        self
    }

    /// Restricted to one destination address.
    pub(crate) fn destination_ip(mut self, address: IpAddr) -> Self {
        self.destination = Some(IpNetwork::from(address));
        self
    }

    /// Restricted to one source address.
    pub(crate) fn source_ip(mut self, address: IpAddr) -> Self {
        self.source = Some(IpNetwork::from(address));
        self
    }

    /// Restricted to a protocol.
    pub(crate) const fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = Some(protocol);
        self
    }

    /// Restricted by a match, after those there are.
    pub(crate) fn when(mut self, condition: Match) -> Self {
        // Most rules have one or two: room for four would be most of the memory of many Services.
        self.matches.reserve_exact(1);
        self.matches.push(condition);
        self
    }

    /// With a comment, after the matches there are.
    pub(crate) fn note(self, text: &str) -> Self {
        let safe = crate::names::comment(text);
        self.when(Match::Comment(safe))
    }

    /// The chain this rule leads to.
    pub(crate) fn leads_to(&self) -> Option<&str> {
        match &self.target {
            Target::Jump(chain) | Target::Goto(chain) => Some(chain),
            Target::Accept
            | Target::Return
            | Target::Drop
            | Target::Reject(_)
            | Target::Dnat(_)
            | Target::SetMark { .. }
            | Target::Masquerade { .. } => None,
        }
    }
}

/// The prefix without host bits; nothing for /0.
fn significant(prefix: IpNetwork) -> Option<IpNetwork> {
    if prefix.prefix() == 0 {
        return None;
    }
    IpNetwork::new(prefix.network(), prefix.prefix()).ok()
}

fn write_match(f: &mut fmt::Formatter<'_>, rule: &Rule, condition: &Match) -> fmt::Result {
    match condition {
        Match::Comment(text) => write!(f, "-m comment --comment \"{text}\""),
        Match::Port(port) => {
            let protocol = rule.protocol.map_or("tcp", Protocol::lower);
            write!(f, "-m {protocol} --dport {port}")
        }
        Match::SourceLocal => f.write_str("-m addrtype --src-type LOCAL"),
        Match::DestinationLocal => f.write_str("-m addrtype --dst-type LOCAL"),
        Match::RecentCheck { list, seconds } => {
            write!(f, "-m recent --rcheck --seconds {seconds} --reap --name {list} --rsource")
        }
        Match::RecentSet { list } => write!(f, "-m recent --set --name {list} --rsource"),
        Match::Random(chance) => write!(f, "-m statistic --mode random --probability {chance}"),
        Match::State(states) => {
            f.write_str("-m conntrack --ctstate ")?;
            for (i, state) in states.iter().enumerate() {
                if i > 0 {
                    f.write_char(',')?;
                }
                f.write_str(state.word())?;
            }
            Ok(())
        }
        Match::SameAddress(Family::V4) => write!(f, "-m bpf --bytecode \"{SAME_ADDRESS_V4}\""),
        Match::SameAddress(Family::V6) => write!(f, "-m bpf --bytecode \"{SAME_ADDRESS_V6}\""),
        Match::Mark { value, mask, invert } => {
            let not = if *invert { "! " } else { "" };
            write!(f, "-m mark {not}--mark {value:#x}/{mask:#x}")
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jump(chain) => write!(f, "-j {chain}"),
            Self::Goto(chain) => write!(f, "-g {chain}"),
            Self::Accept => f.write_str("-j ACCEPT"),
            Self::Return => f.write_str("-j RETURN"),
            Self::Drop => f.write_str("-j DROP"),
            Self::Reject(with) => write!(f, "-j REJECT --reject-with {}", with.word()),
            Self::Dnat(to) => write!(f, "-j DNAT --to-destination {to}"),
            Self::SetMark { value, mask } => write!(f, "-j MARK --set-xmark {value:#x}/{mask:#x}"),
            Self::Masquerade { fully_random } => {
                f.write_str("-j MASQUERADE")?;
                if *fully_random { f.write_str(" --random-fully") } else { Ok(()) }
            }
        }
    }
}

impl fmt::Display for Rule {
    /// Writes the rule without `-A CHAIN`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = &self.source {
            let not = if self.not_source { "! " } else { "" };
            write!(f, "{not}-s {source} ")?;
        }
        if let Some(destination) = &self.destination {
            write!(f, "-d {destination} ")?;
        }
        if let Some(input) = &self.input {
            write!(f, "-i {input} ")?;
        }
        if let Some(output) = &self.output {
            write!(f, "-o {output} ")?;
        }
        if let Some(protocol) = &self.protocol {
            write!(f, "-p {} ", protocol.lower())?;
        }
        for condition in &self.matches {
            write_match(f, self, condition)?;
            f.write_char(' ')?;
        }
        write!(f, "{}", self.target)
    }
}

#[cfg(test)]
mod tests;
