//! Measures netd-cni and the reference CNI plugins in one run: `cargo xtask bench cni` builds and starts this.
//!
//! | module | what is in it |
//! |---|---|
//! | [`options`] | the command line |
//! | [`contender`] | what is compared: chains of plugins with their configurations |
//! | [`bed`] | a host namespace with pod namespaces, and the calls in it |
//! | [`daemon`] | netd beside the plugin |
//! | [`course`] | the cases and the order they are run in |
//! | [`trace`] | what a call starts, from strace |
//! | [`probe`] | how much memory a call takes |
//! | [`series`] | the numbers of many calls |
//! | [`machine`] | the machine it runs on, and the stage that goes with the process |
//! | [`report`] | the table and the JSON |

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a command line tool talks to its user")]

mod bed;
mod contender;
mod course;
mod daemon;
mod machine;
mod options;
mod probe;
mod report;
mod series;
mod trace;

use std::process::ExitCode;

use anyhow::Result;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("netd-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|first| first == probe::WORD).is_some() {
        let status = probe::run(arguments)?;
        return Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)));
    }
    let options = options::Options::parse(arguments)?;
    let stage = machine::Stage::set()?;
    let outcome = course::run(&options, &stage)?;
    if options.json {
        println!("{:#}", report::json(&outcome));
    } else {
        print!("{}", report::table(&outcome));
    }
    Ok(ExitCode::SUCCESS)
}
