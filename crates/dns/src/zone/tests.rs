use crate::answer::tests::{dig, undotted};
use crate::wire::rtype::{A, AAAA, ANY, CNAME, HTTPS, MX, NS, PTR, SOA, SRV, TXT};

const Z: &str = "cluster.local.";

/// Checks rows of name (below the cluster domain, or absolute with a trailing dot), type and answer.
fn check(rows: &[(&str, u16, &str)]) {
    for (name, qtype, expected) in rows {
        let name = match name.strip_suffix('.') {
            Some(absolute) => absolute.to_owned(),
            None if name.is_empty() => Z.to_owned(),
            None => format!("{name}.{Z}"),
        };
        assert_eq!(dig(&name, *qtype), undotted(expected), "{name} type {qtype}");
    }
}

const NODATA: &str = "NOERROR |  | cluster.local. 5 SOA";
const NXDOMAIN: &str = "NXDOMAIN |  | cluster.local. 5 SOA";

#[test]
fn cluster_ip_services_have_an_address_a_family_even_without_endpoints() {
    check(&[
        ("web.default.svc", A, "NOERROR | web.default.svc.cluster.local. 5 A 10.96.0.10"),
        ("web.default.svc", AAAA, "NOERROR | web.default.svc.cluster.local. 5 AAAA fd00:96::10"),
        ("v4only.default.svc", A, "NOERROR | v4only.default.svc.cluster.local. 5 A 10.96.0.11"),
    ]);
}

#[test]
fn existing_names_without_the_type_are_nodata_with_soa() {
    check(&[
        ("v4only.default.svc", AAAA, NODATA),
        ("web.default.svc", MX, NODATA),
        ("web.default.svc", HTTPS, NODATA),
        ("web.default.svc", CNAME, NODATA),
        ("web.default.svc", PTR, NODATA),
        ("svc", A, NODATA),
        ("pod", A, NODATA),
        ("default.svc", A, NODATA),
        ("default.pod", AAAA, NODATA),
        ("", A, NODATA),
        ("", TXT, NODATA),
        ("dns", A, NODATA),
        ("dns-version", A, NODATA),
        ("_tcp.web.default.svc", A, NODATA),
        ("_tcp.web.default.svc", SRV, NODATA),
        ("_http._tcp.web.default.svc", A, NODATA),
        ("1-2-3-4.default.pod", AAAA, NODATA),
        ("fd00--1.default.pod", A, NODATA),
        ("db-0.db.default.svc", AAAA, NODATA),
        ("db-0.db.default.svc", SRV, NODATA),
    ]);
}

#[test]
fn names_that_do_not_exist_are_nxdomain_with_soa() {
    check(&[
        ("nope.default.svc", A, NXDOMAIN),
        ("web.nope.svc", A, NXDOMAIN),
        ("nope.svc", A, NXDOMAIN),
        ("nope.pod", A, NXDOMAIN),
        ("nope", A, NXDOMAIN),
        ("web.default", A, NXDOMAIN),
        ("x.dns-version", TXT, NXDOMAIN),
        ("x.dns", A, NXDOMAIN),
        ("x.ns.dns", A, NXDOMAIN),
        ("_nope._tcp.web.default.svc", SRV, NXDOMAIN),
        ("_http._udp.web.default.svc", SRV, NXDOMAIN),
        ("http.tcp.web.default.svc", SRV, NXDOMAIN),
        ("_sctp.web.default.svc", SRV, NXDOMAIN),
        ("_tcp.v4only.default.svc", SRV, NXDOMAIN),
        ("a._http._tcp.web.default.svc", SRV, NXDOMAIN),
        ("a.b.c.d.e.f.g.svc", A, NXDOMAIN),
        ("*.default.svc", A, NXDOMAIN),
        ("any.default.svc", A, NXDOMAIN),
        ("1-2-3.default.pod", A, NXDOMAIN),
        ("1-2-3-400.default.pod", A, NXDOMAIN),
        ("1-2-3-4.nope.pod", A, NXDOMAIN),
        ("x.ext.default.svc", A, NXDOMAIN),
    ]);
}

#[test]
fn service_records_exist_for_named_ports_and_for_all_on_the_bare_name() {
    let glue =
        "web.default.svc.cluster.local. 5 A 10.96.0.10, web.default.svc.cluster.local. 5 AAAA fd00:96::10";
    let http = "_http._tcp.web.default.svc.cluster.local. 5 SRV 0 100 80 web.default.svc.cluster.local.";
    let bare = |port: u16| {
        format!("web.default.svc.cluster.local. 5 SRV 0 33 {port} web.default.svc.cluster.local.")
    };
    let all = [53, 80, 9090].map(bare).join(", ");
    let unnamed = "v4only.default.svc.cluster.local. 5 SRV 0 100 80 v4only.default.svc.cluster.local.";
    check(&[
        ("_http._tcp.web.default.svc", SRV, &format!("NOERROR | {http} |  | {glue}")),
        ("web.default.svc", SRV, &format!("NOERROR | {all} |  | {glue}")),
        (
            "v4only.default.svc",
            SRV,
            &format!("NOERROR | {unnamed} |  | v4only.default.svc.cluster.local. 5 A 10.96.0.11"),
        ),
    ]);
}

