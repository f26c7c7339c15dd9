//! What somebody takes away from a node by hand comes back, is counted under what it was, and breaks no stream beside it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, ensure};
use shoal_netns::pinned::{Pinned, index};
use shoal_netns::{DEVICE, Need, Node, Run, Swarm, Traffic, wait_for};

use crate::harness::{
    PATIENCE, PUBLISHED_ECHO, PUBLISHED_WHOAMI, Scenario, WHOAMI, answered_by, ask_node, host_names,
    scenario, web,
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("forwarding_neighbors_and_parameters_come_back_under_streams", under_streams),
    scenario("a_table_comes_back_under_streams", table).needs(&[Need::Nftables]),
    scenario("entries_routes_programs_and_pins_come_back_under_streams", quietly),
    scenario("entries_that_connections_hang_on_come_back", loudly),
    scenario("links_and_programs_come_back_with_all_that_hangs_on_them", links),
    scenario("addresses_that_other_nodes_tell_come_back_and_stay_through_a_restart", told),
];

/// How often a node repaired a kind of object.
fn repaired(node: &Node, object: &str) -> f64 {
    // Without a repair there is no series.
    node.metric(&format!("shoal_agent_drift_repairs_total{{object=\"{object}\"}}")).unwrap_or_default()
}

/// Does something to a node, and waits until it was repaired as such an object and something shows that it is back.
pub(crate) fn repairs(
    node: &Node,
    object: &str,
    harm: impl FnOnce() -> anyhow::Result<()>,
    is_back: impl Fn() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    ensure!(is_back()?, "{object}: it is not there to begin with");
    let before = repaired(node, object);
    harm().with_context(|| format!("cannot harm the {object}"))?;
    wait_for(&format!("{} to repair its {object}", node.name()), PATIENCE, || {
        let now = repaired(node, object);
        let back = is_back().map_err(|error| format!("{error:#}"))?;
        if back && now > before { Ok(()) } else { Err(format!("back: {back}; {before} repairs, then {now}")) }
    })
}

/// Streams from the client through every node.
fn streams(swarm: &Swarm) -> anyhow::Result<Vec<Traffic>> {
    let addresses = swarm.nodes.iter().flat_map(|node| node.place.addresses());
    addresses
        .map(|address| {
            Traffic::streams(&swarm.client, &swarm.programs, SocketAddr::new(address, PUBLISHED_ECHO), 3)
        })
        .collect()
}

fn finish(streams: Vec<Traffic>) -> anyhow::Result<()> {
    for stream in streams {
        let report = stream.finish()?;
        ensure!(report["lines"].as_u64() > Some(5), "hardly a line was sent: {report}");
    }
    Ok(())
}

/// The first line of a listing on a node that has a word.
fn line_with(node: &Node, listing: &str, word: &str) -> anyhow::Result<Option<String>> {
    let text = node.host.run_line(listing).stdout()?;
    Ok(text.lines().find(|line| line.contains(word)).map(|line| line.trim().to_owned()))
}

/// A link of a node whose name starts so.
fn link_named(node: &Node, prefix: &str) -> anyhow::Result<String> {
    let text = node.host.ip("-o link show")?;
    let mut names = text.lines().filter_map(|line| line.split(": ").nth(1)?.split('@').next());
    let found = names.find(|name| name.starts_with(prefix));
    found.map(str::to_owned).with_context(|| format!("no link {prefix}… on {}:\n{text}", node.name()))
}

fn under_streams(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    let node = swarm.manager();
    let long = streams(swarm)?;

    let vxlan = link_named(node, "shx-")?;
    let listing = format!("bridge fdb show dev {vxlan}");
    let entry = line_with(node, &listing, " dst ")?.context("no forwarding entry with a destination")?;
    let mac = entry.split(' ').next().unwrap_or_default().to_owned();
    let delete = format!("bridge fdb del {mac} dev {vxlan} self");
    let is_back = || Ok(line_with(node, &listing, &mac)?.is_some());
    repairs(node, "fdb", || node.host.run_line(&delete).stdout().map(drop), is_back)?;

    for family in ["-4", "-6"] {
        let listing = format!("ip {family} neigh show dev {vxlan} nud permanent");
        let entry = line_with(node, &listing, "PERMANENT")?.context("no permanent neighbor")?;
        let address = entry.split(' ').next().unwrap_or_default().to_owned();
        let delete = format!("{family} neigh del {address} dev {vxlan}");
        let is_back = || Ok(line_with(node, &listing, &format!("{address} "))?.is_some());
        repairs(node, "neighbor", || node.host.ip(&delete).map(drop), is_back)?;
    }

    let path = "ipv4/conf/lo/accept_local";
    let is_back = || Ok(node.host.read_sysctl(path)?.trim() == "1");
    repairs(node, "sysctl", || node.host.sysctl(path, "0"), is_back)?;

    finish(long)?;
    swarm.nodes.iter().try_for_each(|node| answered_by(swarm, node, &host_names(&tasks)))
}

