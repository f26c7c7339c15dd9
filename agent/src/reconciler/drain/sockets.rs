//! The sockets of a network namespace, from `/proc/net/tcp`, `tcp6`, `udp` and `udp6` as the calling thread sees them, and
//! from those below `/proc/net/sctp` where the kernel has SCTP. They need no module of the kernel's, unlike `sock_diag`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use shoal_types::Protocol;

/// What others may still have with the programs of the namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Connections that came from elsewhere.
    pub(super) connections: u32,
    /// Inodes of sockets that take datagrams from anybody elsewhere.
    pub(super) servers: BTreeSet<u64>,
}

/// A table that can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TableError {
    /// The kernel does not give it.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not in the words known here.
    #[error("{path} has a line that is not understood: '{line}'")]
    Line {
        /// Which.
        path: &'static str,
        /// The line.
        line: String,
    },
}

/// States by the kernel's numbers (`include/net/tcp_states.h`).
const ESTABLISHED: u8 = 1;
const FIN_WAIT_2: u8 = 5;
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

const TCP: [&str; 2] = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
const UDP: [&str; 2] = ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"];
const ASSOCIATIONS: &str = "/proc/thread-self/net/sctp/assocs";
const ENDPOINTS: &str = "/proc/thread-self/net/sctp/eps";
const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Looks at the namespace of the calling thread. Blocks for as long as the kernel takes to walk its tables.
pub(super) fn read() -> Result<Seen, TableError> {
    let (tcp, udp) = (tables(TCP)?, tables(UDP)?);
    let mut sctp = optional(ASSOCIATIONS, association)?;
    sctp.extend(optional(ENDPOINTS, listener)?);
    let range = text(EPHEMERAL)?;
    let mut ends = range.split_whitespace().map(str::parse);
    match (ends.next(), ends.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok(seen(&tcp, &sctp, &udp, &(first..=last))),
        _ => Err(TableError::Line { path: EPHEMERAL, line: range }),
    }
}

/// A socket that clients come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listener {
    /// Transport.
    pub(crate) protocol: Protocol,
    /// Its address; unspecified for any.
    pub(crate) addr: IpAddr,
    /// Its port.
    pub(crate) port: u16,
}

/// Those of the namespace of the calling thread. The kernel's tables of TCP begin with them, and are read no further: it
/// takes no longer with a hundred thousand connections.
pub(crate) fn listeners() -> Result<Vec<Listener>, TableError> {
    let mut found = Vec::new();
    let mut take = |protocol, sockets: Vec<Socket>| {
        let local = sockets.into_iter().map(|socket| socket.local);
        found.extend(local.map(|(addr, port)| Listener { protocol, addr, port }));
    };
    for path in TCP {
        take(Protocol::Tcp, first_listeners(path)?);
    }
    let mut udp = tables(UDP)?;
    udp.retain(|socket| socket.remote.0.is_unspecified());
    take(Protocol::Udp, udp);
    let mut sctp = optional(ENDPOINTS, listener)?;
    sctp.retain(|socket| socket.state == LISTEN);
    take(Protocol::Sctp, sctp);
    Ok(found)
}

/// The sockets at the head of a table that listen.
fn first_listeners(path: &'static str) -> Result<Vec<Socket>, TableError> {
    let failed = |source| TableError::Read { path, source };
    let table = match File::open(path) {
        Err(error) if path.ends_with('6') && error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        table => BufReader::new(table.map_err(failed)?),
    };
    let mut sockets = Vec::new();
    for line in table.lines().skip(1) {
        let line = line.map_err(failed)?;
        match Socket::parse(&line) {
            Some(socket) if socket.state == LISTEN => sockets.push(socket),
            Some(_) => break,
            None => return Err(TableError::Line { path, line }),
        }
    }
    Ok(sockets)
}

fn text(path: &'static str) -> Result<String, TableError> {
    std::fs::read_to_string(path).map_err(|source| TableError::Read { path, source })
}

/// A table of SCTP. A kernel without it has none, and one that has not loaded its module yet.
fn optional(path: &'static str, parse: fn(&str) -> Option<Socket>) -> Result<Vec<Socket>, TableError> {
    let table = match text(path) {
        Err(TableError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(Vec::new());
        }
        table => table?,
    };
    let lines = table.lines().skip(1).filter(|line| !line.trim().is_empty());
    lines.map(|line| parse(line).ok_or_else(|| TableError::Line { path, line: line.to_owned() })).collect()
}

