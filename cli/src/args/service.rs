//! service.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand, ValueEnum};
use shoal_api::pb;
use shoal_types::LbPolicy;
use shoal_types::spec::EndpointMode;

use super::dns::{DnsFlags, DnsUpdateFlags};
use super::{HealthFlags, InspectArgs, ListFlags, RemoveArgs};
use crate::parse;

/// `shoal service ...`
#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Make a service
    Create(Box<CreateArgs>),
    /// List the services
    Ls {
        #[command(flatten)]
        list: ListFlags,
    },
    /// List the tasks of services
    Ps(PsArgs),
    /// Show services whole
    Inspect(InspectArgs),
    /// Change a service
    Update(Box<UpdateArgs>),
    /// Set how many tasks services have
    Scale {
        #[command(flatten)]
        change: ChangeFlags,
        /// Services and their number of tasks, as in web=5
        #[arg(required = true, value_name = "SERVICE=REPLICAS", value_parser = scale_target)]
        targets: Vec<ScaleTarget>,
    },
    /// Print what a service's tasks write
    Logs(LogsArgs),
    /// Remove services
    Rm {
        /// Do not wait until the tasks are gone
        #[arg(short, long)]
        detach: bool,
        #[command(flatten)]
        remove: RemoveArgs,
    },
}

/// Flags of every change that is waited for.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ChangeFlags {
    /// Do not wait until the service has converged
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Check and say what would change, change nothing (exit code 10: something would)
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Replicated or on every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// A number of tasks, spread over the nodes
    Replicated,
    /// One task on every node
    Global,
}

/// What a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Runtime {
    /// A program of the host in namespaces of its own
    Process,
}

/// When a task that ended is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Condition {
    /// Never
    None,
    /// Unless it exited with 0
    OnFailure,
    /// Always
    Any,
}

/// Order of an update within a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Order {
    /// The new task runs before the old one stops
    StartFirst,
    /// The old task stops first
    StopFirst,
}

/// Settings that create and update share. Absent: the default, or as it was.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TaskFlags {
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User name or UID[:GID]
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Host name inside the task (templates allowed)
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Capability to keep, as in NET_BIND_SERVICE; repeatable
    #[arg(long, value_name = "CAP", value_parser = parse::capability)]
    pub(crate) cap_add: Vec<String>,
    /// The root file system is read-only
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) read_only: Option<bool>,
    /// CPUs a task may use, as in 0.5 (0: no limit)
    #[arg(long, value_name = "CPUS", value_parser = parse::cpus)]
    pub(crate) limit_cpu: Option<u64>,
    /// Memory a task may use, as in 64m (0: no limit)
    #[arg(long, value_name = "BYTES", value_parser = parse::bytes)]
    pub(crate) limit_memory: Option<u64>,
    /// Processes and threads a task may have (0: no limit)
    #[arg(long, value_name = "N")]
    pub(crate) limit_pids: Option<u64>,
    /// CPUs set aside for a task
    #[arg(long, value_name = "CPUS", value_parser = parse::cpus)]
    pub(crate) reserve_cpu: Option<u64>,
    /// Memory set aside for a task
    #[arg(long, value_name = "BYTES", value_parser = parse::bytes)]
    pub(crate) reserve_memory: Option<u64>,
    /// At most so many tasks of the service on a node (0: no limit)
    #[arg(long, value_name = "N")]
    pub(crate) replicas_max_per_node: Option<u32>,
    /// When a task that ended is replaced
    #[arg(long, value_enum, value_name = "WHEN")]
    pub(crate) restart_condition: Option<Condition>,
    /// Pause before the replacement
    #[arg(long, value_name = "TIME", value_parser = parse::millis)]
    pub(crate) restart_delay: Option<u64>,
    /// Replacements within the window before giving up (0: no limit)
    #[arg(long, value_name = "N")]
    pub(crate) restart_max_attempts: Option<u32>,
    /// Window that attempts are counted in (0: for ever)
    #[arg(long, value_name = "TIME", value_parser = parse::millis)]
    pub(crate) restart_window: Option<u64>,
    /// Tasks updated at a time (0: all)
    #[arg(long, value_name = "N")]
    pub(crate) update_parallelism: Option<u32>,
    /// Pause between batches of an update
    #[arg(long, value_name = "TIME", value_parser = parse::millis)]
    pub(crate) update_delay: Option<u64>,
    /// Old task out first or new one in first (of a new service start-first, with a port in host
    /// mode stop-first)
    #[arg(long, value_enum, value_name = "ORDER")]
    pub(crate) update_order: Option<Order>,
    /// Signal that asks a task to stop
    #[arg(long, value_name = "SIGNAL", value_parser = parse::signal)]
    pub(crate) stop_signal: Option<i32>,
    /// Time from that signal to SIGKILL
    #[arg(long, value_name = "TIME", value_parser = parse::millis)]
    pub(crate) stop_grace_period: Option<u64>,
    /// Longest time from 'out of every load balancer' to the stop signal; sooner with no connection left
    #[arg(long, value_name = "TIME", value_parser = parse::millis)]
    pub(crate) drain: Option<u64>,
    /// How new flows are spread over the tasks: auto, rr, leastconn (engine ipvs only), maglev, source or
    /// random (engine ebpf only)
    #[arg(long, value_name = "POLICY")]
    pub(crate) lb: Option<LbPolicy>,
    /// What the service's name stands for: vip (one virtual IP) or dnsrr (the addresses of its tasks, in turn)
    #[arg(long, value_name = "MODE")]
    pub(crate) endpoint_mode: Option<EndpointMode>,
    #[command(flatten)]
    pub(crate) health: HealthFlags,
}

