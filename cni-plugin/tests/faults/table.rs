//! The table of the documentation names tests that exist.

use std::path::{Path, PathBuf};

const TABLE: &str = "docs/design/faults-cni.md";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The names in backquotes of the second column.
fn named(table: &str) -> Vec<(String, String)> {
    let rows = table.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
    let mut all = Vec::new();
    for row in rows {
        let columns: Vec<&str> = row.split(" | ").collect();
        assert!(columns.len() >= 3, "{row}");
        let tests: Vec<&str> = columns[1].split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test in the row {row}");
        for test in tests {
            let (file, name) = test.split_once("::").unwrap_or_else(|| panic!("{test} is not file::test"));
            all.push((file.to_owned(), name.to_owned()));
        }
    }
    all
}

#[test]
fn every_row_of_the_table_names_tests_that_exist() {
    let table = std::fs::read_to_string(root().join(TABLE)).unwrap();
    let all = named(&table);
    for (file, name) in &all {
        let places = ["cni-plugin/tests/cni", "cni-plugin/tests/faults", "crates/ipam/src/ledger"];
        let texts = places
            .iter()
            .filter_map(|place| std::fs::read_to_string(root().join(place).join(format!("{file}.rs"))).ok());
        let test = format!("#[test]\nfn {name}()");
        let indented = format!("#[test]\n    fn {name}()");
        let found = texts.into_iter().any(|text| text.contains(&test) || text.contains(&indented));
        assert!(found, "{TABLE} names {file}::{name}, and there is no such test");
    }
    for experiment in 1..=12 {
        let start = format!("c{experiment:02}_");
        assert!(all.iter().any(|(_, name)| name.starts_with(&start)), "no row for experiment C{experiment}");
    }
    assert!(all.len() > 25, "{}", all.len());
}
