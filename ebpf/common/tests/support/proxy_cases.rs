//! Cases of ports that tell tasks of their clients by the PROXY protocol.

use std::net::IpAddr;

use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::keys::{FlowKey, PortKey};
use shoal_ebpf_common::proxy;
use shoal_ebpf_common::reason::{Program, Reason};
use shoal_ebpf_common::values::{PORT_PROXY, PortVal};
use shoal_ebpf_common::verdict::Out;

use super::packet::{ACK, FIN, RST, SYN, Segment, TCP, UDP};
use super::world::{
    Family, IFINDEX, LOCAL, OTHER_TASK, REMOTE, REMOTE_DEVICE, ROUTER, SERVICE, TASK, V4, V6, World, addr,
    dropped, forwarded, ip, key, node,
};

const MESH: Program = Program::MeshIngress;
const PORT: u16 = 9443;
/// The first byte has number 4: numbers come round at once.
const ISN: u32 = 3;

/// Which of the service's tasks there is.
#[derive(Clone, Copy, Debug)]
struct Place {
    endpoint: u64,
    way: Out,
    /// The program its answers come by, and what they look like there.
    answers: Program,
}

const HERE: Place = Place { endpoint: LOCAL, way: Out::Peer(IFINDEX), answers: Program::TaskTx };
const ELSEWHERE: Place =
    Place { endpoint: REMOTE, way: Out::Device(REMOTE_DEVICE), answers: Program::OverlayRx };

/// A connection of a client to the port.
#[derive(Clone, Copy, Debug)]
struct Connection {
    family: Family,
    place: Place,
    port: u16,
    isn: u32,
}

impl Connection {
    fn request(&self, flags: u8, sequence: u32, data: &[u8]) -> Segment {
        let to = (self.family.node, PORT);
        let plain = Segment::new(TCP, (self.family.client, self.port), to).flags(flags);
        Segment { sequence, acknowledged: 1000, payload: data.to_vec(), ..plain }
    }

    /// As the task sends it.
    fn answer(&self, flags: u8, acknowledged: u32) -> Segment {
        let (task, mac) = match self.place.endpoint {
            LOCAL => (self.family.task, TASK),
            _ => (self.family.other, OTHER_TASK),
        };
        let plain = Segment::new(TCP, (task, 80), (self.family.client, self.port)).flags(flags);
        Segment { sequence: 999, acknowledged, payload: Vec::new(), ..plain }.macs(mac, ROUTER)
    }

    #[track_caller]
    fn asks(&self, w: &mut dyn World, flags: u8, sequence: u32, data: &[u8]) -> Segment {
        forwarded(w, MESH, &self.request(flags, sequence, data), self.place.way)
    }

    /// What the client is told was acknowledged.
    #[track_caller]
    fn hears(&self, w: &mut dyn World, flags: u8, acknowledged: u32) -> u32 {
        let answer = self.answer(flags, acknowledged);
        forwarded(w, self.place.answers, &answer, Out::Neighbor(IFINDEX)).acknowledged
    }

    /// The header as it is specified.
    fn header(&self) -> Vec<u8> {
        header((self.family.client, self.port), (self.family.node, PORT))
    }

    fn more(&self) -> u32 {
        u32::try_from(self.header().len()).unwrap()
    }

    /// Number of the first byte.
    fn first(&self) -> u32 {
        self.isn.wrapping_add(1)
    }

    #[track_caller]
    fn opens(&self, w: &mut dyn World) {
        let syn = self.request(SYN, self.isn, b"");
        let got = forwarded(w, MESH, &syn, self.place.way);
        assert_eq!((got.sequence, got.acknowledged, got.payload.len()), (self.isn, 1000, 0));
        assert_eq!(self.hears(w, SYN | ACK, self.first()), self.first());
    }

    /// Up to the point that the task has read who the client is.
    #[track_caller]
    fn establishes(&self, w: &mut dyn World) {
        self.opens(w);
        assert_eq!(self.asks(w, ACK, self.first(), b"").payload, self.header());
        assert_eq!(self.hears(w, ACK, self.first().wrapping_add(self.more())), self.first());
    }

    fn request_key(&self) -> FlowKey {
        key(TCP, 0, (self.family.client, self.port), (self.family.node, PORT))
    }

    fn answers_key(&self) -> FlowKey {
        let task = if self.place.endpoint == LOCAL { self.family.task } else { self.family.other };
        key(TCP, 0, (task, 80), (self.family.client, self.port))
    }
}