fn table(swarm: &mut Swarm) -> anyhow::Result<()> {
    web(swarm, 3)?;
    let node = swarm.manager();
    let long = streams(swarm)?;
    // A table of somebody else's stays as it is.
    node.host.run_line("nft add table inet foreign").stdout()?;
    for harm in ["nft flush table inet shoal", "nft delete table inet shoal"] {
        let is_back = || Ok(line_with(node, "nft list ruleset", "masquerade")?.is_some());
        repairs(node, "firewall", || node.host.run_line(harm).stdout().map(drop), is_back)?;
    }
    node.host.run_line("nft delete table inet foreign").stdout().context("the foreign table")?;
    finish(long)
}

fn links(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    let node = swarm.manager();
    for (prefix, object) in [("shx-", "vxlan"), ("shb-", "bridge"), ("shv-", "leg")] {
        let name = link_named(node, prefix)?;
        let is_back = || Ok(line_with(node, "ip -o link show", &format!(" {name}"))?.is_some());
        repairs(node, object, || node.host.ip(&format!("link del {name}")).map(drop), is_back)?;
        every_node_answers(swarm, &host_names(&tasks)).with_context(|| format!("after the {object}"))?;
    }
    let pins = pins(node)?;
    let pin = pins.first().context("no attachment is pinned")?.clone();
    let is_back = || Ok(pin.exists());
    repairs(node, "hook", || Ok(std::fs::remove_file(&pin)?), is_back)?;
    every_node_answers(swarm, &host_names(&tasks)).context("after the hook")
}

/// Something done to a node: what kind of object it is done to, how, and how it is seen that it is back.
struct Harm {
    object: &'static str,
    apply: Box<dyn Fn() -> anyhow::Result<()>>,
    is_back: Box<dyn Fn() -> anyhow::Result<bool>>,
}

/// Does many things to a node at once, and waits until each was repaired.
fn repairs_all(node: &Node, harms: &[Harm]) -> anyhow::Result<()> {
    for Harm { object, is_back, .. } in harms {
        ensure!(is_back()?, "{object}: it is not there to begin with");
    }
    let before: Vec<_> = harms.iter().map(|harm| repaired(node, harm.object)).collect();
    for Harm { object, apply, .. } in harms {
        apply().with_context(|| format!("cannot harm the {object}"))?;
    }
    wait_for(&format!("{} to repair all of it", node.name()), PATIENCE, || {
        for (Harm { object, is_back, .. }, before) in harms.iter().zip(&before) {
            let (back, now) = (is_back().map_err(|error| format!("{error:#}"))?, repaired(node, object));
            if !back || now <= *before {
                return Err(format!("{object}: back: {back}; {before} repairs, then {now}"));
            }
        }
        Ok(())
    })
}

/// The map of a name.
pub(crate) fn map(node: &Node, name: &str) -> anyhow::Result<Pinned> {
    Pinned::open(&generation(node)?.join("maps").join(name))
}

/// Removes the first entry of each of these maps, those of objects.
fn entries(node: &Node, maps: &[(&'static str, &'static str)]) -> anyhow::Result<Vec<Harm>> {
    let mut harms = Vec::new();
    for (name, object) in maps {
        let map = Rc::new(map(node, name)?);
        // Not every engine and kernel uses each of them.
        let Some(key) = map.first_key()?.map(Rc::new) else { continue };
        let (same, at) = (Rc::clone(&map), Rc::clone(&key));
        harms.push(Harm {
            object,
            apply: Box::new(move || same.delete(&at)),
            is_back: Box::new(move || Ok(map.get(&key)?.is_some())),
        });
    }
    ensure!(harms.len() * 2 >= maps.len(), "hardly a map has entries");
    Ok(harms)
}

