//! A hash for choosing endpoints: equal on every node and CPU, cheap without wide multiplication or division.

use crate::keys::FlowKey;

/// Multiplier of the 64-bit finalizer of MurmurHash3 (Appleby), odd and well mixed.
const MIX: u64 = 0xff51_afd7_ed55_8ccd;
/// Its second multiplier.
const FINISH: u64 = 0xc4ce_b9fe_1a85_ec53;

/// Adds a word to a state.
#[inline(always)]
pub const fn mix(state: u64, word: u64) -> u64 {
    let mixed = (state ^ word).wrapping_mul(MIX);
    // The high bits are the good ones after a multiplication; fold them down for the next.
    mixed ^ (mixed >> 32)
}

/// Spreads a state over all 64 bits.
#[inline(always)]
pub const fn finish(state: u64) -> u64 {
    let mixed = (state ^ (state >> 33)).wrapping_mul(FINISH);
    mixed ^ (mixed >> 33)
}

/// The hash of a flow, from the words of its key.
///
/// Both addresses take part, so that a client that uses one source port towards two nodes is not led to one
/// endpoint, where the two flows could be told apart only by translating a port.
#[inline(always)]
pub const fn flow(key: &FlowKey, seed: u64) -> u64 {
    let (src, dst) = (key.src.words(), key.dst.words());
    let ports = ((key.sport as u64) << 16) | key.dport as u64;
    let mut state = mix(seed, pair(src[0], src[1]));
    state = mix(state, pair(src[2], src[3]));
    state = mix(state, pair(dst[0], dst[1]));
    state = mix(state, pair(dst[2], dst[3]));
    state = mix(state, (ports << 8) | key.proto() as u64);
    finish(state)
}

/// The hash of a flow's client, in its network.
#[inline(always)]
pub const fn source(key: &FlowKey, seed: u64) -> u64 {
    let src = key.src.words();
    finish(mix(mix(seed, pair(src[0], src[1])), pair(src[2], src[3])))
}

/// Two words of an address, read as the wire has them on any CPU.
#[inline(always)]
const fn pair(high: u32, low: u32) -> u64 {
    ((u32::from_be(high) as u64) << 32) | u32::from_be(low) as u64
}
