//! `netd cleanup`: gives the node back as it was before netd.

use anyhow::{Result, bail};
use netd_dataplane::ApplyError;

use super::{CleanupArgs, print};
use crate::config::{Overrides, load};
use crate::daemon::{dns, fabric, planes};

pub(super) fn cleanup(args: &CleanupArgs) -> Result<u8> {
    let config = load(args.config.as_deref(), &Overrides::default())?;
    crate::daemon::require_root("netd cleanup")?;
    refuse_while_running(&config)?;
    let mut removal = Removal::default();
    for mut dataplane in planes::every(&config, &[]) {
        let name = format!("{} rules", dataplane.name());
        removal.note(&name, dataplane.cleanup().map_err(|error: ApplyError| error.into()));
    }
    removal.note("routes, masquerade and CNI files", fabric::cleanup(&config));
    removal.note("DNS address", dns::remove_interface().map(drop));
    removal.finish()
}

fn refuse_while_running(config: &crate::config::Config) -> Result<()> {
    let socket = config.socket();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if runtime.block_on(async { netd_admin::Client::connect(&socket).await?.version().await }).is_ok() {
        bail!(
            "netd is running on this node and would put everything back: stop it first ({})",
            socket.display()
        );
    }
    Ok(())
}

/// What was removed; an error does not stop the next removal.
#[derive(Default)]
struct Removal {
    lines: Vec<String>,
    failed: usize,
}

impl Removal {
    fn note(&mut self, what: &str, result: Result<()>) {
        match result {
            Ok(()) => self.lines.push(format!("removed  {what}")),
            Err(error) => {
                self.failed += 1;
                self.lines.push(format!("FAILED   {what}: {}", super::on_one_line(&error)));
            }
        }
    }

    fn finish(self) -> Result<u8> {
        print::out(&(self.lines.join("\n") + "\n"))?;
        if self.failed > 0 {
            bail!("{} of {} could not be removed; run `netd cleanup` again", self.failed, self.lines.len());
        }
        Ok(0)
    }
}
