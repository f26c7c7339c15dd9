//! Engine `ipvs` as an operator sees it, and changing from one engine to the other under traffic.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::socket::{setsockopt, sockopt::Linger};
use shoal_netns::{Need, Node, Programs, Run, Swarm, Task, Traffic, wait_for};

use crate::flood;
use crate::harness::{
    ECHO, PATIENCE, PUBLISHED_CONN, PUBLISHED_ECHO, PUBLISHED_WHOAMI, Scenario, WHOAMI, ask_node, create,
    ensure_same, running, scenario, wait_engine, web,
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("ipvsadm_shows_what_an_operator_expects", visible).needs(&[Need::IpvsEngine]),
    scenario("policies_are_schedulers", policies).needs(&[Need::IpvsEngine]),
    scenario("settings_are_those_of_our_namespaces_only", settings).needs(&[Need::IpvsEngine]),
    scenario("a_destination_drains_without_weight_and_loses_no_stream", draining).needs(&[Need::IpvsEngine]),
    scenario("what_somebody_changes_in_a_table_is_put_back", repair).needs(&[Need::IpvsEngine]),
    scenario("changing_the_engine_keeps_every_connection", change).needs(&[Need::IpvsEngine]),
    scenario("balancers_go_with_their_last_connection", going).needs(&[Need::IpvsEngine]),
];

/// Longer than the kernel keeps a connection that has ended, and one of UDP that nobody ends.
const ENDED: Duration = Duration::from_mins(4);

/// A swarm whose nodes follow its own setting, which is engine ipvs.
pub(crate) fn start(programs: &Programs) -> anyhow::Result<Swarm> {
    let swarm = Swarm::three(&programs.with_engine("auto"))?;
    set_engine(&swarm, "ipvs")?;
    Ok(swarm)
}

fn set_engine(swarm: &Swarm, engine: &str) -> anyhow::Result<()> {
    wait_for(&format!("the swarm to be set to {engine}"), PATIENCE, || {
        // Until nodes have said what they can, it may be refused.
        swarm
            .manager()
            .shoal(&["swarm", "update", "--lb-engine", engine])
            .map_err(|error| format!("{error:#}"))
    })?;
    wait_engine(swarm, engine)
}

fn ingress(node: &Node) -> PathBuf {
    node.run_dir().join("netns/ingress")
}

/// The balancer of the network that a node's tasks are on.
fn of_network(node: &Node) -> anyhow::Result<PathBuf> {
    let is_balancer = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("lb-"))
    };
    node.task_namespaces()
        .into_iter()
        .find(is_balancer)
        .with_context(|| format!("no balancer on {}", node.name()))
}

fn ipvsadm(netns: impl Into<PathBuf>, flags: &str) -> anyhow::Result<String> {
    Run::line(&format!("ipvsadm {flags}")).netns(netns).stdout()
}

/// The lines of a virtual service: its own, then one for each destination.
fn service_of(table: &str, mark: &str) -> Vec<String> {
    let lines = table.lines().skip_while(|line| !line.starts_with(&format!("FWM  {mark} ")));
    let mut found: Vec<_> = lines.clone().take(1).map(str::to_owned).collect();
    found.extend(lines.skip(1).take_while(|line| line.trim_start().starts_with("->")).map(str::to_owned));
    found
}

/// Waits until a virtual service of a node has so many destinations with this in their lines.
fn wait_destinations(netns: &Path, mark: &str, text: &str, count: usize) -> anyhow::Result<Vec<String>> {
    wait_for(&format!("{count} destinations of {mark} with '{text}'"), PATIENCE, || {
        let table = ipvsadm(netns, "-Ln").map_err(|error| format!("{error:#}"))?;
        let lines = service_of(&table, mark);
        let found = lines.iter().skip(1).filter(|line| line.contains(text)).count();
        if found == count { Ok(lines) } else { Err(table) }
    })
}

fn visible(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    for node in &swarm.nodes {
        for mark in ["608080", "1708080"] {
            let lines = wait_destinations(&ingress(node), mark, "Masq    1", 3)?;
            ensure!(lines[0].contains("mh"), "{lines:?}");
            for task in &tasks {
                let at = format!("{}:{WHOAMI}", task.attachment("ingress")?.v4);
                ensure!(lines.iter().any(|line| line.contains(&at)), "{at} in {lines:?}");
            }
        }
        for address in node.place.addresses() {
            ask_node(swarm, address, PUBLISHED_WHOAMI, false, 30)?.complete()?;
        }
        ensure!(ipvsadm(node.host.netns_path(), "-Ln")?.lines().count() <= 3, "the host's table is touched");
    }
    let vip = ipvsadm(of_network(swarm.manager())?, "-Ln")?;
    ensure!(vip.contains("Route   1"), "virtual IPs by direct routing: {vip}");
    wait_for("the kernel to have added up its counters", PATIENCE, || {
        let stats = ipvsadm(ingress(swarm.manager()), "-Ln --stats").map_err(|error| format!("{error:#}"))?;
        let line = service_of(&stats, "608080").first().cloned().unwrap_or_default();
        let connections = line.split_whitespace().nth(2).and_then(|number| number.parse::<u32>().ok());
        if connections.is_some_and(|number| number >= 30) { Ok(()) } else { Err(stats) }
    })
}

