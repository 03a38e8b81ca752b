//! Names and MAC addresses that follow from the attachment alone, so that everything is found again with no memory.

use std::net::IpAddr;

use netd_ipam::{Alias, Lease, Owner};
use netd_kernel::Mac;
use sha2::{Digest, Sha256};

/// The longest alias of a link in bytes (`IFALIASZ` without the final zero).
const ALIAS_MAX: usize = 255;
/// How the alias of a link begins that DEL has put aside, to be deleted later.
const ASIDE_START: &str = "netd-reap ";
/// How the alias of a link begins that limits what a pod sends.
const SHAPER_START: &str = "netd-bw net=";
/// The alias of the bridge.
pub const BRIDGE_ALIAS: &str = "netd bridge";

/// The alias of the bridge port that a VLAN's gateway is behind.
pub const VLAN_PORT_ALIAS: &str = "netd VLAN gateway";

/// The name of the bridge port behind which the gateway `link` of a VLAN is.
pub fn vlan_port(link: &str) -> String {
    let [a, b, c, d] = hashed(link.as_bytes());
    format!("netdv{a:02x}{b:02x}{c:02x}{d:02x}")
}

/// The name of the host's end of the attachment's veth pair: `netd` and 55 bits of a hash.
pub fn host_link(owner: &Owner) -> String {
    const LETTERS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let hash = Sha256::new()
        .chain_update(&owner.container)
        .chain_update([0])
        .chain_update(&owner.interface)
        .finalize();
    let bits = hash.iter().take(8).fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
    let letters =
        (0..11).map(|place| LETTERS.get((bits >> (5 * place) & 31) as usize).copied().unwrap_or(b'0'));
    letters.fold(String::from("netd"), |mut name, letter| {
        name.push(char::from(letter));
        name
    })
}

/// The MAC address of a pod: a new owner of the address is reached at once by whoever remembers the old one.
pub fn pod_mac(address: IpAddr) -> Mac {
    mac([0x02, 0x42], address)
}

/// The MAC address of the host's end of a pod's veth pair.
pub fn host_mac(address: IpAddr) -> Mac {
    mac([0x6e, 0x68], address)
}

/// The MAC address of the bridge with this gateway address.
pub fn bridge_mac(gateway: IpAddr) -> Mac {
    mac([0x6e, 0x64], gateway)
}

/// The MAC address of a bridge without gateway addresses.
pub fn named_bridge_mac(bridge: &str) -> Mac {
    local([0x6e, 0x64], hashed(bridge.as_bytes()))
}

/// The MAC addresses of the two ends of an attachment, the host's first: they follow from its first address, or from
/// the attachment where it has none.
pub fn link_macs(lease: &Lease) -> (Mac, Mac) {
    match lease.addresses.first() {
        Some(address) => (host_mac(*address), pod_mac(*address)),
        None => {
            let bytes = hashed(host_link(&lease.owner).as_bytes());
            (local([0x6e, 0x68], bytes), local([0x02, 0x42], bytes))
        }
    }
}

/// A locally administered unicast address: two bytes of ours, and four of the address (of an IPv6 one, of its hash).
fn mac(start: [u8; 2], address: IpAddr) -> Mac {
    match address {
        IpAddr::V4(v4) => local(start, v4.octets()),
        IpAddr::V6(v6) => local(start, hashed(&v6.octets())),
    }
}

fn local([first, second]: [u8; 2], [a, b, c, d]: [u8; 4]) -> Mac {
    Mac([first, second, a, b, c, d])
}

fn hashed(bytes: &[u8]) -> [u8; 4] {
    Sha256::digest(bytes).first_chunk::<4>().copied().unwrap_or_default()
}

/// The alias of the host's end: the lease in words, the ledger's second memory.
pub fn alias(network: &str, lease: &Lease) -> String {
    let addresses: Vec<String> = lease.addresses.iter().map(IpAddr::to_string).collect();
    let Owner { container, interface } = &lease.owner;
    let (start, addresses) = (Alias::START, addresses.join(","));
    cut(format!("{start}{network} ip={addresses} if={interface} id={container}"))
}

/// The alias of a link that is to be deleted: it is no attachment any more.
pub fn aside_alias(owner: &Owner) -> String {
    cut(format!("{ASIDE_START}if={} id={}", owner.interface, owner.container))
}

/// The name of the link that limits what an attachment's pod sends.
pub fn shaper(owner: &Owner) -> String {
    let host = host_link(owner);
    format!("ndif{}", host.strip_prefix("netd").unwrap_or(&host))
}

/// The alias of the link that limits what an attachment's pod sends.
pub fn shaper_alias(network: &str, owner: &Owner) -> String {
    cut(format!("{SHAPER_START}{network} if={} id={}", owner.interface, owner.container))
}

