//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// What is to be measured, and how long.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The built netd-cni.
    pub(crate) plugin: PathBuf,
    /// The directory of the reference plugins.
    pub(crate) reference: PathBuf,
    /// The built netd; without it the cases with a daemon are left out.
    pub(crate) daemon: Option<PathBuf>,
    /// Print JSON in place of the table.
    pub(crate) json: bool,
    /// Turns over all cases.
    pub(crate) rounds: usize,
    /// Pairs of ADD and DEL a turn in a sequential case.
    pub(crate) pairs: usize,
    /// Pods that are there in the crowded case.
    pub(crate) live: usize,
}

impl Options {
    /// Reads the arguments, without the program's name.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self> {
        let (mut plugin, mut reference, mut daemon, mut live) = (None, None, None, None);
        let (mut json, mut quick) = (false, false);
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument:?} needs a value"));
            match argument.to_str() {
                Some("--plugin") => plugin = Some(PathBuf::from(value()?)),
                Some("--reference") => reference = Some(PathBuf::from(value()?)),
                Some("--daemon") => daemon = Some(PathBuf::from(value()?)),
                Some("--live") => live = Some(number(&value()?)?),
                Some("--json") => json = true,
                Some("--quick") => quick = true,
                Some(_) | None => bail!("unknown argument {argument:?}"),
            }
        }
        let (rounds, pairs, default_live) = if quick { (3, 8, 50) } else { (10, 20, 250) };
        Ok(Self {
            plugin: plugin.context("--plugin says which netd-cni is measured")?,
            reference: reference.context("--reference says where the reference plugins are")?,
            daemon,
            json,
            rounds,
            pairs,
            live: live.unwrap_or(default_live),
        })
    }
}

fn number(text: &OsString) -> Result<usize> {
    let number = text.to_str().and_then(|text| text.parse().ok());
    // The reference's bridge takes 1023 ports, its range 1021 addresses.
    number.filter(|number| *number <= 900).with_context(|| format!("{text:?} is no number up to 900"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options> {
        Options::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn the_crowd_can_be_chosen_and_has_a_limit() {
        let paths = ["--plugin", "/a", "--reference", "/b"];
        assert_eq!(parse(&paths).unwrap().live, 250);
        assert_eq!(parse(&[&paths[..], &["--quick", "--live", "7"]].concat()).unwrap().live, 7);
        assert!(parse(&[&paths[..], &["--live", "1000"]].concat()).is_err());
        assert!(parse(&["--plugin"]).is_err());
        assert!(parse(&["--fast"]).is_err());
    }
}
