//! What others do to a data plane, and how it is put right.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData};
use shoal_agent::drivers::bpf::{Attachment, Opened, Program};
use shoal_ebpf_common::keys::PortKey;
use shoal_ebpf_common::packet::TCP;
use shoal_ebpf_common::values::PortVal;

use super::driver::{in_namespace, own_group, service};
use super::fixture::{Plane, bpf, owned, word};
use super::support::world::{self, V4};

/// Opens what is pinned.
pub(crate) fn open(pin: &Path) -> OwnedFd {
    const OBJ_GET: libc::c_int = 7;
    let path = std::ffi::CString::new(pin.to_str().expect("as it was made")).expect("as it was made");
    // SAFETY: the address is of a live C string.
    let fd = unsafe { bpf(OBJ_GET, &[path.as_ptr().expose_provenance() as u64, 0]) };
    let fd = fd.unwrap_or_else(|error| panic!("{}: {error}", pin.display()));
    owned(fd)
}

/// Detaches a pinned link as `bpftool link detach` does: the pin stays.
fn detach(pin: &Path) {
    const LINK_DETACH: libc::c_int = 34;
    let link = open(pin);
    // SAFETY: the command takes no address.
    unsafe { bpf(LINK_DETACH, &[word(&link), 0]) }.expect("detach");
}

fn generation(plane: &mut Plane) -> PathBuf {
    plane.driver().program_pin(Program::MeshIngress).ancestors().nth(2).expect("as it was made").to_owned()
}

pub(crate) fn map_pin(plane: &mut Plane, name: &str) -> PathBuf {
    generation(plane).join("maps").join(name)
}

fn slots(plane: &mut Plane) -> Array<MapData, u64> {
    let data = MapData::from_pin(map_pin(plane, "SLOTS")).expect("as it was made");
    Map::from_map_data(data).expect("as it was made").try_into().expect("as it was made")
}

#[test]
fn a_program_taken_from_its_device_is_told_and_attached_again() {
    in_namespace(|ifindex| {
        let mut plane = Plane::new();
        let both = [Program::MeshIngress, Program::TaskTx].map(|program| Attachment { ifindex, program });
        for at in both {
            assert!(plane.driver().attach(ifindex, at.program).unwrap());
        }
        let pin = generation(&mut plane).join(format!("links/task_tx@{ifindex}"));
        // Where there are no such links, there are filters.
        let is_link = is_link(&pin);
        let harms: &[&dyn Fn()] = if is_link {
            &[&|| detach(&pin), &|| std::fs::remove_file(&pin).unwrap()]
        } else {
            &[
                &|| tc(&["filter", "del", "dev", "t0", "ingress", "prio", "7372"]),
                &|| tc(&["qdisc", "del", "dev", "t0", "clsact"]),
                &|| std::fs::remove_file(&pin).unwrap(),
            ]
        };
        for (number, harm) in harms.iter().enumerate() {
            assert_eq!(plane.driver().attached().unwrap(), both.into(), "before harm {number}");
            assert!(!plane.driver().is_touched().unwrap(), "before harm {number}");
            harm();
            if is_link {
                assert!(plane.driver().is_touched().unwrap(), "harm {number} is told");
            }
            assert!(!plane.driver().attached().unwrap().contains(&both[1]), "harm {number}");
            for at in both {
                plane.driver().attach(ifindex, at.program).unwrap();
            }
        }
        assert_eq!(plane.driver().attached().unwrap(), both.into());
        assert!(plane.driver().detach(ifindex, Program::TaskTx).unwrap());
        assert!(!plane.driver().is_touched().unwrap(), "it was the driver");
    });
}

/// Whether a pin names a link, not the program of a filter.
fn is_link(pin: &Path) -> bool {
    let object = open(pin);
    let name = std::fs::read_link(format!("/proc/self/fd/{}", object.as_raw_fd())).expect("as it was made");
    name != Path::new("anon_inode:bpf-prog")
}

fn tc(args: &[&str]) {
    assert!(std::process::Command::new("tc").args(args).status().expect("run tc").success(), "tc {args:?}");
}

#[test]
fn a_program_taken_from_a_control_group_is_told_and_attached_again() {
    let mut plane = Plane::new();
    let group = own_group().with_extension("harm");
    assert!(plane.driver().lead_connections(&group).unwrap());
    detach(&generation(&mut plane).join("groups/connect6"));
    assert_eq!(plane.driver().connecting(&group).unwrap(), shoal_agent::drivers::bpf::Connecting::Partly);
    assert!(plane.driver().lead_connections(&group).unwrap());
    assert_eq!(plane.driver().connecting(&group).unwrap(), shoal_agent::drivers::bpf::Connecting::Whole);
    assert!(plane.driver().leave_connections().unwrap());
    std::fs::remove_dir(&group).unwrap();
}

