//! Every case through the kernel: the loaded programs run on packets with BPF_PROG_TEST_RUN. Needs root.

#[path = "../../ebpf/common/tests/support/all.rs"]
mod support;

#[path = "bpf/bytes.rs"]
mod bytes;
#[path = "bpf/driver.rs"]
mod driver;
#[path = "bpf/fixture.rs"]
mod fixture;
#[path = "bpf/harm.rs"]
mod harm;
#[path = "bpf/memo.rs"]
mod memo;
#[path = "bpf/pool.rs"]
mod pool;
#[path = "bpf/upgrade.rs"]
mod upgrade;

use std::time::Duration;

use aya::programs::SchedClassifier;
use shoal_agent::drivers::bpf::{self, BpfDriver, ServiceSpec};
use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::direct::door_value;
use shoal_ebpf_common::keys::{DoorKey, FlowKey, LocalKey, PortKey, RouterKey, VipKey};
use shoal_ebpf_common::maglev::{Member, Policy};
use shoal_ebpf_common::reason::{Program, Reason};
use shoal_ebpf_common::values::{
    BalancerIf, EndpointVal, FlowVal, LocalVal, NodeConfig, PORT_PROXY, PortVal, ReplyVal, TaskIf, TotalKey,
    TotalVal, VipVal,
};

use fixture::{Plane, Ran};
use support::cases::every_case;
use support::world::{Action, Run, World};

/// `TC_ACT_*` as the programs return them.
const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;

/// The kernel's data plane.
struct Kernel {
    plane: Option<Plane>,
    is_shared: bool,
    /// The device that there are routes by, and whether answers may leave by it.
    uplink: Option<u32>,
    outward: bool,
    /// Endpoints may be told of their clients. What makes room in a packet gives the device's sum up, which the kernel's look
    /// at that doesn't know.
    tells: bool,
}

impl Kernel {
    /// One of its own.
    fn new() -> Self {
        Self { plane: Some(Plane::new()), is_shared: false, uplink: None, outward: false, tells: false }
    }

    /// One of its own, in a namespace that has routes by a device.
    fn with_uplink(device: u32) -> Self {
        Self {
            plane: Some(Plane::new()),
            is_shared: false,
            uplink: Some(device),
            outward: false,
            tells: false,
        }
    }

    /// One that was somebody else's before and will be, for who does no more to it than [`World`] has.
    fn shared() -> Self {
        Self { plane: Some(pool::take()), is_shared: true, uplink: None, outward: false, tells: false }
    }

    fn plane(&mut self) -> &mut Plane {
        self.plane.as_mut().expect("held until dropped")
    }

    fn driver(&mut self) -> &mut BpfDriver {
        self.plane().driver()
    }

    fn opened(&self) -> &BpfDriver {
        self.plane.as_ref().expect("held until dropped").opened()
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Some(plane) = self.plane.take().filter(|_| self.is_shared) {
            pool::give_back(plane);
        }
    }
}

