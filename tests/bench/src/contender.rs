//! What is compared: chains of plugins, as a container runtime calls them, with configurations that mean the same.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// The container's port of the case with a host port.
const CONTAINER_PORT: u16 = 80;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// netd-cni.
    Netd,
    /// bridge, host-local and portmap.
    Reference,
}

impl Side {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Netd, Self::Reference];

    /// The name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Netd => "netd-cni",
            Self::Reference => "reference",
        }
    }
}

/// What a pod gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Want {
    /// An IPv4 address.
    V4,
    /// An IPv4 and an IPv6 address.
    Dual,
    /// An IPv4 address and a port of the host.
    HostPort,
}

/// One program of a chain.
#[derive(Debug, Clone)]
pub(crate) struct Plugin {
    /// Its path.
    pub(crate) program: PathBuf,
    config: Value,
    maps_ports: bool,
}

impl Plugin {
    /// The bytes for standard input, with what libcni adds to a configuration.
    pub(crate) fn input(&self, previous: Option<&Value>, host_port: Option<u16>) -> Vec<u8> {
        let mut config = self.config.clone();
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        if let (true, Some(port)) = (self.maps_ports, host_port) {
            let mapping = json!({ "hostPort": port, "containerPort": CONTAINER_PORT, "protocol": "tcp" });
            config["runtimeConfig"] = json!({ "portMappings": [mapping] });
        }
        config.to_string().into_bytes()
    }
}

/// Where the programs are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Programs<'a> {
    /// netd-cni.
    pub(crate) netd: &'a Path,
    /// The directory of the reference plugins.
    pub(crate) reference: &'a Path,
}

/// The plugins that give a pod what is wanted, in the order of ADD; their state goes into `data`.
pub(crate) fn chain(side: Side, want: Want, programs: Programs<'_>, data: &Path) -> Vec<Plugin> {
    let mut ranges = vec![json!([{ "subnet": "172.16.0.0/22" }])];
    if want == Want::Dual {
        ranges.push(json!([{ "subnet": "fd00:16::/112" }]));
    }
    match side {
        Side::Netd => vec![netd(want, programs.netd, &ranges, data)],
        Side::Reference => reference(want, programs.reference, &ranges, data),
    }
}

fn netd(want: Want, program: &Path, ranges: &[Value], data: &Path) -> Plugin {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "netd-cni",
        "clusterCIDRs": ["172.16.0.0/22"],
        "ipam": { "type": "netd", "ranges": ranges, "dataDir": data },
    });
    if want == Want::HostPort {
        config["capabilities"] = json!({ "portMappings": true });
    }
    Plugin { program: program.to_owned(), config, maps_ports: true }
}

fn reference(want: Want, directory: &Path, ranges: &[Value], data: &Path) -> Vec<Plugin> {
    let mut routes = vec![json!({ "dst": "0.0.0.0/0" })];
    if want == Want::Dual {
        routes.push(json!({ "dst": "::/0" }));
    }
    let bridge = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "cni0",
        "isGateway": true, "ipMasq": true, "hairpinMode": true,
        "ipam": { "type": "host-local", "ranges": ranges, "routes": routes, "dataDir": data },
    });
    let mut chain = vec![Plugin { program: directory.join("bridge"), config: bridge, maps_ports: false }];
    if want == Want::HostPort {
        let portmap = json!({
            "cniVersion": "1.0.0", "name": "bench", "type": "portmap",
            "snat": true, "capabilities": { "portMappings": true },
        });
        chain.push(Plugin { program: directory.join("portmap"), config: portmap, maps_ports: true });
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_plugin_that_maps_ports_is_told_of_them() {
        let programs = Programs { netd: Path::new("/n"), reference: Path::new("/r") };
        let chain = chain(Side::Reference, Want::HostPort, programs, Path::new("/d"));
        let told = |plugin: &Plugin| {
            let config: Value = serde_json::from_slice(&plugin.input(None, Some(8080))).unwrap();
            config["runtimeConfig"]["portMappings"][0]["hostPort"].as_u64()
        };
        assert_eq!(chain.iter().map(told).collect::<Vec<_>>(), [None, Some(8080)]);
    }
}
