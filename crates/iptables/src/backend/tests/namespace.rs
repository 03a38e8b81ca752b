//! With the real programs of both variants, in a network namespace of the test's own.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ipnetwork::IpNetwork;
use netd_kernel::exec::{SystemExec, find_program};
use netd_kernel::lock::FileLock;
use netd_kernel::netlink::{BridgeSpec, Route};
use netd_kernel::{Mac, Namespace, Netlink};
use netd_model::{FamilyPlan, FrontendKind, Masquerade, PoolScope, Protocol, Verdict, VerdictBySource};

use super::*;
use crate::config::Variant;
use crate::testing::*;

mod hairpin;

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A namespace that goes with the test.
struct Own(Namespace);

impl Own {
    fn new() -> Self {
        assert!(netd_kernel::process::is_root(), "this test needs root: it makes a network namespace");
        for program in ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"] {
            assert!(find_program(program).is_some(), "{program} is missing: apt-get install iptables");
        }
        let name = format!("nd-ipt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self(Namespace::create(&Path::new(netd_kernel::netns::NETNS_DIR).join(name)).unwrap())
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.0.run(work).unwrap()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = Namespace::remove(self.0.path());
    }
}

fn exec() -> Arc<dyn Exec> {
    Arc::new(SystemExec)
}

fn real(variant: Implementation) -> Iptables {
    let lock_wait = Duration::from_secs(20);
    let config = IptablesConfig { variant: variant.into(), lock_wait, ..IptablesConfig::default() };
    Iptables::new(config, exec()).unwrap()
}

fn run(program: &str, args: &[&str], stdin: &str) -> String {
    let path = find_program(program).unwrap();
    let output = exec().run(&path, args, stdin.as_bytes(), Duration::from_secs(60)).unwrap();
    assert!(output.success(), "{program} {args:?}: {}", output.complaint());
    String::from_utf8(output.stdout).unwrap()
}

/// All tables of both families, without the lines that carry the time.
fn saved(variant: Implementation) -> String {
    ["iptables", "ip6tables"]
        .into_iter()
        .map(|stem| run(&format!("{stem}-{}-save", variant.word()), &[], ""))
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| !line.starts_with('#'))
        .map(|line| line + "\n")
        .collect()
}

/// Rules of others in every place we touch.
fn occupy(variant: Implementation) {
    let text = "*filter\n:OTHER - [0:0]\n-A INPUT -m comment --comment \"other tool\" -j OTHER\n\
                -A FORWARD -j OTHER\n-A OUTPUT -p tcp -m tcp --dport 9 -j DROP\nCOMMIT\n\
                *nat\n:OTHER - [0:0]\n-A PREROUTING -j OTHER\n-A OUTPUT -j OTHER\n\
                -A POSTROUTING -o nowhere -j MASQUERADE\nCOMMIT\n";
    for stem in ["iptables", "ip6tables"] {
        run(&format!("{stem}-{}-restore", variant.word()), &["--noflush", "-w", "20"], text);
    }
}

fn both_families() -> ServicePlan {
    ServicePlan { v6: everything(Family::V6).build(), ..everything(Family::V4).whole() }
}

#[test]
fn a_plan_is_adopted_after_a_restart_and_cleanup_leaves_the_rules_of_others() {
    for variant in Implementation::ALL {
        Own::new().run(|| {
            occupy(variant);
            let before = saved(variant);
            let plan = both_families();
            let mut iptables = real(variant);
            let applied = iptables.apply(&plan, &Scope::Full).unwrap();
            assert_eq!(applied.refused, []);
            assert!(applied.changed > 100, "{applied:?}");
            assert!(iptables.intact().unwrap());
            assert!(iptables.planes.iter().all(|plane| plane.dialect.is_empty()), "words differ");
            assert!(iptables.intact().unwrap());
            let after = saved(variant);
            for line in before.lines() {
                assert!(after.contains(line), "lost: {line}");
            }

            let mut restarted = real(variant);
            restarted.resync().unwrap();
            assert_eq!(restarted.apply(&plan, &Scope::Full).unwrap().changed, 0);
            assert_eq!(saved(variant), after);

            restarted.cleanup().unwrap();
            assert_eq!(saved(variant), before);
            restarted.cleanup().unwrap();
            assert_eq!(saved(variant), before);
            assert!(restarted.apply(&plan, &Scope::Full).unwrap().changed > 100);
        });
    }
}