fn policies(swarm: &mut Swarm) -> anyhow::Result<()> {
    let ports = format!("{PUBLISHED_WHOAMI}:{WHOAMI}");
    create(swarm, "web", "front", &["--replicas", "2", "-p", &ports, "--lb", "leastconn"])?;
    running(swarm, "web", 2)?;
    // A policy that only one engine has keeps the swarm on it.
    swarm.manager().refused(&["swarm", "update", "--lb-engine", "ebpf"], 5, &["leastconn", "web"])?;
    // And it does not go with ports that no virtual service balances.
    let headed = "published=8090,target=80,proxy-protocol=v2";
    let said = ["E0100", "lb: 'leastconn'", "port 8090:80/tcp with proxy-protocol", "rr, maglev", "help:"];
    swarm.manager().refused(&["service", "update", "--publish-add", headed, "web"], 2, &said)?;
    let drawn = ["service", "update", "--lb", "random", "web"];
    swarm.manager().refused(&drawn, 5, &["E0221", "random", "no scheduler", "help:"])?;
    for (policy, scheduler) in
        [("leastconn", " lc"), ("rr", " rr"), ("source", " mh"), ("maglev", " mh"), ("auto", " mh")]
    {
        swarm.manager().shoal(&["service", "update", "--lb", policy, "web"])?;
        for node in &swarm.nodes {
            wait_for(&format!("scheduler{scheduler} for {policy}"), PATIENCE, || {
                let table = ipvsadm(ingress(node), "-Ln").map_err(|error| format!("{error:#}"))?;
                let line = service_of(&table, "608080").first().cloned().unwrap_or_default();
                if line.contains(scheduler) { Ok(()) } else { Err(table) }
            })?;
            let answers = ask_node(swarm, node.place.v6.into(), PUBLISHED_WHOAMI, false, 10)?;
            answers.complete().with_context(|| format!("by {policy}"))?;
        }
    }
    Ok(())
}

fn settings(swarm: &mut Swarm) -> anyhow::Result<()> {
    web(swarm, 1)?;
    for node in &swarm.nodes {
        let timeouts = ipvsadm(ingress(node), "-L --timeout")?;
        ensure!(timeouts.contains("432000 60 180"), "an idle connection may live: {timeouts}");
        let read = |netns: PathBuf, name: &str| -> anyhow::Result<String> {
            let line = format!("cat /proc/sys/net/ipv4/vs/{name}");
            Ok(Run::line(&line).netns(netns).stdout()?.trim().to_owned())
        };
        for (name, ours, default) in [
            ("expire_nodest_conn", "1", "0"),
            ("expire_quiescent_template", "1", "0"),
            ("conn_reuse_mode", "1", "1"),
            ("sloppy_tcp", "1", "0"),
        ] {
            ensure_same(name, &read(ingress(node), name)?.as_str(), &ours)?;
            ensure_same(name, &read(node.host.netns_path(), name)?.as_str(), &default)?;
        }
    }
    Ok(())
}

fn draining(swarm: &mut Swarm) -> anyhow::Result<()> {
    let port = format!("{PUBLISHED_ECHO}:{ECHO}");
    create(swarm, "web", "front", &["--replicas", "3", "-p", &port])?;
    swarm.manager().shoal(&["service", "update", "--drain", "20s", "web"])?;
    running(swarm, "web", 3)?;
    wait_destinations(&ingress(swarm.manager()), "608082", "Masq    1", 3)?;
    let mut streams = Vec::new();
    for node in &swarm.nodes {
        for address in node.place.addresses() {
            let target = SocketAddr::new(address, PUBLISHED_ECHO);
            streams.push(Traffic::streams(&swarm.client, &swarm.programs, target, 4)?);
        }
    }
    swarm.manager().shoal(&["-q", "service", "scale", "--detach", "web=1"])?;
    for node in &swarm.nodes {
        wait_destinations(&ingress(node), "608082", "Masq    0", 2)?;
    }
    // They drain: every stream goes on, also those to the two that are on their way out.
    for stream in streams {
        let report = stream.finish()?;
        ensure!(report["lines"].as_u64() > Some(5), "hardly a line was sent: {report}");
    }
    for node in &swarm.nodes {
        wait_destinations(&ingress(node), "608082", "Masq", 1)?;
    }
    Ok(())
}

