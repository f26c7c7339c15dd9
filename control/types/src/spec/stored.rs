//! How a service's spec stands in logs and snapshots. Their format does not name fields, so none can be added; but an
//! enum may get a variant. What came later than the first version therefore travels in the mode, or in a task's restart
//! condition, and a spec that does not use it is written as ever.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    AttachmentSpec, Constraint, DnsSpec, EndpointMode, HealthCheck, PortSpec, ProcessSpec, Resources,
    RestartCondition, RestartPolicy, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig,
};
use crate::id::Name;
use crate::lb::LbPolicy;

#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    name: Cow<'a, Name>,
    mode: Mode,
    task: Cow<'a, TaskSpec>,
    networks: Cow<'a, [AttachmentSpec]>,
    ports: Cow<'a, [PortSpec]>,
    update: UpdateConfig,
    drain_ms: u64,
    labels: Cow<'a, BTreeMap<String, String>>,
}

/// The first two are those of [`ServiceMode`], in its order.
#[derive(Serialize, Deserialize)]
enum Mode {
    Replicated { replicas: u32 },
    Global,
    Balanced { mode: ServiceMode, lb: LbPolicy },
    With { mode: ServiceMode, more: Vec<More> },
}

/// What is not as it is by default, in the order of this list. New settings go to its end.
#[derive(Serialize, Deserialize)]
enum More {
    Lb(LbPolicy),
    Endpoint(EndpointMode),
    Dns(DnsSpec),
}

impl Mode {
    fn of(spec: &ServiceSpec) -> Self {
        let lb = Some(spec.lb).filter(|lb| *lb != LbPolicy::default());
        let endpoint = Some(spec.endpoint).filter(|endpoint| *endpoint != EndpointMode::default());
        let dns = Some(&spec.dns).filter(|dns| !dns.is_default());
        match (spec.mode, lb, endpoint, dns) {
            (ServiceMode::Replicated { replicas }, None, None, None) => Self::Replicated { replicas },
            (ServiceMode::Global, None, None, None) => Self::Global,
            (mode, Some(lb), None, None) => Self::Balanced { mode, lb },
            (mode, lb, endpoint, dns) => {
                let (lb, endpoint) = (lb.map(More::Lb), endpoint.map(More::Endpoint));
                let dns = dns.cloned().map(More::Dns);
                Self::With { mode, more: lb.into_iter().chain(endpoint).chain(dns).collect() }
            }
        }
    }

    fn parts(self) -> (ServiceMode, Vec<More>) {
        match self {
            Self::Replicated { replicas } => (ServiceMode::Replicated { replicas }, Vec::new()),
            Self::Global => (ServiceMode::Global, Vec::new()),
            Self::Balanced { mode, lb } => (mode, vec![More::Lb(lb)]),
            Self::With { mode, more } => (mode, more),
        }
    }
}

impl Serialize for ServiceSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let stored = Stored {
            name: Cow::Borrowed(&self.name),
            mode: Mode::of(self),
            task: Cow::Borrowed(&self.task),
            networks: Cow::Borrowed(&self.networks),
            ports: Cow::Borrowed(&self.ports),
            update: self.update,
            drain_ms: self.drain_ms,
            labels: Cow::Borrowed(&self.labels),
        };
        stored.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ServiceSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let stored = Stored::deserialize(deserializer)?;
        let (mode, more) = stored.mode.parts();
        let mut spec = Self {
            name: stored.name.into_owned(),
            mode,
            task: stored.task.into_owned(),
            networks: stored.networks.into_owned(),
            ports: stored.ports.into_owned(),
            update: stored.update,
            drain_ms: stored.drain_ms,
            lb: LbPolicy::default(),
            endpoint: EndpointMode::default(),
            dns: DnsSpec::default(),
            labels: stored.labels.into_owned(),
        };
        for setting in more {
            match setting {
                More::Lb(lb) => spec.lb = lb,
                More::Endpoint(endpoint) => spec.endpoint = endpoint,
                More::Dns(dns) => spec.dns = dns,
            }
        }
        Ok(spec)
    }
}

#[derive(Serialize, Deserialize)]
struct StoredTask<'a> {
    process: Cow<'a, ProcessSpec>,
    resources: Resources,
    restart: StoredRestart<'a>,
    stop_grace_ms: u64,
    stop_signal: i32,
    constraints: Cow<'a, [Constraint]>,
    max_per_node: u32,
    force_update: u64,
}

#[derive(Serialize, Deserialize)]
struct StoredRestart<'a> {
    condition: Condition<'a>,
    delay_ms: u64,
    max_attempts: u32,
    window_ms: u64,
}

/// The first three are those of [`RestartCondition`], in its order.
#[derive(Serialize, Deserialize)]
enum Condition<'a> {
    None,
    OnFailure,
    Any,
    Checked { condition: RestartCondition, health: Cow<'a, HealthCheck> },
}

impl<'a> Condition<'a> {
    fn of(spec: &'a TaskSpec) -> Self {
        match (&spec.health, spec.restart.condition) {
            (Some(health), condition) => Self::Checked { condition, health: Cow::Borrowed(health) },
            (None, RestartCondition::None) => Self::None,
            (None, RestartCondition::OnFailure) => Self::OnFailure,
            (None, RestartCondition::Any) => Self::Any,
        }
    }

    fn parts(self) -> (RestartCondition, Option<HealthCheck>) {
        match self {
            Self::None => (RestartCondition::None, None),
            Self::OnFailure => (RestartCondition::OnFailure, None),
            Self::Any => (RestartCondition::Any, None),
            Self::Checked { condition, health } => (condition, Some(health.into_owned())),
        }
    }
}

impl Serialize for TaskSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let RestartPolicy { condition: _, delay_ms, max_attempts, window_ms } = self.restart;
        let stored = StoredTask {
            process: Cow::Borrowed(&self.process),
            resources: self.resources,
            restart: StoredRestart { condition: Condition::of(self), delay_ms, max_attempts, window_ms },
            stop_grace_ms: self.stop_grace_ms,
            stop_signal: self.stop_signal,
            constraints: Cow::Borrowed(&self.constraints),
            max_per_node: self.max_per_node,
            force_update: self.force_update,
        };
        stored.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TaskSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let stored = StoredTask::deserialize(deserializer)?;
        let StoredRestart { condition, delay_ms, max_attempts, window_ms } = stored.restart;
        let (condition, health) = condition.parts();
        Ok(Self {
            process: stored.process.into_owned(),
            resources: stored.resources,
            restart: RestartPolicy { condition, delay_ms, max_attempts, window_ms },
            health,
            stop_grace_ms: stored.stop_grace_ms,
            stop_signal: stored.stop_signal,
            constraints: stored.constraints.into_owned(),
            max_per_node: stored.max_per_node,
            force_update: stored.force_update,
        })
    }
}
