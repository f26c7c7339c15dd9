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

impl LbEngine {
    /// What a node without a wish of its own does: nobody's wish is eBPF.
    pub const fn resolved(self) -> Self {
        match self {
            Self::Auto | Self::Ebpf => Self::Ebpf,
            Self::Ipvs => Self::Ipvs,
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

/// What a node knows of its own balancing. It may change while the node runs: modules are loaded, flows end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LbInUse {
    /// What balances new flows.
    pub engine: LbEngine,
    /// Its kernel has IPVS.
    pub ipvs: bool,
    /// Flows that IPVS balances are left although the engine is another.
    pub lingering: bool,
}

impl Default for LbInUse {
    fn default() -> Self {
        Self { engine: LbEngine::Ebpf, ipvs: false, lingering: false }
    }
}

impl LbInUse {
    /// Whether packets may be forwarded by IPVS here, of new flows or of old ones.
    pub fn uses_ipvs(self) -> bool {
        self.engine == LbEngine::Ipvs || self.lingering
    }
}

/// What a node has said of its balancing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct NodeLb {
    /// Its own setting; auto follows the cluster.
    pub setting: LbEngine,
    /// What it does; `None` until it has said so.
    pub in_use: Option<LbInUse>,
}

impl NodeLb {
    const UNKNOWN: &str = "-";
    const IPVS: &str = "ipvs-able";
    const LINGERING: &str = "lingering";
    const SETTING: &str = "set-to-";

    /// The engine it is known to balance by, or will in any case.
    pub fn known_engine(self) -> Option<LbEngine> {
        match (self.setting, self.in_use) {
            (_, Some(used)) => Some(used.engine),
            (LbEngine::Auto, None) => None,
            (own, None) => Some(own),
        }
    }

    /// Whether packets may be forwarded by IPVS there.
    pub fn uses_ipvs(self) -> bool {
        self.in_use.map_or(self.setting == LbEngine::Ipvs, LbInUse::uses_ipvs)
    }
}

/// As states keep it: the engine in use, then what else holds, in words; nothing as long as it has said nothing.
impl fmt::Display for NodeLb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.in_use {
            None if self.setting == LbEngine::Auto => return Ok(()),
            None => f.write_str(Self::UNKNOWN)?,
            Some(used) => {
                f.write_str(used.engine.as_str())?;
                for (holds, word) in [(used.ipvs, Self::IPVS), (used.lingering, Self::LINGERING)] {
                    if holds {
                        write!(f, " {word}")?;
                    }
                }
            }
        }
        if self.setting == LbEngine::Auto { Ok(()) } else { write!(f, " {}{}", Self::SETTING, self.setting) }
    }
}

impl FromStr for NodeLb {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(' ');
        let mut used = match words.next() {
            None | Some("" | Self::UNKNOWN) => None,
            Some(engine) => {
                Some(LbInUse { engine: engine.parse::<LbEngine>()?.resolved(), ..LbInUse::default() })
            }
        };
        let mut setting = LbEngine::Auto;
        for word in words {
            match (word, &mut used, word.strip_prefix(Self::SETTING)) {
                (Self::IPVS, Some(used), _) => used.ipvs = true,
                (Self::LINGERING, Some(used), _) => used.lingering = true,
                (_, _, Some(engine)) => setting = engine.parse()?,
                _ => return Err(format!("'{word}' is nothing a node says of its balancing")),
            }
        }
        Ok(Self { setting, in_use: used })
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
    /// Drawn at random, each as likely as the others.
    Random,
}

impl LbPolicy {
    /// Every policy.
    pub const ALL: [Self; 6] =
        [Self::Auto, Self::RoundRobin, Self::LeastConnections, Self::Maglev, Self::Source, Self::Random];

    /// As it is written on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::RoundRobin => "rr",
            Self::LeastConnections => "leastconn",
            Self::Maglev => "maglev",
            Self::Source => "source",
            Self::Random => "random",
        }
    }

    /// Why an engine can't do it; `None` if it can.
    pub const fn refused_by(self, engine: LbEngine) -> Option<&'static str> {
        match (self, engine) {
            (Self::LeastConnections, LbEngine::Ebpf | LbEngine::Auto) => {
                Some("engine ebpf does not count the connections an endpoint has")
            }
            (Self::Random, LbEngine::Ipvs) => Some("the kernel's IPVS has no scheduler that draws at random"),
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
        Self::ALL.into_iter().find(|policy| policy.as_str() == text).ok_or_else(|| {
            format!("'{text}' is not a policy; use auto, rr, leastconn, maglev, source or random")
        })
    }
}

