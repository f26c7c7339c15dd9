//! Who asked, who holds it, what to do next.

use shoal_types::lb::{LbEngine, LbPolicy};
use shoal_types::port::PortPlace;

use super::{Kind, Rejection};
use crate::clock_text::utc;
use crate::some_of::some_of;

/// A place as `--publish-rm` takes it.
fn removal_of(place: PortPlace) -> String {
    let ip = place.addr.map(|addr| format!(",ip={addr}")).unwrap_or_default();
    format!("published={},protocol={}{ip}", place.port, place.protocol)
}

impl Rejection {
    /// Where it comes from: who asked, who holds it.
    pub fn context(&self) -> Vec<String> {
        match self {
            Self::PortTaken { asked_by, holder, since, .. } => {
                vec![
                    format!("asked by: service '{asked_by}' (ingress)"),
                    format!("held by: {holder}, since {}", utc(*since)),
                ]
            }
            Self::PortOverlap { asked_by, mode, holder, since, .. } => {
                vec![
                    format!("asked by: service '{asked_by}' ({mode})"),
                    format!("held by: {holder}, since {}", utc(*since)),
                ]
            }
            Self::PortsExhausted { asked_by, .. } | Self::PortsUnequal { asked_by, .. } => {
                vec![format!("asked by: service '{asked_by}' (ingress)")]
            }
            Self::Ambiguous { matches, .. } => matches.iter().map(|m| format!("matches: {m}")).collect(),
            Self::NameTaken { kind, holder, since, .. } => {
                vec![format!("held by: {kind} {holder}, since {}", utc(*since))]
            }
            Self::VersionConflict { changed_at, .. } => vec![format!("changed at: {}", utc(*changed_at))],
            Self::SubnetOverlap { asked_by, holder, held, .. } => {
                vec![
                    format!("asked by: network '{asked_by}'"),
                    format!("held by: network '{holder}' ({held})"),
                ]
            }
            Self::SubnetExhausted { asked_by, .. } => vec![format!("asked by: {asked_by}")],
            Self::PolicyUnsupported { policy, engine, nodes, .. } => {
                let shown = if *engine == LbEngine::Auto { "auto (ebpf)" } else { engine.as_str() };
                let mut lines = vec![format!("engine of the swarm: {shown}")];
                if !nodes.is_empty() {
                    lines.push(format!("on engine {}: {}", without(*policy), some_of(nodes)));
                }
                lines
            }
            Self::EngineInUse { policy, services, .. } => {
                vec![format!("by {policy}: {}", some_of(services))]
            }
            Self::EngineMissing { nodes } => vec![format!("without IPVS: {}", some_of(nodes))],
            Self::InUse { by, .. } => by.iter().map(|b| format!("used by: {b}")).collect(),
            _ => Vec::new(),
        }
    }

    /// What to do next.
    pub fn help(&self) -> String {
        match self {
            Self::NotInitialized => {
                "run 'shoal swarm init' here, or 'shoal swarm join' with a token of a cluster".into()
            }
            Self::AlreadyInitialized { .. } => "run 'shoal swarm leave' first".into(),
            Self::InvalidField { help, .. } => help.clone(),
            Self::NotFound { kind, .. } => match kind {
                Kind::Token => "list them with 'shoal swarm token ls'".into(),
                kind => format!("list them with 'shoal {kind} ls'"),
            },
            Self::Ambiguous { .. } => "give more characters of the id, or the name".into(),
            Self::NameTaken { removing: true, .. } => {
                "it is being removed; try again in a few seconds, or choose another name".into()
            }
            Self::NameTaken { kind, name, .. } => {
                format!("choose another name, or remove it with 'shoal {kind} rm {name}'")
            }
            Self::IdTaken { .. } | Self::RequestReused { .. } => {
                "send the command again with a new request id".into()
            }
            Self::VersionConflict { .. } => "re-run, or overwrite with '--force-version'".into(),
            Self::Removing { .. } => "wait until it is gone, then create it again".into(),
            Self::PortTaken { removing: true, holder, .. }
            | Self::PortOverlap { removing: true, holder, .. } => {
                format!("'{holder}' is being removed and still drains; try again in a few seconds")
            }
            Self::PortTaken { holder, holder_target, .. } => format!(
                "choose another port, or 'shoal service update --publish-rm {holder_target} {holder}'"
            ),
            Self::PortOverlap { holder, held, .. } => format!(
                "choose another port or address, or 'shoal service update --publish-rm {} {holder}'",
                removal_of(*held)
            ),
            Self::HostPortInUse { node, asked_by, .. } => format!(
                "choose another port, or keep '{asked_by}' off the node first: 'shoal service update \
                 --constraint-add node.hostname!={node} {asked_by}'"
            ),
            Self::PolicyUnsupported { policy, engine, .. } => policy_help(*policy, *engine),
            Self::EngineInUse { services, .. } => {
                let first = services.first().map_or("NAME", |name| name.as_str());
                format!("give each of them another policy first: 'shoal service update --lb auto {first}'")
            }
            Self::EngineMissing { .. } => {
                "load the module there ('modprobe ip_vs'), or keep these nodes on eBPF by lb_engine = \"ebpf\" under \
                 [network] in their settings"
                    .into()
            }
            Self::PortsUnequal { protocol, target, .. } => {
                format!("publish the port that the tasks listen on: '-p {target}:{target}/{protocol}'")
            }
            Self::PortsExhausted { .. } => "publish a port of your choice: '-p 8080:80'".into(),
            other => other.help_on_networks(),
        }
    }

