//! What the cases need of a data plane, so that they run over memory and in the kernel alike.

use std::net::IpAddr;

use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::keys::{DoorKey, FlowKey, LocalKey, Mac, PortKey, RouterKey, VipKey};
use shoal_ebpf_common::maglev::Policy;
use shoal_ebpf_common::reason::{Program, Reason};
use shoal_ebpf_common::values::{
    BalancerIf, ENDPOINT_LOCAL, EndpointVal, FlowVal, LEG_EGRESS, LocalVal, NodeConfig, PortVal, ReplyVal,
    TaskIf, TotalVal, VipVal,
};
use shoal_ebpf_common::verdict::Out;

use super::packet::{Segment, TCP, UDP};

/// What a program did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Pass,
    Drop,
    Redirect,
}

/// The outcome of running a program on a packet.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) action: Action,
    pub(crate) bytes: Vec<u8>,
    /// Where it went, if the data plane can tell: a test run in the kernel cannot.
    pub(crate) out: Option<Out>,
    /// The mark it went with, likewise.
    pub(crate) mark: Option<u32>,
}

/// A data plane under test. Packets arrive at interface 1.
pub(crate) trait World {
    fn set_config(&mut self, value: NodeConfig);
    fn set_port(&mut self, key: PortKey, value: PortVal);
    fn remove_port(&mut self, key: PortKey);
    fn set_service(&mut self, id: u64, endpoints: &[u64]) {
        self.set_policy(id, endpoints, Policy::Flow);
    }
    fn set_policy(&mut self, id: u64, endpoints: &[u64], policy: Policy);
    fn set_endpoint(&mut self, id: u64, value: EndpointVal);
    fn remove_endpoint(&mut self, id: u64);
    fn set_local(&mut self, key: LocalKey, value: LocalVal);
    fn set_router(&mut self, key: RouterKey);
    fn set_member(&mut self, addr: Addr);
    fn set_local_addr(&mut self, addr: Addr);
    /// An address of this node that others know by a number, at a device.
    fn set_own_door(&mut self, addr: Addr, device: u32, number: u32);
    /// Whether routes lead to clients by a device that leads outward, so far as the data plane has any.
    fn lead_outward(&mut self, leads: bool);
    /// Whether they do now.
    fn leads_outward(&self) -> bool;
    fn set_door(&mut self, key: DoorKey, addr: Addr);
    fn remove_door(&mut self, key: DoorKey);
    fn set_task_if(&mut self, ifindex: u32, value: TaskIf);
    fn set_vip(&mut self, key: VipKey, value: VipVal);
    fn set_balancer_if(&mut self, ifindex: u32, value: BalancerIf);
    fn set_tunnel(&mut self, vni: u32, device: u32);
    fn flow(&self, key: &FlowKey) -> Option<FlowVal>;
    fn reply(&self, key: &FlowKey) -> Option<ReplyVal>;
    /// Bytes of an endpoint's flows whose records are gone.
    fn total(&self, endpoint: u64, service: u64) -> TotalVal;
    /// Bytes of all flows of an endpoint.
    fn bytes(&self, endpoint: u64, service: u64) -> TotalVal;
    /// Removes one record of a flow, as a full table does.
    fn forget(&mut self, key: &FlowKey);
    /// Lets the programs' clock go on.
    fn next_tick(&mut self);
    fn drops(&self, reason: Reason) -> u64;
    fn run(&mut self, program: Program, packet: &[u8]) -> Run;
    /// Copies of packets that were sent since the last call, if the data plane can tell.
    fn copies(&mut self) -> Option<Vec<(Out, Vec<u8>)>> {
        None
    }
}

pub(crate) const IFINDEX: u32 = 1;
pub(crate) const TUNNEL_PORT: u16 = 7378;
pub(crate) const NETWORK: u32 = 200;
pub(crate) const SERVICE: u64 = 0x7000_0000_0000_0001;
pub(crate) const ROUTER: Mac = [2, 0, 0, 0, 0, 1];
pub(crate) const OTHER_ROUTER: Mac = [2, 0, 0, 0, 0, 2];
pub(crate) const TASK: Mac = [2, 1, 0, 0, 0, 1];
pub(crate) const OTHER_TASK: Mac = [2, 1, 0, 0, 0, 2];
pub(crate) const VIP: Mac = [2, 9, 0, 0, 0, 1];
/// Ids beyond 32 bits, as the real ones are.
pub(crate) const LOCAL: u64 = 0xaaaa_0000_0000_0001;
pub(crate) const REMOTE: u64 = 0xbbbb_0000_0000_0002;
pub(crate) const REMOTE_DEVICE: u32 = 77;

/// Addresses of one family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family {
    pub(crate) client: &'static str,
    pub(crate) node: &'static str,
    pub(crate) node2: &'static str,
    pub(crate) router: &'static str,
    /// The local task: in the ingress network, and on another leg.
    pub(crate) task: &'static str,
    pub(crate) leg: &'static str,
    pub(crate) other: &'static str,
    pub(crate) vip: &'static str,
}

pub(crate) const V4: Family = Family {
    client: "192.0.2.9",
    node: "198.51.100.1",
    node2: "198.51.100.77",
    router: "10.255.0.1",
    task: "10.255.1.1",
    leg: "172.19.0.5",
    other: "10.255.1.2",
    vip: "10.255.200.1",
};

