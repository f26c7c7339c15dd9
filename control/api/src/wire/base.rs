//! Small values: enums, attachments, ports, slots, statuses.

use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;

use shoal_types::object::{
    Attachment, Availability, DesiredState, Health, NodeDescription, NodeRole, NodeState, Slot, TaskState,
    TaskStatus, Timestamp,
};
use shoal_types::{
    Binding, DualAddr, EndpointId, LbEngine, LbInUse, NodeLb, Protocol, ProxyProtocol, PublishMode,
    PublishedPort, Weight,
};

use super::WireError;
use crate::pb;

/// Parses text of a field.
pub fn field<T: FromStr>(name: &str, text: &str) -> Result<T, WireError>
where
    T::Err: Display,
{
    text.parse().map_err(|e: T::Err| {
        let reason = e.to_string();
        // Standard library parsers do not repeat what they were given.
        WireError::new(name, if reason.contains(text) { reason } else { format!("'{text}': {reason}") })
    })
}

/// A field that older peers leave out, where it has a default.
pub fn word<T: FromStr + Default>(name: &str, text: &str) -> Result<T, WireError>
where
    T::Err: Display,
{
    if text.is_empty() { Ok(T::default()) } else { field(name, text) }
}

/// A message field that proto3 cannot mark as required.
pub fn required<T>(name: &str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or_else(|| WireError::new(name, "missing"))
}

/// A port in host byte order, zero excluded.
pub(super) fn port(name: &str, value: u32) -> Result<u16, WireError> {
    match u16::try_from(value) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(WireError::new(name, format!("{value} is not a port; use 1 to 65535"))),
    }
}

/// A share of new flows.
pub fn weight(value: u32) -> Result<Weight, WireError> {
    Weight::try_from(value).map_err(|reason| WireError::new("weight", reason))
}

macro_rules! enum_wire {
    ($types:ty, $pb:ident, $field:literal, { $($t:ident <=> $p:ident),* $(,)? }) => {
        impl TryFrom<pb::$pb> for $types {
            type Error = WireError;
            fn try_from(value: pb::$pb) -> Result<Self, WireError> {
                match value {
                    $(pb::$pb::$p => Ok(<$types>::$t),)*
                    pb::$pb::Unspecified => Err(WireError::new($field, "not given, or not known to this version")),
                }
            }
        }
        impl From<$types> for pb::$pb {
            fn from(value: $types) -> Self {
                match value { $(<$types>::$t => pb::$pb::$p,)* }
            }
        }
    };
}
pub(super) use enum_wire;

enum_wire!(Protocol, Protocol, "protocol", { Tcp <=> Tcp, Udp <=> Udp, Sctp <=> Sctp });
enum_wire!(NodeRole, NodeRole, "role", { Worker <=> Worker, Manager <=> Manager });
enum_wire!(Availability, Availability, "availability", { Active <=> Active, Pause <=> Pause, Drain <=> Drain });
enum_wire!(NodeState, NodeState, "state", { Unknown <=> Unknown, Ready <=> Ready, Suspect <=> Suspect, Down <=> Down });
enum_wire!(DesiredState, DesiredState, "desired", {
    Running <=> Running, Draining <=> Draining, Shutdown <=> Shutdown, Remove <=> Remove
});
enum_wire!(TaskState, TaskState, "state", {
    Pending <=> Pending, Assigned <=> Assigned, Preparing <=> Preparing, Starting <=> Starting, Running <=> Running,
    Complete <=> Complete, Shutdown <=> Shutdown, Failed <=> Failed, Rejected <=> Rejected, Orphaned <=> Orphaned
});

/// An attachment from the wire.
pub fn attachment(at: &pb::Attachment) -> Result<Attachment, WireError> {
    Ok(Attachment {
        endpoint: EndpointId(at.endpoint),
        network: field("network", &at.network)?,
        addr: DualAddr { v4: field("v4", &at.v4)?, v6: field("v6", &at.v6)? },
    })
}

/// An attachment to the wire.
pub fn attachment_to(at: &Attachment) -> pb::Attachment {
    pb::Attachment {
        endpoint: at.endpoint.0,
        network: at.network.to_string(),
        v4: at.addr.v4.to_string(),
        v6: at.addr.v6.to_string(),
    }
}

impl TryFrom<pb::PublishedPort> for PublishedPort {
    type Error = WireError;
    fn try_from(p: pb::PublishedPort) -> Result<Self, WireError> {
        Ok(Self {
            protocol: p.protocol().try_into()?,
            published: port("published", p.published)?,
            target: port("target", p.target)?,
            binding: binding(p.mode, &p.ip)?,
            proxy: proxy(p.proxy)?,
            dsr: p.dsr,
        })
    }
}

impl From<PublishedPort> for pb::PublishedPort {
    fn from(p: PublishedPort) -> Self {
        let (mode, ip) = binding_to(p.binding);
        Self {
            protocol: pb::Protocol::from(p.protocol).into(),
            published: p.published.into(),
            target: p.target.into(),
            mode: mode.into(),
            ip,
            proxy: proxy_to(p.proxy).into(),
            dsr: p.dsr,
        }
    }
}

/// Where a port answers. An IPv4 address in IPv6's clothes is an IPv4 address.
pub(super) fn binding(mode: i32, ip: &str) -> Result<Binding, WireError> {
    let mode = match pb::PublishMode::try_from(mode) {
        Ok(pb::PublishMode::Unspecified | pb::PublishMode::Ingress) => PublishMode::Ingress,
        Ok(pb::PublishMode::Host) => PublishMode::Host,
        // What is not understood must not turn into a port that is open wider than asked for.
        Err(_) => return Err(WireError::new("ports.mode", format!("{mode} is not a mode of this version"))),
    };
    let addr = if ip.is_empty() { None } else { Some(field::<IpAddr>("ports.ip", ip)?.to_canonical()) };
    Ok(Binding { mode, addr })
}