#[test]
fn headless_services_have_the_addresses_of_their_ready_endpoints() {
    let db = "db.default.svc.cluster.local.";
    check(&[
        ("db.default.svc", A, &format!("NOERROR | {db} 5 A 172.16.1.7, {db} 5 A 172.16.2.7")),
        ("db.default.svc", AAAA, &format!("NOERROR | {db} 5 AAAA fd00:16::")),
        ("empty.default.svc", A, NXDOMAIN),
        ("empty.default.svc", SRV, NXDOMAIN),
        ("unready.default.svc", A, NXDOMAIN),
        ("_http._tcp.unready.default.svc", SRV, NXDOMAIN),
    ]);
}

#[test]
fn endpoints_have_names_by_host_name_or_dashed_address() {
    check(&[
        ("db-0.db.default.svc", A, "NOERROR | db-0.db.default.svc.cluster.local. 5 A 172.16.1.7"),
        ("db-2.db.default.svc", A, NXDOMAIN),
        ("db-3.db.default.svc", A, NXDOMAIN),
        ("172-16-1-7.db.default.svc", A, NXDOMAIN),
        (
            "fd00-16--0.db.default.svc",
            AAAA,
            "NOERROR | fd00-16--0.db.default.svc.cluster.local. 5 AAAA fd00:16::",
        ),
        (
            "172-16-3-4.many.default.svc",
            A,
            "NOERROR | 172-16-3-4.many.default.svc.cluster.local. 5 A 172.16.3.4",
        ),
        (
            "172-16-1-5.web.default.svc",
            A,
            "NOERROR | 172-16-1-5.web.default.svc.cluster.local. 5 A 172.16.1.5",
        ),
    ]);
}

#[test]
fn headless_service_records_point_to_endpoints_and_their_own_port() {
    let owner = "_pg._tcp.db.default.svc.cluster.local. 5 SRV 0 33 15432";
    let hosts = ["db-0", "db-1", "fd00-16--0"].map(|h| format!("{h}.db.default.svc.cluster.local."));
    let answer = hosts.clone().map(|h| format!("{owner} {h}")).join(", ");
    let glue =
        format!("{} 5 A 172.16.1.7, {} 5 A 172.16.2.7, {} 5 AAAA fd00:16::", hosts[0], hosts[1], hosts[2]);
    check(&[
        ("_pg._tcp.db.default.svc", SRV, &format!("NOERROR | {answer} |  | {glue}")),
        ("_tcp.db.default.svc", A, NODATA),
        ("_udp.db.default.svc", A, NXDOMAIN),
    ]);
}

#[test]
fn external_names_are_aliases_of_every_type() {
    let ext = "NOERROR | ext.default.svc.cluster.local. 5 CNAME www.example.com.";
    let alias = "extin.default.svc.cluster.local. 5 CNAME web.default.svc.cluster.local.";
    let missing = "extmissing.default.svc.cluster.local. 5 CNAME nope.default.svc.cluster.local.";
    check(&[
        ("ext.default.svc", A, ext),
        ("ext.default.svc", CNAME, ext),
        ("ext.default.svc", MX, ext),
        ("ext.default.svc", ANY, ext),
        (
            "extin.default.svc",
            A,
            &format!("NOERROR | {alias}, web.default.svc.cluster.local. 5 A 10.96.0.10"),
        ),
        ("extin.default.svc", MX, &format!("NOERROR | {alias} | cluster.local. 5 SOA")),
        ("extmissing.default.svc", A, &format!("NXDOMAIN | {missing} | cluster.local. 5 SOA")),
        ("extip.default.svc", A, NXDOMAIN),
        ("extip.default.svc", CNAME, NXDOMAIN),
        ("extloop.default.svc", A, NODATA),
        ("ring-a.default.svc", A, NODATA),
    ]);
}

#[test]
fn the_apex_has_soa_and_name_servers() {
    check(&[
        ("", SOA, "NOERROR | cluster.local. 5 SOA"),
        (
            "",
            NS,
            "NOERROR | cluster.local. 5 NS kube-dns.kube-system.svc.cluster.local. |  | \
             kube-dns.kube-system.svc.cluster.local. 5 A 10.96.0.2",
        ),
        ("ns.dns", A, "NOERROR | ns.dns.cluster.local. 5 A 10.96.0.2"),
        ("ns.dns", AAAA, NODATA),
        ("dns-version", TXT, "NOERROR | dns-version.cluster.local. 28800 TXT \"1.1.0\""),
        ("", ANY, "NOERROR | cluster.local. 5 HINFO \"RFC8482\" \"\""),
        ("web.default.svc", ANY, "NOERROR | web.default.svc.cluster.local. 5 HINFO \"RFC8482\" \"\""),
        ("nope.default.svc", ANY, NXDOMAIN),
    ]);
}

