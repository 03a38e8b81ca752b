//! `netd status` and `netd svc`: what the daemon says of itself.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use netd_admin::render::{self, Style};
use netd_admin::{Client, StateDoc};

use super::{Ask, Output, print};
use crate::config::{Overrides, load};

/// `netd status`.
pub(super) fn status(ask: &Ask, strict: bool) -> Result<u8> {
    let state = fetch(ask)?;
    match ask.output {
        Output::Json => print::out(&json(&state)?)?,
        Output::Table | Output::Wide => print::out(&render::status(&state, style(ask)))?,
    }
    Ok(netd_admin::exit_code(&state, strict))
}

/// `netd svc`.
pub(super) fn services(ask: &Ask, namespace: Option<&str>) -> Result<u8> {
    let mut services = fetch(ask)?.services;
    services.retain(|service| namespace.is_none_or(|namespace| service.namespace == namespace));
    match ask.output {
        Output::Json => {
            let list = serde_json::json!({
                "apiVersion": netd_admin::API_VERSION, "kind": "ServiceList", "items": services,
            });
            print::out(&json(&list)?)?;
        }
        Output::Table | Output::Wide => print::out(&render::services(&services, style(ask)))?,
    }
    Ok(0)
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    let mut text = serde_json::to_string_pretty(value).context("print the state as JSON")?;
    text.push('\n');
    Ok(text)
}

fn style(ask: &Ask) -> Style {
    let no_color = std::env::var_os("NO_COLOR").is_some();
    Style::for_output(std::io::stdout().is_terminal(), no_color, ask.output == Output::Wide)
}

fn fetch(ask: &Ask) -> Result<StateDoc> {
    let socket = match &ask.socket {
        Some(socket) => socket.clone(),
        None => load(ask.config.as_deref(), &Overrides::default())?.socket(),
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async { Ok(Client::connect(&socket).await?.state().await?) })
}