/// Whether an alias says that the link limits what a pod sends.
pub fn is_shaper_alias(text: &str) -> bool {
    text.starts_with(SHAPER_START)
}

/// Whether an alias says that the link limits what a pod of this network sends.
pub fn is_shaper_of(network: &str, text: &str) -> bool {
    shaper_owner(network, text).is_some()
}

/// Reads the owner back from the alias of a link that limits what a pod of this network sends; of an alias that was cut
/// short, with the beginning of the container id only.
pub fn shaper_owner(network: &str, text: &str) -> Option<Owner> {
    let (of, owner) = text.strip_prefix(SHAPER_START)?.split_once(" if=")?;
    let (interface, container) = owner.split_once(" id=")?;
    let owner = Owner { container: container.to_owned(), interface: interface.to_owned() };
    (of == network).then_some(owner)
}

/// Whether an alias says that the link is to be deleted.
pub fn is_aside(text: &str) -> bool {
    text.starts_with(ASIDE_START)
}

fn cut(mut text: String) -> String {
    // All of it is ASCII but perhaps the interface, which stands far before the cut.
    while text.len() > ALIAS_MAX {
        text.pop();
    }
    text
}

/// Reads the lease back from an alias of this network; `None` when the link is not one of its attachments.
pub fn lease_from_alias(network: &str, text: &str) -> Option<Lease> {
    Alias::parse(text).filter(|alias| alias.network == network).map(|alias| alias.lease)
}

/// Reads the addresses back from an alias of whatever network.
pub fn addresses_from_alias(text: &str) -> Option<Vec<IpAddr>> {
    Alias::parse(text).map(|alias| alias.lease.addresses)
}

/// Whether an alias says that the link is an attachment's of some network of netd.
pub fn is_alias(text: &str) -> bool {
    text.starts_with(Alias::START)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(container: &str, interface: &str) -> Owner {
        Owner { container: container.to_owned(), interface: interface.to_owned() }
    }

    #[test]
    fn a_link_name_fits_and_depends_on_both_parts() {
        let name = host_link(&owner("c1", "eth0"));
        assert_eq!(name.len(), 15);
        assert_ne!(name, host_link(&owner("c1", "eth1")));
        assert_ne!(host_link(&owner("ab", "c")), host_link(&owner("a", "bc")));
        assert_ne!(name, "netd0");
    }

    #[test]
    fn macs_are_local_unicast_and_differ() {
        let address = "172.16.1.2".parse().unwrap();
        let all =
            [pod_mac(address), host_mac(address), bridge_mac(address), pod_mac("fd00::2".parse().unwrap())];
        for (place, Mac([first, ..])) in all.iter().enumerate() {
            assert_eq!(first & 0b11, 0b10);
            assert!(!all[..place].contains(&all[place]));
        }
    }

    #[test]
    fn a_link_put_aside_is_no_attachment() {
        let text = aside_alias(&owner(&"f".repeat(400), "eth0"));
        assert!(is_aside(&text) && !is_alias(&text) && text.len() == 255, "{text}");
        assert_eq!(addresses_from_alias(&text), None);
        assert!(!is_aside(BRIDGE_ALIAS));
    }

    #[test]
    fn a_shaper_is_known_by_name_and_alias() {
        let owner = owner(&"f".repeat(400), "eth0");
        assert_eq!(shaper(&owner).len(), 15);
        assert_eq!(shaper(&owner).get(4..), host_link(&owner).get(4..));
        let text = shaper_alias("pods", &owner);
        assert!(text.len() == 255 && is_shaper_alias(&text), "{text}");
        assert!(!is_alias(&text) && !is_aside(&text) && shaper_owner("pod", &text).is_none());
        let short = Owner { container: "c1".to_owned(), interface: "eth0".to_owned() };
        assert_eq!(shaper_owner("pods", &shaper_alias("pods", &short)), Some(short));
        assert!(!is_shaper_alias(&alias("pods", &Lease { owner, ..Lease::default() })));
    }

    #[test]
    fn an_alias_tells_the_lease() {
        let addresses = vec!["172.16.1.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let lease = Lease { owner: owner(&"f".repeat(64), "eth0"), addresses, ..Lease::default() };
        let text = alias("pods", &lease);
        assert_eq!(lease_from_alias("pods", &text), Some(lease.clone()));
        assert_eq!(lease_from_alias("pod", &text), None);
        assert_eq!(lease_from_alias("pods", BRIDGE_ALIAS), None);
        let long = Lease { owner: owner(&"f".repeat(400), "eth0"), ..lease.clone() };
        let text = alias("pods", &long);
        assert_eq!(text.len(), 255);
        assert_eq!(lease_from_alias("pods", &text).unwrap().addresses, lease.addresses);
    }
}
