//! What `shoal doctor` makes of what it finds: pure judgements, each with evidence and remedy. [`look`] gathers.

pub mod look;
mod peers;

use std::fmt::Display;
use std::time::Duration;

use shoal_api::pb;

pub use peers::{clocks, tunnels};

/// Kernels before this one lack helpers that the programs call.
const KERNEL: (u32, u32) = (5, 15);
const MIB: u64 = 1 << 20;
/// The state directory needs so little that less than this is about to stop the ledger and the log.
const DISK_FAIL: u64 = 64 * MIB;
const DISK_WARN: u64 = 512 * MIB;
const MEMORY_WARN: u64 = 128 * MIB;
/// An append to the log waits for the disk; the design counts on no more.
const FSYNC_WARN: Duration = Duration::from_millis(25);
const MINUTE_MS: u64 = 60 * 1000;
const HOUR_MS: u64 = 60 * MINUTE_MS;

fn check(name: &str, verdict: pb::Verdict, evidence: impl Into<String>, fix: impl Into<String>) -> pb::Check {
    pb::Check { name: name.to_owned(), verdict: verdict.into(), evidence: evidence.into(), fix: fix.into() }
}

/// As it should be.
pub fn ok(name: &str, evidence: impl Into<String>) -> pb::Check {
    check(name, pb::Verdict::Ok, evidence, "")
}

/// Something works worse than it could, or will not for long.
pub fn warn(name: &str, evidence: impl Into<String>, fix: impl Into<String>) -> pb::Check {
    check(name, pb::Verdict::Warn, evidence, fix)
}

/// Something does not work.
pub fn fail(name: &str, evidence: impl Into<String>, fix: impl Into<String>) -> pb::Check {
    check(name, pb::Verdict::Fail, evidence, fix)
}

/// What could not be looked at is neither good nor bad.
pub fn unseen(name: &str, error: &dyn Display) -> pb::Check {
    warn(name, format!("cannot be told: {error}"), "see the log of shoald")
}

/// The kernel's release, as `6.1.0-18-amd64`.
pub fn kernel(release: &str) -> pb::Check {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return warn(
            "kernel",
            format!("'{release}' is no release that is understood"),
            "use Linux 5.15 or later",
        );
    };
    if (major, minor) < KERNEL {
        return fail("kernel", format!("Linux {release}"), "install a kernel of 5.15 or later");
    }
    ok("kernel", format!("Linux {release}"))
}

/// `net.core.bpf_jit_enable`; none where the kernel has no compiler.
pub fn compiler(setting: Option<&str>) -> pb::Check {
    match setting {
        Some("1") => ok("bpf-compiler", "programs are compiled"),
        Some("2") => warn(
            "bpf-compiler",
            "programs are compiled and their code is written to the kernel's log",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(_) => warn(
            "bpf-compiler",
            "programs are interpreted, which costs several times as much per packet",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        None => warn(
            "bpf-compiler",
            "the kernel has no compiler of programs: they are interpreted, which costs several times as much",
            "use a kernel with CONFIG_BPF_JIT",
        ),
    }
}

/// Kernel parameters as path, value that is needed, value found.
pub fn sysctls<'a>(found: impl IntoIterator<Item = (&'a str, &'a str, Option<String>)>) -> pb::Check {
    let mut total = 0_usize;
    let wrong: Vec<String> = found
        .into_iter()
        .inspect(|_| total += 1)
        .filter(|(_, wanted, value)| value.as_deref() != Some(*wanted))
        .map(|(path, wanted, value)| {
            format!("{} is {}, not {wanted}", path.replace('/', "."), value.as_deref().unwrap_or("not there"))
        })
        .collect();
    if wrong.is_empty() {
        return ok("sysctls", format!("all {total} as needed"));
    }
    fail(
        "sysctls",
        wrong.join("; "),
        "shoald sets them again within seconds; find out what else sets them (/etc/sysctl.d, another agent)",
    )
}

/// Bytes that the file system of the state directory has free.
pub fn disk(free: u64) -> pb::Check {
    let evidence = format!("{} MiB free for the state directory", free / MIB);
    let fix = "make room: without it no change of the swarm is taken up";
    match free {
        0..DISK_FAIL => fail("disk", evidence, fix),
        DISK_FAIL..DISK_WARN => warn("disk", evidence, fix),
        _ => ok("disk", evidence),
    }
}

/// The longest of a few writes that waited for the disk.
pub fn fsync(longest: Duration, writes: u32) -> pb::Check {
    let evidence = format!("the longest of {writes} took {:.1} ms", longest.as_secs_f64() * 1000.0);
    if longest > FSYNC_WARN {
        return warn("fsync", evidence, "put the state directory on a faster disk, or one with less to do");
    }
    ok("fsync", evidence)
}

/// `/proc/meminfo`.
pub fn memory(meminfo: &str) -> pb::Check {
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse::<u64>().ok());
    let Some(kib) = available else {
        return unseen("memory", &"/proc/meminfo does not say what is available");
    };
    let evidence = format!("{} MiB available", kib / 1024);
    if kib * 1024 < MEMORY_WARN {
        return warn("memory", evidence, "stop something, or give the host more memory");
    }
    ok("memory", evidence)
}

