//! `netd run`.

use anyhow::{Context, Result};
use tracing::warn;

use super::RunArgs;
use crate::config::load_with_notes;
use crate::{daemon, logging};

pub(super) fn run(args: &RunArgs) -> Result<u8> {
    let (config, notes) = load_with_notes(args.config.as_deref(), &args.overrides())?;
    logging::start(&args.log, args.log_format).map_err(|error| daemon::HostError(format!("{error:#}")))?;
    for note in &notes {
        warn!(field = note, "a field of kube-proxy's configuration has no effect");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("netd")
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(daemon::run(config));
    // Blocking work that hangs (a lock held by another program) must not keep a drained daemon alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result.map(|()| 0)
}
