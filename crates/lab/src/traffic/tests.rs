//! On the loopback address of the machine; no privilege needed.

use std::time::Duration;

use netd_kernel::clock::eventually;

use super::*;

const LONG: Duration = Duration::from_secs(10);

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn server(name: &str) -> Server {
    Server::start(&Serve { name: name.to_owned(), tcp: vec![0], udp: vec![0], stay: false }).unwrap()
}

#[test]
fn a_server_tells_its_name_and_the_clients_address() {
    let server = server("one");
    let tcp = loopback(server.tcp()[0].port());
    let udp = loopback(server.udp()[0].port());
    for (outcome, target) in
        [(connect_once(tcp, LONG), tcp), (udp_once(udp, LONG), udp), (udp_unconnected_once(udp, LONG), udp)]
    {
        let Outcome::Answered { server, peer, remote } = outcome else { panic!("{outcome:?}") };
        assert_eq!((server.as_str(), peer.ip(), remote), ("one", target.ip(), target));
    }
}

#[test]
fn a_closed_port_is_refused_and_a_silent_one_times_out() {
    let port = server("gone").tcp()[0].port();
    assert_eq!(connect_once(loopback(port), LONG), Outcome::Refused);
    assert_eq!(udp_once(loopback(port), LONG), Outcome::Refused);
    let silent = std::net::UdpSocket::bind(loopback(0)).unwrap();
    assert_eq!(udp_once(silent.local_addr().unwrap(), Duration::from_millis(50)), Outcome::TimedOut);
}

#[test]
fn a_load_counts_each_probe_once() {
    let server = server("one");
    let load = Loader::start(&Load::tcp(loopback(server.tcp()[0].port()), 200));
    let early =
        eventually(LONG, || Some(load.counts()).filter(|counts| counts.answered_total() >= 5)).unwrap();
    let enough = eventually(LONG, || (load.counts().since(&early).answered_total() >= 5).then_some(()));
    assert!(enough.is_some());
    let counts = load.stop();
    assert_eq!(counts.failed(), 0, "{counts:?}");
    assert_eq!((counts.attempts, counts.in_flight), (counts.answered_total(), 0));
}

#[test]
fn a_load_goes_on_while_nobody_answers() {
    let silent = std::net::UdpSocket::bind(loopback(0)).unwrap();
    let load = Load {
        timeout: Duration::from_millis(50),
        outstanding: 2,
        ..Load::udp(silent.local_addr().unwrap(), 200)
    };
    let load = Loader::start(&load);
    eventually(LONG, || Some(load.counts()).filter(|c| c.timed_out > 1 && c.skipped > 1)).unwrap();
    assert!(load.stop().failed() > 3);
}
