//! The calls of plugins, as libcni and containerd make them.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use netd_kernel::clock::{Clock, SystemClock};
use netd_kernel::exec::{PROGRAM_PATH, Spawn, Stream};
use serde_json::Value;

use super::{INTERFACE, Pod};
use crate::contender::Plugin;
use crate::probe::Around;
use crate::series::Took;

/// Much longer than any call takes: after this it hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// A plugin that did not succeed.
#[derive(Debug)]
pub(super) struct Refused {
    what: String,
    /// The code of its error.
    pub(super) code: Option<u64>,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Refused {}

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
        }
    }
}

/// How the plugins of a bed are called.
#[derive(Debug)]
pub(super) struct Calls {
    /// In the order of ADD.
    pub(super) chain: Vec<Plugin>,
    /// `CNI_PATH`.
    pub(super) path: PathBuf,
    /// Whether pods get their host port.
    pub(super) maps: bool,
}

impl Calls {
    pub(super) fn add(&self, pod: &mut Pod) -> Result<Took> {
        self.run(Verb::Add, pod, None)
    }

    pub(super) fn del(&self, pod: &mut Pod) -> Result<Took> {
        self.run(Verb::Del, pod, None)
    }

    /// Calls the chain as libcni does: ADD forwards, each with the result so far; DEL backwards, each with the last.
    pub(super) fn run(&self, verb: Verb, pod: &mut Pod, around: Option<&dyn Around>) -> Result<Took> {
        let mut sum = Took::default();
        let mut result = pod.result.take();
        let backwards = verb == Verb::Del;
        let order: Vec<&Plugin> =
            if backwards { self.chain.iter().rev().collect() } else { self.chain.iter().collect() };
        for plugin in order {
            let input = plugin.input(result.as_ref(), self.maps.then_some(pod.host_port));
            let (took, output) = Self::call(verb, &self.spawn(verb, plugin, pod, around), &input)?;
            sum.time += took.time;
            sum.processor += took.processor;
            if verb == Verb::Add {
                result = Some(serde_json::from_slice(&output).context("read the result of an ADD")?);
            }
        }
        pod.result = result.filter(|_| verb == Verb::Add);
        Ok(sum)
    }

    /// Starts one plugin in the calling thread's namespace and waits for its end; the clock runs from before the start
    /// until the kernel has said how it ended.
    fn call(verb: Verb, spawn: &Spawn, input: &[u8]) -> Result<(Took, Vec<u8>)> {
        let start = SystemClock.now();
        let mut child = spawn.start()?;
        // Both sides' configurations and results are far below the 64 KiB that a pipe holds.
        if let Some(mut stdin) = child.take_stdin() {
            stdin.write_all(input).context("write a configuration")?;
        }
        let (stdout, stderr) = (child.take_stdout(), child.take_stderr());
        let usage = child.finish(LIMIT)?;
        let time = SystemClock.now().saturating_duration_since(start);
        let output = drain(stdout)?;
        if usage.status != 0 {
            let answer: Value = serde_json::from_slice(&output).unwrap_or_default();
            let said =
                format!("{}{}", String::from_utf8_lossy(&output), String::from_utf8_lossy(&drain(stderr)?));
            let program = spawn.program.display();
            let what = format!("{} by {program}: status {}: {}", verb.name(), usage.status, said.trim());
            return Err(Refused { what, code: answer["code"].as_u64() }.into());
        }
        Ok((Took { time, processor: usage.processor }, output))
    }

    fn spawn(&self, verb: Verb, plugin: &Plugin, pod: &Pod, around: Option<&dyn Around>) -> Spawn {
        let program = plugin.program.as_path();
        let mut spawn = around
            .map_or_else(|| Spawn::new(program, Vec::<OsString>::new()), |around| around.around(program));
        spawn.env = self.environment(verb, pod);
        (spawn.stdin, spawn.stdout, spawn.stderr) = (Stream::Pipe, Stream::Pipe, Stream::Pipe);
        spawn
    }

    /// As containerd sets it.
    fn environment(&self, verb: Verb, pod: &Pod) -> Vec<(OsString, OsString)> {
        let id = &pod.id;
        let (name, uid) = (pod.host_port, "2f1c9a04-6f0f-4d0e-9d53-0c4f6b1f7e21");
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-7d4b9c6f5d-{name};\
             K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={uid}"
        );
        vec![
            ("PATH".into(), PROGRAM_PATH.into()),
            ("CNI_COMMAND".into(), verb.name().into()),
            ("CNI_CONTAINERID".into(), id.into()),
            ("CNI_NETNS".into(), pod.space.path.clone().into_os_string()),
            ("CNI_IFNAME".into(), INTERFACE.into()),
            ("CNI_PATH".into(), self.path.clone().into_os_string()),
            ("CNI_ARGS".into(), arguments.into()),
        ]
    }
}

/// Reads what is in the pipe of a process that has ended.
fn drain(pipe: Option<impl Read>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut bytes).context("read the output of a plugin")?;
    }
    Ok(bytes)
}
