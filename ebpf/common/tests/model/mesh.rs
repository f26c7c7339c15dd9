//! The nodes: the programs of each over its own tables, joined by bridges and tunnels.

use std::ops::ControlFlow::{self, Break, Continue};

use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::keys::{DoorKey, FlowKey, LocalKey, PortKey, RouterKey, VipKey};
use shoal_ebpf_common::lane::Form;
use shoal_ebpf_common::life;
use shoal_ebpf_common::maglev::Policy;
use shoal_ebpf_common::reason::{Program, Reason};
use shoal_ebpf_common::values::{
    ENDPOINT_DRAINING, ENDPOINT_DSR, ENDPOINT_LOCAL, EndpointVal, LEG_EGRESS, LEG_INGRESS, LocalVal,
    NodeConfig, PORT_DSR, PROPOSE_FLOW, PROPOSE_NOTHING, PROPOSE_REPLY, PortVal, Proposal, TaskIf, VipVal,
};
use shoal_ebpf_common::verdict::Out;

use super::flow::{Leg, State};
use super::place::{self, FLOATING, INGRESS, OVERLAY, Place, SERVICES};
use super::support::host::Host;
use super::support::lane_cases::{MEMBER, tunneled};
use super::support::packet::{Mac, Segment, TCP, UDP};
use super::support::world::{Action, TUNNEL_PORT, World};

/// The devices of every node. Those of tasks are numbered from these.
const UPLINK: u32 = 1;
const LOOPBACK: u32 = 2;
const INGRESS_VXLAN: u32 = 10;
const OVERLAY_VXLAN: u32 = 11;
const INGRESS_VETH: u32 = 100;
const OVERLAY_VETH: u32 = 200;
const EGRESS_VETH: u32 = 300;

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// A task has it, by this leg.
    Task(usize, Leg, Segment),
    /// It left by the uplink of a node.
    Outside(usize, Segment),
    /// A program on a node has it.
    OnNode(usize, Segment),
    /// The stack of a node has it, to refuse it in our stead if so counted.
    Stack(usize, Option<Reason>),
    Dropped(Option<Reason>),
    /// It is somewhere that leads nowhere.
    Astray(&'static str),
}

/// A node.
#[derive(Default)]
struct Node {
    host: Host,
    /// How many tunnel packets came here: they take turns between the lane and the device.
    opened: usize,
}

pub(crate) struct Mesh {
    place: Place,
    nodes: Vec<Node>,
}

/// Where a packet is.
struct At {
    node: usize,
    program: Program,
    ifindex: u32,
    bytes: Vec<u8>,
}

fn number(n: usize) -> u32 {
    u32::try_from(n).expect("few of each")
}

fn both(of: impl Fn(bool) -> std::net::IpAddr) -> (Addr, Addr) {
    (of(true).into(), of(false).into())
}

pub(crate) fn service_id(service: usize, leg: Leg) -> u64 {
    0x7000_0000_0000_0000 | (service as u64) << 1 | u64::from(leg == Leg::Overlay)
}

fn endpoint_id(task: usize, leg: Leg) -> u64 {
    0xa000_0000_0000_0000 | (task as u64) << 1 | u64::from(leg == Leg::Overlay)
}

impl Mesh {
    pub(crate) fn new(place: &Place, ring: Option<u32>) -> Self {
        let nodes = (0..place.nodes).map(|_| Node::default()).collect();
        let mut mesh = Self { place: place.clone(), nodes };
        for n in 0..place.nodes {
            mesh.set_up(n);
            mesh.nodes[n].host.maps.places.set(ring);
        }
        for f in 0..FLOATING {
            mesh.move_address(f, f % place.nodes);
        }
        mesh
    }

