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

#[map]
static KNOWN_ENDPOINTS: PerCpuArray<Seat<u64, EndpointVal>> = PerCpuArray::with_max_entries(1 << 10, 0);
#[map]
static KNOWN_TASK_IFS: PerCpuArray<Seat<u64, TaskIf>> = PerCpuArray::with_max_entries(1 << 8, 0);
#[map]
static KNOWN_PEERS: PerCpuArray<Seat<[u32; 3], PeerVal>> = PerCpuArray::with_max_entries(1 << 10, 0);

/// What a table said. All zeroes: nothing.
#[repr(C)]
struct Seat<K, V> {
    /// The epoch, its bits turned over: zeroes are of none.
    epoch: u64,
    key: K,
    /// 0: there is no such entry.
    is_there: u32,
    value: V,
}

/// An endpoint; `ask` looks it up.
#[inline(always)]
pub fn endpoint<'a>(
    id: u64,
    ask: impl FnOnce(&u64) -> Option<&'a EndpointVal>,
) -> Option<&'static EndpointVal> {
    let place = spread(id as u32 ^ (id >> 32) as u32, 10);
    // SAFETY: the map begins as zeroes, and the element is this CPU's; a program is not interrupted by another here.
    let seat = unsafe { &mut *KNOWN_ENDPOINTS.get_ptr_mut(place)? };
    recall::<_, _, false>(seat, id, seat.key == id, || ask(&id))
}

/// What the task behind a veth may send; `ask` looks it up.
#[inline(always)]
pub fn task_if<'a>(ifindex: u32, ask: impl FnOnce(&u32) -> Option<&'a TaskIf>) -> Option<&'static TaskIf> {
    // SAFETY: as above.
    let seat = unsafe { &mut *KNOWN_TASK_IFS.get_ptr_mut(ifindex & 0xff)? };
    recall::<_, _, true>(seat, ifindex.into(), seat.key == u64::from(ifindex), || ask(&ifindex))
}

/// How a frame gets to a task or router elsewhere; `ask` looks it up.
#[inline(always)]
pub fn peer<'a>(
    key: &LocalKey,
    ask: impl FnOnce(&LocalKey) -> Option<&'a PeerVal>,
) -> Option<&'static PeerVal> {
    let m = &key.mac;
    let words =
        [key.vxlan, u32::from_ne_bytes([m[0], m[1], m[2], m[3]]), u32::from_ne_bytes([m[4], m[5], 0, 0])];
    // SAFETY: as above.
    let seat = unsafe { &mut *KNOWN_PEERS.get_ptr_mut(spread(words[0] ^ words[1] ^ words[2] << 16, 10))? };
    let is_same = seat.key[0] == words[0] && seat.key[1] == words[1] && seat.key[2] == words[2];
    recall::<_, _, true>(seat, words, is_same, || ask(key))
}

/// One of 2^`bits` places.
#[inline(always)]
const fn spread(key: u32, bits: u32) -> u32 {
    /// 2^32 by the golden ratio, so that neighbors lie apart.
    const SPREAD: u32 = 0x9e37_79b9;
    key.wrapping_mul(SPREAD) >> (u32::BITS - bits)
}

/// What is remembered, if it is of this key and right; else what the table says. `ABSENCE`: whether it is remembered, too, that
/// there is no such entry. Of endpoints it must not be: a new connection asks the table, and the rest of it would be refused.
#[inline(always)]
fn recall<'a, K, V: Copy + 'a, const ABSENCE: bool>(
    seat: &'static mut Seat<K, V>,
    key: K,
    is_same: bool,
    ask: impl FnOnce() -> Option<&'a V>,
) -> Option<&'static V> {
    let epoch = EPOCH.get_ptr(0)?;
    // SAFETY: a word of the map, which the agent writes as one. Read before the table is asked. (A processor that loads out of
    // order, which x86_64 doesn't, may do it the other way round.)
    let epoch = !unsafe { epoch.read_volatile() };
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
