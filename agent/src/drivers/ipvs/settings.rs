//! Settings of IPVS in a namespace that is ours: never in the host's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::model::Timeouts;
use super::table::{IpvsError, IpvsTable};
use crate::netns::Netns;

/// Where the kernel has the settings, once its module is loaded.
const DIRECTORY: &str = "/proc/sys/net/ipv4/vs";

/// Settings, each for a reason.
const SETTINGS: &[(&str, &str)] = &[
    // A client that takes a port again begins a new connection: it is to be scheduled, not led to the destination its
    // last one had, which may be draining. (Without connection tracking this costs no delay, see the next one.)
    ("conn_reuse_mode", "1"),
    // Nothing here is tracked: IPVS and steering know all that is needed.
    ("conntrack", "0"),
    // A connection whose destination was removed ends at once, instead of its packets vanishing until it times out.
    // For UDP, which has no other end, the next packet is scheduled anew.
    ("expire_nodest_conn", "1"),
    // Clients that were to stay with a destination don't once it drains.
    ("expire_quiescent_template", "1"),
    // A connection that is under way when its packets come in by another node, as after an address has moved, is
    // scheduled like a new one: with Maglev to the same destination.
    ("sloppy_tcp", "1"),
    // And so are associations of SCTP, of which else only an INIT is scheduled.
    ("sloppy_sctp", "1"),
    // Answers leave by the only way there is: no second look at the routes.
    ("snat_reroute", "0"),
];

/// When connections are forgotten. An idle TCP connection is not cut before the kernel's own connection tracking would
/// have (`nf_ct_tcp_timeout_established`, five days); the kernel's default here is 15 minutes.
pub const TIMEOUTS: Timeouts = Timeouts {
    tcp: Duration::from_hours(5 * 24),
    tcp_fin: Duration::from_mins(1),
    udp: Duration::from_mins(3),
};

/// Makes the settings of a namespace so, given its table. Returns how many were written.
pub fn ensure<T: IpvsTable>(netns: &Netns, table: &mut T) -> Result<u64, IpvsError> {
    let written = netns.run(|| {
        let mut written = 0;
        for (name, value) in SETTINGS {
            written += u64::from(ensure_one(&path(name), value)?);
        }
        Ok::<_, IpvsError>(written)
    })??;
    if table.timeouts()? == TIMEOUTS {
        return Ok(written);
    }
    table.set_timeouts(&TIMEOUTS)?;
    Ok(written + 1)
}

/// Whether the settings of a namespace are so, given its table.
pub fn are_intact<T: IpvsTable>(netns: &Netns, table: &mut T) -> Result<bool, IpvsError> {
    let set =
        netns.run(|| SETTINGS.iter().all(|(name, value)| matches!(is(&path(name), value), Ok(true))))?;
    Ok(set && table.timeouts()? == TIMEOUTS)
}

/// Whether the kernel has IPVS, or a module of it that it would load. Loads nothing.
pub fn is_available() -> bool {
    if Path::new("/proc/net/ip_vs").exists() {
        return true;
    }
    let Ok(release) = fs::read_to_string("/proc/sys/kernel/osrelease") else { return false };
    let modules = Path::new("/lib/modules").join(release.trim());
    ["modules.dep", "modules.builtin"]
        .iter()
        .any(|list| fs::read_to_string(modules.join(list)).is_ok_and(|text| text.contains("/ip_vs.ko")))
}

fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

fn is(path: &Path, value: &str) -> io::Result<bool> {
    Ok(fs::read_to_string(path)?.trim() == value)
}

/// Returns whether it wrote. A kernel that has no such setting behaves as it did before there was one.
fn ensure_one(path: &Path, value: &str) -> Result<bool, IpvsError> {
    let refused =
        |source| IpvsError::Refused { action: format!("set {} to {value}", path.display()), source };
    match is(path, value) {
        Ok(true) => Ok(false),
        Ok(false) => fs::write(path, value).map(|()| true).map_err(refused),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(refused(error)),
    }
}
