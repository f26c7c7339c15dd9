//! A data plane in ordinary memory.

use std::collections::HashMap;

use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::direct;
use shoal_ebpf_common::keys::{DoorKey, FlowKey, LocalKey, PortKey, RouterKey, VipKey};
use shoal_ebpf_common::lane::{Form, OVERHEAD};
use shoal_ebpf_common::maglev::Policy;
use shoal_ebpf_common::reason::{Program, Reason};
use shoal_ebpf_common::values::{
    BalancerIf, EndpointVal, FlowVal, LocalVal, NodeConfig, PortVal, ReplyVal, TaskIf, TotalKey, TotalVal,
    VipVal,
};
use shoal_ebpf_common::verdict::{Out, Verdict, Work};
use shoal_ebpf_common::{balancer, fragment, icmp, lane, life, local, mesh, overlay, proxy, rewrite, task};

use super::memory::{Buffer, Memory};
use super::world::{Action, IFINDEX, Run, World};

/// The programs over ordinary memory.
#[derive(Default)]
pub(crate) struct Host {
    pub(crate) maps: Memory,
    drops: HashMap<Reason, u64>,
    /// What the last run counted a drop or a refusal as.
    pub(crate) counted: Option<Reason>,
    /// Copies that were sent, and by which way.
    pub(crate) copies: Vec<(Out, Vec<u8>)>,
    outward: bool,
    /// MTUs of the devices there are.
    pub(crate) mtus: HashMap<u32, u32>,
}

impl Host {
    fn drop(&mut self, reason: Reason) -> Action {
        *self.drops.entry(reason).or_default() += 1;
        self.counted = Some(reason);
        Action::Drop
    }
}

impl World for Host {
    fn set_config(&mut self, value: NodeConfig) {
        self.maps.config.set((), value);
    }
    fn set_port(&mut self, key: PortKey, value: PortVal) {
        self.maps.ports.set(key, value);
    }
    fn remove_port(&mut self, key: PortKey) {
        self.maps.ports.remove(&key);
    }
    fn set_policy(&mut self, id: u64, endpoints: &[u64], policy: Policy) {
        self.maps.set_service(id, endpoints, policy);
    }
    fn set_endpoint(&mut self, id: u64, value: EndpointVal) {
        self.maps.endpoints.set(id, value);
    }
    fn remove_endpoint(&mut self, id: u64) {
        self.maps.endpoints.remove(&id);
    }
    fn set_local(&mut self, key: LocalKey, value: LocalVal) {
        self.maps.local.set(key, value);
    }
    fn set_router(&mut self, key: RouterKey) {
        self.maps.routers.set(key, 1);
    }
    fn set_member(&mut self, addr: Addr) {
        self.maps.members.set(addr, 1);
    }
    fn set_local_addr(&mut self, addr: Addr) {
        self.maps.local_addrs.set(addr, 0);
    }
    fn set_own_door(&mut self, addr: Addr, device: u32, number: u32) {
        self.maps.local_addrs.set(addr, direct::door_value(device, number));
    }
    fn lead_outward(&mut self, leads: bool) {
        self.outward = leads;
    }
    fn leads_outward(&self) -> bool {
        self.outward
    }
    fn set_door(&mut self, key: DoorKey, addr: Addr) {
        self.maps.doors.set(key, addr);
    }
    fn remove_door(&mut self, key: DoorKey) {
        self.maps.doors.remove(&key);
    }
    fn set_task_if(&mut self, ifindex: u32, value: TaskIf) {
        self.maps.task_ifs.set(ifindex, value);
    }
    fn set_vip(&mut self, key: VipKey, value: VipVal) {
        self.maps.vips.set(key, value);
    }
    fn set_balancer_if(&mut self, ifindex: u32, value: BalancerIf) {
        self.maps.balancer_ifs.set(ifindex, value);
    }
    fn set_tunnel(&mut self, vni: u32, device: u32) {
        self.maps.tunnels.set(vni, device);
    }
    fn flow(&self, key: &FlowKey) -> Option<FlowVal> {
        self.maps.flows.get(key).copied()
    }
    fn reply(&self, key: &FlowKey) -> Option<ReplyVal> {
        self.maps.replies.get(key).copied()
    }
    fn total(&self, endpoint: u64, service: u64) -> TotalVal {
        self.maps.totals.get(&TotalKey { endpoint, service }).copied().unwrap_or_default()
    }
    fn bytes(&self, endpoint: u64, service: u64) -> TotalVal {
        let TotalVal { mut requests, mut answers } = self.total(endpoint, service);
        for flow in self.maps.flows.keys().iter().filter_map(|key| self.maps.flows.get(key)) {
            requests += if (flow.endpoint, flow.service) == (endpoint, service) { flow.bytes } else { 0 };
        }
        for reply in self.maps.replies.keys().iter().filter_map(|key| self.maps.replies.get(key)) {
            answers += if (reply.endpoint, reply.service) == (endpoint, service) { reply.bytes } else { 0 };
        }
        TotalVal { requests, answers }
    }
    fn forget(&mut self, key: &FlowKey) {
        self.maps.flows.remove(key);
        self.maps.replies.remove(key);
    }
    fn next_tick(&mut self) {
        self.maps.clock.set(self.maps.clock.get() + 1);
    }
    fn drops(&self, reason: Reason) -> u64 {
        self.drops.get(&reason).copied().unwrap_or_default()
    }

