//! A node of its own for a netd under test.

#![expect(clippy::disallowed_methods, reason = "tests start the program under test and measure waiting")]

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use ipnetwork::IpNetwork;
use netd_kernel::clock::eventually;
use netd_kernel::exec::{Child, Spawn, Stream, find_program};
use netd_kernel::process::Signal;
use netd_lab::agent::{AgentHandle, Serve};
use netd_lab::{Lab, LabSpec, Node, NodeSpec, Place};
use serde_json::Value;

pub(crate) const NETD: &str = env!("CARGO_BIN_EXE_netd");
const PATIENCE: Duration = Duration::from_secs(30);

/// How a command ended.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A call of netd outside of any node.
pub(crate) struct Call(Command);

/// `netd` with these arguments.
pub(crate) fn netd(args: &[&str]) -> Call {
    let mut command = Command::new(NETD);
    command.args(args);
    Call(command)
}

impl Call {
    pub(crate) fn run_by(mut self, uid: u32) -> Self {
        self.0.uid(uid).gid(uid);
        self
    }

    pub(crate) fn output(mut self) -> Ended {
        let output = self.0.output().unwrap();
        Ended {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A node with nothing on it.
pub(crate) struct TestNode {
    lab: Lab,
    directory: PathBuf,
}

impl TestNode {
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("nd-{}-{name}", std::process::id());
        let directory = std::env::temp_dir().join(&name);
        let prefix = |text: &str| text.parse::<IpNetwork>().unwrap();
        let node = NodeSpec {
            name: "n1".to_owned(),
            addresses: vec![prefix("192.168.1.10/24")],
            pod_cidrs: vec![prefix("172.16.0.0/24")],
        };
        let spec = LabSpec {
            name,
            state_dir: directory.clone(),
            nodes: vec![node],
            clients: Vec::new(),
            gateway: vec![prefix("192.168.1.1/24")],
            agent: vec![NETD.into(), "lab-agent".into()],
        };
        let test = Self { lab: Lab::create(&spec).unwrap(), directory };
        std::fs::create_dir(test.manifests()).unwrap();
        test.manifest(
            "node.yaml",
            "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDR: 172.16.0.0/24}\nstatus: {addresses: \
             [{type: InternalIP, address: 192.168.1.10}]}\n",
        );
        test
    }

    pub(crate) fn place(&self) -> &Node {
        self.lab.node("n1").unwrap()
    }

    /// The LAN with the address 192.168.1.1, which has no route to pods.
    pub(crate) fn lan(&self) -> &Node {
        self.lab.lan()
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.directory.join("manifests")
    }

    pub(crate) fn manifest(&self, name: &str, text: &str) {
        std::fs::write(self.manifests().join(name), text).unwrap();
    }

    /// Writes a configuration with `extra` keys; returns its path.
    pub(crate) fn config_file(&self, extra: &str) -> &'static str {
        self.config_file_with(extra, "")
    }

    /// The same, with `proxy` keys.
    fn config_file_with(&self, extra: &str, proxy: &str) -> &'static str {
        let path = self.directory.join("netd.yaml");
        let base = self.directory.display();
        let proxy = if proxy.is_empty() { String::new() } else { format!("{proxy}, ") };
        let text = format!(
            "apiVersion: netd.io/v1alpha1\nkind: NetdConfiguration\nnodeName: n1\nsource: {{manifests: {base}/manifests}}\n\
             proxy: {{{proxy}dataplane: iptables, ebpf: {{pinDir: {base}/bpf, cgroupRoot: {}}}}}\n\
             cni: {{conflist: {base}/00-netd.conflist, rangesFile: {base}/ranges.json, dataDir: {base}/ipam}}\n\
             paths: {{stateDir: {base}/lib, runDir: {base}/run}}\n",
            self.place().cgroup().display()
        );
        // A key may stand in a file only once: the test's own lines win.
        let own = if extra.contains("dns:") && !extra.contains("parts:") {
            ""
        } else {
            "dns: {resolvConf: /dev/null}\n"
        };
        std::fs::write(&path, format!("{text}{own}{extra}\n")).unwrap();
        String::leak(path.display().to_string())
    }

    pub(crate) fn run(&self, args: &[&str], timeout: Duration) -> Ended {
        let spawn = Spawn {
            netns: Some(self.place().netns().to_owned()),
            cgroup: Some(self.place().cgroup().to_owned()),
            ..Spawn::new(NETD, args.iter().copied())
        };
        let output = spawn.output(b"", timeout).unwrap();
        Ended {
            code: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub(crate) fn start(&self, extra: &str) -> Daemon<'_> {
        self.start_with(extra, "")
    }

    /// The same, with `proxy` keys.
    pub(crate) fn start_with(&self, extra: &str, proxy: &str) -> Daemon<'_> {
        self.start_by(self.config_file_with(extra, proxy))
    }

