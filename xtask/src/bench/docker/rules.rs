//! The rules of each namespace, in the form that `iptables-restore` reads: those of Docker 20.10, in its order.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::{GWBRIDGE, Ports, SANDBOX_LEG, SERVICES, SUBNET, TASK_PORTS};

/// Everything that the nodes publish.
fn published() -> impl Iterator<Item = u16> {
    SERVICES.iter().flat_map(|service| service.published.all())
}

/// One rule per item.
fn lines<T>(items: impl IntoIterator<Item = T>, rule: impl Fn(T) -> String) -> String {
    items.into_iter().fold(String::new(), |mut text, item| {
        // Writing to a string can't fail.
        let _ok = writeln!(text, "{}", rule(item));
        text
    })
}

/// A node: published ports lead to the ingress sandbox, and may pass.
pub(super) fn of_node() -> String {
    let translate = lines(published(), |port| {
        format!(
            "-A DOCKER-INGRESS -p tcp -m tcp --dport {port} -j DNAT --to-destination {SANDBOX_LEG}:{port}"
        )
    });
    let accept = lines(published(), |port| {
        format!(
            "-A DOCKER-INGRESS -p tcp -m state --state RELATED,ESTABLISHED -m tcp --sport {port} -j ACCEPT\n\
             -A DOCKER-INGRESS -p tcp -m tcp --dport {port} -j ACCEPT"
        )
    });
    format!(
        "*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-INGRESS - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER-INGRESS
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER-INGRESS
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -o {GWBRIDGE} -m addrtype --src-type LOCAL -j MASQUERADE
-A POSTROUTING -s 172.18.0.0/16 ! -o {GWBRIDGE} -j MASQUERADE
-A DOCKER -i {GWBRIDGE} -j RETURN
{translate}-A DOCKER-INGRESS -j RETURN
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-INGRESS - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-INGRESS
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o {GWBRIDGE} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o {GWBRIDGE} -j DOCKER
-A FORWARD -i {GWBRIDGE} ! -o {GWBRIDGE} -j ACCEPT
-A FORWARD -i {GWBRIDGE} -o {GWBRIDGE} -j DROP
{accept}-A DOCKER-INGRESS -j RETURN
-A DOCKER-ISOLATION-STAGE-1 -i {GWBRIDGE} ! -o {GWBRIDGE} -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o {GWBRIDGE} -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
"
    )
}

/// The ingress sandbox: a mark for IPVS by port, and this node's own address as the source of what IPVS balanced.
pub(super) fn of_sandbox(balancer: Ipv4Addr) -> String {
    let mut marks = String::new();
    for service in &SERVICES {
        let mark = service.mark;
        marks += &lines(service.published.all(), |port| {
            format!("-A PREROUTING -p tcp -m tcp --dport {port} -j MARK --set-xmark {mark:#x}/0xffffffff")
        });
        marks += &lines([service.vip], |vip| {
            format!("-A INPUT -d {vip}/32 -j MARK --set-xmark {mark:#x}/0xffffffff")
        });
    }
    format!(
        "*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
{marks}COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -d {SUBNET} -m ipvs --ipvs -j SNAT --to-source {balancer}
COMMIT
"
    )
}

/// A task: the published port becomes its own, and nothing else reaches it by the ingress network.
pub(super) fn of_task(task: Ipv4Addr, published: Ports) -> String {
    let pairs = || published.all().into_iter().zip(TASK_PORTS.all());
    let accept = lines(TASK_PORTS.all(), |port| {
        format!(
            "-A INPUT -d {task}/32 -p tcp -m tcp --dport {port} -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT\n\
             -A OUTPUT -s {task}/32 -p tcp -m tcp --sport {port} -m conntrack --ctstate ESTABLISHED -j ACCEPT"
        )
    });
    let refuse = lines(["tcp", "udp", "sctp"], |protocol| {
        format!("-A INPUT -d {task}/32 -p {protocol} -j DROP\n-A OUTPUT -s {task}/32 -p {protocol} -j DROP")
    });
    let redirect = lines(pairs(), |(public, own)| {
        format!("-A PREROUTING -d {task}/32 -p tcp -m tcp --dport {public} -j REDIRECT --to-ports {own}")
    });
    format!(
        "*filter
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
{accept}{refuse}COMMIT
*nat
:PREROUTING ACCEPT [0:0]
{redirect}COMMIT
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_published_port_leads_into_the_sandbox_and_gets_its_service_s_mark() {
        let (node, sandbox) = (of_node(), of_sandbox(Ipv4Addr::new(10, 79, 0, 2)));
        for port in published() {
            assert!(node.contains(&format!("--dport {port} -j DNAT --to-destination 172.18.0.2:{port}\n")));
            assert!(sandbox.contains(&format!("--dport {port} -j MARK ")));
        }
        assert!(sandbox.contains("--dport 7200 -j MARK --set-xmark 0x101/0xffffffff\n"), "{sandbox}");
    }

    #[test]
    fn a_task_takes_published_ports_as_its_own() {
        let rules = of_task(SERVICES[1].task, SERVICES[1].published);
        assert!(rules.contains("-d 10.79.0.11/32 -p tcp -m tcp --dport 7200 -j REDIRECT --to-ports 7000\n"));
    }
}
