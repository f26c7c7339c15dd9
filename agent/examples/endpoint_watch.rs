//! Tells when the programs of several nodes begin or cease to lead new flows to an endpoint, a line of JSON each.
//!
//! For `cargo xtask bench scale`: it looks at the pinned maps of every node five thousand times a second, which is far
//! finer than what is measured.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use aya::maps::{HashMap, Map, MapData};
use clap::Parser;
use serde::Serialize;
use shoal_ebpf_common::ABI_VERSION;
use shoal_ebpf_common::values::{ENDPOINT_DRAINING, EndpointVal};

/// Pause between looks.
const PAUSE: Duration = Duration::from_micros(200);
/// Bytes of a value of the map.
const VALUE: usize = size_of::<EndpointVal>();

#[derive(Parser)]
struct Args {
    /// Directories of the nodes' data planes
    dirs: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Event {
    /// The number of the directory.
    node: usize,
    addr: Ipv4Addr,
    /// Whether new flows go to it.
    usable: bool,
    at_ns: i64,
}

type Endpoints = HashMap<MapData, u64, [u8; VALUE]>;

#[expect(clippy::print_stdout, reason = "events are what it is for")]
#[expect(clippy::disallowed_methods, reason = "maps tell nobody that they changed")]
fn main() -> anyhow::Result<()> {
    let dirs = Args::parse().dirs;
    let maps: Vec<Endpoints> = dirs.iter().map(|dir| open(dir)).collect::<anyhow::Result<_>>()?;
    let mut known: Vec<BTreeMap<Ipv4Addr, bool>> = vec![BTreeMap::new(); maps.len()];
    loop {
        for (node, (map, known)) in maps.iter().zip(&mut known).enumerate() {
            let found = usable(map);
            let at_ns = now()?;
            let gone = known.keys().filter(|addr| !found.contains_key(addr)).map(|addr| (*addr, false));
            let changed: Vec<_> = found.iter().map(|(addr, usable)| (*addr, *usable)).chain(gone).collect();
            for (addr, usable) in changed {
                if known.insert(addr, usable).unwrap_or(false) != usable {
                    println!("{}", serde_json::to_string(&Event { node, addr, usable, at_ns })?);
                }
            }
        }
        std::thread::sleep(PAUSE);
    }
}

fn open(dir: &Path) -> anyhow::Result<Endpoints> {
    let path = dir.join(format!("gen-{ABI_VERSION}/maps/ENDPOINTS"));
    let data = MapData::from_pin(&path).with_context(|| format!("can't open {}", path.display()))?;
    Ok(Map::from_map_data(data)?.try_into()?)
}

fn now() -> anyhow::Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?)
}

/// Whether new flows go to each endpoint. What is removed while it is read is not there.
fn usable(map: &Endpoints) -> BTreeMap<Ipv4Addr, bool> {
    let flags = offset_of!(EndpointVal, flags);
    // The last four octets of an IPv4-mapped address.
    let ip4 = offset_of!(EndpointVal, ip4) + 12;
    map.iter()
        .flatten()
        .filter_map(|(_, value)| {
            let addr = <[u8; 4]>::try_from(value.get(ip4..ip4 + 4)?).ok()?;
            let flags = u16::from_ne_bytes(value.get(flags..flags + 2)?.try_into().ok()?);
            Some((addr.into(), flags & ENDPOINT_DRAINING == 0))
        })
        .collect()
}
