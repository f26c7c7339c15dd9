//! Internet checksums (RFC 1071), and how they change with what they cover (RFC 1624).

use crate::addr::Addr;

/// Adds two one's complement sums.
#[inline(always)]
pub const fn add(a: u32, b: u32) -> u32 {
    // By 64 bits: the target has no carry to ask for, and would compare and branch.
    let sum = a as u64 + b as u64;
    // After a carry the lower half is below the maximum, so the end-around one cannot carry again.
    ((sum & 0xffff_ffff) as u32).wrapping_add((sum >> 32) as u32)
}

/// Folds a sum into 16 bits.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum + (sum >> 16)) & 0xffff) as u16
}

/// The difference a changed 32-bit word makes, words read as they lie in memory.
#[inline(always)]
pub const fn word_diff(from: u32, to: u32) -> u32 {
    add(!from, to)
}

/// The difference a changed address makes to a pseudo header, and to the IPv4 header.
///
/// Both must be of one family: the constant words of a mapped address cancel out.
#[inline(always)]
pub const fn addr_diff(from: &Addr, to: &Addr) -> u32 {
    narrow(wide_diff(from, to))
}

/// The difference that two changed addresses of a packet make.
#[inline(always)]
pub const fn ends_diff(from: (&Addr, &Addr), to: (&Addr, &Addr)) -> u32 {
    narrow(wide_diff(from.0, to.0) + wide_diff(from.1, to.1))
}

/// As [`addr_diff`], with all carries in the upper half.
#[inline(always)]
const fn wide_diff(from: &Addr, to: &Addr) -> u64 {
    let (f, t) = (from.words(), to.words());
    let high = !f[0] as u64 + t[0] as u64 + !f[1] as u64 + t[1] as u64;
    high + !f[2] as u64 + t[2] as u64 + !f[3] as u64 + t[3] as u64
}

/// Adds the few carries in the upper half of a sum to the lower one.
#[inline(always)]
const fn narrow(sum: u64) -> u32 {
    add((sum & 0xffff_ffff) as u32, (sum >> 32) as u32)
}

/// The difference changed ports make.
#[inline(always)]
pub const fn port_diff(from: (u16, u16), to: (u16, u16)) -> u32 {
    word_diff(port_word(from), port_word(to))
}

/// The two ports as the 32-bit word they are on the wire, in memory order.
#[inline(always)]
pub const fn port_word((source, destination): (u16, u16)) -> u32 {
    let (s, d) = (source.to_be_bytes(), destination.to_be_bytes());
    u32::from_ne_bytes([s[0], s[1], d[0], d[1]])
}

/// A checksum field, as it lies in memory, after a difference was applied.
#[inline(always)]
pub const fn update(check: u16, diff: u32) -> u16 {
    !fold(add(!check as u32 & 0xffff, diff))
}

/// The sum of bytes in memory order, on top of another; an odd last byte is padded with zero.
#[inline(always)]
pub fn sum(bytes: &[u8], start: u32) -> u32 {
    let mut total = start;
    for pair in bytes.chunks(2) {
        let word = match pair {
            [a, b] => u16::from_ne_bytes([*a, *b]),
            [a] => u16::from_ne_bytes([*a, 0]),
            _ => 0,
        };
        total = add(total, u32::from(word));
    }
    total
}

/// The sum of a pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1), in memory order.
#[inline(always)]
pub fn pseudo(src: &Addr, dst: &Addr, proto: u8, len: u32) -> u32 {
    // The constant words of a mapped address would not cancel out here.
    let of = |addr: &Addr| {
        let w = addr.words();
        if addr.is_v4() { w[3] } else { add(add(w[0], w[1]), add(w[2], w[3])) }
    };
    let tail = add(len.to_be(), u32::from_ne_bytes([0, 0, 0, proto]));
    add(add(of(src), of(dst)), tail)
}
