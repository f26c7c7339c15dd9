//! Resolver settings of a service's tasks.

use std::net::IpAddr;

use clap::Args;

/// Of `service create`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct DnsFlags {
    /// Server that tasks ask for names of the outside, in place of the node's; repeatable
    #[arg(long = "dns", value_name = "ADDRESS")]
    pub(crate) servers: Vec<IpAddr>,
    /// Domain that tasks try names in, in place of the node's ('.': none); repeatable
    #[arg(long = "dns-search", value_name = "DOMAIN")]
    pub(crate) search: Vec<String>,
    /// Option of the tasks' resolv.conf, as in ndots:2; repeatable
    #[arg(long = "dns-option", value_name = "OPTION")]
    pub(crate) options: Vec<String>,
}

/// Of `service update`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct DnsUpdateFlags {
    /// Add a server for names of the outside
    #[arg(long = "dns-add", value_name = "ADDRESS")]
    pub(crate) servers_add: Vec<IpAddr>,
    /// Remove a server for names of the outside
    #[arg(long = "dns-rm", value_name = "ADDRESS")]
    pub(crate) servers_rm: Vec<IpAddr>,
    /// Add a domain that names are tried in
    #[arg(long = "dns-search-add", value_name = "DOMAIN")]
    pub(crate) search_add: Vec<String>,
    /// Remove a domain that names are tried in
    #[arg(long = "dns-search-rm", value_name = "DOMAIN")]
    pub(crate) search_rm: Vec<String>,
    /// Add an option of the tasks' resolv.conf
    #[arg(long = "dns-option-add", value_name = "OPTION")]
    pub(crate) options_add: Vec<String>,
    /// Remove an option of the tasks' resolv.conf
    #[arg(long = "dns-option-rm", value_name = "OPTION")]
    pub(crate) options_rm: Vec<String>,
}