fn header(client: (&str, u16), asked: (&str, u16)) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    match (ip(client.0), ip(asked.0)) {
        (IpAddr::V4(client), IpAddr::V4(asked)) => {
            bytes.extend([0x21, 0x11, 0, 12]);
            bytes.extend(client.octets());
            bytes.extend(asked.octets());
        }
        (IpAddr::V6(client), IpAddr::V6(asked)) => {
            bytes.extend([0x21, 0x21, 0, 36]);
            bytes.extend(client.octets());
            bytes.extend(asked.octets());
        }
        _ => panic!("two families"),
    }
    bytes.extend(client.1.to_be_bytes());
    bytes.extend(asked.1.to_be_bytes());
    bytes
}

/// A node with the port, and a connection for each family and place.
fn connections(w: &mut dyn World, isn: u32) -> Vec<Connection> {
    node(w);
    for proto in [TCP, UDP] {
        let value = PortVal { flags: PORT_PROXY, ..PortVal::new(SERVICE, 80) };
        w.set_port(PortKey::new(Addr::ANY, PORT, proto), value);
    }
    let mut made = Vec::new();
    for (family, port) in [(V4, 40_000), (V6, 41_000)] {
        for (place, port) in [(HERE, port), (ELSEWHERE, port + 1)] {
            made.push(Connection { family, place, port, isn });
        }
    }
    made
}

fn go_to(w: &mut dyn World, connection: &Connection) {
    w.set_service(SERVICE, &[connection.place.endpoint]);
}

/// The numbers of one option of selective acknowledgements.
fn edges(segment: &Segment) -> Vec<u32> {
    let at = segment.tcp_options.iter().position(|byte| *byte == 5).expect("the option");
    let bytes = &segment.tcp_options[at + 2..at + usize::from(segment.tcp_options[at + 1])];
    bytes.chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect()
}

pub(crate) fn a_task_is_told_of_its_client(w: &mut dyn World) {
    for c in connections(w, ISN) {
        go_to(w, &c);
        c.opens(w);
        let (first, more) = (c.first(), c.more());
        assert_eq!(more, proxy::length(c.family.client.contains('.')));
        // With the acknowledgement that ends the handshake, and again until the task says that it has it.
        for _ in 0..2 {
            let got = c.asks(w, ACK, first, b"");
            assert_eq!((got.sequence, got.flags), (first, ACK));
            assert_eq!(got.payload, c.header(), "{c:?}");
            assert_eq!((got.src, got.dport), (ip(c.family.client), 80));
        }
        // Data that follows at once is as long as it was.
        let got = c.asks(w, ACK, first, b"a question");
        assert_eq!((got.sequence, &got.payload[..]), (first + more, &b"a question"[..]));
        let got = c.asks(w, ACK, first + 10, b"and more");
        assert_eq!((got.sequence, &got.payload[..]), (first + 10 + more, &b"and more"[..]));
        assert!(w.copies().is_none_or(|copies| copies.is_empty()));
        // The task acknowledges the handshake alone, a part of the header, all of it, and data.
        assert_eq!(c.hears(w, ACK, first), first);
        assert_eq!(c.hears(w, ACK, first + 7), first);
        assert_eq!(c.hears(w, ACK, first + more), first);
        assert_eq!(c.hears(w, ACK, first + more + 18), first + 18);
        // What it has beyond a gap, without timestamps and with them.
        for before in [vec![], [vec![1, 1, 8, 10], vec![0x5a; 8]].concat()] {
            let numbers: Vec<u32> = if before.is_empty() { [40, 50].repeat(4) } else { vec![40, 50, 60, 0] };
            let mut answer = c.answer(ACK, first + more + 18);
            let size = u8::try_from(2 + numbers.len() * 4).unwrap();
            answer.tcp_options = [before, vec![1, 1, 5, size]].concat();
            for number in &numbers {
                answer.tcp_options.extend((first + more).wrapping_add(*number).to_be_bytes());
            }
            let got = forwarded(w, c.place.answers, &answer, Out::Neighbor(IFINDEX));
            assert_eq!(edges(&got), numbers.iter().map(|number| first + number).collect::<Vec<u32>>());
        }
        // A question whether the task is there, the end, and a reset.
        assert_eq!(c.asks(w, ACK, first + 17, b"").sequence, first + 17 + more);
        let end = c.asks(w, FIN | ACK, first + 18, b"");
        assert_eq!((end.sequence, end.flags, end.payload.len()), (first + 18 + more, FIN | ACK, 0));
        assert_eq!(c.asks(w, RST | ACK, first + 19, b"").sequence, first + 19 + more);
    }
}

