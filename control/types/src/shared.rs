//! A sorted map in pieces that copies share: a copy costs a few words per piece, a change of a copy one piece, and the
//! difference of two copies what differs between them.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// Entries a piece holds at most.
const PIECE: usize = 128;

/// A sorted map, cheap to copy and to compare with its copies.
#[derive(Clone)]
pub struct SharedMap<K, V> {
    /// None is empty; sorted within and among each other.
    pieces: Vec<Arc<Vec<(K, V)>>>,
    len: usize,
}

/// How an entry differs between two maps.
#[derive(Debug, PartialEq, Eq)]
pub struct Change<'a, K, V> {
    /// Its key.
    pub key: &'a K,
    /// Its value in the one.
    pub before: Option<&'a V>,
    /// Its value in the other.
    pub after: Option<&'a V>,
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { pieces: Vec::new(), len: 0 }
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        let piece = self.pieces.get(self.piece_of(key))?;
        let place = piece.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
        piece.get(place).map(|(_, value)| value)
    }

    /// Whether a key is there.
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// Sets the value of a key.
    pub fn insert(&mut self, key: K, value: V) {
        let at = self.piece_of(&key);
        let Some(piece) = self.pieces.get_mut(at) else {
            self.pieces.push(Arc::new(vec![(key, value)]));
            self.len = 1;
            return;
        };
        let piece = Arc::make_mut(piece);
        match piece.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(place) => piece[place].1 = value,
            Err(place) => {
                piece.insert(place, (key, value));
                self.len += 1;
                if piece.len() > PIECE {
                    let rest = piece.split_off(PIECE / 2);
                    self.pieces.insert(at + 1, Arc::new(rest));
                }
            }
        }
    }

    /// Removes a key; returns its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.piece_of(key);
        let piece = self.pieces.get_mut(at)?;
        let place = piece.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
        let piece = Arc::make_mut(piece);
        let (_, value) = piece.remove(place);
        self.len -= 1;
        if piece.is_empty() {
            self.pieces.remove(at);
        }
        Some(value)
    }

    /// All entries, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> + Clone {
        self.pieces.iter().flat_map(|piece| piece.iter()).map(|(key, value)| (key, value))
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// All values, by key.
    pub fn values(&self) -> impl Iterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }

    /// All values to be changed, by key. Takes every piece apart from its copies.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.pieces.iter_mut().flat_map(|piece| Arc::make_mut(piece).iter_mut()).map(|(_, value)| value)
    }

    /// The entries that are neither before (`Less`) nor after (`Greater`) what is meant, by the word of `pick`.
    pub fn range(&self, pick: impl Fn(&K) -> Ordering + Copy) -> impl Iterator<Item = (&K, &V)> + Clone {
        let first =
            self.pieces.partition_point(|piece| piece.last().is_some_and(|(key, _)| pick(key).is_lt()));
        let entries = self.pieces.get(first..).unwrap_or_default().iter().flat_map(|piece| piece.iter());
        entries
            .skip_while(move |(key, _)| pick(key).is_lt())
            .take_while(move |(key, _)| pick(key).is_eq())
            .map(|(key, value)| (key, value))
    }

    /// The piece that has a key, or would.
    fn piece_of(&self, key: &K) -> usize {
        let after = self.pieces.partition_point(|piece| piece.first().is_some_and(|(first, _)| first <= key));
        after.saturating_sub(1)
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> SharedMap<K, V> {
    /// What differs in `after`, by key. Pieces that both share are not looked into.
    pub fn changes<'a>(&'a self, after: &'a Self) -> Vec<Change<'a, K, V>> {
        let (mut old, mut new) = (Cursor::new(self), Cursor::new(after));
        let mut changes = Vec::new();
        loop {
            if old.skips_with(&new) {
                old.next_piece();
                new.next_piece();
                continue;
            }
            match (old.entry(), new.entry()) {
                (Some((key, value)), other) if other.is_none_or(|(k, _)| key < k) => {
                    changes.push(Change { key, before: Some(value), after: None });
                    old.advance();
                }
                (one, Some((key, value))) if one.is_none_or(|(k, _)| key < k) => {
                    changes.push(Change { key, before: None, after: Some(value) });
                    new.advance();
                }
                (Some((key, before)), Some((_, after))) => {
                    if before != after {
                        changes.push(Change { key, before: Some(before), after: Some(after) });
                    }
                    old.advance();
                    new.advance();
                }
                // Of one that is alone the arms before have taken care.
                (None, _) | (_, None) => return changes,
            }
        }
    }
}

/// A place in a map.
struct Cursor<'a, K, V> {
    pieces: &'a [Arc<Vec<(K, V)>>],
    place: usize,
}

