//! `netd ipam`: the addresses of this node's pods, from the plugin's ledgers and the kernel's links, with no daemon.

mod audit;
mod check;
mod export;
mod list;
mod node;
mod release;

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::{Output, print};
use crate::config::{Config, Overrides, load};

#[derive(Args, Clone, Debug)]
pub(super) struct IpamArgs {
    #[command(subcommand)]
    command: IpamCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum IpamCommand {
    /// Shows networks, their ranges and who has which address.
    Ls(ListArgs),
    /// Compares leases with the kernel's links and names what does not fit; exit code 1 when something does not.
    Check(CheckArgs),
    /// Prints ledgers as lines of JSON, for grep and jq: every lease, and every address that was released.
    Export(ExportArgs),
    /// Frees addresses that no live link has.
    Release(ReleaseArgs),
}

/// Where the ledgers are.
#[derive(Args, Clone, Debug)]
struct Ledgers {
    /// Configuration file of the daemon [default: /etc/netd/netd.yaml if it exists].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the ledgers [default: cni.dataDir of the configuration].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Ledgers {
    fn config(&self) -> Result<Config> {
        let mut config = load(self.config.as_deref(), &Overrides::default())?;
        if let Some(directory) = &self.data_dir {
            config.cni.data_dir.clone_from(directory);
        }
        Ok(config)
    }
}

#[derive(Args, Clone, Debug)]
struct ListArgs {
    #[command(flatten)]
    ledgers: Ledgers,
    /// Only leases of pods of this namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Args, Clone, Debug)]
struct CheckArgs {
    #[command(flatten)]
    ledgers: Ledgers,
    /// Output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Args, Clone, Debug)]
struct ExportArgs {
    #[command(flatten)]
    ledgers: Ledgers,
    /// Only this network.
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
}

#[derive(Args, Clone, Debug)]
struct ReleaseArgs {
    #[command(flatten)]
    ledgers: Ledgers,
    /// Addresses to free; an address's lease ends with all of its addresses.
    #[arg(required = true, value_name = "ADDRESS")]
    addresses: Vec<IpAddr>,
    /// The network, where several have leases of the address.
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    /// Free it also when a live link has it, or when its pod may just be starting.
    #[arg(long)]
    force: bool,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

/// Runs a command of `netd ipam`.
pub(super) fn ipam(args: &IpamArgs) -> Result<u8> {
    match &args.command {
        IpamCommand::Ls(args) => list::list(args),
        IpamCommand::Check(args) => check::check(args),
        IpamCommand::Export(args) => export::export(args),
        IpamCommand::Release(args) => release::release(args),
    }
}

fn json(value: &serde_json::Value) -> Result<()> {
    print::out(&format!("{value:#}\n"))
}

/// Columns, three spaces apart. Names come from outside and must not steer the terminal.
fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |text: &str| -> String {
        let text = if text.is_empty() { "-" } else { text };
        text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
    };
    let header = header.iter().map(|text| (*text).to_owned()).collect();
    let rows: Vec<Vec<String>> =
        std::iter::once(&header).chain(rows).map(|row| row.iter().map(|text| cell(text)).collect()).collect();
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|t| t.chars().count()).max();
    let widths: Vec<usize> = (0..header.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(line.join("   ").trim_end());
        text.push('\n');
    }
    text
}
