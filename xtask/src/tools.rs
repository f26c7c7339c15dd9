//! Programs that tasks need and a fresh Debian 12 lacks.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use shoal_netns::Run;

/// A program and the Debian package that brings it.
pub(crate) struct Tool {
    program: &'static str,
    package: &'static str,
}

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}

/// What fixtures of any kind are made with.
pub(crate) const FIXTURE: [Tool; 2] = [tool("ip", "iproute2"), tool("sysctl", "procps")];
/// What the demo runs, and looks with.
pub(crate) const DEMO: [Tool; 5] = [
    tool("busybox", "busybox-static"),
    tool("conntrack", "conntrack"),
    tool("curl", "curl"),
    tool("dig", "bind9-dnsutils"),
    tool("nft", "nftables"),
];
/// What scenarios look with, and tasks of tests are written in.
pub(crate) const SCENARIOS: [Tool; 4] = [
    tool("conntrack", "conntrack"),
    tool("dig", "bind9-dnsutils"),
    tool("nft", "nftables"),
    tool("python3", "python3"),
];
/// What the mesh is measured against, and with.
pub(crate) const BENCH: [Tool; 5] = [
    tool("nft", "nftables"),
    tool("haproxy", "haproxy"),
    tool("iperf3", "iperf3"),
    tool("iptables", "iptables"),
    tool("ipvsadm", "ipvsadm"),
];

/// Installs the packages of those programs that are missing.
pub(crate) fn ensure_tools<'a>(tools: impl IntoIterator<Item = &'a Tool>) -> anyhow::Result<()> {
    let missing: Vec<_> =
        tools.into_iter().filter(|tool| !is_installed(tool.program)).map(|tool| tool.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    ensure!(
        is_installed("apt-get"),
        "missing programs from the packages {}: install them",
        missing.join(" ")
    );
    Run::line("apt-get update -q").stdout()?;
    Run::new("apt-get")
        .args(["install", "-y", "-q", "--no-install-recommends"])
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout()
        .map(drop)
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(sbin).any(|directory| directory.join(program).exists())
}

/// The checkout.
pub(crate) fn root() -> anyhow::Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the xtask package has no parent directory")
}

/// Cargo in the checkout, as from a shell: what cargo tells the xtask about the xtask's own package would be taken for
/// a change by build scripts that look at it, and have their packages built anew.
pub(crate) fn cargo_command() -> anyhow::Result<Command> {
    let mut command = Command::new("cargo");
    command.current_dir(root()?);
    for (name, _) in std::env::vars_os() {
        let own = name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"));
        if own {
            command.env_remove(name);
        }
    }
    Ok(command)
}

/// Runs cargo in the checkout, its output going to the terminal.
pub(crate) fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    let status = cargo_command()?.args(arguments).status().context("can't run cargo")?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> anyhow::Result<PathBuf> {
    // xtask itself lies in <target>/<profile>/.
    let own = std::env::current_exe()?;
    Ok(own.ancestors().nth(2).context("xtask isn't in a target directory")?.to_owned())
}
