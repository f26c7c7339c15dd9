//! What is to be done with a packet.

use crate::addr::Addr;
use crate::fragment::{FragmentKey, FragmentVal};
use crate::keys::{DoorKey, FlowKey, Mac, copied};
use crate::packet::{Ethernet, Fragment, Header};
use crate::proxy::Space;
use crate::reason::Reason;
use crate::values::{FlowVal, ReplyVal};

/// What is to be done with a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(Debug))]
pub enum Verdict {
    /// It is not ours: the stack or the bridge goes on with it.
    Pass,
    /// It is of a tunnel and may come in: see [`crate::lane`].
    Tunnel,
    /// It is an ICMP error, perhaps about a flow: see [`crate::icmp`].
    Error,
    /// It is a fragment that is not the first: see [`crate::fragment`].
    Follow,
    /// It goes no further, and is counted.
    Drop(Reason),
    /// The stack shall refuse it, which it does because nothing listens there; it is counted.
    Refuse(Reason),
    /// It goes on, changed as [`Work::forward`] says.
    Forward,
    /// It goes on as it is, the way [`Forward::out`] says.
    Redirect,
    /// It becomes the answer to its own question, with the Ethernet address in [`Forward::src_mac`].
    Answer(Question),
    /// It is an ARP request that goes on, asking as [`Forward::src`].
    Announce,
}

/// What a decision works on. A program keeps it in a per-CPU map, because its stack is too small.
///
/// All zeroes is a valid value.
#[derive(Clone, Copy, Default)]
#[cfg_attr(feature = "host", derive(Debug))]
pub struct Work {
    /// The packet as it came.
    pub header: Header,
    /// The packet as it goes on.
    pub forward: Forward,
    /// Its Ethernet header; only of what is sent by tasks, by balancers and through tunnels, and of ICMP errors.
    pub ethernet: Ethernet,
    /// Of an ICMP error: the packet it is about, as it is quoted.
    pub quote: Header,
    /// Of an ICMP error: the addresses and ports of the quoted packet from now on.
    pub quoted: Ends,
    /// Of a fragment: its datagram.
    pub datagram: FragmentKey,
    /// Of a first fragment: what becomes of those that follow.
    pub followers: FragmentVal,
    /// Its flow.
    pub key: FlowKey,
    /// The answers to its flow.
    pub answers: FlowKey,
    /// The flow itself, where `key` is another: of an answer, and of what is parked.
    pub request: FlowKey,
    /// What is recorded for the flow.
    pub flow: FlowVal,
    /// What is recorded for its answers.
    pub reply: ReplyVal,
    /// The device whose MTU the two ends of the connection, which it opens, must keep within; 0: none.
    pub narrow: u32,
    /// Mark that the packet goes on with.
    pub mark: u32,
    /// Which way it goes in a connection whose endpoint is told of its client: see [`crate::proxy`].
    pub proxy: u32,
    /// The sequence numbers of that connection.
    pub space: Space,
    /// Of an answer: the address that its client asked, as the request's frame names it.
    pub door: DoorKey,
    /// The packet's headers, as they are to be.
    pub image: Image,
}

/// What a packet begins with, up to the ports behind an IPv6 header, as words in memory order: the first two bytes are not of
/// it, so that all that follows the Ethernet header lies at words.
pub type Image = [u32; 16];
/// Where the packet begins in its image, in bytes.
pub const IMAGE_AT: usize = 2;

impl Work {
    /// Forgets what is only set for some packets.
    #[inline(always)]
    pub fn begin(&mut self) {
        self.narrow = 0;
        self.mark = 0;
        self.proxy = 0;
        self.header.fragment = Fragment::Whole;
    }

    /// The packet goes on as it is.
    #[inline(always)]
    pub fn redirect(&mut self, out: Out) -> Verdict {
        self.forward.out = out;
        Verdict::Redirect
    }

    /// The packet goes on as it is so far, out of `out`.
    #[inline(always)]
    pub fn forward_unchanged(&mut self, out: Out) {
        // Field by field: a value built on the stack first would be another sixty bytes of it at every call.
        self.forward.src = self.header.src.copied();
        self.forward.dst = self.header.dst.copied();
        self.forward.sport = self.header.sport;
        self.forward.dport = self.header.dport;
        self.forward.src_mac = copied(&self.ethernet.src);
        self.forward.dst_mac = copied(&self.ethernet.dst);
        self.forward.out = out;
    }

    /// The packet, an answer, goes on with the source its client expects.
    #[inline(always)]
    pub fn forward_restored(&mut self, reply: &ReplyVal, out: Out) {
        self.forward_unchanged(out);
        self.forward.src = reply.addr.copied();
        self.forward.sport = reply.port;
        self.forward.dport = reply.client_port;
    }

    /// Sets the flow's key, in a network (0: the mesh).
    #[inline(always)]
    pub fn set_key(&mut self, network: u32) {
        self.key = self.header.key(network);
    }

    /// Sets what is to be recorded for the flow.
    #[inline(always)]
    pub fn set_flow(&mut self, endpoint: u64, service: u64, target_port: u16) {
        self.flow.endpoint = endpoint;
        self.flow.service = service;
        self.flow.target_port = target_port;
        self.flow.source_port = self.header.sport;
        self.flow.mark = 0;
        self.flow.bytes = u64::from(self.header.length);
        self.flow.isn = 0;
        self.flow.door = 0;
    }
}

/// What asks for an Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(Debug))]
pub enum Question {
    /// An ARP request.
    Arp,
    /// A neighbor solicitation.
    Neighbor,
}

/// How a packet goes on.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(Debug))]
pub struct Forward {
    /// Its source from now on.
    pub src: Addr,
    /// Its destination from now on.
    pub dst: Addr,
    /// Its source port from now on.
    pub sport: u16,
    /// Its destination port from now on.
    pub dport: u16,
    /// Its Ethernet source from now on; of no effect with [`Out::Neighbor`] and [`Out::Route`].
    pub src_mac: Mac,
    /// Its Ethernet destination from now on; of no effect with [`Out::Neighbor`] and [`Out::Route`].
    pub dst_mac: Mac,
    /// Where it leaves.
    pub out: Out,
}

/// Where a packet comes from and goes to.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(Debug))]
pub struct Ends {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// Source port, host order.
    pub sport: u16,
    /// Destination port, host order.
    pub dport: u16,
}

/// Where a packet leaves.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(Debug))]
pub enum Out {
    /// Into the namespace behind a veth, by the index of the side in this one.
    Peer(u32),
    /// Out of a device, with the Ethernet header it has.
    Device(u32),
    /// Out of a device, with the Ethernet header the kernel's neighbor table gives it.
    Neighbor(u32),
    /// Into the stack, as if it had come in by a device of this namespace.
    Host(u32),
    /// Where the kernel's routes lead, with the Ethernet header its neighbor table gives it.
    Route,
}

impl Default for Out {
    #[inline(always)]
    fn default() -> Self {
        Self::Peer(0)
    }
}
