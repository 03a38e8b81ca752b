//! Labs as they are used: traffic across nodes, and nothing left of them afterwards. These tests need root.
//!
//! The binary is its own agent (`lab-agent`) and its own victim (`hold-lab`), so the standard harness cannot run it.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use netd_kernel::clock::eventually;
use netd_kernel::exec::{Spawn, Stream};
use netd_kernel::process::{self, Signal};
use netd_lab::agent::{AgentCommand, Connect, Hold, Load, Lookup, Serve};
use netd_lab::traffic::{Outcome, Protocol};
use netd_lab::{Error, Lab, LabSpec, Node, NodeSpec, Place, PlainPodSpec, Pod};

type Checked = Result<(), Failed>;

const LONG: Duration = Duration::from_secs(20);

mod plugin;

fn main() {
    if plugin::is_called() {
        std::process::exit(plugin::answer());
    }
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(|first| first.to_str()) {
        Some("lab-agent") => std::process::exit(netd_lab::agent::main(args)),
        Some("hold-lab") => {
            let held = hold_lab(&args.collect::<Vec<_>>());
            std::process::exit(i32::from(held.is_err()));
        }
        Some(_) | None => {}
    }
    let trials = vec![
        Trial::test("pods_on_two_nodes_reach_each_other", pods_on_two_nodes_reach_each_other),
        Trial::test("a_client_outside_reaches_a_node_and_is_reached", a_client_outside_reaches_a_node),
        Trial::test("nobody_listening_is_refused_at_once", nobody_listening_is_refused),
        Trial::test("a_pods_processes_are_in_its_cgroup_and_namespace", processes_are_in_the_pod),
        Trial::test("a_load_counts_while_it_runs_and_a_hold_notices_the_end", load_and_hold),
        Trial::test("a_removed_pod_is_gone_and_its_address_free", a_removed_pod_is_gone),
        Trial::test("a_closed_lab_leaves_nothing", a_closed_lab_leaves_nothing),
        Trial::test("a_killed_lab_is_removed_by_its_record", a_killed_lab_is_removed),
        Trial::test("a_lab_that_fails_half_way_leaves_nothing", a_failed_lab_leaves_nothing),
        Trial::test(
            "a_second_lab_of_one_name_is_refused_and_harms_nobody",
            a_second_lab_of_one_name_is_refused,
        ),
        Trial::test(
            "a_lab_without_its_record_is_removed_by_its_cgroups",
            a_lab_without_its_record_is_removed_by_its_cgroups,
        ),
        Trial::test("two_labs_of_one_layout_do_not_meet", two_labs_do_not_meet),
        Trial::test("an_agent_tells_why_it_failed", an_agent_tells_why_it_failed),
        Trial::test("a_plugin_is_called_as_a_runtime_does", plugin::called_as_a_runtime_does),
        Trial::test("a_plugin_that_refuses_is_quoted_and_told_to_delete", plugin::quoted_when_it_refuses),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// A lab's name and directory of this process alone.
fn fresh(number: u32) -> (String, PathBuf) {
    let name = format!("nd-{}-l{number}", std::process::id());
    let state_dir = std::env::temp_dir().join(&name);
    (name, state_dir)
}

fn next_number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn machine(name: &str, host: u8, pods: Option<u8>) -> NodeSpec {
    let net = |text: String| text.parse().expect("a valid network");
    NodeSpec {
        name: name.to_owned(),
        addresses: vec![net(format!("192.168.1.{host}/24")), net(format!("fd00:1::{host:x}/64"))],
        pod_cidrs: pods
            .map(|pods| vec![net(format!("172.16.{pods}.0/24")), net(format!("fd00:16:{pods}::/64"))])
            .unwrap_or_default(),
    }
}

fn spec(name: String, state_dir: PathBuf) -> Result<LabSpec, Failed> {
    let agent: Vec<OsString> = vec![std::env::current_exe()?.into(), "lab-agent".into()];
    Ok(LabSpec {
        name,
        state_dir,
        nodes: vec![machine("w1", 101, Some(1)), machine("w2", 102, Some(2))],
        clients: vec![machine("outside", 200, None)],
        gateway: vec!["192.168.1.1/24".parse()?, "fd00:1::1/64".parse()?],
        agent,
    })
}

fn build() -> Result<Lab, Failed> {
    let (name, state_dir) = fresh(next_number());
    Ok(Lab::create(&spec(name, state_dir)?)?)
}

fn plain(node: &Node, name: &str) -> Result<Pod, Error> {
    node.add_plain_pod(&PlainPodSpec::named(name))
}

fn check(good: bool, what: impl Into<Failed>) -> Checked {
    if good { Ok(()) } else { Err(what.into()) }
}

/// All that is named after a lab: namespaces and cgroups.
fn leftovers(name: &str, state_dir: &Path) -> Vec<PathBuf> {
    let prefix = format!("{name}-");
    let namespaces = std::fs::read_dir(netd_kernel::netns::NETNS_DIR).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = namespaces
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect();
    let cgroup = netd_kernel::mount::cgroup2_root().unwrap_or_default().join(name);
    found.extend([cgroup, state_dir.to_owned()].into_iter().filter(|path| path.exists()));
    found
}

fn pods_on_two_nodes_reach_each_other() -> Checked {
    let lab = build()?;
    lab.route_pods()?;
    let server = plain(lab.node("w2")?, "server")?;
    let neighbour = plain(lab.node("w2")?, "neighbour")?;
    let client = plain(lab.node("w1")?, "client")?;
    let _serving = server.serve(Serve::both("server", 8080))?;
    check(server.addresses().len() == 2, format!("addresses {:?}", server.addresses()))?;
    for from in [&client, &neighbour, &server] {
        for ip in server.addresses() {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::UdpUnconnected] {
                let target = SocketAddr::new(*ip, 8080);
                for outcome in from.connect(Connect::by(protocol, target).times(3))? {
                    let Outcome::Answered { server, peer, remote } = &outcome else {
                        return Err(
                            format!("{} to {target} by {protocol:?}: {outcome:?}", from.name()).into()
                        );
                    };
                    check(server == "server" && *remote == target, format!("{outcome:?}"))?;
                    check(from.addresses().contains(&peer.ip()), format!("no pod address: {outcome:?}"))?;
                }
            }
        }
    }
    Ok(())
}

fn a_client_outside_reaches_a_node() -> Checked {
    let lab = build()?;
    let (node, outside) = (lab.node("w1")?, lab.node("outside")?);
    let _on_node = node.serve(Serve::both("node", 30080))?;
    let _on_lan = lab.lan().serve(Serve::both("lan", 53))?;
    for prefix in node.addresses() {
        let outcomes = outside.connect(Connect::tcp(SocketAddr::new(prefix.ip(), 30080)))?;
        check(outcomes.iter().all(|o| o.server() == Some("node")), format!("{outcomes:?}"))?;
    }
    for gateway in ["192.168.1.1", "fd00:1::1"] {
        let outcomes = node.connect(Connect::udp(SocketAddr::new(gateway.parse()?, 53)))?;
        check(outcomes.iter().all(|o| o.server() == Some("lan")), format!("{outcomes:?}"))?;
    }
    let route = node.netlink()?.route_to("8.8.8.8".parse()?)?;
    check(route.gateway == Some("192.168.1.1".parse()?), format!("default route {route:?}"))?;
    check(matches!(lab.node("nobody"), Err(Error::Absent { .. })), "found a node that is not there")
}

fn nobody_listening_is_refused() -> Checked {
    let lab = build()?;
    lab.route_pods()?;
    let (server, client) = (plain(lab.node("w2")?, "server")?, plain(lab.node("w1")?, "client")?);
    for ip in server.addresses() {
        let target = SocketAddr::new(*ip, 9);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let outcomes = client.connect(Connect::by(protocol, target))?;
            check(outcomes == [Outcome::Refused], format!("{target} by {protocol:?}: {outcomes:?}"))?;
        }
    }
    let question = Lookup::new(SocketAddr::new(server.addresses()[0], 53), "example.", "A");
    check(client.lookup(question).is_err(), "an answer from a server that is not there")
}

