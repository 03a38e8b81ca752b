//! The second memory of a lease: the text (`ifalias`) of the host's end of a pod's veth pair.

use std::net::IpAddr;

use crate::lease::{Lease, Owner};

/// The longest alias of a link in bytes (`IFALIASZ` without the final zero).
const LONGEST: usize = 255;

/// What a link's alias tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// The network's name.
    pub network: String,
    /// The lease, without its pod. Where the alias is [`cut`](Self::cut), the container id is only its beginning.
    pub lease: Lease,
    /// Whether the alias is as long as the kernel lets it be, so that its end may be missing.
    pub cut: bool,
}

impl Alias {
    /// How an alias of a pod's link begins.
    pub const START: &str = "netd net=";

    /// Reads `netd net=NETWORK ip=ADDRESS,… if=INTERFACE id=CONTAINER`; `None` for every other text.
    pub fn parse(text: &str) -> Option<Self> {
        let (network, rest) = text.strip_prefix(Self::START)?.split_once(" ip=")?;
        let (addresses, rest) = rest.split_once(" if=")?;
        let (interface, container) = rest.split_once(" id=")?;
        let addresses = addresses.split(',').filter(|text| !text.is_empty()).map(str::parse);
        let addresses: Vec<IpAddr> = addresses.collect::<Result<_, _>>().ok()?;
        let owner = Owner { container: container.to_owned(), interface: interface.to_owned() };
        let lease = Lease { owner, addresses, ..Lease::default() };
        Some(Self { network: network.to_owned(), lease, cut: text.len() >= LONGEST })
    }

    /// Whether the link is that of `owner`.
    pub fn is_of(&self, owner: &Owner) -> bool {
        let Owner { container, interface } = &self.lease.owner;
        let same =
            if self.cut { owner.container.starts_with(container) } else { owner.container == *container };
        same && owner.interface == *interface
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(container: &str, interface: &str) -> Owner {
        Owner { container: container.to_owned(), interface: interface.to_owned() }
    }

    #[test]
    fn an_alias_tells_network_owner_and_addresses() {
        let alias = Alias::parse("netd net=pods ip=172.16.1.2,fd00::2 if=eth0 id=c1").unwrap();
        assert_eq!((alias.network.as_str(), alias.lease.addresses.len(), alias.cut), ("pods", 2, false));
        assert!(alias.is_of(&owner("c1", "eth0")));
        assert!(!alias.is_of(&owner("c12", "eth0")) && !alias.is_of(&owner("c1", "eth1")));
        for other in ["", "netd bridge", "netd net=pods", "netd net=pods ip=x if=eth0 id=c", "uplink"] {
            assert_eq!(Alias::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_cut_alias_is_of_the_owner_that_begins_so() {
        let mut text = format!("netd net=pods ip=172.16.1.2 if=eth0 id={}", "f".repeat(300));
        text.truncate(LONGEST);
        let alias = Alias::parse(&text).unwrap();
        assert!(alias.cut && alias.is_of(&owner(&"f".repeat(300), "eth0")));
        assert!(!alias.is_of(&owner(&"e".repeat(300), "eth0")));
    }
}
