//! Data planes that cases share. Loading one is most of a case's time, seconds where programs are verified by an emulated or
//! interpreting kernel; so a case gives back its plane, and the next gets it with every map as after loading.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, PoisonError};

use aya::maps::{MapInfo, MapType};
use aya::programs::ProgramInfo;
use shoal_agent::drivers::bpf::Opened;
use shoal_ebpf_common::reason::Program;

use super::fixture::{Plane, bpf, word};

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
        let address = key.as_mut_ptr().expose_provenance() as u64;
        // The first key that is there, whichever.
        while self.call(BPF_MAP_GET_NEXT_KEY, [0, address])? {
            self.call(BPF_MAP_DELETE_ELEM, [address, 0])?;
        }
        Ok(())
    }

    /// A command for a key, or for the first one; whether there was one.
    fn call(&self, command: libc::c_int, [key, next]: [u64; 2]) -> io::Result<bool> {
        // SAFETY: the addresses are null or of as many bytes as a key has.
        match unsafe { bpf(command, &[word(&self.fd), key, next, 0]) } {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            outcome => outcome.map(|_| true),
        }
    }

    /// Sets all elements to `value` bytes of zero.
    fn zero(&self, value: usize) -> io::Result<()> {
        let count = self.info.max_entries();
        let keys: Vec<u32> = (0..count).collect();
        let values = vec![0_u8; value * count as usize];
        let (keys_at, values_at) = (keys.as_ptr().expose_provenance(), values.as_ptr().expose_provenance());
        let count_and_map = u64::from(count) | word(&self.fd) << 32;
        let words = [0, 0, keys_at as u64, values_at as u64, count_and_map, 0, 0];
        // SAFETY: keys and values are as many and as long as the map's are.
        unsafe { bpf(BPF_MAP_UPDATE_BATCH, &words) }.map(|_| ())
    }
}

const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