    fn set_up(&mut self, n: usize) {
        let routers: Vec<usize> = (0..self.place.nodes).filter(|&m| m != n).collect();
        let host = &mut self.nodes[n].host;
        let (router_ip4, router_ip6) = both(|v4| place::router(n, v4));
        host.set_config(NodeConfig {
            router_ip4,
            router_ip6,
            router_mac: place::router_mac(n),
            vxlan_port: TUNNEL_PORT,
            ingress_vxlan: INGRESS_VXLAN,
            ..NodeConfig::default()
        });
        for v4 in [true, false] {
            host.set_own_door(place::node(n, v4).into(), UPLINK, place::DOOR.into());
        }
        for m in routers {
            let mac = place::router_mac(m);
            host.set_router(RouterKey::new(mac));
            let low = u32::from_be_bytes([0, mac[3], mac[4], mac[5]]);
            for v4 in [true, false] {
                host.set_door(DoorKey::new(low, place::DOOR, v4), place::node(m, v4).into());
                let floating = place::floating(0, v4).into();
                host.set_door(DoorKey::new(low, place::FLOATING_DOOR, v4), floating);
            }
        }
        host.lead_outward(true);
        host.set_member(Addr::v4(MEMBER));
        host.set_tunnel(INGRESS, INGRESS_VXLAN);
        host.set_tunnel(OVERLAY, OVERLAY_VXLAN);
        for s in 0..SERVICES {
            for v4 in [true, false] {
                let value = VipVal {
                    service: service_id(s, Leg::Overlay),
                    mac: place::vip_mac(s),
                    ..VipVal::default()
                };
                host.set_vip(VipKey { addr: place::vip(s, v4).into(), network: OVERLAY }, value);
            }
        }
        for t in 0..self.place.tasks.len() {
            if self.place.tasks[t].node == n {
                self.set_up_task(n, t);
            }
        }
    }

    fn set_up_task(&mut self, n: usize, t: usize) {
        let has_v6 = self.place.tasks[t].v6;
        let pair = |of: fn(usize, bool) -> std::net::IpAddr| {
            let (ip4, ip6) = both(|v4| of(t, v4));
            (ip4, if has_v6 { ip6 } else { Addr::ANY })
        };
        let host = &mut self.nodes[n].host;
        let (ingress_ip4, ingress_ip6) = pair(place::ingress);
        let common = TaskIf {
            ingress_ip4,
            ingress_ip6,
            ingress_mac: place::ingress_mac(t),
            ingress_vxlan: INGRESS_VXLAN,
            ..TaskIf::default()
        };
        for (network, vxlan, first, mac, ips, leg) in [
            (INGRESS, INGRESS_VXLAN, INGRESS_VETH, place::ingress_mac(t), pair(place::ingress), LEG_INGRESS),
            (OVERLAY, OVERLAY_VXLAN, OVERLAY_VETH, place::overlay_mac(t), pair(place::overlay), 0),
            (0, 0, EGRESS_VETH, place::egress_mac(t), pair(place::egress), LEG_EGRESS),
        ] {
            let veth = first + number(t);
            let (ip4, ip6) = ips;
            host.set_task_if(veth, TaskIf { ip4, ip6, mac, network, vxlan, leg, ..common });
            if network != 0 {
                host.set_local(LocalKey::new(vxlan, mac), LocalVal { ip4, ip6, veth, network });
            }
        }
    }

    /// A node comes to know of an endpoint's state.
    pub(crate) fn set_endpoint(&mut self, n: usize, t: usize, state: State) {
        let is_local = self.place.tasks[t].node == n;
        let has_v6 = self.place.tasks[t].v6;
        for leg in [Leg::Ingress, Leg::Overlay] {
            let id = endpoint_id(t, leg);
            if state == State::Gone {
                self.nodes[n].host.remove_endpoint(id);
                continue;
            }
            let (of, mac, veth, vxlan): (fn(usize, bool) -> std::net::IpAddr, _, _, _) = match leg {
                Leg::Ingress => (place::ingress, place::ingress_mac(t), INGRESS_VETH, INGRESS_VXLAN),
                _ => (place::overlay, place::overlay_mac(t), OVERLAY_VETH, OVERLAY_VXLAN),
            };
            let (ip4, ip6) = both(|v4| of(t, v4));
            let drains = if state == State::Draining { ENDPOINT_DRAINING } else { 0 };
            let value = EndpointVal {
                ip4,
                ip6: if has_v6 { ip6 } else { Addr::ANY },
                mac,
                flags: drains | if is_local { ENDPOINT_LOCAL } else { ENDPOINT_DSR },
                ifindex: if is_local { veth + number(t) } else { vxlan },
                pad: 0,
            };
            self.nodes[n].host.set_endpoint(id, value);
        }
    }

