//! Every row on both sides, and the list of differences beside the document's.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::differences::{DIFFERENCES, Fact};
use super::observe;
use super::rows::{Row, rows};
use super::world::{DEBIAN, Side, World};

/// More at once than the machine has cores: the reference mostly waits for the kernel.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).saturating_mul(2).min(8)
}

/// Differences of one row: those of the list by their number, and all others in words.
fn compare(row: &Row, reference: &Side) -> (Vec<usize>, Vec<String>) {
    let (theirs, ours) =
        (observe::run(row, &World::new(reference)), observe::run(row, &World::new(&Side::Ours)));
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    let keys: std::collections::BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
    for key in keys {
        let (a, b) = (theirs.get(key), ours.get(key));
        if a == b {
            continue;
        }
        let fact = Fact {
            row: &row.name,
            key,
            reference: a.map(String::as_str),
            ours: b.map(String::as_str),
            all: (&theirs, &ours),
        };
        match DIFFERENCES.iter().position(|difference| (difference.covers)(&fact)) {
            Some(number) => known.push(number),
            None => unknown.push(format!("{}: {key}: reference {a:?}, netd {b:?}", row.name)),
        }
    }
    (known, unknown)
}

/// What was seen of all rows.
#[derive(Default)]
pub(crate) struct Seen {
    /// How often each known difference was.
    counts: Vec<usize>,
    unknown: Vec<String>,
}

/// Runs the rows, some at once; `PARITY_ROW` in the environment chooses one.
pub(crate) fn run(rows: Vec<Row>, reference: &Side) -> Seen {
    let only = std::env::var("PARITY_ROW").ok();
    let rows: Vec<Row> =
        rows.into_iter().filter(|row| only.as_ref().is_none_or(|name| *name == row.name)).collect();
    let seen = Mutex::new(Seen { counts: vec![0; DIFFERENCES.len()], unknown: Vec::new() });
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..workers() {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (known, unknown) = compare(row, reference);
                    let mut seen = seen.lock().unwrap();
                    known.into_iter().for_each(|number| seen.counts[number] += 1);
                    seen.unknown.extend(unknown);
                }
            });
        }
    });
    let mut seen = seen.into_inner().unwrap();
    seen.unknown.sort();
    println!("{} rows; {} documented differences seen", rows.len(), seen.counts.iter().sum::<usize>());
    let unknown = &seen.unknown;
    assert!(
        unknown.is_empty(),
        "{} differences that docs/cni.md does not know:\n{}",
        unknown.len(),
        unknown.join("\n")
    );
    seen
}

#[test]
fn the_same_configuration_gives_the_same_network_but_for_the_documented_differences() {
    let rows = rows();
    assert!(rows.len() >= 100, "{} rows", rows.len());
    let counts = run(rows, &Side::Reference(PathBuf::from(DEBIAN))).counts;
    let unused: Vec<&str> =
        DIFFERENCES.iter().zip(counts).filter(|(_, count)| *count == 0).map(|(d, _)| d.name).collect();
    let all = std::env::var_os("PARITY_ROW").is_none();
    assert!(!all || unused.is_empty(), "differences that no row shows any more: {unused:?}");
}

#[test]
fn the_document_has_a_line_for_every_difference() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cni.md");
    let text = std::fs::read_to_string(path).unwrap();
    let section = text.split("\n## ").find(|part| part.starts_with("Differences from the reference plugins"));
    let rows =
        section.expect("docs/cni.md has no such section").lines().filter(|line| line.starts_with("| "));
    let mut told: Vec<&str> = rows.skip(1).map(|row| row.split('|').nth(1).unwrap().trim()).collect();
    let mut known: Vec<&str> = DIFFERENCES.iter().map(|difference| difference.name).collect();
    told.sort_unstable();
    known.sort_unstable();
    assert_eq!(told, known);
}
