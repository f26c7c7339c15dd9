//! Bytes as the driver tells them: what flows count, and what those counted that are gone.

use shoal_agent::drivers::bpf::{self, Opened, Program, Totals};
use shoal_ebpf_common::keys::FlowKey;
use shoal_ebpf_common::values::{EndpointVal, TotalKey, TotalVal};

use super::Kernel;
use super::support::packet::{ACK, SYN, Segment, TCP, UDP};
use super::support::world::{self, Action, LOCAL, REMOTE, ROUTER, SERVICE, TASK, V4, World};

const HERE: TotalKey = TotalKey { endpoint: LOCAL, service: SERVICE };
const GONE: TotalKey = TotalKey { endpoint: 0, service: SERVICE };

/// A node whose service is here.
fn kernel() -> Kernel {
    let mut kernel = Kernel::new();
    world::node(&mut kernel);
    kernel.set_service(SERVICE, &[LOCAL]);
    kernel
}

/// A request and its answer by each of so many ports. Returns the bytes of all.
fn exchange(kernel: &mut Kernel, proto: u8, ports: std::ops::Range<u16>) -> TotalVal {
    let mut sum = TotalVal::default();
    for port in ports {
        let request = Segment::new(proto, (V4.client, port), (V4.node, 8080)).bytes();
        let answer =
            Segment::new(proto, (V4.task, 80), (V4.client, port)).flags(SYN | ACK).macs(TASK, ROUTER);
        let answer = Segment { payload: vec![1; 500], ..answer }.bytes();
        for (program, packet) in [(Program::MeshIngress, &request), (Program::TaskTx, &answer)] {
            assert_eq!(kernel.run(program, packet).action, Action::Redirect);
        }
        sum.requests += request.len() as u64 - 14;
        sum.answers += answer.len() as u64 - 14;
    }
    sum
}

fn told(kernel: &mut Kernel, later: u32) -> Totals {
    kernel.driver().collect(bpf::clock() + later).expect("collected").bytes
}

#[test]
fn bytes_stay_when_their_flows_are_collected_or_purged() {
    let mut kernel = kernel();
    let tcp = exchange(&mut kernel, TCP, 1..100);
    assert_eq!(told(&mut kernel, 0), [(HERE, tcp)].into());
    assert_eq!(told(&mut kernel, 57), [(HERE, tcp)].into(), "before they are collected");
    assert_eq!(kernel.driver().flows().expect("flows").len(), 0);
    assert_eq!(kernel.total(LOCAL, SERVICE), tcp, "by a program");
    let udp = exchange(&mut kernel, UDP, 1..100);
    let all = TotalVal { requests: tcp.requests + udp.requests, answers: tcp.answers + udp.answers };
    let endpoint = kernel.driver().endpoints.get(&LOCAL).expect("read").expect("there");
    kernel.driver().remove_endpoint(LOCAL).expect("removed");
    assert_eq!(kernel.driver().purge_withdrawn().expect("purged"), 99);
    kernel.set_endpoint(LOCAL, endpoint);
    assert!(kernel.driver().flows().expect("flows").is_empty());
    assert_eq!((kernel.total(LOCAL, SERVICE), told(&mut kernel, 0)), (all, [(HERE, all)].into()));
    assert_eq!(kernel.plane().reopen(), Opened::Adopted);
    assert_eq!(told(&mut kernel, 0), [(HERE, all)].into(), "and the next daemon tells the same");
}

#[test]
fn the_bytes_of_an_endpoint_that_is_gone_are_its_services() {
    let mut kernel = kernel();
    let sent = exchange(&mut kernel, TCP, 1..10);
    kernel.driver().collect(bpf::clock() + 57).expect("collected");
    let open = Segment::new(TCP, (V4.client, 10), (V4.node, 8080));
    for flags in [SYN, ACK] {
        kernel.run(Program::MeshIngress, &open.clone().flags(flags).bytes());
    }
    let more = 2 * (open.bytes().len() as u64 - 14);
    kernel.remove_endpoint(LOCAL);
    let all = TotalVal { requests: sent.requests + more, ..sent };
    assert_eq!(told(&mut kernel, 0), [(HERE, all)].into(), "while it has a flow");
    kernel.driver().purge(|_, _| true).expect("purged");
    for _ in 0..2 {
        assert_eq!(told(&mut kernel, 0), [(GONE, all)].into());
    }
    assert_eq!(kernel.driver().totals().expect("totals"), [(GONE, all)].into());
    // Another one of the same service counts for itself.
    let value = EndpointVal { mac: TASK, ..world::local_endpoint() };
    kernel.set_endpoint(REMOTE, value);
    kernel.set_service(SERVICE, &[REMOTE]);
    let other = exchange(&mut kernel, TCP, 20..30);
    assert_eq!(told(&mut kernel, 0), [(GONE, all), (TotalKey { endpoint: REMOTE, ..HERE }, other)].into());
    assert!(kernel.driver().remove_service(SERVICE).expect("removed"));
    kernel.remove_endpoint(REMOTE);
    kernel.driver().collect(bpf::clock() + 57).expect("collected");
    told(&mut kernel, 0);
    assert!(kernel.driver().totals().expect("totals").is_empty(), "of a service that is gone, nothing stays");
    assert!(told(&mut kernel, 0).is_empty());
}

#[test]
fn what_a_full_table_gave_up_does_not_make_it_less() {
    let mut kernel = kernel();
    let sent = exchange(&mut kernel, TCP, 1..3);
    assert_eq!(told(&mut kernel, 0), [(HERE, sent)].into());
    let flow: FlowKey = *kernel.driver().flows().expect("flows").keys().next().expect("one");
    assert!(kernel.driver().forget(&flow).expect("forgotten"));
    assert_eq!(told(&mut kernel, 0), [(HERE, sent)].into());
}

#[test]
fn an_upgrade_to_another_abi_carries_bytes_over() {
    let mut kernel = kernel();
    let gone = exchange(&mut kernel, TCP, 1..10);
    kernel.driver().collect(bpf::clock() + 57).expect("collected");
    let kept = exchange(&mut kernel, TCP, 10..20);
    super::upgrade::upgrade(kernel.plane(), 900);
    assert_eq!(kernel.total(LOCAL, SERVICE), gone);
    let all = TotalVal { requests: gone.requests + kept.requests, answers: gone.answers + kept.answers };
    assert_eq!(kernel.bytes(LOCAL, SERVICE), all);
}
