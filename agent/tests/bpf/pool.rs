//! Data planes that cases share. Loading one is most of a case's time, seconds where programs are verified by an emulated or
//! interpreting kernel; so a case gives back its plane, and the next gets it with every map as after loading.

use std::collections::BTreeSet;
use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Mutex, PoisonError};

use aya::maps::{MapInfo, MapType};
use aya::programs::ProgramInfo;
use shoal_agent::drivers::bpf::Opened;
use shoal_ebpf_common::reason::Program;

use super::fixture::Plane;

static IDLE: Mutex<Vec<Plane>> = Mutex::new(Vec::new());

/// A data plane as good as new.
pub(crate) fn take() -> Plane {
    let idle = || IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut plane) = idle().pop() else {
        // SAFETY: the function unwinds into nothing and touches only what is static.
        assert_eq!(unsafe { libc::atexit(remove_all) }, 0);
        return Plane::new();
    };
    empty(&mut plane).expect("empty the maps");
    // As a daemon does that finds this build's programs: with what it remembers of the maps read anew.
    assert_eq!(plane.reopen(), Opened::Adopted);
    plane
}

/// Gives a data plane back. That of a case that failed goes away.
pub(crate) fn give_back(plane: Plane) {
    if !std::thread::panicking() {
        IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(plane);
    }
}

/// The test harness has no end of its own to do this at.
extern "C" fn remove_all() {
    drop(std::mem::take(&mut *IDLE.lock().unwrap_or_else(PoisonError::into_inner)));
}

/// Empties every map that any of the plane's programs uses, pinned or not.
fn empty(plane: &mut Plane) -> io::Result<()> {
    let mut maps = BTreeSet::new();
    for &program in Program::ALL {
        let info = ProgramInfo::from_pin(plane.driver().program_pin(program)).map_err(io::Error::other)?;
        maps.extend(info.map_ids().map_err(io::Error::other)?.into_iter().flatten());
    }
    maps.into_iter().try_for_each(|id| Raw::open(id)?.empty())
}

/// A map by its bytes.
struct Raw {
    info: MapInfo,
    fd: aya::maps::MapFd,
}

impl Raw {
    fn open(id: u32) -> io::Result<Self> {
        let info = MapInfo::from_id(id).map_err(io::Error::other)?;
        let fd = info.fd().map_err(io::Error::other)?;
        Ok(Self { info, fd })
    }

    fn empty(&self) -> io::Result<()> {
        let value = self.info.value_size() as usize;
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        match self.info.map_type().map_err(io::Error::other)? {
            // Constants are in maps, too, named after their section.
            MapType::Array if self.info.name().starts_with(b".") => Ok(()),
            MapType::Array => self.zero(value),
            MapType::PerCpuArray => self.zero(value.next_multiple_of(8) * cpus),
            _ => self.delete_all(),
        }
    }

    fn delete_all(&self) -> io::Result<()> {
        let mut key = vec![0_u8; self.info.key_size() as usize];
        // The first key that is there, whichever.
        while self.call(BPF_MAP_GET_NEXT_KEY, None, Some(&mut key))? {
            self.call(BPF_MAP_DELETE_ELEM, Some(&key), None)?;
        }
        Ok(())
    }

    /// Sets all elements to `value` bytes of zero.
    fn zero(&self, value: usize) -> io::Result<()> {
        let count = self.info.max_entries();
        let keys: Vec<u32> = (0..count).collect();
        let values = vec![0_u8; value * count as usize];
        let attr = Batch {
            batches: [0; 2],
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count,
            map: self.fd.as_fd().as_raw_fd().cast_unsigned(),
            flags: [0; 2],
        };
        // SAFETY: keys and values are as many and as long as the map's are.
        check(unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_BATCH, &raw const attr, size_of_val(&attr))
        })?;
        Ok(())
    }

    /// A command for one element; whether there was one. The kernel refuses what a command has no use for.
    fn call(&self, command: libc::c_int, key: Option<&[u8]>, next: Option<&mut [u8]>) -> io::Result<bool> {
        let attr = Element {
            map: self.fd.as_fd().as_raw_fd().cast_unsigned(),
            pad: 0,
            key: key.map_or(0, |key| key.as_ptr() as u64),
            next: next.map_or(0, |next| next.as_mut_ptr() as u64),
            flags: 0,
        };
        // SAFETY: key and next are as long as the map's keys are.
        match check(unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attr, size_of_val(&attr)) }) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            outcome => outcome.map(|()| true),
        }
    }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;

/// `union bpf_attr` for elements (include/uapi/linux/bpf.h).
#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    next: u64,
    flags: u64,
}

/// The same for batches.
#[repr(C)]
struct Batch {
    batches: [u64; 2],
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    flags: [u64; 2],
}
