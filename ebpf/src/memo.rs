//! What tables that the agent writes say, remembered on each CPU until the agent writes one of them again.
//!
//! A packet of a known flow asks the same few entries as the one before. A lookup in a hash table is four calls in the kernel,
//! which cost as much as all else that is decided on such a packet; an array is read by a few instructions.
//!
//! The agent raises `EPOCH` after each write, so what was looked up under its present number is what was written last. (What
//! somebody else changes shows when the agent has put it right.) For programs at devices alone: others may be interrupted
//! by these while they read.

use core::ptr;

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray};
use shoal_ebpf_common::keys::LocalKey;
use shoal_ebpf_common::values::{EndpointVal, PeerVal, TaskIf};

/// Raised by the agent, as memory.
#[map]
static EPOCH: Array<u64> = Array::pinned(1, BPF_F_MMAPABLE);

/// Places for what was asked, as a power of two.
const PLACES: u32 = 10;

#[map]
static KNOWN_ENDPOINTS: PerCpuArray<Seat<EndpointVal>> = PerCpuArray::with_max_entries(1 << PLACES, 0);
#[map]
static KNOWN_TASK_IFS: PerCpuArray<Seat<TaskIf>> = PerCpuArray::with_max_entries(1 << PLACES, 0);
#[map]
static KNOWN_PEERS: PerCpuArray<Seat<PeerVal>> = PerCpuArray::with_max_entries(1 << PLACES, 0);

/// What a table said. All zeroes: nothing.
#[repr(C)]
struct Seat<V> {
    /// The epoch, its bits turned over: zeroes are of none.
    epoch: u64,
    key: Key,
    /// 0: there is no such entry.
    is_there: u64,
    value: V,
}

/// The key of an entry, as words.
type Key = [u64; 2];

/// An endpoint; `ask` looks it up.
#[inline(always)]
pub fn endpoint<'a>(
    id: u64,
    ask: impl FnOnce(&u64) -> Option<&'a EndpointVal>,
) -> Option<&'static EndpointVal> {
    recall::<_, false>(&KNOWN_ENDPOINTS, [id, 0], || ask(&id))
}

/// What the task behind a veth may send; `ask` looks it up.
#[inline(always)]
pub fn task_if<'a>(ifindex: u32, ask: impl FnOnce(&u32) -> Option<&'a TaskIf>) -> Option<&'static TaskIf> {
    recall::<_, true>(&KNOWN_TASK_IFS, [ifindex as u64, 0], || ask(&ifindex))
}

/// How a frame gets to a task or router elsewhere; `ask` looks it up.
#[inline(always)]
pub fn peer<'a>(
    key: &LocalKey,
    ask: impl FnOnce(&LocalKey) -> Option<&'a PeerVal>,
) -> Option<&'static PeerVal> {
    let m = &key.mac;
    let mac = u64::from_ne_bytes([m[0], m[1], m[2], m[3], m[4], m[5], 0, 0]);
    recall::<_, true>(&KNOWN_PEERS, [mac, key.vxlan as u64], || ask(key))
}

/// The place of a key.
#[inline(always)]
const fn place(key: &Key) -> u32 {
    /// 2^32 by the golden ratio, so that neighbors lie apart.
    const SPREAD: u32 = 0x9e37_79b9;
    let mixed = key[0] ^ key[0] >> 32 ^ key[1];
    (mixed as u32).wrapping_mul(SPREAD) >> (u32::BITS - PLACES)
}

/// What is remembered, if it is of this key and right; else what the table says. `ABSENCE`: whether it is remembered, too, that
/// there is no such entry. Of endpoints it must not be: a new connection asks the table, and the rest of it would be refused.
#[inline(always)]
fn recall<'a, V: Copy + 'a, const ABSENCE: bool>(
    seats: &'static PerCpuArray<Seat<V>>,
    key: Key,
    ask: impl FnOnce() -> Option<&'a V>,
) -> Option<&'static V> {
    // SAFETY: the map begins as zeroes, and the element is this CPU's; a program is not interrupted by another here.
    let seat = unsafe { &mut *seats.get_ptr_mut(place(&key))? };
    let epoch = EPOCH.get_ptr(0)?;
    // SAFETY: a word of the map, which the agent writes as one. Read before the table is asked. (A processor that loads out of
    // order, which x86_64 doesn't, may do it the other way round.)
    let epoch = !unsafe { epoch.read_volatile() };
    let is_same = seat.key[0] == key[0] && seat.key[1] == key[1];
    if !is_same || seat.epoch != epoch {
        seat.epoch = epoch;
        seat.key = key;
        seat.is_there = 0;
        if let Some(value) = ask() {
            seat.is_there = 1;
            // SAFETY: both are memory of such a value, and not the same.
            unsafe { ptr::copy_nonoverlapping(value, &raw mut seat.value, 1) };
        } else if !ABSENCE {
            seat.epoch = 0;
        }
    }
    if seat.is_there == 0 { None } else { Some(&seat.value) }
}