#[test]
fn the_conformance_suite_traces_as_the_oracle_says() {
    for variant in Implementation::ALL {
        Own::new().run(|| {
            let abilities = netd_dataplane::conformance::Abilities::all();
            let scenarios = netd_dataplane::conformance::scenarios();
            let report =
                netd_dataplane::conformance::run_traces(&mut real(variant), &abilities, &scenarios).unwrap();
            assert_eq!(report.failures, [""; 0]);
            assert!(report.checked > 100, "{report:?}");
            assert_eq!((report.refused, report.unseen), (0, 0));
        });
    }
}

#[test]
fn a_changed_endpoint_writes_its_own_chains_only() {
    for variant in Implementation::ALL {
        Own::new().run(|| {
            let mut iptables = real(variant);
            iptables.apply(&both_families(), &Scope::Full).unwrap();
            let mut plan = both_families();
            let id = pool_id("web", Protocol::Tcp, PoolScope::Cluster);
            plan.v4.pools.get_mut(&id).unwrap().endpoints.pop();
            let applied = iptables.apply(&plan, &Scope::Full).unwrap();
            // The rule that marks by source and two of the choice.
            assert_eq!(applied.changed, 3);
            assert!(iptables.intact().unwrap());
            let flow = &flows(&plan.v4)[0];
            let trace = iptables.trace(flow).unwrap();
            let netd_dataplane::Outcome::Balance { endpoints, .. } = &trace.outcome else {
                panic!("{trace:?}");
            };
            assert_eq!(endpoints.len(), 2, "{trace:?}");
        });
    }
}

#[test]
fn changes_of_single_services_add_up_to_the_whole() {
    for variant in Implementation::ALL {
        Own::new().run(|| {
            // A Service that borrows another's pool is compiled with all others.
            let alone = |plan: &mut FamilyPlan| {
                plan.frontends.retain(|_, frontend| &*frontend.port.service.name != "far");
            };
            let mut plan = everything(Family::V4).change(alone).whole();
            plan.v6 = everything(Family::V6).change(alone).build();
            let mut iptables = real(variant);
            iptables.apply(&plan, &Scope::Full).unwrap();
            let id = pool_id("web", Protocol::Tcp, PoolScope::Cluster);
            let mut service = |plan: &ServicePlan, name: &str| {
                let name = netd_model::ObjectName::new("default", name);
                let scope = Scope::Services(std::collections::BTreeSet::from([name]));
                iptables.apply(plan, &scope).unwrap().changed
            };
            plan.v4.pools.get_mut(&id).unwrap().endpoints.pop();
            assert_eq!(service(&plan, "web"), 3);
            for part in [&mut plan.v4, &mut plan.v6] {
                part.frontends.retain(|_, frontend| &*frontend.port.service.name != "dns");
            }
            assert!(service(&plan, "dns") > 6);
            assert_eq!(service(&plan, "dns"), 0);
            // Nobody else wrote, and that is known without looking at the rules.
            let is_known = iptables.planes.iter().all(|plane| plane.is_known());
            assert_eq!(is_known, variant == Implementation::Nft);
            assert!(iptables.intact().unwrap());
            iptables.resync().unwrap();
            assert_eq!(iptables.apply(&plan, &Scope::Full).unwrap().changed, 0);
        });
    }
}