    fn help_on_networks(&self) -> String {
        match self {
            Self::SubnetOverlap { .. } => {
                "choose another subnet, or leave it out to take a free one from the pools".into()
            }
            Self::AddressInOverlay { .. } => {
                "give the host an address outside the overlays, or the network another subnet; 'shoal network ls' \
                 shows those in use"
                    .into()
            }
            Self::AddressTaken { holder, .. } => {
                format!(
                    "give each host its own data address, or remove '{holder}' with 'shoal node rm --force {holder}'"
                )
            }
            Self::SubnetExhausted { .. } => {
                "ask for fewer replicas, remove services that are on the network, or \
                 create a larger one with 'shoal network create --subnet' and move the service there"
                    .into()
            }
            Self::PoolExhausted { .. } => {
                "remove networks that are not used, or give a subnet: 'shoal network create --subnet'".into()
            }
            Self::NumbersExhausted { .. } => {
                "found a new cluster; this one has lived through all numbers".into()
            }
            Self::InUse { kind: Kind::Network, .. } => {
                "remove these services, or take them off the network, then try again".into()
            }
            Self::InUse { .. } => "remove what uses it, then try again".into(),
            Self::IngressStays { .. } => "publish no port if you don't want it used".into(),
            other => other.help_on_members(),
        }
    }

    fn help_on_members(&self) -> String {
        match self {
            Self::NodeAlive { node, .. } => format!(
                "run 'shoal swarm leave' on it, or remove it at once with 'shoal node rm --force {node}'"
            ),
            Self::LastManager { .. } => {
                "a cluster needs a manager; to end the cluster run 'shoal swarm leave --force' on it".into()
            }
            Self::IsManager { node } => format!("stop it, then run 'shoal node rm --force {node}'"),
            Self::TokenUnknown { .. } => {
                "copy the whole token again, or make a new one with 'shoal swarm token create'".into()
            }
            Self::TokenExpired { .. } | Self::TokenUsedUp { .. } => {
                "make a new one with 'shoal swarm token create'".into()
            }
            // Outdated, and whatever the matches above have answered already.
            _ => "nothing: the leader decides again on the new state".into(),
        }
    }
}

/// The engine that does not have a policy which one of the two lacks.
fn without(policy: LbPolicy) -> LbEngine {
    if policy.refused_by(LbEngine::Ipvs).is_some() { LbEngine::Ipvs } else { LbEngine::Ebpf }
}

/// What to do where an engine lacks a policy: that of the swarm, or of some nodes.
fn policy_help(policy: LbPolicy, engine: LbEngine) -> String {
    const OTHERS: &str = "choose another policy: auto, rr, maglev or source";
    let (lacking, having) = match without(policy) {
        LbEngine::Ipvs => (LbEngine::Ipvs, LbEngine::Ebpf),
        _ => (LbEngine::Ebpf, LbEngine::Ipvs),
    };
    if engine.resolved() == having {
        format!(
            "if they are still changing over, try again in a few seconds; if they are set to {lacking} themselves, take \
             lb_engine out of [network] in their settings; or {OTHERS}"
        )
    } else {
        format!("'shoal swarm update --lb-engine {having}', or {OTHERS}")
    }
}
