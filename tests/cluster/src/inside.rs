//! The first process of a machine. It makes the machine's own view of the file system, then starts, ends and
//! reaps processes on request. It ends when its standard input does, so a killed test takes its machines with
//! it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::prerequisites::find;

mod view;

/// First argument of a test binary that is to be the first process of a machine; the second is its
/// description.
pub const ARGUMENT: &str = "machine-first-process";
/// Name of the socket for requests, in the machine's directory.
pub(crate) const SOCKET: &str = "machine.sock";

/// Is the first process of a machine, until standard input ends.
///
/// # Errors
/// When the machine cannot be made.
pub fn run(spec: &str) -> Result<()> {
    let spec: Value = serde_json::from_str(spec)?;
    let path =
        |field: &str| spec[field].as_str().map(PathBuf::from).with_context(|| format!("{field} is missing"));
    let dir = path("dir")?;
    fs::write(path("cgroup")?.join("cgroup.procs"), "0").context("join the machine's cgroup")?;
    view::make(&dir)?;
    fs::write("/proc/sys/kernel/hostname", spec["name"].as_str().context("name is missing")?)?;
    let socket = dir.join(SOCKET);
    let listener = UnixListener::bind(&socket).with_context(|| format!("bind {}", socket.display()))?;
    let children = Arc::new(Children::default());
    let reaper = Arc::clone(&children);
    thread::spawn(move || reaper.reap());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let children = Arc::clone(&children);
            thread::spawn(move || serve(stream, &children));
        }
    });
    let mut ignored = Vec::new();
    std::io::stdin().read_to_end(&mut ignored)?;
    process::exit(0);
}

fn serve(mut stream: UnixStream, children: &Children) {
    let mut line = String::new();
    let answered = stream
        .try_clone()
        .and_then(|copy| BufReader::new(copy).read_line(&mut line))
        .map_err(anyhow::Error::from)
        .and_then(|_| perform(&serde_json::from_str(&line)?, children));
    let reply = answered.unwrap_or_else(|error| json!({"error": format!("{error:#}")}));
    if let Err(error) = writeln!(stream, "{reply}") {
        eprintln!("answer {line}: {error}");
    }
}

fn perform(request: &Value, children: &Children) -> Result<Value> {
    let word = |field: &str| request[field].as_str().with_context(|| format!("request without {field}"));
    match word("op")? {
        "ping" => Ok(json!({})),
        "write" => {
            let path = Path::new(word("path")?);
            make_parent(path)?;
            fs::write(path, word("content")?).with_context(|| format!("write {}", path.display()))?;
            Ok(json!({}))
        }
        "copy" => {
            let path = Path::new(word("path")?);
            make_parent(path)?;
            // A new inode: the old program may be running.
            let fresh = path.with_extension("new");
            fs::copy(word("from")?, &fresh)
                .with_context(|| format!("copy {}", word("from").unwrap_or("")))?;
            fs::rename(&fresh, path)?;
            Ok(json!({}))
        }
        "spawn" => children.spawn(word("name")?, request),
        "alive" => Ok(json!({"alive": children.alive(word("name")?)?})),
        "end" => {
            let signal = Signal::try_from(i32::try_from(request["signal"].as_i64().context("signal")?)?)?;
            let deadline = Duration::from_millis(request["deadline_ms"].as_u64().context("deadline_ms")?);
            children.end(word("name")?, signal, deadline)
        }
        "run" => {
            let deadline = Duration::from_millis(request["deadline_ms"].as_u64().context("deadline_ms")?);
            children.run(&argv(request)?, request["stdin"].as_str().unwrap_or_default(), deadline)
        }
        other => bail!("unknown request {other}"),
    }
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().context("path has no parent")?;
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))
}

fn argv(request: &Value) -> Result<Vec<String>> {
    let words: Vec<String> = serde_json::from_value(request["argv"].clone()).context("argv")?;
    let program = words.first().context("argv is empty")?;
    // Checked here since a failed start would be waited for by `Command` and by the reaper.
    let known = if program.contains('/') { Path::new(program).is_file() } else { find(program).is_some() };
    ensure!(known, "no such program: {program}");
    Ok(words)
}

