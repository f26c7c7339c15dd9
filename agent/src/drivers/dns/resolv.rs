//! `resolv.conf`: reading the host's, writing the tasks'.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

/// Where each task finds its resolver: the address that container images already hard-code.
pub const RESOLVER_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// As resolv.conf(5): more servers are not asked.
const MAX_SERVERS: usize = 3;

/// What a host's `resolv.conf` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostResolver {
    /// The servers to ask, in order.
    pub servers: Vec<SocketAddr>,
    /// The domains that unqualified names are tried in.
    pub search: Vec<String>,
}

impl HostResolver {
    /// Reads a `resolv.conf`. As resolver libraries do, lines that make no sense are passed over; without any
    /// server the one on this host is meant.
    pub fn parse(text: &str) -> Self {
        let mut this = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") if this.servers.len() < MAX_SERVERS => {
                    this.servers.extend(words.next().and_then(parse_server));
                }
                // The last of the two keywords counts.
                Some("search" | "domain") => this.search = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        if this.servers.is_empty() {
            this.servers.push((Ipv4Addr::LOCALHOST, 53).into());
        }
        this
    }
}

fn parse_server(word: &str) -> Option<SocketAddr> {
    if let Ok(address) = word.parse::<IpAddr>() {
        return Some((address, 53).into());
    }
    // Beyond the manual page, for tests and unusual hosts: address:port, as some resolvers accept.
    if let Ok(address) = word.parse::<SocketAddr>() {
        return Some(address);
    }
    let (address, scope) = word.split_once('%')?;
    let index = nix::net::if_::if_nametoindex(scope).ok()?;
    Some(SocketAddrV6::new(address.parse().ok()?, 53, 0, index).into())
}

/// The `resolv.conf` of a task. `ndots:0` makes libraries try a name as it is first, so that service names are
/// found at once and search domains don't see them.
pub fn task_resolv_conf(search: &[String], options: &[String]) -> String {
    let mut text = format!("nameserver {RESOLVER_ADDRESS}\n");
    if !search.is_empty() {
        // Writing to a String can't fail.
        let _infallible = writeln!(text, "search {}", search.join(" "));
    }
    let mut all = Vec::new();
    if !options.iter().any(|option| option.starts_with("ndots:")) {
        all.push("ndots:0");
    }
    all.extend(options.iter().map(String::as_str));
    let _infallible = writeln!(text, "options {}", all.join(" "));
    text
}

/// The `hosts` file of a task: itself by its host name, and the loopback names.
pub fn task_hosts(hostname: &str, addresses: &[IpAddr]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                    ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
        .to_owned();
    for address in addresses {
        let _infallible = writeln!(text, "{address}\t{hostname}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_search_are_read() {
        let text = "# managed\nnameserver 10.0.0.1 # first\nnameserver bad\nsearch a.example b.example\n\
                    nameserver 2001:db8::1\noptions ndots:2\n";
        let resolver = HostResolver::parse(text);
        let expected: Vec<SocketAddr> =
            ["10.0.0.1:53", "[2001:db8::1]:53"].iter().map(|text| text.parse().expect("valid")).collect();
        assert_eq!(resolver.servers, expected);
        assert_eq!(resolver.search, ["a.example", "b.example"]);
    }

    #[test]
    fn at_most_three_servers_and_at_least_the_local_one() {
        let many = "nameserver 10.0.0.1\n".repeat(9);
        assert_eq!(HostResolver::parse(&many).servers.len(), MAX_SERVERS);
        assert_eq!(HostResolver::parse("").servers, ["127.0.0.1:53".parse().expect("valid")]);
    }

    #[test]
    fn a_scoped_server_keeps_its_interface() {
        let resolver = HostResolver::parse("nameserver fe80::1%lo\n");
        let SocketAddr::V6(server) = resolver.servers[0] else { panic!("not IPv6") };
        assert_ne!(server.scope_id(), 0);
    }

    #[test]
    fn a_task_asks_its_own_resolver_unqualified_names_first() {
        assert_eq!(task_resolv_conf(&[], &[]), "nameserver 127.0.0.11\noptions ndots:0\n");
        assert_eq!(
            task_resolv_conf(&["a.example".to_owned()], &["ndots:2".to_owned()]),
            "nameserver 127.0.0.11\nsearch a.example\noptions ndots:2\n"
        );
    }

    #[test]
    fn a_task_finds_itself() {
        let hosts = task_hosts("web-1", &["10.9.0.5".parse().expect("valid")]);
        assert!(hosts.ends_with("10.9.0.5\tweb-1\n"));
    }
}