/// Both families' sockets. A kernel without IPv6 has no table of them.
fn tables(paths: [&'static str; 2]) -> Result<Vec<Socket>, TableError> {
    let mut sockets = Vec::new();
    for path in paths {
        let table = match text(path) {
            Err(TableError::Read { source, .. })
                if path.ends_with('6') && source.kind() == io::ErrorKind::NotFound =>
            {
                continue;
            }
            table => table?,
        };
        for line in table.lines().skip(1) {
            let socket =
                Socket::parse(line).ok_or_else(|| TableError::Line { path, line: line.to_owned() })?;
            sockets.push(socket);
        }
    }
    Ok(sockets)
}

/// A line of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Socket {
    local: (IpAddr, u16),
    remote: (IpAddr, u16),
    state: u8,
    /// Zero: no program has it any more, or yet.
    inode: u64,
}

impl Socket {
    fn parse(line: &str) -> Option<Self> {
        // Number, addresses, state, queues, timer, timeouts, user, timeout, inode, and more.
        let mut fields = line.split_whitespace().skip(1);
        Some(Self {
            local: endpoint(fields.next()?)?,
            remote: endpoint(fields.next()?)?,
            state: u8::from_str_radix(fields.next()?, 16).ok()?,
            inode: fields.nth(5)?.parse().ok()?,
        })
    }
}

/// An association, in the words of a connection.
fn association(line: &str) -> Option<Socket> {
    const CLOSED: u8 = 0;
    const COOKIE_ECHOED: u8 = 2;
    let mut fields = line.split_whitespace().skip(4);
    let state: u8 = fields.next()?.parse().ok()?;
    let inode = fields.nth(5)?.parse().ok()?;
    let (local, remote) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let mut addresses = fields.map(address);
    let own = addresses.next()??;
    let peer = addresses.skip_while(Option::is_some).nth(1)??;
    // Our own side asks for it until then: it is nobody's from elsewhere.
    let state = if (CLOSED..=COOKIE_ECHOED).contains(&state) { CLOSE } else { ESTABLISHED };
    Some(Socket { local: (own, local), remote: (peer, remote), state, inode })
}

/// A socket that associations come to, in the words of one for connections.
fn listener(line: &str) -> Option<Socket> {
    let mut fields = line.split_whitespace().skip(3);
    let state = fields.next()?.parse().ok()?;
    let port = fields.nth(1)?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    Some(Socket { local: (any, port), remote: (any, 0), state, inode })
}

/// An address of an association; its first path's is marked.
fn address(text: &str) -> Option<IpAddr> {
    text.trim_start_matches('*').parse().ok().map(|address: IpAddr| address.to_canonical())
}

/// `0100007F:0035`: an address as words in the byte order of the machine, and a port.
fn endpoint(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = [0; 16];
    let words = bytes.chunks_exact_mut(4);
    let digits = address.as_bytes().chunks(8);
    for (word, digits) in words.zip(digits) {
        let value = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        word.copy_from_slice(&value.to_ne_bytes());
    }
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        32 => Ipv6Addr::from(bytes).to_canonical(),
        _ => return None,
    };
    Some((address, port))
}

fn seen(tcp: &[Socket], sctp: &[Socket], udp: &[Socket], ephemeral: &RangeInclusive<u16>) -> Seen {
    let connections = |sockets: &[Socket]| {
        let listening: BTreeSet<u16> =
            sockets.iter().filter(|s| s.state == LISTEN).map(|s| s.local.1).collect();
        // A program may have closed the socket it listened on.
        let is_served = |port: u16| listening.contains(&port) || !ephemeral.contains(&port);
        sockets.iter().filter(|s| is_open(s) && is_served(s.local.1) && is_from_elsewhere(s)).count()
    };
    let servers = udp.iter().filter(|s| s.remote.0.is_unspecified() && !s.local.0.is_loopback());
    Seen {
        connections: u32::try_from(connections(tcp) + connections(sctp)).unwrap_or(u32::MAX),
        servers: servers.map(|s| s.inode).collect(),
    }
}

/// Whether something can still come of a connection: data that is under way goes on after the program closed it.
fn is_open(socket: &Socket) -> bool {
    match socket.state {
        LISTEN | CLOSE | TIME_WAIT => false,
        // The program has closed it, and all it sent has arrived.
        FIN_WAIT_2 => socket.inode != 0,
        _ => true,
    }
}

