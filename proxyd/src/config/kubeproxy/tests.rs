use std::path::Path;

use super::*;
use crate::config::{Config, DataplaneChoice, LocalPodsChoice, PartsConfig};

/// What kubeadm 1.36 writes into the ConfigMap `kube-proxy` as `config.conf`.
const KUBEADM: &str = include_str!("golden/config.conf");

fn read(text: &str) -> Result<(Config, Vec<String>), Vec<String>> {
    assert_eq!(is_kube_proxys(text), Ok(true));
    convert(serde_saphyr::from_str(text).map_err(|error| vec![error.to_string()])?)
}

fn with(fields: &str) -> Result<(Config, Vec<String>), Vec<String>> {
    read(&format!("apiVersion: {API_VERSION}\nkind: {KIND}\nclusterCIDR: 10.0.0.0/8\n{fields}\n"))
}

#[test]
fn what_kubeadm_writes_works_unchanged_and_without_a_word() {
    let (config, notes) = read(KUBEADM).unwrap();
    assert_eq!(notes, Vec::<String>::new());
    let mut wanted = Config {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        parts: PartsConfig { proxy: true, fabric: false, cni: false, dns: false },
        ..Config::default()
    };
    wanted.source.kubeconfig = Some("/var/lib/kube-proxy/kubeconfig.conf".into());
    assert_eq!(config, wanted);
}

#[test]
fn a_file_that_names_nothing_but_itself_is_that_of_a_cluster_without_pod_prefix() {
    let (config, notes) = read(&format!("apiVersion: {API_VERSION}\nkind: {KIND}\n")).unwrap();
    assert_eq!((config.proxy.local_pods, config.cluster_cidrs), (LocalPodsChoice::None, Vec::new()));
    assert!(notes.len() == 1 && notes[0].contains("clusterCIDR"), "{notes:?}");
}

#[test]
fn fields_with_a_meaning_here_are_taken_over() {
    let (config, notes) = with(
        "
mode: iptables
hostnameOverride: w1
healthzBindAddress: 127.0.0.1
metricsBindAddress: '[::1]:9249'
nodePortAddresses: [192.168.1.0/24, 'fd00::/64']
iptables: {masqueradeBit: 14, masqueradeAll: true, syncPeriod: 1m30s}
bindAddressHardFail: true",
    )
    .unwrap();
    assert_eq!(notes, Vec::<String>::new());
    assert_eq!(config.node_name.as_deref(), Some("w1"));
    assert_eq!(config.proxy.dataplane, DataplaneChoice::Iptables);
    assert_eq!(config.proxy.iptables.masquerade_bit, 14);
    assert!(config.proxy.masquerade_all);
    assert_eq!(config.proxy.node_port_addresses.len(), 2);
    assert_eq!(config.http.health, Some("127.0.0.1:10256".parse().unwrap()));
    assert_eq!(config.http.metrics, Some("[::1]:9249".parse().unwrap()));
    assert_eq!(config.http.health_window_seconds, 180);
    let (config, _) = with("bindAddress: '::'").unwrap();
    assert_eq!(config.http.health, Some("[::]:10256".parse().unwrap()));
    assert_eq!(config.http.metrics, Some("[::1]:10249".parse().unwrap()));
}

#[test]
fn pods_are_told_apart_as_the_file_says() {
    let bridge = LocalPodsChoice::BridgeInterface("cbr0".to_owned());
    let prefix = LocalPodsChoice::InterfaceNamePrefix("cali".to_owned());
    for (fields, wanted) in [
        ("detectLocalMode: ClusterCIDR", LocalPodsChoice::ClusterCidrs),
        ("detectLocalMode: NodeCIDR", LocalPodsChoice::NodeCidrs),
        ("detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cbr0}", bridge),
        ("detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: cali}", prefix),
    ] {
        assert_eq!(with(fields).unwrap().0.proxy.local_pods, wanted, "{fields}");
    }
    for bad in
        ["detectLocalMode: BridgeInterface", "detectLocalMode: InterfaceNamePrefix", "detectLocalMode: X"]
    {
        assert_eq!(with(bad).unwrap_err().len(), 1, "{bad}");
    }
}