/// `shoal service create`
#[derive(Debug, Args)]
#[command(override_usage = "shoal service create [OPTIONS] --name <NAME> [--] <PROGRAM> [ARG]...")]
pub(crate) struct CreateArgs {
    /// Name of the service; a DNS label
    #[arg(long, value_name = "NAME")]
    pub(crate) name: String,
    /// What a task is
    #[arg(long, value_enum, default_value_t = Runtime::Process)]
    pub(crate) runtime: Runtime,
    /// A number of tasks, or one on every node
    #[arg(long, value_enum, default_value_t = Mode::Replicated)]
    pub(crate) mode: Mode,
    /// Number of tasks (default: 1)
    #[arg(long, value_name = "N")]
    pub(crate) replicas: Option<u32>,
    /// Port to publish, as in 8080:80, 8000-8010:80-90/udp, 80 (the swarm chooses one of 30000-32767), 192.0.2.1:8080:80,
    /// 5060:5060/sctp, or published=8080,target=80,protocol=tcp|udp|sctp,mode=ingress|host,ip=ADDR,proxy-protocol=v2,
    /// dsr=true|false; repeatable
    #[arg(short, long, value_name = "PORT", value_parser = parse::publish)]
    pub(crate) publish: Vec<parse::Publish>,
    /// Network of the tasks, NAME or name=NAME,alias=OTHER,alias=...; repeatable
    #[arg(long, value_name = "NETWORK", value_parser = parse::network)]
    pub(crate) network: Vec<pb::AttachmentSpec>,
    /// Environment variable, KEY=VALUE, or KEY to pass this shell's on; repeatable
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) env: Vec<String>,
    /// File of environment variables; repeatable
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Where tasks may run, as in node.labels.zone==a; repeatable
    #[arg(long, value_name = "CONSTRAINT", value_parser = parse::constraint)]
    pub(crate) constraint: Vec<String>,
    /// Label of the service; repeatable
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse::label)]
    pub(crate) label: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) dns: DnsFlags,
    #[command(flatten)]
    pub(crate) task: TaskFlags,
    #[command(flatten)]
    pub(crate) change: ChangeFlags,
    /// The program and its arguments; what follows the program belongs to it
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    pub(crate) command: Vec<String>,
}

