//! Names of chains and comments.

use netd_model::{
    Affinity, FrontendKey, FrontendKind, ObjectName, PoolEndpoint, PoolId, PoolScope, ServicePortName,
};
use sha2::{Digest, Sha256};

/// What every chain of this backend starts with.
pub(crate) const PREFIX: &str = "NETD-";

/// Entry chain: one rule a frontend address.
pub(crate) const SERVICES: &str = "NETD-SERVICES";
/// One rule a node port; in nat and in filter.
pub(crate) const NODE_PORTS: &str = "NETD-NODEPORTS";
/// Sets the masquerade mark.
pub(crate) const MARK_MASQ: &str = "NETD-MARK-MASQ";
/// Masquerades what is marked.
pub(crate) const POSTROUTING: &str = "NETD-POSTROUTING";
/// Rejects and drops, in filter.
pub(crate) const FIREWALL: &str = "NETD-FIREWALL";
/// Accepts forwarded Service traffic, in filter.
pub(crate) const FORWARD: &str = "NETD-FORWARD";
/// Accepts forwarded pod traffic that no earlier rule decided, in filter.
pub(crate) const PODS: &str = "NETD-PODS";

/// Longest comment that is rendered, in bytes; the kernel's `xt_comment` takes 255.
const COMMENT_MAX: usize = 200;

/// Letters of RFC 4648 base32.
const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// True for chains of this backend, of any version.
pub(crate) fn is_ours(chain: &str) -> bool {
    chain.starts_with(PREFIX)
}

/// 16 letters that stand for `parts`: 80 bits of SHA-256 (kube-proxy's own measure).
fn hash(parts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part.as_bytes());
        digest.update([0]);
    }
    let bytes = digest.finalize();
    let mut name = String::with_capacity(16);
    let (mut buffer, mut bits) = (0_u32, 0_u32);
    for byte in bytes.iter().take(10) {
        buffer = (buffer << 8) | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            let index = usize::try_from((buffer >> bits) & 31).unwrap_or(0);
            name.push(BASE32.get(index).copied().map_or('A', char::from));
        }
    }
    name
}

fn port_hash(kind: &str, port: &ServicePortName, rest: &[&str]) -> String {
    let mut parts =
        vec![kind, &port.service.namespace, &port.service.name, &port.port, port.protocol.lower()];
    parts.extend_from_slice(rest);
    hash(&parts)
}

fn affinity_word(affinity: Option<Affinity>) -> String {
    affinity.map_or_else(String::new, |a| a.timeout.as_secs().to_string())
}

/// The chain by which the Service `owner` chooses an endpoint of a pool.
pub(crate) fn pool_chain(owner: &ObjectName, pool: &PoolId, affinity: Option<Affinity>) -> String {
    let prefix = match pool.scope {
        PoolScope::Cluster => "NETD-SVC-",
        PoolScope::Local => "NETD-SVL-",
    };
    let affinity = affinity_word(affinity);
    let hash = if pool.port.service == *owner {
        port_hash("pool", &pool.port, &[prefix, &affinity])
    } else {
        port_hash("pool", &pool.port, &[prefix, &affinity, &owner.namespace, &owner.name])
    };
    format!("{prefix}{hash}")
}

/// The chain that rewrites to an endpoint; shared by all pools of a Service port.
pub(crate) fn endpoint_chain(
    port: &ServicePortName,
    endpoint: PoolEndpoint,
    affinity: Option<Affinity>,
) -> String {
    let address = endpoint.address.to_string();
    let number = endpoint.port.to_string();
    let sticky = if affinity.is_some() { "sticky" } else { "" };
    format!("NETD-SEP-{}", port_hash("endpoint", port, &[&address, &number, sticky]))
}

const fn side(kind: FrontendKind) -> (&'static str, &'static str) {
    match kind {
        FrontendKind::ClusterIP => ("NETD-INT-", "internal"),
        FrontendKind::NodePort | FrontendKind::LoadBalancer | FrontendKind::ExternalIP => {
            ("NETD-EXT-", "external")
        }
    }
}

/// The chain that tells sources apart: `INT` for the cluster address, one `EXT` for the others of a port.
/// `apart` is empty, or the frontend's key where it has other verdicts than the rest.
pub(crate) fn source_chain(port: &ServicePortName, kind: FrontendKind, apart: &str) -> String {
    let (prefix, side) = side(kind);
    format!("{prefix}{}", port_hash("source", port, &[side, apart]))
}

/// The chain that holds a frontend's source ranges.
pub(crate) fn ranges_chain(port: &ServicePortName, frontend: &FrontendKey) -> String {
    format!("NETD-FW-{}", port_hash("ranges", port, &[&frontend.to_string()]))
}

/// The filter chain that rejects or drops by source; `apart` as in [`source_chain`].
pub(crate) fn refuse_chain(port: &ServicePortName, kind: FrontendKind, apart: &str) -> String {
    let (_, side) = side(kind);
    format!("NETD-REF-{}", port_hash("refuse", port, &[side, apart]))
}

/// Makes any text safe inside a quoted comment: other characters than letters, digits and a few marks become
/// `_`, and length is bounded, so that no name can end the quote or the line.
pub(crate) fn comment(text: &str) -> String {
    text.chars()
        .take(COMMENT_MAX)
        .map(|c| if c.is_ascii_alphanumeric() || " -_.,/:>[]".contains(c) { c } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use netd_model::Protocol;

    use super::*;

    fn port(name: &str) -> ServicePortName {
        ServicePortName {
            service: ObjectName::new("default", "web"),
            port: name.into(),
            protocol: Protocol::Tcp,
        }
    }

    #[test]
    fn chain_names_fit_the_kernel_and_are_stable() {
        let pool = PoolId { port: port("http"), scope: PoolScope::Cluster };
        let name = pool_chain(&pool.port.service, &pool, None);
        assert_eq!(name.len(), 25, "{name}");
        assert_eq!(name, pool_chain(&pool.port.service, &pool, None));
        assert_ne!(name, pool_chain(&ObjectName::new("default", "another"), &pool, None));
        for kind in [FrontendKind::ClusterIP, FrontendKind::NodePort] {
            assert!(source_chain(&port("http"), kind, "").len() <= 28);
            assert!(refuse_chain(&port("http"), kind, "").len() <= 28);
        }
    }

    #[test]
    fn names_of_different_ports_differ() {
        assert_ne!(
            source_chain(&port("a"), FrontendKind::NodePort, ""),
            source_chain(&port("b"), FrontendKind::NodePort, "")
        );
    }

    #[test]
    fn a_comment_cannot_end_its_quote_or_line() {
        let hostile = "x\" -j ACCEPT\nCOMMIT\n*nat\u{0}\\é";
        let safe = comment(hostile);
        assert!(!safe.contains(['"', '\n', '\\', '\0', '*']), "{safe}");
        assert_eq!(comment(&"a".repeat(5000)).len(), COMMENT_MAX);
    }
}
