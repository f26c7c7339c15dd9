//! A socket at a tunnel's device: what is sent here goes into the tunnel as a frame of a bridge does, and what is read
//! here came out of it.

use std::io::{self, Read};
use std::mem::{size_of, size_of_val};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use nix::libc;
use shoal_plan::probe::frame::PORT;
use socket2::{Domain, SockAddr, SockAddrStorage, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `linux/if_packet.h`, since Linux 4.20: what the node sends by the device is not copied for the socket.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
/// Frames that are read before anything else is done: more than a socket holds.
const BURST: usize = 4096;

/// The socket.
pub(super) struct Tap {
    socket: AsyncFd<Socket>,
    /// Index of the device.
    pub(super) device: u32,
    /// Whom frames are for.
    pub(super) ip: Ipv4Addr,
}

impl Tap {
    /// At a device of the calling thread's namespace. Only probes and answers for `ip` are taken: the kernel drops all
    /// else before it is copied.
    pub(super) fn open(device: u32, ip: Ipv4Addr) -> io::Result<Self> {
        // Without a protocol nothing comes in until it is bound, and then nothing but what the filter lets through.
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), None)?;
        socket.attach_filter(&filter(ip))?;
        ignore_outgoing(&socket)?;
        socket.bind(&address(device))?;
        // SAFETY: the descriptor is owned by the `AsyncFd`, and a `Socket` is open, and the same, until dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket, device, ip })
    }

    /// Waits until there is something to read. Cancel safe.
    pub(super) async fn readable(&self) -> io::Result<()> {
        // Cleared before it is read, so that nothing that comes meanwhile is missed.
        self.socket.readable().await.map(|mut ready| ready.clear_ready())
    }

    /// Hands on what has come. An error is the device's: it is down, or gone.
    pub(super) fn drain(&self, buffer: &mut [u8], mut take: impl FnMut(&[u8])) -> io::Result<()> {
        for _ in 0..BURST {
            let read = self.socket.get_ref().read(buffer);
            match read {
                Ok(length) => take(buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends a frame into the tunnel.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.get_ref().send(frame).map(drop)
    }
}

/// Lets UDP over IPv4 to one address and the port of probes through: the first frame of a datagram, from its Ethernet
/// header on (`linux/filter.h`).
fn filter(ip: Ipv4Addr) -> [SockFilter; 11] {
    const DROP: u8 = 10;
    // Loads of a half word, a byte, a word; of the IP header's length into X; of a half word behind it.
    const LDH: u16 = 0x28;
    const LDB: u16 = 0x30;
    const LDW: u16 = 0x20;
    const LDX_HEADER: u16 = 0xb1;
    const LDH_BEHIND: u16 = 0x48;
    const JEQ: u16 = 0x15;
    const RET: u16 = 0x06;
    let load = |code, operand| SockFilter::new(code, 0, 0, operand);
    let is = |at: u8, operand| SockFilter::new(JEQ, 0, DROP - at - 1, operand);
    [
        load(LDH, 12),
        is(1, 0x0800),
        load(LDB, 23),
        is(3, 17),
        load(LDW, 30),
        is(5, u32::from(ip)),
        load(LDX_HEADER, 14),
        load(LDH_BEHIND, 16),
        is(8, u32::from(PORT)),
        load(RET, u32::from(u16::MAX) << 1),
        load(RET, 0),
    ]
}

/// Any protocol at a device.
fn address(device: u32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: `sockaddr_ll` is a plain C structure that fits into the storage, for which all zeroes is a valid value.
    let link: &mut libc::sockaddr_ll = unsafe { storage.view_as() };
    link.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
    link.sll_protocol = u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be();
    link.sll_ifindex = i32::try_from(device).unwrap_or_default();
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
    // SAFETY: the storage holds a whole address of the family it says, and `length` is its size.
    unsafe { SockAddr::new(storage, length) }
}

fn ignore_outgoing(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `length` bytes of the live integer during the call only.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_IGNORE_OUTGOING,
            (&raw const on).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
