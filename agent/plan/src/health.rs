//! What the answers to a task's health check come to.
//!
//! ```text
//! Starting --good--> Healthy --retries wrong ones in a row--> Unhealthy --good--> Healthy
//! Starting --retries wrong ones, after the start period, an interval apart--> Unhealthy
//! ```

use shoal_types::object::Health;
use shoal_types::spec::HealthCheck;

/// Shortest pause between two questions before the first good answer, milliseconds.
const EAGER_MS: u64 = 100;

/// An answer to a health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It can serve.
    Good,
    /// It can't, or said nothing in time; why, in one line.
    Wrong(String),
}

/// Where a task's health check stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// What the answers so far come to; never [`Health::Unchecked`].
    pub health: Health,
    /// Whether there ever was a good answer: from then on the task runs, and is no longer starting.
    pub been_healthy: bool,
    /// Wrong answers in a row that count.
    pub failures: u32,
    /// The last wrong answer; empty after a good one.
    pub line: String,
}

impl Default for Checked {
    fn default() -> Self {
        Self { health: Health::Starting, been_healthy: false, failures: 0, line: String::new() }
    }
}

impl Checked {
    /// After one more answer, that long after the program's start.
    #[must_use]
    pub fn after(&self, check: &HealthCheck, since_start_ms: u64, answer: Answer) -> Self {
        let Answer::Wrong(line) = answer else {
            return Self { health: Health::Healthy, been_healthy: true, failures: 0, line: String::new() };
        };
        let failures = self.failures.saturating_add(u32::from(self.counts(check, since_start_ms)));
        let health = if failures >= check.retries { Health::Unhealthy } else { self.health };
        Self { health, been_healthy: self.been_healthy, failures, line }
    }

    /// Whether a wrong answer counts now. Before the first good one the task is asked more often than an interval, which
    /// must not make it unhealthy any sooner.
    fn counts(&self, check: &HealthCheck, since_start_ms: u64) -> bool {
        if self.health != Health::Starting {
            return true;
        }
        let nth = u64::from(self.failures).saturating_add(1);
        let at = check.start_period_ms.saturating_add(check.interval_ms.saturating_mul(nth));
        since_start_ms >= at
    }

    /// Pause before the next question, milliseconds. A task that is starting is asked often at first, so that a long
    /// interval does not keep it from serving.
    pub fn pause_ms(&self, check: &HealthCheck, since_start_ms: u64) -> u64 {
        if self.health == Health::Starting {
            (since_start_ms / 4).max(EAGER_MS).min(check.interval_ms)
        } else {
            check.interval_ms
        }
    }

    /// Whether the managers should hear of it after `before`: not of every answer, each costs them a log entry.
    pub fn is_news_after(&self, before: &Self) -> bool {
        let first_word = before.line.is_empty() && !self.line.is_empty() && self.health != Health::Healthy;
        self.health != before.health
            || (self.health == Health::Starting && (self.failures != before.failures || first_word))
    }
}

#[cfg(test)]
mod tests {
    use shoal_types::spec::HealthProbe;

    use super::*;

    fn check() -> HealthCheck {
        let probe = HealthProbe::Tcp("80".parse().expect("a target"));
        HealthCheck { interval_ms: 1_000, retries: 3, start_period_ms: 5_000, ..HealthCheck::of(probe) }
    }

    fn wrong() -> Answer {
        Answer::Wrong("refused".to_owned())
    }

    /// The healths after each of these answers, at these times.
    fn story(answers: &[(u64, bool)]) -> Vec<Health> {
        let (check, mut checked) = (check(), Checked::default());
        let step = |(at, good): &(u64, bool)| {
            checked = checked.after(&check, *at, if *good { Answer::Good } else { wrong() });
            checked.health
        };
        answers.iter().map(step).collect()
    }

    #[test]
    fn the_first_good_answer_makes_it_healthy_and_ends_the_start_period() {
        use Health::{Healthy, Starting, Unhealthy};
        let seen = story(&[(100, false), (200, true), (300, false), (400, false), (500, false)]);
        assert_eq!(seen, [Starting, Healthy, Healthy, Healthy, Unhealthy]);
    }

    #[test]
    fn only_wrong_answers_in_a_row_count() {
        use Health::{Healthy, Unhealthy};
        let seen = story(&[
            (0, true),
            (1, false),
            (2, false),
            (3, true),
            (4, false),
            (5, false),
            (6, false),
            (7, true),
        ]);
        assert_eq!(seen[..6], [Healthy; 6]);
        assert_eq!(seen[6..], [Unhealthy, Healthy]);
    }

    #[test]
    fn eager_questions_make_nothing_unhealthy_sooner() {
        let (check, mut checked) = (check(), Checked::default());
        let mut at = 0;
        while checked.health == Health::Starting {
            checked = checked.after(&check, at, wrong());
            if checked.health == Health::Starting {
                at += checked.pause_ms(&check, at);
            }
        }
        assert_eq!(checked.health, Health::Unhealthy);
        assert!((8_000..9_000).contains(&at), "start period and three intervals: {at}");
        assert!(!checked.been_healthy);
    }

    #[test]
    fn a_starting_task_is_asked_often_at_first_and_never_seldomer_than_the_interval() {
        let (check, starting) = (check(), Checked::default());
        assert_eq!(starting.pause_ms(&check, 0), 100);
        assert_eq!(starting.pause_ms(&check, 2_000), 500);
        assert_eq!(starting.pause_ms(&check, 60_000), 1_000);
        let healthy = starting.after(&check, 0, Answer::Good);
        assert_eq!(healthy.pause_ms(&check, 0), 1_000);
    }

    #[test]
    fn managers_hear_of_what_changes_something() {
        let (check, starting) = (check(), Checked::default());
        let first = starting.after(&check, 10, wrong());
        assert!(first.is_news_after(&starting), "why it does not serve yet");
        assert!(!first.after(&check, 20, Answer::Wrong("other".to_owned())).is_news_after(&first));
        let healthy = first.after(&check, 30, Answer::Good);
        assert!(healthy.is_news_after(&first));
        assert!(!healthy.after(&check, 40, Answer::Good).is_news_after(&healthy));
        assert!(!healthy.after(&check, 40, wrong()).is_news_after(&healthy), "one wrong answer is none");
    }
}