/// Without these, new connections go astray, and those that are known go on.
const QUIET: [(&str, &str); 7] = [
    ("PORTS", "port"),
    ("VIPS", "vip"),
    ("ROUTERS", "router"),
    ("TUNNELS", "tunnel"),
    ("PEERS", "peer"),
    ("LOCAL", "local"),
    ("LOCAL_ADDRS", "local_addr"),
];
/// Without these, packets of known connections may be refused, too.
const LOUD: [(&str, &str); 5] = [
    ("SERVICES", "service"),
    ("MEMBERS", "member"),
    ("ENDPOINTS", "endpoint"),
    ("TASK_IFS", "task_if"),
    ("CLIENTS", "client"),
];

fn quietly(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    let node = swarm.manager();
    let long = streams(swarm)?;
    let mut harms = entries(node, &QUIET)?;
    harms.extend(slot(node)?);
    harms.push(way_out(node)?);
    harms.push(way_in(node)?);
    repairs_all(node, &harms)?;
    program(node, "overlay_rx", &link_named(node, "shx-")?)?;
    let pin = generation(node)?.join("maps/FLOWS");
    repairs(node, "pin", || Ok(std::fs::remove_file(&pin)?), || Ok(pin.exists()))?;
    finish(long)?;
    every_node_answers(swarm, &host_names(&tasks))
}