pub(crate) const V6: Family = Family {
    client: "2001:db8::9",
    node: "2001:db8:1::1",
    node2: "2001:db8:1::77",
    router: "fd0a::1",
    task: "fd0a::1:1",
    leg: "fd19::5",
    other: "fd0a::1:2",
    vip: "fd0a::ffff",
};

/// Both families, both protocols.
pub(crate) const MATRIX: [(Family, u8); 4] = [(V4, TCP), (V4, UDP), (V6, TCP), (V6, UDP)];

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn addr(text: &str) -> Addr {
    ip(text).into()
}

pub(crate) fn key(proto: u8, network: u32, src: (&str, u16), dst: (&str, u16)) -> FlowKey {
    FlowKey {
        src: addr(src.0),
        dst: addr(dst.0),
        sport: src.1,
        dport: dst.1,
        scope: FlowKey::scope(network, proto),
    }
}

pub(crate) fn local_endpoint() -> EndpointVal {
    EndpointVal {
        ip4: addr(V4.task),
        ip6: addr(V6.task),
        mac: TASK,
        flags: ENDPOINT_LOCAL,
        ifindex: IFINDEX,
        pad: 0,
    }
}

pub(crate) fn remote_endpoint() -> EndpointVal {
    EndpointVal {
        ip4: addr(V4.other),
        ip6: addr(V6.other),
        mac: OTHER_TASK,
        flags: 0,
        ifindex: REMOTE_DEVICE,
        pad: 0,
    }
}

/// The task's leg in the ingress network, which stands for an overlay leg too.
pub(crate) fn ingress_leg() -> TaskIf {
    TaskIf {
        ip4: addr(V4.task),
        ip6: addr(V6.task),
        ingress_ip4: addr(V4.task),
        ingress_ip6: addr(V6.task),
        mac: TASK,
        ingress_mac: TASK,
        network: NETWORK,
        vxlan: REMOTE_DEVICE,
        ingress_vxlan: REMOTE_DEVICE,
        ..TaskIf::default()
    }
}

/// The leg of its default route.
pub(crate) fn egress_leg() -> TaskIf {
    TaskIf {
        ip4: addr(V4.leg),
        ip6: addr(V6.leg),
        network: 0,
        vxlan: 0,
        leg: LEG_EGRESS,
        mac: [2, 3, 0, 0, 0, 1],
        ..ingress_leg()
    }
}

/// A node that publishes 8080 for port 80 of a service of two tasks, one here and one elsewhere.
pub(crate) fn node(w: &mut dyn World) {
    w.set_config(NodeConfig {
        router_ip4: addr(V4.router),
        router_ip6: addr(V6.router),
        router_mac: ROUTER,
        vxlan_port: TUNNEL_PORT,
        ..NodeConfig::default()
    });
    for family in [V4, V6] {
        w.set_local_addr(addr(family.node));
        w.set_local_addr(addr(family.node2));
    }
    for proto in [TCP, UDP] {
        w.set_port(PortKey::new(Addr::ANY, 8080, proto), PortVal::new(SERVICE, 80));
    }
    w.set_endpoint(LOCAL, local_endpoint());
    w.set_endpoint(REMOTE, remote_endpoint());
    w.set_service(SERVICE, &[LOCAL, REMOTE]);
    w.set_router(RouterKey::new(OTHER_ROUTER));
    w.set_local(
        LocalKey::new(IFINDEX, TASK),
        LocalVal { ip4: addr(V4.task), ip6: addr(V6.task), veth: IFINDEX, network: NETWORK },
    );
    w.set_task_if(IFINDEX, ingress_leg());
    for family in [V4, V6] {
        w.set_vip(
            VipKey { addr: addr(family.vip), network: NETWORK },
            VipVal { service: SERVICE, mac: VIP, ..VipVal::default() },
        );
    }
}

/// Runs a program and expects a redirected segment.
pub(crate) const MARK: u32 = 608_080;
pub(crate) const GATE: u32 = 88;
pub(crate) const LEG: u32 = 89;

/// That node, with a balancer's gate and its leg into the ingress network.
pub(crate) fn node_with_gate(w: &mut dyn World) {
    node(w);
    w.set_config(NodeConfig {
        router_ip4: addr(V4.router),
        router_ip6: addr(V6.router),
        router_mac: ROUTER,
        vxlan_port: TUNNEL_PORT,
        gate: GATE,
        balancer: LEG,
        ingress_vxlan: REMOTE_DEVICE,
    });
}

#[track_caller]
pub(crate) fn forwarded(w: &mut dyn World, program: Program, segment: &Segment, out: Out) -> Segment {
    let run = w.run(program, &segment.bytes());
    assert_eq!(run.action, Action::Redirect, "{segment:?}");
    assert!(run.out.is_none_or(|at| at == out), "left by {:?}, not {out:?}", run.out);
    Segment::parse(&run.bytes)
}

/// Runs a program and expects an untouched packet.
#[track_caller]
pub(crate) fn passed(w: &mut dyn World, program: Program, packet: &[u8]) {
    let run = w.run(program, packet);
    assert_eq!(run.action, Action::Pass);
    assert_eq!(run.bytes, packet, "a packet that passes is not touched");
}

/// Runs a program and expects a counted drop.
#[track_caller]
pub(crate) fn dropped(w: &mut dyn World, program: Program, packet: &[u8], reason: Reason) {
    let before = w.drops(reason);
    assert_eq!(w.run(program, packet).action, Action::Drop);
    assert_eq!(w.drops(reason), before + 1, "counted as {reason:?}");
}