/// What share of new flows the tasks of a node get, beside others of the same service: from 0, none, to
/// [`Weight::MAX`]. Only the proportion to others counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Weight(u8);

impl Weight {
    /// The largest.
    pub const MAX: u8 = 100;
    /// No new flows.
    pub const ZERO: Self = Self(0);
    /// That of whom nobody gave another.
    pub const ONE: Self = Self(1);

    /// As a number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::ONE
    }
}

impl TryFrom<u32> for Weight {
    type Error = String;
    fn try_from(number: u32) -> Result<Self, String> {
        let fits = u8::try_from(number).ok().filter(|weight| *weight <= Self::MAX);
        fits.map(Self).ok_or_else(|| format!("{number} is not a weight; use 0 to {}", Self::MAX))
    }
}

impl From<Weight> for u32 {
    fn from(weight: Weight) -> Self {
        weight.0.into()
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
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
        assert!("fastest".parse::<LbPolicy>().is_err_and(|error| error.contains("leastconn")));
    }

    #[test]
    fn weights_are_0_to_100_and_1_unless_given() {
        assert_eq!(Weight::default().get(), 1);
        assert_eq!(Weight::try_from(0), Ok(Weight::ZERO));
        assert_eq!(Weight::try_from(100).map(Weight::get), Ok(100));
        assert_eq!(Weight::try_from(101), Err("101 is not a weight; use 0 to 100".to_owned()));
        assert!(Weight::try_from(257).is_err(), "not cut to 1");
        assert!(serde_json::from_str::<Weight>("101").is_err());
    }

    #[test]
    fn what_a_node_says_is_kept_in_words() {
        let bools = [(false, false), (true, false), (false, true), (true, true)];
        let used = [LbEngine::Ipvs, LbEngine::Ebpf]
            .into_iter()
            .flat_map(|engine| bools.map(|(ipvs, lingering)| Some(LbInUse { engine, ipvs, lingering })));
        for in_use in used.chain([None]) {
            for setting in [LbEngine::Auto, LbEngine::Ipvs, LbEngine::Ebpf] {
                let lb = NodeLb { setting, in_use };
                assert_eq!(lb.to_string().parse(), Ok(lb), "'{lb}'");
            }
        }
        let first_version = NodeLb { setting: LbEngine::Auto, in_use: Some(LbInUse::default()) };
        assert_eq!("ebpf".parse(), Ok(first_version), "all that the first version said");
        assert_eq!(NodeLb::default().to_string(), "");
        assert!("ebpf purple".parse::<NodeLb>().is_err_and(|error| error.contains("purple")));
        assert!("- lingering".parse::<NodeLb>().is_err());
    }

    #[test]
    fn what_is_not_said_is_not_known() {
        let lb = |setting, in_use| NodeLb { setting, in_use };
        let ipvs = LbInUse { engine: LbEngine::Ipvs, ipvs: true, lingering: false };
        let left = LbInUse { lingering: true, ..LbInUse::default() };
        assert_eq!(lb(LbEngine::Auto, None).known_engine(), None);
        assert_eq!(lb(LbEngine::Ebpf, None).known_engine(), Some(LbEngine::Ebpf));
        assert_eq!(lb(LbEngine::Auto, Some(ipvs)).known_engine(), Some(LbEngine::Ipvs));
        assert!(lb(LbEngine::Auto, Some(ipvs)).uses_ipvs() && lb(LbEngine::Ipvs, None).uses_ipvs());
        assert!(lb(LbEngine::Auto, Some(left)).uses_ipvs(), "flows of before are left");
        assert!(!lb(LbEngine::Auto, None).uses_ipvs());
        assert!(!lb(LbEngine::Ipvs, Some(LbInUse::default())).uses_ipvs(), "it could not do as set");
    }

    #[test]
    fn two_policies_need_an_engine() {
        for policy in LbPolicy::ALL {
            assert_eq!(policy.refused_by(LbEngine::Ipvs).is_some(), policy == LbPolicy::Random, "{policy}");
            assert_eq!(
                policy.refused_by(LbEngine::Ebpf).is_some(),
                policy == LbPolicy::LeastConnections,
                "{policy}"
            );
        }
    }
}
