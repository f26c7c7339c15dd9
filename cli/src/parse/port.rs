//! `-p`: published ports in docker's short and long form.

use shoal_api::pb;

const EXAMPLE: &str = "write it as 8080:80, 8080:80/udp or published=8080,target=80,protocol=tcp";

fn number(what: &str, text: &str) -> Result<u32, String> {
    match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port.into()),
        _ if text.contains('-') => {
            Err(format!("{what} port '{text}' is a range; ranges are not available yet, publish each port"))
        }
        _ => Err(format!("{what} port '{text}' is not a number from 1 to 65535; {EXAMPLE}")),
    }
}

fn protocol(text: &str) -> Result<pb::Protocol, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(pb::Protocol::Tcp),
        "udp" => Ok(pb::Protocol::Udp),
        "sctp" => Err("protocol sctp is not available yet; use tcp or udp".to_owned()),
        _ => Err(format!("protocol '{text}' is unknown; use tcp or udp")),
    }
}

/// One published port. Without a published number the cluster picks a free one.
pub(crate) fn publish(text: &str) -> Result<pb::PortSpec, String> {
    if text.contains('=') { long(text) } else { short(text) }
}

fn short(text: &str) -> Result<pb::PortSpec, String> {
    let (ports, proto) = match text.split_once('/') {
        Some((ports, proto)) => (ports, protocol(proto)?),
        None => (text, pb::Protocol::Tcp),
    };
    let (published, target) = match ports.rsplit_once(':') {
        None => (0, number("target", ports)?),
        Some((left, _)) if left.contains(':') || left.contains('.') => {
            return Err(format!("'{text}' names an address; publishing on one address is not available yet"));
        }
        Some(("", target)) => (0, number("target", target)?),
        Some((published, target)) => (number("published", published)?, number("target", target)?),
    };
    Ok(pb::PortSpec { protocol: proto.into(), published, target })
}

fn long(text: &str) -> Result<pb::PortSpec, String> {
    let mut proto = pb::Protocol::Tcp;
    let (mut published, mut target) = (0, None);
    for part in text.split(',') {
        let (key, value) =
            part.split_once('=').ok_or_else(|| format!("'{part}' is not key=value; {EXAMPLE}"))?;
        match key {
            "published" => published = number("published", value)?,
            "target" => target = Some(number("target", value)?),
            "protocol" => proto = protocol(value)?,
            "mode" if value == "ingress" => {}
            "mode" if value == "host" => {
                return Err("mode=host is not available yet; use mode=ingress".to_owned());
            }
            "mode" => return Err(format!("mode '{value}' is unknown; use mode=ingress")),
            "ip" | "proxy-protocol" => return Err(format!("'{key}=' is not available yet")),
            _ => return Err(format!("'{key}' is not a key of a published port; {EXAMPLE}")),
        }
    }
    let target = target.ok_or_else(|| format!("'{text}' has no target port; {EXAMPLE}"))?;
    Ok(pb::PortSpec { protocol: proto.into(), published, target })
}

/// Which published ports `--publish-rm` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortMatch {
    published: Option<u32>,
    target: u32,
    protocol: Option<pb::Protocol>,
}

/// `80` (target, or published when no target has that number), `8080:80`, each with `/udp`.
pub(crate) fn port_match(text: &str) -> Result<PortMatch, String> {
    let (ports, proto) = match text.split_once('/') {
        Some((ports, proto)) => (ports, Some(protocol(proto)?)),
        None => (text, None),
    };
    let (published, target) = match ports.split_once(':') {
        Some((published, target)) => (Some(number("published", published)?), number("target", target)?),
        None => (None, number("target", ports)?),
    };
    Ok(PortMatch { published, target, protocol: proto })
}

impl PortMatch {
    /// Takes the ports meant out of the list and says whether there were any.
    pub(crate) fn remove_from(self, ports: &mut Vec<pb::PortSpec>) -> bool {
        let proto_fits = |p: &pb::PortSpec| self.protocol.is_none_or(|proto| p.protocol() == proto);
        let by_target = |p: &pb::PortSpec| {
            p.target == self.target && self.published.is_none_or(|n| p.published == n) && proto_fits(p)
        };
        let by_published = |p: &pb::PortSpec| p.published == self.target && proto_fits(p);
        let before = ports.len();
        if ports.iter().any(by_target) {
            ports.retain(|p| !by_target(p));
        } else if self.published.is_none() {
            ports.retain(|p| !by_published(p));
        }
        ports.len() < before
    }
}

impl std::fmt::Display for PortMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(published) = self.published {
            write!(f, "{published}:")?;
        }
        write!(f, "{}", self.target)?;
        match self.protocol {
            Some(pb::Protocol::Udp) => f.write_str("/udp"),
            Some(_) => f.write_str("/tcp"),
            None => Ok(()),
        }
    }
}
