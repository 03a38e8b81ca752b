use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::netns::{NETNS_DIR, Namespace};

/// Runs `work` in a namespace of its own.
fn scratch<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    struct Scratch(Namespace, PathBuf);
    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = Namespace::remove(&self.1);
        }
    }
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("nd-{}-port{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path = PathBuf::from(NETNS_DIR).join(name);
    let scratch = Scratch(Namespace::create(&path).expect("network namespaces need root"), path);
    scratch.0.run(work).unwrap()
}

fn port(host_ip: Option<&str>, number: u16, to: &str) -> HostPort {
    HostPort {
        transport: Transport::Tcp,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        port: number,
        to: to.parse().unwrap(),
    }
}

#[test]
fn ports_are_listed_and_go_with_their_owner() {
    scratch(|| {
        assert_eq!(remove("a").unwrap(), vec![]);
        let mut ports = [
            port(None, 80, "172.16.1.2:8080"),
            port(Some("127.0.0.1"), 81, "172.16.1.2:8081"),
            port(None, 80, "[fd00::2]:8080"),
            port(Some("fd00:1::1"), 81, "[fd00::2]:8081"),
            HostPort { transport: Transport::Udp, ..port(None, 80, "172.16.1.2:53") },
        ];
        ports.sort_unstable();
        assert_eq!(add("a", &ports).unwrap(), Ok(()));
        assert_eq!(add("b", &[port(None, 90, "172.16.1.3:90")]).unwrap(), Ok(()));
        let mut found: Vec<_> =
            list().unwrap().into_iter().filter(|(owner, _)| owner == "a").map(|(_, port)| port).collect();
        found.sort_unstable();
        assert_eq!(found, ports);
        assert_eq!(add("a", &ports[..1]).unwrap(), Ok(()), "an owner's ports are replaced");
        assert_eq!(list().unwrap().len(), 2);
        assert_eq!(remove("a").unwrap(), ports[..1]);
        assert_eq!(remove("a").unwrap(), vec![]);
        assert_eq!(list().unwrap().len(), 1);
        assert!(clear().unwrap() && !clear().unwrap());
    });
}

#[test]
fn a_port_that_somebody_has_is_refused_with_his_name() {
    scratch(|| {
        add("a", &[port(None, 80, "172.16.1.2:80"), port(Some("10.0.0.1"), 81, "172.16.1.2:80")])
            .unwrap()
            .unwrap();
        let before = list().unwrap();
        for taken in [
            port(None, 80, "172.16.1.3:80"),
            port(Some("10.0.0.9"), 80, "172.16.1.3:80"),
            port(None, 81, "172.16.1.3:80"),
            port(Some("10.0.0.1"), 81, "172.16.1.3:80"),
        ] {
            let refused = add("b", &[port(None, 99, "172.16.1.3:99"), taken]).unwrap().unwrap_err();
            assert_eq!(refused.owner, "a");
            assert_eq!(list().unwrap(), before, "all or none");
        }
        let free = [port(Some("10.0.0.2"), 81, "172.16.1.3:80"), port(None, 80, "[fd00::2]:80")];
        assert_eq!(add("b", &free).unwrap(), Ok(()));
    });
}

#[test]
fn of_many_at_once_one_gets_the_port() {
    let got = scratch(|| {
        let own = Namespace::current().unwrap();
        std::thread::scope(|scope| {
            let calls: Vec<_> = (0..8)
                .map(|place| {
                    let own = &own;
                    let host_ip = if place % 2 == 0 { None } else { Some("10.0.0.1") };
                    let wanted = port(host_ip, 80, &format!("172.16.1.{}:80", place + 2));
                    scope.spawn(move || own.run(|| add(&place.to_string(), &[wanted])).unwrap().unwrap())
                })
                .collect();
            calls.into_iter().map(|call| call.join().unwrap()).filter(Result::is_ok).count()
        })
    });
    assert!(got <= 1, "{got} have one port");
}

