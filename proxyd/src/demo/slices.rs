//! The EndpointSlices of the demo's Services: on a cluster a controller writes them.

use std::fmt::Write as _;
use std::net::IpAddr;

/// A pod behind the demo's Services.
#[derive(Clone, Debug)]
pub(super) struct Backend {
    /// Pod name.
    pub(super) pod: String,
    /// Node name.
    pub(super) node: String,
    /// Pod address.
    pub(super) address: IpAddr,
}

/// The slices of `web` and `web-pods` with these pods, as YAML.
pub(super) fn yaml(backends: &[Backend], port: u16) -> String {
    let mut text = String::new();
    for service in ["web", "web-pods"] {
        text.push_str(&slice(service, backends, port));
    }
    text
}

fn slice(service: &str, backends: &[Backend], port: u16) -> String {
    let mut text = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-1\n  namespace: default\n  \
         labels: {{kubernetes.io/service-name: {service}}}\naddressType: IPv4\nports:\n  - {{name: http, protocol: TCP, port: {port}}}\n"
    );
    text.push_str(if backends.is_empty() { "endpoints: []\n" } else { "endpoints:\n" });
    for backend in backends {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "  - addresses: [{}]\n    conditions: {{ready: true, serving: true, terminating: false}}\n    hostname: {}\n    \
             nodeName: {}\n    targetRef: {{kind: Pod, namespace: default, name: {}}}\n",
            backend.address, backend.pod, backend.node, backend.pod
        );
    }
    text
}
