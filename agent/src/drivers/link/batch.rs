//! Many writes by few calls: each call carries as many requests as fit, and only the last is acknowledged.

use std::io::{self, Read};
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_route::RouteNetlinkMessage;
use socket2::{Domain, Protocol, Socket, Type};

/// Requests of one call. Were each of them refused, the answers would still find room.
const REQUESTS: u32 = 256;
/// The kernel answers within the call; this only keeps a lost answer from being waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// `NLMSG_ERROR`, which also carries acknowledgements (`linux/netlink.h`).
const ERROR: u16 = 2;
/// Bytes of a message's header.
const HEADER: usize = 16;

/// Makes or overwrites, in the namespace of the calling thread. Returns how many of the first requests went well; of
/// those behind the first that did not, some may have.
pub(crate) fn replace_all(requests: impl IntoIterator<Item = RouteNetlinkMessage>) -> io::Result<usize> {
    let route = Protocol::from(libc::NETLINK_ROUTE);
    let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(route))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let (mut requests, mut done) = (requests.into_iter().peekable(), 0);
    while requests.peek().is_some() {
        let (mut bytes, end) = (Vec::new(), done + REQUESTS);
        while done < end
            && let Some(request) = requests.next()
        {
            let is_last = done + 1 == end || requests.peek().is_none();
            append(&mut bytes, request, done, if is_last { NLM_F_ACK } else { 0 });
            done += 1;
        }
        socket.send(&bytes)?;
        if let Some(failed) = answers(&mut socket, done - 1)? {
            return usize::try_from(failed).map_err(io::Error::other);
        }
    }
    usize::try_from(done).map_err(io::Error::other)
}

fn append(bytes: &mut Vec<u8>, request: RouteNetlinkMessage, sequence: u32, flags: u16) {
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE | flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}

/// Reads until the last request is answered. Returns the first that was refused.
fn answers(socket: &mut Socket, last: u32) -> io::Result<Option<u32>> {
    let (mut buffer, mut failed) = (vec![0; 32 << 10], None);
    loop {
        let length = socket.read(&mut buffer)?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some(answer) = Answer::parse(rest) {
            if answer.kind == ERROR && answer.code != 0 {
                failed = Some(failed.unwrap_or(answer.sequence).min(answer.sequence));
            }
            if answer.kind == ERROR && answer.sequence == last {
                return Ok(failed);
            }
            rest = rest.get(answer.length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// A message of the kernel's, as far as it matters here.
struct Answer {
    length: usize,
    kind: u16,
    sequence: u32,
    /// Of an error; 0 acknowledges.
    code: i32,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
        let length = usize::try_from(u32::from_ne_bytes(word(0)?)).ok().filter(|length| *length >= HEADER)?;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let sequence = u32::from_ne_bytes(word(8)?);
        let code = if kind == ERROR { i32::from_ne_bytes(word(HEADER)?) } else { 0 };
        Some(Self { length, kind, sequence, code })
    }
}
