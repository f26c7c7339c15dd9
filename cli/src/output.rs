//! What goes to standard output (results, nothing else) and to standard error (progress, warnings).

pub(crate) mod listing;
mod table;
mod template;
pub(crate) mod time;

use std::io::{self, IsTerminal, Write};

use serde_json::{Value, json};

use crate::args::Global;
use crate::failure::{Failure, one_line};

/// Version of the JSON documents of `--json`; fields are only added within one.
pub(crate) const API_VERSION: &str = "shoal/v1";

/// The two streams and how to use them.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one switch of the command line or of the terminal"
)]
pub(crate) struct Output {
    /// `--json`.
    pub(crate) json: bool,
    /// `-q`.
    pub(crate) quiet: bool,
    /// `-v`.
    pub(crate) verbose: bool,
    /// Colour on standard error.
    pub(crate) color: bool,
    /// Standard error is a terminal: lines may be rewritten.
    pub(crate) live: bool,
    stdout: io::Stdout,
    stderr: io::Stderr,
}

impl Output {
    /// Looks at the terminal and at `NO_COLOR`.
    pub(crate) fn new(global: &Global) -> Self {
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let live = stderr.is_terminal();
        let plain = global.no_color || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let &Global { json, quiet, verbose, .. } = global;
        Self { json, quiet, verbose, color: live && !plain, live, stdout, stderr }
    }

    /// A line of the result.
    pub(crate) fn result(&self, line: &str) -> Result<(), Failure> {
        let mut out = self.stdout.lock();
        out.write_all(line.as_bytes())?;
        if !line.ends_with('\n') {
            out.write_all(b"\n")?;
        }
        Ok(out.flush()?)
    }

    /// A line of the result that may not be text.
    pub(crate) fn result_bytes(&self, prefix: &str, line: &[u8]) -> Result<(), Failure> {
        let mut out = self.stdout.lock();
        out.write_all(prefix.as_bytes())?;
        out.write_all(line)?;
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    }

    /// The one document of `--json`.
    pub(crate) fn document(&self, kind: &str, items: &[Value]) -> Result<(), Failure> {
        let document = json!({ "apiVersion": API_VERSION, "kind": kind, "items": items });
        self.result(&format!("{document:#}"))
    }

    /// Progress and hints; silenced by `-q`. A stderr that is gone is no reason to fail.
    pub(crate) fn note(&self, line: &str) {
        if !self.quiet {
            self.error_stream(&format!("{line}\n"));
        }
    }

    /// Detail for `-v`.
    pub(crate) fn detail(&self, line: &str) {
        if self.verbose {
            self.error_stream(&format!("{line}\n"));
        }
    }

    /// A warning; `-q` does not silence it.
    pub(crate) fn warn(&self, line: &str) {
        let (yellow, plain) = if self.color { ("\x1b[1;33m", "\x1b[0m") } else { ("", "") };
        self.error_stream(&format!("{yellow}warning{plain}: {}\n", one_line(line)));
    }

    /// Writes to standard error as it is.
    pub(crate) fn error_stream(&self, text: &str) {
        // Nothing is left to complain to.
        self.stderr.lock().write_all(text.as_bytes()).unwrap_or_default();
    }
}

/// Asks on a terminal; elsewhere fails and says how to agree beforehand.
pub(crate) async fn confirm(out: &Output, agreed: bool, question: &str) -> Result<(), Failure> {
    if agreed {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::Usage(format!("{question} Repeat the command with --yes to agree.")));
    }
    out.error_stream(&format!("{question} Go on? [y/N] "));
    // On a thread of its own, so that Ctrl-C ends the question.
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map(|_| answer)
    });
    let answer = answer.await.map_err(io::Error::other)??;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::Usage("not confirmed, nothing was done".to_owned())),
    }
}
