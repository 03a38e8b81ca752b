use std::time::{Duration, UNIX_EPOCH};

use super::*;

#[test]
fn timestamps_are_rfc_3339_and_come_back() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_399, "2000-02-28T23:59:59Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (951_868_800, "2000-03-01T00:00:00Z"),
        (1_763_640_000, "2025-11-20T12:00:00Z"),
        (4_107_542_399, "2100-02-28T23:59:59Z"),
        (4_107_542_400, "2100-03-01T00:00:00Z"),
    ] {
        assert_eq!(Timestamp::from_unix(seconds).to_string(), text);
        assert_eq!(Timestamp::parse(text), Some(Timestamp::from_unix(seconds)));
    }
    assert_eq!(Timestamp::parse("2025-11-20T12:00:00.123456Z"), Some(Timestamp::from_unix(1_763_640_000)));
    for wrong in
        ["", "Z", "2025-11-20", "2025-13-01T00:00:00Z", "1969-12-31T23:59:59Z", "2025-11-20T24:00:00Z"]
    {
        assert_eq!(Timestamp::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn every_day_comes_back_for_400_years() {
    for day in 0..146_097 {
        let noon = Timestamp::from_unix(day * 86_400 + 43_200);
        assert_eq!(Timestamp::parse(&noon.to_string()), Some(noon));
    }
}

#[test]
fn the_head_of_a_document_is_filled_in() {
    let started = UNIX_EPOCH + Duration::from_secs(1000);
    let doc = StateDoc::new("w1", "0.1.0", 42, (started, started + Duration::from_secs(90)));
    assert_eq!((doc.api_version.as_str(), doc.kind.as_str()), ("netd.io/v1alpha1", "NodeState"));
    assert_eq!(doc.uptime_seconds, 90);
}

#[test]
fn documents_of_older_and_newer_daemons_are_read() {
    let doc: StateDoc = serde_json::from_str("{}").unwrap();
    assert_eq!(doc, StateDoc::default());
    let newer = r#"{"apiVersion":"netd.io/v1alpha1","future":{"a":[1]},"parts":{"dns":{"ready":true,"mood":"good"}},
        "dataplane":{"name":"ebpf","maps":{}},"services":[{"namespace":"default","name":"web","type":"ClusterIP"}]}"#;
    let doc: StateDoc = serde_json::from_str(newer).unwrap();
    assert!(doc.parts["dns"].ready);
    assert_eq!(doc.dataplane.unwrap().name, "ebpf");
    assert_eq!(doc.services[0].service_type, "ClusterIP");
}

#[test]
fn field_names_are_camel_case_and_stable() {
    let doc = StateDoc {
        dataplane: Some(DataplaneState { last_apply_ms: Some(1.5), ..DataplaneState::default() }),
        services: vec![ServiceState::default()],
        ..StateDoc::default()
    };
    let value = serde_json::to_value(&doc).unwrap();
    assert_eq!(value["startedAt"], "1970-01-01T00:00:00Z");
    assert_eq!(value["dataplane"]["lastApplyMs"], 1.5);
    assert_eq!(value["services"][0]["type"], "");
    let mut keys: Vec<&String> = value.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(
        keys,
        [
            "apiVersion",
            "dataplane",
            "dns",
            "garbage",
            "ipam",
            "kind",
            "node",
            "nodes",
            "notices",
            "parts",
            "pid",
            "problems",
            "services",
            "source",
            "startedAt",
            "uptimeSeconds",
            "version"
        ]
    );
}