/// Health checks and programs that talk to each other inside the task don't count.
fn is_from_elsewhere(socket: &Socket) -> bool {
    !socket.local.0.is_loopback() && socket.local.0 != socket.remote.0
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};

    use super::*;
    use crate::netns::Netns;

    const RANGE: RangeInclusive<u16> = 32_768..=60_999;

    fn socket(local: &str, remote: &str, state: u8, inode: u64) -> Socket {
        let end = |text: &str| {
            let end: std::net::SocketAddr = text.parse().expect("an address");
            (end.ip(), end.port())
        };
        Socket { local: end(local), remote: end(remote), state, inode }
    }

    fn counted(sockets: &[Socket]) -> u32 {
        seen(sockets, &[], &[], &RANGE).connections
    }

    #[test]
    fn lines_of_both_families_are_read() {
        if cfg!(target_endian = "big") {
            return;
        }
        let v4 = "   0: 0200000A:1F90 0101A8C0:C350 01 00000000:00000000 02:000A7D8C 00000000  1000        0 40514 2 0000000000000000 20 4 30 10 -1";
        assert_eq!(Socket::parse(v4), Some(socket("10.0.0.2:8080", "192.168.1.1:50000", 1, 40_514)));
        let v6 = "   1: 000080FE00000000000000000100000A:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1 0000000000000000 100 0 0 10 0";
        assert_eq!(Socket::parse(v6), Some(socket("[fe80::a00:1]:80", "[::]:0", LISTEN, 7)));
        let mapped = "   1: 0000000000000000FFFF00000200000A:0050 0000000000000000FFFF00000101A8C0:C350 01 00000000:00000000 00:00000000 00000000     0        0 7 1 0000000000000000 100 0 0 10 0";
        assert_eq!(Socket::parse(mapped), Some(socket("10.0.0.2:80", "192.168.1.1:50000", 1, 7)));
        for torn in [
            "",
            "0: 0200000A:1F90",
            "0: 0200000A 0101A8C0:C350 01 a b c d e 7",
            "0: 02:1F90 01:1 01 a b c d e 7",
        ] {
            assert_eq!(Socket::parse(torn), None, "{torn}");
        }
    }

    #[test]
    fn connections_from_elsewhere_count_until_nothing_can_come_of_them() {
        let listener = socket("0.0.0.0:80", "0.0.0.0:0", LISTEN, 1);
        for (state, inode, counts) in [
            (1, 9, 1),
            (3, 0, 1),
            (4, 0, 1),
            (5, 9, 1),
            (5, 0, 0),
            (6, 0, 0),
            (7, 9, 0),
            (8, 9, 1),
            (9, 0, 1),
            (11, 0, 1),
            (12, 0, 1),
        ] {
            let one = socket("10.0.0.2:80", "192.0.2.1:5000", state, inode);
            assert_eq!(counted(&[listener.clone(), one]), counts, "state {state}");
        }
        assert_eq!(counted(&[listener.clone(), socket("127.0.0.1:80", "127.0.0.1:5000", 1, 9)]), 0);
        assert_eq!(counted(&[listener.clone(), socket("[::1]:80", "[::1]:5000", 1, 9)]), 0);
        assert_eq!(counted(&[listener.clone(), socket("10.0.0.2:80", "10.0.0.2:5000", 1, 9)]), 0);
        assert_eq!(counted(&[listener]), 0);
    }

    #[test]
    fn what_a_task_connects_to_itself_does_not_count() {
        let out = socket("10.0.0.2:40000", "192.0.2.1:5432", 1, 9);
        assert_eq!(counted(std::slice::from_ref(&out)), 0);
        assert_eq!(
            counted(&[out, socket("[::]:40000", "[::]:0", LISTEN, 1)]),
            1,
            "a server may have such a port"
        );
        assert_eq!(
            counted(&[socket("10.0.0.2:81", "192.0.2.1:5432", 1, 9)]),
            1,
            "whose server listens no more"
        );
    }

    #[test]
    fn servers_of_datagrams_are_those_that_take_them_from_anybody_elsewhere() {
        let udp = [
            socket("0.0.0.0:53", "0.0.0.0:0", CLOSE, 1),
            socket("[::]:53", "[::]:0", CLOSE, 2),
            socket("127.0.0.11:53", "0.0.0.0:0", CLOSE, 3),
            socket("10.0.0.2:40000", "192.0.2.1:53", 1, 4),
        ];
        assert_eq!(seen(&[], &[], &udp, &RANGE).servers, BTreeSet::from([1, 2]));
    }

    #[test]
    fn associations_count_as_connections_do() {
        let counted = |state: u8, ends: &str, port: u16| {
            let line = format!(
                "7d4b25a2 de046efa 2   1   {state}  0       4        0        0       0   150 {port}  46017  {ends} \
                 \t    3000    10    10   10    0    0        0        1        0   212992   212992"
            );
            let eps =
                "d6e69d39 b9c9575f 2   10  61   5060      0   147 0000:0000:0000:0000:0000:0000:0000:0000 ";
            let sctp = [association(&line).expect("a line"), listener(eps).expect("a line")];
            seen(&[], &sctp, &[], &RANGE).connections
        };
        let elsewhere = "*10.0.0.2 0000:0000:0000:0000:0000:0000:0000:0001 <-> *192.0.2.1 192.0.2.2";
        assert_eq!(counted(3, elsewhere, 5060), 1);
        assert_eq!(counted(7, elsewhere, 5060), 1, "it is shut down, and its last packets are under way");
        assert_eq!(counted(0, elsewhere, 5060), 0);
        assert_eq!(counted(3, elsewhere, 40_000), 0, "the task's own");
        assert_eq!(counted(3, "127.0.0.1 <-> *127.0.0.1", 5060), 0);
        let mapped = "0000:0000:0000:0000:0000:ffff:0a00:0002 <-> *0000:0000:0000:0000:0000:ffff:c000:0201";
        assert_eq!(counted(3, mapped, 5060), 1);
        for torn in [
            "",
            "7d4b 2f 2 1 3 0 4 0 0 0 150 5060 46017",
            "7d4b 2f 2 1 3 0 4 0 0 0 150 5060 46017 10.0.0.2 <->",
        ] {
            assert_eq!(association(torn), None, "{torn}");
        }
        assert_eq!(listener("d6e69d39 b9c9575f 2   10  61"), None);
    }

    #[test]
    fn listeners_are_found_among_connections() {
        let Ok(netns) = Netns::anonymous() else {
            assert!(!nix::unistd::geteuid().is_root(), "root can make a namespace");
            return;
        };
        let found = netns
            .run(|| {
                let listener = TcpListener::bind("0.0.0.0:22").expect("free");
                let client = TcpStream::connect("127.0.0.1:22").expect("accepted");
                let server = listener.accept().expect("one");
                let datagrams = UdpSocket::bind("127.0.0.1:53").expect("free");
                let asking = UdpSocket::bind("127.0.0.1:5353").expect("free");
                asking.connect("127.0.0.1:53").expect("a route");
                let found = listeners();
                drop((client, server, datagrams, asking));
                found
            })
            .expect("a thread");
        let of = |protocol, addr: [u8; 4], port| Listener { protocol, addr: addr.into(), port };
        assert_eq!(
            found.expect("tables"),
            [of(Protocol::Tcp, [0; 4], 22), of(Protocol::Udp, [127, 0, 0, 1], 53)]
        );
    }

    /// By the kernel: needs to make a network namespace.
    #[test]
    fn a_namespace_is_looked_at_from_inside() {
        let Ok(netns) = Netns::anonymous() else {
            assert!(!nix::unistd::geteuid().is_root(), "root can make a namespace");
            return;
        };
        let (first, second, third) = netns
            .run(|| {
                let listener = TcpListener::bind("[::]:80").expect("free");
                let mut client = TcpStream::connect("127.0.0.1:80").expect("accepted");
                let _server = listener.accept().expect("one");
                let first = read();
                let datagrams = UdpSocket::bind("0.0.0.0:53").expect("free");
                let second = read();
                client.write_all(b"x").expect("sent");
                client.shutdown(Shutdown::Both).expect("open");
                drop(datagrams);
                (first, second, read())
            })
            .expect("a thread");
        assert_eq!(first.expect("tables"), Seen::default(), "it is from the task itself");
        assert_eq!(second.expect("tables").servers.len(), 1);
        assert_eq!(third.expect("tables"), Seen::default());
    }
}