pub(super) fn binding_to(binding: Binding) -> (pb::PublishMode, String) {
    let mode = match binding.mode {
        PublishMode::Ingress => pb::PublishMode::Ingress,
        PublishMode::Host => pb::PublishMode::Host,
    };
    (mode, binding.addr.map(|addr| addr.to_string()).unwrap_or_default())
}

/// The header in front of a port's connections. One that is not understood must not turn into none: the task would
/// take what the client sends for it.
pub(super) fn proxy(proxy: i32) -> Result<Option<ProxyProtocol>, WireError> {
    match pb::ProxyProtocol::try_from(proxy) {
        Ok(pb::ProxyProtocol::Unspecified) => Ok(None),
        Ok(pb::ProxyProtocol::V2) => Ok(Some(ProxyProtocol::V2)),
        Err(_) => Err(WireError::new(
            "ports.proxy-protocol",
            format!("{proxy} is not a version of it that is there; use v2"),
        )),
    }
}

pub(super) fn proxy_to(proxy: Option<ProxyProtocol>) -> pb::ProxyProtocol {
    match proxy {
        None => pb::ProxyProtocol::Unspecified,
        Some(ProxyProtocol::V2) => pb::ProxyProtocol::V2,
    }
}

impl TryFrom<pb::Slot> for Slot {
    type Error = WireError;
    fn try_from(slot: pb::Slot) -> Result<Self, WireError> {
        match required("slot", slot.slot)? {
            pb::slot::Slot::Number(n) => Ok(Self::Number(n)),
            pb::slot::Slot::Node(id) => Ok(Self::Node(field("slot.node", &id)?)),
        }
    }
}

impl From<&Slot> for pb::Slot {
    fn from(slot: &Slot) -> Self {
        Self {
            slot: Some(match slot {
                Slot::Number(n) => pb::slot::Slot::Number(*n),
                Slot::Node(id) => pb::slot::Slot::Node(id.to_string()),
            }),
        }
    }
}

impl TryFrom<pb::TaskStatus> for TaskStatus {
    type Error = WireError;
    fn try_from(s: pb::TaskStatus) -> Result<Self, WireError> {
        Ok(Self {
            state: s.state().try_into()?,
            health: match s.health() {
                pb::Health::Unspecified => Health::Unchecked,
                pb::Health::Starting => Health::Starting,
                pb::Health::Healthy => Health::Healthy,
                pb::Health::Unhealthy => Health::Unhealthy,
            },
            since: Timestamp(s.since_ms),
            message: s.message,
            exit_code: s.exit_code,
            pid: s.pid,
            connections: s.connections,
        })
    }
}

impl From<&TaskStatus> for pb::TaskStatus {
    fn from(s: &TaskStatus) -> Self {
        Self {
            state: pb::TaskState::from(s.state).into(),
            since_ms: s.since.0,
            message: s.message.clone(),
            exit_code: s.exit_code,
            pid: s.pid,
            connections: s.connections,
            health: match s.health {
                Health::Unchecked => pb::Health::Unspecified,
                Health::Starting => pb::Health::Starting,
                Health::Healthy => pb::Health::Healthy,
                Health::Unhealthy => pb::Health::Unhealthy,
            }
            .into(),
        }
    }
}

impl TryFrom<pb::NodeDescription> for NodeDescription {
    type Error = WireError;
    fn try_from(d: pb::NodeDescription) -> Result<Self, WireError> {
        let in_use = match d.lb_engine.as_str() {
            "" => None,
            engine => Some(in_use("lb_engine", engine, d.ipvs, d.lb_lingering)?),
        };
        let lb = NodeLb { setting: word("lb_setting", &d.lb_setting)?, in_use };
        Ok(Self {
            hostname: d.hostname,
            cpu_milli: d.cpu_milli,
            memory: d.memory,
            version: d.version,
            kernel: d.kernel,
            lb,
        })
    }
}

impl From<&NodeDescription> for pb::NodeDescription {
    fn from(d: &NodeDescription) -> Self {
        let used = d.lb.in_use;
        let d = d.clone();
        Self {
            hostname: d.hostname,
            cpu_milli: d.cpu_milli,
            memory: d.memory,
            version: d.version,
            kernel: d.kernel,
            lb_engine: used.map(|used| used.engine.to_string()).unwrap_or_default(),
            ipvs: used.is_some_and(|used| used.ipvs),
            lb_lingering: used.is_some_and(|used| used.lingering),
            lb_setting: d.lb.setting.to_string(),
        }
    }
}

fn in_use(name: &str, engine: &str, ipvs: bool, lingering: bool) -> Result<LbInUse, WireError> {
    match field(name, engine)? {
        LbEngine::Auto => Err(WireError::new(name, "'auto' is no engine in use; use ipvs or ebpf")),
        engine => Ok(LbInUse { engine, ipvs, lingering }),
    }
}

impl TryFrom<pb::LbInUse> for LbInUse {
    type Error = WireError;
    fn try_from(used: pb::LbInUse) -> Result<Self, WireError> {
        in_use("engine", &used.engine, used.ipvs, used.lingering)
    }
}

impl From<LbInUse> for pb::LbInUse {
    fn from(used: LbInUse) -> Self {
        Self { engine: used.engine.to_string(), ipvs: used.ipvs, lingering: used.lingering }
    }
}
