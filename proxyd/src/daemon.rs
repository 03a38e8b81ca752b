//! What `netd run` is composed of: parts that start, fail and recover apart from each other.
//!
//! - [`board`]: what the parts say of themselves
//! - [`planes`]: which dataplanes run, and why
//! - [`proxy`]: one OS thread that plans and programs Services
//! - [`fabric`]: one OS thread for routes, masquerade and what the CNI plugin needs
//! - [`dns`]: the responder and its address
//! - [`reaper`]: deletes links of pods that are gone
//! - [`pods`]: keeps what running pods need, collects what others left
//! - [`health`]: whether load balancers may send traffic to this node
//! - [`health_checks`]: the servers of `healthCheckNodePort`
//! - [`http`], [`metrics`]: health, readiness and Prometheus

pub(crate) mod board;
pub(crate) mod dns;
mod events;
pub(crate) mod fabric;
mod flows;
mod health;
mod health_checks;
mod http;
mod ipam;
mod metrics;
pub(crate) mod planes;
mod pods;
mod proxy;
mod reaper;

use std::sync::Arc;

use anyhow::{Context, Result};
use netd_admin::AdminServer;
use netd_kernel::clock::SystemClock;
use netd_watch::{ApiConfig, ManifestsConfig, Options, Source};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::config::Config;
use board::{Board, Part};
use health::ProxyHealth;
use metrics::Metrics;

/// The host does not let netd run; says what to do. The process exits with 64.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct HostError(pub(crate) String);

/// Everything a part needs of its surroundings.
#[derive(Clone)]
pub(crate) struct Surroundings {
    /// Configuration in force.
    pub(crate) config: Arc<Config>,
    /// This node's name.
    pub(crate) node: Arc<str>,
    /// Where the part says how it is.
    pub(crate) board: Arc<Board>,
    /// What it counts.
    pub(crate) metrics: Arc<Metrics>,
    /// Whether the proxy keeps up, for load balancers.
    pub(crate) health: Arc<ProxyHealth>,
    /// Turns true when the daemon drains.
    pub(crate) shutdown: watch::Receiver<bool>,
}

/// Runs the daemon until SIGTERM or SIGINT. Kernel state is left in place (restart law): only
/// `netd cleanup` removes it.
///
/// # Errors
/// When the configuration or the host does not let netd run, or a part ends for good.
pub(crate) async fn run(config: Config) -> Result<()> {
    require_root("netd run")?;
    let node: Arc<str> = node_name(&config)?.into();
    let (publisher, subscriber) = netd_watch::channel();
    let board = Arc::new(Board::new(node.to_string(), subscriber.clone(), config.cni.data_dir.clone()));
    let (stop, shutdown) = watch::channel(false);
    let metrics = Arc::new(Metrics::new(Arc::clone(&board)));
    let window = std::time::Duration::from_secs(u64::from(config.http.health_window_seconds));
    let health = Arc::new(ProxyHealth::new(Arc::clone(&node), window, Arc::new(SystemClock)));
    let context = Surroundings {
        config: Arc::new(config),
        node: Arc::clone(&node),
        board,
        metrics,
        health,
        shutdown: shutdown.clone(),
    };
    info!(node = %node, version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "starting");

    let mut tasks = JoinSet::new();
    // The socket comes first: it is how a second netd on this node is noticed, before it touches anything.
    serve_state(&context, &mut tasks).await?;
    serve_http(&context, &mut tasks).await?;
    start_source(&context, publisher, &mut tasks);
    start_parts(&context, &subscriber, &mut tasks)?;

    let outcome = wait(&mut tasks).await;
    // A receiver that is gone has nothing left to drain.
    let _ = stop.send(true);
    drain(tasks).await;
    outcome
}

/// Fails when the process is not root, saying what to do.
pub(crate) fn require_root(command: &str) -> Result<(), HostError> {
    if netd_kernel::process::is_root() {
        return Ok(());
    }
    Err(HostError(format!("{command} needs root (it programs the kernel's network): run it with sudo")))
}

fn node_name(config: &Config) -> Result<String> {
    if let Some(name) = &config.node_name {
        return Ok(name.clone());
    }
    if let Ok(name) = std::env::var("NODE_NAME") {
        return Ok(name);
    }
    netd_kernel::sysctl::read("kernel/hostname")
        .context("read the host name; set nodeName in the configuration")
}

/// How long a netd that was killed may take to be gone.
const PREDECESSOR: std::time::Duration = std::time::Duration::from_secs(2);

