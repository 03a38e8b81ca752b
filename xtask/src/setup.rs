//! Installs what a fresh Debian machine lacks, and says what it installs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::gates;
use crate::step::{cache, cargo, command, output, run};

/// The target of the static netd-cni.
pub(crate) const MUSL: &str = "x86_64-unknown-linux-musl";
const CARGO_DENY_VERSION: &str = "0.20.2";
/// Programs of the tests and the demo, with the Debian package that has them.
const PACKAGES: &[(&str, &str)] =
    &[("iptables", "iptables"), ("nft", "nftables"), ("ip", "iproute2"), ("cc", "gcc"), ("git", "git")];
/// What the tests compare netd-cni with, beside the above.
const TEST_PACKAGES: &[(&str, &str)] = &[("/usr/lib/cni/host-local", "containernetworking-plugins")];

/// Fails unless the user is root, saying why root is needed.
pub(crate) fn require_root(why: &str) -> Result<()> {
    if nix_uid()? != 0 {
        bail!("{why}: run it as root, e.g. `sudo -E env PATH=$PATH cargo xtask …`");
    }
    Ok(())
}

fn nix_uid() -> Result<u32> {
    let id = output(command("id").arg("-u"))?;
    id.trim().parse().with_context(|| format!("read the user id {id:?}"))
}

/// Installs the Debian packages that are missing.
pub(crate) fn packages() -> Result<()> {
    install(&missing(PACKAGES))
}

/// Installs the Debian packages of the tests that are missing, those of the programs included.
pub(crate) fn test_packages() -> Result<()> {
    install(&[missing(PACKAGES), missing(TEST_PACKAGES)].concat())
}

fn missing(packages: &[(&str, &'static str)]) -> Vec<&'static str> {
    packages.iter().filter(|(program, _)| find(program).is_none()).map(|(_, package)| *package).collect()
}

/// Installs the Debian packages of the cluster tests that are missing.
pub(crate) fn cluster_packages() -> Result<()> {
    let list = gates::read("tests/cluster/packages.txt")?;
    let wanted: Vec<&str> = list
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter(|package| !is_installed(package))
        .collect();
    install(&wanted)
}

fn is_installed(package: &str) -> bool {
    output(command("dpkg-query").args(["-W", "-f", "${Status}", package]))
        .is_ok_and(|status| status.contains("install ok installed"))
}

/// Installs Debian packages with apt-get; nothing to do for an empty list.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if find("apt-get").is_none() {
        bail!("missing: {list}; this machine has no apt-get, install them by its own means");
    }
    require_root(&format!("Debian packages are missing ({list})"))?;
    eprintln!("installing Debian packages: {list}");
    // A service that a package starts by itself (containerd, etcd) would be a foreign actor in the tests.
    let policy = NoAutostart::set()?;
    let result = run(command("apt-get").arg("update").arg("-qq")).and_then(|()| {
        run(command("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(std::io::stderr()))
    });
    drop(policy);
    result
}

/// Keeps packages from starting their services while it lives (Debian's policy-rc.d).
struct NoAutostart(Option<PathBuf>);

impl NoAutostart {
    fn set() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let path = PathBuf::from("/usr/sbin/policy-rc.d");
        if path.exists() {
            return Ok(Self(None));
        }
        std::fs::write(&path, "#!/bin/sh\nexit 101\n")
            .with_context(|| format!("write {}", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .with_context(|| format!("make {} executable", path.display()))?;
        Ok(Self(Some(path)))
    }
}

impl Drop for NoAutostart {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            drop(std::fs::remove_file(path));
        }
    }
}

/// Adds the Rust target of the static plugin.
pub(crate) fn tools() -> Result<()> {
    if find("rustup").is_none() {
        bail!("rustup is missing: netd-cni is built for {MUSL}; install rustup, then run this again");
    }
    let installed = output(command("rustup").args(["target", "list", "--installed"]))?;
    if installed.lines().any(|line| line == MUSL) {
        return Ok(());
    }
    eprintln!("installing the Rust target {MUSL}");
    run(command("rustup").args(["target", "add", MUSL]))
}

/// Where cargo-deny is kept, outside of the work tree.
pub(crate) fn cargo_deny_path() -> PathBuf {
    cache().join("tools/bin/cargo-deny")
}

/// Installs cargo-deny of the pinned version.
pub(crate) fn cargo_deny() -> Result<()> {
    let path = cargo_deny_path();
    if path.exists() && output(command(&path).arg("--version"))?.contains(CARGO_DENY_VERSION) {
        return Ok(());
    }
    eprintln!("installing cargo-deny {CARGO_DENY_VERSION} into {}", cache().join("tools").display());
    run(cargo(&["install", "cargo-deny", "--locked", "--quiet", "--debug", "--version", CARGO_DENY_VERSION])
        .arg("--root")
        .arg(cache().join("tools"))
        .env("CARGO_TARGET_DIR", cache().join("tools/target")))
}

/// The full path of a program, looked for in `PATH` and the system directories.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/go/bin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| is_file(candidate))
}

fn is_file(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
}
