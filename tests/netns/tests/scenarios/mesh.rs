//! The routing mesh: a published port answers on every node, and a virtual IP in its network.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, ensure};
use serde_json::Value;
use shoal_netns::{Need, Node, Swarm, ask, wait_for};

use crate::harness::{
    PATIENCE, PUBLISHED_ECHO, PUBLISHED_WHOAMI, Scenario, ask_node, create, ensure_same, host_names, running,
    scenario, traffic_secs, web,
};

/// Ports that no connection of the host takes as its local one.
const RESERVED: &str = "ipv4/ip_local_reserved_ports";

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("every_node_answers_and_the_task_sees_the_client", every_node_answers),
    scenario("nodes_without_a_replica_answer_too", one_replica),
    scenario("clients_on_a_node_are_answered_at_each_of_its_addresses", on_the_node),
    scenario("no_conntrack_and_no_rule_on_the_path", no_conntrack).needs(&[Need::Nftables]),
    scenario("payloads_beyond_the_mtu_pass", large_payloads),
    scenario("an_unpublished_port_is_closed_and_others_stay", unpublish),
    scenario("a_service_on_every_node", global),
    scenario("tasks_by_netkit_and_by_veth_meet_each_other", crate::pairs::meet_each_other)
        .needs(&[Need::EbpfEngine]),
    scenario("the_name_is_the_vip_and_the_vip_answers", crate::names::vip),
];

/// Every address of every node, from the client.
fn all_addresses(swarm: &Swarm) -> Vec<IpAddr> {
    swarm.nodes.iter().flat_map(|node| node.place.addresses()).collect()
}

fn every_node_answers(swarm: &mut Swarm) -> anyhow::Result<()> {
    const QUESTIONS: usize = 90;
    let tasks = web(swarm, 3)?;
    let nodes: BTreeSet<_> = tasks.iter().map(|task| &task.node).collect();
    ensure!(nodes.len() == 3, "three replicas spread over three nodes, not {nodes:?}");
    for address in all_addresses(swarm) {
        for udp in [false, true] {
            let answers = ask_node(swarm, address, PUBLISHED_WHOAMI, udp, QUESTIONS)?;
            let answers = answers.complete().with_context(|| format!("{address} udp {udp}"))?;
            let place = swarm.client_place;
            let client: IpAddr = if address.is_ipv4() { place.v4.into() } else { place.v6.into() };
            ensure_same("client addresses the tasks saw", &answers.peers, &vec![client])?;
            // The kernel may give out a port that just went through another node to the same task: datagrams have no end
            // by which it would be free.
            let reused = if udp { QUESTIONS / 10 } else { 0 };
            ensure!(answers.port_kept + reused >= QUESTIONS, "{} client ports kept", answers.port_kept);
            ensure_same("who answered", &answers.hosts.keys().cloned().collect(), &host_names(&tasks))?;
            let least = answers.hosts.values().min().copied().unwrap_or_default();
            ensure!(least >= QUESTIONS / 10, "each replica gets its share: {:?}", answers.hosts);
        }
    }
    Ok(())
}

fn one_replica(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 1)?;
    for address in all_addresses(swarm) {
        for udp in [false, true] {
            let answers = ask_node(swarm, address, PUBLISHED_WHOAMI, udp, 5)?.complete();
            let answers = answers.with_context(|| format!("{address} udp {udp}"))?;
            ensure_same("who answered", &answers.hosts.keys().cloned().collect(), &host_names(&tasks))?;
        }
    }
    Ok(())
}

fn on_the_node(swarm: &mut Swarm) -> anyhow::Result<()> {
    const QUESTIONS: usize = 40;
    let tasks = web(swarm, 2)?;
    let loopbacks = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    for node in &swarm.nodes {
        for address in node.place.addresses().into_iter().chain(loopbacks) {
            for udp in [false, true] {
                let what = || format!("{address} (udp: {udp}) on {}", node.name());
                let target = SocketAddr::new(address, PUBLISHED_WHOAMI);
                let answers = ask(&node.host, &swarm.programs, target, udp, QUESTIONS)?;
                let answers = answers.complete().with_context(what)?;
                ensure_same(&what(), &answers.hosts.keys().cloned().collect(), &host_names(&tasks))?;
                if !address.is_loopback() {
                    ensure_same("client addresses the tasks saw", &answers.peers, &vec![address])?;
                }
            }
            let target = SocketAddr::new(address, PUBLISHED_ECHO).to_string();
            let mode = ["rr", "--target", &target, "--size", "100000", "--secs", &traffic_secs(300)];
            let text = node.host.run(&swarm.programs.load).args(mode).stdout()?;
            let report: Value = serde_json::from_str(&text)?;
            ensure!(report["ok"].as_u64() > Some(10), "100000 bytes through {target} crawl: {report}");
        }
    }
    swarm.manager().shoal(&["--yes", "service", "rm", "web"])?;
    for address in loopbacks {
        wait_for(&format!("{address} to be closed"), PATIENCE, || {
            let target = SocketAddr::new(address, PUBLISHED_WHOAMI);
            let answers = ask(&swarm.nodes[0].host, &swarm.programs, target, false, 1);
            match answers.map_err(|error| format!("{error:#}"))? {
                answers if answers.ok == 0 => Ok(()),
                answers => Err(format!("{answers:?}")),
            }
        })?;
    }
    Ok(())
}