#[test]
fn maps_and_programs_are_pinned_again_with_all_that_is_in_them() {
    in_namespace(|ifindex| {
        let mut plane = Plane::new();
        let (key, value) = (PortKey::new(world::addr(V4.node), 80, TCP), PortVal::new(1, 8080));
        plane.driver().ports.upsert(&key, &value).unwrap();
        plane.driver().attach(ifindex, Program::MeshIngress).unwrap();
        plane.driver().attached().unwrap();
        let program = plane.driver().program_pin(Program::MeshIngress);
        let generation = generation(&mut plane);
        for lost in [
            vec![generation.join("maps/PORTS"), generation.join("maps/PARKED")],
            vec![program],
            vec![generation],
        ] {
            assert!(plane.driver().is_pinned());
            assert!(!plane.driver().restore_pins().unwrap(), "nothing to write");
            for path in &lost {
                if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
                    .unwrap();
            }
            assert!(!plane.driver().is_pinned() && plane.driver().is_touched().unwrap(), "{lost:?}");
            assert!(plane.driver().restore_pins().unwrap());
            assert!(plane.driver().is_pinned(), "{lost:?}");
            plane.driver().attach(ifindex, Program::MeshIngress).unwrap();
            assert_eq!(plane.driver().attached().unwrap().len(), 1);
            assert_eq!(plane.reopen(), Opened::Adopted);
            assert_eq!(plane.driver().ports.get(&key).unwrap(), Some(value), "the same map");
            assert_eq!(plane.driver().attached().unwrap().len(), 1);
        }
    });
}

#[test]
fn maps_that_lost_their_pins_without_a_daemon_are_found_by_their_programs() {
    let mut plane = Plane::new();
    let (key, value) = (PortKey::new(world::addr(V4.node), 80, TCP), PortVal::new(1, 8080));
    plane.driver().ports.upsert(&key, &value).unwrap();
    let pins = [map_pin(&mut plane, "PORTS"), map_pin(&mut plane, "FLOWS")];
    let others = plane.while_closed(|| pins.each_ref().map(std::fs::remove_file));
    assert!(others.iter().all(Result::is_ok));
    assert_eq!(plane.driver().ports.get(&key).unwrap(), Some(value), "the same map");
    assert!(pins.iter().all(|pin| pin.exists()));
}

#[test]
fn entries_and_slots_that_somebody_changed_are_put_right_where_they_were() {
    let mut plane = Plane::new();
    let spec = service(&[1, 2, 3]);
    plane.driver().upsert_service(1, &spec).unwrap();
    plane.driver().upsert_service(2, &service(&[4])).unwrap();
    let (entry, table) = (plane.driver().services().unwrap()[&1], plane.driver().service_table(1).unwrap());
    let other = plane.driver().services().unwrap()[&2];
    assert!(plane.driver().is_ours(1, &entry) && plane.driver().holds(&entry, &spec).unwrap());

    slots(&mut plane).set(entry.base + 5, 99, 0).unwrap();
    assert!(!plane.driver().holds(&entry, &spec).unwrap());
    plane.driver().take_slot_writes();
    assert!(plane.driver().upsert_service(1, &spec).unwrap());
    assert_eq!(plane.driver().take_slot_writes(), 1, "the one that differs");
    assert_eq!(plane.driver().service_table(1).unwrap(), table);

    // An entry that is lost, that leads to another's table, and that claims more than its own.
    let changed = [None, Some((other.base, entry.len)), Some((entry.base, 4000))];
    for (round, changed) in changed.into_iter().enumerate() {
        let mut entries = entries(&mut plane);
        entries.remove(&1).unwrap();
        if let Some((base, len)) = changed {
            let words = [entry.seed, entry.digest, u64::from(base) | u64::from(len) << 32, 0];
            entries.insert(1, words, 0).unwrap();
            let read = plane.driver().services().unwrap()[&1];
            assert!(!plane.driver().is_ours(1, &read), "round {round}");
        }
        assert!(plane.driver().upsert_service(1, &spec).unwrap(), "round {round}");
        assert_eq!(plane.driver().services().unwrap()[&1], entry, "round {round}: where it was");
        assert_eq!(plane.driver().service_table(1).unwrap(), table, "round {round}");
        assert_eq!(plane.driver().services().unwrap()[&2], other, "round {round}");
    }

    // While no daemon sees it: two of one table.
    let words = [entry.seed, entry.digest, u64::from(entry.base) | u64::from(entry.len) << 32, 0];
    entries(&mut plane).insert(2, words, 0).unwrap();
    assert_eq!(plane.reopen(), Opened::Adopted);
    let read = plane.driver().services().unwrap();
    assert!(plane.driver().is_ours(1, &read[&1]) && !plane.driver().is_ours(2, &read[&2]));
    assert!(plane.driver().upsert_service(2, &service(&[4])).unwrap());
    assert!(plane.driver().service_table(2).unwrap().iter().all(|id| *id == 4));
    assert_eq!(plane.driver().service_table(1).unwrap(), table);
}

fn entries(plane: &mut Plane) -> aya::maps::HashMap<MapData, u64, [u64; 4]> {
    let data = MapData::from_pin(map_pin(plane, "SERVICES")).expect("as it was made");
    Map::from_map_data(data).expect("as it was made").try_into().expect("as it was made")
}
