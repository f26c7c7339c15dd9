//! Published ports in all their forms: on one address, in host mode, by the range, chosen by the swarm.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, ensure};
use serde_json::Value;
use shoal_netns::{Need, Swarm, Traffic, wait_for, wanted_engine};

use crate::harness::{
    CONN, ECHO, LISTENS, PATIENCE, PUBLISHED_CONN, PUBLISHED_ECHO, PUBLISHED_WHOAMI, Scenario, WHOAMI,
    ask_node, create, ensure_same, host_names, running, scenario,
};
use crate::packets;
use crate::sctp;
use crate::ways;

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("a_port_on_one_address_is_closed_on_every_other", one_address),
    scenario("two_services_have_one_port_on_different_addresses", two_services),
    scenario("a_port_follows_its_address_from_node_to_node", later_address),
    scenario("a_port_in_host_mode_answers_where_tasks_are_by_that_task", host_mode),
    scenario("an_update_in_host_mode_that_starts_first_refuses_nobody", start_first),
    scenario("a_port_in_host_mode_is_given_to_one_task_on_a_node", host_ports_are_scarce),
    scenario("an_update_changes_where_a_port_answers", update),
    scenario("ports_by_the_thousand_come_and_go", ranges),
    scenario("a_port_that_was_chosen_is_told_and_stays", chosen),
    scenario("listeners_that_a_port_leaves_nothing_to_are_told", shadowed),
    scenario("a_port_that_nobody_listens_on_refuses_datagrams", packets::closed_ports_refuse),
    scenario("datagrams_larger_than_a_packet_pass", packets::large_datagrams),
    scenario("associations_of_sctp_reach_tasks_and_clients", sctp::associations),
    scenario("a_smaller_mtu_on_the_way_is_learned", packets::a_smaller_mtu_is_learned),
    scenario("a_vlan_of_an_uplink_has_the_ports_too", ways::vlans).needs(&[Need::Vlans]),
    scenario("clients_are_answered_by_the_way_that_routes_lead", ways::two_uplinks),
    scenario("a_route_that_changes_is_followed", ways::rerouted),
    scenario("what_tasks_ask_from_a_published_port_is_answered_to_them", ways::leaving)
        .needs(&[Need::Nftables]),
];

/// Who answers on a port, by either protocol; nobody when it is closed.
fn who(swarm: &Swarm, address: IpAddr, port: u16, udp: bool) -> anyhow::Result<BTreeSet<String>> {
    let answers = ask_node(swarm, address, port, udp, 1)?;
    if answers.ok == 0 {
        return Ok(BTreeSet::new());
    }
    Ok(ask_node(swarm, address, port, udp, 20)?.complete()?.hosts.into_keys().collect())
}

/// Waits until exactly these hosts answer on a port of an address, by TCP and UDP.
fn answered(swarm: &Swarm, address: IpAddr, port: u16, hosts: &BTreeSet<String>) -> anyhow::Result<()> {
    for udp in [false, true] {
        wait_for(
            &format!("{address} port {port} (udp: {udp}) to be answered by {hosts:?}"),
            PATIENCE,
            || {
                let found = who(swarm, address, port, udp).map_err(|error| format!("{error:#}"))?;
                if found == *hosts { Ok(()) } else { Err(format!("{found:?}")) }
            },
        )?;
    }
    Ok(())
}

fn closed(swarm: &Swarm, address: IpAddr, port: u16) -> anyhow::Result<()> {
    answered(swarm, address, port, &BTreeSet::new())
}

/// The flags that publish the server which tells its name, by both protocols.
fn publish(keys: &str) -> [String; 4] {
    let port = |protocol| format!("published={PUBLISHED_WHOAMI},target={WHOAMI},protocol={protocol}{keys}");
    ["-p".to_owned(), port("tcp"), "-p".to_owned(), port("udp")]
}

/// Makes a service of so many replicas with this published; the hosts that are to answer.
fn service(swarm: &Swarm, name: &str, replicas: u32, flags: &[String]) -> anyhow::Result<BTreeSet<String>> {
    let count = replicas.to_string();
    let flags: Vec<&str> =
        ["--replicas", &count].into_iter().chain(flags.iter().map(String::as_str)).collect();
    create(swarm, name, "front", &flags)?;
    Ok(host_names(&running(swarm, name, replicas)?))
}