#[test]
fn every_field_without_effect_is_named_with_its_value() {
    let (_, notes) = with("
featureGates: {AllowServiceExternalIPs: true}
clientConnection: {qps: 5, burst: 10, contentType: x, acceptContentTypes: y}
logging: {verbosity: 4}
bindAddress: 192.168.1.5
enableProfiling: true
showHiddenMetricsForVersion: '1.35'
iptables: {localhostNodePorts: true, minSyncPeriod: 1s}
ipvs: {syncPeriod: 30s, minSyncPeriod: 1s, scheduler: rr, excludeCIDRs: [10.0.0.0/8], strictARP: true, tcpTimeout: 1s, tcpFinTimeout: 1s, udpTimeout: 1s}
nftables: {masqueradeBit: 14, masqueradeAll: true, syncPeriod: 30s, minSyncPeriod: 1s}
winkernel: {networkName: a, sourceVip: b, enableDSR: true, rootHnsEndpointName: c, forwardHealthCheckVip: true}
oomScoreAdj: -999
conntrack: {maxPerCore: 32768, min: 131072, tcpEstablishedTimeout: 24h0m0s, tcpCloseWaitTimeout: 1h0m0s, tcpBeLiberal: true, udpTimeout: 1s, udpStreamTimeout: 1s}
configSyncPeriod: 15m0s
portRange: 30000-32767
windowsRunAsService: true")
    .unwrap();
    assert_eq!(notes.len(), 39, "{notes:#?}");
    for field in ["conntrack.maxPerCore: 32768", "ipvs.scheduler: \"rr\"", "featureGates: {\"AllowService"] {
        assert!(notes.iter().any(|note| note.starts_with(field)), "{field}: {notes:#?}");
    }
}

#[test]
fn what_cannot_be_is_refused_by_name_all_at_once() {
    let wrong = with(
        "
mode: ipvs
healthzBindAddress: here
metricsBindAddress: 127.0.0.1:0
nodePortAddresses: [primary, 192.168.1.1]
iptables: {syncPeriod: soon}
detectLocalMode: Guess",
    )
    .unwrap_err();
    assert_eq!(wrong.len(), 7, "{wrong:#?}");
    for mode in ["ipvs", "nftables", "kernelspace", "userspace"] {
        let wrong = with(&format!("mode: {mode}")).unwrap_err();
        assert!(wrong.len() == 1 && wrong[0].contains(mode) && wrong[0].contains("iptables"), "{wrong:?}");
    }
    for (unknown, name) in [
        ("modes: iptables", "modes"),
        ("iptables: {masqBit: 1}", "masqBit"),
        ("ipvs: {x: 1}", "x"),
        ("conntrack: {max: 1}", "max"),
    ] {
        assert!(with(unknown).unwrap_err()[0].contains(name), "{unknown}");
    }
    assert!(is_kube_proxys(&KUBEADM.replace("v1alpha1", "v1")).unwrap_err().contains("v1alpha1"));
    assert!(is_kube_proxys(&KUBEADM.replace("KubeProxyC", "KubeletC")).is_err());
}

#[test]
fn flags_win_over_the_file() {
    let mut config = read(KUBEADM).unwrap().0;
    let flags = Flags {
        hostname_override: Some("w2".to_owned()),
        proxy_mode: Some("iptables".to_owned()),
        cluster_cidr: Some("10.1.0.0/16,fd01::/48".to_owned()),
        node_port_addresses: Some(vec!["10.0.0.0/8".to_owned()]),
        masquerade_all: Some(true),
        healthz_bind_address: Some(String::new()),
        metrics_bind_address: Some("0.0.0.0".to_owned()),
        kubeconfig: Some("/k".into()),
    };
    assert_eq!(apply_flags(&mut config, &flags), Vec::<String>::new());
    assert_eq!((config.node_name.as_deref(), config.cluster_cidrs.len()), (Some("w2"), 2));
    assert_eq!(config.proxy.dataplane, DataplaneChoice::Iptables);
    assert_eq!((config.proxy.node_port_addresses.len(), config.proxy.masquerade_all), (1, true));
    assert_eq!((config.http.health, config.http.metrics), (None, Some("0.0.0.0:10249".parse().unwrap())));
    assert_eq!(config.source.kubeconfig.as_deref(), Some(Path::new("/k")));
    let bad = Flags {
        proxy_mode: Some("ipvs".to_owned()),
        cluster_cidr: Some("x,y".to_owned()),
        ..Flags::default()
    };
    assert_eq!(apply_flags(&mut config, &bad).len(), 3);
}
