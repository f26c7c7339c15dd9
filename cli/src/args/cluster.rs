//! swarm, node and network.

use clap::{Args, Subcommand, ValueEnum};
use shoal_types::LbEngine;

use super::{InspectArgs, ListFlags, RemoveArgs};
use crate::parse;

/// `shoal swarm ...`
#[derive(Debug, Subcommand)]
pub(crate) enum SwarmCommand {
    /// Make a swarm with this node as its manager
    Init(InitArgs),
    /// Join this node to a swarm
    Join(JoinArgs),
    /// Take this node out of its swarm
    Leave(LeaveArgs),
    /// Change settings of the swarm
    Update(SwarmUpdateArgs),
    /// Join tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Make a token and print the line that joins with it
    JoinToken {
        /// Role of the nodes that join
        #[arg(value_enum)]
        role: JoinTokenRole,
    },
}

/// `shoal swarm init`
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Name of the swarm (chosen when absent)
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Address or interface others reach this node at, as in 10.0.3.11, eth1 or eth1:7400 (port: node.listen's)
    #[arg(long, value_name = "ADDR|IFACE[:PORT]")]
    pub(crate) advertise_addr: Option<String>,
    /// Address or interface of the overlay traffic (default: as --advertise-addr)
    #[arg(long, value_name = "ADDR|IFACE")]
    pub(crate) data_path_addr: Option<String>,
    /// UDP port of the overlay traffic
    #[arg(long, value_name = "PORT", default_value_t = 7378, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) data_path_port: u16,
    /// Pool that networks are cut from, IPv4 or IPv6; repeatable (default: 10.192.0.0/10 and a random fd../48)
    #[arg(long, value_name = "CIDR", value_parser = cidr)]
    pub(crate) default_addr_pool: Vec<String>,
    /// Prefix length of a network cut from a pool
    #[arg(long, value_name = "LENGTH", default_value_t = 20, value_parser = clap::value_parser!(u8).range(8..=29))]
    pub(crate) default_addr_pool_mask_length: u8,
    /// What balances on nodes without a setting of their own: auto (ebpf), ipvs or ebpf
    #[arg(long, value_name = "ENGINE", default_value_t = LbEngine::Auto)]
    pub(crate) lb_engine: LbEngine,
}

/// `shoal swarm update`
#[derive(Debug, Args)]
pub(crate) struct SwarmUpdateArgs {
    /// What balances on nodes without a setting of their own: auto (ebpf), ipvs or ebpf
    #[arg(long, value_name = "ENGINE", required = true)]
    pub(crate) lb_engine: LbEngine,
    /// Check and say what would change, change nothing (exit code 10: something would)
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// `shoal swarm join`
#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// Join token, from 'shoal swarm token create' on a manager
    #[arg(long, value_name = "TOKEN")]
    pub(crate) token: String,
    /// Address or interface others reach this node at
    #[arg(long, value_name = "ADDR|IFACE")]
    pub(crate) advertise_addr: Option<String>,
    /// Address or interface of the overlay traffic (default: as --advertise-addr)
    #[arg(long, value_name = "ADDR|IFACE")]
    pub(crate) data_path_addr: Option<String>,
    /// Managers to ask, one after another (port 7377 when absent)
    #[arg(required = true, value_name = "HOST[:PORT]")]
    pub(crate) managers: Vec<String>,
}

/// `shoal swarm leave`
#[derive(Debug, Args)]
pub(crate) struct LeaveArgs {
    /// Leave even if this node is a manager
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// `shoal swarm token ...`
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a join token
    Create(TokenCreateArgs),
    /// List join tokens (without their secrets)
    Ls {
        #[command(flatten)]
        list: ListFlags,
    },
    /// Revoke join tokens
    Rm(RemoveArgs),
}

/// `shoal swarm token create`
#[derive(Debug, Args)]
pub(crate) struct TokenCreateArgs {
    /// Role of the nodes that join with it
    #[arg(long, value_enum, default_value_t = JoinTokenRole::Worker)]
    pub(crate) role: JoinTokenRole,
    /// How long it is valid
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = lifetime)]
    pub(crate) ttl: u64,
    /// How many nodes may join with it (default: no limit)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) uses: Option<u32>,
}

