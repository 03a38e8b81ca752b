//! The agent's own side: read the command, do it, report.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use netd_kernel::clock::{Clock, SystemClock};

use super::{AgentCommand, Connect, Hold, Report};
use crate::dns::lookup;
use crate::traffic::{Counts, Load, Loader, Outcome, Serve, Server, probe_once};

/// Asks a load or a held connection for its counts.
pub(super) const ASK_COUNTS: &str = "counts";

/// Runs an agent with the arguments behind the hidden subcommand and returns the exit status.
///
/// 0: done; 1: could not, and said why in the last line; 2: called wrongly.
pub fn main(args: impl IntoIterator<Item = OsString>) -> i32 {
    let mut args = args.into_iter();
    let text = args.next().map(|arg| arg.to_string_lossy().into_owned()).unwrap_or_default();
    let command = match serde_json::from_str::<AgentCommand>(&text) {
        Ok(command) if args.next().is_none() => command,
        Ok(_) => return wrong("more than one argument"),
        Err(error) => return wrong(&error.to_string()),
    };
    match run(&command) {
        Ok(()) => 0,
        Err(error) => {
            let report = Report::Failed { message: error.to_string() };
            // With nobody to read it, the status must do.
            let _ = say(&report);
            1
        }
    }
}

fn wrong(why: &str) -> i32 {
    let _ = writeln!(io::stderr(), "this is netd's traffic agent; it takes one command in JSON: {why}");
    2
}

fn run(command: &AgentCommand) -> io::Result<()> {
    match command {
        AgentCommand::Serve(serve) => serve_on(serve),
        AgentCommand::Connect(connect) => connect_to(connect),
        AgentCommand::Load(load) => load_on(load),
        AgentCommand::Hold(hold) => hold_on(hold),
        AgentCommand::Lookup(question) => say(&Report::Answer(lookup(question)?)),
    }
}

/// Writes one line and flushes it.
fn say(report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_string(report)?;
    line.push('\n');
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.flush()
}

/// Serves until standard input ends, or for good.
fn serve_on(serve: &Serve) -> io::Result<()> {
    let _server = Server::start(serve)?;
    say(&Report::Ready)?;
    for line in io::stdin().lock().lines() {
        line?;
    }
    if !serve.stay {
        return Ok(());
    }
    loop {
        std::thread::park();
    }
}

fn connect_to(connect: &Connect) -> io::Result<()> {
    for number in 0..connect.count {
        if number > 0 {
            std::thread::sleep(connect.pause);
        }
        say(&Report::Outcome(probe_once(connect.protocol, connect.target, connect.timeout)))?;
    }
    Ok(())
}

/// Loads until standard input ends; each line asks for the counts.
fn load_on(load: &Load) -> io::Result<()> {
    let loader = Loader::start(load);
    say(&Report::Ready)?;
    answer_asks(|| loader.counts())?;
    say(&Report::Counts(loader.stop()))
}

fn answer_asks(counts: impl Fn() -> Counts) -> io::Result<()> {
    for line in io::stdin().lock().lines() {
        if line?.trim() == ASK_COUNTS {
            say(&Report::Counts(counts()))?;
        }
    }
    Ok(())
}

/// Talks on one connection until standard input ends; a connection that broke stays broken.
fn hold_on(hold: &Hold) -> io::Result<()> {
    let stream = TcpStream::connect_timeout(&hold.target, hold.timeout)?;
    stream.set_read_timeout(Some(hold.timeout))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut greeting = String::new();
    reader.read_line(&mut greeting)?;
    let server = greeting.split(' ').next().unwrap_or_default().to_owned();
    say(&Report::Ready)?;
    let stop = Arc::new(AtomicBool::new(false));
    let counts = Arc::new(Mutex::new(Counts::default()));
    let (talking, counting, every) = (Arc::clone(&stop), Arc::clone(&counts), hold.every);
    let talk = std::thread::spawn(move || {
        let mut conversation = Conversation { stream, reader, server };
        while !talking.load(Ordering::Relaxed) {
            conversation.echo(&counting);
            std::thread::sleep(every);
        }
    });
    let read = || counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
    answer_asks(read)?;
    stop.store(true, Ordering::Relaxed);
    let _ = talk.join();
    say(&Report::Counts(read()))
}

/// A held connection.
struct Conversation {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    server: String,
}

impl Conversation {
    /// Says a line and waits for its echo.
    fn echo(&mut self, counts: &Mutex<Counts>) {
        let lock = || counts.lock().unwrap_or_else(PoisonError::into_inner);
        lock().begin();
        let begin = SystemClock.now();
        let outcome = self.try_echo().unwrap_or_else(|error| Outcome::of_error(&error));
        lock().end(&outcome, SystemClock.now().saturating_duration_since(begin));
    }

    fn try_echo(&mut self) -> io::Result<Outcome> {
        self.stream.write_all(b"still there?\n")?;
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Ok(Outcome::Reset);
        }
        let (peer, remote) = (self.stream.local_addr()?, self.stream.peer_addr()?);
        Ok(Outcome::Answered { server: self.server.clone(), peer, remote })
    }
}
