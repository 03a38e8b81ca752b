use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::{
    DataplaneState, DnsState, FrontendState, Health, IpamState, KindState, NodeRouteState, NoticeState,
    PartState, PoolState, ProblemState, Refusal, ServiceState, SourceState, StateDoc, Timestamp,
    UpstreamState, exit_code,
};

const NOW: u64 = 1_763_640_000;

fn part(enabled: bool, ready: bool, message: &str) -> PartState {
    PartState { enabled, ready, message: message.into(), since: Some(Timestamp::from_unix(NOW - 11_520)) }
}

fn healthy() -> StateDoc {
    let started = UNIX_EPOCH + Duration::from_secs(NOW - 11_530);
    let now = UNIX_EPOCH + Duration::from_secs(NOW);
    StateDoc {
        parts: [
            ("cni", part(true, true, "")),
            ("dns", part(true, true, "serving cluster.local")),
            ("fabric", part(true, true, "host-gw")),
            ("proxy", part(true, true, "")),
            ("watch", part(true, true, "")),
        ]
        .map(|(name, part)| (name.to_owned(), part))
        .into(),
        source: SourceState {
            kind: "kubernetes".into(),
            location: "https://192.168.1.10:6443".into(),
            synced: true,
            generation: 42,
            last_change: Some(Timestamp::from_unix(NOW - 2)),
            kinds: vec![
                KindState { kind: "Service".into(), objects: 3, synced: true, ..KindState::default() },
                KindState { kind: "EndpointSlice".into(), objects: 4, synced: true, ..KindState::default() },
            ],
            ..SourceState::default()
        },
        dataplane: Some(DataplaneState {
            name: "iptables".into(),
            requested: "auto".into(),
            reason: "the kernel has no BTF".into(),
            generation: 42,
            frontends: 3,
            endpoints: 5,
            rules: Some(61),
            last_apply: Some(Timestamp::from_unix(NOW - 2)),
            last_apply_ms: Some(3.06),
            ..DataplaneState::default()
        }),
        services: some_services(),
        nodes: vec![NodeRouteState { name: "w2".into(), ready: true, ..NodeRouteState::default() }],
        ipam: Some(IpamState {
            pools: vec![PoolState {
                former: false,
                network: "netd".into(),
                range: "172.16.1.0/24".into(),
                used: 12,
                total: 253,
            }],
            ..IpamState::default()
        }),
        dns: Some(DnsState {
            domain: "cluster.local".into(),
            listen: vec!["10.96.0.10:53".into()],
            synced: true,
            upstreams: vec![UpstreamState { address: "192.168.1.1:53".into(), healthy: true }],
            queries: 120,
            forwards: 20,
            ..DnsState::default()
        }),
        ..StateDoc::new("w1", "0.1.0", 4711, (started, now))
    }
}

fn some_services() -> Vec<ServiceState> {
    let frontend = |key: &str, verdict: &str, endpoints: &[&str]| FrontendState {
        key: key.into(),
        kind: "ClusterIP".into(),
        verdict: verdict.into(),
        masquerade: "Hairpin".into(),
        endpoints: endpoints.iter().map(|e| (*e).to_owned()).collect(),
        ..FrontendState::default()
    };
    let four = ["172.16.1.5:8080", "172.16.1.6:8080", "172.16.2.5:8080", "172.16.2.6:8080"];
    let service = |namespace: &str, name: &str, service_type: &str, frontends| ServiceState {
        namespace: namespace.into(),
        name: name.into(),
        service_type: service_type.into(),
        frontends,
    };
    vec![
        service("default", "db", "Headless", vec![]),
        service("default", "idle", "ClusterIP", vec![frontend("10.96.0.11:80/TCP", "Reject", &[])]),
        service(
            "default",
            "web",
            "NodePort",
            vec![
                frontend("10.96.0.10:80/TCP", "Balance", &four),
                frontend("node:30080/TCP", "Balance", &four[..2]),
            ],
        ),
    ]
}

fn degraded() -> StateDoc {
    let mut state = healthy();
    state.source.stale = true;
    if let Some(dataplane) = &mut state.dataplane {
        dataplane.name = "ebpf".into();
        dataplane.companion = Some("iptables".into());
        dataplane.last_error = Some("load program connect4: out of memory".into());
        dataplane.refused = vec![Refusal {
            subject: "default/web node:30080/TCP".into(),
            reason: "NodePort is not supported".into(),
        }];
    }
    state.problems = vec![ProblemState {
        kind: "Service".into(),
        object: "default/b\x1b[31mad".into(),
        message: "port 70000 is out of range: use 1 to 65535".into(),
    }];
    state.notices = vec![NoticeState {
        service: "default/web".into(),
        reason: "ExternalIPIgnored".into(),
        message: "192.0.2.1 is not within allowedExternalIPs".into(),
    }];
    state
}

const PLAIN: Style = Style { color: false, wide: false };

#[test]
fn a_healthy_node_is_one_quiet_screen() {
    assert_eq!(
        status(&healthy(), PLAIN),
        "\
OK
netd 0.1.0 on node w1, pid 4711, up 3h12m

PART     STATE   SINCE   MESSAGE
cni      ready   3h12m   -
dns      ready   3h12m   serving cluster.local
fabric   ready   3h12m   host-gw
proxy    ready   3h12m   -
watch    ready   3h12m   -

SOURCE      kubernetes https://192.168.1.10:6443, synced, generation 42, changed 2s ago (3 Service, 4 EndpointSlice)
DATAPLANE   iptables (requested auto: the kernel has no BTF), generation 42, 3 frontends, 5 endpoints, 61 rules, applied 2s ago in 3.1 ms
SERVICES    3 services, 3 frontends, 1 without endpoints
NODES       1 of 1 routed
PODS        12 of 253 addresses in 172.16.1.0/24
DNS         cluster.local on 10.96.0.10:53, 120 queries, 0 failed, upstreams 192.168.1.1:53, 20 forwarded
"
    );
}

