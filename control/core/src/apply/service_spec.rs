//! What a service's spec must fulfil beyond what its types already guarantee.

use std::collections::BTreeSet;

use shoal_types::object::Service;
use shoal_types::spec::{ProcessSpec, Resources, ServiceMode, ServiceSpec, TaskSpec};

use crate::rejection::{Kind, Rejection};
use crate::state::State;

const MAX_REPLICAS: u32 = 100_000;
const HOUR_MS: u64 = 3_600_000;

/// Checks a spec against itself and the networks that exist.
pub(super) fn check(state: &State, spec: &ServiceSpec) -> Result<(), Rejection> {
    if let ServiceMode::Replicated { replicas } = spec.mode {
        check_replicas(replicas)?;
    }
    if spec.drain_ms > HOUR_MS {
        return Err(Rejection::invalid(
            "drain",
            format!("{} ms", spec.drain_ms),
            "is too long",
            "at most 1h",
        ));
    }
    if let Some((field, value, problem, help)) = spec.dns.fault() {
        return Err(Rejection::invalid(field, value, problem, help));
    }
    check_networks(state, spec)?;
    check_task(&spec.task)
}

pub(super) fn check_replicas(replicas: u32) -> Result<(), Rejection> {
    if replicas > MAX_REPLICAS {
        let help = format!("at most {MAX_REPLICAS}");
        return Err(Rejection::invalid("replicas", replicas, "is more than a service can have", help));
    }
    Ok(())
}

/// Checks what an update may not change.
pub(super) fn check_kept(old: &Service, new: &ServiceSpec) -> Result<(), Rejection> {
    let help = format!("create another service and remove '{}'", old.spec.name);
    if old.spec.name != new.name {
        let problem = format!("can't be changed, it is '{}'", old.spec.name);
        return Err(Rejection::invalid("name", &new.name, problem, help));
    }
    let kind = |mode: ServiceMode| match mode {
        ServiceMode::Replicated { .. } => "replicated",
        ServiceMode::Global => "global",
    };
    if kind(old.spec.mode) != kind(new.mode) {
        let problem = format!("can't be changed, it is '{}'", kind(old.spec.mode));
        return Err(Rejection::invalid("mode", kind(new.mode), problem, help));
    }
    Ok(())
}

fn check_networks(state: &State, spec: &ServiceSpec) -> Result<(), Rejection> {
    let mut seen = BTreeSet::new();
    for attachment in &spec.networks {
        let Some(network) = state.networks.get(&attachment.network) else {
            return Err(Rejection::not_found(Kind::Network, &attachment.network));
        };
        if network.ingress {
            let help = "publish a port instead ('-p 8080:80'), or create a network of your own";
            return Err(Rejection::invalid(
                "network",
                &network.spec.name,
                "is for published ports only",
                help,
            ));
        }
        if !seen.insert(&attachment.network) {
            return Err(Rejection::invalid(
                "network",
                &network.spec.name,
                "is given twice",
                "leave one of them out",
            ));
        }
    }
    Ok(())
}

fn check_task(task: &TaskSpec) -> Result<(), Rejection> {
    check_process(&task.process)?;
    check_resources(task.resources)?;
    if !(1..=64).contains(&task.stop_signal) {
        return Err(Rejection::invalid("stop-signal", task.stop_signal, "is not a signal", "SIGTERM is 15"));
    }
    if task.stop_grace_ms > HOUR_MS {
        let value = format!("{} ms", task.stop_grace_ms);
        return Err(Rejection::invalid("stop-grace-period", value, "is too long", "at most 1h"));
    }
    Ok(())
}

fn check_process(process: &ProcessSpec) -> Result<(), Rejection> {
    if process.command.first().is_none_or(|program| program.trim().is_empty()) {
        let help =
            "name the program after the service's name: 'shoal service create --name web /usr/bin/httpd'";
        return Err(Rejection::invalid("command", "", "is empty", help));
    }
    let texts = process.command.iter().chain(&process.env).chain(&process.workdir).chain(&process.root);
    if let Some(bad) = texts.clone().find(|t| t.contains('\0')) {
        let shown = bad.replace('\0', "\\0");
        return Err(Rejection::invalid("command or env", shown, "contains a NUL byte", "leave it out"));
    }
    if let Some(bad) = process.env.iter().find(|e| e.split_once('=').is_none_or(|(key, _)| key.is_empty())) {
        return Err(Rejection::invalid("env", bad, "is not KEY=value", "write it as KEY=value"));
    }
    Ok(())
}

fn check_resources(resources: Resources) -> Result<(), Rejection> {
    let pairs = [
        ("reserve-cpu", resources.reserve_cpu_milli, resources.limit_cpu_milli),
        ("reserve-memory", resources.reserve_memory, resources.limit_memory),
    ];
    match pairs.into_iter().find(|(_, reserve, limit)| *limit > 0 && reserve > limit) {
        Some((field, reserve, limit)) => {
            let problem = format!("is more than the limit of {limit}");
            Err(Rejection::invalid(field, reserve, problem, "reserve at most the limit"))
        }
        None => Ok(()),
    }
}
