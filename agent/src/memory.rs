//! Memory that a look at everything took.

/// Has all threads share one heap: the first thing a daemon does. With a heap for each, what a look at everything freed stays
/// at the end of those that the C library can't cut (malloc_trim(3) shortens only the first).
pub fn share() {
    // SAFETY: it takes no pointer, and no other thread is there yet (mallopt(3)).
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// Gives freed memory back to the system, which the C library would keep for what it is asked for next: after a pass over
/// half a million objects the most of what the daemon holds.
pub(crate) fn give_back() {
    // SAFETY: it takes no pointer, and may be called at any time from any thread (malloc_trim(3)).
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}