    fn run(&mut self, program: Program, packet: &[u8]) -> Run {
        self.run_as(program, packet, Form::Single)
    }

    fn copies(&mut self) -> Option<Vec<(Out, Vec<u8>)>> {
        Some(std::mem::take(&mut self.copies))
    }
}

impl Host {
    /// Runs the collector; how many entries it removed.
    pub(crate) fn collect(&self) -> u32 {
        let found = (0..life::PROPOSALS).map_while(|place| life::collect(&self.maps, place));
        found.map(u32::from).sum()
    }

    /// Runs a program on a packet that came in some form.
    pub(crate) fn run_as(&mut self, program: Program, packet: &[u8], form: Form) -> Run {
        self.run_at(IFINDEX, program, packet, form)
    }

    /// As [`Host::run_as`], on a packet that arrived at another device.
    pub(crate) fn run_at(&mut self, ifindex: u32, program: Program, packet: &[u8], form: Form) -> Run {
        self.counted = None;
        let outward = self.outward.then_some(IFINDEX);
        let mut buffer = Buffer(packet.to_vec(), Vec::new(), outward);
        let mut work = Work::default();
        let mut verdict = match program {
            Program::MeshIngress => mesh::decide(&buffer, &self.maps, ifindex, &mut work),
            Program::OverlayRx => overlay::decide(&buffer, &self.maps, ifindex, &mut work),
            Program::TaskTx => task::decide(&buffer, &self.maps, ifindex, &mut work),
            Program::BalancerTx => balancer::to_network(&buffer, &self.maps, ifindex, &mut work),
            Program::HostTx => local::decide(&buffer, &self.maps, ifindex, &mut work),
            Program::GateTx => balancer::to_client(&buffer, &self.maps, &mut work),
        };
        if verdict == Verdict::Tunnel {
            verdict = lane::decide(&buffer, &self.maps, form, &mut work);
            if matches!(verdict, Verdict::Forward | Verdict::Redirect) {
                buffer.0.drain(..OVERHEAD as usize);
            }
        }
        if work.header.leads() && matches!(verdict, Verdict::Forward | Verdict::Redirect) {
            fragment::remember(&self.maps, (program, ifindex), &mut work, verdict == Verdict::Redirect);
        }
        let asked = verdict;
        match asked {
            Verdict::Follow => {
                verdict = fragment::decide(&buffer, &self.maps, (program, ifindex), &mut work);
            }
            Verdict::Error => {
                let known = icmp::read(&buffer, &mut work);
                verdict = icmp::decide(&buffer, &self.maps, (program, ifindex), &mut work, known);
            }
            _ => {}
        }
        let (mut out, mut action) = (None, Action::Pass);
        match verdict {
            Verdict::Pass | Verdict::Tunnel | Verdict::Error | Verdict::Follow => {}
            Verdict::Drop(reason) => action = self.drop(reason),
            Verdict::Refuse(reason) => {
                self.drop(reason);
            }
            Verdict::Forward | Verdict::Redirect => {
                if verdict == Verdict::Forward && rewritten(&mut buffer, asked, &mut work).is_none() {
                    assert!(work.header.keeps_ports(), "the packet holds its own header");
                    let action = self.drop(Reason::RewriteFailed);
                    return Run { action, bytes: buffer.0, out: None, mark: None };
                }
                let told =
                    if verdict == Verdict::Forward { self.tell(&mut buffer, &mut work) } else { Ok(()) };
                if let Err(reason) = told {
                    let action = self.drop(reason);
                    return Run { action, bytes: buffer.0, out: None, mark: None };
                }
                if let Some(mtu) = self.mtus.get(&work.narrow) {
                    rewrite::narrow(&mut buffer, &work.header, *mtu).expect("the packet holds its options");
                }
                (out, action) = (Some(work.forward.out), Action::Redirect);
            }
            Verdict::Answer(question) => {
                rewrite::answer(&mut buffer, question, work.forward.src_mac)
                    .expect("the answer fits the question");
                (out, action) = (Some(Out::Device(ifindex)), Action::Redirect);
            }
            Verdict::Announce => {
                rewrite::announce(&mut buffer, &work.forward.src).expect("an ARP packet");
            }
        }
        Run { action, bytes: buffer.0, out, mark: Some(work.mark) }
    }
}

impl Host {
    /// Changes a packet of a connection whose endpoint is told of its client.
    fn tell(&mut self, buffer: &mut Buffer, work: &mut Work) -> Result<(), Reason> {
        let done = match work.proxy {
            proxy::PLAIN => Some(()),
            proxy::BACK => {
                proxy::to_client(buffer, &self.maps, work).and_then(|()| proxy::blocks(buffer, work))
            }
            _ => {
                let told = proxy::to_task(buffer, &self.maps, work)?;
                if told { proxy::sum_up(buffer, work) } else { Some(()) }
            }
        };
        self.copies.append(&mut buffer.1);
        done.ok_or(Reason::RewriteFailed)
    }
}

/// Makes a packet what was decided, by what it was taken for.
fn rewritten(buffer: &mut Buffer, asked: Verdict, work: &mut Work) -> Option<()> {
    match asked {
        Verdict::Error => rewrite::error(buffer, work).and_then(|()| rewrite::quote(buffer, work)),
        Verdict::Follow => rewrite::fragment(buffer, work),
        _ => rewrite::apply(buffer, work),
    }
}
