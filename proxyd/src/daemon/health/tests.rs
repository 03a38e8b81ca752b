use super::*;

/// A clock that stands still until it is moved.
#[derive(Debug)]
struct Still(Mutex<Instant>);

impl Still {
    fn pass(&self, seconds: u64) {
        *self.0.lock().unwrap() += Duration::from_secs(seconds);
    }
}

impl Clock for Still {
    fn now(&self) -> Instant {
        *self.0.lock().unwrap()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 120_000_000)
    }
}

fn health() -> (Arc<Still>, ProxyHealth) {
    let clock = Arc::new(Still(Mutex::new(netd_kernel::clock::SystemClock.now())));
    let health = ProxyHealth::new("n1".into(), Duration::from_secs(60), Arc::<Still>::clone(&clock));
    (clock, health)
}

fn with_node(leaving: bool) -> Snapshot {
    let mut snapshot = netd_model::build::snapshot().node("n1", &["192.168.1.10"]).build();
    let node = snapshot.nodes.get("n1").unwrap();
    let node = netd_model::Node { leaving, ..(**node).clone() };
    snapshot.nodes.insert("n1".into(), Arc::new(node));
    snapshot
}

#[test]
fn a_change_that_waits_longer_than_the_window_is_unhealthy_until_it_is_in_the_kernel() {
    let (clock, health) = health();
    assert!(health.is_healthy(), "while it starts");
    health.updated();
    clock.pass(3600);
    assert!(health.is_healthy(), "no change, no need to do anything");
    health.queued();
    clock.pass(59);
    assert!(health.is_healthy());
    // A later change does not make the first one young.
    health.queued();
    clock.pass(1);
    assert!(!health.is_healthy() && !health.livez().0 && !health.healthz(None).0);
    health.updated();
    assert!(health.is_healthy() && health.livez().0);
}

#[test]
fn a_leaving_or_deleted_node_fails_healthz_and_not_livez() {
    let (_, health) = health();
    let none = Snapshot::default();
    assert!(health.healthz(None).0 && health.healthz(Some(&none)).0, "a node that never had an object");
    assert!(health.healthz(Some(&with_node(false))).0);
    for gone in [&with_node(true), &none] {
        assert!(!health.healthz(Some(gone)).0);
        assert!(health.livez().0);
    }
    assert!(health.healthz(Some(&with_node(false))).0, "back again");
}

#[test]
fn the_bodies_are_those_of_kube_proxy() {
    let (clock, health) = health();
    let text = |report: &Report| serde_json::to_string(report).unwrap();
    assert_eq!(
        text(&health.livez().1),
        r#"{"lastUpdated":"2023-11-14T22:13:20.12Z","currentTime":"2023-11-14T22:13:20.12Z","healthy":true}"#
    );
    health.queued();
    clock.pass(60);
    assert!(text(&health.livez().1).starts_with(r#"{"lastUpdated":"0001-01-01T00:00:00Z","#));
    health.updated();
    assert_eq!(
        text(&health.healthz(Some(&with_node(true))).1),
        concat!(
            r#"{"lastUpdated":"2023-11-14T22:13:20.12Z","currentTime":"2023-11-14T22:13:20.12Z","#,
            r#""nodeEligible":false,"healthy":true,"status":{"#,
            r#""IPv4":{"lastUpdated":"2023-11-14T22:13:20.12Z","healthy":true},"#,
            r#""IPv6":{"lastUpdated":"2023-11-14T22:13:20.12Z","healthy":true}}}"#
        )
    );
}

#[test]
fn times_are_printed_as_go_does() {
    let at = |seconds, nanos| Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos));
    for (time, text) in [
        (None, "0001-01-01T00:00:00Z"),
        (at(0, 0), "1970-01-01T00:00:00Z"),
        (at(1, 500_000_000), "1970-01-01T00:00:01.5Z"),
        (at(1, 1), "1970-01-01T00:00:01.000000001Z"),
    ] {
        assert_eq!(rfc3339(time), text);
    }
}
