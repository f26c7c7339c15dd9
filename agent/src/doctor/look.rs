//! Looks at the host for [`super`]. Nothing here changes anything but a file of its own, which it removes.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use netlink_packet_route::link::InfoVxlan;
use shoal_api::pb;
use shoal_plan::desired::HOST_SYSCTLS;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::VxlanUse;
use crate::config::Config;
use crate::drivers::link::{LinkError, LinkTable, Nl, Writes};
use crate::facts;
use crate::netns::Netns;

/// A manager has so long to take a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// Writes that are timed.
const WRITES: u32 = 8;
/// Port of the overlay where no device says otherwise.
const DATA_PORT: u16 = 7378;

fn text(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// What holds for any host.
pub fn host(config: &Config) -> Vec<pb::Check> {
    let cgroup = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        super::ok("cgroups", "version 2")
    } else {
        super::warn("cgroups", "version 1, or none", "boot with systemd.unified_cgroup_hierarchy=1")
    };
    vec![
        super::kernel(&text("/proc/sys/kernel/osrelease").unwrap_or_default()),
        super::compiler(text("/proc/sys/net/core/bpf_jit_enable").as_deref()),
        cgroup,
        super::memory(&text("/proc/meminfo").unwrap_or_default()),
        disk(&config.state_dir),
        longest_write(&config.state_dir)
            .map_or_else(|error| super::unseen("fsync", &error), |longest| super::fsync(longest, WRITES)),
        modes(config),
        super::resolvers(&fs::read_to_string(&config.resolv_conf).unwrap_or_default()),
    ]
}

/// The kernel parameters that a member has set.
pub fn sysctls() -> pb::Check {
    let read = |path: &&'static (&'static str, &'static str)| text(&format!("/proc/sys/{}", path.0));
    super::sysctls(HOST_SYSCTLS.iter().map(|entry| (entry.0, entry.1, read(&entry))))
}

fn disk(dir: &Path) -> pb::Check {
    match nix::sys::statvfs::statvfs(dir) {
        Ok(found) => super::disk(found.blocks_available().saturating_mul(found.fragment_size())),
        Err(error) => super::unseen("disk", &error),
    }
}

fn longest_write(dir: &Path) -> io::Result<Duration> {
    let path = dir.join("doctor.tmp");
    let timed = || {
        let mut file = fs::File::create(&path)?;
        let mut longest = Duration::ZERO;
        for _ in 0..WRITES {
            let start = Instant::now();
            file.write_all(&[0; 512])?;
            file.sync_data()?;
            longest = longest.max(start.elapsed());
        }
        Ok(longest)
    };
    let longest = timed();
    let removed = fs::remove_file(&path);
    longest.and_then(|longest| removed.map(|()| longest))
}

/// Paths with secrets, as far as they are there.
fn modes(config: &Config) -> pb::Check {
    let (pki, state) = (config.pki_dir(), &config.state_dir);
    let paths = [
        pki.clone(),
        pki.join("node.key"),
        config.agent_dir(),
        state.join("control"),
        state.join("node.json"),
    ];
    let found: Vec<(String, u32)> = paths
        .iter()
        .filter_map(|path| {
            let mode = fs::metadata(path).ok()?.permissions().mode() & 0o7777;
            Some((path.display().to_string(), mode))
        })
        .collect();
    super::modes(&found)
}

/// VXLAN devices of the host, and the MTU of the link that has the address.
pub async fn overlay(data_addr: Option<IpAddr>) -> Vec<pb::Check> {
    let (links, underlay) = match links(data_addr).await {
        Ok(found) => found,
        Err(error) => return vec![super::unseen("overlay-port", &error)],
    };
    let devices: Vec<VxlanUse> = links
        .iter()
        .filter_map(|link| {
            let port =
                link.vxlan.iter().find_map(|s| if let InfoVxlan::Port(p) = s { Some(*p) } else { None })?;
            Some(VxlanUse { name: link.name.to_string(), port, mtu: link.mtu, ours: link.mark().is_some() })
        })
        .collect();
    let port = devices.iter().find(|device| device.ours).map_or(DATA_PORT, |device| device.port);
    let mut checks = vec![super::vxlan_port(&devices, port)];
    if let (Some(underlay), Some(address)) = (underlay, data_addr) {
        checks.push(super::mtu(&devices, underlay, if address.is_ipv4() { 50 } else { 70 }));
    }
    checks
}

async fn links(data_addr: Option<IpAddr>) -> Result<(LinkTable, Option<u32>), LinkError> {
    let connection = Netns::current()?.netlink()?;
    let nl = Nl::new(connection.handle(), &Writes::default());
    let look = async {
        let (links, addresses) = (nl.links().await?, nl.addresses().await?);
        let mtu = data_addr.map(|address| facts::underlay_mtu(&links, &addresses, address));
        Ok((links, mtu))
    };
    let found = look.await;
    connection.close().await;
    found
}

/// Connects to each.
pub async fn managers(addresses: Vec<SocketAddr>) -> Vec<pb::Check> {
    let mut tries = JoinSet::new();
    for address in addresses {
        tries.spawn(async move {
            let outcome = match timeout(CONNECT, TcpStream::connect(address)).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {CONNECT:?}")),
            };
            (address, outcome)
        });
    }
    let mut tried = tries.join_all().await;
    tried.sort_by_key(|(address, _)| *address);
    super::managers(&tried)
}
