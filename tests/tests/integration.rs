//! All integration tests with real packets, in one binary that is also their agent and their worker.
//!
//! Needs root: every test that is not run as root fails and says so.

mod cleanup;
mod conformance;
mod harness;
mod increments;
mod restart;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use netd_tests::backend::Kind;
use netd_tests::{bed, worker};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some(bed::AGENT) => return exit_code(netd_lab::agent::main(args.map(Into::into))),
        Some(worker::WORKER) => return worker::main(&args.collect::<Vec<_>>()),
        Some(_) | None => {}
    }
    let arguments = Arguments::from_args();
    if !arguments.list
        && netd_kernel::process::is_root()
        && let Err(error) = bed::remove_leftovers()
    {
        eprintln!("{error:#}");
    }
    let kinds = Kind::of_this_host();
    let beds = Arc::new(conformance::Beds::new(&kinds));
    let mut trials = conformance::trials(&beds);
    trials.extend(cleanup::trials(&kinds));
    trials.extend(restart::trials(&kinds));
    trials.extend(increments::trials(&kinds));
    trials.extend(harness::trials());
    let conclusion = libtest_mimic::run(&arguments, trials);
    beds.close();
    conclusion.exit_code()
}

/// Makes a test out of a function whose errors are told with their causes.
fn trial(name: String, test: impl FnOnce() -> anyhow::Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || {
        if !netd_kernel::process::is_root() {
            return Err(Failed::from(
                "needs root, for network namespaces: run `sudo -E cargo test -p netd-tests`",
            ));
        }
        test().map_err(|error| Failed::from(format!("{error:#}")))
    })
}

fn exit_code(code: i32) -> ExitCode {
    u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
}
