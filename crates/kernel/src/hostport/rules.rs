//! The static rules of a family's table.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::{ADDRESSED, GUARD, OUTPUT, PODS, PORTS, POSTROUTING, PREROUTING, TABLE, TRANSLATE};
use crate::nft::{Family, Rule};

const LOOPBACK: &str = "lo";

/// All rules with their chains, in the kernel's order.
pub(super) fn rules(family: Family) -> Vec<(&'static str, Rule)> {
    let mut number = 0;
    let mut rule = || {
        number += 1;
        // The number before the point is the layout's version.
        Rule::new(format!("{TABLE} 1.{number}"))
    };
    let own = loopback(family);
    let mut all = vec![(GUARD, rule().input_link(LOOPBACK, false).destination(own).drop())];
    all.push((PREROUTING, rule().local_destination().goto(TRANSLATE)));
    if family == Family::V6 {
        // The kernel has no route_localnet for ::1.
        all.push((OUTPUT, rule().destination(own).return_()));
    }
    all.push((OUTPUT, rule().local_destination().goto(TRANSLATE)));
    all.push((TRANSLATE, rule().translate_by(family, ADDRESSED, true)));
    all.push((TRANSLATE, rule().translate_by(family, PORTS, false)));
    all.push((POSTROUTING, rule().both_addresses_in(family, PODS).masquerade(0)));
    all.push((POSTROUTING, rule().source(own).output_link(LOOPBACK, false).masquerade(0)));
    all
}

fn loopback(family: Family) -> IpNetwork {
    match family {
        Family::V4 => IpNetwork::new(Ipv4Addr::new(127, 0, 0, 0).into(), 8),
        Family::V6 => IpNetwork::new(Ipv6Addr::LOCALHOST.into(), 128),
    }
    // Both prefixes are valid.
    .unwrap_or_else(|_| family.multicast())
}
