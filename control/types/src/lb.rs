//! Load balancing as an operator speaks of it: engines and policies.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What balances: asked for, for the cluster or for one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LbEngine {
    /// Nobody cares: a node follows the cluster, and the cluster takes eBPF, which every supported kernel has.
    #[default]
    Auto,
    /// The kernel's virtual services, in namespaces of ours.
    Ipvs,
    /// Maps and programs of ours.
    Ebpf,
}

impl LbEngine {
    /// As it is written in settings and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Ipvs => "ipvs",
            Self::Ebpf => "ebpf",
        }
    }
}

impl fmt::Display for LbEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for LbEngine {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Auto, Self::Ipvs, Self::Ebpf]
            .into_iter()
            .find(|engine| engine.as_str() == text)
            .ok_or_else(|| format!("'{text}' is not an engine; use auto, ipvs or ebpf"))
    }
}

/// How the new flows of a service are spread over its endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LbPolicy {
    /// What fits the engine and the way in: consistent where a flow may enter by another node, cheap elsewhere.
    #[default]
    Auto,
    /// One endpoint after the other.
    RoundRobin,
    /// The endpoint with the fewest connections.
    LeastConnections,
    /// By a hash of the flow, consistently: the same endpoint on every node, and few flows move when endpoints do.
    Maglev,
    /// By a hash of the client's address, consistently: a client stays with its endpoint.
    Source,
}

impl LbPolicy {
    /// Every policy.
    pub const ALL: [Self; 5] =
        [Self::Auto, Self::RoundRobin, Self::LeastConnections, Self::Maglev, Self::Source];

    /// As it is written on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::RoundRobin => "rr",
            Self::LeastConnections => "leastconn",
            Self::Maglev => "maglev",
            Self::Source => "source",
        }
    }

    /// Why an engine can't do it; `None` if it can.
    pub const fn refused_by(self, engine: LbEngine) -> Option<&'static str> {
        match (self, engine) {
            (Self::LeastConnections, LbEngine::Ebpf | LbEngine::Auto) => {
                Some("engine ebpf does not count the connections an endpoint has")
            }
            _ => None,
        }
    }
}

impl fmt::Display for LbPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for LbPolicy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.as_str() == text)
            .ok_or_else(|| format!("'{text}' is not a policy; use auto, rr, leastconn, maglev or source"))
    }
}

/// Whether the virtual IPs of services stand on the loopbacks of their tasks, where a balancer that forwards without
/// translating (direct routing) needs them. They must be everywhere before the first node forwards so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DirectRouting {
    /// They don't, and no node forwards so.
    #[default]
    Off,
    /// They are being put there.
    Preparing,
    /// Every node has them: a node may forward so.
    Ready,
}

impl DirectRouting {
    /// As it goes over the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
        }
    }
}

impl fmt::Display for DirectRouting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DirectRouting {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Off, Self::Preparing, Self::Ready]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| format!("'{text}' is not a state of direct routing"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip_and_others_are_refused_with_the_right_ones() {
        for engine in [LbEngine::Auto, LbEngine::Ipvs, LbEngine::Ebpf] {
            assert_eq!(engine.to_string().parse(), Ok(engine));
        }
        for policy in LbPolicy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        assert!("iptables".parse::<LbEngine>().is_err_and(|error| error.contains("ebpf")));
        assert!("random".parse::<LbPolicy>().is_err_and(|error| error.contains("leastconn")));
    }

    #[test]
    fn only_least_connections_needs_an_engine() {
        for policy in LbPolicy::ALL {
            assert_eq!(policy.refused_by(LbEngine::Ipvs), None, "{policy}");
            assert_eq!(
                policy.refused_by(LbEngine::Ebpf).is_some(),
                policy == LbPolicy::LeastConnections,
                "{policy}"
            );
        }
    }
}
