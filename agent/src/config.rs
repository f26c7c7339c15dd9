//! Settings: read once, checked whole, each with where it came from.
//!
//! Order: flag, then `SHOAL_*` environment, then the last drop-in that has it, then the main file, then the default.

mod keys;
mod source;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use shoal_types::LbEngine;
use shoal_types::id::Name;

use crate::drivers::bpf::BpfConfig;

pub use keys::{KEYS, KeyInfo};
pub use source::{ConfigError, Origin, Settings, Value};

/// How the daemon logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

impl LogFormat {
    /// As it is written in settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Where a manager listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// Address and port.
    pub address: SocketAddr,
    /// Whether somebody chose it; otherwise it is the default.
    pub is_set: bool,
}

/// Everything that can be set.
#[derive(Debug, Clone)]
pub struct Config {
    /// What must survive a restart.
    pub state_dir: PathBuf,
    /// Sockets and namespaces.
    pub run_dir: PathBuf,
    /// Pins of the data plane.
    pub bpf_dir: PathBuf,
    /// Level in the control group hierarchies.
    pub cgroup: String,
    /// The node's name.
    pub name: Name,
    /// Address or interface that others reach this node's manager by.
    pub advertise: Option<String>,
    /// Address or interface of the overlay.
    pub data_path: Option<String>,
    /// Where a manager listens.
    pub listen: Listen,
    /// MTU of the way to the peers, if the link's is not right.
    pub mtu: Option<u32>,
    /// What balances on this node; auto: what the swarm is set to.
    pub lb_engine: LbEngine,
    /// Whether the programs may open and make tunnel packets themselves; none: as the kernel is.
    pub fast_lane: Option<bool>,
    /// Whether interfaces of new tasks are netkit devices; none: where the kernel has them.
    pub netkit: Option<bool>,
    /// Flows that the tables of the data plane have room for.
    pub flow_entries: u32,
    /// Whether connections of tasks to virtual IPs are led to endpoints when they are made; `None`: where the kernel can.
    pub connect_hooks: Option<bool>,
    /// How long certificates live in a swarm that is made here.
    pub cert_lifetime: Duration,
    /// As a manager: silence after which a node is out of the load balancers.
    pub suspect_after: Duration,
    /// As a manager: silence after which a node's tasks are replaced.
    pub down_after: Duration,
    /// Where metrics are served; none: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Log filter.
    pub log: String,
    /// Log format.
    pub log_format: LogFormat,
    /// Where the host's resolvers stand.
    pub resolv_conf: PathBuf,
    /// Whether tasks have the host's search domains.
    pub dns_search: bool,
    /// Open files that a task may have until it asks for more; none: as many as shoald.
    pub task_files: Option<u64>,
}

impl Config {
    /// Where the data plane lives, and its sizes.
    pub fn data_plane(&self) -> BpfConfig {
        BpfConfig { flow_entries: self.flow_entries, ..BpfConfig::new(&self.bpf_dir) }
    }

    /// Checks settings.
    pub fn from_settings(settings: &Settings) -> Result<Self, ConfigError> {
        let text = |key: &str| settings.get(key).text.clone();
        let optional = |key: &str| Some(text(key)).filter(|value| !value.is_empty());
        Ok(Self {
            state_dir: directory(settings, "state_dir")?,
            run_dir: directory(settings, "run_dir")?,
            bpf_dir: directory(settings, "bpf_dir")?,
            cgroup: cgroup(settings)?,
            name: name(settings)?,
            advertise: optional("node.advertise"),
            data_path: optional("node.data_path"),
            listen: listen(settings)?,
            mtu: match text("network.mtu").as_str() {
                "auto" => None,
                _ => Some(mtu(settings)?),
            },
            lb_engine: parse(settings, "network.lb_engine", "use auto (as the swarm is set), ipvs or ebpf")?,
            fast_lane: switch(settings, "network.fast_lane")?,
            netkit: netkit(settings)?,
            flow_entries: flow_entries(settings)?,
            connect_hooks: switch(settings, "network.connect_hooks")?,
            cert_lifetime: cert_lifetime(settings)?,
            suspect_after: silence(settings, "agent.suspect_after", Duration::from_secs(1))?,
            down_after: down_after(settings)?,
            metrics: match text("observe.metrics").as_str() {
                "" | "off" => None,
                _ => Some(parse(settings, "observe.metrics", "use ADDRESS:PORT or off")?),
            },
            log: text("observe.log"),
            log_format: match text("observe.log_format").as_str() {
                "text" => LogFormat::Text,
                "json" => LogFormat::Json,
                _ => return Err(settings.refuse("observe.log_format", "use text or json")),
            },
            resolv_conf: crate::mounts::RESOLV_CONF.into(),
            dns_search: parse(settings, "dns.search", "use true or false")?,
            task_files: None,
        })
    }

    /// The local API's socket.
    pub fn api_socket(&self) -> PathBuf {
        self.run_dir.join("api.sock")
    }

    /// The manager's local socket.
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join("control/control.sock")
    }

    /// Keys and certificates.
    pub fn pki_dir(&self) -> PathBuf {
        self.state_dir.join("pki")
    }

    /// What the agent knows.
    pub fn agent_dir(&self) -> PathBuf {
        self.state_dir.join("agent")
    }
}

fn parse<T: std::str::FromStr>(settings: &Settings, key: &str, help: &str) -> Result<T, ConfigError> {
    settings.get(key).text.parse().map_err(|_| settings.refuse(key, help))
}

