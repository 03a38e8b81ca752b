use std::sync::{Arc, Mutex};

use kube::client::Body;
use serde_json::{Value, json};

use super::*;

fn occurrence() -> Occurrence {
    Occurrence {
        kind: "EndpointSlice".to_owned(),
        namespace: "shop".to_owned(),
        name: "web-abc".to_owned(),
        uid: None,
        reason: "EndpointRefused".to_owned(),
        message: "endpoints[].addresses 127.0.0.1 is loopback".to_owned(),
        node: None,
    }
}

/// Request line and body of each request.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// A writer whose server answers with a status, and what it was asked.
fn writer(code: u16) -> (EventWriter, Asked) {
    let asked = Asked::default();
    let log = Arc::clone(&asked);
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let log = Arc::clone(&log);
        async move {
            let line = format!("{} {}", request.method(), request.uri().path());
            let bytes = request.into_body().collect_bytes().await?;
            log.lock().unwrap().push((line, serde_json::from_slice(&bytes).unwrap()));
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": code,
                "status": "Failure", "message": "m", "reason": "R"});
            let body = if code == 201 { bytes.to_vec() } else { serde_json::to_vec(&status).unwrap() };
            Ok::<_, kube::Error>(http::Response::builder().status(code).body(Body::from(body)).unwrap())
        }
    });
    (EventWriter { client: Client::new(service, "default"), node: "n1".to_owned() }, asked)
}

#[tokio::test]
async fn an_event_is_in_the_objects_namespace_and_says_who_why_and_what() {
    let (writer, asked) = writer(201);
    assert_eq!(writer.post(&occurrence()).await.unwrap(), Posted::Created);
    let node = Occurrence {
        kind: "Node".to_owned(),
        namespace: String::new(),
        name: "n1".to_owned(),
        ..occurrence()
    };
    writer.post(&node).await.unwrap();
    let asked = asked.lock().unwrap();
    let (line, event) = &asked[0];
    assert_eq!(line, "POST /apis/events.k8s.io/v1/namespaces/shop/events");
    assert_eq!(
        event["regarding"],
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "namespace": "shop", "name": "web-abc"})
    );
    for (field, value) in [
        ("reason", "EndpointRefused"),
        ("type", "Warning"),
        ("reportingController", "netd"),
        ("reportingInstance", "n1"),
        ("note", "endpoints[].addresses 127.0.0.1 is loopback"),
    ] {
        assert_eq!(event[field], value, "{event}");
    }
    assert!(event["eventTime"].is_string() && event["action"].is_string(), "{event}");
    assert_eq!(asked[1].0, "POST /apis/events.k8s.io/v1/namespaces/default/events");
}

#[tokio::test]
async fn what_another_node_told_is_known_and_what_may_not_be_told_is_no_error() {
    for (code, wanted) in [(409, Posted::Known), (403, Posted::Forbidden), (404, Posted::Forbidden)] {
        assert_eq!(writer(code).0.post(&occurrence()).await.unwrap(), wanted);
    }
    assert!(writer(500).0.post(&occurrence()).await.is_err());
}

#[test]
fn a_name_follows_from_what_is_told_and_is_valid() {
    let first = event_name(&occurrence());
    assert_eq!(first, event_name(&occurrence()));
    for other in [
        Occurrence { message: "other".to_owned(), ..occurrence() },
        Occurrence { node: Some("n2".to_owned()), ..occurrence() },
    ] {
        assert_ne!(first, event_name(&other));
    }
    let long = Occurrence { name: "a".repeat(199) + "." + &"b".repeat(52), ..occurrence() };
    let name = event_name(&long);
    assert!(name.len() <= 253 && !name.contains(".."), "{name}");
    assert_eq!(cut("äöü", 3), "ä");
}
