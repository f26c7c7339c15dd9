//! Which endpoint a flow belongs to, without state and alike on every node: Maglev tables (Eisenbud et al.,
//! NSDI 2016, section 3.4).
//!
//! A table is a region of slots, each naming an endpoint; a flow's hash picks the slot. The table depends only on
//! the members' ids and weights and on the replicated seed, so a flow that enters by another node, or meets an
//! empty flow table, still goes to the same endpoint, and a change of members moves few other flows.

use crate::hash;
use crate::values::{POLICY_FLOW, POLICY_RANDOM, POLICY_SOURCE, POLICY_TURN};

/// The slot of a flow's hash in a table of `len` slots (0 for an empty one).
#[inline(always)]
pub const fn slot(hash: u64, len: u32) -> u32 {
    // Multiply and shift instead of a division.
    (((hash >> 32) * len as u64) >> 32) as u32
}

/// One member of a service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "host", derive(Debug, Hash))]
pub struct Member {
    /// The endpoint's id, the same on every node.
    pub endpoint: u64,
    /// Its share relative to the others'; 0: it gets no slot.
    pub weight: u16,
}

/// How a service's endpoints are chosen: [`ServiceVal::policy`](crate::values::ServiceVal::policy).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(Debug))]
pub enum Policy {
    /// By the hash of the flow.
    #[default]
    Flow,
    /// By the hash of the client's address.
    Source,
    /// In turn.
    Turn,
    /// At random.
    Random,
}

impl Policy {
    /// As the programs read it.
    pub const fn number(self) -> u32 {
        match self {
            Self::Flow => POLICY_FLOW,
            Self::Source => POLICY_SOURCE,
            Self::Turn => POLICY_TURN,
            Self::Random => POLICY_RANDOM,
        }
    }
}

/// A digest of a service's policy, members and seed: equal digests mean equal tables, read alike.
///
/// The members must be as [`normalize`] makes them, as [`build`] wants them.
pub fn digest(policy: Policy, members: &[Member], seed: u64) -> u64 {
    let mut state = hash::mix(seed, members.len() as u64);
    // Tables of a daemon with other sizes are others.
    state = hash::mix(state, u64::from(table_size(members)));
    if policy != Policy::Flow {
        state = hash::mix(state, u64::from(policy.number()));
    }
    for member in members {
        state = hash::mix(hash::mix(state, member.endpoint), u64::from(member.weight));
    }
    state
}

/// Primes for table sizes, each about double the one before.
const PRIMES: [u32; 13] = [31, 61, 127, 251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131_071];

/// Slots that the member of least weight has at least, as long as [`bound`] allows it. Shares differ from what they should be
/// by a sixteenth at most.
const SLOTS_PER_MEMBER: u64 = 16;

/// The most slots of a table with so many members, but for the step to the next prime: weights that differ much take no more
/// than 32 KiB, or four times what equal ones take.
fn bound(members: usize) -> u64 {
    (members as u64).saturating_mul(4 * SLOTS_PER_MEMBER).clamp(4093, PRIMES[PRIMES.len() - 1].into())
}

/// The size of the table of these members: the first prime with 16 slots for the one of least weight, and as many times that
/// for another as it weighs more. So with equal weights at most some 32 for each, and never fewer slots than members up
/// to the largest size. The size is kept while the sum of the weights, in those of the least, stays within a factor of two, so
/// that scaling by one rarely resizes: a table of another size moves most flows that no flow table knows.
pub fn table_size(members: &[Member]) -> u32 {
    let weights = || members.iter().map(|member| u64::from(member.weight));
    let Some(least) = weights().min() else { return 0 };
    let wanted = (weights().sum::<u64>() * SLOTS_PER_MEMBER).div_ceil(least.max(1)).min(bound(members.len()));
    let fits = PRIMES.into_iter().find(|&prime| u64::from(prime) >= wanted);
    fits.unwrap_or(PRIMES[PRIMES.len() - 1])
}

#[cfg(feature = "host")]
pub use host::{build, normalize};