/// The children of the first process, asked-for and orphaned ones.
#[derive(Default)]
struct Children {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Last process of each daemon.
    daemons: BTreeMap<String, i32>,
    /// How our own children ended: exit code, or 128 + signal.
    ended: BTreeMap<i32, i32>,
}

impl Children {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for every child there ever is. The peek and the wait are apart so that a pid is not used again
    /// between a start and its entry in the table.
    fn reap(&self) {
        loop {
            match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => {
                    let mut state = self.state();
                    if let Some((pid, code)) = waitpid(pid, Some(WaitPidFlag::WNOHANG)).ok().and_then(ending)
                    {
                        state.ended.insert(pid, code);
                        self.changed.notify_all();
                    }
                }
                Err(Errno::ECHILD) => thread::sleep(Duration::from_millis(20)),
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn spawn(&self, name: &str, request: &Value) -> Result<Value> {
        let argv = argv(request)?;
        let (program, arguments) = argv.split_first().context("argv is empty")?;
        let log = File::options().create(true).append(true).open(request["log"].as_str().context("log")?)?;
        let env: BTreeMap<String, String> = serde_json::from_value(request["env"].clone())?;
        let mut state = self.state();
        if let Some(pid) = state.daemons.get(name)
            && !state.ended.contains_key(pid)
        {
            bail!("{name} runs already, as process {pid}");
        }
        let child = Command::new(program)
            .args(arguments)
            .envs(env)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {program}"))?;
        let pid = i32::try_from(child.id())?;
        state.ended.remove(&pid);
        state.daemons.insert(name.into(), pid);
        Ok(json!({"pid": pid}))
    }

    fn alive(&self, name: &str) -> Result<bool> {
        let state = self.state();
        let pid = state.daemons.get(name).with_context(|| format!("{name} was never started"))?;
        Ok(!state.ended.contains_key(pid))
    }

    fn end(&self, name: &str, signal: Signal, deadline: Duration) -> Result<Value> {
        let state = self.state();
        let pid = *state.daemons.get(name).with_context(|| format!("{name} was never started"))?;
        if !state.ended.contains_key(&pid) {
            kill(Pid::from_raw(pid), signal)?;
        }
        drop(state);
        let code = self.wait(pid, deadline).with_context(|| format!("{name} after {signal}"))?;
        Ok(json!({"code": code}))
    }

    fn run(&self, argv: &[String], stdin: &str, deadline: Duration) -> Result<Value> {
        let (program, arguments) = argv.split_first().context("argv is empty")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = {
            let mut state = self.state();
            let child = command.spawn().with_context(|| format!("start {program}"))?;
            state.ended.remove(&i32::try_from(child.id())?);
            child
        };
        let feed = child.stdin.take().context("stdin")?;
        let stdin = stdin.to_owned();
        // A program need not read its input.
        thread::spawn(move || { feed }.write_all(stdin.as_bytes()));
        let errors = child.stderr.take().context("stderr")?;
        let errors = thread::spawn(move || drain(errors));
        let output = drain(child.stdout.take().context("stdout")?);
        let code = self.wait(i32::try_from(child.id())?, deadline)?;
        let errors = errors.join().unwrap_or_default();
        Ok(json!({"code": code, "stdout": output, "stderr": errors}))
    }

    fn wait(&self, pid: i32, deadline: Duration) -> Result<i32> {
        let end = Instant::now() + deadline;
        let mut state = self.state();
        loop {
            if let Some(code) = state.ended.get(&pid) {
                return Ok(*code);
            }
            let left = end.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "process {pid} still runs after {deadline:?}");
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn ending(status: WaitStatus) -> Option<(i32, i32)> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "only the two ways to end are asked for")]
    match status {
        WaitStatus::Exited(pid, code) => Some((pid.as_raw(), code)),
        WaitStatus::Signaled(pid, signal, _) => Some((pid.as_raw(), 128 + signal as i32)),
        _ => None,
    }
}

fn drain(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    if let Err(error) = pipe.read_to_end(&mut bytes) {
        bytes.extend_from_slice(format!("(read: {error})").as_bytes());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
