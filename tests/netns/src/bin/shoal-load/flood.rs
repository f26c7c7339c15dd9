//! Requests for connections from addresses of nobody, as a flood of them comes.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;

use anyhow::bail;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use serde_json::json;

use crate::args::Args;

/// The network of the senders: for measurements (RFC 2544), so nobody's.
const SENDERS: u32 = u32::from_be_bytes([198, 18, 0, 0]);
const SENDERS_MASK: u32 = 0x0001_ffff;
const TCP: u8 = 6;
const SYN: u8 = 2;

pub(crate) fn run(mut args: Args) -> anyhow::Result<bool> {
    let SocketAddr::V4(target) = args.target()? else { bail!("a flood needs an IPv4 target") };
    let count: u32 = args.take_or("count", 100_000)?;
    args.finish()?;
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    let to = SockaddrIn::from(target);
    let mut refused = 0_u32;
    for number in 0..count {
        match sendto(socket.as_raw_fd(), &syn(number, target), &to, MsgFlags::empty()) {
            Ok(_) => {}
            Err(Errno::ENOBUFS | Errno::EPERM) => refused += 1,
            Err(error) => return Err(error.into()),
        }
    }
    println!("{}", json!({"mode": "flood", "sent": count - refused, "refused": refused}));
    Ok(refused == 0)
}

/// A SYN of the sender with that number; the kernel adds what is missing of the IP header.
fn syn(number: u32, target: SocketAddrV4) -> [u8; 40] {
    let source = Ipv4Addr::from(SENDERS | (number & SENDERS_MASK));
    let [.., high, low] = (number >> 17).to_be_bytes();
    let mut packet = [0; 40];
    packet[..20].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&target.ip().octets());
    packet[20..22].copy_from_slice(&[high | 0x80, low]);
    packet[22..24].copy_from_slice(&target.port().to_be_bytes());
    packet[24..28].copy_from_slice(&number.to_be_bytes());
    packet[32..36].copy_from_slice(&[0x50, SYN, 0xff, 0xff]);
    let check = checksum(&packet);
    packet[36..38].copy_from_slice(&check.to_be_bytes());
    packet
}

/// The checksum of the TCP header, which is all there is after the addresses.
fn checksum(packet: &[u8; 40]) -> u16 {
    let words = packet[12..].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum = words.sum::<u32>() + u32::from(TCP) + 20;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [.., high, low] = (!sum).to_be_bytes();
    u16::from_be_bytes([high, low])
}
