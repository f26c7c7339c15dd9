//! Published ports, as texts and as items. Neighbors are shown as ranges to people and one by one to programs.

use serde_json::{Value, json};
use shoal_api::pb;
use shoal_types::{ProxyProtocol, PublishMode};

use super::words::protocol;

/// `ingress` or `host`.
fn mode(mode: i32) -> &'static str {
    match pb::PublishMode::try_from(mode) {
        Ok(pb::PublishMode::Host) => PublishMode::Host.as_str(),
        Ok(_) => PublishMode::Ingress.as_str(),
        Err(_) => "unknown",
    }
}

/// `v2`, or nothing.
fn proxy(proxy: i32) -> Option<&'static str> {
    match pb::ProxyProtocol::try_from(proxy) {
        Ok(pb::ProxyProtocol::Unspecified) => None,
        Ok(pb::ProxyProtocol::V2) => Some(ProxyProtocol::V2.as_str()),
        Err(_) => Some("unknown"),
    }
}

fn address(ip: &str) -> String {
    match ip {
        "" => "*".to_owned(),
        ip if ip.contains(':') => format!("[{ip}]"),
        ip => ip.to_owned(),
    }
}

/// Ports in a row that differ in nothing but their numbers.
struct Run<'a> {
    first: &'a pb::PublishedPort,
    count: u32,
}

impl Run<'_> {
    fn continues(&self, next: &pb::PublishedPort) -> bool {
        let first = self.first;
        // One that is yet to be chosen has no neighbors.
        first.published > 0
            && next.published == first.published.saturating_add(self.count)
            && next.target == first.target.saturating_add(self.count)
            && (next.protocol, next.mode, &next.ip, next.proxy, next.dsr)
                == (first.protocol, first.mode, &first.ip, first.proxy, first.dsr)
    }

    fn numbers(&self, first: u32) -> String {
        match self.count {
            1 => first.to_string(),
            count => format!("{first}-{}", first.saturating_add(count) - 1),
        }
    }

    fn text(&self) -> String {
        let first = self.first;
        let published = if first.published == 0 { "auto".to_owned() } else { self.numbers(first.published) };
        let host = (mode(first.mode) == "host").then(|| "host".to_owned());
        let proxy = proxy(first.proxy).map(|proxy| format!("proxy {proxy}"));
        let dsr = first.dsr.then(|| "dsr".to_owned());
        let how = [host, proxy, dsr].into_iter().flatten().collect::<Vec<_>>().join(", ");
        let how = if how.is_empty() { how } else { format!(" ({how})") };
        format!(
            "{}:{published}->{}/{}{how}",
            address(&first.ip),
            self.numbers(first.target),
            protocol(first.protocol())
        )
    }
}

fn runs(ports: &[pb::PublishedPort]) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    for port in ports {
        match runs.last_mut() {
            Some(run) if run.continues(port) => run.count += 1,
            _ => runs.push(Run { first: port, count: 1 }),
        }
    }
    runs
}

/// `*:8080->80/tcp`, `192.0.2.1:8000-8010->80-90/udp`, `*:8080->80/tcp (host, proxy v2)`, `*:8080->80/tcp (dsr)`, joined
/// by commas.
pub(crate) fn ports_text(ports: &[pb::PublishedPort]) -> String {
    runs(ports).iter().map(Run::text).collect::<Vec<_>>().join(", ")
}

/// The same of ports as asked for, one text for each range.
pub(crate) fn spec_ports_texts(ports: &[pb::PortSpec]) -> Value {
    let ports: Vec<_> = ports.iter().map(as_published).collect();
    runs(&ports).iter().map(Run::text).collect()
}

fn as_published(port: &pb::PortSpec) -> pb::PublishedPort {
    let pb::PortSpec { protocol, published, target, mode, ip, proxy, dsr } = port.clone();
    pb::PublishedPort { protocol, published, target, mode, ip, proxy, dsr }
}

/// What the cluster chose where no number was asked for, as a note for each range.
pub(crate) fn chosen(
    asked: &[pb::PortSpec],
    given: &[pb::PublishedPort],
    before: &[pb::PublishedPort],
) -> Vec<String> {
    let is_new = |port: &pb::PublishedPort| {
        !before.iter().any(|old| (old.protocol, old.published) == (port.protocol, port.published))
    };
    let new: Vec<_> = asked
        .iter()
        .zip(given)
        .filter(|(asked, given)| asked.published == 0 && is_new(given))
        .map(|(_, given)| given.clone())
        .collect();
    let note = |run: &Run<'_>| {
        let (ports, were) = if run.count == 1 { ("port", "was") } else { ("ports", "were") };
        let (published, target) = (run.numbers(run.first.published), run.numbers(run.first.target));
        // No number is chosen for SCTP.
        let udp = if run.first.protocol() == pb::Protocol::Udp { "/udp" } else { "" };
        format!("{ports} {published}{udp} {were} chosen for target {ports} {target}{udp}")
    };
    runs(&new).iter().map(note).collect()
}

/// Published ports as items.
pub(super) fn ports_item(ports: &[pb::PublishedPort]) -> Value {
    ports.iter().map(item).collect()
}

fn item(port: &pb::PublishedPort) -> Value {
    let ip = Some(port.ip.as_str()).filter(|ip| !ip.is_empty());
    let published = Some(port.published).filter(|published| *published > 0);
    json!({
        "protocol": protocol(port.protocol()), "published": published, "target": port.target,
        "mode": mode(port.mode), "ip": ip, "proxyProtocol": proxy(port.proxy),
        "dsr": port.dsr,
    })
}

/// Ports as asked for, as items; a number that is yet to be chosen is null.
pub(super) fn spec_ports_item(ports: &[pb::PortSpec]) -> Value {
    ports.iter().map(|port| item(&as_published(port))).collect()
}

/// Published ports with docker's names. The address has the name it has on docker's hosts; docker has neither
/// a header nor direct server return.
pub(super) fn docker_ports(ports: &[pb::PublishedPort]) -> Value {
    ports.iter().map(docker_port).collect()
}

/// Ports as asked for with docker's names.
pub(super) fn docker_spec_ports(ports: &[pb::PortSpec]) -> Value {
    ports.iter().map(|port| docker_port(&as_published(port))).collect()
}

fn docker_port(port: &pb::PublishedPort) -> Value {
    let mut item = json!({
        "Protocol": protocol(port.protocol()), "TargetPort": port.target, "PublishedPort": port.published,
        "PublishMode": mode(port.mode),
    });
    if !port.ip.is_empty() {
        item["HostIp"] = port.ip.as_str().into();
    }
    if let Some(proxy) = proxy(port.proxy) {
        item["ProxyProtocol"] = proxy.into();
    }
    if port.dsr {
        item["Dsr"] = true.into();
    }
    item
}