impl World for Kernel {
    fn set_config(&mut self, value: NodeConfig) {
        self.driver().set_config(value).expect("set the configuration");
    }
    fn set_port(&mut self, key: PortKey, value: PortVal) {
        self.tells |= value.flags & PORT_PROXY != 0;
        self.driver().ports.upsert(&key, &value).expect("set a port");
    }
    fn remove_port(&mut self, key: PortKey) {
        assert!(self.driver().ports.remove(&key).expect("remove a port"));
    }
    fn set_policy(&mut self, id: u64, endpoints: &[u64], policy: Policy) {
        let members = endpoints.iter().map(|&endpoint| Member { endpoint, weight: 1 }).collect();
        self.driver().upsert_service(id, &ServiceSpec::new(7, policy, members)).expect("set a service");
    }
    fn set_endpoint(&mut self, id: u64, value: EndpointVal) {
        self.driver().endpoints.upsert(&id, &value).expect("set an endpoint");
    }
    fn remove_endpoint(&mut self, id: u64) {
        assert!(self.driver().endpoints.remove(&id).expect("remove an endpoint"));
    }
    fn set_local(&mut self, key: LocalKey, value: LocalVal) {
        self.driver().local.upsert(&key, &value).expect("set a local task");
    }
    fn set_router(&mut self, key: RouterKey) {
        self.driver().routers.upsert(&key, &1).expect("set a router");
    }
    fn set_member(&mut self, addr: Addr) {
        self.driver().members.upsert(&addr, &1).expect("set a member");
    }
    fn set_local_addr(&mut self, addr: Addr) {
        self.driver().local_addrs.upsert(&addr, &0).expect("set an address");
    }
    fn set_own_door(&mut self, addr: Addr, device: u32, number: u32) {
        self.driver().local_addrs.upsert(&addr, &door_value(device, number)).expect("set an address");
    }
    fn lead_outward(&mut self, leads: bool) {
        let Some(uplink) = self.uplink else { return };
        if leads {
            self.driver().outward.upsert(&uplink, &1).expect("set a device");
        } else {
            self.driver().outward.remove(&uplink).expect("remove a device");
        }
        self.outward = leads;
    }
    fn leads_outward(&self) -> bool {
        self.outward
    }
    fn set_door(&mut self, key: DoorKey, addr: Addr) {
        self.driver().doors.upsert(&key, &addr).expect("set a door");
    }
    fn remove_door(&mut self, key: DoorKey) {
        self.driver().doors.remove(&key).expect("remove a door");
    }
    fn set_task_if(&mut self, ifindex: u32, value: TaskIf) {
        self.driver().task_ifs.upsert(&ifindex, &value).expect("set a task interface");
    }
    fn set_vip(&mut self, key: VipKey, value: VipVal) {
        self.driver().vips.upsert(&key, &value).expect("set a virtual IP");
    }
    fn set_balancer_if(&mut self, ifindex: u32, value: BalancerIf) {
        self.driver().balancer_ifs.upsert(&ifindex, &value).expect("set a balancer's leg");
    }
    fn set_tunnel(&mut self, vni: u32, device: u32) {
        self.driver().tunnels.upsert(&vni, &device).expect("set a tunnel");
    }
    fn flow(&self, key: &FlowKey) -> Option<FlowVal> {
        self.opened().flows().expect("list flows").get(key).copied()
    }
    fn reply(&self, key: &FlowKey) -> Option<ReplyVal> {
        self.opened().replies().expect("list answers").get(key).copied()
    }
    fn total(&self, endpoint: u64, service: u64) -> TotalVal {
        let totals = self.opened().totals().expect("read the totals");
        totals.get(&TotalKey { endpoint, service }).copied().unwrap_or_default()
    }
    fn bytes(&self, endpoint: u64, service: u64) -> TotalVal {
        let TotalVal { mut requests, mut answers } = self.total(endpoint, service);
        for flow in self.opened().flows().expect("list flows").values() {
            requests += if (flow.endpoint, flow.service) == (endpoint, service) { flow.bytes } else { 0 };
        }
        for reply in self.opened().replies().expect("list answers").values() {
            answers += if (reply.endpoint, reply.service) == (endpoint, service) { reply.bytes } else { 0 };
        }
        TotalVal { requests, answers }
    }
    fn forget(&mut self, key: &FlowKey) {
        self.driver().forget(key).expect("forget a record");
    }
    fn next_tick(&mut self) {
        let before = bpf::clock();
        while bpf::clock() == before {
            std::thread::yield_now();
        }
        // Programs read their clock once in eight ticks of the kernel.
        fixture::rest_for(Duration::from_millis(100));
    }
    fn drops(&self, reason: Reason) -> u64 {
        self.opened().drops().expect("read the drop counters")[&reason]
    }

    fn run(&mut self, program: Program, packet: &[u8]) -> Run {
        let pin = self.driver().program_pin(program);
        let classifier = SchedClassifier::from_pin(pin).expect("open the pinned program");
        let Ran { verdict, bytes } = fixture::run(classifier.fd().expect("loaded"), packet, !self.tells);
        let action = match verdict {
            TC_ACT_UNSPEC => Action::Pass,
            TC_ACT_SHOT => Action::Drop,
            TC_ACT_REDIRECT => Action::Redirect,
            other => panic!("unexpected verdict {other}"),
        };
        Run { action, bytes, out: None, mark: None }
    }
}

every_case!(Kernel::shared());
