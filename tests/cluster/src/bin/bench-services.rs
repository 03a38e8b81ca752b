//! `cargo xtask bench services` builds and starts this.

#![expect(clippy::print_stdout, reason = "a command line tool talks to its user")]

use std::env;
use std::process::ExitCode;

use anyhow::Result;
use netd_cluster_tests::{course, inside};

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-services: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> Result<()> {
    match words {
        [first, spec] if first == inside::ARGUMENT => inside::run(spec),
        _ => {
            print!("{}", course::run(&course::Options::parse(words)?)?);
            Ok(())
        }
    }
}