/// What `service ls` and `--json` say of a service's ports.
fn shown(swarm: &Swarm, name: &str) -> anyhow::Result<(String, Vec<Value>)> {
    let filter = format!("name={name}");
    let text = swarm.manager().shoal(&["service", "ls", "--filter", &filter, "--format", "{{.Ports}}"])?;
    let items = swarm.manager().items(&["service", "ls", "--filter", &filter])?;
    let item = items.first().with_context(|| format!("no service '{name}'"))?;
    Ok((text.trim().to_owned(), item["ports"].as_array().cloned().unwrap_or_default()))
}

/// What the manager says of listeners that get nothing.
fn shadows(swarm: &Swarm) -> anyhow::Result<Vec<String>> {
    let status = swarm.manager().items(&["status"])?;
    let warnings = status[0]["swarm"]["warnings"].as_array().cloned().unwrap_or_default();
    let lines =
        warnings.iter().filter_map(Value::as_str).filter(|line| line.contains("and a program here listens"));
    Ok(lines.map(str::to_owned).collect())
}

/// Every node has a program that listens for sure: `shoald`, for whoever wants its metrics.
fn shadowed(swarm: &mut Swarm) -> anyhow::Result<()> {
    ensure!(shadows(swarm)?.is_empty(), "before anything is published: {:?}", shadows(swarm)?);
    create(swarm, "taken", "front", &["--replicas", "1", "-p", &format!("7379:{WHOAMI}")])?;
    wait_for("every node to tell of it", PATIENCE, || {
        let lines = shadows(swarm).map_err(|error| format!("{error:#}"))?;
        // What all of them see is one line.
        let words = "seen from n1, n2, n3: service 'taken' publishes 7379/tcp, ";
        let told = lines.iter().any(|line| line.starts_with(words) && line.contains("127.0.0.1:7379"));
        if told { Ok(()) } else { Err(format!("{lines:?}")) }
    })?;
    let said = swarm.manager().shoal_output(&["service", "update", "--label-add", "a=b", "taken"])?;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(said.contains("warning: seen from n1, n2, n3: service 'taken' publishes 7379/tcp"), "{said}");
    for verdict in ["warn", "ok"] {
        let checks = swarm.nodes[1].items(&["doctor"])?;
        let check = checks.iter().find(|check| check["name"] == "published-ports");
        ensure!(check.is_some_and(|check| check["verdict"] == verdict), "not {verdict}: {check:?}");
        if verdict == "warn" {
            swarm.manager().shoal(&["--yes", "service", "rm", "taken"])?;
            wait_for("nobody to tell of it any more", PATIENCE, || {
                let lines = shadows(swarm).map_err(|error| format!("{error:#}"))?;
                if lines.is_empty() { Ok(()) } else { Err(format!("{lines:?}")) }
            })?;
        }
    }
    Ok(())
}

fn one_address(swarm: &mut Swarm) -> anyhow::Result<()> {
    let (first, second) = (swarm.nodes[0].place, swarm.nodes[1].place);
    let flags = [publish(&format!(",ip={}", first.v4)), publish(&format!(",ip={}", second.v6))].concat();
    let hosts = service(swarm, "web", 2, &flags)?;
    let nobody = BTreeSet::new();
    for node in &swarm.nodes {
        for address in node.place.addresses() {
            let is_open = address == IpAddr::V4(first.v4) || address == IpAddr::V6(second.v6);
            answered(swarm, address, PUBLISHED_WHOAMI, if is_open { &hosts } else { &nobody })?;
        }
    }
    let (text, items) = shown(swarm, "web")?;
    ensure!(text.starts_with(&format!("{}:{PUBLISHED_WHOAMI}->{WHOAMI}/tcp, ", first.v4)), "{text}");
    ensure_same("the address in JSON", &items[0]["ip"], &Value::from(first.v4.to_string()))?;
    swarm.manager().shoal(&["--yes", "service", "rm", "web"])?;
    closed(swarm, first.v4.into(), PUBLISHED_WHOAMI)?;
    closed(swarm, second.v6.into(), PUBLISHED_WHOAMI)
}

