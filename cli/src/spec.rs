//! From flags to specs, without I/O besides environment files: what `create` sends and what `update` makes of the
//! present spec.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use shoal_api::pb;
use shoal_api::pb::service_spec;
use shoal_types::spec::{HealthCheck, HealthProbe};

use crate::args::{CreateArgs, HealthFlags, Mode, TaskFlags, UpdateArgs};
use crate::failure::Failure;
use crate::parse::{self, Known};

/// Stop signal, grace and drain of a new service (SIGTERM; SURFACE's table of defaults).
const STOP_SIGNAL: i32 = 15;
const STOP_GRACE_MS: u64 = 10_000;
const DRAIN_MS: u64 = 5_000;

/// The spec that `service create` asks for.
pub(crate) fn created(args: &CreateArgs) -> Result<pb::ServiceSpec, Failure> {
    let mode = match (args.mode, args.replicas) {
        (Mode::Replicated, replicas) => service_spec::Mode::Replicas(replicas.unwrap_or(1)),
        (Mode::Global, None) => service_spec::Mode::Global(pb::Empty {}),
        (Mode::Global, Some(_)) => {
            return Err(Failure::Usage(
                "--replicas is for --mode replicated; a global service has a task on every node".to_owned(),
            ));
        }
    };
    let mut env = Vec::new();
    for path in &args.env_file {
        env = parse::merge_env(env, parse::env_file(path).map_err(Failure::Usage)?);
    }
    env = parse::merge_env(env, given_env("--env", &args.env)?);
    let process = pb::ProcessSpec { command: args.command.clone(), env, ..Default::default() };
    let mut spec = pb::ServiceSpec {
        name: args.name.clone(),
        mode: Some(mode),
        task: Some(pb::TaskSpec {
            process: Some(process),
            restart: Some(shoal_types::spec::RestartPolicy::default().into()),
            resources: Some(pb::Resources::default()),
            stop_grace_ms: STOP_GRACE_MS,
            stop_signal: STOP_SIGNAL,
            constraints: args.constraint.clone(),
            ..Default::default()
        }),
        networks: args.network.clone(),
        ports: args.publish.iter().flat_map(|publish| publish.0.clone()).collect(),
        update: Some(shoal_types::spec::UpdateConfig::default().into()),
        drain_ms: DRAIN_MS,
        lb: shoal_types::LbPolicy::default().to_string(),
        endpoint_mode: shoal_types::spec::EndpointMode::default().to_string(),
        dns: Some(pb::DnsSpec {
            servers: args.dns.servers.iter().map(ToString::to_string).collect(),
            search: args.dns.search.clone(),
            options: args.dns.options.clone(),
        }),
        labels: args.label.iter().cloned().collect(),
    };
    if spec.ports.iter().any(|port| parse::publish_mode(port) == pb::PublishMode::Host) {
        // A node has the port once: the successor gets it when the predecessor is gone.
        spec.update.get_or_insert_default().set_order(pb::UpdateOrder::StopFirst);
    }
    apply_task_flags(&args.task, &mut spec);
    apply_health_flags(&args.task.health, spec.task.get_or_insert_default())?;
    Ok(spec)
}

fn apply_health_flags(flags: &HealthFlags, task: &mut pb::TaskSpec) -> Result<(), Failure> {
    let probe = flags.probe();
    if probe.is_none() && !flags.has_details() {
        return Ok(());
    }
    let mut health = match (task.health.take(), &probe) {
        (Some(health), _) => health,
        (None, Some(_)) => (&HealthCheck::of(HealthProbe::Command(Vec::new()))).into(),
        (None, None) => {
            return Err(Failure::Usage(
                "there is no health check to set times of; give --health-cmd, --health-http or --health-tcp"
                    .to_owned(),
            ));
        }
    };
    if probe.is_some() {
        health.probe = probe;
    }
    set(&mut health.interval_ms, flags.health_interval);
    set(&mut health.timeout_ms, flags.health_timeout);
    set(&mut health.retries, flags.health_retries);
    set(&mut health.start_period_ms, flags.health_start_period);
    task.health = Some(health);
    Ok(())
}

fn given_env(flag: &str, given: &[String]) -> Result<Vec<String>, Failure> {
    let mut pairs = Vec::new();
    for text in given {
        pairs.extend(parse::env(text).map_err(|error| Failure::Usage(format!("{flag}: {error}")))?);
    }
    Ok(pairs)
}

