//! kube-proxy's configuration and flags, as an operator brings them along.

use std::time::Duration;

use crate::node::{TestNode, netd};

const KUBEADM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/kubeproxy/golden/config.conf");

#[test]
fn kubeadms_file_becomes_a_configuration_that_reads_back_as_itself() {
    let first = netd(&["config", "--config", KUBEADM]).output();
    assert_eq!(first.code, 0, "{}", first.stderr);
    assert!(!first.stdout.contains('#'), "{}", first.stdout);
    for line in ["kind: NetdConfiguration", "kubeconfig: /var/lib/kube-proxy/kubeconfig.conf", "dns: false"] {
        assert!(first.stdout.contains(line), "{line}: {}", first.stdout);
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("netd.yaml");
    std::fs::write(&file, &first.stdout).unwrap();
    let again = netd(&["config", "--config", file.to_str().unwrap()]).output();
    assert_eq!((again.code, again.stdout), (0, first.stdout), "{}", again.stderr);
}

#[test]
fn what_has_no_effect_is_a_comment_and_what_cannot_be_is_refused_with_64() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.conf");
    let path = file.to_str().unwrap();
    let kubeadm = std::fs::read_to_string(KUBEADM).unwrap();
    let text = kubeadm
        .replace("maxPerCore: null", "maxPerCore: 65536")
        .replace("detectLocalMode: \"\"", "detectLocalMode: BridgeInterface");
    let text = text.replace("bridgeInterface: \"\"", "bridgeInterface: cbr0");
    std::fs::write(&file, &text).unwrap();
    let config = netd(&["config", "--config", path]).output();
    assert_eq!(config.code, 0, "{}", config.stderr);
    let note = config.stdout.lines().next().unwrap();
    assert!(note.starts_with("# conntrack.maxPerCore: 65536 has no effect: "), "{}", config.stdout);
    std::fs::write(directory.path().join("netd.yaml"), &config.stdout).unwrap();
    let again = netd(&["config", "--config", directory.path().join("netd.yaml").to_str().unwrap()]).output();
    assert_eq!(again.code, 0, "{}\n{}", again.stderr, config.stdout);
    assert!(again.stdout.contains("cbr0"), "{}", again.stdout);

    std::fs::write(&file, kubeadm.replace("mode: \"\"", "mode: ipvs\nmodes: x")).unwrap();
    let refused = netd(&["config", "--config", path]).output();
    assert!(refused.code == 64 && refused.stderr.contains("modes"), "{}", refused.stderr);
    std::fs::write(&file, kubeadm.replace("mode: \"\"", "mode: ipvs")).unwrap();
    let refused = netd(&["config", "--config", path]).output();
    assert!(refused.code == 64 && refused.stderr.contains("\"ipvs\""), "{}", refused.stderr);
}

#[test]
fn flags_of_kube_proxy_win_over_the_file() {
    let node = TestNode::new("kube-flags");
    let mut daemon = node.start_with_args(&[
        "--proxy-mode",
        "iptables",
        "--masquerade-all",
        "--nodeport-addresses=192.168.1.0/24,10.9.0.0/16",
        "--cluster-cidr=172.16.0.0/16",
        "--metrics-bind-address=127.0.0.1:10250",
        "--hostname-override=n1",
    ]);
    daemon.wait_ready();
    assert!(node.get("127.0.0.1:10250", "/metrics").contains("kubeproxy_"));
    let refused = node.run(
        &["run", "--config", node.config_file(""), "--proxy-mode", "ipvs", "--cluster-cidr", "x"],
        Duration::from_secs(10),
    );
    assert_eq!(refused.code, 64, "{}", refused.stderr);
    for flag in ["--proxy-mode \"ipvs\"", "--cluster-cidr \"x\""] {
        assert!(refused.stderr.contains(flag), "{flag}: {}", refused.stderr);
    }
}
