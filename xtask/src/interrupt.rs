//! Ctrl-C that ends a demo or a bench in order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use nix::sys::signal::{SigSet, Signal};

/// Watches for SIGINT and SIGTERM. The first asks for an end in order; the second one is not waited for.
pub(crate) struct Interrupt {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    came: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Interrupt {
    /// Must be called before other threads are started, as they inherit that the signals are blocked.
    pub(crate) fn watch() -> anyhow::Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block()?;
        let state = Arc::new(State::default());
        let watcher = Arc::clone(&state);
        std::thread::spawn(move || {
            while let Ok(signal) = signals.wait() {
                if watcher.came.swap(true, Ordering::SeqCst) {
                    // The user is in a hurry: what is left behind is swept by the next run.
                    std::process::exit(128 + signal as i32);
                }
                let _guard = watcher.lock.lock().unwrap_or_else(PoisonError::into_inner);
                watcher.changed.notify_all();
            }
        });
        Ok(Self { state })
    }

    pub(crate) fn came(&self) -> bool {
        self.state.came.load(Ordering::SeqCst)
    }

    /// Fails once the signal came; for between steps.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.came(), "interrupted");
        Ok(())
    }

    /// Blocks until the signal comes.
    pub(crate) fn wait(&self) {
        let mut guard = self.state.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.came() {
            guard = self.state.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
