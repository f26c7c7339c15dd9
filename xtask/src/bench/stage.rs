//! What paths are set up on: each kind of path in namespaces of its own, so that none pays for another.

use shoal_netns::Programs;

use super::chain::Chain;
use super::devices::Devices;
use super::docker::Docker;
use super::kernel_release;
use super::lacks_ipvs;
use super::measure::Loader;
use super::nodes::{Engine, Nodes};
use super::path::{Case, Path};
use super::programs;
use super::swarm::Swarm;
use crate::interrupt::Interrupt;

pub(crate) struct Stage {
    /// The kernel's own means.
    pub(crate) chain: Chain,
    /// A namespace behind the devices alone.
    pub(crate) devices: Option<Devices>,
    /// The same hosts as nodes of shoal.
    pub(crate) ebpf: Option<Nodes>,
    /// The same with tasks behind netkit.
    pub(crate) netkit: Option<Nodes>,
    pub(crate) ipvs: Option<Nodes>,
    /// The same hosts as Docker would set them up.
    pub(crate) docker: Option<Docker>,
    /// The same hosts with Docker on them.
    pub(crate) swarm: Option<Swarm>,
}

/// A path without figures.
pub(crate) struct NotRun {
    pub(crate) path: Path,
    pub(crate) reason: String,
    /// Whether the kernel lacks something, which is no failure.
    pub(crate) is_expected: bool,
}

impl Stage {
    /// Sets up what these paths need. Those that can't be had, with the reason, leave the others running.
    pub(crate) fn set(
        paths: &[Path],
        load: &Loader,
        programs: &Programs,
        interrupt: &Interrupt,
    ) -> anyhow::Result<(Self, Vec<NotRun>)> {
        let chain = Chain::new(load)?;
        let mut stage =
            Self { chain, devices: None, ebpf: None, netkit: None, ipvs: None, docker: None, swarm: None };
        let mut not_run = Vec::new();
        for &path in paths {
            interrupt.check()?;
            if let Some(reason) = stage.lacks(path)? {
                not_run.push(NotRun { path, reason, is_expected: true });
            } else if let Err(error) = stage.prepare(path, load, programs) {
                not_run.push(NotRun { path, reason: format!("{error:#}"), is_expected: false });
            }
        }
        Ok((stage, not_run))
    }

    /// What the kernel lacks for a path.
    fn lacks(&self, path: Path) -> anyhow::Result<Option<String>> {
        Ok(match path {
            // Its daemons take paths of the system that have one place each, and a kernel with nftables.
            Path::Swarm if programs::guest().as_deref() != Some("qemu") => {
                Some("Docker's daemon is run in guests only: --vm qemu".to_owned())
            }
            Path::Ipvs | Path::Docker | Path::Swarm => lacks_ipvs(),
            Path::Netkit if !self.chain.has_netkit() => {
                Some("this kernel has no netkit (try --vm qemu)".to_owned())
            }
            Path::Nft => self.chain.lacks_nftables()?,
            // Its programs are attached by TCX.
            Path::Devices if !has_tcx(&kernel_release()?) => {
                Some("this kernel has no TCX: as of 6.6".to_owned())
            }
            Path::Bare | Path::Devices | Path::Routed | Path::Ebpf | Path::Netkit | Path::Haproxy => None,
        })
    }

    /// Sets up what a path needs, and asks each server once.
    fn prepare(&mut self, path: Path, load: &Loader, programs: &Programs) -> anyhow::Result<()> {
        match path {
            Path::Devices => self.devices = Some(Devices::start(&self.chain, load)?),
            Path::Ebpf => self.ebpf = Some(Nodes::start(load, programs, Engine::Ebpf)?),
            Path::Netkit => self.netkit = Some(Nodes::start(load, programs, Engine::Netkit)?),
            Path::Ipvs => self.ipvs = Some(Nodes::start(load, programs, Engine::Ipvs)?),
            Path::Docker => self.docker = Some(Docker::start(load)?),
            Path::Swarm => self.swarm = Some(Swarm::start(load)?),
            Path::Bare | Path::Routed | Path::Nft | Path::Haproxy => {}
        }
        for case in Case::ALL.into_iter().filter(|&case| path.leads(case)) {
            path.open(self, case)?;
        }
        Ok(())
    }

    /// Takes down what doesn't end with its handle.
    pub(crate) fn strike(self) -> anyhow::Result<()> {
        self.swarm.map_or(Ok(()), Swarm::dissolve)?;
        [self.ebpf, self.netkit, self.ipvs].into_iter().flatten().try_for_each(Nodes::dissolve)
    }
}

/// Whether programs can be attached by TCX, as of Linux 6.6.
fn has_tcx(release: &str) -> bool {
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(6))
}

#[cfg(test)]
mod tests {
    use super::has_tcx;

    #[test]
    fn tcx_came_with_a_release() {
        for (release, has) in [
            ("6.1.0-27-amd64", false),
            ("5.19.17", false),
            ("6.6.1", true),
            ("6.12.48+deb13", true),
            ("7.0-rc1", true),
        ] {
            assert_eq!(has_tcx(release), has, "{release}");
        }
    }
}
