//! Memory that a look at everything took.

/// Gives freed memory back to the system, which the C library would keep for what it is asked for next: after a pass over
/// half a million objects the most of what the daemon holds.
pub(crate) fn give_back() {
    // SAFETY: it takes no pointer, and may be called at any time from any thread (malloc_trim(3)).
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}
