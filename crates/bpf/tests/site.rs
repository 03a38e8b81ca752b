//! A process of its own in a cgroup, a network and a mount namespace of its own, with Services on its loopback.

#![expect(clippy::disallowed_methods, reason = "tests start processes and measure time")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netd_bpf::Config;
use netd_model::{
    Affinity, Family, Frontend, FrontendAddress, FrontendKey, FrontendKind, Masquerade, ObjectName,
    OrderedMap, Pool, PoolEndpoint, PoolId, PoolScope, Protocol, ServicePlan, ServicePortName, Verdict,
    VerdictBySource,
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const INSIDE: &str = "ND_BPF_TEST_INSIDE";
const CGROUP: &str = "ND_BPF_TEST_CGROUP";
const DIRECTORY: &str = "ND_BPF_TEST_DIRECTORY";
const TIMEOUT: Duration = Duration::from_secs(20);
/// Between two connections of a paced [`Load`].
const PACE: Duration = Duration::from_micros(300);

/// What a test body gets.
pub(crate) struct Site {
    pub(crate) config: Config,
}

/// Runs `body` in a process of its own; `test` is the name of the calling test.
///
/// The child owns its namespaces, so they vanish with it; the cgroup and the directory are removed here, also
/// when the child fails.
pub(crate) fn isolated(test: &str, body: impl FnOnce(&Site)) {
    assert!(nix::unistd::geteuid().is_root(), "this test makes namespaces and cgroups: run it as root");
    if std::env::var(INSIDE).is_ok_and(|inside| inside == test) {
        body(&enter(test));
        return;
    }
    let pid = std::process::id();
    let cgroup = RemovedDir(cgroup2_root().join(format!("nd-{pid}-bpf-{test}")));
    let directory = RemovedDir(PathBuf::from(format!("/run/nd-{pid}-bpf-{test}")));
    fs::create_dir(&cgroup.0).unwrap();
    fs::create_dir(&directory.0).unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, test)
        .env(CGROUP, &cgroup.0)
        .env(DIRECTORY, &directory.0)
        .status()
        .unwrap();
    assert!(status.success(), "{test}, in its own process: {status}");
}

struct RemovedDir(PathBuf);

impl Drop for RemovedDir {
    fn drop(&mut self) {
        // The kernel lets go of a cgroup a moment after its last process.
        let removed = eventually(|| {
            remove_dirs_in(&self.0);
            fs::remove_dir(&self.0).is_ok() || !self.0.exists()
        });
        if !removed {
            eprintln!("left behind: {}", self.0.display());
        }
    }
}

