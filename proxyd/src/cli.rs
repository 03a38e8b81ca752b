//! The commands of `netd` and their exit codes.

mod cleanup;
mod ipam;
mod print;
mod run;
mod status;

pub(crate) use print::out;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{ConfigError, DataplaneChoice, Flags, Overrides};
use crate::demo;
use crate::logging::LogFormat;

/// Exit codes, as documented in docs/cli.md.
pub(crate) mod exit {
    /// Something failed.
    pub(crate) const FAILED: u8 = 1;
    /// The daemon does not answer.
    pub(crate) const UNREACHABLE: u8 = 4;
    /// The configuration or the host does not let netd run (sysexits' EX_USAGE).
    pub(crate) const CONFIG: u8 = 64;
    /// Ended by a signal, 128 + SIGINT, after everything was removed.
    pub(crate) const INTERRUPTED: u8 = 130;
}

/// Node networking for Kubernetes: Services, pod routes and cluster DNS in one daemon.
#[derive(Parser)]
#[command(
    name = "netd",
    version,
    after_help = "Exit codes: 0 ok, 1 failed, 2 usage, 3 degraded (status --strict), 4 daemon \
unreachable, 64 configuration.\nTry `netd demo` to see it work without a cluster."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the daemon of this node until SIGTERM; the rules stay in the kernel.
    Run(RunArgs),
    /// Shows the state of the daemon on one screen.
    Status(StatusArgs),
    /// Lists Services as they are programmed, with their endpoints and verdicts.
    Svc(SvcArgs),
    /// Shows, checks and frees the addresses of this node's pods; needs no daemon.
    Ipam(ipam::IpamArgs),
    /// Removes everything that netd installed on this node, and nothing else.
    Cleanup(CleanupArgs),
    /// Builds a cluster of four nodes in network namespaces and shows netd at work.
    Demo(demo::DemoArgs),
    /// Prints the configuration in force (without a file: the defaults).
    Config(ConfigArgs),
    /// Serves and probes for the demo and the tests.
    #[command(hide = true)]
    LabAgent {
        /// Arguments of the agent.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

/// What the daemon is told on the command line; everything else is in the file.
#[derive(Args, Clone, Debug)]
pub(crate) struct RunArgs {
    /// Configuration file [default: /etc/netd/netd.yaml if it exists, else the defaults].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Dataplane, in place of the file's.
    #[arg(long, value_enum)]
    dataplane: Option<DataplaneChoice>,
    /// Take objects from a directory of manifests, in place of the file's source.
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    #[command(flatten)]
    kube_proxy: KubeProxyArgs,
    /// What is logged: error, warn, info, debug, trace, or a filter such as netd_dns=debug,info.
    #[arg(long, default_value = "info", value_name = "FILTER")]
    log: String,
    /// How a log line looks.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

impl RunArgs {
    fn overrides(&self) -> Overrides {
        let kube_proxy = self.kube_proxy.clone().into();
        Overrides { dataplane: self.dataplane, manifests: self.manifests.clone(), kube_proxy }
    }
}

/// Flags that kube-proxy has too, with its meaning; they win over the file.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Options of kube-proxy")]
pub(crate) struct KubeProxyArgs {
    /// Name of this node, as in its Node object.
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// `iptables`, or empty to have netd choose.
    #[arg(long, value_name = "MODE", conflicts_with = "dataplane")]
    proxy_mode: Option<String>,
    /// Prefix of all pods, or one of each family with a comma.
    #[arg(long, value_name = "CIDR")]
    cluster_cidr: Option<String>,
    /// Prefixes of the node's addresses that serve node ports.
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    nodeport_addresses: Option<Vec<String>>,
    /// Masquerade everything that goes to a Service.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    masquerade_all: Option<bool>,
    /// Address of /healthz and /livez; empty switches them off.
    #[arg(long, value_name = "ADDRESS")]
    healthz_bind_address: Option<String>,
    /// Address of /metrics; empty switches it off.
    #[arg(long, value_name = "ADDRESS")]
    metrics_bind_address: Option<String>,
    /// Kubeconfig file, in place of the file's source.
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    kubeconfig: Option<PathBuf>,
}

impl From<KubeProxyArgs> for Flags {
    fn from(args: KubeProxyArgs) -> Self {
        Self {
            hostname_override: args.hostname_override,
            proxy_mode: args.proxy_mode,
            cluster_cidr: args.cluster_cidr,
            node_port_addresses: args.nodeport_addresses,
            masquerade_all: args.masquerade_all,
            healthz_bind_address: args.healthz_bind_address,
            metrics_bind_address: args.metrics_bind_address,
            kubeconfig: args.kubeconfig,
        }
    }
}

/// How a command prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For a person.
    #[default]
    Table,
    /// For a person, with more columns.
    Wide,
    /// For a machine; the schema is versioned.
    Json,
}

/// Which daemon is asked.
#[derive(Args, Clone, Debug)]
pub(crate) struct Ask {
    /// Socket of the daemon [default: that of the configuration].
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Configuration file of the daemon.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Args, Clone, Debug)]
struct StatusArgs {
    #[command(flatten)]
    ask: Ask,
    /// Exit with 3 when the node is degraded.
    #[arg(long)]
    strict: bool,
}

#[derive(Args, Clone, Debug)]
struct SvcArgs {
    #[command(flatten)]
    ask: Ask,
    /// Only Services of this namespace.
    #[arg(short, long)]
    namespace: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct CleanupArgs {
    /// Configuration file the daemon ran with.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
struct ConfigArgs {
    /// Configuration file [default: /etc/netd/netd.yaml if it exists].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the command of the command line.
pub(crate) fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Status(args) => status::status(&args.ask, args.strict),
        Command::Svc(args) => status::services(&args.ask, args.namespace.as_deref()),
        Command::Ipam(args) => ipam::ipam(&args),
        Command::Cleanup(args) => cleanup::cleanup(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Config(args) => print::config(args.config.as_deref()),
        Command::LabAgent { args } => {
            return ExitCode::from(u8::try_from(netd_lab::agent::main(args)).unwrap_or(1));
        }
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("netd: {}", on_one_line(&error));
            ExitCode::from(code_of(&error))
        }
    }
}

/// An error with its causes, each of them once: some errors tell their cause themselves.
pub(crate) fn on_one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            let separator = if text.is_empty() { "" } else { ": " };
            text = format!("{text}{separator}{cause}");
        }
    }
    text
}

/// The exit code of an error: configuration mistakes are told apart from failures.
fn code_of(error: &anyhow::Error) -> u8 {
    let config = error.chain().any(|cause| {
        cause.is::<ConfigError>()
            || matches!(
                cause.downcast_ref::<netd_dataplane::ApplyError>(),
                Some(netd_dataplane::ApplyError::Config(_))
            )
            || cause.is::<crate::daemon::HostError>()
    });
    if config {
        exit::CONFIG
    } else if error
        .chain()
        .any(|cause| cause.downcast_ref::<netd_admin::Error>().is_some_and(netd_admin::Error::is_unreachable))
    {
        exit::UNREACHABLE
    } else {
        exit::FAILED
    }
}
