//! Pods without a bridge: the node has a route to each of them.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use netd_kernel::netlink::{POD_ROUTE_PROTOCOL, Route, RouteFilter, RouteKind};
use netd_kernel::{Clock, SystemClock, sysctl};
use serde_json::{Value, json};

use super::harness::{Host, Space, environment, error_of, network, pod_address, text};

const DUAL: &str = r#"[[{ "subnet": "172.16.1.0/24" }], [{ "subnet": "fd00:1::/64" }]]"#;

/// A node of routed pods that believes no packet that came the wrong way, and a machine outside, in both families.
fn host() -> (Host, Space) {
    let mut host = Host::with_ranges(serde_json::from_str(DUAL).unwrap());
    host.config["mode"] = json!("routed");
    host.config["clusterCIDRs"] = json!(["172.16.0.0/16", "fd00::/16"]);
    for key in ["all", "default"] {
        host.space.run(|| sysctl::write(&format!("net/ipv4/conf/{key}/rp_filter"), "1")).unwrap();
    }
    let outside = host.outside();
    for (space, address) in [(&host.space, "fd77::1/64"), (&outside, "fd77::2/64")] {
        let link = space.netlink().link("up0").unwrap().unwrap().index;
        space.netlink().add_address(link, network(address), true).unwrap();
    }
    (host, outside)
}

fn addresses(result: &Value) -> [String; 2] {
    [0, 1].map(|place| {
        let address = result["ips"][place]["address"].as_str().unwrap();
        address.split('/').next().unwrap().to_owned()
    })
}

fn pod_routes(host: &Host) -> Vec<Route> {
    let filter = RouteFilter { protocol: Some(POD_ROUTE_PROTOCOL), ..RouteFilter::default() };
    let routes = host.space.netlink().routes(filter).unwrap();
    routes.into_iter().filter(|route| route.kind == RouteKind::Unicast).collect()
}

fn delete(host: &Host, config: &Value, id: &str, pod: &Space) {
    let output = host.verb("DEL", id, pod.path(), config);
    assert_eq!(output.status, 0, "{}", text(&output));
}

#[test]
fn everybody_reaches_everybody_in_both_families() {
    let (host, outside) = host();
    let (a, b) = (Space::new("pod"), Space::new("pod"));
    let (result, other) = (host.add("a", &a), host.add("b", &b));
    let (of_a, of_b) = (addresses(&result), addresses(&other));
    for (family, (node, far)) in [("192.168.77.1", "192.168.77.2"), ("fd77::1", "fd77::2")].iter().enumerate()
    {
        let listener = b.listen(&of_b[family]);
        assert_eq!(a.connect(&listener).unwrap().to_string(), of_a[family], "pod to pod");
        assert_eq!(b.connect(&listener).unwrap().to_string(), of_b[family], "a pod to itself");
        assert_eq!(host.space.connect(&listener).unwrap().to_string(), *node, "the node to a pod");
        assert_eq!(
            a.connect(&host.space.listen(node)).unwrap().to_string(),
            of_a[family],
            "a pod to the node"
        );
        assert_eq!(a.connect(&outside.listen(far)).unwrap().to_string(), *node, "the outside sees the node");
    }
    assert!(!host.space.links().iter().any(|name| name == "netd0"), "no bridge");
    assert_eq!(pod_routes(&host).len(), 4);
    let check = host.check("a", &a, &result);
    assert_eq!(check.status, 0, "{}", text(&check));
    assert_eq!(host.verb("STATUS", "", "", &host.config).status, 0);
    host.del("a", a.path());
    host.del("b", b.path());
    assert_eq!(pod_routes(&host), Vec::<Route>::new());
    host.space.links().iter().for_each(|name| assert_eq!(name, "up0"));
    assert_eq!(host.leases().len(), 0);
}

#[test]
fn the_result_says_what_was_made() {
    let (host, _outside) = host();
    let pod = Space::new("pod");
    let result = host.add("c1", &pod);
    assert_eq!(
        result["ips"],
        json!([
            { "interface": 1, "address": "172.16.1.2/32", "gateway": "169.254.1.1" },
            { "interface": 1, "address": "fd00:1::2/128", "gateway": "fe80::1" },
        ])
    );
    assert_eq!(
        result["routes"],
        json!([{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }, { "dst": "::/0", "gw": "fe80::1" }])
    );
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 2);
    assert_eq!(result["interfaces"][1]["sandbox"], pod.path());
    let name = result["interfaces"][0]["name"].as_str().unwrap();
    let link = host.space.netlink().link(name).unwrap().unwrap();
    assert_eq!(link.master, None);
    assert_eq!(link.mac.unwrap().to_string(), result["interfaces"][0]["mac"]);
    let of_link = |key: &str| host.space.run(|| sysctl::read(&format!("net/{key}"))).unwrap();
    assert_eq!(of_link(&format!("ipv6/conf/{name}/accept_ra")), "0");
    assert_eq!(of_link(&format!("ipv4/conf/{name}/send_redirects")), "0");
    assert_eq!(pod.run(|| sysctl::read("net/ipv6/conf/eth0/accept_ra")).unwrap(), "0");
    // Nobody asks who has an address: both sides know.
    let known = pod.netlink().neighbours(None).unwrap();
    let gateways: Vec<String> =
        known.iter().filter(|n| n.mac == link.mac).map(|n| n.ip.to_string()).collect();
    assert!(["169.254.1.1", "fe80::1"].iter().all(|g| gateways.iter().any(|found| found == g)), "{known:?}");
}

