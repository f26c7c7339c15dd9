//! The command line. What is not built yet is absent here and therefore a usage error.

mod cluster;
mod dns;
mod health;
mod service;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::client::parse_host;
use crate::parse;

pub(crate) use cluster::{
    Driver, InitArgs, JoinArgs, JoinTokenRole, LeaveArgs, NetworkCommand, NetworkCreateArgs, NodeCommand,
    NodeUpdateArgs, SwarmCommand, SwarmUpdateArgs, TokenCommand, TokenCreateArgs,
};
pub(crate) use health::HealthFlags;
pub(crate) use service::{
    ChangeFlags, CreateArgs, LogsArgs, Mode, PsArgs, Runtime, ScaleTarget, ServiceCommand, TaskFlags,
    UpdateArgs,
};

/// Makes a set of Linux hosts behave as one.
#[derive(Debug, Parser)]
#[command(name = "shoal", version, propagate_version = true, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is one switch of the command line")]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The node to talk to, by its socket
    #[arg(short = 'H', long, global = true, env = "SHOAL_HOST", value_name = "unix://PATH",
          default_value = "unix:///run/shoal/api.sock", value_parser = parse_host, hide_env_values = true)]
    pub(crate) host: PathBuf,
    /// Print one JSON document
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// No colour
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
    /// Print ids or names only
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Say more on standard error
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
    /// How long to wait before giving up (what was started goes on)
    #[arg(long, global = true, value_name = "TIME", default_value = "5m", value_parser = parse::duration)]
    pub(crate) timeout: Duration,
    /// Answer yes to every question
    #[arg(long, global = true)]
    pub(crate) yes: bool,
}

/// Nouns and single verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make, join or leave a swarm
    #[command(subcommand)]
    Swarm(SwarmCommand),
    /// The hosts of the swarm
    #[command(subcommand)]
    Node(NodeCommand),
    /// Overlay networks
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Services and their tasks
    #[command(subcommand)]
    Service(ServiceCommand),
    /// The state of the swarm at a glance
    Status,
    /// Check this host and node, in a swarm or not; exit code 9 if a check fails
    Doctor {
        /// A manager that must be reachable from here, as 10.0.3.11; repeatable
        #[arg(long = "peer", value_name = "ADDR[:PORT]", value_parser = parse::peer)]
        peers: Vec<std::net::SocketAddr>,
    },
    /// Explain an error code, as in E0214
    Explain {
        /// The code
        #[arg(value_name = "CODE")]
        code: String,
    },
    /// Versions of this program and of the node
    Version,
    /// Print a completion script for a shell
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
}

/// Shells that completion is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Shell {
    /// GNU bash
    Bash,
    /// Z shell
    Zsh,
    /// fish
    Fish,
}

/// How a list is printed and narrowed down.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ListFlags {
    /// 'json' (one object a line), 'table {{.Name}}\t{{.ID}}' or '{{.Name}}'
    #[arg(long, value_name = "FORMAT", conflicts_with = "json")]
    pub(crate) format: Option<String>,
    /// Only those that match, as in name=web; repeatable
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse::filter)]
    pub(crate) filter: Vec<(String, String)>,
    /// Print ids and commands whole
    #[arg(long)]
    pub(crate) no_trunc: bool,
}

/// Which objects to show, and how.
#[derive(Debug, Clone, Args)]
pub(crate) struct InspectArgs {
    /// 'json' (one object a line) or '{{.Spec.Name}}'
    #[arg(long, value_name = "FORMAT", conflicts_with = "json")]
    pub(crate) format: Option<String>,
    /// Names, ids or unique prefixes of ids
    #[arg(required = true, value_name = "NAME")]
    pub(crate) targets: Vec<String>,
}

/// Which objects to remove.
#[derive(Debug, Clone, Args)]
pub(crate) struct RemoveArgs {
    /// Check and say what would happen, change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Names, ids or unique prefixes of ids
    #[arg(required = true, value_name = "NAME")]
    pub(crate) targets: Vec<String>,
}
