//! Names that ask where a service is: `_8080._tcp.web` and `_tcp.web` (RFC 2782).

use shoal_types::Protocol;

/// The part of such a name before the service's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ServicePort {
    /// The port; without it, the published ones are meant.
    pub(super) number: Option<u16>,
    /// The transport.
    pub(super) protocol: Protocol,
}

/// Splits a name in lower case into what is asked for and the name of a service. `None` for names of any other form.
/// A first label that is no number (`_http._tcp.web`) is not one of ours: services name no ports.
pub(super) fn parse(text: &str) -> Option<(Asked, &str)> {
    let (first, rest) = text.split_once('.')?;
    if let Some(protocol) = protocol(first) {
        return Some((Asked::Port(ServicePort { number: None, protocol }), rest));
    }
    let label = first.strip_prefix('_')?;
    let (second, rest) = rest.split_once('.')?;
    let protocol = protocol(second)?;
    let number = label.parse::<u16>().ok().filter(|number| *number > 0 && number.to_string() == label);
    let asked =
        number.map_or(Asked::Word, |number| Asked::Port(ServicePort { number: Some(number), protocol }));
    Some((asked, rest))
}

/// What a name asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Ports.
    Port(ServicePort),
    /// A port by a word, which no service has.
    Word,
}

fn protocol(label: &str) -> Option<Protocol> {
    match label {
        "_tcp" => Some(Protocol::Tcp),
        "_udp" => Some(Protocol::Udp),
        "_sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_that_form_is_taken() {
        let port = |number, protocol| Asked::Port(ServicePort { number, protocol });
        for (text, expected) in [
            ("_8080._tcp.web", Some((port(Some(8080), Protocol::Tcp), "web"))),
            ("_5060._sctp.web", Some((port(Some(5060), Protocol::Sctp), "web"))),
            ("_53._udp.web.front", Some((port(Some(53), Protocol::Udp), "web.front"))),
            ("_tcp.web", Some((port(None, Protocol::Tcp), "web"))),
            ("_http._tcp.web", Some((Asked::Word, "web"))),
            ("_0._tcp.web", Some((Asked::Word, "web"))),
            ("_080._tcp.web", Some((Asked::Word, "web"))),
            ("_70000._tcp.web", Some((Asked::Word, "web"))),
            ("_80._dccp.web", None),
            ("_80.web", None),
            ("_80._tcp", None),
            ("_tcp", None),
            ("80._tcp.web", None),
            ("_dmarc.example.org", None),
            ("web", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}