/// Binds the socket, waiting a moment for a predecessor that is just dying.
async fn bind_state(context: &Surroundings) -> Result<AdminServer, netd_admin::Error> {
    let started = tokio::time::Instant::now();
    loop {
        match AdminServer::bind(&context.config.socket()) {
            Err(netd_admin::Error::Running { .. }) if started.elapsed() < PREDECESSOR => {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            result => return result,
        }
    }
}

async fn serve_state(context: &Surroundings, tasks: &mut JoinSet<Result<()>>) -> Result<()> {
    let server = bind_state(context).await?;
    let board: Arc<dyn netd_admin::StateSource> = Arc::<Board>::clone(&context.board) as _;
    let shutdown = stopped(context.shutdown.clone());
    tasks.spawn(async move { server.serve(board, shutdown).await.context("serve the state API") });
    Ok(())
}

async fn serve_http(context: &Surroundings, tasks: &mut JoinSet<Result<()>>) -> Result<()> {
    if let Some(address) = context.config.http.health {
        let listener = http::bind(address, "health").await?;
        tasks.spawn(until_stopped(context, http::serve_health(listener, context.clone())));
    }
    if let Some(address) = context.config.http.metrics {
        let listener = http::bind(address, "metrics").await?;
        tasks.spawn(until_stopped(context, http::serve_metrics(listener, Arc::clone(&context.metrics))));
    }
    Ok(())
}

/// Ends `work` when the daemon drains.
fn until_stopped(
    context: &Surroundings,
    work: impl Future<Output = Result<()>> + Send + 'static,
) -> impl Future<Output = Result<()>> + Send + 'static {
    let stopped = stopped(context.shutdown.clone());
    async move {
        tokio::select! {
            result = work => result,
            () = stopped => Ok(()),
        }
    }
}

/// Resolves when the daemon drains.
async fn stopped(mut shutdown: watch::Receiver<bool>) {
    // An error means that the sender is gone: the daemon is ending.
    drop(shutdown.wait_for(|stop| *stop).await);
}

fn start_source(context: &Surroundings, publisher: netd_watch::Publisher, tasks: &mut JoinSet<Result<()>>) {
    let source = &context.config.source;
    let (source, store) = match &source.manifests {
        Some(directory) => (Source::Manifests(ManifestsConfig::new(directory.clone())), None),
        None => {
            let api = ApiConfig {
                server: source.server.clone(),
                kubeconfig: source.kubeconfig.clone(),
                token_file: source.token_file.clone(),
                ca_file: source.ca_file.clone(),
            };
            (Source::Api(api), Some(context.config.paths.state_dir.join("snapshot.json")))
        }
    };
    context.board.declare(Part::Watch, true);
    let options = Options { store, ..Options::default() };
    let shutdown = context.shutdown.clone();
    tasks.spawn(async move {
        netd_watch::run(source, options, publisher, shutdown)
            .await
            .map_err(|error| HostError(error.to_string()).into())
    });
}

fn start_parts(
    context: &Surroundings,
    subscriber: &netd_watch::Subscriber,
    tasks: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let parts = &context.config.parts;
    for (part, enabled) in [
        (Part::Proxy, parts.proxy),
        (Part::Fabric, parts.fabric),
        (Part::Cni, parts.cni),
        (Part::Dns, parts.dns),
    ] {
        context.board.declare(part, enabled);
    }
    if parts.proxy {
        let (checks, wanted_checks) = watch::channel(health_checks::Wanted::new());
        let proxy = proxy::Proxy::new(context.clone(), checks)?;
        tasks.spawn(health_checks::run(context.clone(), wanted_checks));
        if context.config.source.manifests.is_none() {
            tasks.spawn(events::run(context.clone()));
        }
        tasks.spawn(on_thread("netd-proxy", subscriber.clone(), move |subscriber| proxy.run(subscriber)));
    }
    if parts.fabric || parts.cni {
        let fabric = fabric::Network::new(context.clone());
        tasks.spawn(on_thread(fabric::THREAD, subscriber.clone(), move |subscriber| fabric.run(subscriber)));
    }
    if parts.cni {
        tasks.spawn(reaper::run(context.clone()));
        tasks.spawn(pods::collector::run(context.clone()));
    }
    if parts.dns {
        tasks.spawn(dns::run(context.clone(), subscriber.clone()));
    }
    Ok(())
}

/// Runs a part on an OS thread of its own; a panic there is an error here, not the end of the process.
async fn on_thread<F>(name: &'static str, subscriber: netd_watch::Subscriber, work: F) -> Result<()>
where
    F: FnOnce(netd_watch::Subscriber) -> Result<()> + Send + 'static,
{
    let (done, outcome) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // The receiver is gone only when the daemon ends.
            drop(done.send(work(subscriber)));
        })
        .with_context(|| format!("start the thread {name}"))?;
    outcome.await.with_context(|| format!("the thread {name} panicked"))?
}

/// Waits for a signal to stop, or for the first part that ends for good.
async fn wait(tasks: &mut JoinSet<Result<()>>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => info!(signal = "SIGTERM", "draining; rules and routes stay in place"),
        _ = interrupt.recv() => info!(signal = "SIGINT", "draining; rules and routes stay in place"),
        Some(ended) = tasks.join_next() => {
            ended.context("a part of the daemon panicked")??;
            anyhow::bail!("a part of the daemon ended by itself");
        }
    }
    Ok(())
}

/// How long parts may take to finish what they are in the middle of.
const DRAIN: std::time::Duration = std::time::Duration::from_secs(5);

async fn drain(mut tasks: JoinSet<Result<()>>) {
    let finish = async {
        while let Some(ended) = tasks.join_next().await {
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    warn!(error = format!("{error:#}"), "a part ended with an error while draining")
                }
                Err(error) => warn!(%error, "a part panicked while draining"),
            }
        }
    };
    if tokio::time::timeout(DRAIN, finish).await.is_err() {
        warn!(seconds = DRAIN.as_secs(), "some parts did not finish in time; what they left is consistent");
    }
    info!("stopped");
}
