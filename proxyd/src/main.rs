//! netd: Service load balancing, pod routes and cluster DNS of a Kubernetes node, and the tools to look at them.
//!
//! - [`cli`]: the commands, one file each
//! - [`config`]: the configuration file and its flags
//! - [`daemon`]: what `netd run` is composed of
//! - [`demo`]: a cluster of namespaces that shows netd at work

#![forbid(unsafe_code)]

mod cli;
mod config;
mod daemon;
mod demo;
mod logging;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
