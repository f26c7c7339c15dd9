//! `-p`: published ports in docker's short and long form, one or a range at a time.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use shoal_api::pb;
use shoal_types::port::unfit_address;
use shoal_types::{ProxyProtocol, PublishMode};

const EXAMPLE: &str = "write it as 8080:80, 8000-8010:80-90/udp or \
                       published=8080,target=80,protocol=tcp,mode=host,ip=ADDR,proxy-protocol=v2 (dsr=true with mode=ingress)";

/// The ports that one `-p` publishes. Without a published number the cluster picks a free one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Publish(pub(crate) Vec<pb::PortSpec>);

/// Ports in a row, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u32,
    last: u32,
}

impl Range {
    fn parse(what: &str, text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.parse::<u16>() {
            Ok(port) if port > 0 => Ok(u32::from(port)),
            _ => Err(format!("{what} port '{text}' is not a number from 1 to 65535; {EXAMPLE}")),
        };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(text)?, number(text)?),
        };
        if first > last {
            return Err(format!("{what} ports '{text}' end before they begin; write {last}-{first}"));
        }
        Ok(Self { first, last })
    }

    const fn count(self) -> u32 {
        self.last - self.first + 1
    }

    const fn contains(self, port: u32) -> bool {
        self.first <= port && port <= self.last
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

fn protocol(text: &str) -> Result<pb::Protocol, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(pb::Protocol::Tcp),
        "udp" => Ok(pb::Protocol::Udp),
        "sctp" => Ok(pb::Protocol::Sctp),
        _ => Err(format!("protocol '{text}' is unknown; use tcp, udp or sctp")),
    }
}

fn mode(text: &str) -> Result<pb::PublishMode, String> {
    Ok(match text.parse::<PublishMode>()? {
        PublishMode::Ingress => pb::PublishMode::Ingress,
        PublishMode::Host => pb::PublishMode::Host,
    })
}

fn proxy(text: &str) -> Result<pb::ProxyProtocol, String> {
    Ok(match text.parse::<ProxyProtocol>()? {
        ProxyProtocol::V2 => pb::ProxyProtocol::V2,
    })
}

fn dsr(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("'dsr={text}' is neither on nor off; write dsr=true or dsr=false"))
}

/// An address in the one form it is compared in.
fn address(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let addr = IpAddr::from_str(bare)
        .map_err(|_| format!("'{text}' is not an IP address; write it as ip=192.0.2.1 or ip=2001:db8::1"))?
        .to_canonical();
    match unfit_address(addr) {
        Some(problem) => Err(format!("no port can be published on '{addr}': it {problem}")),
        None => Ok(addr.to_string()),
    }
}

/// What one `-p` says, before its ranges are spelled out.
#[derive(Debug, Default)]
struct Words {
    published: Option<Range>,
    target: Option<Range>,
    protocol: Option<pb::Protocol>,
    mode: Option<pb::PublishMode>,
    ip: Option<String>,
    proxy: Option<pb::ProxyProtocol>,
    dsr: Option<bool>,
}

/// One `-p`.
pub(crate) fn publish(text: &str) -> Result<Publish, String> {
    let words = if text.contains('=') { long(text)? } else { short(text)? };
    let target = words.target.ok_or_else(|| format!("'{text}' has no target port; {EXAMPLE}"))?;
    if let Some(published) = words.published
        && published.count() != target.count()
    {
        return Err(format!(
            "published ports {published} are {} and target ports {target} are {}; give as many of both",
            published.count(),
            target.count()
        ));
    }
    let port = |offset: u32| pb::PortSpec {
        protocol: words.protocol.unwrap_or(pb::Protocol::Tcp).into(),
        published: words.published.map_or(0, |published| published.first + offset),
        target: target.first + offset,
        mode: words.mode.unwrap_or(pb::PublishMode::Ingress).into(),
        ip: words.ip.clone().unwrap_or_default(),
        proxy: words.proxy.unwrap_or_default().into(),
        dsr: words.dsr.unwrap_or_default(),
    };
    Ok(Publish((0..target.count()).map(port).collect()))
}

/// `[ADDR:][PUBLISHED:]TARGET[/PROTOCOL]`.
fn short(text: &str) -> Result<Words, String> {
    let (ports, protocol) = match text.rsplit_once('/') {
        Some((ports, word)) => (ports, Some(protocol(word)?)),
        None => (text, None),
    };
    let (ip, ports) = split_address(ports)?;
    let (published, target) = match ports.split_once(':') {
        None if ip.is_some() => {
            return Err(format!("'{text}' has an address and one port; write it as ADDR:8080:80"));
        }
        None => (None, Range::parse("target", ports)?),
        Some(("", target)) => (None, Range::parse("target", target)?),
        Some((published, target)) => {
            (Some(Range::parse("published", published)?), Range::parse("target", target)?)
        }
    };
    Ok(Words { published, target: Some(target), protocol, ip, ..Words::default() })
}

