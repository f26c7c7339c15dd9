//! How often the secret of a token may be guessed.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use shoal_types::TokenId;

/// Secret comparisons per second and token.
pub const COMPARES_PER_SECOND: u32 = 20;
const WINDOW: Duration = Duration::from_secs(1);

/// Counts comparisons per token id. Only ids that exist are counted, so its size is bounded by the tokens there are.
#[derive(Debug, Default)]
pub struct CompareMeter {
    windows: Mutex<BTreeMap<TokenId, Window>>,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    used: u32,
}

impl CompareMeter {
    /// Whether one more comparison may be made now; it counts.
    pub fn admit(&self, token: &TokenId, now: Instant) -> bool {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.entry(token.clone()).or_insert(Window { since: now, used: 0 });
        if now.saturating_duration_since(window.since) >= WINDOW {
            *window = Window { since: now, used: 0 };
        }
        if window.used >= COMPARES_PER_SECOND {
            return false;
        }
        window.used += 1;
        true
    }

    /// Forgets tokens that are gone.
    pub fn retain(&self, exists: impl Fn(&TokenId) -> bool) {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| exists(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_a_second_for_each_token() {
        let meter = CompareMeter::default();
        let (a, b) = (TokenId::from_entropy(1), TokenId::from_entropy(2));
        let start = Instant::now();
        let admitted = |id: &TokenId, at: Instant| (0..100).filter(|_| meter.admit(id, at)).count();
        assert_eq!(admitted(&a, start), 20);
        assert_eq!(admitted(&a, start + Duration::from_millis(999)), 0);
        assert_eq!(admitted(&b, start), 20);
        assert_eq!(admitted(&a, start + Duration::from_secs(1)), 20);
        meter.retain(|id| *id == b);
        assert_eq!(admitted(&a, start), 20);
    }
}