/// `shoal service update`
#[derive(Debug, Args)]
#[command(override_usage = "shoal service update [OPTIONS] <SERVICE> [-- <PROGRAM> [ARG]...]")]
pub(crate) struct UpdateArgs {
    /// Number of tasks
    #[arg(long, value_name = "N")]
    pub(crate) replicas: Option<u32>,
    /// Replace the tasks even if nothing changed
    #[arg(long)]
    pub(crate) force: bool,
    /// Overwrite changes made by somebody else meanwhile
    #[arg(long)]
    pub(crate) force_version: bool,
    /// The program and its arguments in one, as in "python3 -m http.server 80"
    #[arg(long, value_name = "COMMAND", conflicts_with = "program")]
    pub(crate) command: Option<String>,
    /// Arguments of the program in one, as in "-m http.server 80"
    #[arg(long, value_name = "ARGS", conflicts_with = "program", allow_hyphen_values = true)]
    pub(crate) args: Option<String>,
    /// Publish a port, or change how it is published; forms as for create
    #[arg(long, value_name = "PORT", value_parser = parse::publish)]
    pub(crate) publish_add: Vec<parse::Publish>,
    /// Unpublish, by target port, published port, 8080:80, a range of these, or keys as in published=8080,mode=host
    #[arg(long, value_name = "PORT", value_parser = parse::port_match)]
    pub(crate) publish_rm: Vec<parse::PortMatch>,
    /// Attach to a network, or give other aliases in one: NAME or name=NAME,alias=OTHER,alias=...
    #[arg(long, value_name = "NETWORK", value_parser = parse::network)]
    pub(crate) network_add: Vec<pb::AttachmentSpec>,
    /// Detach from a network
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network_rm: Vec<String>,
    /// Add or replace an environment variable
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) env_add: Vec<String>,
    /// Remove an environment variable
    #[arg(long, value_name = "KEY")]
    pub(crate) env_rm: Vec<String>,
    /// Add a placement constraint
    #[arg(long, value_name = "CONSTRAINT", value_parser = parse::constraint)]
    pub(crate) constraint_add: Vec<String>,
    /// Remove a placement constraint
    #[arg(long, value_name = "CONSTRAINT", value_parser = parse::constraint)]
    pub(crate) constraint_rm: Vec<String>,
    /// Add or replace a label
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::label)]
    pub(crate) label_add: Vec<(String, String)>,
    /// Remove a label
    #[arg(long, value_name = "KEY")]
    pub(crate) label_rm: Vec<String>,
    /// Take a capability away again
    #[arg(long, value_name = "CAP", value_parser = parse::capability)]
    pub(crate) cap_rm: Vec<String>,
    /// Take the health check away
    #[arg(long, conflicts_with_all = ["health_cmd", "health_http", "health_tcp", "health_interval",
          "health_timeout", "health_retries", "health_start_period"])]
    pub(crate) no_healthcheck: bool,
    #[command(flatten)]
    pub(crate) dns: DnsUpdateFlags,
    #[command(flatten)]
    pub(crate) task: TaskFlags,
    #[command(flatten)]
    pub(crate) change: ChangeFlags,
    /// Name, id or unique prefix of an id
    #[arg(value_name = "SERVICE")]
    pub(crate) target: String,
    /// A new program and its arguments
    #[arg(last = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<String>,
}

/// `shoal service ps`
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    #[command(flatten)]
    pub(crate) list: ListFlags,
    /// Also tasks that ended
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Names, ids or unique prefixes of ids
    #[arg(required = true, value_name = "SERVICE")]
    pub(crate) targets: Vec<String>,
}

/// `shoal service logs`
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Go on as lines are written
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Lines from the end of each task's log, or 'all'
    #[arg(short = 'n', long, value_name = "N", default_value = "all", value_parser = Tail::parse)]
    pub(crate) tail: Tail,
    /// Put the time before each line
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// Lines without the task's name
    #[arg(long, action = ArgAction::SetTrue)]
    pub(crate) raw: bool,
    /// A service, or a task as in web.1
    #[arg(value_name = "SERVICE|TASK")]
    pub(crate) target: String,
}

/// `--tail`: a number of lines, or all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tail(pub(crate) Option<u32>);

impl Tail {
    fn parse(text: &str) -> Result<Self, String> {
        parse::tail(text).map(Self)
    }
}

/// One `SERVICE=REPLICAS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScaleTarget {
    /// The service.
    pub(crate) service: String,
    /// Number of tasks it shall have.
    pub(crate) replicas: u32,
}

fn scale_target(text: &str) -> Result<ScaleTarget, String> {
    let bad = || format!("'{text}' is not SERVICE=REPLICAS; write it as web=5");
    let (service, replicas) = text.split_once('=').ok_or_else(bad)?;
    let replicas = replicas.parse().map_err(|_| bad())?;
    if service.is_empty() {
        return Err(bad());
    }
    Ok(ScaleTarget { service: service.to_owned(), replicas })
}

impl From<Condition> for pb::RestartCondition {
    fn from(condition: Condition) -> Self {
        match condition {
            Condition::None => Self::None,
            Condition::OnFailure => Self::OnFailure,
            Condition::Any => Self::Any,
        }
    }
}

impl From<Order> for pb::UpdateOrder {
    fn from(order: Order) -> Self {
        match order {
            Order::StartFirst => Self::StartFirst,
            Order::StopFirst => Self::StopFirst,
        }
    }
}
