//! What clsact filters a device has, asked of the kernel: their pins only say what was attached once.

use std::io::{self, Read};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// The kernel answers within the call; this only keeps a lost answer from being waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Numbers of `linux/netlink.h`, `linux/rtnetlink.h`, `linux/pkt_sched.h` and `linux/pkt_cls.h`.
const NEW_FILTER: u16 = 44;
const GET_FILTER: u16 = 46;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST_DUMP: u16 = 0x301;
const CLSACT_INGRESS: u32 = 0xffff_fff2;
const OPTIONS: u16 = 2;
const PROGRAM_ID: u16 = 11;
/// Bytes of a message's header, and of what describes a filter behind it.
const HEADER: usize = 16;
const DESCRIPTION: usize = 20;

/// A filter that runs a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// Its place among the device's filters.
    pub(super) priority: u16,
    /// Its number in that place.
    pub(super) handle: u32,
    /// The id of its program.
    pub(super) program: u32,
}

/// The filters at the ingress of a device of the calling thread's namespace. A device without any, or that is gone, has
/// none.
pub(super) fn at(ifindex: u32) -> io::Result<Vec<Filter>> {
    let route = Protocol::from(libc::NETLINK_ROUTE);
    let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(route))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&request(ifindex))?;
    let (mut filters, mut buffer) = (Vec::new(), vec![0; 32 << 10]);
    loop {
        let length = socket.read(&mut buffer)?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((kind, message)) = message(rest) {
            match kind {
                NEW_FILTER => filters.extend(filter(message)),
                DONE => return Ok(filters),
                ERROR => match word(message, HEADER).map_or(0, u32::cast_signed) {
                    0 => return Ok(filters),
                    code if -code == libc::ENODEV => return Ok(filters),
                    code => return Err(io::Error::from_raw_os_error(-code)),
                },
                _ => {}
            }
            rest = rest.get(message.len().next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn request(ifindex: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + DESCRIPTION);
    // Length, kind and flags, sequence, sender; then family, device, handle, parent, place.
    bytes.extend(36_u32.to_ne_bytes());
    bytes.extend(GET_FILTER.to_ne_bytes());
    bytes.extend(REQUEST_DUMP.to_ne_bytes());
    for field in [1, 0, 0, ifindex, 0, CLSACT_INGRESS, 0] {
        bytes.extend(u32::to_ne_bytes(field));
    }
    bytes
}

/// The first message: its kind and all of it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let length = usize::try_from(word(bytes, 0)?).ok().filter(|length| *length >= HEADER)?;
    Some((half(bytes, 4)?, bytes.get(..length)?))
}

/// The filter a message tells of, if it runs a program.
fn filter(message: &[u8]) -> Option<Filter> {
    let options = attribute(message.get(HEADER + DESCRIPTION..)?, OPTIONS)?;
    let priority = u16::try_from(word(message, HEADER + 16)? >> 16).ok()?;
    let (handle, program) = (word(message, HEADER + 8)?, word(attribute(options, PROGRAM_ID)?, 0)?);
    Some(Filter { priority, handle, program })
}

/// The content of an attribute.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(half(bytes, 0)?);
        let content = bytes.get(4..length)?;
        // The two highest bits are flags.
        if half(bytes, 2)? & 0x3fff == wanted {
            return Some(content);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).and_then(|half| half.try_into().ok()).map(u16::from_ne_bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(parts: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, content) in parts {
            bytes.extend(u16::try_from(content.len() + 4).expect("short").to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*content);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    fn told(options: Option<&[(u16, &[u8])]>) -> Vec<u8> {
        let mut parts = vec![(1, b"bpf\0".to_vec())];
        parts.extend(options.map(|options| (OPTIONS, attributes(options))));
        let parts: Vec<_> = parts.iter().map(|(kind, content)| (*kind, content.as_slice())).collect();
        let mut message = vec![0; HEADER];
        for field in [0, 3, 1, CLSACT_INGRESS, 7371 << 16 | 0x0300] {
            message.extend(u32::to_ne_bytes(field));
        }
        message.extend(attributes(&parts));
        let length = u32::try_from(message.len()).expect("short");
        message[..4].copy_from_slice(&length.to_ne_bytes());
        message
    }

    #[test]
    fn the_program_of_a_filter_is_found_and_one_without_is_none() {
        let id = 77_u32.to_ne_bytes();
        let found = filter(&told(Some(&[(7, b"x\0"), (PROGRAM_ID, &id)])));
        assert_eq!(found, Some(Filter { priority: 7371, handle: 1, program: 77 }));
        assert_eq!(filter(&told(Some(&[(7, b"x\0")]))), None);
        assert_eq!(filter(&told(None)), None);
    }

    #[test]
    fn what_is_cut_off_is_no_message() {
        let whole = told(Some(&[(PROGRAM_ID, &[0; 4])]));
        assert!(message(&whole).is_some());
        assert!((0..whole.len()).all(|length| message(&whole[..length]).is_none()));
        assert!((0..whole.len()).all(|length| filter(&whole[..length]).is_none()));
    }
}