    /// A node's table of a service is written anew.
    pub(crate) fn set_slots(&mut self, n: usize, service: usize, tasks: &[usize], policy: Policy) {
        for leg in [Leg::Ingress, Leg::Overlay] {
            let ids: Vec<u64> = tasks.iter().map(|&t| endpoint_id(t, leg)).collect();
            self.nodes[n].host.set_policy(service_id(service, leg), &ids, policy);
        }
    }

    /// A node publishes a port of a service, on one address or on all, or no longer does.
    pub(crate) fn publish(&mut self, n: usize, on: Option<usize>, port: u16, to: Option<(usize, u16)>) {
        let scopes = match on {
            Some(f) => vec![place::floating(f, true).into(), place::floating(f, false).into()],
            None => vec![Addr::ANY],
        };
        for scope in scopes {
            for proto in [TCP, UDP] {
                let key = PortKey::new(scope, port, proto);
                match to {
                    Some((service, target)) => {
                        let flags = if self.place.dsr { PORT_DSR } else { 0 };
                        let value =
                            PortVal { flags, ..PortVal::new(service_id(service, Leg::Ingress), target) };
                        self.nodes[n].host.set_port(key, value);
                    }
                    None => self.nodes[n].host.remove_port(key),
                }
            }
        }
    }

    pub(crate) fn move_address(&mut self, f: usize, to: usize) {
        for (n, node) in self.nodes.iter_mut().enumerate() {
            for v4 in [true, false] {
                let addr = place::floating(f, v4).into();
                node.host.maps.local_addrs.remove(&addr);
                if n == to {
                    let number = place::FLOATING_DOOR + u16::try_from(f).expect("few");
                    node.host.set_own_door(addr, UPLINK, number.into());
                }
            }
        }
    }

    pub(crate) fn pass_time(&mut self, ticks: u32) {
        for node in &self.nodes {
            node.host.maps.clock.set(node.host.maps.clock.get() + ticks);
        }
    }

    /// The first half of a node's collection: user space reads the tables and proposes what has had its time.
    pub(crate) fn propose(&mut self, n: usize) {
        let maps = &self.nodes[n].host.maps;
        let now = maps.clock.get();
        let flows = maps.flows.keys().into_iter().filter_map(|key| {
            let flow = maps.flows.get(&key)?;
            Some(Proposal { key, seen: flow.seen, state: flow.state, table: PROPOSE_FLOW, pad: 0 })
        });
        let replies = maps.replies.keys().into_iter().filter_map(|key| {
            let reply = maps.replies.get(&key)?;
            Some(Proposal { key, seen: reply.seen, state: reply.state, table: PROPOSE_REPLY, pad: 0 })
        });
        let proposed: Vec<Proposal> = flows
            .chain(replies)
            .filter(|p| life::is_expired(p.key.proto(), p.state, life::idle(now, p.seen)))
            .collect();
        for index in 0..life::PROPOSALS {
            let end = Proposal { table: PROPOSE_NOTHING, ..Proposal::default() };
            let proposal = proposed.get(index as usize).copied().unwrap_or(end);
            maps.proposals.set(index, proposal);
        }
    }

