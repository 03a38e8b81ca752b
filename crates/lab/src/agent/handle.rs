//! The starter's side of an agent.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use netd_kernel::clock::Deadline;
use netd_kernel::exec::{Child, Spawn, Stream};
use netd_kernel::process::Signal;

use super::program::ASK_COUNTS;
use super::{AgentCommand, Report};
use crate::place::Seat;
use crate::traffic::Counts;
use crate::{Error, Result};

/// How long an agent may take to start, beyond what it is asked to do.
const START: Duration = Duration::from_secs(20);

/// A running agent; it is killed when this is dropped.
#[derive(Debug)]
pub struct AgentHandle {
    child: Child,
    stdin: Option<ChildStdin>,
    reports: Receiver<Report>,
    place: String,
    /// Where it complains, among others of its node.
    log: PathBuf,
    /// The most that an agent takes to end, as its probes in flight have to.
    grace: Duration,
    detached: bool,
}

impl AgentHandle {
    /// Starts an agent in the seat's namespace and cgroup and waits until it is ready, if it says so.
    pub(crate) fn start(seat: &Seat, command: &AgentCommand) -> Result<Self> {
        let place = seat.namespace.path().display().to_string();
        let failed = |detail: String| Error::Agent { place: place.clone(), detail };
        let (program, first) =
            seat.agent.split_first().ok_or_else(|| failed("the lab was made without an agent".to_owned()))?;
        let text = serde_json::to_string(command).map_err(|e| failed(e.to_string()))?;
        let mut spawn = Spawn::new(program, first.iter().cloned().chain([text.into()]));
        spawn.netns = Some(seat.namespace.path().to_owned());
        spawn.cgroup = Some(seat.cgroup.clone());
        spawn.stdin = Stream::Pipe;
        spawn.stdout = Stream::Pipe;
        spawn.stderr = Stream::File(seat.log.clone());
        // Ctrl-C at the starter's terminal is the starter's business.
        spawn.own_group = true;
        let mut child = spawn.start()?;
        let reports = read_reports(child.take_stdout());
        let stdin = child.take_stdin();
        let (grace, says_ready) = match command {
            AgentCommand::Serve(_) => (START, true),
            AgentCommand::Load(load) => (START + load.timeout * 2, true),
            AgentCommand::Hold(hold) => (START + hold.timeout + hold.every, true),
            AgentCommand::Connect(connect) => (START + connect.limit(), false),
            AgentCommand::Lookup(question) => (START + question.timeout * 2, false),
        };
        let mut handle = Self {
            child,
            stdin,
            reports,
            place: place.clone(),
            log: seat.log.clone(),
            grace,
            detached: false,
        };
        if says_ready {
            handle.expect(START, |report| matches!(report, Report::Ready).then_some(()))?;
        }
        Ok(handle)
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// What a load or a held connection has counted so far.
    pub fn counts(&mut self) -> Result<Counts> {
        let asked = match &mut self.stdin {
            Some(stdin) => writeln!(stdin, "{ASK_COUNTS}"),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        };
        asked.map_err(|e| self.failure(format!("ask for the counts: {e}")))?;
        self.expect(START, counts_of)
    }

    /// Ends a load or a held connection and returns its counts, once the probes in flight have ended.
    pub fn finish(mut self) -> Result<Counts> {
        self.stdin = None;
        let grace = self.grace;
        self.expect(grace, counts_of)
    }

    /// Leaves the agent running; only the lab's removal ends a server with [`super::Serve::stay`].
    pub fn detach(mut self) -> u32 {
        self.detached = true;
        self.child.pid()
    }

    /// Collects what the agent says until it ends, for one that ends by itself.
    pub(crate) fn collect(mut self, limit: Duration) -> Result<Vec<Report>> {
        let deadline = Deadline::after(limit + START);
        let mut all = Vec::new();
        loop {
            match self.reports.recv_timeout(deadline.left()) {
                Ok(Report::Failed { message }) => return Err(self.failure(message)),
                Ok(report) => all.push(report),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.failure(format!("not done within {limit:?}")));
                }
            }
        }
        match self.child.wait()? {
            0 => Ok(all),
            status => Err(self.end_failure(status)),
        }
    }

    /// Waits for a report that `wanted` wants.
    fn expect<T>(&mut self, limit: Duration, wanted: impl Fn(Report) -> Option<T>) -> Result<T> {
        let deadline = Deadline::after(limit);
        loop {
            match self.reports.recv_timeout(deadline.left()) {
                Ok(Report::Failed { message }) => return Err(self.failure(message)),
                Ok(report) => {
                    if let Some(value) = wanted(report) {
                        return Ok(value);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.failure(format!("said nothing within {limit:?}")));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    return Err(self.end_failure(status));
                }
            }
        }
    }

    /// An end that it said nothing about on standard output: the log's last line may tell.
    fn end_failure(&self, status: i32) -> Error {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last = log.lines().last().map(|line| format!(": {line}")).unwrap_or_default();
        self.failure(format!("ended with status {status}{last}"))
    }

    fn failure(&self, detail: String) -> Error {
        Error::Agent { place: self.place.clone(), detail }
    }
}

impl Drop for AgentHandle {
    fn drop(&mut self) {
        if self.detached {
            return;
        }
        let ended = self.child.kill(Signal::Kill).and_then(|()| self.child.wait());
        if let Err(error) = ended {
            tracing::warn!(%error, place = %self.place, "cannot end an agent");
        }
    }
}

fn counts_of(report: Report) -> Option<Counts> {
    match report {
        Report::Counts(counts) => Some(counts),
        Report::Ready | Report::Outcome(_) | Report::Answer(_) | Report::Failed { .. } => None,
    }
}

/// Reads the agent's lines on a thread that ends with the agent.
fn read_reports(stdout: Option<ChildStdout>) -> Receiver<Report> {
    let (sender, receiver) = channel();
    if let Some(stdout) = stdout {
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(|line| line.ok()) {
                let report = serde_json::from_str(&line)
                    .unwrap_or_else(|error| Report::Failed { message: format!("said {line:?}: {error}") });
                if sender.send(report).is_err() {
                    return;
                }
            }
        });
    }
    receiver
}
