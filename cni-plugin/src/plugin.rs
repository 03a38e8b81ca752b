//! One call from beginning to end: environment and standard input in, JSON and an exit code out.

use std::io::{self, Read, Write};

use crate::call::{Call, Verb};
use crate::config::{self, Config, Envelope, MAX_LENGTH, TYPES, unknown_type};
use crate::error::{CniError, Code};
use crate::version::{self, Version};
use crate::{add, check, del, gc, loopback, status};

/// What a failed call exits with.
const FAILED: i32 = 1;
/// The exit status after success.
const DONE: i32 = 0;

/// Runs the plugin on the process's environment, standard input and output.
pub fn main() -> i32 {
    let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let call = match Call::read(variable) {
        Ok(Some(call)) => call,
        Ok(None) => return about(),
        // Standard input was not read, so the version asked for is not known.
        Err(error) => return fail(&error, Version::LATEST),
    };
    let bytes = match read_input(io::stdin().lock()) {
        Ok(bytes) => bytes,
        // The versions are told whatever the input is.
        Err(_) if call.verb == Verb::Version => Vec::new(),
        Err(error) => return fail(&error, Version::LATEST),
    };
    let version = config::version_of(&bytes);
    match run(&call, &bytes) {
        Ok(answer) => answer.tell(&call, version),
        Err(error) => fail(&error, version),
    }
}

/// What a successful call has to say.
struct Answer {
    text: String,
    /// Set for an ADD, which is taken back when nobody can be told of it.
    config: Option<Config>,
}

impl Answer {
    fn tell(self, call: &Call, version: Version) -> i32 {
        let Err(cause) = print(&self.text) else { return DONE };
        let error = CniError::new(Code::Io, "the result cannot be written to standard output").because(cause);
        let error = match &self.config {
            Some(config) => add::take_back(call, config, error),
            None => error,
        };
        fail(&error, version)
    }
}

fn run(call: &Call, bytes: &[u8]) -> Result<Answer, CniError> {
    if call.verb == Verb::Version {
        return Ok(Answer { text: version::report(config::version_of(bytes)), config: None });
    }
    let envelope = Envelope::parse(bytes)?;
    check_version(call.verb, envelope.version)?;
    match envelope.kind.as_str() {
        loopback::TYPE => loopback::run(call, &envelope).map(|text| Answer { text, config: None }),
        kind if TYPES.contains(&kind) => run_netd(call, envelope),
        other => Err(unknown_type(other)),
    }
}

fn run_netd(call: &Call, envelope: Envelope) -> Result<Answer, CniError> {
    let quiet = |()| Answer { text: String::new(), config: None };
    let mut config = Config::read(envelope)?;
    config.hear(call);
    match call.verb {
        Verb::Add => {
            let result = add::add(call, &config)?;
            Ok(Answer {
                text: result.to_json(config.version, config.previous.as_ref())?,
                config: Some(config),
            })
        }
        Verb::Del => del::del(call, &config).map(quiet),
        Verb::Check => check::check(call, &config).map(quiet),
        Verb::Gc => gc::gc(call, &config).map(quiet),
        Verb::Status => status::status(call, &config).map(quiet),
        Verb::Version => Ok(quiet(())),
    }
}

/// Refuses a verb that the configuration's version does not have yet.
fn check_version(verb: Verb, version: Version) -> Result<(), CniError> {
    let (needed, name) = match verb {
        Verb::Add | Verb::Del | Verb::Version => return Ok(()),
        Verb::Check => (Version::V0_4_0, "CHECK"),
        Verb::Gc => (Version::V1_1_0, "GC"),
        Verb::Status => (Version::V1_1_0, "STATUS"),
    };
    if version >= needed {
        return Ok(());
    }
    let msg = format!("config version {} does not allow {name}", version.name());
    Err(CniError::new(Code::IncompatibleVersion, msg).and(format!("{} is needed", needed.name())))
}

fn read_input(input: impl Read) -> Result<Vec<u8>, CniError> {
    let mut bytes = Vec::new();
    input
        .take(MAX_LENGTH + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| CniError::new(Code::Io, "standard input cannot be read").because(e))?;
    if bytes.len() as u64 > MAX_LENGTH {
        let msg = format!("the network configuration is longer than {} MiB", MAX_LENGTH >> 20);
        return Err(CniError::new(Code::Decode, msg));
    }
    Ok(bytes)
}

/// A person started the plugin: says what it is.
fn about() -> i32 {
    let text = format!(
        "netd-cni {}: CNI plugin of netd, started by a container runtime with CNI_COMMAND set\n\
         CNI protocol versions supported: {}\n",
        env!("CARGO_PKG_VERSION"),
        version::names().join(", ")
    );
    // Nobody is left to be told of a failure here.
    let _ = io::stderr().write_all(text.as_bytes());
    DONE
}

fn fail(error: &CniError, version: Version) -> i32 {
    if print(&error.to_json(version)).is_err() {
        let _ = writeln!(io::stderr(), "netd-cni: {error}");
    }
    FAILED
}

fn print(text: &str) -> io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    // Whole lines are not kept by the standard library: what could not be written must not come before the error.
    let line = format!("{text}\n");
    let mut output = io::stdout().lock();
    output.write_all(line.as_bytes())?;
    output.flush()
}