fn processes_are_in_the_pod() -> Checked {
    let lab = build()?;
    let pod = plain(lab.node("w1")?, "pod")?;
    let serving = pod.serve(Serve::both("pod", 8080))?;
    let members = netd_kernel::cgroup::processes(pod.cgroup())?;
    check(members == [serving.pid()], format!("{members:?} instead of {}", serving.pid()))?;
    let inside = netd_kernel::Namespace::open(Path::new(&format!("/proc/{}/ns/net", serving.pid())))?;
    check(inside.is_same(pod.namespace_handle())?, "another namespace")?;
    drop(serving);
    let empty =
        eventually(LONG, || netd_kernel::cgroup::processes(pod.cgroup()).ok().filter(|pids| pids.is_empty()));
    check(empty.is_some(), "the server outlived its handle")
}

fn load_and_hold() -> Checked {
    let lab = build()?;
    lab.route_pods()?;
    let (server, client) = (plain(lab.node("w2")?, "server")?, plain(lab.node("w1")?, "client")?);
    let serving = server.serve(Serve::both("server", 8080))?;
    let target = SocketAddr::new(server.addresses()[0], 8080);
    let mut load = client.load(Load { timeout: Duration::from_millis(500), ..Load::tcp(target, 100) })?;
    let every = Duration::from_millis(20);
    let mut hold = client.agent(&AgentCommand::Hold(Hold { target, every, timeout: LONG }))?;
    let before = eventually(LONG, || load.counts().ok().filter(|c| c.answered_total() >= 20));
    let before = before.ok_or("the load did not begin")?;
    check(before.failed() == 0, format!("{before:?}"))?;
    let held = eventually(LONG, || hold.counts().ok().filter(|c| c.answered_total() >= 5));
    check(held.is_some_and(|counts| counts.failed() == 0), "the held connection did not talk")?;
    drop(serving);
    let after = eventually(LONG, || load.counts().ok().filter(|c| c.refused >= 5));
    check(after.is_some(), "the load did not see the server go")?;
    let counts = load.finish()?;
    check(
        counts.in_flight == 0 && counts.attempts == counts.answered_total() + counts.failed(),
        format!("{counts:?}"),
    )?;
    let broken = eventually(LONG, || hold.counts().ok().filter(|c| c.failed() > 0));
    check(broken.is_some(), "the held connection did not notice")
}