fn two_services(swarm: &mut Swarm) -> anyhow::Result<()> {
    let place = swarm.nodes[0].place;
    let one = service(swarm, "one", 1, &publish(&format!(",ip={}", place.v4)))?;
    let two = service(swarm, "two", 2, &publish(&format!(",ip={}", place.v6)))?;
    answered(swarm, place.v4.into(), PUBLISHED_WHOAMI, &one)?;
    answered(swarm, place.v6.into(), PUBLISHED_WHOAMI, &two)?;
    // On every address, and on one that is taken: refused, with the port, the holder and the way out.
    let all = format!("{PUBLISHED_WHOAMI}:{WHOAMI}");
    let same = format!("[{}]:{PUBLISHED_WHOAMI}:{WHOAMI}/udp", place.v6);
    for (port, holder) in [(&all, "'one'"), (&same, "'two'")] {
        let words = ["service", "create", "--name", "other", "-p", port, "--", "sleep", "1000"];
        swarm.manager().refused(&words, 5, &["E0214", "8080", holder, "--publish-rm", "help:"])?;
    }
    for bad in ["127.0.0.1:8080:80", "0.0.0.0:8080:80", "target=80,ip=eth0"] {
        let words = ["service", "create", "--name", "other", "-p", bad, "--", "sleep", "1000"];
        swarm.manager().refused(&words, 2, &["error:"])?;
    }
    Ok(())
}

fn later_address(swarm: &mut Swarm) -> anyhow::Result<()> {
    let floating = "10.77.0.200";
    let hosts = service(swarm, "web", 2, &publish(&format!(",ip={floating}")))?;
    for node in [&swarm.nodes[1], &swarm.nodes[2]] {
        closed(swarm, node.place.v4.into(), PUBLISHED_WHOAMI)?;
        node.host.ip(&format!("addr add {floating}/24 dev eth0"))?;
        // The client believes what it was told last.
        swarm.client.ip("neigh flush all")?;
        answered(swarm, floating.parse()?, PUBLISHED_WHOAMI, &hosts)?;
        closed(swarm, node.place.v4.into(), PUBLISHED_WHOAMI)?;
        node.host.ip(&format!("addr del {floating}/24 dev eth0"))?;
    }
    Ok(())
}

/// Every node answers by its own task, if it has one, and else not at all.
fn answered_by_own(swarm: &Swarm, name: &str, count: u32) -> anyhow::Result<()> {
    let tasks = running(swarm, name, count)?;
    for node in &swarm.nodes {
        let own: Vec<_> = tasks.iter().filter(|task| task.node == node.name()).cloned().collect();
        ensure!(own.len() <= 1, "{} has {} tasks with one port", node.name(), own.len());
        for address in node.place.addresses() {
            answered(swarm, address, PUBLISHED_WHOAMI, &host_names(&own))?;
        }
    }
    Ok(())
}

fn host_mode(swarm: &mut Swarm) -> anyhow::Result<()> {
    service(swarm, "web", 2, &publish(",mode=host"))?;
    answered_by_own(swarm, "web", 2)?;
    let (text, items) = shown(swarm, "web")?;
    ensure!(text.contains(&format!("*:{PUBLISHED_WHOAMI}->{WHOAMI}/tcp (host)")), "{text}");
    ensure_same("the mode in JSON", &items[0]["mode"], &Value::from("host"))?;
    // The task moves, and the port with it.
    let tasks = running(swarm, "web", 2)?;
    let left = tasks.iter().map(|task| &task.node).max().context("two tasks")?;
    let away = format!("node.hostname!={left}");
    swarm.manager().shoal(&["service", "update", "--constraint-add", &away, "web"])?;
    let tasks = running(swarm, "web", 2)?;
    ensure!(tasks.iter().all(|task| task.node != *left), "{tasks:?}");
    answered_by_own(swarm, "web", 2)?;
    // A new version: each node's port is with its new task.
    swarm.manager().shoal(&["service", "update", "--env-add", "V=2", "web"])?;
    answered_by_own(swarm, "web", 2)?;
    swarm.manager().shoal(&["--yes", "service", "rm", "web"])?;
    swarm.nodes.iter().try_for_each(|node| closed(swarm, node.place.v4.into(), PUBLISHED_WHOAMI))
}

fn start_first(swarm: &mut Swarm) -> anyhow::Result<()> {
    let port = format!("published={PUBLISHED_CONN},target={CONN},mode=host");
    let flags = ["--mode", "global", "--update-order", "start-first", "-p", &port];
    create(swarm, "web", "front", &[&flags[..], &LISTENS].concat())?;
    running(swarm, "web", 3)?;
    let mut traffic = Vec::new();
    for node in &swarm.nodes {
        for address in node.place.addresses() {
            let target = SocketAddr::new(address, PUBLISHED_CONN);
            traffic.push(Traffic::connections(&swarm.client, &swarm.programs, target, 20)?);
        }
    }
    swarm.manager().shoal(&["service", "update", "--env-add", "V=2", "web"])?;
    traffic.into_iter().try_for_each(|traffic| traffic.finish().map(drop))
}