/// Once a port is published so, nodes answer each other's clients, by what their probes tell.
fn told(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    let node = swarm.manager();
    let doors = map(node, "DOORS")?;
    ensure!(doors.first_key()?.is_none(), "addresses of other nodes are there before any port needs them");
    let direct = format!("published={PUBLISHED_WHOAMI},target={WHOAMI},dsr=true");
    node.shoal(&["service", "update", "--publish-add", &direct, "web"])?;
    wait_for("the addresses of another node", PATIENCE, || match doors.first_key() {
        Ok(Some(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    every_node_answers(swarm, &host_names(&tasks))?;
    let mut harms = entries(node, &[("DOORS", "door"), ("OUTWARD", "outward")])?;
    harms.push(other_number(node)?);
    repairs_all(node, &harms)?;
    every_node_answers(swarm, &host_names(&tasks))?;
    drop(harms);
    for node in &mut swarm.nodes {
        node.stop_daemon()?;
    }
    for node in &mut swarm.nodes {
        node.start_daemon()?;
    }
    swarm.wait_ready(3)?;
    for node in &swarm.nodes {
        wait_for("the others to be heard", PATIENCE, || {
            let heard = node.metric("shoal_peers{state=\"ok\"}").map_err(|error| format!("{error:#}"))?;
            if heard > 1.5 { Ok(()) } else { Err(format!("{heard} of 2")) }
        })?;
        let writes = node.metric("shoal_agent_kernel_writes_total")?;
        ensure!(writes < 0.5, "{} wrote to its kernel {writes} times\n{}", node.name(), node.log_tail());
    }
    every_node_answers(swarm, &host_names(&tasks))
}

/// Another number of an address of the node, than others know it by.
fn other_number(node: &Node) -> anyhow::Result<Harm> {
    let map = Rc::new(map(node, "LOCAL_ADDRS")?);
    let key = map.first_key()?.context("no address")?;
    let wanted = map.get(&key)?.context("it was there")?;
    let mut other = wanted.clone();
    other[0] ^= 0x15;
    let (same, at) = (Rc::clone(&map), key.clone());
    Ok(Harm {
        object: "local_addr",
        apply: Box::new(move || same.set(&at, &other)),
        is_back: Box::new(move || Ok(map.get(&key)?.as_ref() == Some(&wanted))),
    })
}

fn loudly(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    let node = swarm.manager();
    let mut harms = entries(node, &LOUD)?;
    let config = Rc::new(map(node, "CONFIG")?);
    let wanted = config.get(&index(0))?.context("no configuration")?;
    let (same, none) = (Rc::clone(&config), vec![0; wanted.len()]);
    harms.push(Harm {
        object: "mesh_config",
        apply: Box::new(move || same.set(&index(0), &none)),
        is_back: Box::new(move || Ok(config.get(&index(0))?.as_ref() == Some(&wanted))),
    });
    repairs_all(node, &harms)?;
    program(node, "mesh_ingress", DEVICE)?;
    every_node_answers(swarm, &host_names(&tasks))
}

/// One place of a service's table, which leads nowhere then. None with an engine that has tables of its own.
fn slot(node: &Node) -> anyhow::Result<Option<Harm>> {
    let (services, slots) = (map(node, "SERVICES")?, Rc::new(map(node, "SLOTS")?));
    let Some(service) = services.first_key()? else { return Ok(None) };
    let entry = services.get(&service)?.context("it was there")?;
    let key = index(u32::from_ne_bytes(entry[16..20].try_into()?));
    let wanted = slots.get(&key)?.context("no such slot")?;
    let (same, at, other) = (Rc::clone(&slots), key.clone(), vec![0xee; wanted.len()]);
    Ok(Some(Harm {
        object: "service",
        apply: Box::new(move || same.set(&at, &other)),
        is_back: Box::new(move || Ok(slots.get(&key)?.as_ref() == Some(&wanted))),
    }))
}

/// A program detached from a device, its pin in place; where programs are filters, with their qdisc.
fn program(node: &Node, program: &str, device: &str) -> anyhow::Result<()> {
    let link = node.host.ip(&format!("-o link show {device}"))?;
    let number = link.split(':').next().unwrap_or_default();
    let pin = generation(node)?.join(format!("links/{program}@{number}"));
    let filters = format!("tc filter show dev {device} ingress");
    let has_filter = || Ok(node.host.run_line(&filters).stdout()?.contains("bpf"));
    if has_filter()? {
        let harm = || node.host.run_line(&format!("tc qdisc del dev {device} clsact")).stdout().map(drop);
        return repairs(node, "hook", harm, has_filter);
    }
    repairs(node, "hook", || Pinned::open(&pin)?.detach(), || Ok(pin.exists()))
}

/// A task's route out of its networks.
fn way_out(node: &Node) -> anyhow::Result<Harm> {
    let is_task = |path: &PathBuf| path.file_name().is_some_and(|name| name.len() > 20);
    let netns = node.task_namespaces().into_iter().find(is_task).context("no task")?;
    let same = netns.clone();
    Ok(Harm {
        object: "leg",
        apply: Box::new(move || Run::line("ip route del default").netns(&same).stdout().map(drop)),
        is_back: Box::new(move || {
            Ok(Run::line("ip route show default").netns(&netns).stdout()?.contains("default"))
        }),
    })
}

/// The node's route to its tasks.
fn way_in(node: &Node) -> anyhow::Result<Harm> {
    let netns = node.host.netns_path();
    let list = |netns: &Path| Run::line("ip route show dev shoal0").netns(netns).stdout();
    let routes = list(&netns)?;
    let route = routes.lines().next().context("no route to the tasks")?;
    let (delete, same) = (format!("ip route del {route} dev shoal0"), netns.clone());
    Ok(Harm {
        object: "bridge",
        apply: Box::new(move || Run::line(&delete).netns(&same).stdout().map(drop)),
        is_back: Box::new(move || Ok(!list(&netns)?.trim().is_empty())),
    })
}

/// The directory of the programs and maps.
fn generation(node: &Node) -> anyhow::Result<PathBuf> {
    let mut found = std::fs::read_dir(node.bpf_dir())?;
    Ok(found.next().context("nothing is pinned")??.path())
}

/// What is pinned for the attachments of programs.
fn pins(node: &Node) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for generation in std::fs::read_dir(node.bpf_dir())? {
        let Ok(links) = std::fs::read_dir(generation?.path().join("links")) else { continue };
        for link in links {
            found.push(link?.path());
        }
    }
    found.sort();
    Ok(found)
}

fn every_node_answers(swarm: &Swarm, hosts: &std::collections::BTreeSet<String>) -> anyhow::Result<()> {
    for node in &swarm.nodes {
        answered_by(swarm, node, hosts)?;
        let udp = ask_node(swarm, node.place.v6.into(), PUBLISHED_WHOAMI, true, 10)?;
        udp.complete().with_context(|| format!("{} by UDP", node.name()))?;
    }
    Ok(())
}
