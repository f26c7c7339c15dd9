//! Specs of networks, services and tasks.

use shoal_types::id::Name;
use shoal_types::spec::{
    AttachmentSpec, DnsSpec, HealthCheck, HealthProbe, NetworkSpec, PortSpec, ProcessSpec, Resources,
    RestartCondition, RestartPolicy, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig, UpdateOrder,
};

use super::WireError;
use super::base::{binding, binding_to, enum_wire, field, port, proxy, proxy_to, required, word};
use crate::pb;

enum_wire!(RestartCondition, RestartCondition, "restart.condition", { None <=> None, OnFailure <=> OnFailure, Any <=> Any });
enum_wire!(UpdateOrder, UpdateOrder, "update.order", { StartFirst <=> StartFirst, StopFirst <=> StopFirst });

impl TryFrom<pb::NetworkSpec> for NetworkSpec {
    type Error = WireError;
    fn try_from(s: pb::NetworkSpec) -> Result<Self, WireError> {
        Ok(Self {
            name: field("name", &s.name)?,
            subnet4: s.subnet4.map(|t| field("subnet4", &t)).transpose()?,
            subnet6: s.subnet6.map(|t| field("subnet6", &t)).transpose()?,
            internal: s.internal,
            labels: s.labels.into_iter().collect(),
        })
    }
}

impl From<&NetworkSpec> for pb::NetworkSpec {
    fn from(s: &NetworkSpec) -> Self {
        Self {
            name: s.name.to_string(),
            subnet4: s.subnet4.map(|n| n.to_string()),
            subnet6: s.subnet6.map(|n| n.to_string()),
            internal: s.internal,
            labels: s.labels.clone().into_iter().collect(),
        }
    }
}

impl TryFrom<pb::ServiceSpec> for ServiceSpec {
    type Error = WireError;
    fn try_from(s: pb::ServiceSpec) -> Result<Self, WireError> {
        let mode = match s.mode {
            Some(pb::service_spec::Mode::Replicas(replicas)) => ServiceMode::Replicated { replicas },
            Some(pb::service_spec::Mode::Global(_)) => ServiceMode::Global,
            None => ServiceMode::Replicated { replicas: 1 },
        };
        Ok(Self {
            name: field("name", &s.name)?,
            mode,
            task: required("task", s.task)?.try_into().map_err(|e: WireError| e.within("task"))?,
            networks: s.networks.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            ports: s.ports.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            update: s.update.map(TryInto::try_into).transpose()?.unwrap_or_default(),
            drain_ms: s.drain_ms,
            lb: word("lb", &s.lb)?,
            endpoint: word("endpoint_mode", &s.endpoint_mode)?,
            dns: s.dns.map(TryInto::try_into).transpose()?.unwrap_or_default(),
            labels: s.labels.into_iter().collect(),
        })
    }
}

impl From<&ServiceSpec> for pb::ServiceSpec {
    fn from(s: &ServiceSpec) -> Self {
        Self {
            name: s.name.to_string(),
            mode: Some(match s.mode {
                ServiceMode::Replicated { replicas } => pb::service_spec::Mode::Replicas(replicas),
                ServiceMode::Global => pb::service_spec::Mode::Global(pb::Empty {}),
            }),
            task: Some((&s.task).into()),
            networks: s.networks.iter().map(Into::into).collect(),
            ports: s.ports.iter().copied().map(Into::into).collect(),
            update: Some(s.update.into()),
            drain_ms: s.drain_ms,
            lb: s.lb.to_string(),
            endpoint_mode: s.endpoint.to_string(),
            dns: Some((&s.dns).into()),
            labels: s.labels.clone().into_iter().collect(),
        }
    }
}

impl TryFrom<pb::DnsSpec> for DnsSpec {
    type Error = WireError;
    fn try_from(d: pb::DnsSpec) -> Result<Self, WireError> {
        let servers = d.servers.iter().map(|t| field("dns.servers", t)).collect::<Result<_, _>>()?;
        Ok(Self { servers, search: d.search, options: d.options })
    }
}

impl From<&DnsSpec> for pb::DnsSpec {
    fn from(d: &DnsSpec) -> Self {
        Self {
            servers: d.servers.iter().map(ToString::to_string).collect(),
            search: d.search.clone(),
            options: d.options.clone(),
        }
    }
}

