//! What the demo tells: lines for a person, or JSON lines for a machine.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::cli::out;

/// One step that has ended. With `--script` each is a JSON line; the names and keys are stable.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Step {
    /// Stable name: `topology`, `netd-ready`, `pods`, `pod-to-pod`, …
    pub(super) step: &'static str,
    /// Whether it went as it must.
    pub(super) ok: bool,
    /// Connections (or look-ups) tried.
    pub(super) attempts: u64,
    /// Those that were not answered as they must be.
    pub(super) failed: u64,
    /// Milliseconds.
    pub(super) elapsed_ms: u64,
    /// More figures, by step.
    #[serde(flatten)]
    pub(super) more: Map<String, Value>,
    /// What a person reads.
    #[serde(skip)]
    pub(super) text: String,
}

impl Step {
    /// A step that went well, without figures.
    pub(super) fn new(step: &'static str, text: impl Into<String>) -> Self {
        Self { step, ok: true, attempts: 0, failed: 0, elapsed_ms: 0, more: Map::new(), text: text.into() }
    }

    /// Sets the counts; any failure makes the step not ok.
    pub(super) fn counted(mut self, attempts: u64, failed: u64) -> Self {
        self.attempts = attempts;
        self.failed = failed;
        // A step that tried nothing has shown nothing.
        self.ok = attempts > 0 && failed == 0;
        self
    }

    /// Adds a figure.
    pub(super) fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.more.insert(key.to_owned(), value.into());
        self
    }

    /// Makes the step fail unless `condition` holds, saying why.
    pub(super) fn require(mut self, condition: bool, otherwise: &str) -> Self {
        if !condition {
            self.ok = false;
            self.text = format!("{} ({otherwise})", self.text);
            self.more.insert("error".to_owned(), otherwise.into());
        }
        self
    }
}

/// Where steps go.
pub(super) struct Report {
    script: bool,
    colour: bool,
    live: bool,
    steps: usize,
    failed: Vec<&'static str>,
}

impl Report {
    /// A report for a person on a terminal or in a pipe, or with `script` for a machine.
    pub(super) fn new(script: bool) -> Self {
        let tty = std::io::stdout().is_terminal();
        let colour = tty && std::env::var_os("NO_COLOR").is_none();
        Self { script, colour, live: tty && !script, steps: 0, failed: Vec::new() }
    }

    /// A line that only a person reads.
    pub(super) fn say(&self, line: &str) -> Result<()> {
        if self.script { Ok(()) } else { out(&format!("{line}\n")) }
    }

    /// A line that is overwritten by the next: progress of long work. Only on a terminal.
    pub(super) fn progress(&self, line: &str) {
        if self.live {
            let mut stdout = std::io::stdout().lock();
            // Progress is a courtesy: a terminal that went away is noticed by the next step.
            drop(write!(stdout, "\r\x1b[K  {line}").and_then(|()| stdout.flush()));
        }
    }

    /// Writes a step that has ended.
    pub(super) fn done(&mut self, mut step: Step, took: Duration) -> Result<()> {
        step.elapsed_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.steps += 1;
        if !step.ok {
            self.failed.push(step.step);
        }
        if self.script {
            return out(&(serde_json::to_string(&step)? + "\n"));
        }
        let clear = if self.live { "\r\x1b[K" } else { "" };
        let mark = match (step.ok, self.colour) {
            (true, true) => "\x1b[32m√\x1b[0m",
            (true, false) => "√",
            (false, true) => "\x1b[31m×\x1b[0m",
            (false, false) => "×",
        };
        out(&format!("{clear}{mark} {:<18} {}  [{:.1} s]\n", step.step, step.text, took.as_secs_f64()))
    }

    /// Writes the summary of a demo that could not go on, for a machine; a person reads the error.
    pub(super) fn broke(&self, error: &str) -> Result<()> {
        if !self.script {
            return Ok(());
        }
        let summary = serde_json::json!({
            "step": "summary", "ok": false, "steps": self.steps, "failedSteps": self.failed, "error": error,
        });
        out(&format!("{summary}\n"))
    }

    /// Writes the summary. Returns the exit code.
    pub(super) fn finish(self) -> Result<u8> {
        let ok = self.failed.is_empty();
        if self.script {
            let summary = serde_json::json!({
                "step": "summary", "ok": ok, "steps": self.steps, "failedSteps": self.failed,
            });
            out(&format!("{summary}\n"))?;
        } else if ok {
            out(&format!("\nAll {} steps went as they must.\n", self.steps))?;
        } else {
            out(&format!(
                "\n{} of {} steps failed: {}\n",
                self.failed.len(),
                self.steps,
                self.failed.join(", ")
            ))?;
        }
        Ok(if ok { 0 } else { crate::cli::exit::FAILED })
    }
}
