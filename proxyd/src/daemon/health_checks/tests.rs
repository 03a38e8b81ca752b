use std::collections::BTreeSet;

use netd_model::build::{name, port, service, slice, snapshot};
use netd_model::{Service, TrafficPolicy};

use super::*;

fn with(endpoints: &[&str]) -> Snapshot {
    let mut slices = slice("web").tcp(8080);
    for address in endpoints {
        slices = slices.on("n1", address);
    }
    let web = service("web").cluster_ip("10.96.0.10").tcp(80).vip("203.0.113.10");
    let mut snapshot = snapshot().service(web).slice(slices).build();
    let web = Service {
        external_traffic_policy: TrafficPolicy::Local,
        health_check_node_port: Some(port(32_000)),
        ..(**snapshot.services.get(&name("web")).unwrap()).clone()
    };
    snapshot.services.insert(name("web"), Arc::new(web));
    snapshot
}

#[test]
fn the_body_is_that_of_kube_proxy() {
    let wanted = "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\
                  \"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
    assert_eq!(body(&name("web"), 2, true), wanted);
}

#[test]
fn only_what_changed_is_told() {
    let mut checks = Checks::default();
    let mut told = Wanted::new();
    let web = Dirty::Services(BTreeSet::from([name("web")]));
    let counts = |told: &Wanted| told.values().map(|check| check.local_endpoints).collect::<Vec<_>>();
    checks.update(&with(&["172.16.1.1"]), "n1", &Dirty::All);
    assert!(checks.tell(&mut told));
    assert_eq!(counts(&told), [1]);
    checks.update(&with(&["172.16.1.1"]), "n1", &web);
    checks.update(&with(&["172.16.1.1"]), "n1", &Dirty::All);
    assert!(!checks.tell(&mut told), "nothing changed");
    checks.update(&with(&["172.16.1.1", "172.16.1.2"]), "n1", &web);
    assert!(checks.tell(&mut told));
    assert_eq!(counts(&told), [2]);
    checks.update(&Snapshot::default(), "n1", &web);
    assert!(checks.tell(&mut told) && told.is_empty());
}
