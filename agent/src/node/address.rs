//! Which of the host's addresses is meant.

use std::net::{IpAddr, SocketAddr};

use shoal_api::status::ApiError;
use shoal_plan::Uplink;
use shoal_types::ErrorCode;

/// Port of a manager.
pub(super) const CONTROL_PORT: u16 = 7377;

/// Splits `ADDR[:PORT]` or `interface[:PORT]`.
fn split(text: &str) -> (String, Option<u16>) {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return (address.ip().to_string(), Some(address.port()));
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<IpAddr>().is_ok() {
        return (bare.to_owned(), None);
    }
    match text.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok_and(|port| port > 0) => {
            (name.to_owned(), port.parse().ok())
        }
        _ => (text.to_owned(), None),
    }
}

fn listing(uplinks: &[Uplink]) -> String {
    let all: Vec<String> = uplinks
        .iter()
        .flat_map(|uplink| uplink.addrs.iter().map(move |addr| format!("{addr} ({})", uplink.name)))
        .collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

fn refuse(field: &str, message: String, uplinks: &[Uplink]) -> ApiError {
    ApiError::new(ErrorCode::InvalidField, message)
        .with_context(format!("addresses of this host: {}", listing(uplinks)))
        .with_help(format!("give one of them, or an interface, with --{field}"))
}

/// The address that `text` names; without a text, the only suitable one. IPv4 goes before IPv6.
pub(super) fn resolve(
    field: &str,
    text: Option<&str>,
    uplinks: &[Uplink],
) -> Result<(IpAddr, Option<u16>), ApiError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return only_one(field, uplinks).map(|ip| (ip, None));
    };
    let (name, port) = split(text);
    if let Ok(ip) = name.parse::<IpAddr>() {
        let here = uplinks.iter().any(|uplink| uplink.addrs.contains(&ip));
        return if here {
            Ok((ip, port))
        } else {
            Err(refuse(field, format!("{ip} is not an address of this host"), uplinks))
        };
    }
    let Some(uplink) = uplinks.iter().find(|uplink| uplink.name.as_str() == name) else {
        return Err(refuse(field, format!("'{name}' is no interface of this host with an address"), uplinks));
    };
    preferred(field, &uplink.addrs, uplinks).map(|ip| (ip, port))
}

fn only_one(field: &str, uplinks: &[Uplink]) -> Result<IpAddr, ApiError> {
    let all: Vec<IpAddr> = uplinks.iter().flat_map(|uplink| uplink.addrs.iter().copied()).collect();
    preferred(field, &all, uplinks)
}

fn preferred(field: &str, addrs: &[IpAddr], uplinks: &[Uplink]) -> Result<IpAddr, ApiError> {
    let v4: Vec<&IpAddr> = addrs.iter().filter(|ip| ip.is_ipv4()).collect();
    let v6: Vec<&IpAddr> = addrs.iter().filter(|ip| ip.is_ipv6()).collect();
    match (v4.as_slice(), v6.as_slice()) {
        ([one], _) | ([], [one]) => Ok(**one),
        ([], []) => Err(refuse(field, "this host has no address that others could reach".into(), uplinks)),
        _ => Err(refuse(field, "several addresses would do".into(), uplinks)),
    }
}

/// `HOST[:PORT]` of a manager, looked up.
pub(super) async fn manager(text: &str) -> Result<Vec<SocketAddr>, ApiError> {
    let (host, port) = split(text);
    let port = port.unwrap_or(CONTROL_PORT);
    match tokio::net::lookup_host((host.as_str(), port)).await {
        Ok(found) => Ok(found.collect()),
        Err(error) => Err(ApiError::new(
            ErrorCode::InvalidField,
            format!("'{text}' is no address of a manager: {error}"),
        )
        .with_help("give it as ADDRESS:PORT, as 10.0.3.11:7377")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_plan::IfName;

    fn uplinks() -> Vec<Uplink> {
        let addrs = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("literal")).collect();
        vec![
            Uplink {
                name: IfName::new("eth0"),
                index: 2,
                inner: false,
                addrs: addrs(&["10.77.0.1", "fd77::1"]),
            },
            Uplink { name: IfName::new("eth1"), index: 3, inner: false, addrs: addrs(&["192.0.2.9"]) },
        ]
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("literal")
    }

    #[test]
    fn an_address_is_found_by_itself_by_interface_or_because_it_is_the_only_one() {
        let all = uplinks();
        assert_eq!(resolve("a", Some("192.0.2.9:7"), &all), Ok((ip("192.0.2.9"), Some(7))));
        assert_eq!(resolve("a", Some("[fd77::1]:7"), &all), Ok((ip("fd77::1"), Some(7))));
        assert_eq!(resolve("a", Some("fd77::1"), &all), Ok((ip("fd77::1"), None)));
        assert_eq!(resolve("a", Some("eth0:9"), &all), Ok((ip("10.77.0.1"), Some(9))));
        assert_eq!(resolve("a", None, &all[..1]), Ok((ip("10.77.0.1"), None)));
    }

    #[test]
    fn what_is_ambiguous_or_not_here_lists_what_there_is() {
        let all = uplinks();
        for text in [None, Some("10.9.9.9"), Some("eth7")] {
            let error = resolve("advertise-addr", text, &all).expect_err("refused");
            assert!(error.context.iter().any(|line| line.contains("192.0.2.9 (eth1)")), "{error:?}");
            assert!(error.help.contains("--advertise-addr"));
        }
    }
}
