//! What scenarios may need of the kernel and of the engine, and whether it is there.

use crate::host::Host;

/// Chooses the engine of every `shoald` that a fixture starts, which all inherit it.
pub(crate) const ENGINE_SETTING: &str = "SHOAL_NETWORK_LB_ENGINE";

/// The load balancing engine that the environment asks for; none leaves the choice to `shoald`.
pub fn wanted_engine() -> Option<String> {
    std::env::var(ENGINE_SETTING).ok().filter(|engine| !engine.is_empty())
}

/// Something that not every run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A run by engine ipvs: what is told of that engine alone needs telling once.
    IpvsEngine,
    /// A run by engine ebpf: with the other a virtual service chooses, and there is nothing to lead connections by.
    EbpfEngine,
    /// A kernel that takes nftables of the family `inet`: tasks' way out of the overlay.
    Nftables,
    /// A kernel that has VLAN devices.
    Vlans,
}

impl Need {
    /// Why a run can't have it, if it can't.
    pub fn lacking(self) -> Option<&'static str> {
        match self {
            Self::IpvsEngine if wanted_engine().as_deref() != Some("ipvs") => Some("about engine ipvs"),
            Self::EbpfEngine if wanted_engine().as_deref() == Some("ipvs") => Some("about engine ebpf"),
            Self::Nftables if !has_nftables() => Some("the kernel has no nftables"),
            Self::Vlans if !has_vlans() => Some("the kernel has no VLAN devices"),
            _ => None,
        }
    }
}

fn has_vlans() -> bool {
    let Ok(host) = Host::new("probe") else { return false };
    host.ip("link add br0 type bridge").is_ok()
        && host.ip("link add link br0 name br0.7 type vlan id 7").is_ok()
}

fn has_nftables() -> bool {
    let Ok(host) = Host::new("probe") else { return false };
    host.run_line("nft add table inet probe").stdout().is_ok()
}
