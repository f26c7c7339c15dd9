//! Upgrades to another layout of the maps: flows go on.

use shoal_agent::drivers::bpf::{Opened, Program};

use super::Kernel;
use super::fixture::Plane;
use super::support::packet::{ACK, SYN, Segment, TCP};
use super::support::world::{self, Action, LOCAL, REMOTE, SERVICE, V4, World};

/// Makes the maps those of another ABI version, and opens anew.
fn upgrade(plane: &mut Plane, number: u32) -> std::path::PathBuf {
    let program = plane.driver().program_pin(Program::MeshIngress);
    let generation = program.ancestors().nth(2).expect("a generation");
    let old = generation.with_file_name(format!("gen-{number}"));
    std::fs::rename(generation, &old).expect("renamed");
    assert!(matches!(plane.reopen(), Opened::Loaded { .. }));
    old
}

/// A node by which so many connections go.
fn with_connections(count: u16) -> Kernel {
    let mut kernel = Kernel::new();
    world::node(&mut kernel);
    kernel.set_service(SERVICE, &[LOCAL]);
    (1..=count).for_each(|port| connect(&mut kernel, port));
    assert_eq!(kernel.driver().flows().expect("flows").len(), usize::from(count));
    kernel
}

fn connect(kernel: &mut Kernel, port: u16) {
    let packet = Segment::new(TCP, (V4.client, port), (V4.node, 8080));
    for flags in [SYN, ACK] {
        let run = kernel.run(Program::MeshIngress, &packet.clone().flags(flags).bytes());
        assert_eq!(run.action, Action::Redirect);
    }
}

#[test]
fn an_upgrade_to_another_abi_carries_flows_over() {
    let mut kernel = with_connections(40);
    let (flows, replies) = (kernel.driver().flows().unwrap(), kernel.driver().replies().unwrap());
    let old = upgrade(kernel.plane(), 900);
    assert_eq!(kernel.driver().flows().unwrap(), flows, "before the first program is attached");
    assert_eq!(kernel.driver().replies().unwrap(), replies);
    assert!(kernel.driver().services().unwrap().is_empty(), "all else is programmed anew");

    // The service now has another endpoint: connections that were there stay where they are.
    world::node(&mut kernel);
    kernel.set_service(SERVICE, &[REMOTE]);
    let known = flows.keys().next().unwrap();
    let packet = Segment::new(TCP, (V4.client, known.sport), (V4.node, 8080)).flags(ACK);
    kernel.run(Program::MeshIngress, &packet.bytes());
    let now = kernel.driver().flows().unwrap();
    assert_eq!((now.len(), now[known].endpoint), (flows.len(), LOCAL));

    // As if one had begun by the old programs since: it is missing here.
    let late = flows.keys().nth(1).unwrap();
    assert!(kernel.driver().forget(late).unwrap());
    assert!(kernel.driver().remove_other_layouts().unwrap());
    assert!(!old.exists());
    let after = kernel.driver().flows().unwrap();
    assert_eq!((after.len(), after[late].endpoint), (flows.len(), LOCAL));
}

#[test]
fn flows_of_an_endpoint_that_went_during_an_upgrade_are_not_brought_back() {
    let mut kernel = with_connections(8);
    upgrade(kernel.plane(), 900);
    world::node(&mut kernel);
    kernel.remove_endpoint(LOCAL);
    assert_eq!(kernel.driver().purge(|_, _| true).unwrap(), 8);
    kernel.driver().remove_other_layouts().unwrap();
    assert!(kernel.driver().flows().unwrap().is_empty());
}

#[test]
fn flows_that_are_laid_out_differently_are_left_and_nothing_is_read_of_them() {
    for (number, mark) in [(900, Some("flows-900")), (3, None), (4000, None)] {
        let mut kernel = with_connections(8);
        let program = kernel.driver().program_pin(Program::MeshIngress);
        let generation = program.ancestors().nth(2).expect("a generation");
        std::fs::remove_dir(generation.join("flows-1")).unwrap();
        if let Some(mark) = mark {
            std::fs::create_dir(generation.join(mark)).unwrap();
        }
        upgrade(kernel.plane(), number);
        assert!(kernel.driver().flows().unwrap().is_empty(), "{number}");
        assert!(kernel.driver().remove_other_layouts().unwrap());
        assert!(kernel.driver().flows().unwrap().is_empty(), "{number}");
    }
}