fn set<T: Copy>(place: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *place = value;
    }
}

/// An empty text takes the setting away.
fn set_text(place: &mut Option<String>, given: Option<&String>) {
    if let Some(text) = given {
        *place = Some(text.clone()).filter(|text| !text.is_empty());
    }
}

fn apply_task_flags(flags: &TaskFlags, spec: &mut pb::ServiceSpec) {
    set(&mut spec.drain_ms, flags.drain);
    if let Some(policy) = flags.lb {
        spec.lb = policy.to_string();
    }
    if let Some(mode) = flags.endpoint_mode {
        spec.endpoint_mode = mode.to_string();
    }
    let update = spec.update.get_or_insert_default();
    set(&mut update.parallelism, flags.update_parallelism);
    set(&mut update.delay_ms, flags.update_delay);
    set(&mut update.order, flags.update_order.map(|order| pb::UpdateOrder::from(order).into()));
    let task = spec.task.get_or_insert_default();
    set(&mut task.stop_signal, flags.stop_signal);
    set(&mut task.stop_grace_ms, flags.stop_grace_period);
    set(&mut task.max_per_node, flags.replicas_max_per_node);
    let restart = task.restart.get_or_insert_default();
    set(&mut restart.condition, flags.restart_condition.map(|c| pb::RestartCondition::from(c).into()));
    set(&mut restart.delay_ms, flags.restart_delay);
    set(&mut restart.max_attempts, flags.restart_max_attempts);
    set(&mut restart.window_ms, flags.restart_window);
    let resources = task.resources.get_or_insert_default();
    set(&mut resources.limit_cpu_milli, flags.limit_cpu);
    set(&mut resources.limit_memory, flags.limit_memory);
    set(&mut resources.limit_pids, flags.limit_pids);
    set(&mut resources.reserve_cpu_milli, flags.reserve_cpu);
    set(&mut resources.reserve_memory, flags.reserve_memory);
    let process = task.process.get_or_insert_default();
    set_text(&mut process.workdir, flags.workdir.as_ref());
    set_text(&mut process.user, flags.user.as_ref());
    set_text(&mut process.hostname, flags.hostname.as_ref());
    set(&mut process.read_only, flags.read_only);
    for capability in &flags.cap_add {
        add_once(&mut process.cap_add, capability.clone());
    }
}

fn add_once(list: &mut Vec<String>, item: String) {
    if !list.contains(&item) {
        list.push(item);
    }
}

/// Removes what matches; a warning when nothing did.
fn remove<T>(list: &mut Vec<T>, warnings: &mut Vec<String>, what: &str, matches: impl Fn(&T) -> bool) {
    let before = list.len();
    list.retain(|item| !matches(item));
    if list.len() == before {
        warnings.push(format!("{what}: there is none"));
    }
}

/// The spec that `service update` asks for, and warnings about removals of what is not there. `names` are the names
/// of networks by id, `published` the ports that the service has, in the order of its spec.
pub(crate) fn updated(
    args: &UpdateArgs,
    mut spec: pb::ServiceSpec,
    published: &[pb::PublishedPort],
    names: &BTreeMap<String, String>,
) -> Result<(pb::ServiceSpec, Vec<String>), Failure> {
    let mut warnings = Vec::new();
    if let Some(replicas) = args.replicas {
        if matches!(spec.mode, Some(service_spec::Mode::Global(_))) {
            return Err(Failure::Usage(format!(
                "--replicas: service '{}' is global, it has a task on every node",
                spec.name
            )));
        }
        spec.mode = Some(service_spec::Mode::Replicas(replicas));
    }
    apply_task_flags(&args.task, &mut spec);
    let task = spec.task.get_or_insert_default();
    apply_health_flags(&args.task.health, task)?;
    if args.no_healthcheck && task.health.take().is_none() {
        warnings.push("--no-healthcheck: there is none".to_owned());
    }
    update_command(args, &mut spec)?;
    update_task_lists(args, &mut spec, &mut warnings)?;
    update_ports(args, &mut spec, published, &mut warnings);
    update_networks(args, &mut spec, names, &mut warnings);
    update_dns(args, &mut spec, &mut warnings);
    for key in &args.label_rm {
        if spec.labels.remove(key).is_none() {
            warnings.push(format!("--label-rm {key}: there is none"));
        }
    }
    spec.labels.extend(args.label_add.iter().cloned());
    if args.force {
        let task = spec.task.get_or_insert_default();
        task.force_update = task.force_update.saturating_add(1);
    }
    Ok((spec, warnings))
}

