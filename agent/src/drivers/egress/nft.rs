//! The program `nft`, which may be missing, refuse, or hang.

use std::io;
use std::process::{Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::{Instant, timeout};

use super::EgressError;

/// How long it may take.
pub(super) const LIMIT: Duration = Duration::from_secs(5);
/// When it took longer it is not run for so long: who asks it has others to serve.
pub(super) const PAUSE: Duration = Duration::from_mins(1);

/// How the program is run.
#[derive(Debug)]
pub(super) struct Nft {
    program: String,
    /// What comes before the arguments of a call.
    first: Vec<String>,
    /// When it hung last.
    hung: Mutex<Option<Instant>>,
}

impl Default for Nft {
    fn default() -> Self {
        Self::of("nft", &[])
    }
}

impl Nft {
    fn of(program: &str, first: &[&str]) -> Self {
        let first = first.iter().map(|&word| word.to_owned()).collect();
        Self { program: program.to_owned(), first, hung: Mutex::default() }
    }

    /// One whose place a line of shell takes.
    #[cfg(test)]
    pub(super) fn shell(line: &str) -> Self {
        Self::of("sh", &["-c", line])
    }

    /// The table as it is listed, if there is one.
    pub(super) async fn list(&self) -> Result<Option<String>, EgressError> {
        let output = self.run(&["list", "table", "inet", "shoal"], None).await?;
        if output.status.success() {
            return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if message.contains("No such file") {
            return Ok(None);
        }
        Err(EgressError::Refused { action: "list the table", message })
    }

    /// Runs it for what it does.
    pub(super) async fn call(
        &self,
        arguments: &[&str],
        input: Option<&str>,
        action: &'static str,
    ) -> Result<(), EgressError> {
        let output = self.run(arguments, input).await?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(EgressError::Refused { action, message })
    }

    /// Runs it to its end, whatever that is.
    pub(super) async fn run(&self, arguments: &[&str], input: Option<&str>) -> Result<Output, EgressError> {
        if self.hung().is_some_and(|since| since.elapsed() < PAUSE) {
            return Err(EgressError::Hung);
        }
        let Ok(output) = timeout(LIMIT, self.run_unbounded(arguments, input)).await else {
            *self.hung.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            return Err(EgressError::Hung);
        };
        output.map_err(EgressError::Program)
    }

    fn hung(&self) -> Option<Instant> {
        *self.hung.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run_unbounded(&self, arguments: &[&str], input: Option<&str>) -> io::Result<Output> {
        let mut child = Command::new(&self.program)
            .args(&self.first)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            match stdin.write_all(input.as_bytes()).await {
                // It ended without reading: what it says of that is worth more.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                written => written?,
            }
        }
        child.wait_with_output().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_is_left_alone_for_a_while() {
        let nft = Nft::shell("exec sleep 1000");
        for _ in 0..2 {
            let begin = Instant::now();
            assert!(matches!(nft.list().await, Err(EgressError::Hung)));
            assert!(begin.elapsed() >= LIMIT, "it was not waited for");
            let now = Instant::now();
            assert!(matches!(nft.call(&["-f", "-"], Some("x"), "write").await, Err(EgressError::Hung)));
            assert_eq!(now.elapsed(), Duration::ZERO, "it was run again");
            tokio::time::advance(PAUSE).await;
        }
    }

    #[tokio::test]
    async fn one_that_is_missing_or_refuses_says_so() {
        let missing = Nft::of("/nonexistent/nft", &[]).list().await.expect_err("there is none");
        assert!(missing.is_absent(), "{missing:?}");
        let refusal =
            Nft::shell("echo boom >&2; exit 1").call(&["-f", "-"], Some("x"), "write the table").await;
        let refusal = refusal.expect_err("refused");
        assert_eq!(refusal.to_string(), "nft could not write the table: boom");
        assert!(!refusal.is_absent());
        let none = Nft::shell("echo 'Error: No such file or directory' >&2; exit 1").list().await;
        assert_eq!(none.expect("listed"), None);
    }
}