    /// The second half: the program removes what was not used since. How many.
    pub(crate) fn collect(&mut self, n: usize) -> u32 {
        let host = &self.nodes[n].host;
        let removed = host.collect();
        host.maps.proposals.set(0, Proposal::default());
        removed
    }

    /// A node's full table gives up one record, whose key is returned with whether it is in `FLOWS`.
    pub(crate) fn evict(&mut self, n: usize, nth: usize) -> Option<(FlowKey, bool)> {
        let maps = &self.nodes[n].host.maps;
        let (flows, replies) = (maps.flows.keys(), maps.replies.keys());
        let count = flows.len() + replies.len();
        if count == 0 {
            return None;
        }
        let nth = nth % count;
        let Some(&key) = flows.get(nth) else {
            let key = replies[nth - flows.len()];
            maps.replies.remove(&key);
            return Some((key, false));
        };
        maps.flows.remove(&key);
        Some((key, true))
    }

    /// A client outside sends to a node.
    pub(crate) fn outside_sends(&mut self, n: usize, segment: &Segment) -> Fate {
        let bytes = segment.bytes();
        self.walk(At { node: n, program: Program::MeshIngress, ifindex: UPLINK, bytes })
    }

    /// A program on a node sends to an address of the node.
    pub(crate) fn node_sends(&mut self, n: usize, segment: &Segment) -> Fate {
        let bytes = segment.clone().macs([0; 6], [0; 6]).bytes();
        self.walk(At { node: n, program: Program::HostTx, ifindex: LOOPBACK, bytes })
    }

    /// A task sends, by one of its legs.
    pub(crate) fn task_sends(&mut self, t: usize, leg: Leg, segment: &Segment) -> Fate {
        let (first, mac) = match leg {
            Leg::Ingress => (INGRESS_VETH, place::ingress_mac(t)),
            Leg::Overlay => (OVERLAY_VETH, place::overlay_mac(t)),
            Leg::Egress => (EGRESS_VETH, place::egress_mac(t)),
        };
        let bytes = segment.clone().macs(mac, segment.dst_mac).bytes();
        let node = self.place.tasks[t].node;
        self.walk(At { node, program: Program::TaskTx, ifindex: first + number(t), bytes })
    }

    fn walk(&mut self, mut at: At) -> Fate {
        // In at one node, through one tunnel: a packet that goes on for longer is in a loop.
        for _ in 0..4 {
            let host = &mut self.nodes[at.node].host;
            let run = host.run_at(at.ifindex, at.program, &at.bytes, Form::Single);
            let counted = host.counted;
            at.bytes = run.bytes;
            match (run.action, run.out) {
                (Action::Drop, _) => return Fate::Dropped(counted),
                (Action::Redirect, Some(Out::Peer(veth))) => return self.deliver(at.node, veth, &at.bytes),
                (Action::Redirect, Some(Out::Neighbor(UPLINK))) => {
                    return Fate::Outside(at.node, Segment::parse(&at.bytes));
                }
                (Action::Redirect, Some(Out::Host(LOOPBACK))) => {
                    return Fate::OnNode(at.node, Segment::parse(&at.bytes));
                }
                (Action::Redirect, Some(Out::Device(INGRESS_VXLAN))) => match self.tunnel(at, INGRESS) {
                    Continue(next) => at = next,
                    Break(fate) => return fate,
                },
                (Action::Redirect, Some(Out::Device(OVERLAY_VXLAN))) => match self.tunnel(at, OVERLAY) {
                    Continue(next) => at = next,
                    Break(fate) => return fate,
                },
                (Action::Redirect, _) => return Fate::Astray("out of a device that is none"),
                (Action::Pass, _) => match self.pass(at, counted) {
                    Continue(next) => at = next,
                    Break(fate) => return fate,
                },
            }
        }
        Fate::Astray("round and round")
    }

