//! Programs in pods, on machines and outside, that make connections for a test. A test speaks to them over a
//! unix socket it reaches by path, so neither the network under test nor the API server is on the way.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// One place connections are made from.
#[derive(Debug, Clone)]
pub struct Probe {
    socket: PathBuf,
    place: String,
}

/// What an attempt that failed failed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// `refused`, `denied`, `reset`, `timeout`, `unreachable`, `not-found`, `dns` or `other`.
    pub kind: String,
    /// The error's text.
    pub error: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.error)
    }
}

/// What a load saw, every attempt counted.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Exchanges begun.
    pub attempts: u64,
    /// Exchanges without an answer.
    pub failed: u64,
    /// Answers by the name of who answered.
    pub answers: BTreeMap<String, u64>,
    /// Failures by kind.
    pub errors: BTreeMap<String, u64>,
    /// The first failures: milliseconds since the start, text.
    pub samples: Vec<(u64, String)>,
    /// Median and 99th percentile of the time to an answer, in microseconds.
    pub latency_us: (u64, u64),
    /// The longest time without an answer, in milliseconds.
    pub max_gap_ms: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99) = self.latency_us;
        write!(
            f,
            "attempts {} failed {} answered by {} p50 {p50} us p99 {p99} us longest gap {} ms",
            self.attempts,
            self.failed,
            self.answers.len(),
            self.max_gap_ms
        )?;
        if self.failed > 0 {
            write!(f, " errors {:?} first {:?}", self.errors, self.samples)?;
        }
        Ok(())
    }
}

/// How a load or a single exchange is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A new TCP connection and one HTTP request.
    Http,
    /// A new UDP socket and one datagram.
    Udp,
    /// A new TCP connection, closed at once.
    Connect,
    /// One TCP connection kept open.
    Stream,
    /// One UDP socket kept open.
    OpenUdp,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Http => "http",
            Kind::Udp => "udp",
            Kind::Connect => "connect",
            Kind::Stream => "stream",
            Kind::OpenUdp => "udp-open",
        }
    }
}

/// A load under way. It ends when dropped.
#[derive(Debug)]
pub struct Load {
    stream: UnixStream,
    place: String,
}

impl Probe {
    /// A probe that takes requests on `socket`; `place` says where it is, for messages.
    #[must_use]
    pub fn new(socket: PathBuf, place: &str) -> Probe {
        Probe { socket, place: place.into() }
    }

    /// Where connections are made from.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Makes sure the probe answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn ping(&self) -> Result<()> {
        self.request(&json!({"op": "ping"})).map(drop)
    }

    /// Makes one fresh connection and returns who answered.
    ///
    /// # Errors
    /// When the probe itself cannot be reached. A failed attempt is the inner `Err`.
    pub fn once(&self, kind: Kind, target: &str) -> Result<Result<String, Failure>> {
        self.once_within(kind, target, Duration::from_secs(3))
    }

    /// Makes one fresh connection with a time limit.
    ///
    /// # Errors
    /// As [`Probe::once`].
    pub fn once_within(&self, kind: Kind, target: &str, limit: Duration) -> Result<Result<String, Failure>> {
        let timeout = u64::try_from(limit.as_millis())?;
        let reply = self
            .request(&json!({"op": "once", "kind": kind.word(), "target": target, "timeout_ms": timeout}))?;
        Ok(outcome(&reply).map(|()| reply["body"].as_str().unwrap_or_default().to_owned()))
    }

    /// Looks a name up with the resolver configuration the probe finds; `record` is `A`, `AAAA`, `SRV` or
    /// `PTR`.
    ///
    /// # Errors
    /// As [`Probe::once`].
    pub fn lookup(&self, record: &str, name: &str) -> Result<Result<Vec<String>, Failure>> {
        let reply =
            self.request(&json!({"op": "lookup", "kind": record, "target": name, "timeout_ms": 3000}))?;
        let answers = reply["answers"].as_array().into_iter().flatten();
        let answers = answers.filter_map(|answer| answer.as_str().map(str::to_owned)).collect();
        Ok(outcome(&reply).map(|()| answers))
    }

    /// Starts a load of `rate` exchanges a second.
    ///
    /// # Errors
    /// When the probe cannot be reached.
    pub fn load(&self, kind: Kind, target: &str, rate: u32) -> Result<Load> {
        let mut stream = self.connect()?;
        // An exchange on the one open socket holds up those after it.
        let timeout = if kind == Kind::OpenUdp { 1000 } else { 5000 };
        let request =
            json!({"op": "load", "kind": kind.word(), "target": target, "rate": rate, "timeout_ms": timeout});
        writeln!(stream, "{request}")?;
        Ok(Load { stream, place: self.place.clone() })
    }

    fn connect(&self) -> Result<UnixStream> {
        UnixStream::connect(&self.socket)
            .with_context(|| format!("reach the probe {} at {}", self.place, self.socket.display()))
    }

    fn request(&self, request: &Value) -> Result<Value> {
        let mut stream = self.connect()?;
        writeln!(stream, "{request}")?;
        read_reply(stream, &self.place)
    }
}

impl Load {
    /// Ends the load, waits for the exchanges under way, and returns what was counted.
    ///
    /// # Errors
    /// When the probe is gone.
    pub fn finish(mut self) -> Result<Report> {
        writeln!(self.stream)?;
        let place = self.place.clone();
        let reply = read_reply(self.stream, &place)?;
        if let Err(failure) = outcome(&reply) {
            bail!("load from {place}: {failure}");
        }
        let number = |field: &str| reply[field].as_u64().unwrap_or_default();
        let samples = reply["samples"].as_array().into_iter().flatten();
        Ok(Report {
            attempts: number("attempts"),
            failed: number("failed"),
            answers: serde_json::from_value(reply["answers"].clone())?,
            errors: serde_json::from_value(reply["errors"].clone())?,
            samples: samples
                .map(|one| {
                    (one["at_ms"].as_u64().unwrap_or(0), one["error"].as_str().unwrap_or("").to_owned())
                })
                .collect(),
            latency_us: (number("p50_us"), number("p99_us")),
            max_gap_ms: number("max_gap_ms"),
        })
    }
}

fn read_reply(stream: UnixStream, place: &str) -> Result<Value> {
    let mut line = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    BufReader::new(stream).read_line(&mut line).with_context(|| format!("read from the probe {place}"))?;
    serde_json::from_str(&line).with_context(|| format!("the probe {place} answered {line:?}"))
}

fn outcome(reply: &Value) -> Result<(), Failure> {
    if reply["ok"] == Value::Bool(true) {
        return Ok(());
    }
    let text = |field: &str| reply[field].as_str().unwrap_or("other").to_owned();
    Err(Failure { kind: text("kind"), error: text("error") })
}
