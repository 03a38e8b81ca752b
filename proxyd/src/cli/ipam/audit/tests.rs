use std::convert::Infallible;
use std::path::Path;

use netd_ipam::{Alias, Ledger, Moment, Options, Pod, Pool, Range};
use tempfile::TempDir;

use super::super::node;
use super::*;

fn owner(name: &str) -> Owner {
    Owner { container: name.to_owned(), interface: "eth0".to_owned() }
}

/// Gives these containers an address each of 10.0.0.0/24, the first 10.0.0.2.
fn lease(directory: &Path, network: &str, containers: &[&str]) {
    let now = Moment::now().unwrap();
    let options = Options { directory, network, cool_down: Duration::ZERO, now };
    let mut ledger = Ledger::open(options, || Ok::<_, Infallible>(Vec::new())).unwrap();
    let range = Range::new("10.0.0.0/24".parse().unwrap(), None, None, None).unwrap();
    for name in containers {
        let pod = Pod { namespace: "default".into(), name: format!("pod-{name}"), uid: String::new() };
        ledger.allocate(&owner(name), Some(&pod), &[Pool::new(vec![range]).unwrap()]).unwrap();
    }
}

fn link(network: &str, container: &str, address: &str) -> PodLink {
    let alias = Alias::parse(&format!("netd net={network} ip={address} if=eth0 id={container}")).unwrap();
    PodLink { name: format!("netd{container}"), alias }
}

fn found(directory: &TempDir, links: &[PodLink]) -> Vec<(Kind, String)> {
    let problems = audit(&node::networks(directory.path()).unwrap(), links).problems;
    assert!(problems.iter().all(|problem| !problem.next.is_empty()), "{problems:?}");
    problems.into_iter().map(|p| (p.kind, p.address.map(|a| a.to_string()).unwrap_or_default())).collect()
}

#[test]
fn leases_with_their_links_are_no_problem() {
    let dir = TempDir::new().unwrap();
    lease(dir.path(), "pods", &["a", "b"]);
    let links = [link("pods", "a", "10.0.0.2"), link("pods", "b", "10.0.0.3")];
    let audit = audit(&node::networks(dir.path()).unwrap(), &links);
    assert_eq!((audit.leases, audit.links), (2, 2));
    assert!(audit.problems.is_empty() && audit.notes.is_empty(), "{audit:?}");
}

#[test]
fn a_leak_on_either_side_is_named() {
    let dir = TempDir::new().unwrap();
    lease(dir.path(), "pods", &["a", "b"]);
    let links = [link("pods", "a", "10.0.0.2"), link("pods", "c", "10.0.0.9")];
    let expected =
        [(Kind::LeaseWithoutLink, "10.0.0.3".to_owned()), (Kind::LinkWithoutLease, "10.0.0.9".to_owned())];
    assert_eq!(found(&dir, &links), expected);
}

#[test]
fn a_link_that_has_anothers_address_is_named_with_both() {
    let dir = TempDir::new().unwrap();
    lease(dir.path(), "pods", &["a"]);
    let links = [link("pods", "a", "10.0.0.2"), link("pods", "old", "10.0.0.2")];
    let expected =
        [(Kind::LinkWithoutLease, "10.0.0.2".to_owned()), (Kind::Duplicate, "10.0.0.2".to_owned())];
    assert_eq!(found(&dir, &links), expected);
}

#[test]
fn an_address_that_two_networks_lease_is_a_duplicate() {
    let dir = TempDir::new().unwrap();
    lease(dir.path(), "one", &["a"]);
    lease(dir.path(), "two", &["b"]);
    let links = [link("one", "a", "10.0.0.2"), link("two", "b", "10.0.0.2")];
    assert!(found(&dir, &links).contains(&(Kind::Duplicate, "10.0.0.2".to_owned())));
}

#[test]
fn a_damaged_ledger_is_a_problem_and_its_links_are_not() {
    let dir = TempDir::new().unwrap();
    lease(dir.path(), "pods", &["a"]);
    std::fs::write(Ledger::path_of(dir.path(), "pods"), "torn").unwrap();
    assert_eq!(found(&dir, &[link("pods", "a", "10.0.0.2")]), [(Kind::Ledger, String::new())]);
}

#[test]
fn links_of_a_network_without_a_ledger_are_only_told() {
    let dir = TempDir::new().unwrap();
    let audit = audit(&node::networks(dir.path()).unwrap(), &[link("granted", "a", "10.0.0.2")]);
    assert!(audit.problems.is_empty());
    assert_eq!(audit.notes.len(), 1);
}