    /// Where the kernel takes a packet that a program lets pass.
    fn pass(&mut self, at: At, counted: Option<Reason>) -> ControlFlow<Fate, At> {
        let network = match (at.program, at.ifindex) {
            (Program::MeshIngress | Program::HostTx, _) => return Break(Fate::Stack(at.node, counted)),
            (Program::OverlayRx, INGRESS_VXLAN) | (Program::TaskTx, INGRESS_VETH..OVERLAY_VETH) => INGRESS,
            (Program::OverlayRx, _) | (Program::TaskTx, OVERLAY_VETH..EGRESS_VETH) => OVERLAY,
            _ => return Break(Fate::Astray("egress")),
        };
        match self.owner(first_mac(&at.bytes)) {
            Some((n, Some(veth))) if n == at.node => Break(self.deliver(n, veth, &at.bytes)),
            Some((n, None)) if n == at.node => Break(Fate::Astray("router")),
            Some(_) if at.program == Program::TaskTx => self.tunnel(at, network),
            _ => Break(Fate::Astray("bridge")),
        }
    }

    /// Takes a frame through a tunnel to the node of its receiver.
    fn tunnel(&mut self, at: At, network: u32) -> ControlFlow<Fate, At> {
        let Some((n, _)) = self.owner(first_mac(&at.bytes)) else { return Break(Fate::Astray("tunnel")) };
        if n == at.node {
            return Break(Fate::Astray("a tunnel to itself"));
        }
        let vxlan = if network == INGRESS { INGRESS_VXLAN } else { OVERLAY_VXLAN };
        let behind = At { node: n, program: Program::OverlayRx, ifindex: vxlan, bytes: at.bytes };
        self.nodes[n].opened += 1;
        if self.nodes[n].opened.is_multiple_of(2) {
            return Continue(behind);
        }
        // By the lane, unless that leaves it to the device.
        let packet = tunneled(&behind.bytes, network);
        let host = &mut self.nodes[n].host;
        let run = host.run_at(UPLINK, Program::MeshIngress, &packet, Form::Single);
        let counted = host.counted;
        match (run.action, run.out) {
            (Action::Pass, _) => Continue(behind),
            (Action::Drop, _) => Break(Fate::Dropped(counted)),
            (_, Some(Out::Peer(veth))) => Break(self.deliver(n, veth, &run.bytes)),
            (_, Some(Out::Neighbor(UPLINK))) => Break(Fate::Outside(n, Segment::parse(&run.bytes))),
            (_, Some(Out::Host(LOOPBACK))) => Break(Fate::OnNode(n, Segment::parse(&run.bytes))),
            _ => Break(Fate::Astray("out of the lane")),
        }
    }

    /// Whose Ethernet address it is: the node, and the veth if it is a task's.
    fn owner(&self, mac: Mac) -> Option<(usize, Option<u32>)> {
        if let Some(n) = (0..self.place.nodes).find(|&n| place::router_mac(n) == mac) {
            return Some((n, None));
        }
        self.place.tasks.iter().enumerate().find_map(|(t, task)| {
            let veth = match mac {
                mac if mac == place::ingress_mac(t) => INGRESS_VETH,
                mac if mac == place::overlay_mac(t) => OVERLAY_VETH,
                _ => return None,
            };
            Some((task.node, Some(veth + number(t))))
        })
    }

    fn deliver(&self, n: usize, veth: u32, bytes: &[u8]) -> Fate {
        let (t, leg) = match veth {
            INGRESS_VETH..OVERLAY_VETH => (veth - INGRESS_VETH, Leg::Ingress),
            OVERLAY_VETH..EGRESS_VETH => (veth - OVERLAY_VETH, Leg::Overlay),
            _ => return Fate::Astray("into a veth that is none"),
        };
        if self.owner(first_mac(bytes)) != Some((n, Some(veth))) {
            return Fate::Astray("a frame for somebody else");
        }
        Fate::Task(t as usize, leg, Segment::parse(bytes))
    }
}

fn first_mac(bytes: &[u8]) -> Mac {
    *bytes.first_chunk().expect("a frame")
}