/// Files with secrets and their modes.
pub fn modes(found: &[(String, u32)]) -> pb::Check {
    let open: Vec<&(String, u32)> = found.iter().filter(|(_, mode)| mode & 0o077 != 0).collect();
    if open.is_empty() {
        return ok("file-modes", format!("{} paths with secrets are root's alone", found.len()));
    }
    let list: Vec<String> = open.iter().map(|(path, mode)| format!("{path} has {mode:04o}")).collect();
    let paths: Vec<&str> = open.iter().map(|(path, _)| path.as_str()).collect();
    fail("file-modes", list.join("; "), format!("chmod go= {}", paths.join(" ")))
}

/// Where names outside are asked for.
pub fn resolvers(resolv_conf: &str) -> pb::Check {
    let servers: Vec<&str> = resolv_conf
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()).flatten()
        })
        .collect();
    if servers.is_empty() {
        return warn(
            "resolvers",
            "the host has no name server: for names outside the swarm tasks ask what listens on 127.0.0.1",
            "add a nameserver to /etc/resolv.conf",
        );
    }
    ok("resolvers", servers.join(", "))
}

/// A VXLAN device: its name, its UDP port, whether it is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanUse {
    /// Name.
    pub name: String,
    /// UDP port.
    pub port: u16,
    /// MTU.
    pub mtu: u32,
    /// Whether it has our mark.
    pub ours: bool,
}

/// Whether anybody else has the port of the overlay.
pub fn vxlan_port(devices: &[VxlanUse], port: u16) -> pb::Check {
    let others: Vec<&str> =
        devices.iter().filter(|d| !d.ours && d.port == port).map(|d| d.name.as_str()).collect();
    if others.is_empty() {
        return ok("overlay-port", format!("no other VXLAN device has {port}/udp"));
    }
    fail(
        "overlay-port",
        format!("{port}/udp is also the port of {}", others.join(", ")),
        "give the other device another port, or make the swarm with --data-path-port",
    )
}

/// Whether frames of the overlay fit the link below with `overhead` bytes added.
pub fn mtu(devices: &[VxlanUse], underlay: u32, overhead: u32) -> pb::Check {
    let large: Vec<String> = devices
        .iter()
        .filter(|d| d.ours && d.mtu.saturating_add(overhead) > underlay)
        .map(|d| format!("{} ({})", d.name, d.mtu))
        .collect();
    if large.is_empty() {
        return ok(
            "mtu",
            format!("the link below the overlay takes {underlay} bytes, of which {overhead} are its own"),
        );
    }
    fail(
        "mtu",
        format!(
            "too large for a link of {underlay} bytes, less {overhead} of the tunnel: {}",
            large.join(", ")
        ),
        "raise the link's MTU, or set network.mtu to what it takes",
    )
}

/// What is left of the node certificate's life; `now` in milliseconds of Unix time.
pub fn certificate(info: &pb::LocalNode, now: u64) -> pb::Check {
    let left = info.cert_expires_at_ms.saturating_sub(now);
    let span = match left {
        ..MINUTE_MS => format!("{} s", left / 1000),
        MINUTE_MS..HOUR_MS => format!("{} min", left / MINUTE_MS),
        _ => format!("{} h", left / HOUR_MS),
    };
    if left == 0 {
        return fail(
            "certificate",
            "expired",
            "join again: 'shoal swarm leave --force', then 'shoal swarm join'",
        );
    }
    if info.cert_renewal_overdue {
        return warn(
            "certificate",
            format!("ends in {span}, and was not renewed when four fifths of its life were over"),
            "see that a manager can be reached, and the clock is right",
        );
    }
    ok("certificate", format!("lasts {span}"))
}