fn a_removed_pod_is_gone() -> Checked {
    let lab = build()?;
    let node = lab.node("w1")?;
    let pod = plain(node, "pod")?;
    let other = plain(node, "other")?;
    check(pod.addresses() != other.addresses(), "two pods with one address")?;
    check(plain(node, "pod").is_err(), "two pods with one name")?;
    let wanted = PlainPodSpec { addresses: pod.addresses().to_vec(), ..PlainPodSpec::named("third") };
    check(node.add_plain_pod(&wanted).is_err(), "a taken address was given")?;
    let _serving = pod.serve(Serve::both("pod", 8080))?;
    pod.remove()?;
    pod.remove()?;
    check(!pod.netns().exists() && !pod.cgroup().exists(), "something of the pod is left")?;
    let links = node.netlink()?.links()?;
    let ports = links.iter().filter(|link| link.master.is_some()).count();
    check(ports == 1, format!("{ports} ports instead of the other pod's: {links:?}"))?;
    check(node.pods().len() == 1, "the pod is still listed")?;
    let third = node.add_plain_pod(&wanted)?;
    check(third.addresses() == pod.addresses(), "the address was not free")
}

fn a_closed_lab_leaves_nothing() -> Checked {
    let lab = build()?;
    let (name, state_dir) = (lab.name().to_owned(), lab.state_dir().to_owned());
    let pod = plain(lab.node("w1")?, "pod")?;
    let mut serve = Serve::both("pod", 8080);
    serve.stay = true;
    let server = pod.serve(serve)?.detach();
    netd_kernel::mount::mount_bpffs(&lab.node("w1")?.state_dir().join("bpf"))?;
    let removed = lab.close()?;
    // LAN, two nodes, a client and a pod; the cgroup of the lab and one for each of those.
    let counts =
        (removed.processes, removed.namespaces, removed.cgroups, removed.mounts, removed.directories);
    check(counts == (1, 5, 6, 1, 1), format!("{removed}"))?;
    check(
        !netd_kernel::cgroup::processes(pod.cgroup()).is_ok_and(|pids| pids.contains(&server)),
        "still running",
    )?;
    let left = leftovers(&name, &state_dir);
    check(left.is_empty(), format!("{left:?}"))?;
    check(Lab::remove(&name, &state_dir)?.is_nothing(), "removed twice")
}

/// The victim's side of [`a_killed_lab_is_removed`]: builds a lab, starts a server and sleeps.
fn hold_lab(args: &[OsString]) -> Checked {
    let [name, state_dir] = args else { return Err("a name and a directory are needed".into()) };
    let lab = Lab::create(&spec(name.to_string_lossy().into_owned(), state_dir.into())?)?;
    let pod = plain(lab.node("w1")?, "pod")?;
    let mut serve = Serve::both("pod", 8080);
    serve.stay = true;
    pod.serve(serve)?.detach();
    netd_kernel::mount::mount_bpffs(&pod_dir(&lab))?;
    writeln!(std::io::stdout(), "standing")?;
    loop {
        std::thread::park();
    }
}

fn pod_dir(lab: &Lab) -> PathBuf {
    lab.state_dir().join("w1").join("bpf")
}