/// Waits until a service's task waits, with these words.
fn waits(swarm: &Swarm, name: &str, words: &str) -> anyhow::Result<()> {
    wait_for(&format!("a task of '{name}' to wait: {words}"), PATIENCE, || {
        let tasks = swarm.manager().items(&["service", "ps", name]).map_err(|error| format!("{error:#}"))?;
        if tasks.iter().any(|task| task.to_string().contains(words)) {
            Ok(())
        } else {
            Err(format!("{tasks:?}"))
        }
    })
}

fn host_ports_are_scarce(swarm: &mut Swarm) -> anyhow::Result<()> {
    let port = format!("published={PUBLISHED_WHOAMI},target={WHOAMI},mode=host");
    create(swarm, "web", "front", &["-d", "--replicas", "4", "-p", &port])?;
    running(swarm, "web", 3)?;
    waits(swarm, "web", "port 8080/tcp in use on n1, n2, n3")?;
    create(swarm, "late", "front", &["-d", "-p", &port, "--constraint", "node.hostname==n2"])?;
    waits(swarm, "late", "port 8080/tcp in use on n2")?;
    // The mesh would take it everywhere.
    let mesh = format!("{PUBLISHED_WHOAMI}:80");
    let words = ["service", "create", "--name", "other", "-p", &mesh, "--", "sleep", "1000"];
    swarm.manager().refused(&words, 5, &["E0214", "8080/tcp (host)", "help:"])?;
    swarm.manager().shoal(&["service", "scale", "web=1"])?;
    swarm.manager().shoal(&["service", "update", "-d", "--constraint-add", "node.hostname!=n2", "web"])?;
    let late = running(swarm, "late", 1)?;
    answered_tcp(swarm, swarm.node("n2")?.place.v4.into(), &host_names(&late))
}

fn answered_tcp(swarm: &Swarm, address: IpAddr, hosts: &BTreeSet<String>) -> anyhow::Result<()> {
    wait_for(&format!("{address} to be answered by {hosts:?}"), PATIENCE, || {
        let found = who(swarm, address, PUBLISHED_WHOAMI, false).map_err(|error| format!("{error:#}"))?;
        if found == *hosts { Ok(()) } else { Err(format!("{found:?}")) }
    })
}

fn update(swarm: &mut Swarm) -> anyhow::Result<()> {
    let echo = ["-p".to_owned(), format!("{PUBLISHED_ECHO}:{ECHO}")];
    let hosts = service(swarm, "web", 1, &[&publish("")[..], &echo].concat())?;
    let [here, there] = [swarm.nodes[0].place.v4.into(), swarm.nodes[1].place.v4.into()];
    answered(swarm, there, PUBLISHED_WHOAMI, &hosts)?;
    let target = SocketAddr::new(there, PUBLISHED_ECHO);
    // Engine ipvs ends them with the virtual service that they came by.
    let stream = match wanted_engine().as_deref() {
        Some("ipvs") => None,
        _ => Some(Traffic::streams(&swarm.client, &swarm.programs, target, 2)?),
    };
    let echo = |keys: &str| -> anyhow::Result<String> {
        let port = format!("published={PUBLISHED_ECHO},target={ECHO}{keys}");
        swarm.manager().shoal(&["service", "update", "--publish-add", &port, "web"])
    };
    let add = |keys: &str| -> anyhow::Result<()> {
        let [_, tcp, _, udp] = publish(keys);
        swarm.manager().shoal(&["service", "update", "--publish-add", &tcp, "--publish-add", &udp, "web"])?;
        Ok(())
    };
    add(&format!(",ip={here}"))?;
    echo(&format!(",ip={here}"))?;
    closed(swarm, there, PUBLISHED_WHOAMI)?;
    answered(swarm, here, PUBLISHED_WHOAMI, &hosts)?;
    // Connections that were open go on where no new ones are let in.
    if let Some(stream) = stream {
        stream.finish()?;
    }
    add(",mode=host")?;
    answered_by_own(swarm, "web", 1)?;
    add("")?;
    let hosts = host_names(&running(swarm, "web", 1)?);
    answered(swarm, here, PUBLISHED_WHOAMI, &hosts)?;
    answered(swarm, there, PUBLISHED_WHOAMI, &hosts)?;
    let gone = format!("published={PUBLISHED_WHOAMI},protocol=tcp,mode=ingress");
    swarm.manager().shoal(&["service", "update", "--publish-rm", &gone, "web"])?;
    wait_for("the port to be closed by TCP alone", PATIENCE, || {
        let tcp = who(swarm, there, PUBLISHED_WHOAMI, false).map_err(|error| format!("{error:#}"))?;
        if tcp.is_empty() { Ok(()) } else { Err(format!("{tcp:?}")) }
    })?;
    ensure_same("who answers by UDP", &who(swarm, there, PUBLISHED_WHOAMI, true)?, &hosts)
}

