//! So many bytes up, then so many down, each byte told by its place, so that one that is lost, doubled or moved shows.

use std::io::{Error, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::json;

use crate::args::Args;

const CHUNK: usize = 1 << 16;
/// What either side says: how many bytes it is about, and their digest.
const WORDS: usize = 16;
/// Of what the server sends.
const DOWN: u64 = 0x9e37_79b9_7f4a_7c15;
/// Of what the client sends.
const UP: u64 = 0xd1b5_4a32_d192_ed03;

/// Bytes that follow from a seed: a generator of the xorshift family.
struct Bytes {
    state: u64,
    left: u64,
    digest: Digest,
}

/// FNV-1a of 64 bits: it tells the order, too.
#[derive(Clone, Copy)]
struct Digest(u64);

impl Digest {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

impl Bytes {
    const fn new(seed: u64, count: u64) -> Self {
        Self { state: seed, left: count, digest: Digest::new() }
    }

    /// The next of them, as many as fit.
    fn next<'a>(&mut self, buffer: &'a mut [u8]) -> &'a [u8] {
        let count = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let next = &mut buffer[..count];
        for eight in next.chunks_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            let word = self.state.to_le_bytes();
            eight.copy_from_slice(&word[..eight.len()]);
        }
        self.left -= count as u64;
        self.digest.add(next);
        next
    }

    fn send(mut self, stream: &mut impl Write) -> std::io::Result<u64> {
        let mut buffer = vec![0; CHUNK];
        while self.left > 0 {
            stream.write_all(self.next(&mut buffer))?;
        }
        Ok(self.digest.0)
    }
}

/// The digest of so many bytes to come.
fn receive(stream: &mut impl Read, mut count: u64) -> std::io::Result<u64> {
    let mut digest = Digest::new();
    let mut buffer = vec![0; CHUNK];
    while count > 0 {
        let wanted = usize::try_from(count).map_or(CHUNK, |count| count.min(CHUNK));
        let read = stream.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(Error::other(format!("closed, {count} bytes early")));
        }
        digest.add(&buffer[..read]);
        count -= read as u64;
    }
    Ok(digest.0)
}

fn words(stream: &mut impl Read) -> std::io::Result<[u64; 2]> {
    let mut bytes = [0; WORDS];
    stream.read_exact(&mut bytes)?;
    let (mut first, mut second) = ([0; 8], [0; 8]);
    first.copy_from_slice(&bytes[..8]);
    second.copy_from_slice(&bytes[8..]);
    Ok([u64::from_be_bytes(first), u64::from_be_bytes(second)])
}

fn say(stream: &mut impl Write, words: [u64; 2]) -> std::io::Result<()> {
    stream.write_all(&words.map(u64::to_be_bytes).concat())
}

/// The server: is told how many bytes come and how many are wanted, says what came, and sends.
pub(crate) fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let [up, down] = words(&mut stream)?;
    let digest = receive(&mut stream, up)?;
    say(&mut stream, [up, digest])?;
    Bytes::new(DOWN, down).send(&mut stream).map(drop)
}

pub(crate) fn run(mut args: Args) -> anyhow::Result<bool> {
    let target = args.target()?;
    let up: u64 = args.take_or("up", 0)?;
    let down: u64 = args.take_or("down", 0)?;
    let timeout = Duration::from_millis(args.take_or("timeout-ms", 10_000)?);
    args.finish()?;
    let failure = transfer(target, [up, down], timeout).err().map(|error| error.to_string());
    let is_clean = failure.is_none();
    println!("{}", json!({ "mode": "transfer", "up": up, "down": down, "failure": failure }));
    Ok(is_clean)
}

fn transfer(target: SocketAddr, [up, down]: [u64; 2], timeout: Duration) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    say(&mut stream, [up, down])?;
    let sent = Bytes::new(UP, up).send(&mut stream)?;
    if words(&mut stream)? != [up, sent] {
        return Err(Error::other("what the server got is not what was sent"));
    }
    let came = receive(&mut stream, down)?;
    if came != Bytes::new(DOWN, down).send(&mut std::io::sink())? {
        return Err(Error::other("what came is not what the server sends"));
    }
    match stream.read(&mut [0; 1])? {
        0 => Ok(()),
        _ => Err(Error::other("more came than was asked for")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(seed: u64, count: u64) -> (Vec<u8>, u64) {
        let mut bytes = Vec::new();
        let digest = Bytes::new(seed, count).send(&mut bytes).expect("into memory");
        (bytes, digest)
    }

    #[test]
    fn what_is_lost_doubled_or_moved_shows() {
        let (bytes, digest) = sent(UP, 200_000);
        assert_eq!(bytes.len(), 200_000);
        assert_eq!(receive(&mut &bytes[..], 200_000).expect("all there"), digest);
        assert!(receive(&mut &bytes[1..], 200_000).is_err(), "one is missing");
        let shifted = [&bytes[..28], &bytes[..199_972]].concat();
        assert_ne!(receive(&mut &shifted[..], 200_000).expect("as many"), digest);
        let mut swapped = bytes;
        swapped.swap(70_000, 70_001);
        assert_ne!(receive(&mut &swapped[..], 200_000).expect("as many"), digest);
        assert_ne!(sent(DOWN, 200_000).1, digest, "an echo is no answer");
    }
}
