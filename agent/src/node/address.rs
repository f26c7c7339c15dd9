//! Which of the host's addresses is meant, and which port of a manager.

use std::net::{IpAddr, SocketAddr};

use shoal_api::status::ApiError;
use shoal_plan::Uplink;
use shoal_types::ErrorCode;

use crate::config::Listen;

/// Port of a manager where nobody says otherwise.
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

/// As [`resolve`], for what has no port of its own; `why` says so where one is given.
pub(super) fn resolve_bare(
    field: &str,
    text: Option<&str>,
    uplinks: &[Uplink],
    why: &str,
) -> Result<IpAddr, ApiError> {
    match resolve(field, text, uplinks)? {
        (ip, None) => Ok(ip),
        (ip, Some(port)) => {
            Err(ApiError::new(ErrorCode::InvalidField, format!("--{field} has a port, {port}: {why}"))
                .with_help(format!("give the address alone: --{field} {ip}")))
        }
    }
}

/// Where others reach the manager of this host. What it listens on has the same port: that which is advertised counts,
/// then `node.listen`'s, and two that differ are refused.
pub(super) fn advertised(ip: IpAddr, port: Option<u16>, listen: Listen) -> Result<SocketAddr, ApiError> {
    let at = listen.address;
    let advertised = SocketAddr::new(ip, port.unwrap_or(at.port()));
    let port_differs = listen.is_set && advertised.port() != at.port();
    let reaches = if at.ip().is_unspecified() { at.is_ipv6() || ip.is_ipv4() } else { at.ip() == ip };
    if reaches && !port_differs {
        return Ok(advertised);
    }
    Err(ApiError::new(
        ErrorCode::InvalidField,
        format!("others would look for the manager at {advertised}, but node.listen = \"{at}\" has it listen elsewhere"),
    )
    .with_help(format!(
        "set node.listen to \"[::]:{}\" ('shoald config show --origin' says where it is set) and restart shoald, or \
         advertise what it says",
        advertised.port(),
    )))
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

    fn listen(text: &str, is_set: bool) -> Listen {
        Listen { address: text.parse().expect("literal"), is_set }
    }

    #[test]
    fn a_manager_is_advertised_by_the_port_it_listens_on() {
        let own = ip("10.77.0.1");
        let port = |port, listen| advertised(own, port, listen).map(|address| address.port());
        assert_eq!(port(None, listen("[::]:7377", false)), Ok(7377));
        assert_eq!(port(None, listen("[::]:7400", true)), Ok(7400));
        assert_eq!(port(Some(7400), listen("[::]:7377", false)), Ok(7400), "nobody set another");
        assert_eq!(port(Some(7400), listen("10.77.0.1:7400", true)), Ok(7400));
        for (given, at) in [
            (Some(7400), listen("[::]:7377", true)),
            (Some(7377), listen("[::]:7400", true)),
            (None, listen("127.0.0.1:7377", true)),
            (None, listen("[fd77::1]:7377", true)),
        ] {
            let error = advertised(own, given, at).expect_err("nobody would reach it");
            assert!(error.message.contains(&format!("node.listen = \"{}\"", at.address)), "{error:?}");
        }
        assert!(advertised(ip("fd77::1"), None, listen("0.0.0.0:7377", true)).is_err());
    }

    #[test]
    fn a_port_where_none_is_used_is_refused() {
        let all = uplinks();
        assert_eq!(resolve_bare("data-path-addr", Some("eth1"), &all, "no"), Ok(ip("192.0.2.9")));
        for text in ["eth1:7378", "192.0.2.9:7378", "[fd77::1]:1"] {
            let error = resolve_bare("data-path-addr", Some(text), &all, "it is of no use").expect_err(text);
            assert!(error.message.contains("--data-path-addr has a port"), "{error:?}");
            assert!(error.message.ends_with("it is of no use"), "{error:?}");
        }
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
