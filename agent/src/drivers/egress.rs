//! The nftables table `inet shoal`: tasks leave by masquerade, nothing gets in by it, and tunnels stay out of
//! connection tracking. The mesh's own traffic never meets it.
//!
//! The table carries its parameters as its comment, so that what is there can be told from what should be, and is
//! replaced as a whole in one transaction. Needs the `nft` program.

mod nft;

use std::fmt::Write as _;
use std::io;
use std::sync::Mutex;

use ipnet::{Ipv4Net, Ipv6Net};
use shoal_plan::name::EGRESS_BRIDGE;
use shoal_plan::object::Firewall;

use super::link::Writes;

use nft::Nft;

const TABLE: &str = "inet shoal";

/// What can go wrong with the table.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// The program could not be run.
    #[error("cannot run nft (package nftables), which writes the masquerade rules")]
    Program(#[source] io::Error),
    /// It refused.
    #[error("nft could not {action}: {message}")]
    Refused {
        /// What was being done.
        action: &'static str,
        /// What it said.
        message: String,
    },
    /// It did not end.
    #[error(
        "nft, which writes the masquerade rules, did not end within {} s; it is run again in a minute",
        nft::LIMIT.as_secs()
    )]
    Hung,
}

impl EgressError {
    /// Whether the program is not installed.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Program(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// The driver of the table.
#[derive(Debug)]
pub struct Egress {
    nft: Nft,
    writes: Writes,
    /// The table as nft listed it after it was written: any other listing is drift.
    written: Mutex<Option<String>>,
}

impl Egress {
    /// A driver that knows of nothing written yet.
    pub fn new(writes: Writes) -> Self {
        Self { nft: Nft::default(), writes, written: Mutex::default() }
    }

    /// Whether `nft` is there to be run.
    pub async fn probe() -> Result<(), EgressError> {
        Nft::default().call(&["--version"], None, "tell its version").await
    }

    /// Whether the kernel has tables of this family at all. Anything else that is wrong shows when one is written.
    pub async fn is_supported(&self) -> bool {
        let asked = self.nft.run(&["-c", "-f", "-"], Some("add table inet shoal\n")).await;
        let Ok(output) = asked else { return true };
        let refused = io::Error::from_raw_os_error(libc::EOPNOTSUPP).to_string();
        let words = refused.split(" (os error").next().unwrap_or_default();
        output.status.success() || !String::from_utf8_lossy(&output.stderr).contains(words)
    }

    /// The table in the kernel, if there is one.
    pub async fn observe(&self) -> Result<Option<Firewall>, EgressError> {
        let listed = match self.nft.list().await {
            // A kernel without such tables has none.
            Err(EgressError::Refused { .. }) if !self.is_supported().await => None,
            listed => listed?,
        };
        let Some(listing) = listed else { return Ok(None) };
        let Some(mut firewall) = parse_comment(&listing) else {
            return Ok(Some(Firewall {
                v4: Ipv4Net::default(),
                v6: Ipv6Net::default(),
                data_port: 0,
                ports: [(0, 0); 2],
                intact: false,
            }));
        };
        let mut written = self.written.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*written {
            Some(known) => firewall.intact = *known == listing,
            // After a restart: a table with all of its rules is taken for ours as it is.
            None => firewall.intact = rules_in(&listing) == rules_in(&script(&firewall)),
        }
        if firewall.intact {
            *written = Some(listing);
        }
        Ok(Some(firewall))
    }

    /// Writes the table, in one transaction.
    pub async fn ensure(&self, firewall: &Firewall) -> Result<(), EgressError> {
        self.nft.call(&["-f", "-"], Some(&script(firewall)), "write the table").await?;
        self.writes.count();
        let listing = self.nft.list().await?;
        *self.written.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = listing;
        Ok(())
    }

    /// Removes the table. One that isn't there is removed.
    pub async fn remove(&self) -> Result<(), EgressError> {
        if self.nft.list().await?.is_some() {
            self.nft.call(&["delete", "table", "inet", "shoal"], None, "remove the table").await?;
            self.writes.count();
        }
        Ok(())
    }
}

/// The whole table. The first two lines make the replacement work whether there was one or not.
fn script(firewall: &Firewall) -> String {
    let Firewall { v4, v6, data_port, ports, .. } = firewall;
    let [low, high] = ports.map(|(first, last)| format!("{first}-{last}"));
    let mut text = format!("add table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n");
    // Writing to a String cannot fail.
    let _written = write!(
        text,
        "  comment \"shoal {v4} {v6} {data_port} {low} {high}\"
  chain untracked_in {{
    type filter hook prerouting priority raw; policy accept;
    udp dport {data_port} notrack
  }}
  chain untracked_out {{
    type filter hook output priority raw; policy accept;
    udp dport {data_port} notrack
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    oifname \"{EGRESS_BRIDGE}\" ct state established,related accept
    oifname \"{EGRESS_BRIDGE}\" drop
  }}
  chain egress {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {v4} oifname != \"{EGRESS_BRIDGE}\" goto leave
    ip6 saddr {v6} oifname != \"{EGRESS_BRIDGE}\" goto leave
  }}
  chain leave {{
    tcp sport 1-1023 masquerade to :{low}
    udp sport 1-1023 masquerade to :{low}
    sctp sport 1-1023 masquerade to :{low}
    meta l4proto tcp masquerade to :{high}
    meta l4proto udp masquerade to :{high}
    meta l4proto sctp masquerade to :{high}
    masquerade
  }}
}}
"
    );
    text
}

/// How many rules and chains a listing or a script has, apart from how it is set out.
fn rules_in(text: &str) -> usize {
    text.lines()
        .map(str::trim)
        .filter(|line| {
            ["chain ", "tcp ", "udp ", "sctp ", "oifname ", "ip saddr ", "ip6 saddr ", "meta ", "masquerade"]
                .iter()
                .any(|word| line.starts_with(word))
        })
        .count()
}

fn parse_comment(listing: &str) -> Option<Firewall> {
    let comment = listing.lines().find_map(|line| line.trim().strip_prefix("comment \"shoal "))?;
    let mut words = comment.strip_suffix('"')?.split(' ');
    let (v4, v6) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let data_port = words.next()?.parse().ok()?;
    let mut range = || {
        let (first, last) = words.next()?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    Some(Firewall { v4, v6, data_port, ports: [range()?, range()?], intact: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_tells_its_parameters() {
        let firewall = Firewall {
            v4: "172.31.240.0/20".parse().expect("literal"),
            v6: "fd5a::/64".parse().expect("literal"),
            data_port: 7378,
            ports: [(124, 1023), (8081, 65_535)],
            intact: true,
        };
        let text = script(&firewall);
        assert_eq!(rules_in(&text), 18);
        assert_eq!(parse_comment(&text), Some(firewall));
    }
}