fn listen(settings: &Settings) -> Result<Listen, ConfigError> {
    const KEY: &str = "node.listen";
    const HELP: &str = "use ADDRESS:PORT, as [::]:7377";
    let address: SocketAddr = parse(settings, KEY, HELP)?;
    if address.port() == 0 {
        return Err(settings.refuse(KEY, HELP));
    }
    Ok(Listen { address, is_set: settings.get(KEY).origin != Origin::Default })
}

/// `None` is `auto`.
fn switch(settings: &Settings, key: &str) -> Result<Option<bool>, ConfigError> {
    match settings.get(key).text.as_str() {
        "auto" => Ok(None),
        "on" => Ok(Some(true)),
        "off" => Ok(Some(false)),
        _ => Err(settings.refuse(key, "use auto, on or off")),
    }
}

/// IPVS is told by a mark which service a task asks for. A mark doesn't outlast netkit (`netkit_prep_forward` in
/// drivers/net/netkit.c), nor the way from there into a balancer's namespace.
fn netkit(settings: &Settings) -> Result<Option<bool>, ConfigError> {
    const KEY: &str = "network.netkit";
    let netkit = switch(settings, KEY)?;
    let engine = settings.get("network.lb_engine");
    if netkit == Some(false) || engine.text == "ebpf" {
        return Ok(netkit);
    }
    let (value, origin) = (&engine.text, &engine.origin);
    let help = format!("set network.lb_engine to ebpf, which is '{value}' ({origin}), or netkit to off");
    Err(settings.refuse(KEY, &help))
}

fn mtu(settings: &Settings) -> Result<u32, ConfigError> {
    let mtu = parse(settings, "network.mtu", "use auto, or a number from 1350 to 65535")?;
    if (1350..=65535).contains(&mtu) {
        Ok(mtu)
    } else {
        Err(settings.refuse("network.mtu", "use auto, or a number from 1350 to 65535"))
    }
}

/// Below, tables of the kernel's kind give up entries long before they are full; above, they take gigabytes.
fn flow_entries(settings: &Settings) -> Result<u32, ConfigError> {
    const HELP: &str = "use a number from 4096 to 16777216";
    let entries = parse(settings, "network.flow_entries", HELP)?;
    if (4096..=1 << 24).contains(&entries) {
        Ok(entries)
    } else {
        Err(settings.refuse("network.flow_entries", HELP))
    }
}

/// Silence of a node that means something: from a least time up to an hour.
fn silence(settings: &Settings, key: &str, least: Duration) -> Result<Duration, ConfigError> {
    const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    let text = &settings.get(key).text;
    let ms = UNITS
        .iter()
        .find_map(|(unit, ms)| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(*ms))
        .ok_or_else(|| settings.refuse(key, "use a number and a unit (ms, s, m or h), as 2s or 1500ms"))?;
    let time = Duration::from_millis(ms);
    if time < least {
        let help = format!("use at least {} ms: nodes say something every 500 ms", least.as_millis());
        return Err(settings.refuse(key, &help));
    }
    if time > Duration::from_hours(1) {
        return Err(settings.refuse(key, "use at most 1h"));
    }
    Ok(time)
}

/// Longer than what makes a node suspect.
fn down_after(settings: &Settings) -> Result<Duration, ConfigError> {
    const KEY: &str = "agent.down_after";
    let suspect = silence(settings, "agent.suspect_after", Duration::from_secs(1))?;
    let down = silence(settings, KEY, Duration::from_secs(2))?;
    if down < suspect + Duration::from_secs(1) {
        return Err(
            settings.refuse(KEY, "use at least 1s more than agent.suspect_after: a node is suspected first")
        );
    }
    Ok(down)
}

/// A number and a unit.
fn cert_lifetime(settings: &Settings) -> Result<Duration, ConfigError> {
    const KEY: &str = "security.cert_lifetime";
    let text = &settings.get(KEY).text;
    let units = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)];
    let seconds = units
        .iter()
        .find_map(|(unit, seconds)| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(*seconds));
    match seconds {
        Some(seconds @ 60..=315_360_000) => Ok(Duration::from_secs(seconds)),
        Some(..60) => Err(settings.refuse(KEY, "use at least 60s: nodes need time to renew")),
        Some(_) => Err(settings.refuse(KEY, "use at most 3650d")),
        None => Err(settings.refuse(KEY, "use a number and a unit (s, m, h or d), as 7d or 90m")),
    }
}

fn directory(settings: &Settings, key: &str) -> Result<PathBuf, ConfigError> {
    let path = PathBuf::from(&settings.get(key).text);
    if path.is_absolute() && path.components().count() > 1 {
        Ok(path)
    } else {
        Err(settings.refuse(key, "use an absolute path"))
    }
}

fn cgroup(settings: &Settings) -> Result<String, ConfigError> {
    let text = &settings.get("cgroup").text;
    let valid = !text.is_empty()
        && text.len() <= 64
        && !text.starts_with('.')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if valid {
        Ok(text.clone())
    } else {
        Err(settings.refuse("cgroup", "use 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.'"))
    }
}

/// A given name must be a label; the host's own name is made one.
fn name(settings: &Settings) -> Result<Name, ConfigError> {
    let value = settings.get("node.name");
    if !value.text.is_empty() {
        return value
            .text
            .parse()
            .map_err(|error: shoal_types::id::NameError| settings.refuse("node.name", &error.to_string()));
    }
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    host.as_deref()
        .and_then(Name::from_lossy)
        .ok_or_else(|| settings.refuse("node.name", "the host's name is no DNS label; give --name"))
}

/// An address that is on this host, by itself or by the interface that has it.
pub fn is_specific(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast()
}

#[cfg(test)]
mod tests;
