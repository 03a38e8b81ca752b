use domain::base::Message;

use super::*;
use crate::answer::tests::{packet, show, with_edns};

#[test]
fn names_are_compressed_and_other_parsers_read_them() {
    let owner = Name::parse("a.very-long-label.example.com").unwrap();
    let target = Name::parse("b.very-long-label.example.com").unwrap();
    let question = &packet("a.Very-Long-Label.example.com", rtype::CNAME)[12..];
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out, 1, [0, 0], question, 512);
    let record = Record { owner: owner.clone(), ttl: 1, data: Data::Cname(target.clone()) };
    assert!(writer.record(Section::Answer, &record));
    let record = Record { owner: target, ttl: 1, data: Data::Ns(owner) };
    assert!(writer.record(Section::Authority, &record));
    writer.finish();
    // Header, question, 2+10+4, 2+10+2.
    assert_eq!(out.len(), 12 + question.len() + 16 + 14);
    let text = show(&out).to_ascii_lowercase();
    let (a, b) = ("a.very-long-label.example.com", "b.very-long-label.example.com");
    assert_eq!(text, format!("noerror | {a} 1 cname {b} | {b} 1 ns {a}"));
}

#[test]
fn a_record_that_does_not_fit_leaves_no_trace() {
    let name = Name::parse("x.example.com").unwrap();
    let question = &packet("example.com", rtype::A)[12..];
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out, 1, [0, 0], question, 12 + question.len() + 16);
    let big = Record { owner: name.clone(), ttl: 1, data: Data::Txt("does not fit at all") };
    assert!(!writer.record(Section::Answer, &big));
    let apex = Name::parse("example.com").unwrap();
    let small = Record { owner: apex, ttl: 1, data: Data::A([192, 0, 2, 1].into()) };
    assert!(writer.record(Section::Answer, &small));
    assert!(!writer.record(Section::Answer, &small));
    writer.finish();
    assert_eq!(show(&out), "NOERROR | example.com 1 A 192.0.2.1");
}

#[test]
fn names_know_their_limits() {
    assert_eq!(Name::parse("a..b").unwrap_err(), NameError::EmptyLabel);
    assert_eq!(Name::parse(&"x".repeat(64)).unwrap_err(), NameError::LongLabel);
    let long = vec!["x".repeat(63); 4].join(".");
    assert_eq!(Name::parse(&long).unwrap_err(), NameError::LongName);
    let longest = format!("{}.{}", vec!["x".repeat(63); 3].join("."), "x".repeat(61));
    let longest = Name::parse(&longest).unwrap();
    assert_eq!(longest.as_wire().len(), 255);
    assert_eq!(longest.child("y").unwrap_err(), NameError::LongName);
    assert_eq!(Name::parse(".").unwrap().to_string(), ".");
}

#[test]
fn within_compares_whole_labels() {
    let zone = Name::parse("cluster.local").unwrap();
    let labels = |text: &str| Name::parse(text).unwrap().within(&zone).map(|l| l.len());
    assert_eq!(labels("cluster.local"), Some(0));
    assert_eq!(labels("a.b.CLUSTER.local"), Some(2));
    assert_eq!(labels("notcluster.local"), None);
    assert_eq!(labels("local"), None);
    // A label that ends with the bytes of the zone's wire format is still one label.
    let tricky = Name::from_labels([&b"x\x07cluster\x05local"[..]]).unwrap();
    assert_eq!(tricky.within(&zone), None);
}

#[test]
fn requests_agree_with_another_parser() {
    let bytes = with_edns(packet("Web.Default.svc.cluster.local", rtype::SRV), 1400, 0);
    let ours = Request::parse(&bytes).unwrap();
    let theirs = Message::from_octets(&bytes[..]).unwrap();
    let question = theirs.sole_question().unwrap();
    assert_eq!(ours.question.name.to_string(), format!("{}.", question.qname()).to_ascii_lowercase());
    assert_eq!(ours.question.qtype, question.qtype().to_int());
    assert_eq!(ours.id, theirs.header().id());
    assert_eq!(ours.edns.unwrap().size, theirs.opt().unwrap().udp_payload_size());
    assert_eq!(ours.udp_limit(), 1232);
}