impl TryFrom<pb::AttachmentSpec> for AttachmentSpec {
    type Error = WireError;
    fn try_from(a: pb::AttachmentSpec) -> Result<Self, WireError> {
        Ok(Self {
            network: field("networks.network", &a.network)?,
            aliases: a
                .aliases
                .iter()
                .map(|t| field::<Name>("networks.aliases", t))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl From<&AttachmentSpec> for pb::AttachmentSpec {
    fn from(a: &AttachmentSpec) -> Self {
        Self { network: a.network.to_string(), aliases: a.aliases.iter().map(ToString::to_string).collect() }
    }
}

impl TryFrom<pb::PortSpec> for PortSpec {
    type Error = WireError;
    fn try_from(p: pb::PortSpec) -> Result<Self, WireError> {
        let published = if p.published == 0 { None } else { Some(port("ports.published", p.published)?) };
        Ok(Self {
            protocol: p.protocol().try_into()?,
            published,
            target: port("ports.target", p.target)?,
            binding: binding(p.mode, &p.ip)?,
            proxy: proxy(p.proxy)?,
            dsr: p.dsr,
        })
    }
}

impl From<PortSpec> for pb::PortSpec {
    fn from(p: PortSpec) -> Self {
        let (mode, ip) = binding_to(p.binding);
        Self {
            protocol: pb::Protocol::from(p.protocol).into(),
            published: p.published.unwrap_or(0).into(),
            target: p.target.into(),
            mode: mode.into(),
            ip,
            proxy: proxy_to(p.proxy).into(),
            dsr: p.dsr,
        }
    }
}

impl TryFrom<pb::TaskSpec> for TaskSpec {
    type Error = WireError;
    fn try_from(s: pb::TaskSpec) -> Result<Self, WireError> {
        if !(1..=64).contains(&s.stop_signal) {
            return Err(WireError::new(
                "stop_signal",
                format!("{} is not a signal; use 1 to 64", s.stop_signal),
            ));
        }
        Ok(Self {
            process: required("process", s.process)?
                .try_into()
                .map_err(|e: WireError| e.within("process"))?,
            resources: s.resources.unwrap_or_default().into(),
            restart: s.restart.map(TryInto::try_into).transpose()?.unwrap_or_default(),
            health: s.health.map(TryInto::try_into).transpose().map_err(|e: WireError| e.within("health"))?,
            stop_grace_ms: s.stop_grace_ms,
            stop_signal: s.stop_signal,
            constraints: s.constraints.iter().map(|c| field("constraints", c)).collect::<Result<_, _>>()?,
            max_per_node: s.max_per_node,
            force_update: s.force_update,
        })
    }
}

impl From<&TaskSpec> for pb::TaskSpec {
    fn from(s: &TaskSpec) -> Self {
        Self {
            process: Some((&s.process).into()),
            resources: Some(s.resources.into()),
            restart: Some(s.restart.into()),
            health: s.health.as_ref().map(Into::into),
            stop_grace_ms: s.stop_grace_ms,
            stop_signal: s.stop_signal,
            constraints: s.constraints.iter().map(ToString::to_string).collect(),
            max_per_node: s.max_per_node,
            force_update: s.force_update,
        }
    }
}

impl TryFrom<pb::HealthCheck> for HealthCheck {
    type Error = WireError;
    fn try_from(h: pb::HealthCheck) -> Result<Self, WireError> {
        let probe = match h.probe {
            Some(pb::health_check::Probe::Command(command)) => HealthProbe::Command(command.words),
            Some(pb::health_check::Probe::Http(http)) => {
                HealthProbe::Http { to: field("http.target", &http.target)?, path: http.path }
            }
            Some(pb::health_check::Probe::Tcp(target)) => HealthProbe::Tcp(field("tcp", &target)?),
            None => {
                return Err(WireError::new("probe", "not given, or not known to this version"));
            }
        };
        let check = Self {
            probe,
            interval_ms: h.interval_ms,
            timeout_ms: h.timeout_ms,
            retries: h.retries,
            start_period_ms: h.start_period_ms,
        };
        match check.fault() {
            Some((field, reason)) => Err(WireError::new(field, reason)),
            None => Ok(check),
        }
    }
}

impl From<&HealthCheck> for pb::HealthCheck {
    fn from(h: &HealthCheck) -> Self {
        let probe = match &h.probe {
            HealthProbe::Command(words) => {
                pb::health_check::Probe::Command(pb::HealthCommand { words: words.clone() })
            }
            HealthProbe::Http { to, path } => {
                pb::health_check::Probe::Http(pb::HealthHttp { target: to.to_string(), path: path.clone() })
            }
            HealthProbe::Tcp(target) => pb::health_check::Probe::Tcp(target.to_string()),
        };
        Self {
            probe: Some(probe),
            interval_ms: h.interval_ms,
            timeout_ms: h.timeout_ms,
            retries: h.retries,
            start_period_ms: h.start_period_ms,
        }
    }
}

/// Text that ends up in an environment, a path or an argument vector cannot hold a NUL.
fn no_nul(name: &str, text: &str) -> Result<(), WireError> {
    if text.contains('\0') { Err(WireError::new(name, "has a NUL byte")) } else { Ok(()) }
}

impl TryFrom<pb::ProcessSpec> for ProcessSpec {
    type Error = WireError;
    fn try_from(s: pb::ProcessSpec) -> Result<Self, WireError> {
        if s.command.first().is_none_or(String::is_empty) {
            return Err(WireError::new("command", "empty; give a program and its arguments"));
        }
        for part in &s.command {
            no_nul("command", part)?;
        }
        for pair in &s.env {
            no_nul("env", pair)?;
            if pair.split_once('=').is_none_or(|(key, _)| key.is_empty()) {
                return Err(WireError::new("env", format!("'{pair}' is not KEY=value")));
            }
        }
        for (name, value) in
            [("workdir", &s.workdir), ("user", &s.user), ("hostname", &s.hostname), ("root", &s.root)]
        {
            no_nul(name, value.as_deref().unwrap_or_default())?;
        }
        for (name, value) in [("workdir", &s.workdir), ("root", &s.root)] {
            if value.as_deref().is_some_and(|p| !p.starts_with('/')) {
                return Err(WireError::new(name, "is not an absolute path"));
            }
        }
        Ok(Self {
            command: s.command,
            env: s.env,
            workdir: s.workdir,
            user: s.user,
            hostname: s.hostname,
            root: s.root,
            cap_add: s.cap_add,
            read_only: s.read_only,
        })
    }
}

impl From<&ProcessSpec> for pb::ProcessSpec {
    fn from(s: &ProcessSpec) -> Self {
        let s = s.clone();
        Self {
            command: s.command,
            env: s.env,
            workdir: s.workdir,
            user: s.user,
            hostname: s.hostname,
            root: s.root,
            cap_add: s.cap_add,
            read_only: s.read_only,
        }
    }
}

impl From<pb::Resources> for Resources {
    fn from(r: pb::Resources) -> Self {
        Self {
            limit_cpu_milli: r.limit_cpu_milli,
            limit_memory: r.limit_memory,
            limit_pids: r.limit_pids,
            reserve_cpu_milli: r.reserve_cpu_milli,
            reserve_memory: r.reserve_memory,
        }
    }
}

impl From<Resources> for pb::Resources {
    fn from(r: Resources) -> Self {
        Self {
            limit_cpu_milli: r.limit_cpu_milli,
            limit_memory: r.limit_memory,
            limit_pids: r.limit_pids,
            reserve_cpu_milli: r.reserve_cpu_milli,
            reserve_memory: r.reserve_memory,
        }
    }
}

impl TryFrom<pb::RestartPolicy> for RestartPolicy {
    type Error = WireError;
    fn try_from(r: pb::RestartPolicy) -> Result<Self, WireError> {
        Ok(Self {
            condition: r.condition().try_into()?,
            delay_ms: r.delay_ms,
            max_attempts: r.max_attempts,
            window_ms: r.window_ms,
        })
    }
}

impl From<RestartPolicy> for pb::RestartPolicy {
    fn from(r: RestartPolicy) -> Self {
        Self {
            condition: pb::RestartCondition::from(r.condition).into(),
            delay_ms: r.delay_ms,
            max_attempts: r.max_attempts,
            window_ms: r.window_ms,
        }
    }
}

impl TryFrom<pb::UpdateConfig> for UpdateConfig {
    type Error = WireError;
    fn try_from(u: pb::UpdateConfig) -> Result<Self, WireError> {
        Ok(Self { parallelism: u.parallelism, delay_ms: u.delay_ms, order: u.order().try_into()? })
    }
}

impl From<UpdateConfig> for pb::UpdateConfig {
    fn from(u: UpdateConfig) -> Self {
        Self {
            parallelism: u.parallelism,
            delay_ms: u.delay_ms,
            order: pb::UpdateOrder::from(u.order).into(),
        }
    }
}