fn update_command(args: &UpdateArgs, spec: &mut pb::ServiceSpec) -> Result<(), Failure> {
    let words = |flag: &str, text: &str| {
        parse::split_words(text).map_err(|error| Failure::Usage(format!("{flag}: {error}")))
    };
    let process = spec.task.get_or_insert_default().process.get_or_insert_default();
    if !args.program.is_empty() {
        process.command.clone_from(&args.program);
    }
    if let Some(text) = &args.command {
        let command = words("--command", text)?;
        if command.is_empty() {
            return Err(Failure::Usage("--command: names no program".to_owned()));
        }
        // Both flags given: --command names the program, --args what it gets.
        process.command = command;
    }
    if let Some(text) = &args.args {
        process.command.truncate(1);
        process.command.extend(words("--args", text)?);
    }
    Ok(())
}

fn update_task_lists(
    args: &UpdateArgs,
    spec: &mut pb::ServiceSpec,
    warnings: &mut Vec<String>,
) -> Result<(), Failure> {
    let task = spec.task.get_or_insert_default();
    for constraint in &args.constraint_rm {
        remove(&mut task.constraints, warnings, &format!("--constraint-rm {constraint}"), |c| {
            c == constraint
        });
    }
    for constraint in &args.constraint_add {
        add_once(&mut task.constraints, constraint.clone());
    }
    let process = task.process.get_or_insert_default();
    for key in &args.env_rm {
        remove(&mut process.env, warnings, &format!("--env-rm {key}"), |pair| {
            pair.split_once('=').map_or(pair.as_str(), |(k, _)| k) == key
        });
    }
    let env = std::mem::take(&mut process.env);
    process.env = parse::merge_env(env, given_env("--env-add", &args.env_add)?);
    for capability in &args.cap_rm {
        remove(&mut process.cap_add, warnings, &format!("--cap-rm {capability}"), |c| c == capability);
    }
    Ok(())
}

fn update_ports(
    args: &UpdateArgs,
    spec: &mut pb::ServiceSpec,
    published: &[pb::PublishedPort],
    warnings: &mut Vec<String>,
) {
    let number = |at: usize, asked: &pb::PortSpec| published.get(at).map_or(asked.published, |p| p.published);
    let with_number = |(at, spec): (usize, pb::PortSpec)| Known { number: number(at, &spec), spec };
    let mut known: Vec<Known> = spec.ports.drain(..).enumerate().map(with_number).collect();
    for port in &args.publish_rm {
        if !port.remove_from(&mut known) {
            warnings.push(format!("--publish-rm {port}: no such port is published"));
        }
    }
    spec.ports = known.into_iter().map(|known| known.spec).collect();
    for port in args.publish_add.iter().flat_map(|publish| &publish.0) {
        // The same published number again changes its target, as in docker, and how it is published.
        spec.ports.retain(|old| !parse::replaces(port, old));
        spec.ports.push(port.clone());
    }
}

fn update_networks(
    args: &UpdateArgs,
    spec: &mut pb::ServiceSpec,
    names: &BTreeMap<String, String>,
    warnings: &mut Vec<String>,
) {
    let is = |attachment: &pb::AttachmentSpec, wanted: &str| {
        attachment.network == wanted || names.get(&attachment.network).is_some_and(|name| name == wanted)
    };
    for network in &args.network_rm {
        remove(&mut spec.networks, warnings, &format!("--network-rm {network}"), |a| is(a, network));
    }
    for added in &args.network_add {
        spec.networks.retain(|a| !is(a, &added.network));
        spec.networks.push(added.clone());
    }
}

fn update_dns(args: &UpdateArgs, spec: &mut pb::ServiceSpec, warnings: &mut Vec<String>) {
    let (flags, dns) = (&args.dns, spec.dns.get_or_insert_default());
    let text = |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    for (flag, list, gone, added) in [
        ("--dns-rm", &mut dns.servers, text(&flags.servers_rm), text(&flags.servers_add)),
        ("--dns-search-rm", &mut dns.search, flags.search_rm.clone(), flags.search_add.clone()),
        ("--dns-option-rm", &mut dns.options, flags.options_rm.clone(), flags.options_add.clone()),
    ] {
        for item in gone {
            remove(list, warnings, &format!("{flag} {item}"), |known| *known == item);
        }
        for item in added {
            add_once(list, item);
        }
    }
}
