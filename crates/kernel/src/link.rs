//! Network links and what names them.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::Error;

/// A link's number in its network namespace, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ifindex(pub u32);

impl fmt::Display for Ifindex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Returns a locally administered unicast address made from an IPv4 address: `02:42` and its four bytes.
    pub fn from_ipv4(ip: Ipv4Addr) -> Self {
        let [a, b, c, d] = ip.octets();
        Self([0x02, 0x42, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::Invalid { what: format!("MAC address {text:?}") };
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let hex = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            let part = parts.next().filter(hex).ok_or_else(invalid)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_not_hex| invalid())?;
        }
        if parts.next().is_some() { Err(invalid()) } else { Ok(Self(bytes)) }
    }
}

/// A network link as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: Ifindex,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its Ethernet address; `None` for a link that has none, such as a tunnel.
    pub mac: Option<Mac>,
    /// The largest packet in bytes, without the link's own header.
    pub mtu: u32,
    /// Whether it is switched on (`IFF_UP`).
    pub up: bool,
    /// Whether it can carry packets now: up, and the other end as well (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// Whether it is the loopback link.
    pub loopback: bool,
    /// The kernel's word for its kind, such as `bridge` or `veth`; `None` for hardware.
    pub kind: Option<String>,
    /// The bridge (or bond) it is a port of.
    pub master: Option<Ifindex>,
    /// The text that says whose it is.
    pub alias: Option<String>,
    /// For a veth, the number of the other end *in the other end's namespace*.
    pub peer: Option<Ifindex>,
    /// The id, in this namespace, of the namespace of the other end, if that is another one.
    pub peer_namespace: Option<i32>,
    /// Whether frames may leave by the bridge port they came in by; `None` when it is no bridge port.
    pub hairpin: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_reads_what_it_prints() {
        let mac = Mac([0x02, 0x42, 0xac, 0x10, 0, 0xff]);
        assert_eq!(mac.to_string(), "02:42:ac:10:00:ff");
        assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
        for bad in [
            "",
            "02:42:ac:10:00",
            "02:42:ac:10:00:ff:01",
            "02:42:ac:10:00:f",
            "02:42:ac:10:00:gg",
            "+2:42:ac:10:00:ff",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_mac_from_an_address_is_local_and_unicast() {
        let Mac([first, ..]) = Mac::from_ipv4(Ipv4Addr::new(172, 16, 1, 2));
        assert_eq!(first & 0b11, 0b10);
    }
}
