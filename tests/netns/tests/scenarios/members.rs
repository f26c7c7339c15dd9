//! Who becomes a member: tokens, joining, leaving.

use anyhow::{Context, bail, ensure};
use shoal_netns::{Need, Node, Programs, Swarm, wait_for};

use crate::harness::{PATIENCE, Scenario, answered_by, create_web, host_names, running, scenario};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("a_host_is_checked_before_it_joins", checked),
    scenario("tokens_that_are_wrong_or_foreign_are_refused", wrong_tokens),
    scenario("an_expired_token_is_refused", expired),
    scenario("a_used_up_token_is_refused", used_up),
    scenario("a_manager_listens_where_it_is_set_to", elsewhere),
    scenario("nodes_join_leave_and_join_again", rejoin),
    scenario("a_node_whose_nft_fails_or_hangs_is_programmed_and_leaves", without_nft)
        .needs(&[Need::Nftables]),
];

/// A manager, and two hosts that are not members yet.
pub(crate) fn start(programs: &Programs) -> anyhow::Result<Swarm> {
    let swarm = Swarm::unformed(programs)?;
    swarm.init()?;
    swarm.wait_ready(1)?;
    Ok(swarm)
}

/// `swarm join` that must be refused, leaving the host no member and the swarm as it was.
fn refused(swarm: &Swarm, node: &Node, token: &str, words: &[&str]) -> anyhow::Result<()> {
    let members = swarm.manager().items(&["node", "ls"])?.len();
    let manager = swarm.manager().place.v4.to_string();
    node.refused(&["swarm", "join", "--token", token, &manager], 7, words)?;
    let now = swarm.manager().items(&["node", "ls"])?.len();
    ensure!(members == now, "{members} members became {now}");
    let listed = node.shoal_output(&["node", "ls"])?;
    ensure!(!listed.status.success(), "{} believes it is a member", node.name());
    let pins = std::fs::read_dir(node.bpf_dir()).map(Iterator::count).unwrap_or_default();
    ensure!(pins == 0, "{} keeps the data plane", node.name());
    Ok(())
}

fn checked(swarm: &mut Swarm) -> anyhow::Result<()> {
    let node = &swarm.nodes[1];
    let manager = swarm.manager().place.v4.to_string();
    let failed = crate::doctor::failed(node, &["--peer", &manager])?;
    ensure!(failed.is_empty(), "{failed:?}");
    let text = node.shoal(&["doctor"])?;
    ensure!(text.contains("this host can join") && text.contains("nothing of a former membership"), "{text}");
    Ok(())
}

fn wrong_tokens(swarm: &mut Swarm) -> anyhow::Result<()> {
    let token = swarm.worker_token(&[])?;
    let node = &swarm.nodes[1];
    refused(swarm, node, "hello", &["E0401", "token", "help:"])?;
    let parts: Vec<_> = token.split('-').collect();
    ensure!(parts.len() == 5, "SHOAL-1-digest-id-secret: {} parts", parts.len());
    let with = |index: usize| {
        let mut parts: Vec<_> = parts.iter().map(|part| (*part).to_owned()).collect();
        parts[index] = parts[index].chars().rev().collect();
        parts.join("-")
    };
    // A damaged part is caught by the token's own check or by the manager; either way nothing joins.
    for index in 2..5 {
        refused(swarm, node, &with(index), &["E040", "help:"])?;
    }
    let foreign = foreign_token(swarm)?;
    refused(swarm, node, &foreign, &["E0405", "help:"])
}

/// A good token of another swarm, made by a host that is not a member of ours.
fn foreign_token(swarm: &Swarm) -> anyhow::Result<String> {
    let other = &swarm.nodes[2];
    other.shoal(&["swarm", "init", "--advertise-addr", &other.place.v4.to_string()])?;
    let printed = other.shoal(&["-q", "swarm", "token", "create"])?;
    other.shoal(&["swarm", "leave", "--force"])?;
    printed
        .split_whitespace()
        .find(|word| word.starts_with("SHOAL-1-"))
        .map(str::to_owned)
        .context("no token")
}

