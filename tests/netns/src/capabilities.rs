//! What scenarios may need of the kernel and of the engine, and whether it is there.

use std::path::Path;

use crate::command::Run;
use crate::host::Host;

/// Chooses the engine of every `shoald` that a fixture starts, which all inherit it.
const ENGINE_SETTING: &str = "SHOAL_NETWORK_LB_ENGINE";

/// The load balancing engine that the environment asks for; none leaves the choice to `shoald`.
pub fn wanted_engine() -> Option<String> {
    std::env::var(ENGINE_SETTING).ok().filter(|engine| !engine.is_empty())
}

/// Something that not every run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// IPVS in the kernel.
    Ipvs,
    /// Load balancing by eBPF: what is promised for that engine alone.
    EbpfEngine,
    /// A kernel that takes nftables of the family `inet`: tasks' way out of the overlay.
    Nftables,
}

impl Need {
    /// Why a run can't have it, if it can't.
    pub fn lacking(self) -> Option<&'static str> {
        match self {
            Self::Ipvs if !has_ipvs() => Some("the kernel has no IPVS"),
            Self::EbpfEngine if wanted_engine().as_deref() == Some("ipvs") => {
                Some("promised by engine ebpf only")
            }
            Self::Nftables if !has_nftables() => Some("the kernel has no nftables"),
            _ => None,
        }
    }
}

fn has_ipvs() -> bool {
    // Loaded on demand where it is a module.
    drop(Run::line("modprobe -q ip_vs").output());
    Path::new("/proc/net/ip_vs").exists()
}

fn has_nftables() -> bool {
    let Ok(host) = Host::new("probe") else { return false };
    host.run_line("nft add table inet probe").stdout().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_ebpf_is_there_unless_the_other_is_asked_for() {
        // The environment of a test run names no engine.
        assert_eq!(wanted_engine(), None);
        assert_eq!(Need::EbpfEngine.lacking(), None);
    }
}
