//! The programs a cluster is made of, and where they come from.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use anyhow::{Context, Result, bail};

use crate::run::Run;
use crate::tool::output;

/// The Kubernetes release the tests run on.
pub const KUBERNETES_VERSION: &str = "v1.36.3";

const COMMANDS: [&str; 6] =
    ["kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubelet", "kubectl"];

/// Paths of all programs.
#[derive(Debug, Clone)]
pub struct Binaries {
    kubernetes: PathBuf,
    own: PathBuf,
    netd: PathBuf,
}

impl Binaries {
    /// Finds or builds every program. The first build of Kubernetes takes minutes and is cached outside the
    /// work tree.
    ///
    /// # Errors
    /// When something cannot be built.
    pub fn prepare(run: &Run) -> Result<Binaries> {
        Ok(Binaries { kubernetes: kubernetes()?, own: build_own(run)?, netd: netd_dir()? })
    }

    /// A program of Kubernetes.
    #[must_use]
    pub fn kubernetes(&self, name: &str) -> String {
        self.kubernetes.join(name).display().to_string()
    }

    /// `probe` or `kit`.
    #[must_use]
    pub fn own(&self, name: &str) -> String {
        self.own.join(name).display().to_string()
    }

    /// `netd` or `netd-cni`.
    #[must_use]
    pub fn netd(&self, name: &str) -> PathBuf {
        self.netd.join(name)
    }
}

/// Builds the Kubernetes programs unless they are in the cache; returns their directory.
///
/// The cache is `$NETD_CACHE` (or `~/.cache/netd`) `/k8s/VERSION/KEY`, the key being of go.mod and go.sum.
///
/// # Errors
/// When the build fails.
pub fn kubernetes() -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s");
    let dir = cache_dir()?.join("k8s").join(KUBERNETES_VERSION).join(key(&source)?);
    if dir.exists() {
        return Ok(dir);
    }
    eprintln!("building Kubernetes {KUBERNETES_VERSION} into {} (once; takes minutes)", dir.display());
    // Built beside and renamed, so that a killed build leaves nothing that looks whole.
    let fresh = dir.with_extension(format!("new-{}", process::id()));
    fs::create_dir_all(&fresh)?;
    let packages = COMMANDS.iter().map(|name| format!("k8s.io/kubernetes/cmd/{name}"));
    let built = output(
        Command::new("go")
            .current_dir(&source)
            .env("CGO_ENABLED", "0")
            .args(["build", "-trimpath", "-ldflags", &ldflags(), "-o"])
            .arg(&fresh)
            .args(packages),
    );
    if let Err(error) = built {
        fs::remove_dir_all(&fresh)?;
        return Err(error.context("build Kubernetes"));
    }
    match fs::rename(&fresh, &dir) {
        // Another process was quicker.
        Err(_) if dir.exists() => fs::remove_dir_all(&fresh)?,
        other => other.with_context(|| format!("rename to {}", dir.display()))?,
    }
    Ok(dir)
}

/// Without these the server calls itself v0.0.0, and clients refuse it.
fn ldflags() -> String {
    let minor = KUBERNETES_VERSION.split('.').nth(1).unwrap_or_default();
    let values = [
        ("gitVersion", KUBERNETES_VERSION),
        ("gitMajor", "1"),
        ("gitMinor", minor),
        ("gitTreeState", "clean"),
    ];
    values.iter().fold(String::from("-s -w"), |flags, (name, value)| {
        format!("{flags} -X k8s.io/component-base/version.{name}={value}")
    })
}

fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("NETD_CACHE") {
        return Ok(dir.into());
    }
    let home = env::var_os("HOME").context("neither NETD_CACHE nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/netd"))
}

fn key(source: &Path) -> Result<String> {
    let sums = output(Command::new("sha256sum").current_dir(source).args(["go.mod", "go.sum"]))?;
    let part = |sum: &str| sum.chars().take(12).collect::<String>();
    Ok(sums.lines().map(part).collect::<Vec<_>>().join("-"))
}

/// Builds `probe` and `kit`; Go's own cache makes this quick.
fn build_own(run: &Run) -> Result<PathBuf> {
    let dir = run.dir().join("bin");
    fs::create_dir_all(&dir)?;
    output(
        Command::new("go")
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("go"))
            .env("CGO_ENABLED", "0")
            .args(["build", "-trimpath", "-ldflags", "-s -w", "-o"])
            .arg(&dir)
            .arg("./..."),
    )
    .context("build probe and kit")?;
    Ok(dir)
}

/// The directory with netd and netd-cni: `$NETD_BIN_DIR`, or they are built, with the profile of this test
/// binary.
fn netd_dir() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("NETD_BIN_DIR") {
        let dir = PathBuf::from(dir);
        let missing = ["netd", "netd-cni"].iter().find(|name| !dir.join(name).is_file());
        return match missing {
            None => Ok(dir),
            Some(name) => bail!("NETD_BIN_DIR is {}, where there is no {name}", dir.display()),
        };
    }
    // target/PROFILE/deps/cluster-HASH
    let own = env::current_exe()?;
    let dir = own.parent().and_then(Path::parent).context("the test binary is not in target/PROFILE/deps")?;
    let profile = match dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    output(Command::new(cargo).current_dir(env!("CARGO_MANIFEST_DIR")).args([
        "build",
        "--quiet",
        "--profile",
        profile,
        "-p",
        "netd",
        "-p",
        "netd-cni",
    ]))
    .context("build netd and netd-cni")?;
    Ok(dir.to_path_buf())
}
