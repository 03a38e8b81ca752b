//! Routes of a pod with the keys of CNI 1.1.0, in the kernel and in results of every version.

use netd_kernel::netlink::{Batch, Route, RouteFilter, Scope, TABLE_MAIN};
use serde_json::{Value, json};

use super::harness::{Host, Space, error_of, network, text};

fn routes(pod: &Space) -> Vec<Route> {
    pod.netlink().routes(RouteFilter::default()).unwrap()
}

fn to(routes: &[Route], destination: &str) -> Route {
    let found = routes.iter().find(|route| route.destination == network(destination));
    found.unwrap_or_else(|| panic!("no route to {destination}: {routes:#?}")).clone()
}

fn wishes() -> Value {
    json!([
        { "dst": "10.1.0.0/16", "mtu": 1400, "advmss": 1300, "priority": 7 },
        { "dst": "10.2.0.0/16", "gw": "172.16.1.1", "table": 100, "scope": 0 },
        { "dst": "10.3.0.0/16", "scope": 253 },
        { "dst": "0.0.0.0/0", "table": 100 },
        { "dst": "fd00:9::/64", "mtu": 1350, "priority": 9, "table": 200 },
    ])
}

fn host() -> Host {
    let mut host = Host::with_ranges(json!([[{ "subnet": "172.16.1.0/24" }], [{ "subnet": "fd00:1::/64" }]]));
    host.config["ipam"]["routes"] = wishes();
    host
}

#[test]
fn every_key_of_a_route_is_in_the_kernel_and_checked() {
    let (host, pod) = (host(), Space::new("pod"));
    let result = host.add("c1", &pod);
    let found = routes(&pod);
    let first = to(&found, "10.1.0.0/16");
    assert_eq!((first.mtu, first.advertised_mss, first.metric, first.table), (1400, 1300, 7, TABLE_MAIN));
    assert_eq!(to(&found, "10.2.0.0/16").table, 100);
    let on_link = to(&found, "10.3.0.0/16");
    assert_eq!((on_link.scope, on_link.gateway), (Scope::Link, None));
    let sixth = to(&found, "fd00:9::/64");
    assert_eq!((sixth.mtu, sixth.metric, sixth.table), (1350, 9, 200));
    // That of another table is not the pod's own, which it has besides.
    let tables: Vec<u32> =
        found.iter().filter(|r| r.destination == network("0.0.0.0/0")).map(|r| r.table).collect();
    assert!(tables.len() == 2 && tables.contains(&100) && tables.contains(&TABLE_MAIN), "{tables:?}");
    let whole = host.check("c1", &pod, &result);
    assert_eq!(whole.status, 0, "{}", text(&whole));

    let mut netlink = pod.netlink();
    netlink.send(Batch::new().replace_route(&Route { mtu: 1280, ..first.clone() })).unwrap();
    netlink.delete_route(&sixth).unwrap();
    let error = error_of(&host.check("c1", &pod, &result));
    let message = error["msg"].as_str().unwrap();
    assert!(message.contains("the route to 10.1.0.0/16 is not as configured"), "{message}");
    assert!(message.contains("the route to fd00:9::/64 is gone"), "{message}");
}

#[test]
fn only_results_of_1_1_tell_the_keys() {
    let mut host = host();
    for (version, told) in [("1.1.0", true), ("1.0.0", false), ("0.4.0", false), ("0.2.0", false)] {
        host.config["cniVersion"] = json!(version);
        let pod = Space::new("pod");
        let result = host.add("c1", &pod);
        assert_eq!(to(&routes(&pod), "10.1.0.0/16").mtu, 1400, "{version}");
        let routes = if version == "0.2.0" { &result["ip4"]["routes"] } else { &result["routes"] };
        let route = routes.as_array().unwrap().iter().find(|route| route["dst"] == "10.1.0.0/16").unwrap();
        let expected = if told {
            json!({ "dst": "10.1.0.0/16", "gw": "172.16.1.1", "mtu": 1400, "advmss": 1300, "priority": 7 })
        } else {
            json!({ "dst": "10.1.0.0/16", "gw": "172.16.1.1" })
        };
        assert_eq!(*route, expected, "{version}");
        host.del("c1", pod.path());
    }
}

#[test]
fn the_routes_of_earlier_plugins_keep_their_keys() {
    let (mut host, pod) = (host(), Space::new("pod"));
    let route =
        json!({ "dst": "10.9.0.0/16", "mtu": 1400, "advmss": 1300, "priority": 7, "table": 5, "scope": 253 });
    host.config["prevResult"] =
        json!({ "cniVersion": "1.1.0", "interfaces": [], "ips": [], "routes": [route] });
    assert_eq!(host.add("c1", &pod)["routes"][0], route);
}

#[test]
fn a_route_on_the_link_has_no_gateway() {
    let (mut host, pod) = (host(), Space::new("pod"));
    host.config["ipam"]["routes"] = json!([{ "dst": "10.3.0.0/16", "gw": "172.16.1.1", "scope": 253 }]);
    let error = error_of(&host.verb("ADD", "c1", pod.path(), &host.config));
    assert_eq!(error["code"], 7, "{error}");
    assert!(host.leases().is_empty());
}
