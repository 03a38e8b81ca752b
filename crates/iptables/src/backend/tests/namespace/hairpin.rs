//! Clients that are given to themselves, and the change from chains by endpoint to rules by endpoint.

use std::sync::atomic::AtomicBool;

use netd_model::LocalPods;

use super::*;

/// One Service with these endpoints, on a node that cannot tell pods.
fn service(endpoints: &[&str]) -> ServicePlan {
    let id = pool_id("web", Protocol::Tcp, PoolScope::Cluster);
    let verdict = VerdictBySource::same(balance(id.clone(), Masquerade::Hairpin));
    let web = frontend(name("web", Protocol::Tcp), FrontendKind::ClusterIP, verdict);
    PlanBuilder::new(Family::V4)
        .change(|plan| plan.local_pods = LocalPods::None)
        .pool(id, endpoints)
        .frontend(at("10.96.0.1", Protocol::Tcp, 80), web)
        .whole()
}

fn vip() -> SocketAddr {
    "10.96.0.1:80".parse().unwrap()
}

/// A dataplane that has been told whether the kernel has `xt_bpf`.
fn with_same_address(variant: Implementation, has: bool) -> Iptables {
    let mut iptables = real(variant);
    iptables.planes.iter_mut().for_each(|plane| plane.same_address = Some(has));
    iptables
}

#[test]
fn a_client_that_is_its_own_endpoint_is_answered_also_where_forward_drops() {
    for variant in Implementation::ALL {
        for same_address in [true, false] {
            let [node, client, other] = [Own::new(), Own::new(), Own::new()];
            behind_a_node(&node, [(&client, "172.16.1.2"), (&other, "172.16.1.3")]);
            node.run(|| {
                run(&format!("iptables-{}", variant.word()), &["-w", "20", "-P", "FORWARD", "DROP"], "");
                let plan = service(&["172.16.1.2"]);
                with_same_address(variant, same_address).apply(&plan, &Scope::Full).unwrap();
            });
            client.run(|| {
                let listener = TcpListener::bind("172.16.1.2:8080").unwrap();
                let stream = netd_kernel::clock::eventually(Duration::from_secs(10), || {
                    TcpStream::connect_timeout(&vip(), Duration::from_secs(1)).ok()
                });
                assert!(stream.is_some(), "{variant}, one rule for all: {same_address}");
                let (_, peer) = listener.accept().unwrap();
                assert_eq!(peer.ip().to_string(), "172.16.1.1", "{variant}: the source is the node's");
            });
        }
    }
}

#[test]
fn what_others_redirect_on_the_loopback_keeps_its_source() {
    for variant in Implementation::ALL {
        Own::new().run(|| {
            node();
            real(variant).apply(&service(&["172.16.1.2"]), &Scope::Full).unwrap();
            let listener = TcpListener::bind("127.0.0.1:8080").unwrap();
            let redirect =
                "*nat\n-A OUTPUT -d 127.0.0.1 -p tcp --dport 81 -j REDIRECT --to-ports 8080\nCOMMIT\n";
            run(&format!("iptables-{}-restore", variant.word()), &["--noflush", "-w", "20"], redirect);
            let target = "127.0.0.1:81".parse().unwrap();
            let stream = TcpStream::connect_timeout(&target, Duration::from_secs(5)).unwrap();
            let (_, peer) = listener.accept().unwrap();
            assert_eq!(peer, stream.local_addr().unwrap(), "{variant}");
        });
    }
}

/// Connects one time after the other until told to stop; returns how many connections there were, and the errors.
fn keep_connecting(stop: &AtomicBool) -> (usize, Vec<String>) {
    let (mut made, mut errors) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        match TcpStream::connect_timeout(&vip(), Duration::from_secs(5)) {
            Ok(_) => made += 1,
            Err(error) => errors.push(error.to_string()),
        }
    }
    (made, errors)
}

#[test]
fn chains_by_endpoint_of_an_earlier_run_are_replaced_and_no_connection_fails() {
    const ROUNDS: usize = 6;
    for variant in Implementation::ALL {
        Own::new().run(|| {
            node();
            let listener = TcpListener::bind("172.16.1.1:8080").unwrap();
            listener.set_nonblocking(true).unwrap();
            let plan = service(&["172.16.1.1"]);
            with_same_address(variant, false).apply(&plan, &Scope::Full).unwrap();
            assert!(saved(variant).contains(":NETD-SEP-"));
            let stop = AtomicBool::new(false);
            let (made, errors) = std::thread::scope(|scope| {
                let load = scope.spawn(|| keep_connecting(&stop));
                for round in 1..=ROUNDS {
                    let is_new = round % 2 == 1;
                    let mut next = if is_new { real(variant) } else { with_same_address(variant, false) };
                    next.resync().unwrap();
                    assert!(next.apply(&plan, &Scope::Full).unwrap().changed > 0);
                    assert!(next.intact().unwrap());
                    assert_eq!(saved(variant).contains(":NETD-SEP-"), !is_new);
                    assert_eq!(next.apply(&plan, &Scope::Full).unwrap().changed, 0);
                    while listener.accept().is_ok() {}
                }
                stop.store(true, Ordering::Relaxed);
                load.join().unwrap()
            });
            assert_eq!(errors, [""; 0], "{variant}: of {made} connections");
            assert!(made > ROUNDS, "{variant}: {made} connections");
        });
    }
}