pub(crate) fn data_with_the_first_acknowledgement_waits_for_nothing(w: &mut dyn World) {
    for c in connections(w, u32::MAX) {
        go_to(w, &c);
        c.opens(w);
        w.copies();
        let got = c.asks(w, FIN | ACK, c.first(), b"all of it, and no more");
        assert_eq!((got.sequence, got.flags), (c.first(), ACK), "its end comes after its data");
        assert_eq!(got.payload, c.header());
        if let Some(copies) = w.copies() {
            let [(way, bytes)] = &copies[..] else { panic!("{} copies", copies.len()) };
            let copy = Segment::parse(bytes);
            assert_eq!((*way, copy.flags), (c.place.way, FIN | ACK));
            assert_eq!((copy.sequence, &copy.payload[..]), (c.more(), &b"all of it, and no more"[..]));
        }
        assert_eq!(c.hears(w, ACK, c.first() + c.more() + 23), 23);
    }
}

pub(crate) fn what_was_told_and_lost_is_told_again(w: &mut dyn World) {
    for c in connections(w, ISN) {
        go_to(w, &c);
        c.opens(w);
        let first = c.first();
        assert_eq!(c.asks(w, ACK, first, b"").payload, c.header());
        assert_eq!(c.asks(w, ACK, first, b"data").sequence, first + c.more());
        w.copies();
        // The task has nothing of the header: the client sends its first data again.
        assert_eq!(c.hears(w, ACK, first), first);
        for _ in 0..2 {
            let got = c.asks(w, ACK, first, b"data");
            assert_eq!((got.sequence, got.payload), (first, c.header()));
            if let Some(copies) = w.copies() {
                let copy = Segment::parse(&copies[0].1);
                assert_eq!((copy.sequence, &copy.payload[..]), (first + c.more(), &b"data"[..]));
            }
        }
        assert_eq!(c.hears(w, ACK, first + c.more() + 4), first + 4);
        // From now on it is data like any other.
        let got = c.asks(w, ACK, first, b"data");
        assert_eq!((got.sequence, &got.payload[..]), (first + c.more(), &b"data"[..]));
    }
}

pub(crate) fn what_opens_nothing_is_told_nothing(w: &mut dyn World) {
    for c in connections(w, ISN) {
        go_to(w, &c);
        dropped(w, MESH, &c.request(SYN, ISN, b"too early").bytes(), Reason::EarlyData);
        // Reset before the handshake is over, and after it.
        c.opens(w);
        let got = c.asks(w, RST, c.first(), b"");
        assert_eq!((got.sequence, got.payload.len()), (c.first(), 0));
        c.opens(w);
        c.asks(w, ACK, c.first(), b"");
        let got = c.asks(w, RST, c.first(), b"");
        assert_eq!((got.sequence, got.payload.len()), (c.first() + c.more(), 0));
        // Whether the task is still there is asked with the number before the first.
        c.opens(w);
        let got = c.asks(w, ACK, ISN, b"");
        assert_eq!((got.sequence, got.payload.len()), (ISN, 0));
        // A client that sends nothing and goes.
        let got = c.asks(w, FIN | ACK, c.first(), b"");
        assert_eq!((got.sequence, got.flags, got.payload), (c.first(), FIN | ACK, c.header()));
        // The task refuses.
        let refusal = c.answer(RST | ACK, c.first());
        let got = forwarded(w, c.place.answers, &refusal, Out::Neighbor(IFINDEX));
        assert_eq!(got.acknowledged, c.first());
        // A datagram is what it was.
        let datagram = Segment::new(UDP, (c.family.client, c.port), (c.family.node, PORT));
        assert_eq!(forwarded(w, MESH, &datagram, c.place.way).payload, datagram.payload);
    }
}

pub(crate) fn numbers_come_round_and_nothing_is_told_twice(w: &mut dyn World) {
    for c in connections(w, ISN) {
        go_to(w, &c);
        c.establishes(w);
        let (first, more) = (c.first(), c.more());
        for ahead in [1 << 30, HALF - 1, HALF, HALF + 5, u32::MAX - 100, u32::MAX, 0, 1] {
            let (number, shifted) = (first.wrapping_add(ahead), first.wrapping_add(ahead).wrapping_add(more));
            let got = c.asks(w, ACK, number, b"x");
            assert_eq!((got.sequence, &got.payload[..]), (shifted, &b"x"[..]), "{ahead} ahead");
            assert_eq!(c.hears(w, ACK, shifted), number, "{ahead} ahead");
        }
        assert_eq!(c.asks(w, ACK, first, b"").payload, b"", "four gigabytes later");
    }
}

const HALF: u32 = 1 << 31;