/// Roles a token can be made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum JoinTokenRole {
    /// Runs tasks
    Worker,
}

/// `shoal node ...`
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List the nodes
    Ls {
        #[command(flatten)]
        list: ListFlags,
    },
    /// Show nodes whole
    Inspect(InspectArgs),
    /// List the tasks on nodes (default: this one)
    Ps {
        #[command(flatten)]
        list: ListFlags,
        /// Also tasks that ended
        #[arg(short, long)]
        all: bool,
        /// Names, ids or unique prefixes of ids
        #[arg(value_name = "NODE")]
        targets: Vec<String>,
    },
    /// Change what the scheduler may do with nodes, what share of new connections their tasks get, and their labels
    Update(NodeUpdateArgs),
    /// Remove nodes that are down, or drained and empty, from the swarm
    Rm {
        /// Whatever its state
        #[arg(short, long)]
        force: bool,
        #[command(flatten)]
        remove: RemoveArgs,
    },
}

/// `shoal node update`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true)
          .args(["availability", "weight", "label_add", "label_rm"]))]
pub(crate) struct NodeUpdateArgs {
    /// active: takes tasks; pause: keeps its tasks, takes no new ones; drain: its tasks move to other nodes
    #[arg(long, value_enum, value_name = "STATE")]
    pub(crate) availability: Option<NodeAvailability>,
    /// What share of new connections its tasks get, beside those of the same service on other nodes: 0 to 100, 1 unless set;
    /// 0: none, and those that are open go on. Not for ports in host mode
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) weight: Option<u32>,
    /// Add or replace a label; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::label)]
    pub(crate) label_add: Vec<(String, String)>,
    /// Remove a label; repeatable
    #[arg(long, value_name = "KEY")]
    pub(crate) label_rm: Vec<String>,
    /// Check and say what would change, change nothing (exit code 10: something would)
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Names, ids or unique prefixes of ids; self: this node
    #[arg(required = true, value_name = "NODE")]
    pub(crate) targets: Vec<String>,
}

/// What the scheduler may do with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NodeAvailability {
    /// Place tasks there
    Active,
    /// Leave it as it is
    Pause,
    /// Empty it
    Drain,
}

impl From<NodeAvailability> for shoal_api::pb::Availability {
    fn from(availability: NodeAvailability) -> Self {
        match availability {
            NodeAvailability::Active => Self::Active,
            NodeAvailability::Pause => Self::Pause,
            NodeAvailability::Drain => Self::Drain,
        }
    }
}

/// `shoal network ...`
#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Make an overlay network
    Create(NetworkCreateArgs),
    /// List the networks
    Ls {
        #[command(flatten)]
        list: ListFlags,
    },
    /// Show networks whole
    Inspect(InspectArgs),
    /// Remove networks
    Rm(RemoveArgs),
}

/// `shoal network create`
#[derive(Debug, Args)]
pub(crate) struct NetworkCreateArgs {
    /// Kind of network
    #[arg(short, long, value_enum, default_value_t = Driver::Overlay)]
    pub(crate) driver: Driver,
    /// Subnet, at most one IPv4 and one IPv6 (default: from the pools)
    #[arg(long, value_name = "CIDR", value_parser = cidr)]
    pub(crate) subnet: Vec<String>,
    /// No way out of the network
    #[arg(long)]
    pub(crate) internal: bool,
    /// Label, as in team=blue; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::label)]
    pub(crate) label: Vec<(String, String)>,
    /// Check and say what would happen, change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Name of the network
    pub(crate) name: String,
}

/// Kinds of networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Driver {
    /// VXLAN between the nodes
    Overlay,
}

/// A subnet; host bits are the manager's to judge, which knows the rest of the rules.
fn cidr(text: &str) -> Result<String, String> {
    match text.parse::<ipnet::IpNet>() {
        Ok(net) => Ok(net.to_string()),
        Err(_) => Err(format!("'{text}' is not a subnet; write it as 10.10.0.0/20 or fd00:1::/64")),
    }
}

fn lifetime(text: &str) -> Result<u64, String> {
    match parse::millis(text)? {
        0 => Err("a token without a life time cannot be used".to_owned()),
        ms => Ok(ms),
    }
}
