//! Writing to standard output: a closed pipe is the reader's choice, not an error.

use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, Result};

use crate::config::{Overrides, load_with_notes};

/// Writes `text` to standard output.
///
/// # Errors
/// When it cannot be written for another reason than that nobody reads any more.
pub(crate) fn out(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("write to standard output"),
    }
}

/// `netd config`: the configuration in force, as YAML; what has no effect as comments.
pub(super) fn config(path: Option<&Path>) -> Result<u8> {
    let (config, notes) = load_with_notes(path, &Overrides::default())?;
    let mut text: String = notes.iter().map(|note| format!("# {note}\n")).collect();
    text.push_str(&serde_saphyr::to_string(&config).context("print the configuration")?);
    out(&text)?;
    Ok(0)
}
