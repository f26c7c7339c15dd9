//! The header of the PROXY protocol, version 2, as strictly as shoal is to send it: `PROXY`, TCP over IPv4 or IPv6, and
//! nothing behind the addresses.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// How long a client's header may take: a lost one is sent again.
const PATIENCE: Duration = Duration::from_secs(10);

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
/// Stream over IPv4 or IPv6, and how long their addresses and ports are.
const TCP4: (u8, u16) = (0x11, 12);
const TCP6: (u8, u16) = (0x21, 36);

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The client's address and port.
    pub(crate) client: SocketAddr,
    /// The address and port that it asked.
    pub(crate) asked: SocketAddr,
}

impl Header {
    /// Takes the header off a connection, and not a byte more; none if what comes is not one.
    pub(crate) fn take(stream: &mut TcpStream) -> Option<Self> {
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let header = Self::read(stream);
        stream.set_read_timeout(None).ok()?;
        header
    }

    fn read(stream: &mut impl Read) -> Option<Self> {
        let mut fixed = [0; 16];
        stream.read_exact(&mut fixed).ok()?;
        let kind = (fixed[13], u16::from_be_bytes([fixed[14], fixed[15]]));
        if fixed[..12] != SIGNATURE || fixed[12] != PROXY {
            return None;
        }
        match kind {
            TCP4 => {
                let mut rest = [0; 12];
                stream.read_exact(&mut rest).ok()?;
                let (addresses, ports) = rest.split_at(8);
                let (client, asked) = addresses.split_at(4);
                let address = |bytes: &[u8]| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into());
                Self::of(address(client)?, address(asked)?, ports)
            }
            TCP6 => {
                let mut rest = [0; 36];
                stream.read_exact(&mut rest).ok()?;
                let (addresses, ports) = rest.split_at(32);
                let (client, asked) = addresses.split_at(16);
                let address = |bytes: &[u8]| Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into());
                Self::of(address(client)?, address(asked)?, ports)
            }
            _ => None,
        }
    }

    fn of(client: IpAddr, asked: IpAddr, ports: &[u8]) -> Option<Self> {
        let [c0, c1, a0, a1] = *ports else { return None };
        Some(Self {
            client: SocketAddr::new(client, u16::from_be_bytes([c0, c1])),
            asked: SocketAddr::new(asked, u16::from_be_bytes([a0, a1])),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(kind: u8, addresses: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([PROXY, kind, 0, u8::try_from(addresses.len()).expect("short")]);
        bytes.extend(addresses);
        bytes
    }

    #[test]
    fn headers_of_both_families_are_read_and_no_byte_behind_them() {
        let v4 = bytes(0x11, &[192, 0, 2, 9, 10, 77, 0, 1, 0x9c, 0x40, 0x1f, 0x90]);
        let mut stream = [&v4[..], b"GET /"].concat();
        let mut rest = &stream[..];
        let header = Header::read(&mut rest).expect("a header");
        assert_eq!(header.client, "192.0.2.9:40000".parse().expect("literal"));
        assert_eq!(header.asked, "10.77.0.1:8080".parse().expect("literal"));
        assert_eq!(rest, b"GET /");
        let [client, asked] = ["2001:db8::9", "fd77::1"].map(|a| a.parse::<Ipv6Addr>().expect("literal"));
        stream = bytes(0x21, &[&client.octets()[..], &asked.octets(), &[0x9c, 0x40, 0x1f, 0x90]].concat());
        let header = Header::read(&mut &stream[..]).expect("a header");
        assert_eq!(header.client, SocketAddr::new(client.into(), 40_000));
        assert_eq!(header.asked, SocketAddr::new(asked.into(), 8080));
    }

    #[test]
    fn whatever_else_comes_is_no_header() {
        let good = bytes(0x11, &[1; 12]);
        assert!(Header::read(&mut &good[..]).is_some());
        for length in 0..good.len() {
            assert!(Header::read(&mut &good[..length]).is_none(), "{length} bytes of it");
        }
        for place in 0..16 {
            let mut other = [&good[..], &[0; 64]].concat();
            other[place] ^= 1;
            assert!(Header::read(&mut &other[..]).is_none(), "byte {place} is another");
        }
        let further = bytes(0x11, &[1; 15]);
        assert!(Header::read(&mut &further[..]).is_none(), "something behind the addresses");
        let local = {
            let mut local = good;
            local[12] = 0x20;
            local
        };
        assert!(Header::read(&mut &local[..]).is_none(), "command LOCAL");
    }
}
