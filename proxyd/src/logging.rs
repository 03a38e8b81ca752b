//! Logs: one line an event on standard error, as text or JSON.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// One line of text, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging at `filter` (`info`, `debug`, `netd_dns=trace,info`, …).
///
/// # Errors
/// When the filter is not understood.
pub(crate) fn start(filter: &str, format: LogFormat) -> Result<()> {
    // The client logs each failed try as an error; what netd makes of it is told by netd_watch, once.
    let quiet = if filter.contains("kube") { filter.to_owned() } else { format!("{filter},kube_client=off") };
    let filter = EnvFilter::try_new(quiet)
        .with_context(|| format!("--log {filter:?}: try info, debug or netd_dns=trace,info"))?;
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