    /// The same, with a configuration file that is there.
    pub(crate) fn start_by(&self, config: &'static str) -> Daemon<'_> {
        self.start_as(config, &[])
    }

    /// The same, with arguments beside the configuration file.
    pub(crate) fn start_with_args(&self, args: &[&str]) -> Daemon<'_> {
        self.start_as(self.config_file(""), args)
    }

    fn start_as(&self, config: &'static str, args: &[&str]) -> Daemon<'_> {
        let log = self.directory.join("netd.log");
        let args = ["run", "--config", config].into_iter().chain(args.iter().copied());
        let spawn = Spawn { stderr: Stream::File(log.clone()), ..Spawn::new(NETD, args) };
        let child = self.place().spawn(spawn).unwrap();
        Daemon { node: self, child, log, config }
    }

    pub(crate) fn serve(&self, port: u16) -> AgentHandle {
        self.place()
            .serve(Serve { name: "server".to_owned(), tcp: vec![port], udp: vec![port], stay: false })
            .unwrap()
    }

    pub(crate) fn iptables(&self, args: &[&str]) {
        let program = find_program("iptables").expect("iptables is installed");
        let spawn = Spawn {
            netns: Some(self.place().netns().to_owned()),
            ..Spawn::new(program, args.iter().copied())
        };
        let output = spawn.output(b"", PATIENCE).unwrap();
        assert!(output.success(), "{}", output.complaint());
    }

    /// One command of nft.
    pub(crate) fn nft(&self, command: &str) {
        let program = find_program("nft").expect("nft is installed");
        let spawn = Spawn { netns: Some(self.place().netns().to_owned()), ..Spawn::new(program, [command]) };
        let output = spawn.output(b"", PATIENCE).unwrap();
        assert!(output.success(), "{}", output.complaint());
    }

    /// Rules of both families, without counters and comments, which tell the time.
    pub(crate) fn rules(&self) -> String {
        let save = |program: &str| {
            let program = find_program(program).expect("iptables is installed");
            let spawn =
                Spawn { netns: Some(self.place().netns().to_owned()), ..Spawn::new(program, [""; 0]) };
            String::from_utf8(spawn.output(b"", PATIENCE).unwrap().stdout).unwrap()
        };
        let text = save("iptables-save") + &save("ip6tables-save");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        // An empty table that was looked at is there afterwards; it holds nothing of anybody's.
        let rules = lines.filter(|line| line.starts_with("-A") || line.contains(" - ["));
        rules.map(|line| line.split(" [").next().unwrap_or(line)).collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn links(&self) -> Vec<String> {
        let links =
            self.place().run(|| netd_kernel::netlink::Netlink::open().unwrap().links().unwrap()).unwrap();
        links.into_iter().map(|link| link.name).collect()
    }

    /// The body of an HTTP answer, asked for in the node.
    pub(crate) fn get(&self, address: &str, path: &str) -> String {
        use std::io::{Read, Write};
        let fetch = || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        };
        self.place().run(fetch).unwrap()
    }
}

/// A running `netd run`.
pub(crate) struct Daemon<'a> {
    node: &'a TestNode,
    child: Child,
    log: PathBuf,
    config: &'static str,
}

impl Daemon<'_> {
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn status(&self, more: &[&str]) -> Ended {
        let args: Vec<&str> = ["status", "--config", self.config].iter().chain(more).copied().collect();
        self.node.run(&args, PATIENCE)
    }

    pub(crate) fn wait_for(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let found = eventually(PATIENCE, || {
            assert_eq!(self.child.try_wait().unwrap(), None, "netd ended:\n{}", self.log());
            let status = self.status(&["-o", "json"]);
            serde_json::from_str(&status.stdout).ok().filter(&wanted)
        });
        found.unwrap_or_else(|| panic!("no {what}:\n{}\n{}", self.status(&[]).stdout, self.log()))
    }

    pub(crate) fn wait_ready(&mut self) {
        self.wait_for("ready daemon", |state| {
            let parts = state["parts"].as_object();
            parts.is_some_and(|parts| {
                parts.values().all(|part| part["ready"] == true || part["enabled"] == false)
            })
        });
    }

    /// Sends SIGTERM and returns the exit code.
    pub(crate) fn terminate(&mut self) -> i32 {
        self.child.kill(Signal::Terminate).unwrap();
        self.child.wait_timeout(PATIENCE).unwrap().expect("netd ends after SIGTERM")
    }
}