#[test]
fn a_degraded_node_says_why_and_control_characters_do_not_pass() {
    let text = status(&degraded(), PLAIN);
    assert!(text.starts_with(
        "DEGRADED: the last change is not applied; 1 frontend or feature not programmed; the source is not \
         reachable, serving the last known state; 1 object refused\n"
    ));
    for line in [
        "DATAPLANE   ebpf + iptables (requested auto: the kernel has no BTF), generation 42,",
        "\n            last error: load program connect4: out of memory\n",
        "\n            not programmed: default/web node:30080/TCP: NodePort is not supported\n",
        ", stale (last known state), generation 42",
        "\nPROBLEMS\n  Service default/b?[31mad: port 70000 is out of range: use 1 to 65535\n",
        "\nNOTICES\n  default/web ExternalIPIgnored: 192.0.2.1 is not within allowedExternalIPs\n",
    ] {
        assert!(text.contains(line), "{line}\nmissing in\n{text}");
    }
    assert!(!text.contains('\x1b'));
}

#[test]
fn long_lists_are_cut_unless_wide() {
    let mut state = healthy();
    state.problems =
        (0..13).map(|n| ProblemState { object: format!("p{n}"), ..ProblemState::default() }).collect();
    let text = status(&state, PLAIN);
    assert!(text.contains("p9") && !text.contains("p10"));
    assert!(text.ends_with("  and 3 more: netd status -o wide\n"));
    assert!(status(&state, Style { wide: true, ..PLAIN }).contains("p12"));
}

#[test]
fn an_empty_document_renders() {
    let text = status(&StateDoc::default(), PLAIN);
    assert!(text.starts_with("OK\nnetd  on node <unknown>, pid 0, up 0s\n"), "{text}");
}

#[test]
fn colours_are_used_on_request_only() {
    let color = Style { color: true, wide: false };
    let text = status(&degraded(), color);
    assert!(text.starts_with("\x1b[33mDEGRADED\x1b[0m: "), "{text}");
    assert!(text.contains("\x1b[32mready\x1b[0m"));
    let strip = |text: &str| {
        ["1", "31", "32", "33", "0"]
            .iter()
            .fold(text.to_owned(), |text, code| text.replace(&format!("\x1b[{code}m"), ""))
    };
    assert_eq!(strip(&text), status(&degraded(), PLAIN), "columns stand where they stand without colours");
    assert_eq!(Style::for_output(true, false, false), color);
    assert_eq!(Style::for_output(true, true, false), PLAIN);
    assert_eq!(Style::for_output(false, false, false), PLAIN);
}

#[test]
fn services_are_listed_by_frontend() {
    assert_eq!(
        services(&some_services(), PLAIN),
        "\
NAMESPACE   NAME   TYPE        FRONTEND            ENDPOINTS                                                  VERDICT
default     db     Headless    <none>              <none>                                                     <none>
default     idle   ClusterIP   10.96.0.11:80/TCP   <none>                                                     Reject
default     web    NodePort    10.96.0.10:80/TCP   172.16.1.5:8080,172.16.1.6:8080,172.16.2.5:8080 + 1 more   Balance
default     web    NodePort    node:30080/TCP      172.16.1.5:8080,172.16.1.6:8080                            Balance
"
    );
    assert_eq!(services(&[], PLAIN), "No services found.\n");
}

#[test]
fn wide_lists_all_endpoints_and_more_columns() {
    let text = services(&some_services(), Style { wide: true, color: false });
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(header[6..], ["PORT", "KIND", "MASQUERADE", "AFFINITY", "SOURCES"]);
    assert!(text.contains("172.16.2.5:8080,172.16.2.6:8080"));
    assert!(text.lines().all(|line| line.split_whitespace().count() == 11));
}

#[test]
fn ages_have_at_most_two_units() {
    for (seconds, text) in [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (600, "10m"),
        (10_799, "179m"),
        (10_800, "3h"),
        (11_520, "3h12m"),
        (28_800, "8h"),
        (172_800, "2d"),
        (180_000, "2d2h"),
        (10_000_000, "115d"),
    ] {
        assert_eq!(age(seconds), text);
    }
}

#[test]
fn exit_codes_follow_health() {
    assert_eq!((exit_code(&healthy(), false), exit_code(&healthy(), true)), (0, 0));
    assert_eq!((exit_code(&degraded(), false), exit_code(&degraded(), true)), (0, 3));
    let mut down = degraded();
    down.parts.insert("dns".into(), part(true, false, "port 53 is taken"));
    assert_eq!(down.health(), Health::Down);
    assert_eq!((exit_code(&down, false), exit_code(&down, true)), (1, 1));
    assert!(status(&down, PLAIN).starts_with("DOWN: dns is not ready; "));
    let mut off = healthy();
    off.parts.insert("dns".into(), part(false, false, ""));
    assert_eq!(exit_code(&off, true), 0, "a part that is switched off is no failure");
    assert!(status(&off, PLAIN).contains("dns      off     3h12m   -"));
}