#[cfg(feature = "host")]
mod host {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::{Member, Policy, bound, hash, table_size};

    impl Policy {
        /// The table of a service: one endpoint id for each slot. `members` must come from [`normalize`].
        pub fn build(self, members: &[Member], seed: u64) -> Vec<u64> {
            match self {
                Self::Flow | Self::Source => build(members, seed),
                Self::Turn | Self::Random => turns(members),
            }
        }
    }

    /// Sorts members by id, drops those without weight and all but the first of duplicates. Weights are divided by what they
    /// have in common: members of 2 and 4 are as those of 1 and 2.
    pub fn normalize(mut members: Vec<Member>) -> Vec<Member> {
        members.retain(|member| member.weight > 0);
        members.sort_unstable();
        members.dedup_by_key(|member| member.endpoint);
        let common = members.iter().fold(0, |common, member| divisor(common, member.weight)).max(1);
        for member in &mut members {
            member.weight /= common;
        }
        members
    }

    /// The greatest common divisor; of 0 and another, that one.
    fn divisor(a: u16, b: u16) -> u16 {
        if b == 0 { a } else { divisor(b, a % b) }
    }

    /// A member of weight 2 has two turns, or lots, and those of each are spread evenly: nobody gets many in a row who need
    /// not. Where they would be too many, they are in proportion as near as can be, and one for each member in any case.
    fn turns(members: &[Member]) -> Vec<u64> {
        let total: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
        let most = bound(members.len());
        let mut turns: Vec<(u64, u64, u64)> = Vec::new();
        for member in members {
            let weight = u64::from(member.weight);
            let count = if total <= most { weight } else { (weight * most / total).max(1) };
            // Of n turns the first is in the middle of the first nth of the round, and so on.
            turns.extend((0..count).map(|turn| ((2 * turn + 1) * most / count, count, member.endpoint)));
        }
        turns.sort_by_key(|(place, count, _)| (*place, u64::MAX - count));
        turns.into_iter().map(|(_, _, endpoint)| endpoint).collect()
    }

    /// A member's walk through the slots, in an order of its own.
    struct Walk {
        next: u32,
        skip: u32,
        credit: u32,
    }

    /// The table of a service: one endpoint id for each slot; empty if there is no member.
    ///
    /// `members` must come from [`normalize`]. Memory is O(members + slots).
    pub fn build(members: &[Member], seed: u64) -> Vec<u64> {
        let size = table_size(members);
        if size == 0 {
            return Vec::new();
        }
        let slots = size as usize;
        let heaviest = members.iter().map(|member| u32::from(member.weight)).max().unwrap_or(1);
        // All move in the first round: none that weighs anything goes without a slot in a table of the largest size.
        let walks = members.iter().map(|member| walk(member.endpoint, seed, size, heaviest - 1));
        let mut walks: Vec<Walk> = walks.collect();
        let mut table = vec![0; slots];
        let mut taken = vec![false; slots];
        let mut filled = 0;
        loop {
            for (member, walk) in members.iter().zip(&mut walks) {
                // A member moves in every round in which its saved-up weight makes a whole turn.
                walk.credit += u32::from(member.weight);
                if walk.credit < heaviest {
                    continue;
                }
                walk.credit -= heaviest;
                while taken[walk.next as usize] {
                    walk.next = (walk.next + walk.skip) % size;
                }
                taken[walk.next as usize] = true;
                table[walk.next as usize] = member.endpoint;
                filled += 1;
                if filled == slots {
                    return table;
                }
            }
        }
    }

    /// The permutation of a member: `offset`, `offset + skip`, … modulo the prime size.
    fn walk(endpoint: u64, seed: u64, size: u32, credit: u32) -> Walk {
        let offset = hash::finish(hash::mix(seed, endpoint)) % u64::from(size);
        let skip = hash::finish(hash::mix(!seed, endpoint)) % u64::from(size - 1) + 1;
        let narrow = |value: u64| u32::try_from(value).unwrap_or(0);
        Walk { next: narrow(offset), skip: narrow(skip), credit }
    }
}
