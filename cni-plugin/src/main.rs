//! `netd-cni`: started by the container runtime, once a call. See the library for what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    netd_cni::plugin::main()
}