fn expired(swarm: &mut Swarm) -> anyhow::Result<()> {
    let token = swarm.worker_token(&["--ttl", "1s"])?;
    let node = &swarm.nodes[1];
    let manager = swarm.manager();
    wait_for("the token to expire", PATIENCE, || {
        let rows = manager.items(&["swarm", "token", "ls"]).map_err(|error| format!("{error:#}"))?;
        let own = format!("{rows:?}");
        let id = token.split('-').nth(3).unwrap_or_default();
        let row = rows.iter().find(|row| row["id"].as_str().is_some_and(|own| own.contains(id)));
        // Expired tokens may also be gone from the list.
        let Some(row) = row else { return Ok(()) };
        let expires = row["expiresAt"].as_str().unwrap_or_default().to_owned();
        let now = shoal_netns::Run::line("date -u +%Y-%m-%dT%H:%M:%S")
            .stdout()
            .map_err(|error| error.to_string())?;
        if expires.as_str() < now.trim() { Ok(()) } else { Err(own) }
    })?;
    refused(swarm, node, &token, &["E0403", "expired", "help:"])
}

fn used_up(swarm: &mut Swarm) -> anyhow::Result<()> {
    let token = swarm.worker_token(&["--uses", "1"])?;
    swarm.join(&swarm.nodes[1], &token)?;
    refused(swarm, &swarm.nodes[2], &token, &["E0404", "help:"])?;
    leave(swarm, &swarm.nodes[1])
}

fn leave(swarm: &Swarm, node: &Node) -> anyhow::Result<()> {
    node.shoal(&["swarm", "leave", "--force"])?;
    forget(swarm, node)
}

/// Waits until the managers know that a node is gone, and removes what they still list of it.
fn forget(swarm: &Swarm, node: &Node) -> anyhow::Result<()> {
    wait_for(&format!("{} to be gone", node.name()), PATIENCE, || {
        let rows = swarm.manager().items(&["node", "ls"]).map_err(|error| format!("{error:#}"))?;
        let own: Vec<_> = rows.iter().filter(|row| row["name"] == node.name()).collect();
        // It may stay listed as down until it is removed.
        if own.iter().all(|row| row["state"] == "down") { Ok(()) } else { Err(format!("{own:?}")) }
    })?;
    let listed = swarm.manager().items(&["node", "ls"])?;
    for row in listed.iter().filter(|row| row["name"] == node.name()) {
        let id = row["id"].as_str().context("a node has an id")?;
        swarm.manager().shoal(&["--yes", "node", "rm", "--force", id])?;
    }
    Ok(())
}