fn split_address(text: &str) -> Result<(Option<String>, &str), String> {
    if text.starts_with('[') {
        let (addr, ports) =
            text.split_once("]:").ok_or_else(|| format!("'{text}' has no ports behind the address"))?;
        return Ok((Some(address(&format!("{addr}]"))?), ports));
    }
    match text.split_once(':') {
        Some((addr, ports)) if ports.matches(':').count() == 1 => Ok((Some(address(addr)?), ports)),
        Some((_, ports)) if ports.contains(':') => {
            Err(format!("'{text}' has too many colons; write an IPv6 address as [2001:db8::1]:8080:80"))
        }
        _ => Ok((None, text)),
    }
}

fn long(text: &str) -> Result<Words, String> {
    let mut words = Words::default();
    for part in text.split(',') {
        let (key, value) =
            part.split_once('=').ok_or_else(|| format!("'{part}' is not key=value; {EXAMPLE}"))?;
        match key {
            "published" => words.published = Some(Range::parse("published", value)?),
            "target" => words.target = Some(Range::parse("target", value)?),
            "protocol" => words.protocol = Some(protocol(value)?),
            "mode" => words.mode = Some(mode(value)?),
            "ip" => words.ip = Some(address(value)?),
            "proxy-protocol" => words.proxy = Some(proxy(value)?),
            "dsr" => words.dsr = Some(dsr(value)?),
            _ => return Err(format!("'{key}' is not a key of a published port; {EXAMPLE}")),
        }
    }
    Ok(words)
}

/// Which published ports `--publish-rm` means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortMatch {
    shown: String,
    /// A single number or range: of the target, or of the published port when no target is in it.
    either: Option<Range>,
    published: Option<Range>,
    target: Option<Range>,
    protocol: Option<pb::Protocol>,
    mode: Option<pb::PublishMode>,
    ip: Option<String>,
    proxy: Option<pb::ProxyProtocol>,
    dsr: Option<bool>,
}

/// `80` (target, or published when no target has that number), `8080:80`, ranges of both, each with `/udp` or behind an
/// address; or the keys of the long form, of which those that are left out fit any port.
pub(crate) fn port_match(text: &str) -> Result<PortMatch, String> {
    let is_long = text.contains('=');
    let words = if is_long { long(text)? } else { short(text)? };
    let Words { published, target, protocol, mode, ip, proxy, dsr } = words;
    if published.is_none() && target.is_none() {
        return Err(format!("'{text}' names no port; {EXAMPLE}"));
    }
    let is_one = !is_long && published.is_none() && ip.is_none();
    let (either, target) = if is_one { (target, None) } else { (None, target) };
    Ok(PortMatch { shown: text.to_owned(), either, published, target, protocol, mode, ip, proxy, dsr })
}

/// A port as asked for, and the number it has: the cluster chose it where none was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) spec: pb::PortSpec,
    pub(crate) number: u32,
}

impl PortMatch {
    /// Takes the ports meant out of the list and says whether there were any.
    pub(crate) fn remove_from(&self, ports: &mut Vec<Known>) -> bool {
        let is_in = |range: Option<Range>, port: u32| range.is_none_or(|range| range.contains(port));
        let rest_fits = |p: &Known| {
            self.protocol.is_none_or(|protocol| p.spec.protocol() == protocol)
                && self.mode.is_none_or(|mode| mode == publish_mode(&p.spec))
                && self.ip.as_ref().is_none_or(|ip| *ip == p.spec.ip)
                && self.proxy.is_none_or(|proxy| proxy == p.spec.proxy())
                && self.dsr.is_none_or(|dsr| dsr == p.spec.dsr)
                // The n-th of one range with the n-th of the other.
                && self.published.zip(self.target).is_none_or(|(published, target)| {
                    p.number.wrapping_sub(published.first) == p.spec.target.wrapping_sub(target.first)
                })
        };
        let by_target = |p: &Known| {
            is_in(self.either.or(self.target), p.spec.target)
                && is_in(self.published, p.number)
                && rest_fits(p)
        };
        let by_published = |p: &Known| is_in(self.either, p.number) && rest_fits(p);
        let before = ports.len();
        if ports.iter().any(by_target) {
            ports.retain(|p| !by_target(p));
        } else if self.either.is_some() {
            ports.retain(|p| !by_published(p));
        }
        ports.len() < before
    }
}

impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// How a port is published; a peer that says nothing means ingress.
pub(crate) fn publish_mode(port: &pb::PortSpec) -> pb::PublishMode {
    match port.mode() {
        pb::PublishMode::Unspecified => pb::PublishMode::Ingress,
        mode => mode,
    }
}

/// Whether one port takes the place of another in a list.
pub(crate) fn replaces(new: &pb::PortSpec, old: &pb::PortSpec) -> bool {
    if new.protocol != old.protocol || new.published != old.published {
        return false;
    }
    if new.published == 0 {
        return new.target == old.target && new.ip == old.ip;
    }
    new.ip == old.ip || new.ip.is_empty() || old.ip.is_empty()
}
