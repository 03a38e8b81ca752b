use super::*;

fn parse(text: &str) -> Option<Rule> {
    parse_rule(&split_words(text))
}

fn round_trip(rule: &Rule) {
    let text = rule.to_string();
    assert_eq!(parse(&text).as_ref(), Some(rule), "{text}");
}

#[test]
fn every_kind_of_rule_is_read_back_as_it_was_rendered() {
    let states = BTreeSet::from([State::Related, State::Established]);
    let port = NonZeroU16::new(80).unwrap();
    let list = "NETD-SEP-AAAAAAAAAAAAAAAA".to_owned();
    let rules = [
        Rule::jump("NETD-SVC-X")
            .destination_ip("10.0.0.1".parse().unwrap())
            .protocol(Protocol::Tcp)
            .note("default/web:http cluster address")
            .when(Match::Port(port)),
        Rule::new(Target::Drop).source("2001:db8::/32".parse().unwrap()).protocol(Protocol::Sctp),
        Rule::new(Target::Dnat("[2001:db8::1]:8080".parse().unwrap())).protocol(Protocol::Udp),
        Rule::new(Target::Return).when(Match::Mark { value: 0x1000, mask: 0x1000, invert: true }),
        Rule::new(Target::SetMark { value: 0x1000, mask: 0 }),
        Rule::jump("X").not_source("172.16.0.0/16".parse().unwrap()).protocol(Protocol::Tcp),
        Rule::new(Target::Accept).when(Match::SameAddress(Family::V4)),
        Rule::new(Target::Accept).when(Match::SameAddress(Family::V6)),
        Rule::new(Target::Masquerade { fully_random: true }),
        Rule::new(Target::Goto("NETD-REF-X".into())).source("10.1.0.0/16".parse().unwrap()),
        Rule::new(Target::Accept).when(Match::State(states)),
        Rule::jump("X").when(Match::RecentCheck { list: list.clone(), seconds: 10800 }),
        Rule::jump("X").when(Match::RecentSet { list }),
        Rule::jump("X").when(Match::SourceLocal).when(Match::DestinationLocal),
        Rule::new(Target::Reject(RejectWith::TcpReset)).protocol(Protocol::Tcp),
        Rule::new(Target::Reject(RejectWith::Icmp6)).protocol(Protocol::Udp),
    ];
    for rule in &rules {
        round_trip(rule);
    }
    for n in 1..2000 {
        round_trip(&Rule::jump("X").when(Match::Random(Chance::one_in(n))));
    }
}

#[test]
fn what_the_tools_print_differently_means_the_same() {
    let cases = [
        (
            "-m statistic --mode random --probability 0.33333333349 -j X",
            "-m statistic --mode random --probability 0.3333333335 -j X",
        ),
        (
            "-p tcp -m recent --set --name L --mask 255.255.255.255 --rsource -m tcp -j X",
            "-p tcp -m recent --name L --set --rsource -j X",
        ),
        (
            "-m recent --rcheck --seconds 9 --reap --name L --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -j X",
            "-m recent --rcheck --seconds 9 --reap --name L --rsource -j X",
        ),
        ("-m comment --comment word -j X", "-m comment --comment \"word\" -j X"),
        ("-d 10.0.0.1 -j X", "-d 10.0.0.1/32 -j X"),
        ("-s 0.0.0.0/0 -j X", "-j X"),
        ("-p 132 -j X", "-p sctp -j X"),
        (
            "-m conntrack --ctstate ESTABLISHED,RELATED -j X",
            "-m conntrack --ctstate RELATED,ESTABLISHED -j X",
        ),
    ];
    for (left, right) in cases {
        assert!(parse(left).is_some(), "{left}");
        assert_eq!(parse(left), parse(right), "{left}");
    }
}

#[test]
fn what_we_never_render_is_not_understood() {
    for text in [
        "! -d 10.0.0.1/32 -j ACCEPT",
        "! -s 0.0.0.0/0 -j ACCEPT",
        "-m bpf --bytecode \"1,6 0 0 65535\" -j ACCEPT",
        "-m bpf --object-pinned /x -j ACCEPT",
        "-m limit --limit 3/sec -j ACCEPT",
        "-p icmp -j ACCEPT",
        "-j LOG --log-prefix x",
        "-j",
        "-m tcp --dport 80 -j X",
        "-p tcp -m tcp --dport 0 -j X",
        "-m recent --set --name L --mask 255.255.255.0 --rsource -j X",
        "",
    ] {
        assert_eq!(parse(text), None, "{text}");
    }
}

#[test]
fn quotes_and_backslashes_are_undone() {
    assert_eq!(split_words(r#"-m comment --comment "a \"b\" \\ c" -j X"#)[3], r#"a "b" \ c"#);
    assert_eq!(split_words("a  b "), ["a", "b"]);
    assert_eq!(split_words("--comment \"\" x"), ["--comment", "", "x"]);
}
