//! Parsing what `iptables-save` prints for rules of ours, whatever the version's wording.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::net::{IpAddr, SocketAddr};
use std::slice::Iter;

use ipnetwork::IpNetwork;
use netd_model::{Family, Protocol};

use super::{Chance, Match, RejectWith, Rule, SAME_ADDRESS_V4, SAME_ADDRESS_V6, State, Target, significant};

type Words<'a> = Peekable<Iter<'a, String>>;

/// Splits a line of `iptables-save` into words: blanks separate, double quotes group, a backslash inside
/// quotes takes the next character literally.
pub(crate) fn split_words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => {
                if let Some(next) = characters.next() {
                    word.get_or_insert_default().push(next);
                }
            }
            c if c.is_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Parses the words after `-A CHAIN`; `None` when they say anything that this backend never renders.
pub(crate) fn parse_rule(words: &[String]) -> Option<Rule> {
    let mut rule = Rule::new(Target::Accept);
    let mut target = None;
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-s" => rule.source = significant(prefix(words.next()?)?),
            "!" => {
                take(&mut words, "-s")?;
                rule.source = Some(significant(prefix(words.next()?)?)?);
                rule.not_source = true;
            }
            "-d" => rule.destination = significant(prefix(words.next()?)?),
            "-i" => rule.input = Some(words.next()?.clone()),
            "-o" => rule.output = Some(words.next()?.clone()),
            "-p" => rule.protocol = Some(protocol(words.next()?)?),
            "-m" => {
                if let Some(condition) = parse_match(&rule, &mut words)? {
                    rule.matches.push(condition);
                }
            }
            "-j" => target = Some(parse_target(&mut words)?),
            "-g" => target = Some(Target::Goto(words.next()?.clone())),
            _ => return None,
        }
    }
    rule.target = target?;
    Some(rule)
}

fn prefix(text: &str) -> Option<IpNetwork> {
    text.parse().ok()
}

fn protocol(word: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|p| p.lower() == word || p.number().to_string() == word)
}

/// Takes the next word if it is `expected`.
fn take(words: &mut Words<'_>, expected: &str) -> Option<()> {
    words.next_if(|word| *word == expected).map(|_| ())
}

/// Parses one `-m`. `Some(None)` is a match that says nothing (a bare `-m tcp`).
fn parse_match(rule: &Rule, words: &mut Words<'_>) -> Option<Option<Match>> {
    let condition = match words.next()?.as_str() {
        "comment" => {
            take(words, "--comment")?;
            Match::Comment(words.next()?.clone())
        }
        name @ ("tcp" | "udp" | "sctp") => {
            if rule.protocol.map(Protocol::lower) != Some(name) {
                return None;
            }
            if take(words, "--dport").is_none() {
                return Some(None);
            }
            Match::Port(words.next()?.parse().ok()?)
        }
        "addrtype" => {
            let condition = match words.next()?.as_str() {
                "--src-type" => Match::SourceLocal,
                "--dst-type" => Match::DestinationLocal,
                _ => return None,
            };
            take(words, "LOCAL")?;
            condition
        }
        "recent" => parse_recent(words)?,
        "statistic" => {
            take(words, "--mode")?;
            take(words, "random")?;
            take(words, "--probability")?;
            Match::Random(Chance::parse(words.next()?)?)
        }
        "conntrack" | "state" => parse_state(words)?,
        "bpf" => {
            take(words, "--bytecode")?;
            match words.next()?.as_str() {
                SAME_ADDRESS_V4 => Match::SameAddress(Family::V4),
                SAME_ADDRESS_V6 => Match::SameAddress(Family::V6),
                _ => return None,
            }
        }
        "mark" => {
            let invert = take(words, "!").is_some();
            take(words, "--mark")?;
            let (value, mask) = mark(words.next()?)?;
            Match::Mark { value, mask, invert }
        }
        _ => return None,
    };
    Some(Some(condition))
}

fn parse_recent(words: &mut Words<'_>) -> Option<Match> {
    let (mut check, mut set, mut reap, mut list, mut seconds) = (false, false, false, None, None);
    while let Some(word) = words.next_if(|word| word.starts_with("--")) {
        match word.as_str() {
            "--rcheck" => check = true,
            "--set" => set = true,
            "--reap" => reap = true,
            "--rsource" => {}
            "--name" => list = Some(words.next()?.clone()),
            "--seconds" => seconds = Some(words.next()?.parse().ok()?),
            "--mask" => {
                let mask: IpAddr = words.next()?.parse().ok()?;
                let full = match mask {
                    IpAddr::V4(mask) => mask.to_bits() == u32::MAX,
                    IpAddr::V6(mask) => mask.to_bits() == u128::MAX,
                };
                if !full {
                    return None;
                }
            }
            _ => return None,
        }
    }
    match (check, set, reap, seconds) {
        (true, false, true, Some(seconds)) => Some(Match::RecentCheck { list: list?, seconds }),
        (false, true, false, None) => Some(Match::RecentSet { list: list? }),
        _ => None,
    }
}

fn parse_state(words: &mut Words<'_>) -> Option<Match> {
    if take(words, "--ctstate").is_none() {
        take(words, "--state")?;
    }
    let mut states = BTreeSet::new();
    for word in words.next()?.split(',') {
        states.insert(State::ALL.into_iter().find(|state| state.word() == word)?);
    }
    Some(Match::State(states))
}

fn parse_target(words: &mut Words<'_>) -> Option<Target> {
    let name = words.next()?;
    Some(match name.as_str() {
        "ACCEPT" => Target::Accept,
        "RETURN" => Target::Return,
        "DROP" => Target::Drop,
        "REJECT" => {
            take(words, "--reject-with")?;
            let word = words.next()?;
            let known = [RejectWith::TcpReset, RejectWith::Icmp, RejectWith::Icmp6];
            Target::Reject(known.into_iter().find(|with| with.word() == word)?)
        }
        "DNAT" => {
            take(words, "--to-destination")?;
            let to: SocketAddr = words.next()?.parse().ok()?;
            Target::Dnat(to)
        }
        "MARK" => {
            take(words, "--set-xmark")?;
            let (value, mask) = mark(words.next()?)?;
            Target::SetMark { value, mask }
        }
        "MASQUERADE" => Target::Masquerade { fully_random: take(words, "--random-fully").is_some() },
        chain => Target::Jump(chain.to_owned()),
    })
}

/// Parses `0x1000/0x1000`; without a mask all bits count.
fn mark(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}