#[test]
fn flushed_rules_come_back_and_the_ports_are_still_there() {
    scratch(|| {
        assert!(!repair().unwrap(), "there is nothing to repair");
        add("a", &[port(None, 80, "172.16.1.2:80")]).unwrap().unwrap();
        assert!(!repair().unwrap());
        let mut batch = Batch::new();
        batch.flush_table(Family::V4, TABLE);
        Conversation::open().unwrap().commit(batch, "flush").unwrap();
        assert!(repair().unwrap());
        assert!(!repair().unwrap());
        assert_eq!(list().unwrap().len(), 1);
    });
}

/// nft reads the rules as they are meant; without nft there is nobody else to ask.
#[test]
fn nft_reads_what_is_meant() {
    use crate::exec::{Exec, SystemExec, find_program};
    let Some(nft) = find_program("nft") else { return };
    let text = scratch(|| {
        let ports = [
            port(None, 80, "172.16.1.2:8080"),
            port(Some("127.0.0.1"), 81, "172.16.1.2:8081"),
            port(Some("fd00:1::1"), 81, "[fd00::2]:8081"),
        ];
        add("a", &ports).unwrap().unwrap();
        let limit = std::time::Duration::from_secs(10);
        String::from_utf8(SystemExec.run(&nft, &["list", "ruleset"], &[], limit).unwrap().stdout).unwrap()
    });
    for part in [
        "type inet_proto . inet_service : ipv4_addr . inet_service",
        "tcp . 80 comment \"a\" : 172.16.1.2 . 8080",
        "127.0.0.1 . tcp . 81 comment \"a\" : 172.16.1.2 . 8081",
        "fd00:1::1 . tcp . 81 comment \"a\" : fd00::2 . 8081",
        "iifname != \"lo\" ip daddr 127.0.0.0/8 drop",
        "fib daddr type local goto translate",
        "dnat ip to ip daddr . meta l4proto . th dport map @addressed",
        "dnat ip6 to ip6 daddr . meta l4proto . th dport map @addressed",
        "ip saddr . ip daddr @pods masquerade",
        "oifname != \"lo\" masquerade",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
}

#[test]
fn ports_come_back_after_a_loss_of_elements_rules_or_tables_and_anothers_stays_his() {
    scratch(|| {
        let all = [
            ("a".to_owned(), port(None, 80, "172.16.1.2:8080")),
            ("a".to_owned(), port(Some("127.0.0.1"), 81, "172.16.1.2:8081")),
            ("b".to_owned(), port(None, 80, "[fd00::2]:8080")),
        ];
        assert_eq!(missing(&all).unwrap(), all, "there is no table");
        assert_eq!(restore(&all).unwrap(), all);
        assert_eq!((missing(&all).unwrap(), restore(&all).unwrap()), (vec![], vec![]));
        assert!(is_intact().unwrap());

        // An element, and one of the pairs.
        remove("b").unwrap();
        let mut batch = Batch::new();
        batch.delete_element(Family::V4, TABLE, PODS, &pair(&all[0].1, "").key);
        Conversation::open().unwrap().commit(batch, "lose").unwrap();
        assert_eq!(missing(&all).unwrap(), all);
        assert_eq!(restore(&all).unwrap().len(), 3);
        // The rules; then everything.
        let mut batch = Batch::new();
        batch.flush_table(Family::V4, TABLE);
        Conversation::open().unwrap().commit(batch, "flush").unwrap();
        assert_eq!(restore(&all).unwrap(), []);
        assert!(is_intact().unwrap());
        clear().unwrap();
        assert_eq!(restore(&all).unwrap(), all);

        remove("a").unwrap();
        add("c", &[port(None, 80, "172.16.1.9:1")]).unwrap().unwrap();
        assert_eq!(restore(&all).unwrap(), all[1..2]);
        assert_eq!(list().unwrap().len(), 3);
    });
}