pub(crate) fn records_that_were_forgotten_know_where_it_began(w: &mut dyn World) {
    for c in connections(w, ISN) {
        go_to(w, &c);
        c.opens(w);
        c.asks(w, ACK, c.first(), b"");
        // Each is made again of the other.
        w.forget(&c.answers_key());
        w.next_tick();
        c.asks(w, ACK, c.first(), b"data");
        assert_eq!(w.reply(&c.answers_key()).expect("again").isn, ISN);
        w.forget(&c.request_key());
        w.next_tick();
        assert_eq!(c.hears(w, ACK, c.first() + c.more()), c.first());
        assert_eq!(w.flow(&c.request_key()).expect("again").isn, ISN);
        let got = c.asks(w, ACK, c.first(), b"data");
        assert_eq!((got.sequence, &got.payload[..]), (c.first() + c.more(), &b"data"[..]));
    }
}

pub(crate) fn a_connection_whose_address_moved_was_told_before(w: &mut dyn World) {
    for c in connections(w, ISN) {
        go_to(w, &c);
        // Whatever its numbers are by now: nothing here says where they began.
        for (place, number) in (1..).zip([70_000, 1, HALF + 1, u32::MAX]) {
            let c = Connection { port: c.port + 10 * place, ..c };
            let (data, shifted) = (c.asks(w, ACK, number, b"data"), number.wrapping_add(c.more()));
            assert_eq!((data.sequence, &data.payload[..]), (shifted, &b"data"[..]));
            assert_eq!(c.hears(w, ACK, shifted.wrapping_add(4)), number.wrapping_add(4));
        }
    }
}

pub(crate) fn a_port_that_is_used_again_begins_anew(w: &mut dyn World) {
    for c in connections(w, ISN) {
        go_to(w, &c);
        c.establishes(w);
        c.asks(w, FIN | ACK, c.first(), b"");
        let again = Connection { isn: 5_000_000, ..c };
        again.establishes(w);
        assert_eq!(again.asks(w, ACK, again.first(), b"x").sequence, again.first() + c.more());
        // The port tells tasks no more: what is under way goes on as it began.
        w.set_port(PortKey::new(Addr::ANY, PORT, TCP), PortVal::new(SERVICE, 80));
        assert_eq!(again.asks(w, ACK, again.first(), b"x").sequence, again.first() + c.more());
        let plain = Connection { isn: 6_000_000, ..c };
        plain.asks(w, SYN, plain.isn, b"");
        let got = plain.asks(w, ACK, plain.first(), b"");
        assert_eq!((got.sequence, got.payload.len()), (plain.first(), 0));
        assert_eq!(plain.hears(w, ACK, plain.first() + 100), plain.first() + 100);
        let value = PortVal { flags: PORT_PROXY, ..PortVal::new(SERVICE, 80) };
        w.set_port(PortKey::new(Addr::ANY, PORT, TCP), value);
    }
}

pub(crate) fn frames_with_padding_and_options_are_told_right(w: &mut dyn World) {
    for c in connections(w, ISN) {
        go_to(w, &c);
        c.opens(w);
        let mut request = c.request(ACK, c.first(), b"");
        // Timestamps (RFC 7323); options of IPv4.
        request.tcp_options = [vec![1, 1, 8, 10], vec![0x5a; 8]].concat();
        if c.family.client.contains('.') {
            request.options = vec![1; 8];
        }
        // Ethernet makes short packets 60 bytes long.
        let mut bytes = request.bytes();
        bytes.resize(bytes.len().max(100), 0xff);
        let run = w.run(MESH, &bytes);
        let got = Segment::parse(&run.bytes);
        assert_eq!((got.payload, got.sequence), (c.header(), c.first()));
        assert_eq!((got.tcp_options, got.options), (request.tcp_options, request.options));
    }
}

pub(crate) fn a_client_of_the_node_is_told_of_too(w: &mut dyn World) {
    for c in connections(w, ISN) {
        go_to(w, &c);
        let loopback = if c.family.client.contains('.') { "127.0.0.1" } else { "::1" };
        let of = |flags, sequence| {
            let plain = Segment::new(TCP, (loopback, c.port), (loopback, PORT)).flags(flags);
            Segment { sequence, payload: Vec::new(), ..plain }.macs([0; 6], [0; 6])
        };
        forwarded(w, Program::HostTx, &of(SYN, ISN), c.place.way);
        let got = forwarded(w, Program::HostTx, &of(ACK, c.first()), c.place.way);
        assert_eq!(got.payload, header((loopback, c.port), (loopback, PORT)), "as it knows itself");
        assert_eq!(got.src, ip(c.family.router));
        let mut answer = c.answer(ACK, c.first() + c.more());
        answer.dst = ip(c.family.router);
        let back = forwarded(w, c.place.answers, &answer, Out::Host(IFINDEX));
        assert_eq!((back.acknowledged, back.dst), (c.first(), ip(loopback)));
        assert_eq!(addr(loopback), Addr::from(back.src));
    }
}
