//! Regions of the `SLOTS` array: which are in use, and where a new table goes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A program that read the old region's bounds has long finished with it after this time.
const QUARANTINE: Duration = Duration::from_millis(50);

/// First-fit allocation of contiguous regions. A freed region is handed out again only after a quarantine, because
/// a packet being handled on another CPU may still read it.
#[derive(Debug)]
pub(crate) struct Slots {
    /// Free regions: base to length; never adjacent.
    free: BTreeMap<u32, u32>,
    /// Regions freed lately, oldest first.
    retired: Vec<(Instant, u32, u32)>,
}

impl Slots {
    /// An allocator over `capacity` slots.
    pub(crate) fn new(capacity: u32) -> Self {
        Self { free: BTreeMap::from([(0, capacity)]), retired: Vec::new() }
    }

    /// Marks a region that was found in use. Returns false if part of it is not free: two services claim it.
    pub(crate) fn reserve(&mut self, base: u32, len: u32) -> bool {
        if len == 0 {
            return true;
        }
        let Some((&start, &size)) = self.free.range(..=base).next_back() else { return false };
        let (Some(end), Some(limit)) = (base.checked_add(len), start.checked_add(size)) else { return false };
        if end > limit {
            return false;
        }
        self.free.remove(&start);
        if base > start {
            self.free.insert(start, base - start);
        }
        if limit > end {
            self.free.insert(end, limit - end);
        }
        true
    }

    /// Slots that are free, or will be after their quarantine.
    pub(crate) fn left(&self) -> u64 {
        let retired = self.retired.iter().map(|(_, _, len)| u64::from(*len));
        self.free.values().map(|len| u64::from(*len)).chain(retired).sum()
    }

    /// Takes a region of `len` slots.
    pub(crate) fn take(&mut self, len: u32, now: Instant) -> Option<u32> {
        self.release_retired(now);
        let base = self.free.iter().find(|&(_, &size)| size >= len).map(|(&base, _)| base)?;
        self.reserve(base, len).then_some(base)
    }

    /// Gives a region back.
    pub(crate) fn retire(&mut self, base: u32, len: u32, now: Instant) {
        if len > 0 {
            self.retired.push((now, base, len));
        }
    }

    fn release_retired(&mut self, now: Instant) {
        let ready = self.retired.partition_point(|&(at, ..)| now.duration_since(at) >= QUARANTINE);
        let ready: Vec<_> = self.retired.drain(..ready).collect();
        for (_, base, len) in ready {
            self.insert_free(base, len);
        }
    }

    fn insert_free(&mut self, mut base: u32, mut len: u32) {
        if let Some((&start, &size)) = self.free.range(..base).next_back()
            && start + size == base
        {
            self.free.remove(&start);
            base = start;
            len += size;
        }
        if let Some(size) = self.free.remove(&(base + len)) {
            len += size;
        }
        self.free.insert(base, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_do_not_overlap_and_return_after_quarantine() {
        let now = Instant::now();
        let mut slots = Slots::new(100);
        assert_eq!(slots.take(40, now), Some(0));
        assert_eq!(slots.take(40, now), Some(40));
        assert_eq!(slots.take(40, now), None);
        slots.retire(0, 40, now);
        assert_eq!(slots.take(40, now), None, "still in quarantine");
        assert_eq!(slots.take(40, now + QUARANTINE), Some(0));
    }

    #[test]
    fn freed_neighbors_merge() {
        let now = Instant::now();
        let mut slots = Slots::new(90);
        for base in [0, 30, 60] {
            assert_eq!(slots.take(30, now), Some(base));
        }
        for base in [60, 0, 30] {
            slots.retire(base, 30, now);
        }
        assert_eq!(slots.take(90, now + QUARANTINE), Some(0));
    }

    #[test]
    fn a_region_claimed_twice_is_noticed() {
        let mut slots = Slots::new(100);
        assert!(slots.reserve(10, 20));
        assert!(!slots.reserve(25, 10));
        assert!(!slots.reserve(90, 20));
        assert!(slots.reserve(30, 70));
    }
}
