//! Runs the program under test.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

/// What a run left.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) code: Option<i32>,
}

/// Starts `shoal` with these words against a socket.
pub(crate) fn start(host: &str, words: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_shoal"))
        .args(words)
        .env("SHOAL_HOST", host)
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Waits for its end; no run of a test takes longer than half a minute.
pub(crate) async fn finish(child: Child) -> Outcome {
    let output = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output()).await;
    let output = output.expect("shoal hangs").unwrap();
    Outcome {
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        code: output.status.code(),
    }
}

/// Runs a line to its end.
pub(crate) async fn run(host: &str, line: &str) -> Outcome {
    run_words(host, &line.split_whitespace().collect::<Vec<_>>()).await
}

/// Runs words to their end.
pub(crate) async fn run_words(host: &str, words: &[&str]) -> Outcome {
    finish(start(host, words)).await
}

/// A run that ended well and said nothing on standard error.
pub(crate) fn quiet_success(stdout: &str) -> Outcome {
    Outcome { stdout: stdout.to_owned(), stderr: String::new(), code: Some(0) }
}