#[test]
fn an_address_that_no_pod_has_is_answered_at_once() {
    let (host, _outside) = host();
    let pod = Space::new("pod");
    host.add("c1", &pod);
    for nobody in ["172.16.1.77:80", "[fd00:1::77]:80"] {
        let to: SocketAddr = nobody.parse().unwrap();
        let start = SystemClock.now();
        let error = pod.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(20))).unwrap_err();
        assert_ne!(error.kind(), std::io::ErrorKind::TimedOut, "{nobody}");
        assert!(start.elapsed() < Duration::from_secs(5), "{nobody}: {:?}", start.elapsed());
    }
}

#[test]
fn the_first_packet_to_a_fresh_and_to_a_reused_address_waits_for_nothing() {
    let (mut host, _outside) = host();
    host.config["ipam"]["ranges"] = json!([
        [{ "subnet": "172.16.1.0/24", "rangeStart": "172.16.1.2", "rangeEnd": "172.16.1.3" }],
        [{ "subnet": "fd00:1::/64", "rangeStart": "fd00:1::2", "rangeEnd": "fd00:1::3" }],
    ]);
    let other = Space::new("pod");
    host.add("other", &other);
    let mut fastest = [Duration::MAX; 2];
    for turn in 0..8 {
        let (id, pod) = (format!("turn{turn}"), Space::new("pod"));
        let of_pod = addresses(&host.add(&id, &pod));
        for (family, address) in of_pod.iter().enumerate() {
            let listener = pod.listen(address);
            let start = SystemClock.now();
            other.connect(&listener).unwrap();
            let took = start.elapsed();
            fastest[family] = fastest[family].min(took);
            assert!(took < Duration::from_millis(900), "turn {turn}: {address} after {took:?}");
        }
        host.del(&id, pod.path());
    }
    println!("first packets: {fastest:?}");
    // A busy machine delays some of them.
    assert!(fastest.iter().all(|time| *time < Duration::from_millis(5)), "{fastest:?}");
}

#[test]
fn host_ports_lead_to_a_routed_pod_from_everywhere() {
    let (mut host, outside) = host();
    let (pod, other) = (Space::new("pod"), Space::new("pod"));
    let neighbour = pod_address(&host.add("other", &other));
    host.config["runtimeConfig"] = json!({ "portMappings": [{ "hostPort": 18090, "containerPort": 80 }] });
    let result = host.add("c1", &pod);
    let of_pod = addresses(&result);
    let lo = host.space.netlink().link("lo").unwrap().unwrap().index;
    host.space.netlink().set_up(lo).unwrap();
    let listener = pod.run(|| TcpListener::bind((of_pod[0].parse::<IpAddr>().unwrap(), 80))).unwrap();
    let reach = |space: &Space, to: &str| {
        let to: SocketAddr = to.parse().unwrap();
        let _stream = space.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5))).unwrap();
        listener.accept().unwrap().1.ip().to_string()
    };
    assert_eq!(reach(&outside, "192.168.77.1:18090"), "192.168.77.2");
    assert_eq!(reach(&other, "192.168.77.1:18090"), neighbour);
    // Translated to itself it leaves by the link that it came by.
    assert_eq!(reach(&pod, "192.168.77.1:18090"), "192.168.77.1");
    assert_eq!(reach(&host.space, "192.168.77.1:18090"), "192.168.77.1");
    assert_eq!(reach(&host.space, "127.0.0.1:18090"), "192.168.77.1");
    let check = host.check("c1", &pod, &result);
    assert_eq!(check.status, 0, "{}", text(&check));
}

#[test]
fn a_check_tells_what_a_routed_pod_has_lost() {
    let (host, _outside) = host();
    let pod = Space::new("pod");
    let result = host.add("c1", &pod);
    let route = pod_routes(&host).into_iter().find(|route| route.destination.is_ipv4()).unwrap();
    host.space.netlink().delete_route(&route).unwrap();
    let error = error_of(&host.check("c1", &pod, &result));
    assert!(error["msg"].as_str().unwrap().contains("the node's route to 172.16.1.2 is gone"), "{error}");
    host.space.netlink().add_route(&route).unwrap();
    assert_eq!(host.check("c1", &pod, &result).status, 0);
    let default = Route::default_via("169.254.1.1".parse().unwrap());
    pod.netlink().delete_route(&default).unwrap();
    let error = error_of(&host.check("c1", &pod, &result));
    assert!(error["msg"].as_str().unwrap().contains("default route through 169.254.1.1"), "{error}");
}

