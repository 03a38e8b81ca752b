use super::*;
use crate::rule::Target;

const SAVE: &str = include_str!("../../tests/data/iptables-nft-save.txt");
const SAVE_LEGACY: &str = include_str!("../../tests/data/iptables-legacy-save.txt");

#[test]
fn both_variants_print_what_means_the_same() {
    let nft = parse_save(SAVE);
    let legacy = parse_save(SAVE_LEGACY);
    assert_eq!(nft.chains, legacy.chains);
    assert_eq!(nft.jumps.len(), legacy.jumps.len());
    assert_eq!(nft.chains.len(), 3, "{:?}", nft.chains.keys());
}

#[test]
fn rules_of_others_are_kept_out_and_foreign_lines_are_seen() {
    let ruleset = parse_save(SAVE);
    let ours = &ruleset.chains[&ChainKey::new(Table::Filter, "NETD-F")];
    let foreign: Vec<_> = ours.iter().filter(|line| matches!(line, Line::Foreign(_))).collect();
    assert_eq!(foreign.len(), 1, "{ours:?}");
    assert!(!ruleset.chains.keys().any(|key| key.name.starts_with("KUBE")));
    let jump = &ruleset.jumps[0];
    assert_eq!((jump.table, jump.base.as_str()), (Table::Filter, "FORWARD"));
    assert_eq!(jump.line, Line::Rule(Rule::new(Target::Jump("NETD-F".into()))));
}

#[test]
fn tables_of_no_interest_are_passed_over() {
    let text = "*mangle\n:NETD-X - [0:0]\n-A NETD-X -j ACCEPT\nCOMMIT\n";
    assert!(parse_save(text).is_empty());
}
