//! Reading the configuration: file, then flags; every mistake is reported at once.

use std::path::{Path, PathBuf};

use super::kubeproxy::{self, Flags};
use super::{Config, DataplaneChoice, check};

/// Why the configuration cannot be used. The process exits with 64.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("read the configuration {path}: {source}; write one with `netd config > {path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what this version reads.
    #[error("configuration {path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Key path, line and what is wrong.
        message: String,
    },
    /// Values that cannot work, all of them.
    #[error("configuration: {}", .0.join("; "))]
    Invalid(Vec<String>),
}

/// What the command line says about the configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    /// `--dataplane`.
    pub(crate) dataplane: Option<DataplaneChoice>,
    /// `--manifests`.
    pub(crate) manifests: Option<PathBuf>,
    /// kube-proxy's flags.
    pub(crate) kube_proxy: Flags,
}

/// The default place of the configuration; absent, every default applies.
pub(crate) const DEFAULT_PATH: &str = "/etc/netd/netd.yaml";

/// Reads the configuration from `path` (or the default place, if it exists) and applies the flags.
///
/// # Errors
/// Names the file and every mistake in it.
pub(crate) fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Config, ConfigError> {
    Ok(load_with_notes(path, overrides)?.0)
}

/// The same, with the fields of a kube-proxy's file that have no effect, each with the reason.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_with_notes(
    path: Option<&Path>,
    overrides: &Overrides,
) -> Result<(Config, Vec<String>), ConfigError> {
    let (mut config, notes) = match path {
        Some(path) => read(path)?,
        None if Path::new(DEFAULT_PATH).exists() => read(Path::new(DEFAULT_PATH))?,
        None => (Config::default(), Vec::new()),
    };
    let mut mistakes = kubeproxy::apply_flags(&mut config, &overrides.kube_proxy);
    if let Some(dataplane) = overrides.dataplane {
        config.proxy.dataplane = dataplane;
    }
    if let Some(directory) = &overrides.manifests {
        config.source.manifests = Some(directory.clone());
        config.source.kubeconfig = None;
        config.source.server = None;
    }
    mistakes.extend(check::mistakes(&config));
    if mistakes.is_empty() { Ok((config, notes)) } else { Err(ConfigError::Invalid(mistakes)) }
}

fn read(path: &Path) -> Result<(Config, Vec<String>), ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let wrong = |message: String| ConfigError::Parse { path: path.to_owned(), message };
    if !kubeproxy::is_kube_proxys(&text).map_err(wrong)? {
        return Ok((parse(&text).map_err(wrong)?, Vec::new()));
    }
    let file = serde_saphyr::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    kubeproxy::convert(file).map_err(|mistakes| wrong(mistakes.join("; ")))
}

/// Parses the text of a configuration file of netd's own.
pub(crate) fn parse(text: &str) -> Result<Config, String> {
    serde_saphyr::from_str(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FabricMode;

    const HEAD: &str = "apiVersion: netd.io/v1alpha1\nkind: NetdConfiguration\n";

    #[test]
    fn the_two_required_lines_give_the_defaults() {
        assert_eq!(parse(HEAD).unwrap(), Config::default());
    }

    #[test]
    fn the_printed_defaults_read_back_as_the_defaults() {
        let text = serde_saphyr::to_string(&Config::default()).unwrap();
        assert_eq!(parse(&text).unwrap(), Config::default());
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = parse(&format!("{HEAD}proxy: {{dataplan: ebpf}}\n")).unwrap_err();
        assert!(error.contains("dataplan"), "{error}");
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "apiVersion: v2\nkind: Other\ndns: {ttl: 999999, domain: 'a..b'}\nsource: {manifests: /x, server: 'http://y'}\n",
        )
        .unwrap();
        let error = load(Some(file.path()), &Overrides::default()).unwrap_err();
        let ConfigError::Invalid(mistakes) = error else { panic!("{error}") };
        assert_eq!(mistakes.len(), 5, "{mistakes:?}");
    }

    #[test]
    fn the_ways_between_nodes_are_read_and_checked() {
        let text = |fabric: &str| format!("{HEAD}fabric: {fabric}\n");
        for (mode, wanted) in
            [("auto", FabricMode::Auto), ("host-gw", FabricMode::HostGw), ("vxlan", FabricMode::Vxlan)]
        {
            assert_eq!(parse(&text(&format!("{{mode: {mode}}}"))).unwrap().fabric.mode, wanted);
        }
        assert!(parse(&text("{mode: wireguard}")).is_err());
        for bad in ["{vxlan: {vni: 0}}", "{vxlan: {vni: 16777216}}", "{vxlan: {port: 0}}"] {
            assert_eq!(check::mistakes(&parse(&text(bad)).unwrap()).len(), 1, "{bad}");
        }
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{HEAD}source: {{server: 'https://a:6443'}}\n")).unwrap();
        let overrides = Overrides {
            dataplane: Some(DataplaneChoice::Iptables),
            manifests: Some(PathBuf::from("/m")),
            ..Overrides::default()
        };
        let config = load(Some(file.path()), &overrides).unwrap();
        assert_eq!(config.proxy.dataplane, DataplaneChoice::Iptables);
        assert_eq!((config.source.manifests, config.source.server), (Some(PathBuf::from("/m")), None));
    }

    #[test]
    fn a_missing_file_names_the_next_command() {
        let error = load(Some(Path::new("/nonexistent/netd.yaml")), &Overrides::default()).unwrap_err();
        assert!(error.to_string().contains("netd config"), "{error}");
    }
}
