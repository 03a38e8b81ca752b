//! The cases of the reference's own tests (containernetworking/plugins v1.9.1, containernetworking/cni v1.3.0), and what
//! stands for each of them here. Only their names are quoted.

use std::collections::BTreeSet;
use std::path::Path;

use super::rows::{later_rows, rows};

/// What stands for a case.
enum Ours {
    /// A test of this repository.
    Test(&'static str),
    /// A row of the comparison, which runs on both sides.
    Row(&'static str),
    /// Nothing, and why.
    Nothing(&'static str),
}

use Ours::{Nothing, Row, Test};

const MALFORMED: Ours = Test("a_malformed_call_gets_its_code_and_leaves_nothing");
const NAMES: Ours = Test("what_the_kernel_or_a_path_would_misread_is_refused");
const VARIABLES: Ours = Test("every_verb_wants_its_variables_and_no_others");
const VERSIONS: Ours = Test("a_version_that_is_unknown_or_too_old_for_the_verb_is_code_1");
const GOLDEN: Ours = Test("every_version_has_its_golden_result");
const LIBCNI: Ours = Test("libcni_does_every_verb_with_netd_in_every_version");
const LIST: Ours = Test("libcni_runs_a_list_of_netd_and_the_latest_reference_plugins");
const CHAINS: Ours = Nothing("netd has no iptables chains; host ports are elements of a map");
const GO: Ours = Nothing("about Go's types or the tests' own tools");
const RUNTIME: Ours = Nothing("about libcni alone, whichever plugin it calls");

type Case = (&'static str, Ours);

/// plugins/main/bridge/bridge_test.go
const BRIDGE: &[Case] = &[
    (
        "when provided an empty VLAN trunk configuration",
        Test("vlans_are_told_in_the_reference_plugins_order"),
    ),
    (
        "when provided a VLAN trunk configuration with both min / max range",
        Test("vlans_are_told_in_the_reference_plugins_order"),
    ),
    (
        "when provided a VLAN trunk configuration with id only",
        Test("vlans_are_told_in_the_reference_plugins_order"),
    ),
    (
        "when provided a VLAN trunk configuration with id and range",
        Test("vlans_are_told_in_the_reference_plugins_order"),
    ),
    ("when not passed the maxID", Row("vlanTrunk with one end")),
    ("when not passed the minID", Row("vlanTrunk with the other end")),
    ("when the minID is negative", Row("vlanTrunk negative")),
    ("when the minID is larger than 4094", Row("vlanTrunk too high")),
    ("when the maxID is larger than 4094", Row("vlanTrunk too high")),
    ("when the maxID is negative", Row("vlanTrunk negative")),
    ("when the ID is larger than 4094", Row("vlanTrunk too high")),
    ("when the ID is negative", Row("vlanTrunk negative")),
    ("when the maxID is smaller than minID", Row("vlanTrunk backwards")),
    ("creates a bridge", Row("isGateway")),
    ("handles an existing bridge", Row("a bridge that exists")),
    (
        "configures and deconfigures a bridge and veth with default route with ADD/DEL",
        Row("isDefaultGateway, both families"),
    ),
    ("configures and deconfigures a l2 bridge and veth with ADD/DEL", Row("no addresses")),
    ("configures and deconfigures a l2 bridge with vlan id 100 using ADD/DEL", Row("vlan")),
    ("configures and deconfigures a l2 bridge with vlanTrunk 101,200~210 using ADD/DEL", Row("vlanTrunk")),
    (
        "configures and deconfigures a l2 bridge with vlan 100, and vlanTrunk 101,200~210 using ADD/DEL",
        Row("vlan and vlanTrunk"),
    ),
    (
        "configures and deconfigures a l2 bridge with vlan id 100 and no default vlan using ADD/DEL",
        Row("vlan without the default one"),
    ),
    (
        "configures and deconfigures a bridge, veth with default route and vlanID 100 with ADD/DEL",
        Row("vlan with a gateway"),
    ),
    (
        "configures and deconfigures a bridge, veth with default route and vlanID 100 and no default vlan with ADD/DEL",
        Row("vlan with a gateway"),
    ),
    ("deconfigures an unconfigured bridge with DEL", Test("a_del_succeeds_in_every_state")),
    ("ensure bridge address", Row("an address of the subnet on the bridge")),
    ("ensure promiscuous mode on bridge", Row("promiscMode")),
    ("creates a bridge with a stable MAC addresses", Row("isDefaultGateway")),
    ("uses an explicit MAC addresses for the container iface (from CNI_ARGS)", Row("MAC in CNI_ARGS")),
    ("uses an explicit MAC addresses for the container iface (from Args)", Row("args.cni.mac")),
    ("uses an explicit MAC addresses for the container iface (from RuntimeConfig)", Row("runtimeConfig.mac")),
    ("checks ip release in case of error", Test("an_add_that_fails_leaves_nothing")),
    ("configures a bridge and ipMasq rules with ipMasqBackend %q", Row("ipMasqBackend nftables")),
    (
        "configures and deconfigures a bridge and veth with default route with ADD/DEL/CHECK",
        Row("isDefaultGateway"),
    ),
    ("configures mac spoof-check (no mac spoofing)", Row("macspoofchk")),
    (
        "should fail when both IPAM and DisableContainerInterface are set",
        Row("disableContainerInterface with addresses"),
    ),
    ("should set the container veth peer state down", Row("disableContainerInterface")),
    (
        "when port-isolation is off, should set the veth peer on node with isolation off",
        Row("isDefaultGateway"),
    ),
    (
        "when port-isolation is on, should set the veth peer on node with isolation on",
        Row("portIsolation, no addresses"),
    ),
    ("check vlan id when loading net conf", Row("a vlan that is none")),
];

/// plugins/ipam/host-local: host_local_test.go, dns_test.go, backend/allocator/*_test.go, backend/disk/*_test.go
const HOST_LOCAL: &[Case] = &[
    ("allocates and releases addresses with ADD/DEL", Row("isDefaultGateway, both families")),
    (
        "allocates and releases addresses on specific interface with ADD/DEL",
        Test("two_interfaces_of_a_container_have_an_address_each_and_give_it_back_alone"),
    ),
    (
        "repeat allocating addresses on specific interface for same container ID with ADD",
        Test("two_interfaces_of_a_container_have_an_address_each_and_give_it_back_alone"),
    ),
    (
        "verify DEL works on backwards compatible allocate",
        Test("blanks_in_files_of_host_local_do_not_matter"),
    ),
    ("doesn't error when passed an unknown ID on DEL", Test("a_del_succeeds_in_every_state")),
    ("ignores whitespace in disk files", Test("blanks_in_files_of_host_local_do_not_matter")),
    (
        "does not output an error message upon initial subnet creation",
        Test("an_add_makes_what_its_result_says"),
    ),
    ("allocates a custom IP when requested by config args", Row("args.cni.ips")),
    ("allocates custom IPs from multiple ranges", Row("wished addresses of two ranges")),
    ("allocates custom IPs from multiple protocols", Row("runtimeConfig.ips of both families")),
    ("fails if a requested custom IP is not used", Row("an address outside of the ranges")),
    ("parses a simple resolv.conf file", Test("the_four_settings_are_read")),
    ("ignores comments", Test("the_four_settings_are_read")),
    ("parses all fields", Row("resolvConf of a later reference")),
    ("should loop correctly from the beginning", Test("addresses_go_round_before_one_comes_again")),
    ("should loop correctly from the end", Test("addresses_go_round_before_one_comes_again")),
    ("should loop correctly from the middle", Test("addresses_go_round_before_one_comes_again")),
    ("should allocate ips in round robin", Test("addresses_go_round_before_one_comes_again")),
    ("should not allocate the broadcast address", Test("addresses_go_round_before_one_comes_again")),
    ("should allocate in a round-robin fashion", Test("addresses_go_round_before_one_comes_again")),
    ("must allocate the requested IP", Row("runtimeConfig.ips")),
    ("must fail when the requested IP is allocated", Row("an address wished twice")),
    (
        "must return an error when the requested IP is after RangeEnd",
        Test("a_wished_address_that_no_range_has_is_named"),
    ),
    (
        "must return an error when the requested IP is before RangeStart",
        Test("a_wished_address_that_no_range_has_is_named"),
    ),
    (
        "returns a meaningful error",
        Test("a_full_subnet_names_its_range_and_an_address_given_back_is_given_again"),
    ),
    (
        "should use the first IP of next range as startIP after Next",
        Test("the_next_range_follows_when_one_is_full"),
    ),
    (
        "should use the first IP of the first range as startIP after Next",
        Test("the_next_range_follows_when_one_is_full"),
    ),
    ("Should parse an old-style config", Row("one subnet without lists, all keys")),
    ("Should parse a new-style config", Row("two addresses of one family")),
    ("Should parse a mixed config with runtime args", Row("runtimeConfig.ipRanges")),
    ("Should parse CNI_ARGS env without prefix", Row("IP in CNI_ARGS, wished twice")),
    ("Should parse CNI_ARGS env with prefix", Row("IP with a prefix in CNI_ARGS")),
    ("Should parse config args without prefix", Row("args.cni.ips")),
    ("Should parse config args with prefix", Row("runtimeConfig.ips")),
    ("Should detect overlap between rangesets", Row("ranges that overlap")),
    ("Should detect overlap within rangeset", Row("ranges of one list that overlap")),
    ("should error on rangesets with different families", Row("a list of both families")),
    ("Should should error on too many ranges", Row("two IPv4 ranges in version 0.2.0")),
    ("Should allow one v4 and v6 range for 0.2.0", Row("version 0.2.0, both families")),
    ("Should parse custom IPs from runtime configuration", Row("runtimeConfig.ips of both families")),
    ("should generate sane defaults for ipv4 with a clean prefix", Row("isDefaultGateway")),
    ("should generate sane defaults for a smaller ipv4 subnet", Row("a subnet of one pod")),
    ("should reject ipv4 subnet using a masked address", Row("a subnet with host bits")),
    ("should reject ipv6 subnet using a masked address", Row("an IPv6 subnet with host bits")),
    ("should reject ipv6 prefix with host bit set", Row("an IPv6 subnet with host bits")),
    ("should reject ipv4 network with host bit set", Row("a subnet with host bits")),
    ("should generate sane defaults for ipv6 with a clean prefix", Row("IPv6 alone")),
    ("Should reject a network that's too small", Row("a subnet of two addresses")),
    ("should reject invalid RangeStart and RangeEnd specifications", Row("rangeStart behind rangeEnd")),
    ("should parse all fields correctly", Row("one subnet without lists, all keys")),
    (
        "should accept v4 IPs in range and reject IPs out of range",
        Test("a_wished_address_that_no_range_has_is_named"),
    ),
    (
        "should accept v6 IPs in range and reject IPs out of range",
        Test("a_wished_address_that_no_range_has_is_named"),
    ),
    ("non-overlapping", Row("two addresses of one family")),
    ("different families", Row("isDefaultGateway, both families")),
    ("Identical", Row("the same range twice")),
    ("Containing", Row("ranges that overlap")),
    ("same subnet, non overlapping start + end", Row("two ranges of one subnet")),
    ("same subnet, overlapping start + end", Row("ranges of one list that overlap")),
    ("should detect set membership correctly", Test("the_next_range_follows_when_one_is_full")),
    ("should discover overlaps within a set", Row("ranges of one list that overlap")),
    ("should discover overlaps outside a set", Row("ranges that overlap")),
    ("locks a file path", Test("twenty_adds_at_once_get_twenty_addresses")),
    ("locks a folder path", Test("twenty_adds_at_once_get_twenty_addresses")),
];

/// plugins/meta/portmap/*_test.go
const PORTMAP: &[Case] = &[
    ("creates and destroys a chain", CHAINS),
    ("creates chains idempotently", CHAINS),
    ("deletes chains idempotently", CHAINS),
    ("deletes chains idempotently in parallel", CHAINS),
    ("forwards a TCP port on ipv4", Row("portMappings")),
    (
        "forwards a UDP port on ipv4 and keep working after creating a second container with the same HostPort",
        Test("datagrams_follow_the_port_to_the_new_pod_and_v6_works"),
    ),
    ("generates a correct standard container chain", CHAINS),
    ("generates a correct chain with external mark", CHAINS),
    ("generates a correct top-level chain", CHAINS),
    ("generates the correct mark chains", CHAINS),
    ("generates correct rules", Row("portMappings, tcp and udp, both families")),
    ("has working CHECK", Test("everybody_reaches_the_pod_by_the_nodes_port_until_it_goes")),
    (
        "generates correct rules with masqAll=true for IPv4",
        Nothing("masqAll is no key of netd: the client's address stays"),
    ),
    ("generates correct rules with masqAll=false for IPv4", Row("portMappings")),
    (
        "generates correct rules with masqAll=true for IPv6",
        Nothing("masqAll is no key of netd: the client's address stays"),
    ),
    ("generates correct rules with masqAll=false for IPv6", Row("portMappings, IPv6")),
    (
        "checkPorts validates correct rule count with masqAll",
        Nothing("masqAll is no key of netd: the client's address stays"),
    ),
    ("correctly parses an ADD config", Row("portMappings with hostIP")),
    ("correctly parses a DEL config", Row("portMappings with hostIP")),
    ("fails with invalid mappings", MALFORMED),
    ("defaults to iptables when backend is not specified", CHAINS),
    ("uses nftables if requested", LIST),
    ("allows nftables conditions if nftables is requested", CHAINS),
    ("rejects nftables options with 'backend: iptables'", CHAINS),
    ("rejects iptables options with 'backend: nftables'", CHAINS),
    (
        "does not fail on missing prevResult interface index",
        Test("behind_another_plugin_the_result_has_both"),
    ),
];

/// pkg/skel/skel_test.go
const SKEL: &[Case] = &[
    ("extracts env vars and stdin data and calls cmdAdd", Test("an_add_makes_what_its_result_says")),
    ("returns an error when containerID has invalid characters", NAMES),
    ("interface name is too long", NAMES),
    ("interface name is .", NAMES),
    ("interface name is ..", NAMES),
    ("interface name contains invalid characters /", NAMES),
    ("interface name contains invalid characters :", NAMES),
    ("interface name contains invalid characters whitespace", NAMES),
    ("does not call cmdCheck or cmdDel", Test("an_add_makes_what_its_result_says")),
    ("ADD: required / optional env vars", VARIABLES),
    (
        "ADD: reports that all of them are missing, not just the first",
        Test("all_missing_variables_are_told_at_once"),
    ),
    (
        "infers the config is 0.1.0 and calls the cmdAdd callback",
        Test("a_configuration_without_a_version_is_answered_in_the_first"),
    ),
    ("when the plugin does not support 0.1.0: immediately returns a useful error", VERSIONS),
    ("does not call either callback", VERSIONS),
    ("extracts env vars and stdin data and calls cmdCheck", LIBCNI),
    ("does not call cmdAdd or cmdDel", MALFORMED),
    ("CHECK: required / optional env vars", VARIABLES),
    (
        "CHECK: reports that all of them are missing, not just the first",
        Test("all_missing_variables_are_told_at_once"),
    ),
    ("CHECK: when cniVersion is less than 0.4.0", VERSIONS),
    ("CHECK: when plugin does not support 0.4.0", VERSIONS),
    ("CHECK: when the config has a bad version", VERSIONS),
    ("CHECK: when the config has a bad name", VERSIONS),
    ("CHECK: when the plugin has a bad version", GO),
    (
        "extracts env vars and stdin data and calls cmdGC",
        Test("gc_removes_what_is_not_valid_and_nothing_else"),
    ),
    ("GC: does not call cmdAdd or cmdDel", Test("gc_removes_what_is_not_valid_and_nothing_else")),
    ("GC: required / optional env vars", VARIABLES),
    ("GC: reports that all of them are missing, not just the first", VARIABLES),
    ("GC: when cniVersion is less than 1.1.0", VERSIONS),
    ("GC: when plugin does not support 1.1.0", VERSIONS),
    ("GC: when the config has a bad version", VERSIONS),
    ("GC: when the config has a bad name", VERSIONS),
    ("GC: when the plugin has a bad version", GO),
    ("calls cmdDel with the env vars and stdin data", Test("a_del_succeeds_in_every_state")),
    ("does not call cmdAdd", Test("a_del_succeeds_in_every_state")),
    ("DEL: required / optional env vars", VARIABLES),
    ("prints the version to stdout", Test("version_and_about_are_told")),
    ("VERSION does not need the usual env vars", VARIABLES),
    ("does not read from Stdin", Test("version_wants_nothing_but_its_command")),
    ("does not call any cmd callback", MALFORMED),
    ("returns an error", Test("an_unknown_command_is_code_4_and_no_command_is_a_person")),
    (
        "prints the about string when the command is blank",
        Test("an_unknown_command_is_code_4_and_no_command_is_a_person"),
    ),
    ("prints the about string to stderr", Test("version_and_about_are_told")),
    ("fails if there is no about string", GO),
    (
        "when stdin cannot be read: does not call any cmd callback",
        Test("input_that_cannot_be_read_is_code_5"),
    ),
    ("wraps and returns the error", Test("input_that_cannot_be_read_is_code_5")),
    ("returns the error as-is", Test("an_error_is_written_as_the_spec_says")),
    (
        "when it is an unknown error: wraps and returns the error",
        Test("an_error_is_written_as_the_spec_says"),
    ),
];

/// pkg/types: types_test.go, 020, 040, 100, args_test.go
const TYPES: &[Case] = &[
    ("Parse and stringify: ipv4, ipv6", GOLDEN),
    ("returns an error when given invalid inputs", MALFORMED),
    ("custom IPNet type: marshals and unmarshals to JSON as a string", GOLDEN),
    ("when the json data is not syntactically valid", MALFORMED),
    ("when the json data is not semantically valid", MALFORMED),
    ("custom Route type: marshals and unmarshals to JSON", GOLDEN),
    ("formats as a string with a hex mask", GO),
    ("returns a formatted string", Test("an_error_is_written_as_the_spec_says")),
    ("returns only the message", Test("an_error_is_written_as_the_spec_says")),
    ("NewError method", Test("an_error_is_written_as_the_spec_says")),
    (
        "can create a CNIVersion '' (0.1.0) result",
        Test("a_configuration_without_a_version_is_answered_in_the_first"),
    ),
    ("correctly encodes a 0.2.0 Result", GOLDEN),
    ("correctly encodes a 0.1.0 Result", GOLDEN),
    ("converts a 0.2.0 result to 0.1.0", GOLDEN),
    ("converts a 0.1.0 result to 0.2.0", GOLDEN),
    (
        "creates a 0.1.0 result passing CNIVersion ''",
        Test("a_configuration_without_a_version_is_answered_in_the_first"),
    ),
    ("correctly encodes a 0.3.x Result", GOLDEN),
    ("correctly round-trips a 0.2.0 Result with route gateways", GOLDEN),
    ("correctly round-trips a 0.2.0 Result without route gateways", Row("version 0.2.0")),
    ("correctly marshals and unmarshals interface index 0", Test("as_loopback_it_switches_the_link_on")),
    ("fails when downconverting a config to 0.2.0 that has no IPs", Row("no addresses, version 0.2.0")),
    ("when unmarshalling json fails: returns an error", MALFORMED),
    ("correctly marshals a missing interface index", Test("behind_another_plugin_the_result_has_both")),
    ("correctly encodes a 1.1.0 Result", GOLDEN),
    ("correctly converts a 1.0.0 Result to 1.1.0", GOLDEN),
    ("correctly encodes a 0.4.0 Result", GOLDEN),
    ("string to bool detection should succeed in all cases", GO),
    ("string to string detection should succeed in all cases", GO),
    ("GetKeyField: should return the correct field", GO),
    ("When no arguments are passed", VARIABLES),
    ("When unknown arguments are passed and ignored", Row("a pod's name in CNI_ARGS")),
    ("When unknown arguments are passed and not ignored", Row("an unknown key in CNI_ARGS")),
    ("When known arguments are passed", Row("MAC in CNI_ARGS")),
    ("When known arguments are passed and cannot be unmarshalled", MALFORMED),
];

/// libcni: api_test.go, backwards_compatibility_test.go
const LIBCNI_CASES: &[Case] = &[
    ("adds correct runtime config for capabilities to stdin", LIBCNI),
    ("adds no runtimeConfig when the plugin advertises no used capabilities", LIST),
    ("outputs correct capabilities for validate", RUNTIME),
    ("executes the plugin with command ADD", LIBCNI),
    ("executes the plugin with command CHECK", LIBCNI),
    ("executes the plugin with command DEL", LIBCNI),
    ("executes the plugin with the command VERSION", Test("version_and_about_are_told")),
    ("when finding the plugin fails", RUNTIME),
    ("when the plugin errors: unmarshals and returns the error", Test("libcni_reads_netds_errors")),
    ("when the cache directory cannot be accessed", RUNTIME),
    ("fails as CHECK is not supported before 0.4.0", VERSIONS),
    ("only passes a prevResult to the plugin", LIBCNI),
    ("passes a prevResult to the plugin", LIBCNI),
    ("when the cached result is invalid JSON", RUNTIME),
    ("succeeds when the cached result can be converted", RUNTIME),
    ("deletes the cached result and config after the first DEL", LIBCNI),
    ("does not pass a prevResult to the plugin", LIBCNI),
    ("tolerates the error", Test("a_del_succeeds_in_every_state")),
    ("validates a good configuration", LIBCNI),
    ("catches non-existent plugins", RUNTIME),
    ("catches unsupported versions", VERSIONS),
    ("executes all plugins with command ADD and returns an intermediate result", LIST),
    ("writes the correct cached result", RUNTIME),
    ("when there is an invalid containerID", NAMES),
    ("when there is an invalid networkName", VERSIONS),
    ("return errors when interface name is invalid", NAMES),
    (
        "when the second plugin errors",
        Test("behind_a_plugin_that_made_the_interface_netd_refuses_and_harms_nothing"),
    ),
    ("executes all plugins with command CHECK", LIST),
    ("executes all the plugins in reverse order with command DEL", LIST),
    ("issues a DEL and GC as necessary", LIST),
    ("issues a STATUS request", LIBCNI),
    ("correctly reports an error", Test("libcni_reads_netds_errors")),
    ("when the plugin timeout: returns the timeout error", RUNTIME),
    ("creates separate result cache files for multiple attachments to the same network", RUNTIME),
    ("correctly handles the response from a legacy plugin", Test("a_grant_is_read_in_every_version")),
    (
        "correctly handles the request from a runtime with an older libcni",
        Test("a_configuration_without_a_version_is_answered_in_the_first"),
    ),
];

/// plugins/main/loopback/loopback_test.go
const LOOPBACK: &[Case] = &[
    ("sets the lo device to UP", Test("as_loopback_it_switches_the_link_on")),
    (
        "sets the lo device to DOWN",
        Nothing("DEL leaves the link, which goes with its namespace: other networks may use it"),
    ),
];

/// The names of all tests below a directory: functions with the attribute.
fn tests_below(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            tests_below(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let mut attribute = false;
            for line in text.lines().map(str::trim) {
                if let Some(rest) = line.strip_prefix("fn ").filter(|_| attribute) {
                    names.extend(rest.split('(').next().map(str::to_owned));
                }
                attribute = line == "#[test]" || attribute && line.starts_with("#[");
            }
        }
    }
}

#[test]
fn every_case_of_the_reference_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
    for directory in ["src", "tests"] {
        tests_below(&root.join(directory), &mut tests);
    }
    let rows: BTreeSet<String> = rows().into_iter().chain(later_rows()).map(|row| row.name).collect();
    let files = [BRIDGE, HOST_LOCAL, PORTMAP, SKEL, TYPES, LIBCNI_CASES, LOOPBACK];
    let all: Vec<&Case> = files.into_iter().flatten().collect();
    let missing: Vec<String> = all
        .iter()
        .filter_map(|(case, ours)| match ours {
            Test(name) => (!tests.contains(*name)).then(|| format!("{case}: no test {name}")),
            Row(name) => (!rows.contains(*name)).then(|| format!("{case}: no row {name:?}")),
            Nothing(why) => why.is_empty().then(|| format!("{case}: no reason")),
        })
        .collect();
    println!("{} cases of the reference", all.len());
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(all.len() > 200, "{}", all.len());
}
