//! What programs remember of the agent's tables, they remember until one of them is written.

use shoal_agent::drivers::bpf::Program;
use shoal_ebpf_common::keys::{LocalKey, Mac};
use shoal_ebpf_common::values::{EndpointVal, PeerVal};

use super::Kernel;
use super::fixture::{bpf, stay_here, word};
use super::harm::{map_pin, open};
use super::support::packet::{ACK, SYN, Segment, TCP};
use super::support::world::{self, Action, LOCAL, SERVICE, V4, World};

const OTHER: Mac = [2, 9, 9, 9, 9, 9];
const THIRD: Mac = [2, 8, 8, 8, 8, 8];

/// A node with one flow, which is known.
fn node_with_a_flow() -> Kernel {
    let mut kernel = Kernel::new();
    world::node(&mut kernel);
    kernel.set_service(SERVICE, &[LOCAL]);
    send(&mut kernel, SYN);
    send(&mut kernel, ACK);
    kernel
}

fn send(kernel: &mut Kernel, flags: u8) -> (Action, Mac) {
    let packet = Segment::new(TCP, (V4.client, 40_000), (V4.node, 8080)).flags(flags).bytes();
    let run = kernel.run(Program::MeshIngress, &packet);
    (run.action, *run.bytes.first_chunk().expect("as long as it was"))
}

fn endpoint(kernel: &mut Kernel) -> EndpointVal {
    kernel.driver().endpoints.get(&LOCAL).expect("read").expect("there")
}

#[test]
fn each_way_of_writing_a_table_is_noticed() {
    let mut kernel = node_with_a_flow();
    let value = endpoint(&mut kernel);
    assert_eq!(send(&mut kernel, ACK), (Action::Redirect, value.mac));
    kernel.driver().endpoints.upsert(&LOCAL, &EndpointVal { mac: OTHER, ..value }).expect("write");
    assert_eq!(send(&mut kernel, ACK), (Action::Redirect, OTHER));
    kernel.driver().endpoints.write_all(&[(LOCAL, EndpointVal { mac: THIRD, ..value })]).expect("write");
    assert_eq!(send(&mut kernel, ACK), (Action::Redirect, THIRD));
    for _ in 0..2 {
        kernel.driver().endpoints.remove(&LOCAL).expect("remove");
        assert_eq!(send(&mut kernel, ACK).0, Action::Pass, "refused");
        assert_eq!(send(&mut kernel, ACK).0, Action::Pass, "refused");
        kernel.driver().endpoints.upsert(&LOCAL, &value).expect("write");
        assert_eq!(send(&mut kernel, ACK), (Action::Redirect, value.mac));
    }
}

#[test]
fn what_a_daemon_wrote_last_is_noticed_when_the_next_one_starts() {
    stay_here();
    let mut kernel = node_with_a_flow();
    let value = EndpointVal { mac: OTHER, ..endpoint(&mut kernel) };
    // As one that was stopped before it could tell of it.
    write_as_somebody_else(&mut kernel, &value);
    assert_ne!(send(&mut kernel, ACK).1, OTHER, "remembered as it was: else this shows nothing");
    kernel.plane().reopen();
    assert_eq!(send(&mut kernel, ACK), (Action::Redirect, OTHER));
}

#[test]
fn what_somebody_else_wrote_and_took_back_is_forgotten_with_the_next_look() {
    stay_here();
    let mut kernel = node_with_a_flow();
    let value = endpoint(&mut kernel);
    let other = EndpointVal { mac: OTHER, ..value };
    write_as_somebody_else(&mut kernel, &other);
    // Another entry is written, so what is remembered now is theirs.
    let key = LocalKey::new(1, OTHER);
    kernel.driver().peers.upsert(&key, &PeerVal { vni: 1, ..PeerVal::default() }).expect("write");
    assert_eq!(send(&mut kernel, ACK), (Action::Redirect, OTHER));
    write_as_somebody_else(&mut kernel, &value);
    assert_eq!(kernel.driver().endpoints.dump().expect("read").get(&LOCAL), Some(&value));
    assert_eq!(send(&mut kernel, ACK), (Action::Redirect, value.mac));
    // Of one that somebody has removed, as of one that is there.
    remove_as_somebody_else(&mut kernel);
    assert_eq!(send(&mut kernel, ACK), (Action::Redirect, value.mac), "remembered");
    assert!(!kernel.driver().remove_endpoint(LOCAL).expect("remove"));
    assert_eq!(send(&mut kernel, ACK).0, Action::Pass, "refused");
}

#[test]
fn entries_that_share_a_place_are_told_apart() {
    /// Its two halves come to the same as those of [`LOCAL`].
    const NEIGHBOR: u64 = LOCAL ^ 0x0000_0002_0000_0002;
    stay_here();
    let mut kernel = node_with_a_flow();
    let value = endpoint(&mut kernel);
    kernel.set_endpoint(NEIGHBOR, EndpointVal { mac: OTHER, ..value });
    kernel.set_service(SERVICE, &[NEIGHBOR]);
    let other = |kernel: &mut Kernel, flags| {
        let packet = Segment::new(TCP, (V4.client, 40_001), (V4.node, 8080)).flags(flags).bytes();
        let bytes = kernel.run(Program::MeshIngress, &packet).bytes;
        *bytes.first_chunk::<6>().expect("as long as it was")
    };
    assert_eq!(other(&mut kernel, SYN), OTHER);
    for _ in 0..2 {
        assert_eq!(send(&mut kernel, ACK), (Action::Redirect, value.mac));
        assert_eq!(other(&mut kernel, ACK), OTHER);
    }
}

#[test]
fn that_an_endpoint_is_gone_is_not_remembered() {
    stay_here();
    let mut kernel = node_with_a_flow();
    let value = endpoint(&mut kernel);
    remove_as_somebody_else(&mut kernel);
    kernel.driver().endpoints.dump().expect("read, which makes programs forget");
    assert_eq!(send(&mut kernel, ACK).0, Action::Pass, "refused");
    // A connection that begins asks the table, so the rest of it must not be refused by what was remembered before.
    write_as_somebody_else(&mut kernel, &value);
    assert_eq!(send(&mut kernel, SYN), (Action::Redirect, value.mac));
    assert_eq!(send(&mut kernel, ACK), (Action::Redirect, value.mac));
}

fn write_as_somebody_else(kernel: &mut Kernel, value: &EndpointVal) {
    const UPDATE: libc::c_int = 2;
    let map = open(&map_pin(kernel.plane(), "ENDPOINTS"));
    let key = LOCAL;
    let (at, to) = (std::ptr::from_ref(&key), std::ptr::from_ref(value));
    let words = [word(&map), at.expose_provenance() as u64, to.expose_provenance() as u64, 0];
    // SAFETY: both are live, and of the sizes that the map has.
    unsafe { bpf(UPDATE, &words) }.expect("write");
}

fn remove_as_somebody_else(kernel: &mut Kernel) {
    const REMOVE: libc::c_int = 3;
    let map = open(&map_pin(kernel.plane(), "ENDPOINTS"));
    let key = LOCAL;
    // SAFETY: it is live, and of the size that the map has.
    unsafe { bpf(REMOVE, &[word(&map), std::ptr::from_ref(&key).expose_provenance() as u64]) }
        .expect("remove");
}
