//! What sockets experience, with real packets in namespaces and cgroups of the test's own. Needs root.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod site;

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::num::NonZeroU16;
use std::path::PathBuf;

use netd_bpf::{Config, EbpfDataplane, abilities, probe};
use netd_dataplane::conformance::{run_traces, scenarios};
use netd_dataplane::{ApplyError, Dataplane, Outcome};
use netd_model::{Flow, Origin, Protocol, Scope, ServicePlan};
use nix::sched::{CloneFlags, unshare};

use site::{Load, Plan, Server, Victim, ask_tcp, ask_udp, isolated, loopback_up};

const VIP4: &str = "10.96.0.10:80";
const VIP6: &str = "[fd00:96::10]:80";
/// `VIP4` for an IPv6 socket.
const VIP4_MAPPED: &str = "[::ffff:10.96.0.10]:80";

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn apply(dataplane: &mut EbpfDataplane, plan: &ServicePlan) -> netd_dataplane::Applied {
    dataplane.apply(plan, &Scope::Full).unwrap()
}

/// True when `VIP4` is left to the network of this namespace, which has no way there. The kernel detaches a
/// link a moment after its last pin is gone.
fn is_not_served() -> bool {
    ask_tcp(at(VIP4)).is_err_and(|error| error.kind() == ErrorKind::NetworkUnreachable)
}

/// The ports that answer 40 connections, and every address that `getpeername` gave.
fn reached(vip: &str) -> (BTreeSet<u16>, BTreeSet<SocketAddr>) {
    (0..40).map(|_| ask_tcp(at(vip)).unwrap()).unzip()
}

fn ports(servers: &[&Server]) -> BTreeSet<u16> {
    servers.iter().map(|server| server.port()).collect()
}

#[test]
fn a_connection_reaches_every_endpoint_and_sees_the_service_as_its_peer() {
    isolated("a_connection_reaches_every_endpoint_and_sees_the_service_as_its_peer", |site| {
        let v4 = [Server::tcp("127.0.0.1"), Server::tcp("127.0.0.2")];
        let v6 = [Server::tcp("::1"), Server::tcp("::1")];
        let mut dataplane = EbpfDataplane::new(site.config.clone());
        let plan = Plan::new(7).service(VIP4, Protocol::Tcp, &[v4[0].address, v4[1].address]).service(
            VIP6,
            Protocol::Tcp,
            &[v6[0].address, v6[1].address],
        );
        let applied = apply(&mut dataplane, &plan.0);
        assert_eq!((applied.generation, applied.frontends, applied.endpoints), (7, 2, 4));
        assert_eq!(applied.refused, []);

        for (vip, servers) in [(VIP4, &v4), (VIP4_MAPPED, &v4), (VIP6, &v6)] {
            let (answered, peers) = reached(vip);
            assert_eq!(answered, ports(&[&servers[0], &servers[1]]), "{vip}");
            assert_eq!(peers, BTreeSet::from([at(vip)]), "getpeername shows the Service");
        }
        assert_eq!(apply(&mut dataplane, &plan.0).changed, 0);
        dataplane.cleanup().unwrap();
    });
}