impl<'a, K, V> Cursor<'a, K, V> {
    fn new(map: &'a SharedMap<K, V>) -> Self {
        Self { pieces: &map.pieces, place: 0 }
    }

    fn entry(&self) -> Option<(&'a K, &'a V)> {
        self.pieces.first()?.get(self.place).map(|(key, value)| (key, value))
    }

    fn advance(&mut self) {
        self.place += 1;
        if self.pieces.first().is_some_and(|piece| self.place >= piece.len()) {
            self.next_piece();
        }
    }

    fn next_piece(&mut self) {
        self.pieces = self.pieces.get(1..).unwrap_or_default();
        self.place = 0;
    }

    /// Whether both are at the beginning of one and the same piece.
    fn skips_with(&self, other: &Self) -> bool {
        match (self.pieces.first(), other.pieces.first()) {
            (Some(one), Some(two)) => self.place == 0 && other.place == 0 && Arc::ptr_eq(one, two),
            _ => false,
        }
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut sorted: Vec<(K, V)> = entries.into_iter().collect();
        // Of equal keys the last one counts.
        sorted.reverse();
        sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
        sorted.dedup_by(|(later, _), (first, _)| later == first);
        let len = sorted.len();
        let mut pieces = Vec::with_capacity(len.div_ceil(PIECE));
        let mut entries = sorted.into_iter();
        loop {
            let mut piece = Vec::with_capacity(PIECE.min(entries.len()));
            piece.extend(entries.by_ref().take(PIECE));
            if piece.is_empty() {
                return Self { pieces, len };
            }
            pieces.push(Arc::new(piece));
        }
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for SharedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.changes(other).is_empty()
    }
}

impl<K: Ord + Clone, V: Clone + Eq> Eq for SharedMap<K, V> {}

impl<K: fmt::Debug + Ord + Clone, V: fmt::Debug + Clone> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn built(entries: &BTreeMap<u16, u8>) -> SharedMap<u16, u8> {
        entries.iter().map(|(key, value)| (*key, *value)).collect()
    }

    proptest! {
        #[test]
        fn it_is_a_map(
            start in prop::collection::btree_map(0_u16..2_000, any::<u8>(), 0..1_500),
            steps in prop::collection::vec((0_u16..2_000, prop::option::of(any::<u8>())), 0..400),
        ) {
            let (mut wanted, mut map) = (start.clone(), built(&start));
            let before = map.clone();
            for (key, value) in steps {
                if let Some(value) = value {
                    map.insert(key, value);
                    wanted.insert(key, value);
                } else {
                    prop_assert_eq!(map.remove(&key), wanted.remove(&key));
                }
            }
            prop_assert_eq!(map.len(), wanted.len());
            prop_assert!(map.iter().eq(wanted.iter()));
            prop_assert!((0..2_000).all(|key| map.get(&key) == wanted.get(&key)));
            prop_assert!(before.iter().eq(start.iter()), "a copy stays as it was");
            prop_assert_eq!(&map, &built(&wanted));
            let changed: BTreeMap<u16, (Option<u8>, Option<u8>)> = before
                .changes(&map)
                .iter()
                .map(|change| (*change.key, (change.before.copied(), change.after.copied())))
                .collect();
            let differing = (0..2_000)
                .map(|key| (key, (start.get(&key).copied(), wanted.get(&key).copied())))
                .filter(|(_, (before, after))| before != after)
                .collect();
            prop_assert_eq!(changed, differing);
            let within: Vec<_> = map.range(|key| (key / 10).cmp(&50)).map(|(key, _)| *key).collect();
            prop_assert_eq!(within, wanted.range(500..510).map(|(key, _)| *key).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_copies_share_is_not_compared() {
        /// Panics when it is compared.
        #[derive(Clone, Debug)]
        struct Touchy(bool);
        impl PartialEq for Touchy {
            fn eq(&self, other: &Self) -> bool {
                assert!(self.0 && other.0, "compared");
                false
            }
        }
        let map: SharedMap<u32, Touchy> = (0..10_000).map(|key| (key, Touchy(key / 128 == 40))).collect();
        let mut other = map.clone();
        other.insert(40 * 128 + 5, Touchy(true));
        assert_eq!(map.changes(&other).len(), 128);
    }
}