#[test]
fn pod_names_are_answered_in_existing_namespaces() {
    check(&[
        ("172-16-1-5.default.pod", A, "NOERROR | 172-16-1-5.default.pod.cluster.local. 5 A 172.16.1.5"),
        ("fd00--1.default.pod", AAAA, "NOERROR | fd00--1.default.pod.cluster.local. 5 AAAA fd00::1"),
    ]);
}

#[test]
fn reverse_names_lead_to_services_and_headless_endpoints() {
    let v6 = |tail: &str| format!("{tail}.ip6.arpa.");
    let web6 = v6("0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f");
    let db6 = v6("0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.1.0.0.0.0.d.f");
    check(&[
        (
            "10.0.96.10.in-addr.arpa.",
            PTR,
            "NOERROR | 10.0.96.10.in-addr.arpa. 5 PTR web.default.svc.cluster.local.",
        ),
        (
            "7.1.16.172.in-addr.arpa.",
            PTR,
            "NOERROR | 7.1.16.172.in-addr.arpa. 5 PTR db-0.db.default.svc.cluster.local.",
        ),
        (&web6, PTR, &format!("NOERROR | {web6} 5 PTR web.default.svc.cluster.local.")),
        // Outside the configured prefixes, but known.
        (&db6, PTR, &format!("NOERROR | {db6} 5 PTR fd00-16--0.db.default.svc.cluster.local.")),
        (&db6, A, &format!("NOERROR |  | {db6} 5 SOA")),
    ]);
}

#[test]
fn unknown_addresses_of_the_cluster_are_nxdomain_and_inner_names_exist() {
    check(&[
        ("99.0.96.10.in-addr.arpa.", PTR, "NXDOMAIN |  | 96.10.in-addr.arpa. 5 SOA"),
        ("8.2.16.172.in-addr.arpa.", PTR, "NXDOMAIN |  | 16.172.in-addr.arpa. 5 SOA"),
        ("x.10.0.96.10.in-addr.arpa.", PTR, "NXDOMAIN |  | 96.10.in-addr.arpa. 5 SOA"),
        ("10.0.96.10.in-addr.arpa.", A, "NOERROR |  | 96.10.in-addr.arpa. 5 SOA"),
        ("0.96.10.in-addr.arpa.", PTR, "NOERROR |  | 96.10.in-addr.arpa. 5 SOA"),
        ("96.10.in-addr.arpa.", SOA, "NOERROR | 96.10.in-addr.arpa. 5 SOA"),
        ("96.10.in-addr.arpa.", NS, "NOERROR | 96.10.in-addr.arpa. 5 NS ns.dns.cluster.local."),
    ]);
}

#[test]
fn reverse_names_of_other_networks_are_not_ours() {
    for name in [
        "1.1.168.192.in-addr.arpa.",
        "10.in-addr.arpa.",
        "in-addr.arpa.",
        "ip6.arpa.",
        "1.0.112.10.in-addr.arpa.",
        "010.0.96.10.in-addr.arpa.",
        "300.0.96.10.in-addr.arpa.",
        "x.ip6.arpa.",
        "example.com.",
        "notcluster.local.",
        "local.",
        ".",
    ] {
        check(&[(name, PTR, "REFUSED")]);
    }
}

#[test]
fn settings_are_checked() {
    use super::{Zone, ZoneConfig};
    for domain in ["", ".", "a..b", &"x".repeat(64)] {
        let config = ZoneConfig { cluster_domain: domain.to_owned(), ..ZoneConfig::default() };
        let error = Zone::new(config).unwrap_err().to_string();
        assert!(error.contains("write it like cluster.local"), "{error}");
    }
    assert!(Zone::new(ZoneConfig { ttl: 3601, ..ZoneConfig::default() }).is_err());
    let dotted = ZoneConfig { cluster_domain: "Cluster.Local.".to_owned(), ..ZoneConfig::default() };
    assert_eq!(Zone::new(dotted).unwrap().apex().to_string(), Z);
}

#[test]
fn a_stale_snapshot_answers_everything_but_for_a_short_time() {
    use std::sync::Arc;
    use std::time::UNIX_EPOCH;

    use super::{Resolution, View, Zone, ZoneConfig};
    use crate::answer::tests::cluster;
    use crate::wire::Name;

    let zone = Arc::new(Zone::new(ZoneConfig { ttl: 30, ..ZoneConfig::default() }).unwrap());
    for (stale, ttl) in [(false, 30), (true, 5)] {
        let snapshot = netd_model::Snapshot { stale, ..cluster() };
        let view = View::new(Arc::clone(&zone), Arc::new(snapshot), UNIX_EPOCH);
        let resolve = |name: &str| match view.resolve(&Name::parse(name).unwrap(), A, 0) {
            Resolution::Ours(reply) => reply,
            Resolution::Elsewhere | Resolution::Unsynced => panic!("{name} is ours"),
        };
        assert_eq!(resolve("web.default.svc.cluster.local").answer[0].ttl, ttl);
        let missing = resolve("nope.default.svc.cluster.local");
        assert_eq!((missing.code, missing.authority[0].ttl), (crate::wire::rcode::NXDOMAIN, ttl));
    }
}