#[test]
fn pods_of_both_modes_live_on_one_node() {
    let (mut host, outside) = host();
    let routed = host.config.clone();
    host.config.as_object_mut().unwrap().remove("mode");
    let bridged = host.config.clone();
    let (old, young, back) = (Space::new("pod"), Space::new("pod"), Space::new("pod"));
    let of_old = host.add("old", &old);
    host.config = routed.clone();
    let of_young = host.add("young", &young);
    host.config = bridged.clone();
    let of_back = host.add("back", &back);
    for family in [0, 1] {
        let of = |result: &Value| addresses(result)[family].clone();
        for (space, result) in [(&old, &of_old), (&young, &of_young), (&back, &of_back)] {
            let listener = space.listen(&of(result));
            for (other, from) in [(&old, &of_old), (&young, &of_young), (&back, &of_back)] {
                assert_eq!(other.connect(&listener).unwrap().to_string(), of(from));
            }
            assert!(host.space.connect(&listener).is_ok());
        }
    }
    assert_eq!(young.connect(&outside.listen("192.168.77.2")).unwrap().to_string(), "192.168.77.1");
    // Each is checked and removed with the configuration of the other.
    for (id, space, result) in
        [("old", &old, &of_old), ("young", &young, &of_young), ("back", &back, &of_back)]
    {
        let mut config = if id == "young" { bridged.clone() } else { routed.clone() };
        config["prevResult"] = result.clone();
        let check = host.verb("CHECK", id, space.path(), &config);
        assert_eq!(check.status, 0, "{id}: {}", text(&check));
        delete(&host, &config, id, space);
    }
    let left: Vec<String> = host.leftovers().into_iter().filter(|name| name != "up0").collect();
    assert_eq!(left, Vec::<String>::new());
    assert_eq!(pod_routes(&host), Vec::<Route>::new());
}

#[test]
fn garbage_of_routed_pods_is_collected() {
    let (host, _outside) = host();
    let (stays, goes) = (Space::new("pod"), Space::new("pod"));
    let result = host.add("stays", &stays);
    host.add("goes", &goes);
    let mut config = host.config.clone();
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "stays", "ifname": "eth0" }]);
    let output = host.call(&[("CNI_COMMAND", "GC")], config.to_string().as_bytes());
    assert_eq!(output.status, 0, "{}", text(&output));
    assert!(goes.links().is_empty());
    assert_eq!(pod_routes(&host).len(), 2);
    assert_eq!(host.check("stays", &stays, &result).status, 0);
}

#[test]
fn two_interfaces_of_a_routed_pod_stand_alone() {
    let (host, _outside) = host();
    let pod = Space::new("pod");
    let result = host.add("c1", &pod);
    let mut second = environment("ADD", "c1", pod.path());
    second[3].1 = "net1";
    let output = host.call(&second, host.config.to_string().as_bytes());
    assert_eq!(output.status, 0, "{}", text(&output));
    // What comes to the second leaves by the first, which has the default route, unless the plugin `sbr` says otherwise.
    assert!(host.space.connect(&pod.listen(&pod_address(&result))).is_ok());
    second[0].1 = "DEL";
    assert_eq!(host.call(&second, host.config.to_string().as_bytes()).status, 0);
    let check = host.check("c1", &pod, &result);
    assert_eq!(check.status, 0, "{}", text(&check));
}

#[test]
fn another_plugins_addresses_are_routed_too() {
    let (mut host, _outside) = host();
    let plugins = host.data.path().join("plugins");
    std::fs::create_dir(&plugins).unwrap();
    std::os::unix::fs::symlink("/usr/lib/cni/host-local", plugins.join("other-ipam")).unwrap();
    host.config["cniVersion"] = json!("1.0.0");
    host.config["ipam"] = json!({
        "type": "other-ipam", "dataDir": host.data.path().join("files"), "ranges": [[{ "subnet": "10.55.0.0/24" }]],
    });
    let (pod, other) = (Space::new("pod"), Space::new("pod"));
    let call = |verb: &str, id: &str, space: &Space, config: &Value| {
        let mut env = environment(verb, id, space.path()).to_vec();
        env.push(("CNI_PATH", plugins.to_str().unwrap()));
        let output = host.call(&env, config.to_string().as_bytes());
        assert_eq!(output.status, 0, "{verb}: {}", text(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default()
    };
    let result = call("ADD", "c1", &pod, &host.config);
    assert_eq!(
        (&result["ips"][0]["address"], &result["ips"][0]["gateway"]),
        (&json!("10.55.0.2/24"), &json!("169.254.1.1"))
    );
    call("ADD", "c2", &other, &host.config);
    assert_eq!(other.connect(&pod.listen("10.55.0.2")).unwrap().to_string(), "10.55.0.3");
    let mut checked = host.config.clone();
    checked["prevResult"] = result;
    call("CHECK", "c1", &pod, &checked);
    call("DEL", "c1", &pod, &host.config);
    assert_eq!(pod_routes(&host).len(), 1);
}