/// A swarm of its own on the other two hosts, on another port.
fn elsewhere(swarm: &mut Swarm) -> anyhow::Result<()> {
    const SET: &str = "[node]\nlisten = \"[::]:7400\"\n";
    let [_, manager, worker] = swarm.nodes.as_mut_slice() else { bail!("three nodes") };
    let address = manager.place.v4.to_string();
    let restart = |node: &mut Node, settings: &str| {
        node.configure(settings)?;
        node.stop_daemon()?;
        node.start_daemon()
    };
    restart(manager, SET)?;
    let other = format!("{address}:7377");
    manager.refused(
        &["swarm", "init", "--advertise-addr", &other],
        2,
        &["E0100", "node.listen", "[::]:7400"],
    )?;
    let made = manager.shoal(&["swarm", "init", "--advertise-addr", &address])?;
    let told = made.split_whitespace().last().context("nothing printed")?.to_owned();
    ensure!(told == format!("{address}:7400"), "joined at {told}");
    let printed = manager.shoal(&["swarm", "token", "create"])?;
    ensure!(printed.contains(&told), "{printed}");
    let token = made.split_whitespace().find(|word| word.starts_with("SHOAL-1-")).context("no token")?;
    let own = format!("{}:7400", worker.place.v4);
    let join = ["swarm", "join", "--token", token];
    worker.refused(
        &[&join[..], &["--advertise-addr", &own, &told]].concat(),
        2,
        &["E0100", "--advertise-addr"],
    )?;
    worker.shoal(&[&join[..], &[&told]].concat())?;
    ensure!(manager.metric("shoal_manager_join_attempts_total")? > 0.0, "one came in");
    // It is known by that port: with another it goes on there, and says so.
    restart(manager, "[node]\nlisten = \"[::]:7401\"\n")?;
    let log = manager.log_tail();
    ensure!(log.contains(&told) && log.contains("node.listen"), "{log}");
    wait_for("both to be ready", PATIENCE, || {
        let rows = manager.items(&["node", "ls"]).map_err(|error| format!("{error:#}"))?;
        let ready = rows.iter().filter(|row| row["state"] == "ready").count();
        if ready == 2 { Ok(()) } else { Err(format!("{rows:?}")) }
    })?;
    ensure!(manager.metric("shoal_raft_is_leader")? > 0.0, "the only manager leads");
    ensure!(worker.metric("shoal_raft_is_leader").is_err(), "there is no manager");
    worker.shoal(&["swarm", "leave"])?;
    manager.shoal(&["swarm", "leave", "--force"])?;
    restart(manager, "")
}

fn rejoin(swarm: &mut Swarm) -> anyhow::Result<()> {
    for _ in 0..2 {
        let token = swarm.worker_token(&[])?;
        for node in &swarm.nodes[1..] {
            swarm.join(node, &token)?;
        }
        swarm.wait_ready(3)?;
        let again = swarm.nodes[1].shoal_output(&["swarm", "join", "--token", &token, "10.77.0.1"])?;
        ensure!(again.status.code() == Some(5), "joining twice: {}", String::from_utf8_lossy(&again.stderr));
        for node in &swarm.nodes[1..] {
            leave(swarm, node)?;
        }
    }
    Ok(())
}

/// The mesh does without it, and nothing but the table stays when the node leaves.
fn without_nft(swarm: &mut Swarm) -> anyhow::Result<()> {
    let token = swarm.worker_token(&[])?;
    swarm.join(&swarm.nodes[1], &token)?;
    swarm.wait_ready(2)?;
    for script in ["echo out of order >&2; exit 1", "exec sleep 1000"] {
        let node = &mut swarm.nodes[1];
        node.stop_daemon()?;
        node.stand_in("nft", Some(script))?;
        node.start_daemon()?;
        swarm.wait_ready(2)?;
        create_web(swarm, 2, &[])?;
        let tasks = running(swarm, "web", 2)?;
        let node = &swarm.nodes[1];
        answered_by(swarm, node, &host_names(&tasks)).with_context(|| format!("nft: {script}"))?;
        wait_for("the failure to be named", PATIENCE, || {
            let said = node.shoal(&["status"]).map_err(|error| format!("{error:#}"))?;
            if said.contains("Firewall") && said.contains("nft") { Ok(()) } else { Err(said) }
        })?;
        swarm.manager().shoal(&["--yes", "service", "rm", "web"])?;
    }
    let node = &mut swarm.nodes[1];
    node.refused(&["swarm", "leave", "--force"], 1, &["nft", "cleanup --check", "help:"])?;
    node.stop_daemon()?;
    node.stand_in("nft", None)?;
    let said = node.cleanup(true)?.stdout;
    let said = String::from_utf8_lossy(&said);
    ensure!(said == "nftables table inet shoal\n", "this stayed: {said}");
    let cleaned = node.cleanup(false)?;
    ensure!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stderr));
    node.start_daemon()?;
    forget(swarm, &swarm.nodes[1])
}