#[test]
fn datagrams_keep_their_endpoint_and_replies_come_from_the_service() {
    isolated("datagrams_keep_their_endpoint_and_replies_come_from_the_service", |site| {
        let v4 = [Server::udp("127.0.0.1"), Server::udp("127.0.0.2")];
        let v6 = [Server::udp("::1"), Server::udp("::1")];
        let mut dataplane = EbpfDataplane::new(site.config.clone());
        let plan = |v4: &[SocketAddr], v6: &[SocketAddr]| {
            Plan::new(1).service(VIP4, Protocol::Udp, v4).service(VIP6, Protocol::Udp, v6).0
        };
        apply(&mut dataplane, &plan(&[v4[0].address, v4[1].address], &[v6[0].address, v6[1].address]));

        for (local, vip, servers) in
            [("0.0.0.0:0", VIP4, &v4), ("[::]:0", VIP4_MAPPED, &v4), ("[::]:0", VIP6, &v6)]
        {
            // Unconnected: one endpoint a socket, both over many sockets.
            let mut answered = BTreeSet::new();
            for _ in 0..40 {
                let socket = UdpSocket::bind(local).unwrap();
                let first = ask_udp(&socket, at(vip)).unwrap();
                assert_eq!(first.1, at(vip), "the reply comes from the Service");
                for _ in 0..3 {
                    assert_eq!(ask_udp(&socket, at(vip)).unwrap(), first, "the socket keeps its endpoint");
                }
                answered.insert(first.0);
            }
            assert_eq!(answered, ports(&[&servers[0], &servers[1]]), "{vip}");

            // Connected.
            let socket = UdpSocket::bind(local).unwrap();
            socket.connect(at(vip)).unwrap();
            assert_eq!(socket.peer_addr().unwrap(), at(vip));
            socket.send(b"?").unwrap();
            let (_, from) = socket.recv_from(&mut [0; 2]).unwrap();
            assert_eq!(from, at(vip));
        }

        // The endpoint of a socket goes away: the socket moves to the other one.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let (kept, _) = ask_udp(&socket, at(VIP4)).unwrap();
        let (gone, left) = if kept == v4[0].port() { (&v4[0], &v4[1]) } else { (&v4[1], &v4[0]) };
        assert_eq!(kept, gone.port());
        apply(&mut dataplane, &plan(&[left.address], &[v6[0].address]));
        assert_eq!(ask_udp(&socket, at(VIP4)).unwrap(), (left.port(), at(VIP4)));
        dataplane.cleanup().unwrap();
    });
}

