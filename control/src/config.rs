//! The command line of `shoal-control`, parsed and checked once.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use shoal_core::command::Pools;
use shoal_core::liveness::LivenessConfig;
use shoal_types::LbEngine;
use shoal_types::id::Name;

use crate::seal::{self, SealError};

/// Where networks take their subnets from unless told otherwise.
const DEFAULT_POOL: &str = "10.192.0.0/10";

/// Manager of a shoal cluster: Raft, CA, API, scheduler, dispatcher.
///
/// shoald starts it as a child under a user of its own without any capability and supervises it; running it by hand
/// is for debugging. It needs the state directory to itself. It prints "ready" on stdout once it has the state and
/// serves --socket, and stops on SIGTERM. Logs go to stderr.
#[derive(Debug, Clone, Parser)]
#[command(name = "shoal-control", version)]
pub struct Args {
    /// Directory of the manager's state: raft/ (sealed log and snapshots), pki/ (its own key and certificate), data.key
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Local socket of the operator's API (mode 0660: who may open it is an operator)
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Where to listen for nodes and other managers
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// Where nodes and other managers dial this one
    #[arg(long, value_name = "ADDR:PORT")]
    pub advertise: SocketAddr,
    /// Source address of this node's VXLAN frames
    #[arg(long, value_name = "IP")]
    pub data_addr: IpAddr,
    /// Found a new cluster; a state that exists is used as it is
    #[arg(long)]
    pub bootstrap: bool,
    /// With --bootstrap: name of the cluster; chosen if absent
    #[arg(long, value_name = "NAME")]
    pub cluster_name: Option<Name>,
    /// With --bootstrap: name of this node; the host's if absent
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// With --bootstrap: UDP port of the overlay
    #[arg(long, value_name = "PORT", default_value_t = 7378, value_parser = clap::value_parser!(u16).range(1..))]
    pub data_port: u16,
    /// With --bootstrap: block that networks take their subnets from (repeat it for more; one IPv6 /48 may be among
    /// them, a random unique local one is drawn if not) [default: 10.192.0.0/10]
    #[arg(long, value_name = "CIDR")]
    pub pool: Vec<IpNet>,
    /// With --bootstrap: prefix length of an IPv4 subnet taken from the pool
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u8).range(8..=29))]
    pub pool_size: u8,
    /// With --bootstrap: how long certificates of nodes and managers live, at least 60; they are renewed at 50 to 80 %
    /// of that
    #[arg(long, value_name = "SECONDS", default_value_t = 604_800,
          value_parser = clap::value_parser!(u64).range(60..=315_360_000))]
    pub cert_lifetime: u64,
    /// With --bootstrap: what balances on nodes without a setting of their own: auto, ipvs or ebpf
    #[arg(long, value_name = "ENGINE", default_value_t = LbEngine::Auto)]
    pub lb_engine: LbEngine,
    /// A node that says nothing for so long is suspect: out of the load balancers until it says something
    #[arg(long, value_name = "MS", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1_000..=600_000))]
    pub suspect_after_ms: u64,
    /// A node that says nothing for so long is down: its tasks are replaced; longer than --suspect-after-ms
    #[arg(long, value_name = "MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(2_000..=3_600_000))]
    pub down_after_ms: u64,
    /// What to log: error, warn, info, debug, trace, or a filter such as shoal_control::raft=debug,info
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log: String,
    /// How to log
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// See `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line per event.
    Text,
    /// One JSON object per event.
    Json,
}

/// Why the pools can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// More than one IPv6 block.
    #[error("--pool: '{0}' is a second IPv6 block; give one /48")]
    SecondIpv6(Ipv6Net),
    /// Randomness for the IPv6 block.
    #[error(transparent)]
    Random(#[from] SealError),
}

impl Args {
    /// When silent nodes are suspect and down.
    pub fn liveness(&self) -> LivenessConfig {
        // A node is never taken for dead before it is suspected.
        let down_after_ms = self.down_after_ms.max(self.suspect_after_ms.saturating_add(1_000));
        LivenessConfig { suspect_after_ms: self.suspect_after_ms, down_after_ms }
    }

    /// The pools of a new cluster.
    pub fn pools(&self) -> Result<Pools, PoolError> {
        let mut v4 = Vec::new();
        let mut v6 = None;
        for block in &self.pool {
            match block {
                IpNet::V4(block) => v4.push(*block),
                IpNet::V6(block) if v6.is_some() => return Err(PoolError::SecondIpv6(*block)),
                IpNet::V6(block) => v6 = Some(*block),
            }
        }
        if v4.is_empty() {
            v4.extend(DEFAULT_POOL.parse::<Ipv4Net>());
        }
        let v6 = match v6 {
            Some(block) => block,
            None => unique_local(seal::random()?),
        };
        Ok(Pools { v4, v4_prefix: self.pool_size, v6 })
    }
}

/// A unique local /48 (RFC 4193 section 3.1) from 40 random bits.
fn unique_local(random: [u8; 5]) -> Ipv6Net {
    let mut octets = [0; 16];
    let [prefix, rest @ ..] = &mut octets;
    *prefix = 0xfd;
    let (global, _) = rest.split_at_mut(random.len());
    global.copy_from_slice(&random);
    Ipv6Net::new_assert(octets.into(), 48)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(more: &[&str]) -> Result<Args, clap::Error> {
        let fixed = "shoal-control --state-dir /s --socket /r/c.sock --listen [::]:7377 --advertise 10.0.0.1:7377 --data-addr 10.0.0.1";
        Args::try_parse_from(fixed.split(' ').chain(more.iter().copied()))
    }

    #[test]
    fn pools_have_defaults_and_take_both_families() {
        let pools = args(&[]).expect("parses").pools().expect("pools");
        assert_eq!(pools.v4, vec![DEFAULT_POOL.parse::<Ipv4Net>().expect("literal")]);
        assert_eq!((pools.v6.prefix_len(), pools.v6.addr().octets()[0], pools.v4_prefix), (48, 0xfd, 20));
        let given = args(&["--pool", "10.0.0.0/8", "--pool", "fd00:1:2::/48", "--pool-size", "24"]);
        let pools = given.expect("parses").pools().expect("pools");
        assert_eq!(pools.v6.to_string(), "fd00:1:2::/48");
        let two = args(&["--pool", "fd00:1:2::/48", "--pool", "fd00:1:3::/48"]);
        assert!(matches!(two.expect("parses").pools(), Err(PoolError::SecondIpv6(_))));
    }

    #[test]
    fn a_node_is_suspected_before_it_is_taken_for_dead() {
        let default = args(&[]).expect("parses").liveness();
        assert_eq!(default, LivenessConfig::default());
        let odd =
            args(&["--suspect-after-ms", "9000", "--down-after-ms", "3000"]).expect("parses").liveness();
        assert_eq!((odd.suspect_after_ms, odd.down_after_ms), (9_000, 10_000));
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        for bad in [
            ["--data-port", "0"],
            ["--pool", "10.0.0.0"],
            ["--pool-size", "33"],
            ["--cluster-name", "A_b"],
            ["--cert-lifetime", "59"],
            ["--lb-engine", "iptables"],
            ["--suspect-after-ms", "999"],
            ["--down-after-ms", "0"],
        ] {
            let error = args(&bad).expect_err(bad[1]).to_string();
            assert!(error.contains(bad[0]), "{error}");
        }
    }
}
