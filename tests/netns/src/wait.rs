//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(25);

/// How much longer things may take here than on a host: guests name their kind (`cargo xtask vm`).
pub fn slowness() -> u32 {
    match std::env::var("SHOAL_GUEST").as_deref() {
        Ok("qemu") => 4,
        Ok(_) => 2,
        Err(_) => 1,
    }
}

/// Polls until `probe` succeeds, for a deadline that is stretched on slow machines. When it never does, the error says what was waited for and how things stood last.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<T, String>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    let deadline = deadline * slowness();
    loop {
        let last = match probe() {
            Ok(value) => return Ok(value),
            Err(last) => last,
        };
        if start.elapsed() >= deadline {
            anyhow::bail!("waited {deadline:?} for {what}; last: {last}");
        }
        #[expect(clippy::disallowed_methods, reason = "this is the one place that waits between polls")]
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_names_the_goal_and_the_last_status() {
        let mut polls = 0;
        let failed = wait_for("the sun", Duration::from_millis(60), || -> Result<(), String> {
            polls += 1;
            Err(format!("cloud {polls}"))
        });
        let text = failed.unwrap_err().to_string();
        assert!(text.contains("the sun") && text.contains(&format!("cloud {polls}")), "{text}");
        assert!(polls > 1);
    }

    #[test]
    fn success_ends_the_wait() {
        let mut polls = 0;
        let value = wait_for("three", Duration::from_secs(5), || {
            polls += 1;
            if polls == 3 { Ok(polls) } else { Err("counting".into()) }
        });
        assert_eq!(value.unwrap(), 3);
    }
}
