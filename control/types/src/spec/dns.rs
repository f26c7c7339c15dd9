//! Resolver settings of a service's tasks.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What tasks ask outside, and how. An empty list: as on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsSpec {
    /// Servers for names of the outside, asked by the node in this order, at port 53.
    pub servers: Vec<IpAddr>,
    /// Domains that names are tried in; `.` alone: none.
    pub search: Vec<String>,
    /// Options of resolv.conf(5), as `ndots:2`.
    pub options: Vec<String>,
}

impl DnsSpec {
    const MAX_SERVERS: usize = 8;
    const MAX_SEARCH: usize = 32;
    const MAX_OPTIONS: usize = 16;

    /// Whether everything is as on the node.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What is wrong with it: the flag, the value, the reason and the remedy.
    pub fn fault(&self) -> Option<(&'static str, String, &'static str, String)> {
        for (flag, count, most) in [
            ("dns", self.servers.len(), Self::MAX_SERVERS),
            ("dns-search", self.search.len(), Self::MAX_SEARCH),
            ("dns-option", self.options.len(), Self::MAX_OPTIONS),
        ] {
            if count > most {
                return Some((flag, count.to_string(), "are too many", format!("at most {most}")));
            }
        }
        if let Some(bad) = self.servers.iter().find(|server| server.is_unspecified() || server.is_multicast())
        {
            let help = "give the address of a name server".to_owned();
            return Some(("dns", bad.to_string(), "is no address of one host", help));
        }
        let none = self.search.iter().any(|domain| domain == ".");
        if none && self.search.len() > 1 {
            let help = "give it alone for no search domains, or leave it out".to_owned();
            return Some(("dns-search", ".".to_owned(), "stands beside others", help));
        }
        if let Some(bad) = self.search.iter().find(|domain| !none && !is_domain(domain)) {
            let help = "write it as corp.example".to_owned();
            return Some(("dns-search", bad.clone(), "is not a domain", help));
        }
        let is_option = |text: &&String| {
            !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_graphic())
        };
        if let Some(bad) = self.options.iter().find(|option| !is_option(option)) {
            let help = "write it as in resolv.conf(5): ndots:2, timeout:1, rotate".to_owned();
            return Some(("dns-option", bad.clone(), "is not an option", help));
        }
        None
    }
}

fn is_domain(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(domains: &[&str]) -> DnsSpec {
        DnsSpec { search: domains.iter().map(|text| (*text).to_owned()).collect(), ..DnsSpec::default() }
    }

    #[test]
    fn what_could_not_stand_in_a_file_of_lines_and_words_is_refused() {
        for good in [&["corp.example", "a_b.example."][..], &["."], &[]] {
            assert_eq!(search(good).fault(), None, "{good:?}");
        }
        for bad in ["", "a b", "a\nnameserver 192.0.2.1", "a..b", ".a", "é.example"] {
            assert!(search(&[bad]).fault().is_some_and(|(flag, ..)| flag == "dns-search"), "{bad}");
        }
        assert!(search(&["a", "."]).fault().is_some());
        assert!(search(&["a"; 33]).fault().is_some());
        for (option, good) in
            [("ndots:2", true), ("rotate", true), ("a b", false), ("", false), ("a\n", false)]
        {
            let spec = DnsSpec { options: vec![option.to_owned()], ..DnsSpec::default() };
            assert_eq!(spec.fault().is_none(), good, "{option:?}");
        }
        for (server, good) in
            [("127.0.0.53", true), ("fd00::53", true), ("0.0.0.0", false), ("ff02::1", false)]
        {
            let spec = DnsSpec { servers: vec![server.parse().expect("literal")], ..DnsSpec::default() };
            assert_eq!(spec.fault().is_none(), good, "{server}");
        }
    }
}
