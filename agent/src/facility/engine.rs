//! Which engine balances here: the node's own setting, else the cluster's, as far as the kernel can.

use std::time::{Duration, Instant};

use shoal_plan::Engine;
use shoal_types::LbEngine;
use shoal_types::lb::LbInUse;

use crate::drivers::ipvs::{KernelTable, settings};
use crate::drivers::link::Writes;

/// A module may be loaded later: a kernel without IPVS is asked again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// The choice, and what it rests on.
pub(super) struct EngineChoice {
    /// The node's own setting.
    setting: LbEngine,
    /// Whether the kernel gave us IPVS, and when it was asked.
    asked: Option<(Instant, bool)>,
    /// Whether tasks behind netkit have kept it from IPVS, which is told once.
    is_kept: bool,
    /// What came of it.
    in_force: LbInUse,
}

impl EngineChoice {
    pub(super) fn new(setting: LbEngine) -> Self {
        Self { setting, asked: None, is_kept: false, in_force: LbInUse::default() }
    }

    /// What new flows go to: by the node's setting, else by the cluster's. `netkit`: whether tasks are behind such devices,
    /// which IPVS can't be reached from. `lingers` tells whether IPVS still has flows; it is only asked where that matters.
    pub(super) fn choose<E>(
        &mut self,
        cluster: LbEngine,
        netkit: bool,
        lingers: impl FnOnce() -> Result<bool, E>,
    ) -> Result<Engine, E> {
        let wanted = if self.setting == LbEngine::Auto { cluster } else { self.setting };
        let engine = match wanted.resolved() {
            LbEngine::Ipvs if !self.is_kept_by(netkit) && self.has_ipvs() => Engine::Ipvs,
            _ if lingers()? => Engine::EbpfAfterIpvs,
            _ => Engine::Ebpf,
        };
        let in_force = LbInUse {
            engine: if engine == Engine::Ipvs { LbEngine::Ipvs } else { LbEngine::Ebpf },
            ipvs: engine == Engine::Ipvs || settings::is_available(),
            lingering: engine == Engine::EbpfAfterIpvs,
        };
        if in_force != self.in_force {
            tracing::info!(engine = %in_force.engine, lingering = in_force.lingering, "balancing");
            self.in_force = in_force;
        }
        Ok(engine)
    }

    /// What is in force.
    pub(super) fn in_force(&self) -> LbInUse {
        self.in_force
    }

    /// Whether it must stay with eBPF for the sake of tasks behind netkit, until they are replaced.
    fn is_kept_by(&mut self, netkit: bool) -> bool {
        if netkit && !self.is_kept {
            tracing::warn!(
                "engine ipvs is set, and tasks are behind netkit devices: balancing by ebpf until they are replaced"
            );
        }
        self.is_kept = netkit;
        netkit
    }

    /// Whether the kernel has IPVS; loads its module if need be.
    fn has_ipvs(&mut self) -> bool {
        match self.asked {
            Some((_, true)) => return true,
            Some((when, false)) if when.elapsed() < ASK_AGAIN => return false,
            _ => {}
        }
        let has = match KernelTable::open_here(Writes::default()) {
            Ok(_) => true,
            Err(error) => {
                // An engine that answers is better than one that was asked for.
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "engine ipvs is set and can't be had: balancing by ebpf"
                );
                false
            }
        };
        self.asked = Some((Instant::now(), has));
        has
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(setting: LbEngine, cluster: LbEngine, has: bool, lingers: bool) -> (Engine, LbInUse) {
        let mut choice = EngineChoice::new(setting);
        choice.asked = Some((Instant::now(), has));
        let engine = choice.choose(cluster, false, || Ok::<_, ()>(lingers)).expect("can't fail");
        (engine, choice.in_force())
    }

    #[test]
    fn the_nodes_setting_counts_more_than_the_clusters() {
        use LbEngine::{Auto, Ebpf, Ipvs};
        for (setting, cluster, wanted) in [
            (Auto, Auto, Engine::Ebpf),
            (Auto, Ipvs, Engine::Ipvs),
            (Ebpf, Ipvs, Engine::Ebpf),
            (Ipvs, Ebpf, Engine::Ipvs),
            (Ipvs, Auto, Engine::Ipvs),
        ] {
            assert_eq!(choose(setting, cluster, true, false).0, wanted, "{setting} in {cluster}");
        }
    }

    #[test]
    fn a_kernel_without_ipvs_balances_all_the_same_and_says_how() {
        let (engine, in_force) = choose(LbEngine::Ipvs, LbEngine::Ipvs, false, false);
        assert_eq!((engine, in_force.engine), (Engine::Ebpf, LbEngine::Ebpf));
    }

    #[test]
    fn tasks_behind_netkit_keep_it_from_ipvs_until_they_are_replaced() {
        let mut choice = EngineChoice::new(LbEngine::Auto);
        choice.asked = Some((Instant::now(), true));
        let mut chosen =
            |netkit| choice.choose(LbEngine::Ipvs, netkit, || Ok::<_, ()>(false)).expect("can't fail");
        assert_eq!([true, true, false].map(&mut chosen), [Engine::Ebpf, Engine::Ebpf, Engine::Ipvs]);
    }

    #[test]
    fn flows_that_are_left_linger() {
        let (engine, in_force) = choose(LbEngine::Auto, LbEngine::Ebpf, true, true);
        assert_eq!(engine, Engine::EbpfAfterIpvs);
        assert!(in_force.uses_ipvs());
    }
}