/// Removes empty directories in `dir`: cgroups that a failed test made below its own.
fn remove_dirs_in(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn enter(test: &str) -> Site {
    Victim::end_with_the_test();
    let (cgroup, directory) = (path(CGROUP), path(DIRECTORY));
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    // So that the directory outside stays empty whatever happens here.
    mount(Some("tmpfs"), &directory, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    loopback_up();
    eprintln!("{test}: in {}", cgroup.display());
    Site { config: config_from_environment() }
}

fn path(variable: &str) -> PathBuf {
    PathBuf::from(std::env::var_os(variable).unwrap())
}

/// The configuration of the site that this process was started in.
pub(crate) fn config_from_environment() -> Config {
    Config { cgroup_root: Some(path(CGROUP)), pin_dir: Some(path(DIRECTORY).join("pins")) }
}

/// This test once more in the same site, in another role; killed when dropped.
pub(crate) struct Victim(Child);

impl Victim {
    pub(crate) fn start(test: &str, role: &str, value: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--test-threads=1"]).env(role, value);
        // Not the caller's standard error: whoever reads that would wait for the victim.
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// What the victim does first: it ends with the thread that started it, even if that is killed.
    pub(crate) fn end_with_the_test() {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).unwrap();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Brings up the loopback of this thread's network namespace.
pub(crate) fn loopback_up() {
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(status.success(), "ip link set lo up: {status}");
}

fn cgroup2_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line =
        mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("no cgroup2 is mounted");
    Path::new(line.split(' ').nth(1).unwrap()).to_owned()
}

/// Polls until `done` or a deadline; returns whether it was done.
pub(crate) fn eventually(mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + TIMEOUT;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

/// A server on a loopback address that answers each connection or datagram with its own port.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn tcp(ip: &str) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // A client that went away again is its own business.
                let _ = stream.and_then(|mut stream| stream.write_all(&address.port().to_be_bytes()));
            }
        });
        Self { address, stop, thread: Some(thread) }
    }

    pub(crate) fn udp(ip: &str) -> Self {
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let _ = socket.send_to(&address.port().to_be_bytes(), from);
            }
        });
        Self { address, stop, thread: Some(thread) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread, whichever of the two it is.
        drop(TcpStream::connect(self.address));
        let any: SocketAddr = if self.address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
        if let Ok(socket) = UdpSocket::bind(any) {
            let _ = socket.send_to(&[0], self.address);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Connects, and reads which server answered.
pub(crate) fn ask_tcp(destination: SocketAddr) -> std::io::Result<(u16, SocketAddr)> {
    let mut stream = TcpStream::connect_timeout(&destination, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let peer = stream.peer_addr()?;
    let mut port = [0; 2];
    stream.read_exact(&mut port)?;
    Ok((u16::from_be_bytes(port), peer))
}

/// Sends a datagram on an unconnected socket, and reads which server answered and from where it seems to come.
pub(crate) fn ask_udp(socket: &UdpSocket, destination: SocketAddr) -> std::io::Result<(u16, SocketAddr)> {
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.send_to(b"?", destination)?;
    let mut port = [0; 2];
    let (_, from) = socket.recv_from(&mut port)?;
    Ok((u16::from_be_bytes(port), from))
}

/// A plan under construction.
pub(crate) struct Plan(pub(crate) ServicePlan);

impl Plan {
    pub(crate) fn new(generation: u64) -> Self {
        let mut plan = ServicePlan::empty();
        plan.generation = generation;
        Self(plan)
    }

    /// A cluster address that goes to `endpoints`, or refuses where there are none.
    pub(crate) fn service(mut self, vip: &str, protocol: Protocol, endpoints: &[SocketAddr]) -> Self {
        let verdict = self.pool(vip, protocol, endpoints, None);
        self.frontend(vip, protocol, VerdictBySource::same(verdict));
        self
    }

    /// The same with session affinity.
    pub(crate) fn sticky_service(mut self, vip: &str, protocol: Protocol, endpoints: &[SocketAddr]) -> Self {
        let affinity = Affinity { timeout: Duration::from_secs(600) };
        let verdict = self.pool(vip, protocol, endpoints, Some(affinity));
        self.frontend(vip, protocol, VerdictBySource::same(verdict));
        self
    }

    /// A cluster address that serves the node and refuses every other network namespace.
    pub(crate) fn host_only_service(
        mut self,
        vip: &str,
        protocol: Protocol,
        endpoints: &[SocketAddr],
    ) -> Self {
        let host = self.pool(vip, protocol, endpoints, None);
        self.frontend(vip, protocol, VerdictBySource { pod: Verdict::Reject, host, other: Verdict::Reject });
        self
    }

    fn pool(
        &mut self,
        vip: &str,
        protocol: Protocol,
        endpoints: &[SocketAddr],
        affinity: Option<Affinity>,
    ) -> Verdict {
        if endpoints.is_empty() {
            return Verdict::Reject;
        }
        let id = PoolId { port: name(vip, protocol), scope: PoolScope::Cluster };
        let mut endpoints: Vec<PoolEndpoint> = endpoints.iter().copied().map(endpoint).collect();
        endpoints.sort();
        self.family(vip).1.insert(id.clone(), Pool { endpoints });
        Verdict::Balance { pool: id, masquerade: Masquerade::Hairpin, affinity }
    }

    fn frontend(&mut self, vip: &str, protocol: Protocol, verdicts: VerdictBySource) {
        let vip_address: SocketAddr = vip.parse().unwrap();
        let key = FrontendKey {
            address: FrontendAddress::Ip(vip_address.ip()),
            protocol,
            port: NonZeroU16::new(vip_address.port()).unwrap(),
        };
        let frontend = Frontend {
            port: name(vip, protocol),
            kind: FrontendKind::ClusterIP,
            allowed_sources: None,
            verdicts,
        };
        self.family(vip).0.insert(key, frontend);
    }

    fn family(
        &mut self,
        vip: &str,
    ) -> (&mut OrderedMap<FrontendKey, Frontend>, &mut OrderedMap<PoolId, Pool>) {
        let ip: IpAddr = vip.parse::<SocketAddr>().unwrap().ip();
        let plan = match Family::of(ip) {
            Family::V4 => &mut self.0.v4,
            Family::V6 => &mut self.0.v6,
        };
        (&mut plan.frontends, &mut plan.pools)
    }
}

fn name(vip: &str, protocol: Protocol) -> ServicePortName {
    ServicePortName { service: ObjectName::new("default", vip), port: "".into(), protocol }
}

fn endpoint(address: SocketAddr) -> PoolEndpoint {
    PoolEndpoint { address: address.ip(), port: NonZeroU16::new(address.port()).unwrap(), local: true }
}

/// A client that connects again and again in a thread of its own.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    attempts: Arc<std::sync::atomic::AtomicU64>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Load {
    /// Connects as fast as it can.
    pub(crate) fn start(destination: SocketAddr) -> Self {
        Self::with_pace(destination, Duration::ZERO)
    }

    /// Connects at a pace that lasts for a test of many seconds.
    pub(crate) fn paced(destination: SocketAddr) -> Self {
        Self::with_pace(destination, PACE)
    }

    fn with_pace(destination: SocketAddr, pace: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let attempts = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&attempts));
        let thread = std::thread::spawn(move || {
            let mut failures = Vec::new();
            // Bounded; no test waits for so many.
            while !stopped.load(Ordering::SeqCst) && counted.load(Ordering::SeqCst) < 200_000 {
                if let Err(error) = ask_tcp(destination) {
                    failures.push(error.to_string());
                }
                counted.fetch_add(1, Ordering::SeqCst);
                if !pace.is_zero() {
                    std::thread::sleep(pace);
                }
            }
            failures
        });
        Self { stop, attempts, thread: Some(thread) }
    }

    /// Waits until the client has connected `more` times from now on.
    pub(crate) fn wait_for(&self, more: u64) {
        let goal = self.attempts.load(Ordering::SeqCst) + more;
        assert!(eventually(|| self.attempts.load(Ordering::SeqCst) >= goal), "the client is stuck");
    }

    /// Ends the client; the number of attempts and the failures.
    pub(crate) fn finish(mut self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        let failures = self.thread.take().unwrap().join().unwrap();
        (self.attempts.load(Ordering::SeqCst), failures)
    }
}
