//! Upgrades to another layout of the maps: flows go on.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use shoal_agent::drivers::bpf::{Opened, Program};
use shoal_ebpf_common::keys::FlowKey;

use super::Kernel;
use super::fixture::{Plane, bpf, owned, word};
use super::support::packet::{ACK, SYN, Segment, TCP};
use super::support::world::{self, Action, LOCAL, REMOTE, SERVICE, V4, World};

/// Makes the maps those of another ABI version, and opens anew.
pub(crate) fn upgrade(plane: &mut Plane, number: u32) -> std::path::PathBuf {
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
        std::fs::remove_dir(generation.join("flows-2")).unwrap();
        if let Some(mark) = mark {
            std::fs::create_dir(generation.join(mark)).unwrap();
        }
        upgrade(kernel.plane(), number);
        assert!(kernel.driver().flows().unwrap().is_empty(), "{number}");
        assert!(kernel.driver().remove_other_layouts().unwrap());
        assert!(kernel.driver().flows().unwrap().is_empty(), "{number}");
    }
}

/// `BPF_MAP_CREATE`, `BPF_MAP_UPDATE_ELEM` and `BPF_OBJ_PIN` of `linux/bpf.h`, and the type of a map.
const MAP_CREATE: i32 = 0;
const MAP_UPDATE_ELEM: i32 = 2;
const OBJ_PIN: i32 = 6;
const LRU_HASH: u64 = 9;

/// Puts a map in a pin's place whose values are only the first `size` bytes of each.
fn shorten<V>(pin: &Path, entries: &BTreeMap<FlowKey, V>, size: usize) {
    assert!(size < size_of::<V>());
    let key_size = (size_of::<FlowKey>() as u64) << 32;
    let sizes = size as u64 | 1024 << 32;
    // SAFETY: there is no address among the words.
    let map = owned(unsafe { bpf(MAP_CREATE, &[LRU_HASH | key_size, sizes, 0]) }.expect("a map"));
    for (key, value) in entries {
        let key = std::ptr::from_ref(key).expose_provenance() as u64;
        let value = std::ptr::from_ref(value).expose_provenance() as u64;
        // SAFETY: the key is one, and the value has more bytes than the map's.
        unsafe { bpf(MAP_UPDATE_ELEM, &[word(&map), key, value, 0]) }.expect("an entry");
    }
    std::fs::remove_file(pin).expect("unpinned");
    let path = CString::new(pin.as_os_str().as_bytes()).expect("a path");
    // SAFETY: the path is a live C string.
    unsafe { bpf(OBJ_PIN, &[path.as_ptr().expose_provenance() as u64, word(&map)]) }.expect("pinned");
}

#[test]
fn flows_of_the_layout_before_are_carried_over() {
    let mut kernel = with_connections(40);
    let (flows, replies) = (kernel.driver().flows().unwrap(), kernel.driver().replies().unwrap());
    let program = kernel.driver().program_pin(Program::MeshIngress);
    let generation = program.ancestors().nth(2).expect("a generation");
    std::fs::rename(generation.join("flows-2"), generation.join("flows-1")).unwrap();
    shorten(&generation.join("maps/FLOWS"), &flows, 32);
    shorten(&generation.join("maps/REPLIES"), &replies, 56);
    upgrade(kernel.plane(), 5);
    let mut now = kernel.driver().flows().unwrap();
    assert!(now.values().all(|flow| flow.bytes == 0));
    for (key, flow) in &mut now {
        flow.bytes = flows[key].bytes;
    }
    assert_eq!(now, flows);
    assert_eq!(kernel.driver().replies().unwrap().len(), replies.len());
    assert!(kernel.driver().remove_other_layouts().unwrap());
    assert_eq!(kernel.driver().flows().unwrap().len(), flows.len());
}
