//! Ports of the node that lead to pods.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use netd_kernel::hostport;
use serde_json::{Value, json};

use super::harness::{Host, Space, error_of, pod_address, text};

const WAIT: Duration = Duration::from_secs(5);

fn wish(host: &mut Host, ports: Value) {
    host.config["runtimeConfig"] = json!({ "portMappings": ports });
}

/// Connects from `space` to a port and returns the address that the pod's listener saw.
fn reach(space: &Space, to: &str, listener: &TcpListener) -> std::io::Result<IpAddr> {
    let to: SocketAddr = to.parse().unwrap();
    let _stream = space.run(|| TcpStream::connect_timeout(&to, WAIT))?;
    listener.accept().map(|(_, peer)| peer.ip())
}

fn refused(space: &Space, to: &str) -> bool {
    let to: SocketAddr = to.parse().unwrap();
    space.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(300))).is_err()
}

#[test]
fn everybody_reaches_the_pod_by_the_nodes_port_until_it_goes() {
    let mut host = Host::new();
    let outside = host.outside();
    let (pod, other) = (Space::new("pod"), Space::new("pod"));
    let neighbour = pod_address(&host.add("other", &other));
    let plain = host.config.clone();
    wish(&mut host, json!([{ "hostPort": 18080, "containerPort": 80, "protocol": "TCP" }]));
    let result = host.add("c1", &pod);
    let ip = pod_address(&result);
    let listener = pod.run(|| TcpListener::bind((ip.parse::<IpAddr>().unwrap(), 80))).unwrap();
    let by_node = "192.168.77.1:18080";
    assert_eq!(reach(&outside, by_node, &listener).unwrap().to_string(), "192.168.77.2", "its own address");
    assert_eq!(reach(&other, by_node, &listener).unwrap().to_string(), neighbour);
    assert_eq!(reach(&pod, by_node, &listener).unwrap().to_string(), "172.16.1.1", "the pod itself");
    assert!(reach(&host.space, by_node, &listener).is_ok());
    let space = &host.space;
    space.run(|| {
        let mut netlink = netd_kernel::Netlink::open().unwrap();
        let lo = netlink.link("lo").unwrap().unwrap().index;
        netlink.set_up(lo).unwrap();
    });
    assert_eq!(reach(space, "127.0.0.1:18080", &listener).unwrap().to_string(), "172.16.1.1");
    let check = host.check("c1", &pod, &result);
    assert_eq!(check.status, 0, "{}", text(&check));
    // Only addresses of the node: a connection to the same port elsewhere is left alone.
    let elsewhere = outside.run(|| TcpListener::bind("192.168.77.2:18080")).unwrap();
    assert!(reach(&other, "192.168.77.2:18080", &elsewhere).is_ok());
    host.space.run(hostport::clear).unwrap();
    let error = error_of(&host.check("c1", &pod, &result));
    assert!(error["msg"].as_str().unwrap().contains("host port 18080"), "{error}");
    // A DEL need not be told of the ports.
    host.config = plain;
    host.del("c1", pod.path());
    assert!(host.space.run(hostport::list).unwrap().is_empty());
    assert!(refused(&outside, by_node));
    host.del("other", other.path());
    assert_eq!(host.leftovers(), ["up0"], "the test's own uplink");
}

#[test]
fn a_taken_port_is_refused_and_nothing_is_left() {
    let mut host = Host::new();
    let (pod, other) = (Space::new("pod"), Space::new("pod"));
    wish(&mut host, json!([{ "hostPort": 18080, "containerPort": 80, "hostIP": "192.168.77.1" }]));
    host.add("first", &pod);
    wish(
        &mut host,
        json!([{ "hostPort": 99, "containerPort": 99 }, { "hostPort": 18080, "containerPort": 80 }]),
    );
    let error = error_of(&host.verb("ADD", "second", other.path(), &host.config));
    assert_eq!(error["code"], 101, "{error}");
    assert!(error["msg"].as_str().unwrap().contains("18080"), "{error}");
    assert!(error["details"].as_str().unwrap().contains("id=first"), "{error}");
    assert!(other.links().is_empty());
    assert_eq!((host.leases().len(), host.space.run(hostport::list).unwrap().len()), (1, 1));
    host.del("first", pod.path());
    host.add("second", &other);
    assert_eq!(host.space.run(hostport::list).unwrap().len(), 2);
}

#[test]
fn datagrams_follow_the_port_to_the_new_pod_and_v6_works() {
    let mut host = Host::with_ranges(json!([[{ "subnet": "172.16.1.0/24" }], [{ "subnet": "fd00:1::/64" }]]));
    let outside = host.outside();
    wish(&mut host, json!([{ "hostPort": 5353, "containerPort": 53, "protocol": "udp" }]));
    let client = outside.run(|| UdpSocket::bind("192.168.77.2:0")).unwrap();
    client.set_read_timeout(Some(WAIT)).unwrap();
    // A flow from before the first pod must not go on past it.
    client.send_to(b"x", "192.168.77.1:5353").unwrap();
    for turn in 0..3 {
        let (id, pod) = (format!("c{turn}"), Space::new("pod"));
        let result = host.add(&id, &pod);
        let address = pod_address(&result);
        let server = pod.run(|| UdpSocket::bind((address.parse::<IpAddr>().unwrap(), 53))).unwrap();
        server.set_read_timeout(Some(WAIT)).unwrap();
        client.send_to(b"hello", "192.168.77.1:5353").unwrap();
        let (mut buffer, mut answer) = ([0; 16], [0; 16]);
        let (_, from) = server.recv_from(&mut buffer).unwrap_or_else(|e| panic!("turn {turn}: {e}"));
        server.send_to(b"answer", from).unwrap();
        let (_, from) = client.recv_from(&mut answer).unwrap();
        assert_eq!(from.to_string(), "192.168.77.1:5353");
        let gateway: SocketAddr = "[fd00:1::1]:5353".parse().unwrap();
        let v6 = host.space.run(|| UdpSocket::bind("[::]:0")).unwrap();
        let inside = result["ips"][1]["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
        let server = pod.run(|| UdpSocket::bind((inside.parse::<IpAddr>().unwrap(), 53))).unwrap();
        server.set_read_timeout(Some(WAIT)).unwrap();
        v6.send_to(b"six", gateway).unwrap();
        server.recv_from(&mut buffer).unwrap();
        host.del(&id, pod.path());
    }
    assert_eq!(host.leftovers(), ["up0"], "the test's own uplink");
}

#[test]
fn gc_takes_the_ports_of_the_network_and_no_others() {
    let mut host = Host::new();
    let pod = Space::new("pod");
    wish(&mut host, json!([{ "hostPort": 18080, "containerPort": 80 }]));
    host.add("stays", &pod);
    let stray = |owner: &str, port: u16| {
        let to = "172.16.1.99:80".parse().unwrap();
        let transport = netd_kernel::conntrack::Transport::Tcp;
        let port = hostport::HostPort { transport, host_ip: None, port, to };
        host.space.run(|| hostport::add(owner, &[port])).unwrap().unwrap();
    };
    stray("netdstray0000000 pods", 1001);
    stray("netdstray0000000 other", 1002);
    let mut config = host.config.clone();
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "stays", "ifname": "eth0" }]);
    let output = host.call(&[("CNI_COMMAND", "GC")], config.to_string().as_bytes());
    assert_eq!((output.status, text(&output)), (0, String::new()));
    let mut left: Vec<u16> =
        host.space.run(hostport::list).unwrap().iter().map(|(_, port)| port.port).collect();
    left.sort_unstable();
    assert_eq!(left, [1002, 18080]);
}