fn repair(swarm: &mut Swarm) -> anyhow::Result<()> {
    web(swarm, 3)?;
    let node = swarm.manager();
    wait_destinations(&ingress(node), "608080", "Masq    1", 3)?;
    let before = node.metric("shoal_agent_drift_repairs_total").unwrap_or_default();
    ipvsadm(ingress(node), "-A -t 192.0.2.1:80 -s rr")?;
    ipvsadm(ingress(node), "-D -f 608080")?;
    // One destination of another service, and one that is to get nothing.
    let lines = wait_destinations(&ingress(node), "608082", "Masq    1", 3)?;
    let at = |line: &String| line.split_whitespace().nth(1).map(str::to_owned).context("a destination");
    ipvsadm(ingress(node), &format!("-d -f 608082 -r {}", at(&lines[1])?))?;
    ipvsadm(ingress(node), &format!("-e -f 608082 -r {} -m -w 0", at(&lines[2])?))?;
    wait_destinations(&ingress(node), "608080", "Masq    1", 3)?;
    wait_destinations(&ingress(node), "608082", "Masq    1", 3)?;
    wait_for("a service of somebody else's to be gone", PATIENCE, || {
        let table = ipvsadm(ingress(node), "-Ln").map_err(|error| format!("{error:#}"))?;
        if table.contains("192.0.2.1") { Err(table) } else { Ok(()) }
    })?;
    ipvsadm(ingress(node), "-C")?;
    wait_destinations(&ingress(node), "608080", "Masq    1", 3)?;
    let after = node.metric("shoal_agent_drift_repairs_total")?;
    ensure!(after > before + 1.5, "repairs are counted: {before}, then {after}");
    for address in node.place.addresses() {
        ask_node(swarm, address, PUBLISHED_WHOAMI, false, 10)?.complete()?;
    }
    Ok(())
}

fn change(swarm: &mut Swarm) -> anyhow::Result<()> {
    web(swarm, 3)?;
    create(swarm, "asker", "front", &[])?;
    let asker = running(swarm, "asker", 1)?.pop().context("one task")?;
    let first = open_streams(swarm, &asker)?;
    let new = Traffic::connections(
        &swarm.client,
        &swarm.programs,
        SocketAddr::new(swarm.nodes[1].place.v4.into(), PUBLISHED_CONN),
        20,
    )?;
    set_engine(swarm, "ebpf")?;
    answers(swarm)?;
    let second = open_streams(swarm, &asker)?;
    set_engine(swarm, "ipvs")?;
    answers(swarm)?;
    for stream in first.into_iter().chain(second) {
        let report = stream.finish()?;
        ensure!(report["lines"].as_u64() > Some(5), "hardly a line was sent: {report}");
    }
    new.finish().context("new connections all the while")?;
    Ok(())
}

/// Ends a connection in the way that the kernel forgets soonest: after 10 s, not two minutes.
fn reset(connection: TcpStream) -> anyhow::Result<()> {
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&connection, Linger, &at_once).context("SO_LINGER")?;
    drop(connection);
    Ok(())
}

fn going(swarm: &mut Swarm) -> anyhow::Result<()> {
    web(swarm, 3)?;
    let echo = SocketAddr::new(swarm.nodes[1].place.v6.into(), PUBLISHED_ECHO);
    let mut connection = swarm.client.enter(|| flood::open(echo))?;
    set_engine(swarm, "ebpf")?;
    answers(swarm)?;
    wait_for("n2 to keep its balancers for a connection", PATIENCE, || {
        let nodes = swarm.manager().items(&["node", "ls"]).map_err(|error| format!("{error:#}"))?;
        let lingers = nodes.iter().any(|node| node["name"] == "n2" && node["lbLingering"] == true);
        if lingers && ingress(&swarm.nodes[1]).exists() { Ok(()) } else { Err(format!("{nodes:?}")) }
    })?;
    flood::exchange(&mut connection, 1).context("after the change")?;
    reset(connection)?;
    wait_for("the balancers to go with their last connection", ENDED, || {
        let left: Vec<_> = swarm.nodes.iter().filter(|node| ingress(node).exists()).map(Node::name).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("there on {left:?}")) }
    })?;
    answers(swarm)?;
    for node in &swarm.nodes {
        let links = node.host.ip("-o link show")?;
        ensure!(!links.contains("shl-") && !links.contains("shg-"), "links left: {links}");
    }
    set_engine(swarm, "ipvs")?;
    answers(swarm)
}

fn answers(swarm: &Swarm) -> anyhow::Result<()> {
    for node in &swarm.nodes {
        for address in node.place.addresses() {
            for udp in [false, true] {
                ask_node(swarm, address, PUBLISHED_WHOAMI, udp, 10)?.complete()?;
            }
        }
    }
    Ok(())
}

/// Streams through every address of every node, and from a task to the virtual IPs.
fn open_streams(swarm: &Swarm, asker: &Task) -> anyhow::Result<Vec<Traffic>> {
    let mut streams = Vec::new();
    for node in &swarm.nodes {
        for address in node.place.addresses() {
            let target = SocketAddr::new(address, PUBLISHED_ECHO);
            streams.push(Traffic::streams(&swarm.client, &swarm.programs, target, 2)?);
        }
    }
    let vip = swarm.manager().vip("web", "front")?;
    for address in [IpAddr::from(vip.v4), vip.v6.into()] {
        let target = SocketAddr::new(address, ECHO);
        streams.push(Traffic::streams_in(&asker.netns()?, &swarm.programs, target, 2)?);
    }
    Ok(streams)
}
