//! Addresses and prefixes as the API's strings have them.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;

use super::Refusal;

/// Parses an address the way Kubernetes does: leading zeros of IPv4 octets are ignored, an IPv4-mapped IPv6
/// address is refused.
pub(crate) fn parse_ip(field: &str, text: &str) -> Result<IpAddr, Refusal> {
    let parsed = text.parse().ok().or_else(|| sloppy_v4(text).map(IpAddr::V4));
    match parsed {
        Some(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => {
            Err(format!("{field} {text:?} is an IPv4 address in IPv6 form; write it as IPv4"))
        }
        Some(address) => Ok(address),
        None => Err(format!("{field} {text:?} is not an IP address; correct it")),
    }
}

/// Like [`parse_ip`], and refuses what no other host can be reached by: unspecified, loopback, multicast and
/// broadcast. An endpoint or VIP there would turn traffic to the node itself.
pub(crate) fn parse_unicast(field: &str, text: &str) -> Result<IpAddr, Refusal> {
    let address = parse_ip(field, text)?;
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() || broadcast {
        return Err(format!("{field} {text:?} is not a unicast address; use an address of the network"));
    }
    Ok(address)
}

/// Like [`parse_unicast`], and refuses link-local addresses, where cloud metadata services live.
pub(crate) fn parse_routable(field: &str, text: &str) -> Result<IpAddr, Refusal> {
    let address = parse_unicast(field, text)?;
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if link_local {
        return Err(format!("{field} {text:?} is link-local; use an address of the network"));
    }
    Ok(address)
}

/// Parses a prefix; white space around it is trimmed, host bits are cleared.
pub(crate) fn parse_prefix(field: &str, text: &str) -> Result<IpNetwork, Refusal> {
    let refuse = || format!("{field} {text:?} is not a prefix; write it as ADDRESS/LENGTH");
    let (address, length) = text.trim().split_once('/').ok_or_else(refuse)?;
    let address = parse_ip(field, address)?;
    if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
        return Err(refuse());
    }
    let length = length.parse().ok().ok_or_else(refuse)?;
    let prefix = IpNetwork::new(address, length).ok().ok_or_else(refuse)?;
    IpNetwork::new(prefix.network(), length).ok().ok_or_else(refuse)
}

/// Dotted decimal with leading zeros, which old objects may hold (Go's ParseIPSloppy reads them as decimal).
fn sloppy_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0_u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}
