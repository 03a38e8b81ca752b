//! The differences that are meant: each has a line in docs/cni.md, section "Differences from the reference plugins".

use super::observe::Facts;

/// Something that is not the same on both sides.
pub(crate) struct Fact<'a> {
    pub(crate) row: &'a str,
    pub(crate) key: &'a str,
    pub(crate) reference: Option<&'a str>,
    pub(crate) ours: Option<&'a str>,
    /// All facts of the reference's side, and of ours.
    pub(crate) all: (&'a Facts, &'a Facts),
}

/// A difference with its name in the document.
pub(crate) struct Difference {
    pub(crate) name: &'static str,
    pub(crate) covers: fn(&Fact<'_>) -> bool,
}

/// The first that covers a fact explains it.
pub(crate) const DIFFERENCES: &[Difference] = &[
    Difference { name: "strict configuration", covers: is_strict },
    Difference { name: "several subnets on a bridge", covers: has_several_subnets },
    Difference {
        name: "default route named twice",
        covers: |fact| fact.row == "a default route named twice",
    },
    Difference { name: "unknown arguments", covers: |fact| fact.row == "an unknown key in CNI_ARGS" },
    Difference { name: "error codes", covers: is_code },
    Difference { name: "failed ADD", covers: is_left_of_a_failed_add },
    Difference {
        name: "macspoofchk",
        covers: |fact| {
            fact.row == "macspoofchk"
                && (fact.key.ends_with(" locked")
                    || fact.key.contains(" neighbour ")
                    || fact.key.ends_with("/arp_notify"))
        },
    },
    Difference {
        name: "MAC of the bridge",
        covers: |fact| fact.key.ends_with("interfaces[0].mac") && fact.ours == Some("the link's own"),
    },
    Difference { name: "order of addresses", covers: is_order },
    Difference {
        name: "redirects",
        covers: |fact| fact.key.ends_with("_redirects") && fact.ours == Some("0"),
    },
    Difference { name: "router advertisements", covers: is_advertisement },
    Difference { name: "duplicate detection", covers: is_detection },
    Difference { name: "keys of routes", covers: is_route_key },
    Difference { name: "mtu", covers: is_mtu },
    Difference { name: "CHECK", covers: is_check },
    Difference { name: "source of a host port's packets", covers: is_port_source },
    Difference {
        name: "route_localnet",
        covers: |fact| fact.key.ends_with("/route_localnet") && fact.ours == Some("0"),
    },
    Difference {
        name: "resolvConf",
        covers: |fact| fact.row == "resolvConf" && fact.key.contains(".dns.") && fact.reference.is_none(),
    },
];

fn is_refused(facts: &Facts, who: &str) -> bool {
    facts.contains_key(&format!("add {who}"))
}

/// Whether a pod was refused by one side alone.
fn outcomes_differ(fact: &Fact<'_>) -> bool {
    ["a", "b"].iter().any(|who| is_refused(fact.all.0, who) != is_refused(fact.all.1, who))
}

fn is_strict(fact: &Fact<'_>) -> bool {
    let rows = ["a negative mtu", "an unknown key", "isDefaultGateway and isGateway false"];
    // What ADD refuses, DEL refuses as well: nothing was made.
    let del = fact.key.starts_with("del ") && fact.ours == Some("fails") && is_refused(fact.all.1, "a");
    rows.contains(&fact.row) && outcomes_differ(fact) || del
}

fn has_several_subnets(fact: &Fact<'_>) -> bool {
    let rows = ["two addresses of one family", "a list of two ranges", "a strange address on the bridge"];
    rows.contains(&fact.row) && outcomes_differ(fact)
}

fn is_code(fact: &Fact<'_>) -> bool {
    fact.key.starts_with("add ") && fact.reference.is_some() && fact.ours.is_some()
}

/// Both refused the pod, and only the reference left something of it; each made the node's part ready as far as it came.
fn is_left_of_a_failed_add(fact: &Fact<'_>) -> bool {
    let refused = |who: &str| is_refused(fact.all.0, who) && is_refused(fact.all.1, who);
    let of =
        |who: &str| fact.key.starts_with(&format!("{who} ")) || fact.key.contains(&format!("port({who})"));
    let of_the_pod = ["a", "b"].iter().any(|who| refused(who) && of(who) && fact.ours.is_none());
    let of_the_bridge = refused("a") && refused("b") && fact.key.starts_with("host ");
    of_the_pod || of_the_bridge
}

fn is_advertisement(fact: &Fact<'_>) -> bool {
    let in_the_pod = fact.key.ends_with("eth0/accept_ra") && fact.ours == Some("0");
    // The bridge takes the frames of its ports before the port's own IP layer could.
    let of_a_port = fact.key.starts_with("host net/ipv6/conf/port(") && fact.key.ends_with("/accept_ra");
    in_the_pod || of_a_port && fact.ours == Some("1")
}

fn is_detection(fact: &Fact<'_>) -> bool {
    fact.key.ends_with("eth0/accept_dad") && fact.ours == Some("1")
}

/// The reference's CHECK fails after an ADD that succeeded; ours does not.
fn is_check(fact: &Fact<'_>) -> bool {
    let words = ["Expected Route", "could not check ipv", "no plugin name provided", "Mac doesn't match"];
    let failing = |text: &str| words.iter().any(|word| text.contains(word));
    fact.key.starts_with("check ") && fact.reference.is_some_and(failing) && fact.ours == Some("succeeds")
}

/// Debian's reference passes over all of these keys; a later one knows `table` and `priority`, and refuses `scope` here.
fn is_route_key(fact: &Fact<'_>) -> bool {
    let told =
        fact.key.contains(" route ") || fact.key.starts_with("check ") || fact.key.contains(".routes[");
    fact.row == "a route with scope" || fact.row.starts_with("a route with ") && told
}

fn is_mtu(fact: &Fact<'_>) -> bool {
    let told = fact.key.starts_with("result") && fact.key.ends_with("].mtu") && fact.reference.is_none();
    told || fact.row == "mtu of an uplink of 1400" && fact.key.ends_with(" mtu")
}

/// The second pod's address, after one that the first wished for.
fn is_order(fact: &Fact<'_>) -> bool {
    let rows = ["args.cni.ips", "runtimeConfig.ips of both families", "wished addresses of two ranges"];
    let keys = ["b address eth0 10.", "b route v4 10.88.", "result b.ips["];
    rows.contains(&fact.row) && keys.iter().any(|key| fact.key.starts_with(key))
}

fn is_port_source(fact: &Fact<'_>) -> bool {
    fact.key.starts_with("reach pod a -> node port") && fact.ours == Some("sees pod a")
}
