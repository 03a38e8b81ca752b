//! What nodes and pods have in common: a network namespace and a cgroup to run things in.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use netd_kernel::exec::{Child, Spawn};
use netd_kernel::{Namespace, Netlink};

use crate::agent::{AgentCommand, AgentHandle, Connect, Load, Lookup, LookupAnswer, Report, Serve};
use crate::traffic::Outcome;
use crate::{Error, Result};

/// The namespace and cgroup behind a [`Place`].
#[derive(Debug)]
pub struct Seat {
    pub(crate) namespace: Namespace,
    pub(crate) cgroup: PathBuf,
    /// Where its agents complain.
    pub(crate) log: PathBuf,
    pub(crate) agent: Arc<[OsString]>,
}

/// A machine or pod: somewhere to run things.
pub trait Place {
    /// The namespace and cgroup.
    fn seat(&self) -> &Seat;

    /// The path of the network namespace.
    fn netns(&self) -> &Path {
        self.seat().namespace.path()
    }

    /// The cgroup's directory.
    fn cgroup(&self) -> &Path {
        &self.seat().cgroup
    }

    /// The open network namespace.
    fn namespace_handle(&self) -> &Namespace {
        &self.seat().namespace
    }

    /// Runs `work` in the network namespace, on a thread of its own.
    ///
    /// The thread's process stays in the cgroup it was in: use [`Place::spawn`] where socket hooks matter.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(self.seat().namespace.run(work)?)
    }

    /// Opens a netlink conversation in the network namespace.
    fn netlink(&self) -> Result<Netlink> {
        Ok(Netlink::open_in(&self.seat().namespace)?)
    }

    /// Starts a process in the network namespace and the cgroup.
    fn spawn(&self, mut spawn: Spawn) -> Result<Child> {
        spawn.netns = Some(self.netns().to_owned());
        spawn.cgroup = Some(self.cgroup().to_owned());
        Ok(spawn.start()?)
    }

    /// Starts an agent process; one that serves or loads has said that it is ready.
    fn agent(&self, command: &AgentCommand) -> Result<AgentHandle> {
        AgentHandle::start(self.seat(), command)
    }

    /// Starts a server, which ends when the handle is dropped.
    fn serve(&self, serve: Serve) -> Result<AgentHandle> {
        self.agent(&AgentCommand::Serve(serve))
    }

    /// Starts an open-loop client, which ends when the handle is dropped.
    fn load(&self, load: Load) -> Result<AgentHandle> {
        self.agent(&AgentCommand::Load(load))
    }

    /// Makes connections from one process and tells how each ended.
    fn connect(&self, connect: Connect) -> Result<Vec<Outcome>> {
        let limit = connect.limit();
        let reports = self.agent(&AgentCommand::Connect(connect))?.collect(limit)?;
        Ok(reports
            .into_iter()
            .filter_map(|report| match report {
                Report::Outcome(outcome) => Some(outcome),
                Report::Ready | Report::Counts(_) | Report::Answer(_) | Report::Failed { .. } => None,
            })
            .collect())
    }

    /// Asks a DNS server.
    ///
    /// # Errors
    /// When no answer came in time, or none that can be read.
    fn lookup(&self, lookup: Lookup) -> Result<LookupAnswer> {
        let limit = lookup.timeout * 2;
        let reports = self.agent(&AgentCommand::Lookup(lookup))?.collect(limit)?;
        let answer = reports.into_iter().find_map(|report| match report {
            Report::Answer(answer) => Some(answer),
            Report::Ready | Report::Counts(_) | Report::Outcome(_) | Report::Failed { .. } => None,
        });
        let place = self.netns().display().to_string();
        answer.ok_or(Error::Agent { place, detail: "no DNS answer was reported".to_owned() })
    }
}