/// How full the programs' maps are.
pub fn maps(fills: &[pb::MapFill]) -> pb::Check {
    const FULL_PERCENT: u64 = 80;
    let percent = |fill: &pb::MapFill| fill.entries.saturating_mul(100) / fill.limit.max(1);
    let say = |fill: &pb::MapFill| {
        format!("{} holds {} of {} entries ({} %)", fill.map, fill.entries, fill.limit, percent(fill))
    };
    let full: Vec<_> = fills.iter().filter(|fill| percent(fill) >= FULL_PERCENT).collect();
    if full.is_empty() {
        let fullest = fills.iter().max_by_key(|fill| percent(fill));
        return ok("maps", fullest.map_or_else(|| "not looked at yet".to_owned(), say));
    }
    let of_flows = |fill: &&pb::MapFill| ["FLOWS", "REPLIES"].contains(&fill.map.as_str());
    let mut fixes = Vec::new();
    if full.iter().any(of_flows) {
        fixes.push("the flows that were idle longest make room for new ones: raise network.flow_entries");
    }
    if !full.iter().all(of_flows) {
        fixes.push("what doesn't fit is not programmed: spread services over more swarms");
    }
    warn("maps", full.into_iter().map(say).collect::<Vec<_>>().join("; "), fixes.join("; "))
}

/// Programs of the host that published ports leave nothing to.
pub fn published_ports(shadowed: &[String]) -> pb::Check {
    if shadowed.is_empty() {
        return ok("published-ports", "no program of this host listens on one");
    }
    warn(
        "published-ports",
        shadowed.join("; "),
        "publish another port, or have the program use another ('ss -lntup' shows which it is)",
    )
}

/// What the membership is like.
pub fn membership(info: &pb::LocalNode) -> Vec<pb::Check> {
    let session = if info.connected {
        ok("session", format!("of swarm '{}', a manager keeps it up to date", info.cluster_name))
    } else {
        fail(
            "session",
            "no manager keeps the node up to date; what is programmed stays as it is",
            format!("see that a manager runs and can be reached: {}", info.manager_addrs.join(", ")),
        )
    };
    let (applied, wanted) = (info.applied_generation, info.generation);
    let programmed = if !info.warnings.is_empty() {
        fail("programmed", info.warnings.join("; "), "see the log of shoald")
    } else if applied < wanted {
        warn("programmed", format!("generation {applied} of {wanted}"), "wait a moment and look again")
    } else {
        ok("programmed", format!("generation {applied}, all as wanted"))
    };
    let drift = match info.drift_repairs_total {
        0 => ok("drift", "nobody else changed what is shoal's"),
        n => warn(
            "drift",
            format!("{n} objects that somebody else changed were put right since shoald started"),
            "shoal_agent_drift_repairs_total says of what kind; find out who changes them",
        ),
    };
    vec![session, programmed, drift]
}

/// Objects of ours on a node that is in no swarm.
pub fn leftovers(found: &[String]) -> pb::Check {
    if found.is_empty() {
        return ok("leftovers", "nothing of a former membership is left");
    }
    warn(
        "leftovers",
        found.join("; "),
        "shoald takes up what it can; to remove all: stop it, 'shoald cleanup'",
    )
}

/// Managers and what became of connecting to each.
pub fn managers(tried: &[(std::net::SocketAddr, Result<(), String>)]) -> Vec<pb::Check> {
    let judge = |(address, outcome): &(std::net::SocketAddr, Result<(), String>)| match outcome {
        Ok(()) => ok("managers", format!("{address}/tcp takes connections")),
        Err(error) => fail(
            "managers",
            format!("{address}/tcp cannot be reached from here: {error}"),
            "see that the manager runs, and that no firewall between is in the way",
        ),
    };
    tried.iter().map(judge).collect()
}

#[cfg(test)]
mod tests;
