//! Health checks: what a node asks a task, how often, and how many wrong answers count.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A task's health check. It begins when the program runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: HealthProbe,
    /// Time between two answers, milliseconds. Until the first good one the task is asked more often; wrong answers
    /// then still count only once per interval.
    pub interval_ms: u64,
    /// An answer that takes longer is a wrong one, milliseconds.
    pub timeout_ms: u64,
    /// So many wrong answers in a row make the task unhealthy; at least 1.
    pub retries: u32,
    /// Wrong answers within this time after the start don't count, milliseconds. The first good answer ends it.
    pub start_period_ms: u64,
}

impl HealthCheck {
    /// Shortest interval and time-out, milliseconds.
    pub const LEAST_MS: u64 = 50;

    /// A check with the times that docker users expect.
    pub const fn of(probe: HealthProbe) -> Self {
        Self { probe, interval_ms: 30_000, timeout_ms: 30_000, retries: 3, start_period_ms: 0 }
    }

    /// What is wrong with it, as a field and a reason with the remedy.
    pub fn fault(&self) -> Option<(&'static str, String)> {
        for (field, value) in [("interval", self.interval_ms), ("timeout", self.timeout_ms)] {
            if value < Self::LEAST_MS {
                return Some((field, format!("{value} ms is too short; use {} ms or more", Self::LEAST_MS)));
            }
        }
        if self.retries == 0 {
            return Some((
                "retries",
                "0 wrong answers can't make a task unhealthy; use 1 or more".to_owned(),
            ));
        }
        match &self.probe {
            HealthProbe::Command(words) if words.first().is_none_or(String::is_empty) => {
                Some(("command", "empty; name a program".to_owned()))
            }
            HealthProbe::Command(words) if words.iter().any(|word| word.contains('\0')) => {
                Some(("command", "has a NUL byte".to_owned()))
            }
            HealthProbe::Http { path, .. } if !is_path(path) => {
                Some(("http", format!("'{path}' is not a path; it begins with '/' and has no blanks")))
            }
            _ => None,
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthProbe {
    /// A program in the task's namespaces, as the task's user: exit code 0 is good.
    Command(Vec<String>),
    /// A GET from inside the task's network: a status of 200 to 399 is good.
    Http {
        /// Whom.
        to: HealthTarget,
        /// For what, `/` and more.
        path: String,
    },
    /// A connection from inside the task's network: made is good.
    Tcp(HealthTarget),
}

/// Where in its own network a task is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthTarget {
    /// Which address; absent: loopback, IPv4 first.
    pub address: Option<IpAddr>,
    /// Which port.
    pub port: u16,
}

impl HealthTarget {
    /// The addresses to try, in this order.
    pub fn addresses(self) -> Vec<SocketAddr> {
        let loopback = || vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let addresses = self.address.map_or_else(loopback, |address| vec![address]);
        addresses.into_iter().map(|address| SocketAddr::new(address, self.port)).collect()
    }
}

impl std::fmt::Display for HealthTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.address {
            Some(address) => SocketAddr::new(address, self.port).fmt(f),
            None => write!(f, "localhost:{}", self.port),
        }
    }
}

impl FromStr for HealthTarget {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "'{text}' is not a port, nor an address with a port of the task; write it as 8080, 10.0.0.5:8080 or [::1]:8080"
            )
        };
        let (address, port) = match text.rsplit_once(':') {
            None => (None, text),
            Some(("" | "localhost", port)) => (None, port),
            Some((host, port)) => {
                let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
                let address: IpAddr = match bare {
                    Some(six) => six.parse().map(IpAddr::V6).map_err(|_| bad())?,
                    None => host.parse().map(IpAddr::V4).map_err(|_| bad())?,
                };
                (Some(address), port)
            }
        };
        match port.parse() {
            Ok(port) if port > 0 => Ok(Self { address, port }),
            _ => Err(bad()),
        }
    }
}

/// Parses what a GET is sent to: `8080/healthz`, `:8080/healthz` or `http://ADDRESS[:PORT]/healthz`.
pub fn parse_http(text: &str) -> Result<(HealthTarget, String), String> {
    let (rest, default_port) = match text.split_once("://") {
        Some(("http", rest)) => (rest, Some(80)),
        Some((scheme, _)) => {
            return Err(format!(
                "'{scheme}://' can't be asked; use http://, or a command that speaks {scheme}"
            ));
        }
        None => (text, None),
    };
    let (target, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let explicit = target.parse::<HealthTarget>();
    let to = match (explicit, default_port) {
        (Ok(to), _) => to,
        // A URL may leave the port out; then a bare number is no port either, but there is no such host.
        (Err(_), Some(port)) => format!("{target}:{port}").parse()?,
        (Err(error), None) => return Err(error),
    };
    if is_path(path) {
        Ok((to, path.to_owned()))
    } else {
        Err(format!("path '{path}' has blanks or control characters; write them as %20"))
    }
}

fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_round_trip_and_bad_ones_are_refused() {
        for (text, shown) in [
            ("80", "localhost:80"),
            (":80", "localhost:80"),
            ("localhost:80", "localhost:80"),
            ("10.0.0.5:80", "10.0.0.5:80"),
            ("[::1]:80", "[::1]:80"),
        ] {
            let target: HealthTarget = text.parse().expect(text);
            assert_eq!(target.to_string(), shown);
            assert_eq!(shown.parse(), Ok(target));
        }
        for bad in ["", "x", "0", "70000", "web:80", "::1:80", "[10.0.0.5]:80", "10.0.0.5"] {
            assert!(bad.parse::<HealthTarget>().is_err(), "{bad}");
        }
        let loopback = HealthTarget { address: None, port: 80 }.addresses();
        assert_eq!(
            loopback.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["127.0.0.1:80", "[::1]:80"]
        );
    }

    #[test]
    fn http_targets_are_ports_with_paths_or_urls() {
        let parsed = |text: &str| parse_http(text).map(|(to, path)| format!("{to} {path}"));
        assert_eq!(parsed("8080/healthz").as_deref(), Ok("localhost:8080 /healthz"));
        assert_eq!(parsed("8080").as_deref(), Ok("localhost:8080 /"));
        assert_eq!(parsed("http://localhost/ready?x=1").as_deref(), Ok("localhost:80 /ready?x=1"));
        assert_eq!(parsed("http://[::1]:81/").as_deref(), Ok("[::1]:81 /"));
        for bad in ["https://localhost/", "/healthz", "8080/a b", "http://web/"] {
            assert!(parse_http(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn faults_name_the_field() {
        let good = HealthCheck::of(HealthProbe::Tcp(HealthTarget { address: None, port: 80 }));
        assert_eq!(good.fault(), None);
        let field = |check: HealthCheck| check.fault().map(|(field, _)| field);
        assert_eq!(field(HealthCheck { interval_ms: 0, ..good.clone() }), Some("interval"));
        assert_eq!(field(HealthCheck { timeout_ms: 1, ..good.clone() }), Some("timeout"));
        assert_eq!(field(HealthCheck { retries: 0, ..good.clone() }), Some("retries"));
        assert_eq!(field(HealthCheck::of(HealthProbe::Command(Vec::new()))), Some("command"));
        let to = HealthTarget { address: None, port: 80 };
        let http = HealthProbe::Http { to, path: "healthz".to_owned() };
        assert_eq!(field(HealthCheck::of(http)), Some("http"));
    }
}