#[test]
fn a_socket_that_leaves_a_service_shows_its_new_peer() {
    isolated("a_socket_that_leaves_a_service_shows_its_new_peer", |site| {
        let server = Server::udp("127.0.0.1");
        let mut dataplane = EbpfDataplane::new(site.config.clone());
        apply(&mut dataplane, &Plan::new(1).service(VIP4, Protocol::Udp, &[server.address]).0);
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(at(VIP4)).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), at(VIP4));
        socket.connect(server.address).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), server.address);
        dataplane.cleanup().unwrap();
    });
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    isolated("a_service_without_endpoints_refuses_at_once", |site| {
        let mut dataplane = EbpfDataplane::new(site.config.clone());
        let plan = Plan::new(1)
            .service(VIP4, Protocol::Tcp, &[])
            .service(VIP4, Protocol::Udp, &[])
            .service(VIP6, Protocol::Tcp, &[])
            .service(VIP6, Protocol::Udp, &[]);
        apply(&mut dataplane, &plan.0);
        for (local, vip) in [("0.0.0.0:0", VIP4), ("[::]:0", VIP6), ("[::]:0", VIP4_MAPPED)] {
            assert_eq!(ask_tcp(at(vip)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
            let socket = UdpSocket::bind(local).unwrap();
            assert_eq!(ask_udp(&socket, at(vip)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
            assert_eq!(socket.connect(at(vip)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        // Another port of the address is no Service: the network of this namespace has no way there.
        assert_eq!(ask_tcp(at("10.96.0.10:81")).unwrap_err().kind(), ErrorKind::NetworkUnreachable);
        dataplane.cleanup().unwrap();
    });
}

#[test]
fn endpoints_change_under_a_connecting_client_without_a_failure() {
    isolated("endpoints_change_under_a_connecting_client_without_a_failure", |site| {
        let servers = ["127.0.0.1", "127.0.0.2", "127.0.0.3"].map(Server::tcp);
        let mut dataplane = EbpfDataplane::new(site.config.clone());
        let sets: [&[usize]; 5] = [&[0, 1], &[1, 2], &[2], &[0, 1, 2], &[0]];
        let plan = |round: usize| {
            let endpoints: Vec<SocketAddr> =
                sets[round % sets.len()].iter().map(|index| servers[*index].address).collect();
            Plan::new(round as u64).service(VIP4, Protocol::Tcp, &endpoints).0
        };
        apply(&mut dataplane, &plan(0));
        let load = Load::start(at(VIP4));
        for round in 1..200 {
            apply(&mut dataplane, &plan(round));
            let allowed: BTreeSet<u16> =
                sets[round % sets.len()].iter().map(|index| servers[*index].port()).collect();
            for _ in 0..5 {
                let (port, _) = ask_tcp(at(VIP4)).unwrap();
                assert!(allowed.contains(&port), "a removed endpoint gets no new connection");
            }
            load.wait_for(1);
        }
        let (attempts, failures) = load.finish();
        eprintln!("200 changes: {attempts} connections, {} failed", failures.len());
        assert_eq!(failures, Vec::<String>::new());
        dataplane.cleanup().unwrap();
    });
}

#[test]
fn a_restart_adopts_what_is_pinned_and_nobody_notices() {
    isolated("a_restart_adopts_what_is_pinned_and_nobody_notices", |site| {
        let servers = ["127.0.0.1", "127.0.0.2"].map(Server::tcp);
        let plan = Plan::new(1).service(VIP4, Protocol::Tcp, &[servers[0].address]).0;
        let next = Plan::new(2).service(VIP4, Protocol::Tcp, &[servers[1].address]).0;
        let pin_dir = site.config.pin_dir.clone().unwrap();

        let mut dataplane = EbpfDataplane::new(site.config.clone());
        apply(&mut dataplane, &plan);
        let load = Load::start(at(VIP4));
        load.wait_for(50);
        drop(dataplane);
        load.wait_for(50);
        // What a version with another layout would have left.
        let other_layout = pin_dir.join("v1-00000000-7");
        fs::create_dir(&other_layout).unwrap();
        for round in 0..5 {
            let mut dataplane = EbpfDataplane::new(site.config.clone());
            dataplane.resync().unwrap();
            assert_eq!(apply(&mut dataplane, &plan).changed, 0, "round {round}: all was adopted");
            load.wait_for(20);
        }
        assert!(!other_layout.exists());
        let mut dataplane = EbpfDataplane::new(site.config.clone());
        apply(&mut dataplane, &next);
        assert_eq!(ask_tcp(at(VIP4)).unwrap().0, servers[1].port());
        let (attempts, failures) = load.finish();
        eprintln!("7 restarts: {attempts} connections, {} failed", failures.len());
        assert_eq!(failures, Vec::<String>::new());
        dataplane.cleanup().unwrap();
    });
}

/// Tells the test below that it is the process to be killed; the value has the endpoints.
const VICTIM: &str = "ND_BPF_TEST_VICTIM";

#[test]
fn a_netd_killed_at_any_moment_fails_no_connection() {
    let test = "a_netd_killed_at_any_moment_fails_no_connection";
    if let Ok(endpoints) = std::env::var(VICTIM) {
        change_for_ever(&endpoints.split(' ').map(at).collect::<Vec<_>>());
    }
    isolated(test, |site| {
        let servers = ["127.0.0.1", "127.0.0.2", "127.0.0.3"].map(Server::tcp);
        let endpoints = servers.each_ref().map(|server| server.address);
        let mut dataplane = EbpfDataplane::new(site.config.clone());
        apply(&mut dataplane, &changing_plan(&endpoints, 0));
        drop(dataplane);
        let load = Load::start(at(VIP4));
        let mut changes_survived = 0;
        for round in 0..40 {
            let before = installed_service(&site.config);
            let victim = Victim::start(test, VICTIM, &endpoints.map(|address| address.to_string()).join(" "));
            // Half of them somewhere in their start, half in their changes.
            if round % 2 == 0 {
                load.wait_for(1 + round * 37 % 200);
            } else {
                assert!(site::eventually(|| installed_service(&site.config) != before));
                load.wait_for(1 + round % 9);
            }
            drop(victim);
            changes_survived += usize::from(installed_service(&site.config) != before);
            ask_tcp(at(VIP4)).unwrap();
        }
        let (attempts, failures) = load.finish();
        eprintln!(
            "40 kills, {changes_survived} after changes: {attempts} connections, {} failed",
            failures.len()
        );
        assert_eq!(failures, Vec::<String>::new());
        assert!(changes_survived >= 10, "the victims got nowhere: the test shows nothing");
        let mut dataplane = EbpfDataplane::new(site.config.clone());
        apply(&mut dataplane, &Plan::new(1).service(VIP4, Protocol::Tcp, &endpoints[..1]).0);
        assert_eq!(reached(VIP4).0, ports(&[&servers[0]]));
        dataplane.cleanup().unwrap();
    });
}

fn changing_plan(endpoints: &[SocketAddr], round: usize) -> ServicePlan {
    let some: Vec<SocketAddr> =
        endpoints.iter().enumerate().filter(|(index, _)| *index != round % 3).map(|(_, at)| *at).collect();
    Plan::new(round as u64).service(VIP4, Protocol::Tcp, &some).0
}

fn change_for_ever(endpoints: &[SocketAddr]) -> ! {
    Victim::end_with_the_test();
    let mut dataplane = EbpfDataplane::new(site::config_from_environment());
    for round in 1.. {
        apply(&mut dataplane, &changing_plan(endpoints, round));
    }
    unreachable!("the rounds do not end")
}

/// What the map says about `VIP4`, by way of a trace.
fn installed_service(config: &Config) -> Vec<String> {
    EbpfDataplane::new(config.clone()).trace(&flow(Origin::Host, VIP4)).unwrap().steps
}

fn flow(origin: Origin, vip: &str) -> Flow {
    let source: IpAddr = if at(vip).is_ipv4() { "172.16.1.9" } else { "fd00::9" }.parse().unwrap();
    Flow {
        origin,
        in_interface: None,
        source,
        destination: at(vip).ip(),
        destination_is_local: false,
        protocol: Protocol::Tcp,
        port: NonZeroU16::new(80).unwrap(),
    }
}

#[test]
fn maps_that_are_too_small_grow_under_a_connecting_client() {
    isolated("maps_that_are_too_small_grow_under_a_connecting_client", |site| {
        let server = Server::tcp("127.0.0.1");
        let many = |count: u32| {
            (0..count).fold(Plan::new(u64::from(count)), |plan, number| {
                let vip = format!("10.100.{}.{}:80", number >> 8, number & 0xff);
                plan.service(&vip, Protocol::Tcp, &[server.address])
            })
        };
        let mut dataplane = EbpfDataplane::new(site.config.clone());
        let plan = many(10).service(VIP4, Protocol::Tcp, &[server.address]).0;
        apply(&mut dataplane, &plan);
        let load = Load::paced(at(VIP4));
        load.wait_for(10);
        let plan = many(20_000).service(VIP4, Protocol::Tcp, &[server.address]).0;
        let applied = apply(&mut dataplane, &plan);
        assert_eq!(applied.frontends, 20_001);
        assert_eq!(ask_tcp(at("10.100.78.31:80")).unwrap().0, server.port());
        assert_eq!(apply(&mut dataplane, &plan).changed, 0);
        load.wait_for(10);
        let (attempts, failures) = load.finish();
        eprintln!("growth to 20001 services: {attempts} connections, {} failed", failures.len());
        assert_eq!(failures, Vec::<String>::new());
        // A restart finds the larger maps.
        drop(dataplane);
        let mut dataplane = EbpfDataplane::new(site.config.clone());
        assert_eq!(apply(&mut dataplane, &plan).changed, 0);
        dataplane.cleanup().unwrap();
    });
}

#[test]
fn a_pod_is_told_from_the_host_by_its_network_namespace() {
    isolated("a_pod_is_told_from_the_host_by_its_network_namespace", |site| {
        let server = Server::tcp("127.0.0.1");
        let mut dataplane = EbpfDataplane::new(site.config.clone());
        apply(&mut dataplane, &Plan::new(1).host_only_service(VIP4, Protocol::Tcp, &[server.address]).0);
        assert_eq!(ask_tcp(at(VIP4)).unwrap().0, server.port());
        let in_pod = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            loopback_up();
            ask_tcp(at(VIP4)).unwrap_err().kind()
        });
        assert_eq!(in_pod.join().unwrap(), ErrorKind::ConnectionRefused);
        dataplane.cleanup().unwrap();
    });
}

#[test]
fn a_client_with_affinity_returns_until_its_endpoint_is_gone() {
    isolated("a_client_with_affinity_returns_until_its_endpoint_is_gone", |site| {
        let servers = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"].map(Server::tcp);
        let all: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
        let mut dataplane = EbpfDataplane::new(site.config.clone());
        apply(&mut dataplane, &Plan::new(1).sticky_service(VIP4, Protocol::Tcp, &all).0);
        let (answered, _) = reached(VIP4);
        assert_eq!(answered.len(), 1);
        let rest: Vec<SocketAddr> =
            all.into_iter().filter(|address| !answered.contains(&address.port())).collect();
        apply(&mut dataplane, &Plan::new(2).sticky_service(VIP4, Protocol::Tcp, &rest).0);
        let (after, _) = reached(VIP4);
        assert_eq!(after.len(), 1);
        assert_ne!(after, answered);
        dataplane.cleanup().unwrap();
    });
}

#[test]
fn cleanup_leaves_nothing_and_can_be_repeated() {
    isolated("cleanup_leaves_nothing_and_can_be_repeated", |site| {
        let server = Server::tcp("127.0.0.1");
        let pin_dir = site.config.pin_dir.clone().unwrap();
        let mut dataplane = EbpfDataplane::new(site.config.clone());
        dataplane.cleanup().unwrap();
        assert!(!pin_dir.exists(), "a cleanup makes nothing");
        apply(&mut dataplane, &Plan::new(1).service(VIP4, Protocol::Tcp, &[server.address]).0);
        assert!(ask_tcp(at(VIP4)).is_ok());
        // Another process, with no memory.
        drop(dataplane);
        EbpfDataplane::new(site.config.clone()).cleanup().unwrap();
        assert_eq!(ask_tcp(at(VIP4)).unwrap_err().kind(), ErrorKind::NetworkUnreachable);
        assert!(!pin_dir.exists());
        let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
        assert!(!mounts.contains(pin_dir.to_str().unwrap()));
        EbpfDataplane::new(site.config.clone()).cleanup().unwrap();
    });
}

#[test]
fn a_pin_directory_has_one_netd() {
    isolated("a_pin_directory_has_one_netd", |site| {
        let mut first = EbpfDataplane::new(site.config.clone());
        apply(&mut first, &Plan::new(1).service(VIP4, Protocol::Tcp, &[]).0);
        let mut second = EbpfDataplane::new(site.config.clone());
        let error = second.apply(&ServicePlan::empty(), &Scope::Full).unwrap_err();
        assert!(matches!(&error, ApplyError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("another netd"), "{error}");
        drop(first);
        apply(&mut second, &ServicePlan::empty());
        second.cleanup().unwrap();
    });
}

#[test]
fn links_that_somebody_removed_come_back_with_the_next_apply() {
    isolated("links_that_somebody_removed_come_back_with_the_next_apply", |site| {
        let server = Server::tcp("127.0.0.1");
        let plan = Plan::new(1).service(VIP4, Protocol::Tcp, &[server.address]).0;
        let mut dataplane = EbpfDataplane::new(site.config.clone());
        apply(&mut dataplane, &plan);
        fs::remove_file(site.config.pin_dir.clone().unwrap().join("links/connect4")).unwrap();
        assert!(site::eventually(is_not_served));
        apply(&mut dataplane, &plan);
        assert_eq!(ask_tcp(at(VIP4)).unwrap().0, server.port());
        dataplane.cleanup().unwrap();
    });
}

#[test]
fn pins_that_somebody_damaged_are_made_anew_without_a_failure() {
    isolated("pins_that_somebody_damaged_are_made_anew_without_a_failure", |site| {
        let server = Server::tcp("127.0.0.1");
        let plan = Plan::new(1).service(VIP4, Protocol::Tcp, &[server.address]).0;
        let mut dataplane = EbpfDataplane::new(site.config.clone());
        apply(&mut dataplane, &plan);
        let load = Load::start(at(VIP4));
        for pin in ["netd_slots", "netd_sticky"] {
            drop(dataplane);
            let maps = only_map_dir(&site.config);
            fs::remove_file(maps.join(pin)).unwrap();
            dataplane = EbpfDataplane::new(site.config.clone());
            apply(&mut dataplane, &plan);
            assert!(only_map_dir(&site.config).join(pin).exists());
            load.wait_for(20);
        }
        let (_, failures) = load.finish();
        assert_eq!(failures, Vec::<String>::new());
        dataplane.cleanup().unwrap();
    });
}

/// The directory of maps; there is one. A bpffs may have files of the kernel's own beside it.
fn only_map_dir(config: &Config) -> PathBuf {
    let entries = fs::read_dir(config.pin_dir.as_ref().unwrap()).unwrap();
    let mut dirs: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("v1-"))
        .collect();
    assert_eq!(dirs.len(), 1, "{dirs:?}");
    dirs.remove(0)
}

#[test]
fn the_programs_follow_the_configured_cgroup() {
    isolated("the_programs_follow_the_configured_cgroup", |site| {
        let server = Server::tcp("127.0.0.1");
        let plan = Plan::new(1).service(VIP4, Protocol::Tcp, &[server.address]).0;
        let own = site.config.cgroup_root.clone().unwrap();
        let empty = own.join("empty");
        let elsewhere = Config { cgroup_root: Some(empty.clone()), ..site.config.clone() };
        let apply_once = |config: &Config| apply(&mut EbpfDataplane::new(config.clone()), &plan);

        fs::create_dir(&empty).unwrap();
        apply_once(&elsewhere);
        assert!(is_not_served(), "this process is not in there");
        apply_once(&site.config);
        assert_eq!(ask_tcp(at(VIP4)).unwrap().0, server.port());
        apply_once(&elsewhere);
        assert!(site::eventually(is_not_served), "the links have moved");

        // A cgroup that is made anew has the same name, and none of the programs.
        let mut dataplane = EbpfDataplane::new(elsewhere.clone());
        apply(&mut dataplane, &plan);
        fs::remove_dir(&empty).unwrap();
        fs::create_dir(&empty).unwrap();
        apply(&mut dataplane, &plan);
        fs::write(empty.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        assert_eq!(ask_tcp(at(VIP4)).unwrap().0, server.port());
        dataplane.cleanup().unwrap();
        fs::write(own.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        fs::remove_dir(&empty).unwrap();
    });
}

#[test]
fn a_trace_says_what_the_programs_do() {
    isolated("a_trace_says_what_the_programs_do", |site| {
        let server = Server::tcp("127.0.0.1");
        let plan = Plan::new(1)
            .host_only_service(VIP4, Protocol::Tcp, &[server.address])
            .service(VIP6, Protocol::Tcp, &[])
            .0;
        let mut dataplane = EbpfDataplane::new(site.config.clone());
        let outcome = |dataplane: &EbpfDataplane, origin, vip: &str| {
            let trace = dataplane.trace(&flow(origin, vip)).unwrap();
            eprintln!("{:?}", trace.steps);
            trace.outcome
        };
        assert_eq!(outcome(&dataplane, Origin::Host, VIP4), Outcome::Pass);
        apply(&mut dataplane, &plan);
        // One that holds the maps, and one that only looks.
        for dataplane in [&dataplane, &EbpfDataplane::new(site.config.clone())] {
            let Outcome::Balance { endpoints, .. } = outcome(dataplane, Origin::Host, VIP4) else {
                panic!("the host is balanced")
            };
            assert_eq!(endpoints.len(), 1);
            assert_eq!(endpoints.first().unwrap().port.get(), server.port());
            assert_eq!(outcome(dataplane, Origin::LocalPod, VIP4), Outcome::Reject);
            assert_eq!(outcome(dataplane, Origin::Remote, VIP4), Outcome::Pass);
            assert_eq!(outcome(dataplane, Origin::Host, VIP6), Outcome::Reject);
            assert_eq!(outcome(dataplane, Origin::Host, "10.96.0.99:80"), Outcome::Pass);
        }
        dataplane.cleanup().unwrap();
    });
}

#[test]
fn a_probe_says_yes_here_and_gives_a_reason_where_it_says_no() {
    isolated("a_probe_says_yes_here_and_gives_a_reason_where_it_says_no", |site| {
        let support = probe(&site.config).unwrap();
        assert_eq!(Some(support.cgroup_root), site.config.cgroup_root);
        assert!(!support.pin_dir.exists(), "a probe makes nothing");
        let no_cgroup = Config { cgroup_root: Some("/proc".into()), ..site.config.clone() };
        let reason = probe(&no_cgroup).unwrap_err().to_string();
        assert!(reason.contains("cgroup") && !reason.contains('\n'), "{reason}");
    });
}

#[test]
fn the_conformance_suite_finds_every_decision_in_the_maps_or_refused_by_name() {
    isolated("the_conformance_suite_finds_every_decision_in_the_maps_or_refused_by_name", |site| {
        let mut dataplane = EbpfDataplane::new(site.config.clone());
        let report = run_traces(&mut dataplane, &abilities(), &scenarios()).unwrap();
        eprintln!("{} checked, {} refused, {} unseen", report.checked, report.refused, report.unseen);
        assert_eq!(report.failures, Vec::<String>::new());
        assert!(report.checked > 100 && report.refused > 50, "{report:?}");
        dataplane.cleanup().unwrap();
    });
}
