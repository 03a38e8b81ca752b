//! `netd ipam export`: a ledger as lines of JSON, for grep and jq.

use anyhow::{Result, bail};
use netd_ipam::{Lease, Moment, PortMapping};
use serde_json::{Value, json};

use super::ExportArgs;
use super::node::{self, Network};
use crate::cli::{exit, print};
use crate::daemon::require_root;

pub(super) fn export(args: &ExportArgs) -> Result<u8> {
    let config = args.ledgers.config()?;
    require_root("netd ipam export")?;
    let mut networks = node::networks(&config.cni.data_dir)?;
    if let Some(name) = &args.network {
        networks.retain(|network| network.name == *name);
        if networks.is_empty() {
            bail!(
                "network {name} has no ledger in {}; `netd ipam ls` shows those that have",
                config.cni.data_dir.display()
            );
        }
    }
    let now = Moment::now()?.uptime;
    let mut failed = false;
    for network in &networks {
        match lines(network, now) {
            Ok(text) => print::out(&text)?,
            Err(error) => {
                failed = true;
                eprintln!("netd: {error}");
            }
        }
    }
    Ok(if failed { exit::FAILED } else { 0 })
}

/// Releases in their order, then leases in theirs, a line each.
fn lines(network: &Network, now: std::time::Duration) -> Result<String, &netd_ipam::Error> {
    let contents = network.contents.as_ref()?;
    let released = contents.released(now).map(
        |(address, ago)| json!({ "network": network.name, "released": address, "agoSeconds": ago.as_secs() }),
    );
    let leases = contents.leases(now).map(|(lease, held)| {
        let mut line = lease_line(lease);
        line["network"] = json!(network.name);
        line["ageSeconds"] = json!(held.map(|held| held.as_secs()));
        line
    });
    Ok(released.chain(leases).fold(String::new(), |text, line| text + &line.to_string() + "\n"))
}

fn lease_line(lease: &Lease) -> Value {
    let port = |port: &PortMapping| {
        json!({
            "hostPort": port.host_port,
            "containerPort": port.container_port,
            "protocol": format!("{:?}", port.transport).to_lowercase(),
            "hostIP": port.host_ip,
        })
    };
    json!({
        "addresses": lease.addresses,
        "containerID": lease.owner.container,
        "interface": lease.owner.interface,
        "namespace": lease.pod.as_ref().map(|pod| &pod.namespace),
        "pod": lease.pod.as_ref().map(|pod| &pod.name),
        "podUID": lease.pod.as_ref().map(|pod| &pod.uid),
        "bridge": lease.bridge,
        "ports": lease.ports.iter().map(port).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use netd_ipam::{Ledger, Options, Owner, Pool, Range};
    use netd_kernel::conntrack::Transport;

    use super::*;

    #[test]
    fn every_line_is_json_and_a_port_is_told() {
        let dir = tempfile::TempDir::new().unwrap();
        let now = Moment::now().unwrap();
        let uptime = now.uptime;
        let options = Options { directory: dir.path(), network: "pods", cool_down: Duration::ZERO, now };
        let mut ledger = Ledger::open(options, || Ok::<_, Infallible>(Vec::new())).unwrap();
        let range = Range::new("10.0.0.0/24".parse().unwrap(), None, None, None).unwrap();
        let pools = [Pool::new(vec![range]).unwrap()];
        let owner = |name: &str| Owner { container: name.to_owned(), interface: "eth0".to_owned() };
        let host_ip = Some("192.0.2.1".parse().unwrap());
        let ports = [PortMapping { transport: Transport::Udp, host_port: 53, container_port: 5353, host_ip }];
        ledger.allocate(&owner("gone"), None, &pools).unwrap();
        ledger.release(&owner("gone")).unwrap();
        let a = owner("a");
        let request = netd_ipam::Request { ports: &ports, ..netd_ipam::Request::of(&a, None) };
        ledger.allocate_for(&request, &pools).unwrap();
        let networks = node::networks(dir.path()).unwrap();
        let text = lines(&networks[0], uptime).unwrap();
        let parsed: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(parsed.len(), 2, "{text}");
        assert_eq!(parsed[0]["released"], "10.0.0.2");
        assert_eq!(
            (&parsed[1]["addresses"][0], &parsed[1]["containerID"]),
            (&json!("10.0.0.3"), &json!("a"))
        );
        let port = json!({ "hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "192.0.2.1" });
        assert_eq!(parsed[1]["ports"], json!([port]));
    }
}