#[test]
fn what_others_do_to_our_rules_is_seen_and_healed() {
    for variant in Implementation::ALL {
        Own::new().run(|| {
            let word = variant.word();
            let (v4, v6) = (format!("iptables-{word}"), format!("ip6tables-{word}"));
            let plan = both_families();
            let mut iptables = real(variant);
            iptables.apply(&plan, &Scope::Full).unwrap();
            let good = saved(variant);
            let attacks: [(&str, &[&str]); 7] = [
                (&v4, &["-w", "20", "-F"]),
                (&v6, &["-w", "20", "-t", "nat", "-F"]),
                (&v4, &["-w", "20", "-t", "nat", "-D", "NETD-MARK-MASQ", "1"]),
                (&v4, &["-w", "20", "-t", "nat", "-I", "NETD-SERVICES", "1", "-j", "RETURN"]),
                (&v4, &["-w", "20", "-t", "nat", "-R", "NETD-POSTROUTING", "3", "-j", "ACCEPT"]),
                (&v6, &["-w", "20", "-D", "FORWARD", "1"]),
                (&v4, &["-w", "20", "-t", "nat", "-A", "OUTPUT", "-j", "NETD-SERVICES"]),
            ];
            for (program, args) in attacks {
                assert!(iptables.intact().unwrap(), "before {program} {args:?}");
                run(program, args, "");
                assert!(!iptables.intact().unwrap(), "{program} {args:?} went unseen");
                iptables.resync().unwrap();
                assert!(iptables.apply(&plan, &Scope::Full).unwrap().changed > 0);
                assert!(iptables.intact().unwrap(), "after {program} {args:?}");
            }
            let sorted = |text: &str| {
                let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
                lines.sort();
                lines
            };
            assert_eq!(sorted(&saved(variant)), sorted(&good));
        });
    }
}

#[test]
fn a_change_on_top_of_lost_chains_is_torn_then_resynced() {
    for variant in Implementation::ALL {
        Own::new().run(|| {
            let mut iptables = real(variant);
            iptables.apply(&both_families(), &Scope::Full).unwrap();
            for table in ["nat", "filter"] {
                let program = format!("iptables-{}", variant.word());
                run(&program, &["-w", "20", "-t", table, "-F"], "");
                run(&program, &["-w", "20", "-t", table, "-X"], "");
            }
            let mut plan = both_families();
            plan.v4.frontends.remove(&node_port(Protocol::Tcp, 30080));
            let error = iptables.apply(&plan, &Scope::Full).unwrap_err();
            assert!(matches!(error, ApplyError::Torn { .. }), "{error}");
            iptables.resync().unwrap();
            iptables.apply(&plan, &Scope::Full).unwrap();
            assert!(iptables.intact().unwrap());
        });
    }
}

#[test]
fn rules_left_in_the_other_variant_are_swept_and_cleaned() {
    Own::new().run(|| {
        let plan = both_families();
        real(Implementation::Legacy).apply(&plan, &Scope::Full).unwrap();
        assert!(saved(Implementation::Legacy).contains("NETD-"));
        let mut nft = real(Implementation::Nft);
        nft.apply(&plan, &Scope::Full).unwrap();
        assert!(!saved(Implementation::Legacy).contains("NETD-"));
        let mut legacy = real(Implementation::Legacy);
        legacy.planes[0].apply(&plan.v4, SETTINGS, &Scope::Full).unwrap();
        nft.cleanup().unwrap();
        for variant in Implementation::ALL {
            assert!(!saved(variant).contains("NETD-"), "{variant}");
        }
    });
}

