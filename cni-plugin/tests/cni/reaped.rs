//! Links that DEL leaves to the daemon.

use std::io::Read;
use std::os::unix::net::UnixListener;

use netd_kernel::netlink::Batch;
use netd_kernel::reap::{self, GROUP};
use serde_json::json;

use super::harness::{Host, Space, error_of, text};

/// Something that takes the daemon's place and deletes nothing by itself.
fn daemon(host: &Host) -> UnixListener {
    host.space.run(reap::listen).unwrap()
}

/// How often the plugin has told the daemon that there is something to delete.
fn calls(daemon: &UnixListener) -> usize {
    std::iter::from_fn(|| daemon.accept().ok())
        .filter(|(stream, _)| {
            let mut said = Vec::new();
            let mut stream: &std::os::unix::net::UnixStream = stream;
            // The plugin has ended, so this does not wait.
            stream.set_nonblocking(false).unwrap();
            stream.read_to_end(&mut said).unwrap() == 1
        })
        .count()
}

/// Links but the bridge, with whether they are up and their alias.
fn links(host: &Host) -> Vec<(bool, String)> {
    let links = host.space.netlink().links().unwrap();
    let pods = links.into_iter().filter(|link| !link.loopback && link.name != "netd0");
    pods.map(|link| (link.up, link.alias.unwrap_or_default())).collect()
}

#[test]
fn with_a_daemon_the_link_is_switched_off_and_left_to_it() {
    let (host, pod) = (Host::new(), Space::new("pod"));
    let daemon = daemon(&host);
    let result = host.add("c1", &pod);
    host.del("c1", pod.path());
    assert_eq!(calls(&daemon), 1);
    assert_eq!(links(&host), [(false, "netd-reap if=eth0 id=c1".to_owned())]);
    assert!(host.leases().is_empty());
    let left = host.leftovers();
    assert_eq!(left.len(), 1, "a neighbour or a lease is left: {left:?}");
    let pod_link = pod.netlink().link("eth0").unwrap().unwrap();
    assert!(!pod_link.carrier, "the pod has its network still");
    let check = error_of(&host.check("c1", &pod, &result));
    assert!(check["msg"].as_str().unwrap().contains("host end"), "{check}");

    // Again and again: nothing new happens, whether the daemon was quick or not.
    host.del("c1", pod.path());
    host.del("c1", "");
    assert_eq!(links(&host).len(), 1);
    host.space.netlink().delete_group(GROUP).unwrap();
    assert!(pod.links().is_empty() && host.leftovers().is_empty());
    host.del("c1", pod.path());
}

#[test]
fn many_links_go_by_one_deletion_and_pods_of_others_stay() {
    let host = Host::new();
    let daemon = daemon(&host);
    let (stays, witness) = (Space::new("pod"), "stays");
    let result = host.add(witness, &stays);
    let pods: Vec<(String, Space)> = (0..5).map(|n| (format!("c{n}"), Space::new("pod"))).collect();
    for (id, pod) in &pods {
        host.add(id, pod);
    }
    for (id, pod) in &pods {
        host.del(id, pod.path());
    }
    assert_eq!((calls(&daemon), links(&host).len()), (5, 6));
    host.space.netlink().delete_group(GROUP).unwrap();
    assert_eq!(links(&host).len(), 1);
    assert!(host.space.netlink().delete_group(GROUP).unwrap_err().is_not_found());
    let check = host.check(witness, &stays, &result);
    assert_eq!(check.status, 0, "{}", text(&check));
}

#[test]
fn strict_delete_waits_for_the_link() {
    let (mut host, pod) = (Host::new(), Space::new("pod"));
    host.config["strictDelete"] = json!(true);
    let daemon = daemon(&host);
    host.add("c1", &pod);
    host.del("c1", pod.path());
    assert_eq!((calls(&daemon), links(&host)), (0, vec![]));
    assert!(host.leftovers().is_empty() && pod.links().is_empty());
}

#[test]
fn the_same_attachment_is_made_again_before_the_daemon_has_deleted_it() {
    let (host, pod) = (Host::new(), Space::new("pod"));
    let _daemon = daemon(&host);
    for _ in 0..3 {
        let result = host.add("c1", &pod);
        let check = host.check("c1", &pod, &result);
        assert_eq!(check.status, 0, "{}", text(&check));
        host.del("c1", pod.path());
    }
    // Another one with the address that was just free, beside the link put aside.
    let other = Space::new("pod");
    host.add("c2", &other);
    let listener = other.listen(&host.leases().iter().next().unwrap().addresses[0].to_string());
    assert!(host.space.connect(&listener).is_ok());
}

#[test]
fn what_a_daemon_did_not_delete_goes_with_the_next_del_or_gc() {
    let (host, pods) = (Host::new(), [Space::new("pod"), Space::new("pod")]);
    for verb in ["DEL", "GC"] {
        let daemon = daemon(&host);
        host.add("c1", &pods[0]);
        host.add("c2", &pods[1]);
        host.del("c1", pods[0].path());
        drop(daemon);
        assert_eq!(links(&host).len(), 2);
        let mut config = host.config.clone();
        config["cni.dev/valid-attachments"] = json!([]);
        let output = host.verb(verb, "c2", pods[1].path(), &config);
        assert_eq!(output.status, 0, "{}", text(&output));
        assert!(host.leftovers().is_empty(), "{verb}: {:?}", host.leftovers());
    }
}

#[test]
fn a_del_killed_after_it_put_the_link_aside_is_completed_by_the_next() {
    for with_daemon in [false, true] {
        let (host, pod) = (Host::new(), Space::new("pod"));
        host.add("c1", &pod);
        let mut netlink = host.space.netlink();
        let name = host.space.links().into_iter().find(|name| name != "netd0").unwrap();
        let index = netlink.link(&name).unwrap().unwrap().index;
        netlink.send(Batch::new().put_aside(index, GROUP, "netd-reap if=eth0 id=c1")).unwrap();
        let daemon = with_daemon.then(|| daemon(&host));
        host.del("c1", pod.path());
        if let Some(daemon) = daemon {
            assert_eq!(calls(&daemon), 1);
            netlink.delete_group(GROUP).unwrap();
        }
        assert!(host.leftovers().is_empty(), "{:?}", host.leftovers());
    }
}

#[test]
fn a_namespace_that_is_deleted_takes_the_link_that_waits_with_it() {
    let (host, pod) = (Host::new(), Space::new("pod"));
    let _daemon = daemon(&host);
    host.add("c1", &pod);
    host.del("c1", pod.path());
    drop(pod);
    let gone = netd_kernel::clock::eventually(std::time::Duration::from_secs(20), || {
        host.leftovers().is_empty().then_some(())
    });
    assert!(gone.is_some(), "{:?}", host.leftovers());
    host.del("c1", "");
}