fn no_conntrack(swarm: &mut Swarm) -> anyhow::Result<()> {
    web(swarm, 3)?;
    for address in all_addresses(swarm) {
        for udp in [false, true] {
            ask_node(swarm, address, PUBLISHED_WHOAMI, udp, 10)?.complete()?;
        }
    }
    let client = swarm.client_place;
    for node in &swarm.nodes {
        let mut tables = vec![("node", node.host.netns_path())];
        tables.extend(node.task_namespaces().into_iter().map(|path| ("task", path)));
        for (what, path) in tables {
            let flows = shoal_netns::Run::line("conntrack -L").netns(&path).stdout()?;
            let v6 = shoal_netns::Run::line("conntrack -L -f ipv6").netns(&path).stdout()?;
            let seen = [flows, v6].concat();
            let ours = seen.lines().find(|line| {
                line.contains(&format!("={} ", client.v4)) || line.contains(&format!("={} ", client.v6))
            });
            ensure!(ours.is_none(), "conntrack of a {what} on {} knows the client: {ours:?}", node.name());
        }
        let rules = node.host.run_line("nft list ruleset").stdout()?;
        ensure!(
            !rules.contains(&PUBLISHED_WHOAMI.to_string()),
            "a rule about the port on {}: {rules}",
            node.name()
        );
    }
    Ok(())
}

fn large_payloads(swarm: &mut Swarm) -> anyhow::Result<()> {
    web(swarm, 1)?;
    for address in all_addresses(swarm) {
        let target = SocketAddr::new(address, PUBLISHED_ECHO).to_string();
        for size in ["1400", "100000"] {
            let mode = ["rr", "--target", &target, "--size", size, "--secs", &traffic_secs(300)];
            let run = swarm.client.run(&swarm.programs.load).args(mode);
            let text = run.stdout().with_context(|| format!("{size} bytes through {address}"))?;
            let report: Value = serde_json::from_str(&text)?;
            ensure!(report["ok"].as_u64() > Some(10), "{size} bytes through {address} crawl: {report}");
        }
    }
    Ok(())
}

/// Waits until a node's own connections keep away from exactly these ports.
fn reserved(node: &Node, ports: &str) -> anyhow::Result<()> {
    wait_for(&format!("{} to reserve '{ports}'", node.name()), PATIENCE, || {
        let found = node.host.read_sysctl(RESERVED).map_err(|error| format!("{error:#}"))?;
        if found.trim() == ports { Ok(()) } else { Err(found) }
    })
}

fn unpublish(swarm: &mut Swarm) -> anyhow::Result<()> {
    // An operator's own stay whatever is published.
    swarm.nodes[0].host.sysctl(RESERVED, "8082-8083,9000\n")?;
    web(swarm, 2)?;
    reserved(&swarm.nodes[0], "8080-8083,9000")?;
    reserved(&swarm.nodes[2], "8080-8082")?;
    let address = swarm.nodes[1].place.v4.into();
    ask_node(swarm, address, PUBLISHED_WHOAMI, false, 5)?.complete()?;
    let port = format!("{PUBLISHED_WHOAMI}");
    swarm.manager().shoal(&["service", "update", "--publish-rm", &port, "web"])?;
    wait_for("the port to be closed on every node", PATIENCE, || {
        for node in &swarm.nodes {
            let answers = ask_node(swarm, node.place.v4.into(), PUBLISHED_WHOAMI, false, 1);
            let answers = answers.map_err(|error| format!("{error:#}"))?;
            if answers.ok > 0 {
                return Err(format!("{} still answers", node.name()));
            }
        }
        Ok(())
    })?;
    let target = SocketAddr::new(address, PUBLISHED_ECHO).to_string();
    swarm.client.run(&swarm.programs.load).args(["rr", "--target", &target, "--secs", "0.2"]).stdout()?;
    reserved(&swarm.nodes[0], "8081-8083,9000")?;
    reserved(&swarm.nodes[2], "8081-8082")?;
    swarm.manager().shoal(&["--yes", "service", "rm", "web"])?;
    reserved(&swarm.nodes[0], "8082-8083,9000")?;
    reserved(&swarm.nodes[2], "")?;
    swarm.nodes[0].host.sysctl(RESERVED, "\n")
}

fn global(swarm: &mut Swarm) -> anyhow::Result<()> {
    let port = format!("{PUBLISHED_WHOAMI}:{}", crate::harness::WHOAMI);
    create(swarm, "everywhere", "front", &["--mode", "global", "-p", &port])?;
    let tasks = running(swarm, "everywhere", 3)?;
    let nodes: BTreeSet<_> = tasks.iter().map(|task| task.node.as_str()).collect();
    let all: BTreeSet<_> = swarm.nodes.iter().map(Node::name).collect();
    ensure_same("nodes with a task", &nodes, &all)?;
    ask_node(swarm, swarm.nodes[2].place.v6.into(), PUBLISHED_WHOAMI, false, 20)?.complete()?;
    Ok(())
}