fn a_killed_lab_is_removed() -> Checked {
    let (name, state_dir) = fresh(next_number());
    let args: [OsString; 3] = ["hold-lab".into(), name.clone().into(), state_dir.clone().into()];
    let mut spawn = Spawn::new(std::env::current_exe()?, args);
    spawn.stdout = Stream::Pipe;
    spawn.stderr = Stream::Inherit;
    let mut holder = spawn.start()?;
    let mut line = String::new();
    BufReader::new(holder.take_stdout().ok_or("no output")?).read_line(&mut line)?;
    holder.kill(Signal::Kill)?;
    holder.wait()?;
    let standing = leftovers(&name, &state_dir).len();
    let removed = Lab::remove(&name, &state_dir)?;
    check(line == "standing\n", format!("the lab was not built: {line:?}"))?;
    check(standing == 7, format!("{standing} things were left by the killed process"))?;
    let counts =
        (removed.processes, removed.namespaces, removed.cgroups, removed.mounts, removed.directories);
    check(counts == (1, 5, 6, 1, 1), format!("{removed}"))?;
    let left = leftovers(&name, &state_dir);
    check(left.is_empty(), format!("{left:?}"))?;
    check(Lab::remove(&name, &state_dir)?.is_nothing(), "removed twice")
}

fn a_failed_lab_leaves_nothing() -> Checked {
    let (name, state_dir) = fresh(next_number());
    let mut bad = spec(name.clone(), state_dir.clone())?;
    // The same address twice on one machine: refused by the kernel when most is built already.
    let twice = bad.clients[0].addresses[0];
    bad.clients[0].addresses.push(twice);
    let error = Lab::create(&bad).err().ok_or("the lab was built")?;
    check(error.to_string().contains("192.168.1.200"), error.to_string())?;
    let left = leftovers(&name, &state_dir);
    check(left.is_empty(), format!("{left:?}"))?;
    Ok(())
}

fn a_second_lab_of_one_name_is_refused() -> Checked {
    let (name, state_dir) = fresh(next_number());
    let first = Lab::create(&spec(name.clone(), state_dir.clone())?)?;
    let serving = first.node("w1")?.serve(Serve::both("w1", 8080))?;
    let other_dir = state_dir.with_extension("other");
    for dir in [&state_dir, &other_dir] {
        let again = Lab::create(&spec(name.clone(), dir.clone())?);
        check(matches!(again, Err(Error::Standing { .. })), format!("{again:?}"))?;
    }
    check(!other_dir.exists(), "the failure left its directory")?;
    check(first.node("w1")?.netns().exists() && process::exists(serving.pid()), "the first lab was harmed")
}

fn a_lab_without_its_record_is_removed_by_its_cgroups() -> Checked {
    let (name, state_dir) = fresh(next_number());
    let lab = Lab::create(&spec(name.clone(), state_dir.clone())?)?;
    plain(lab.node("w1")?, "pod")?;
    lab.keep();
    std::fs::remove_dir_all(&state_dir)?;
    let removed = Lab::remove(&name, &state_dir)?;
    check((removed.namespaces, removed.cgroups) == (5, 6), format!("{removed}"))?;
    let left = leftovers(&name, &state_dir);
    check(left.is_empty(), format!("{left:?}"))
}

fn two_labs_do_not_meet() -> Checked {
    let (one, two) = (build()?, build()?);
    let _in_one = one.node("w2")?.serve(Serve::both("one", 8080))?;
    let _in_two = two.node("w2")?.serve(Serve::both("two", 8080))?;
    let target = SocketAddr::new(IpAddr::from([192, 168, 1, 102]), 8080);
    for (lab, name) in [(&one, "one"), (&two, "two")] {
        let outcomes = lab.node("w1")?.connect(Connect::tcp(target).times(5))?;
        check(outcomes.iter().all(|o| o.server() == Some(name)), format!("{outcomes:?}"))?;
    }
    drop(one);
    let outcomes = two.node("w1")?.connect(Connect::tcp(target))?;
    check(outcomes[0].server() == Some("two"), format!("{outcomes:?}"))
}

fn an_agent_tells_why_it_failed() -> Checked {
    let lab = build()?;
    let node = lab.node("w1")?;
    let _first = node.serve(Serve::both("first", 8080))?;
    let second = node.serve(Serve::both("second", 8080));
    let error = second.err().ok_or("two servers on one port")?.to_string();
    check(error.contains("in use"), error)?;
    let (name, state_dir) = fresh(next_number());
    let wrong = LabSpec { agent: vec!["/bin/ls".into()], ..spec(name, state_dir)? };
    let lab = Lab::create(&wrong)?;
    let error = lab.node("w1")?.serve(Serve::both("ls", 8080)).err().ok_or("ls served")?.to_string();
    check(error.contains("status 2") && error.contains("cannot access"), error)
}
