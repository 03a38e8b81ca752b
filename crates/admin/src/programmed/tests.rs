use std::time::Duration;

use netd_model::build::{node_view, service, slice, snapshot};
use netd_model::plan;

use super::*;

#[test]
fn services_show_what_the_plan_makes_of_them() {
    let snapshot = snapshot()
        .service(
            service("web")
                .cluster_ip("10.96.0.10")
                .tcp(80)
                .node_port(30080)
                .affinity(Duration::from_secs(60)),
        )
        .slice(slice("web").tcp(8080).on("w1", "172.16.1.5").on("w2", "172.16.2.5"))
        .service(service("idle").cluster_ip("10.96.0.11").tcp(80))
        .service(service("db").headless().tcp(5432))
        .service(service("ext").external_name("example.com"))
        .service(service("local").cluster_ip("10.96.0.12").tcp(80).node_port(30081).external_local())
        .slice(slice("local").tcp(8080).on("w2", "172.16.2.6"))
        .build();
    let plan = plan(&snapshot, &node_view("w1"));
    let states = services(&snapshot, &plan);
    let names: Vec<(&str, &str)> =
        states.iter().map(|s| (s.name.as_str(), s.service_type.as_str())).collect();
    assert_eq!(
        names,
        [
            ("db", "Headless"),
            ("ext", "ExternalName"),
            ("idle", "ClusterIP"),
            ("local", "NodePort"),
            ("web", "NodePort")
        ]
    );
    assert!(states[0].frontends.is_empty() && states[1].frontends.is_empty());
    assert_eq!(states[2].frontends[0].verdict, "Reject");
    let web = &states[4].frontends;
    assert_eq!(web[0].key, "10.96.0.10:80/TCP");
    assert_eq!(web[0].kind, "ClusterIP");
    assert_eq!(web[0].masquerade, "Hairpin");
    assert_eq!(web[0].endpoints, ["172.16.1.5:8080", "172.16.2.5:8080"]);
    assert_eq!(web[0].affinity_seconds, Some(60));
    assert_eq!((web[1].key.as_str(), web[1].masquerade.as_str()), ("node:30080/TCP", "Always"));
    let local = &states[3].frontends[1];
    assert_eq!(local.verdict, "Drop (host: Balance)");
}

#[test]
fn masquerade_tells_the_sources_for_which_it_differs() {
    let snapshot = snapshot()
        .service(service("web").cluster_ip("10.96.0.10").tcp(80))
        .slice(slice("web").tcp(8080).on("w1", "172.16.1.5"))
        .build();
    let prefixes = LocalPods::Prefixes(vec!["172.16.0.0/16".parse().unwrap()]);
    let view = netd_model::NodeView { local_pods: prefixes, ..node_view("w1") };
    let plan = plan(&snapshot, &view);
    let web = &services(&snapshot, &plan)[0].frontends[0];
    assert_eq!((web.verdict.as_str(), web.masquerade.as_str()), ("Balance", "Always (pod: Hairpin)"));
}
