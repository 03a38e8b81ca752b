//! What the machine must have before a cluster can be started.

use std::env;
use std::path::PathBuf;

use nix::unistd::Uid;

/// The Debian packages the cluster needs, one a line.
pub const PACKAGES: &str = include_str!("../packages.txt");

/// Programs that are started, with the Debian package each comes from.
const PROGRAMS: [(&str, &str); 9] = [
    ("go", "Go 1.26 or newer (Debian 12 has an older one)"),
    ("etcd", "etcd-server"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
];

/// Returns the names of the Debian packages the cluster needs.
pub fn packages() -> impl Iterator<Item = &'static str> {
    PACKAGES.lines().filter(|line| !line.is_empty())
}

/// Tells whether a cluster can be started on this machine.
///
/// # Errors
/// One line for each thing that is missing, saying how to get it.
pub fn prerequisites() -> Result<(), String> {
    let mut missing: Vec<String> = PROGRAMS
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(program, package)| format!("`{program}` is missing: install {package}"))
        .collect();
    if !Uid::effective().is_root() {
        missing.push("not root: the cluster is built of namespaces and cgroups; run as root".into());
    }
    if !PathBuf::from("/bin/busybox").exists() {
        missing.push("`/bin/busybox` is missing: install busybox-static".into());
    }
    if missing.is_empty() { Ok(()) } else { Err(missing.join("\n")) }
}

/// Returns the path of a program, as the shell would find it.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}
