//! Routes of a pod besides those that follow from its addresses: CNI spec 1.1.0, section "Add Success", key `routes`.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netd_kernel::Ifindex;
use netd_kernel::netlink::{Route, Scope, TABLE_MAIN};
use serde::{Deserialize, Serialize};

use super::invalid;
use crate::error::CniError;

/// The scope from which on a destination is no further away than the link itself (`RT_SCOPE_LINK`).
const SCOPE_LINK: u8 = 253;

/// A route of the pod that the configuration asks for. The keys behind `gw` are new in 1.1.0; 0 and absence are the same
/// but for `table` and `scope`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtraRoute {
    /// Where packets go.
    pub dst: IpNetwork,
    /// The next machine; the pod's gateway where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// The largest packet in bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// The largest TCP segment in bytes that peers are told of.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub advmss: u32,
    /// The lower, the better, among routes to one destination.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u32,
    /// The routing table; the main one where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// How far away the destination is, in the kernel's numbers (linux/rtnetlink.h: `rt_scope_t`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl ExtraRoute {
    /// Returns a route with what every version of the spec knows.
    pub fn new(dst: IpNetwork, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: 0, advmss: 0, priority: 0, table: None, scope: None }
    }

    /// Returns what versions before 1.1.0 know of it.
    pub fn before_1_1(&self) -> Self {
        Self::new(self.dst, self.gw)
    }

    /// Refuses what the kernel would.
    ///
    /// # Errors
    /// Code 7.
    pub fn check(&self) -> Result<(), CniError> {
        match self.gw {
            Some(gw) if self.is_on_link() => {
                Err(invalid(format!("the route to {} has gw and scope", self.dst)).and(format!(
                    "with scope {SCOPE_LINK} and more the destination is on the link, not behind {gw}"
                )))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether it is the default route of the pod in its family, and not one of another table.
    pub fn is_default(&self) -> bool {
        self.dst.prefix() == 0 && self.table() == TABLE_MAIN
    }

    /// Whether the destination is on the pod's link, behind no gateway.
    pub fn is_on_link(&self) -> bool {
        self.scope.is_some_and(|scope| scope >= SCOPE_LINK)
    }

    /// Returns the route over a link.
    pub fn over(&self, link: Ifindex) -> Route {
        let route = Route::to(self.dst).dev(link);
        let route = match self.gw {
            Some(gateway) => route.via(gateway).onlink(),
            None => route,
        };
        let scope = self.scope.filter(|_| self.dst.is_ipv4());
        Route {
            mtu: self.mtu,
            advertised_mss: self.advmss,
            metric: self.priority,
            table: self.table(),
            scope: scope.map_or(route.scope, scope_of),
            ..route
        }
    }

    /// Whether it is among what the kernel has; over whatever link and gateway, which another interface of the pod may
    /// have been first with.
    pub fn is_among(&self, found: &[Route]) -> bool {
        let wanted = self.over(Ifindex(0));
        let same = |route: &Route| {
            route.destination == wanted.destination
                && route.table == wanted.table
                && (self.priority == 0 || route.metric == self.priority)
                && (self.mtu == 0 || route.mtu == self.mtu)
                && (self.advmss == 0 || route.advertised_mss == self.advmss)
                && (self.scope.is_none() || self.dst.is_ipv6() || route.scope == wanted.scope)
        };
        found.iter().any(same)
    }

    fn table(&self) -> u32 {
        self.table.filter(|table| *table != 0).unwrap_or(TABLE_MAIN)
    }
}

fn scope_of(number: u8) -> Scope {
    match number {
        0 => Scope::Universe,
        200 => Scope::Site,
        SCOPE_LINK => Scope::Link,
        254 => Scope::Host,
        other => Scope::Other(other),
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's interface")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(value: Value) -> ExtraRoute {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_route_is_written_as_it_was_read() {
        let all = json!({ "dst": "10.0.0.0/8", "gw": "10.1.0.1", "mtu": 1400, "advmss": 1300, "priority": 7, "table": 100, "scope": 200 });
        assert_eq!(json!(read(all.clone())), all);
        assert_eq!(json!(read(all).before_1_1()), json!({ "dst": "10.0.0.0/8", "gw": "10.1.0.1" }));
        let plain = json!({ "dst": "::/0" });
        assert_eq!(json!(read(plain.clone())), plain);
        assert!(serde_json::from_value::<ExtraRoute>(json!({ "dst": "::/0", "metric": 1 })).is_err());
    }

    #[test]
    fn the_kernel_gets_every_key() {
        let route = read(
            json!({ "dst": "10.0.0.0/8", "gw": "10.1.0.1", "mtu": 1400, "advmss": 1300, "priority": 7, "table": 100, "scope": 200 }),
        );
        let made = route.over(Ifindex(3));
        assert_eq!((made.mtu, made.advertised_mss, made.metric, made.table), (1400, 1300, 7, 100));
        assert_eq!((made.scope, made.onlink), (Scope::Site, true));
        assert!(route.is_among(std::slice::from_ref(&made)));
        for other in [
            Route { mtu: 0, ..made.clone() },
            Route { advertised_mss: 1, ..made.clone() },
            Route { metric: 8, ..made.clone() },
            Route { table: TABLE_MAIN, ..made.clone() },
            Route { scope: Scope::Universe, ..made.clone() },
        ] {
            assert!(!route.is_among(std::slice::from_ref(&other)), "{other:?}");
            let plain = ExtraRoute { table: route.table, ..route.before_1_1() };
            assert_eq!(plain.is_among(std::slice::from_ref(&other)), other.table == 100);
        }
        let on_link = read(json!({ "dst": "10.0.0.0/8", "scope": 253 }));
        assert!(on_link.is_on_link() && on_link.check().is_ok());
        assert!(ExtraRoute { gw: "10.1.0.1".parse().ok(), ..on_link }.check().is_err());
    }

    #[test]
    fn only_the_main_table_has_the_pods_default_route() {
        assert!(read(json!({ "dst": "0.0.0.0/0" })).is_default());
        assert!(read(json!({ "dst": "0.0.0.0/0", "table": 254 })).is_default());
        assert!(!read(json!({ "dst": "0.0.0.0/0", "table": 100 })).is_default());
        assert!(!read(json!({ "dst": "10.0.0.0/8" })).is_default());
    }
}