#[test]
fn detection_prefers_the_variant_with_kubelets_hint() {
    Own::new().run(|| {
        run("iptables-legacy", &["-w", "20", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT"], "");
        let found = Iptables::new(IptablesConfig::default(), exec()).unwrap();
        assert_eq!(found.variant(), Implementation::Legacy);
    });
}

#[test]
fn one_by_one_removal_works_as_well_and_another_reader_agrees() {
    for variant in Implementation::ALL {
        Own::new().run(|| {
            occupy(variant);
            let before = saved(variant);
            let mut iptables = real(variant);
            iptables.apply(&PlanBuilder::new(Family::V4).whole(), &Scope::Full).unwrap();
            let tool = &iptables.planes[0].tool;
            let found = tool.installed().unwrap();
            assert!(!found.is_empty());
            cleanup::one_by_one(tool, &found);
            assert!(tool.installed().unwrap().is_empty());
            cleanup::remove_all(&iptables.planes[1].tool).unwrap();
            assert_eq!(saved(variant), before);
        });
    }
}

#[test]
fn the_holder_of_the_lock_is_named() {
    Own::new().run(|| {
        let config = IptablesConfig {
            variant: Variant::Legacy,
            lock_wait: Duration::from_secs(1),
            ..IptablesConfig::default()
        };
        let mut iptables = Iptables::new(config, exec()).unwrap();
        let held = FileLock::exclusive(Path::new("/run/xtables.lock"), Duration::from_secs(60)).unwrap();
        let plan = ServicePlan::empty();
        let error = iptables.apply(&plan, &Scope::Full).unwrap_err();
        drop(held);
        assert!(matches!(error, ApplyError::Refused { .. }), "{error}");
        let pid = std::process::id().to_string();
        assert!(error.to_string().contains(&pid), "{error}");
    });
}

/// A node with a bridge, an address on it and default routes, so that Service addresses are routed.
fn node() {
    let mut netlink = Netlink::open().unwrap();
    let lo = netlink.link("lo").unwrap().unwrap();
    netlink.set_up(lo.index).unwrap();
    let spec = BridgeSpec { name: "nd0", mac: Some(Mac([2, 0, 0, 0, 0, 1])), mtu: None, alias: None };
    let bridge = netlink.add_bridge(&spec).unwrap();
    netlink.set_up(bridge).unwrap();
    for prefix in ["172.16.1.1/24", "fd00:10:0:1::1/64"] {
        netlink.add_address(bridge, prefix.parse().unwrap(), true).unwrap();
    }
    for prefix in ["0.0.0.0/0", "::/0"] {
        let everywhere: IpNetwork = prefix.parse().unwrap();
        netlink.add_route(&Route::to(everywhere).dev(bridge)).unwrap();
    }
}

/// Two pods behind a node, each on a link of its own, and the node's FORWARD policy DROP.
fn behind_a_node(node: &Own, pods: [(&Own, &str); 2]) {
    for (place, (pod, address)) in pods.iter().enumerate() {
        let name = format!("pod{place}");
        node.run(|| {
            let mut netlink = Netlink::open().unwrap();
            let spec = netd_kernel::netlink::VethSpec {
                name: &name,
                peer_name: "eth0",
                peer_namespace: Some(pod.0.fd()),
                ..Default::default()
            };
            let link = netlink.add_veth(&spec).unwrap();
            netlink.set_up(link).unwrap();
            let gateway: IpNetwork = "172.16.1.1/32".parse().unwrap();
            netlink.add_address(link, gateway, true).unwrap();
            netlink.add_route(&Route::to(format!("{address}/32").parse().unwrap()).dev(link)).unwrap();
        });
        pod.run(|| {
            let mut netlink = Netlink::open().unwrap();
            let link = netlink.link("eth0").unwrap().unwrap().index;
            netlink.set_up(link).unwrap();
            netlink.add_address(link, format!("{address}/32").parse().unwrap(), true).unwrap();
            netlink.add_route(&Route::to("172.16.1.1/32".parse().unwrap()).dev(link)).unwrap();
            netlink.add_route(&Route::default_via("172.16.1.1".parse().unwrap()).dev(link)).unwrap();
        });
    }
    node.run(|| {
        netd_kernel::sysctl::write("net/ipv4/ip_forward", "1").unwrap();
        // So that a Service's address is routed, and a refusal comes from the rules.
        let mut netlink = Netlink::open().unwrap();
        let link = netlink.link("pod0").unwrap().unwrap().index;
        netlink.add_route(&Route::to("0.0.0.0/0".parse().unwrap()).dev(link)).unwrap();
    });
}

#[test]
fn a_forward_policy_of_drop_does_not_stop_services() {
    for variant in Implementation::ALL {
        let [node, client, server] = [Own::new(), Own::new(), Own::new()];
        behind_a_node(&node, [(&client, "172.16.1.2"), (&server, "172.16.1.3")]);
        let listener = server.run(|| TcpListener::bind("172.16.1.3:8080").unwrap());
        let id = pool_id("web", Protocol::Tcp, PoolScope::Cluster);
        let verdict = VerdictBySource::same(balance(id.clone(), Masquerade::Hairpin));
        let plan = PlanBuilder::new(Family::V4)
            .pool(id, &["172.16.1.3"])
            .frontend(
                at("10.96.0.1", Protocol::Tcp, 80),
                frontend(name("web", Protocol::Tcp), FrontendKind::ClusterIP, verdict),
            )
            .frontend(
                at("10.96.0.2", Protocol::Tcp, 80),
                frontend(
                    name("none", Protocol::Tcp),
                    FrontendKind::ClusterIP,
                    VerdictBySource::same(Verdict::Reject),
                ),
            )
            .whole();
        node.run(|| {
            run(&format!("iptables-{}", variant.word()), &["-w", "20", "-P", "FORWARD", "DROP"], "");
            real(variant).apply(&plan, &Scope::Full).unwrap();
        });
        client.run(|| {
            let target: SocketAddr = "10.96.0.1:80".parse().unwrap();
            let stream = netd_kernel::clock::eventually(Duration::from_secs(10), || {
                TcpStream::connect_timeout(&target, Duration::from_secs(1)).ok()
            })
            .expect("the Service answers");
            let (_, peer) = listener.accept().unwrap();
            assert_eq!(peer, stream.local_addr().unwrap(), "the pod sees its client");
            let none = "10.96.0.2:80".parse().unwrap();
            let refused = TcpStream::connect_timeout(&none, Duration::from_secs(5)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{variant}: {refused}");
        });
    }
}

#[test]
fn real_connections_are_balanced_and_refused() {
    for variant in Implementation::ALL {
        for family in Family::ALL {
            Own::new().run(|| {
                node();
                connections(variant, family);
            });
        }
    }
}

fn connections(variant: Implementation, family: Family) {
    let pick = |four: &'static str, six: &'static str| if family == Family::V4 { four } else { six };
    let address: IpAddr = pick("172.16.1.1", "fd00:10:0:1::1").parse().unwrap();
    let (vip, none) = (pick("10.96.0.1", "fd00:96::1"), pick("10.96.0.2", "fd00:96::2"));
    let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind((address, 0)).unwrap()).collect();
    let id = pool_id("web", Protocol::Tcp, PoolScope::Cluster);
    let endpoint = |listener: &TcpListener| netd_model::PoolEndpoint {
        address,
        port: port(listener.local_addr().unwrap().port()),
        local: true,
    };
    let always = VerdictBySource::same(balance(id.clone(), Masquerade::Always));
    let reject = VerdictBySource::same(Verdict::Reject);
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    let plan = PlanBuilder::new(family)
        .change(|plan| {
            let mut endpoints: Vec<_> = listeners.iter().map(endpoint).collect();
            endpoints.sort();
            plan.pools.insert(id, netd_model::Pool { endpoints });
        })
        .frontend(at(vip, tcp, 80), frontend(name("web", tcp), FrontendKind::ClusterIP, always.clone()))
        .frontend(node_port(tcp, 30080), frontend(name("web", tcp), FrontendKind::NodePort, always))
        .frontend(at(none, tcp, 80), frontend(name("none", tcp), FrontendKind::ClusterIP, reject.clone()))
        .frontend(at(none, udp, 80), frontend(name("none", udp), FrontendKind::ClusterIP, reject))
        .whole();
    real(variant).apply(&plan, &Scope::Full).unwrap();

    let targets = [SocketAddr::new(vip.parse().unwrap(), 80), SocketAddr::new(address, 30080)];
    balanced(&listeners, &targets);
    refused(SocketAddr::new(none.parse().unwrap(), 80), &format!("{variant} {family}"));
}

/// Connects 60 times and wants every listener to have answered.
fn balanced(listeners: &[TcpListener], targets: &[SocketAddr]) {
    let mut served = vec![0_usize; listeners.len()];
    for listener in listeners {
        listener.set_nonblocking(true).unwrap();
    }
    for target in targets.iter().cycle().take(60) {
        let mut client = TcpStream::connect_timeout(target, Duration::from_secs(5)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut server = netd_kernel::clock::eventually(Duration::from_secs(5), || {
            listeners.iter().enumerate().find_map(|(i, listener)| {
                let (stream, _) = listener.accept().ok()?;
                served[i] += 1;
                Some(stream)
            })
        })
        .expect("an endpoint accepts");
        server.write_all(b"hi").unwrap();
        drop(server);
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap();
        assert_eq!(said, "hi");
    }
    assert!(served.iter().all(|count| *count > 0), "one endpoint never chosen in 60: {served:?}");
}

fn refused(target: SocketAddr, what: &str) {
    let refused = TcpStream::connect_timeout(&target, Duration::from_secs(5)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{what}: {refused}");
    let any: IpAddr = if target.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.connect(target).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // A process of the node itself is told twice: its datagram is not sent, and it is unreachable.
    let sent = socket.send(b"x");
    assert!(sent.is_ok() || sent.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied));
    let refused = socket.recv(&mut [0; 8]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{what}: {refused}");
}