fn ranges(swarm: &mut Swarm) -> anyhow::Result<()> {
    let [tcp, udp] = ["tcp", "udp"].map(|protocol| format!("20000-21499:6000-7499/{protocol}"));
    let hosts = service(swarm, "web", 1, &["-p".into(), tcp, "-p".into(), udp])?;
    let (text, items) = shown(swarm, "web")?;
    ensure_same("the ranges", &text.as_str(), &"*:20000-21499->6000-7499/tcp, *:20000-21499->6000-7499/udp")?;
    ensure_same("ports in JSON", &items.len(), &3_000)?;
    for node in &swarm.nodes {
        for address in node.place.addresses() {
            answered(swarm, address, 14_000 + WHOAMI, &hosts)?;
        }
    }
    let words = ["service", "create", "--name", "other", "-p", "21400-21600:1-201", "--", "sleep", "1000"];
    swarm.manager().refused(&words, 5, &["E0214", "port 21400/tcp", "'web'", "help:"])?;
    swarm.manager().shoal(&["service", "update", "--publish-rm", "20900-21100/udp", "web"])?;
    let there = swarm.nodes[1].place.v4.into();
    wait_for("a part of the range to be closed", PATIENCE, || {
        let udp = who(swarm, there, 14_000 + WHOAMI, true).map_err(|error| format!("{error:#}"))?;
        if udp.is_empty() { Ok(()) } else { Err(format!("{udp:?}")) }
    })?;
    ensure_same("who answers by TCP", &who(swarm, there, 14_000 + WHOAMI, false)?, &hosts)?;
    let (text, _) = shown(swarm, "web")?;
    ensure!(text.ends_with("*:20000-20899->6000-6899/udp, *:21101-21499->7101-7499/udp"), "{text}");
    swarm.manager().shoal(&["service", "update", "--publish-rm", "20000-21499", "web"])?;
    closed(swarm, there, 14_000 + WHOAMI)
}

fn chosen(swarm: &mut Swarm) -> anyhow::Result<()> {
    let port = format!("{WHOAMI}");
    let hosts = service(swarm, "web", 2, &["-p".into(), port.clone(), "-p".into(), format!("{port}/udp")])?;
    let (_, items) = shown(swarm, "web")?;
    let number = |item: &Value| item["published"].as_u64().and_then(|number| u16::try_from(number).ok());
    let numbers: Vec<_> = items.iter().filter_map(number).collect();
    ensure!(numbers.len() == 2 && numbers.iter().all(|n| (30_000..=32_767).contains(n)), "{items:?}");
    for (udp, number) in [(false, numbers[0]), (true, numbers[1])] {
        let found = who(swarm, swarm.nodes[2].place.v6.into(), number, udp)?;
        ensure_same("who answers on the chosen port", &found, &hosts)?;
    }
    // Other changes of the service, and other services, leave it what it is.
    let made = swarm
        .manager()
        .shoal_output(&["service", "create", "-d", "--name", "other", "-p", "80", "--", "sleep", "1000"])?;
    let told = String::from_utf8_lossy(&made.stderr).into_owned();
    ensure!(told.contains("was chosen for target port 80"), "{told}");
    swarm.manager().shoal(&["service", "update", "--env-add", "V=2", "--publish-add", "9000:9000", "web"])?;
    let (_, items) = shown(swarm, "web")?;
    ensure_same(
        "the chosen ports",
        &items.iter().filter_map(number).collect(),
        &vec![numbers[0], numbers[1], 9000],
    )?;
    swarm.manager().shoal(&["service", "update", "--publish-rm", &numbers[0].to_string(), "web"])?;
    wait_for("the chosen port to be closed", PATIENCE, || {
        let found = who(swarm, swarm.nodes[0].place.v4.into(), numbers[0], false);
        let found = found.map_err(|error| format!("{error:#}"))?;
        if found.is_empty() { Ok(()) } else { Err(format!("{found:?}")) }
    })
}
