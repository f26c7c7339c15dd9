//! What a node finds about itself, when all is well and when something is not.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, ensure};
use serde_json::Value;
use shoal_netns::{Need, Node, Swarm, wait_for};

use crate::harness::{PATIENCE, Scenario, scenario};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("members_that_are_well_have_no_failed_check", well),
    scenario("a_vxlan_device_on_the_overlay_s_port_is_named", foreign_device),
    scenario("an_mtu_beyond_the_link_s_is_found", too_large),
    scenario("a_key_that_others_can_read_is_found", open_key),
    scenario("who_does_not_listen_is_named", silent_peer),
    scenario("a_tunnel_that_is_closed_one_way_is_told_at_both_ends", one_way).needs(&[Need::Nftables]),
    scenario("a_tunnel_that_is_too_narrow_is_told_with_its_sizes", too_narrow),
];

/// The checks that failed, as the command's exit code must say as well.
pub(crate) fn failed(node: &Node, flags: &[&str]) -> anyhow::Result<Vec<Value>> {
    let output = node.shoal_output(&[&["--json", "doctor"], flags].concat())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let document: Value = serde_json::from_str(&text)
        .with_context(|| format!("no JSON: {text}\n{}", String::from_utf8_lossy(&output.stderr)))?;
    let checks = document["items"].as_array().context("no items")?.clone();
    ensure!(checks.len() > 10, "only {} checks: {document}", checks.len());
    let failed: Vec<Value> = checks.into_iter().filter(|check| check["verdict"] == "fail").collect();
    let code = if failed.is_empty() { 0 } else { 9 };
    ensure!(output.status.code() == Some(code), "expected exit code {code}: {}: {document}", output.status);
    Ok(failed)
}

/// Exactly this check fails, with these words in what it found.
fn ensure_only(failed: &[Value], name: &str, words: &[&str]) -> anyhow::Result<()> {
    let [check] = failed else { anyhow::bail!("expected one failed check, '{name}': {failed:?}") };
    ensure!(check["name"] == name, "expected '{name}' to fail: {check}");
    let evidence = check["evidence"].as_str().unwrap_or_default();
    ensure!(words.iter().all(|word| evidence.contains(word)), "expected {words:?} in {check}");
    ensure!(check["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "no remedy: {check}");
    Ok(())
}

fn ensure_well(node: &Node) -> anyhow::Result<()> {
    let failed = failed(node, &[])?;
    ensure!(failed.is_empty(), "{}: {failed:?}", node.name());
    Ok(())
}

fn well(swarm: &mut Swarm) -> anyhow::Result<()> {
    for node in &swarm.nodes {
        ensure_well(node)?;
        let text = node.shoal(&["doctor"])?;
        ensure!(text.contains("0 failed") && text.contains("ok    mtu"), "{text}");
    }
    Ok(())
}

fn foreign_device(swarm: &mut Swarm) -> anyhow::Result<()> {
    let node = &swarm.nodes[1];
    node.host.ip("link add other0 type vxlan id 99 dstport 7378 local 127.0.0.1")?;
    let found = failed(node, &[]);
    node.host.ip("link del other0")?;
    ensure_only(&found?, "overlay-port", &["7378/udp", "other0"])?;
    ensure_well(node)
}

fn too_large(swarm: &mut Swarm) -> anyhow::Result<()> {
    let set = |swarm: &mut Swarm, settings: &str| {
        let node = &mut swarm.nodes[1];
        node.configure(settings)?;
        node.stop_daemon()?;
        node.start_daemon()?;
        swarm.wait_ready(3)
    };
    set(swarm, "[network]\nmtu = 1600\n")?;
    let found = failed(&swarm.nodes[1], &[]);
    set(swarm, "")?;
    // What must not be fragmented gets nowhere then, and the probes tell.
    let (tunnels, other): (Vec<_>, Vec<_>) = found?.into_iter().partition(|check| check["name"] == "tunnels");
    ensure_only(&other, "mtu", &["1500", "1550"])?;
    ensure!(tunnels.iter().all(|check| check.to_string().contains("those of 1550 do not")), "{tunnels:?}");
    ensure_well(&swarm.nodes[1])
}

fn open_key(swarm: &mut Swarm) -> anyhow::Result<()> {
    let node = &swarm.nodes[1];
    let key = node.state_dir().join("pki/node.key");
    set_permissions(&key, Permissions::from_mode(0o644))?;
    let found = failed(node, &[]);
    set_permissions(&key, Permissions::from_mode(0o600))?;
    ensure_only(&found?, "file-modes", &["node.key", "0644"])?;
    ensure_well(node)
}

fn silent_peer(swarm: &mut Swarm) -> anyhow::Result<()> {
    let (node, worker) = (&swarm.nodes[1], &swarm.nodes[2]);
    for address in worker.place.addresses() {
        let text = address.to_string();
        ensure_only(&failed(node, &["--peer", &text])?, "managers", &[&text, "7377"])?;
    }
    let manager = swarm.manager().place.v4.to_string();
    let found = failed(node, &["--peer", &manager])?;
    ensure!(found.is_empty(), "the manager listens: {found:?}");
    Ok(())
}

/// What `shoal status` of a node says of the ways to the others.
fn peers(node: &Node) -> Result<Value, String> {
    let items = node.items(&["status"]).map_err(|error| format!("{error:#}"))?;
    items.first().map(|item| item["node"]["peers"].clone()).ok_or_else(|| "no status".to_owned())
}

/// Waits until every node has been answered by both others: only of those it is said that they answer no more.
fn wait_answered(swarm: &Swarm) -> anyhow::Result<()> {
    swarm.nodes.iter().try_for_each(|node| {
        wait_for(&format!("{} to be answered by the others", node.name()), PATIENCE, || {
            let peers = peers(node)?;
            if peers["answering"] == 2 { Ok(()) } else { Err(peers.to_string()) }
        })
    })
}

/// Both ends of what n3 lets in from n2 no more: its own packets still get there, and are answered in vain.
fn one_way(swarm: &mut Swarm) -> anyhow::Result<()> {
    wait_answered(swarm)?;
    let [first, near, far] = swarm.nodes.as_slice() else { anyhow::bail!("not three nodes") };
    let rule = format!("ip saddr {} udp dport 7378 drop", near.place.v4);
    let nft = |line: &str| far.host.run_line(&format!("nft {line}")).stdout().map(drop);
    nft("add table inet cut")?;
    nft("add chain inet cut in { type filter hook input priority 0 ; }")?;
    nft(&format!("add rule inet cut in {rule}"))?;
    let told = || -> anyhow::Result<()> {
        let (here, there) = std::thread::scope(|scope| {
            let here = scope.spawn(|| failed(near, &[]));
            let there = failed(far, &[]);
            (here.join().unwrap_or_else(|_| Err(anyhow::anyhow!("panicked"))), there)
        });
        ensure_only(&here?, "tunnels", &["n3", "10.77.0.3"])?;
        ensure_only(&there?, "tunnels", &["nothing comes from n2", "10.77.0.2"])?;
        wait_for("n2 to know which way is closed", PATIENCE, || {
            let peers = peers(near)?;
            let trouble = &peers["troubles"][0];
            let words = trouble["evidence"].as_str().unwrap_or_default();
            let known = trouble["state"] == "silent" && words.contains("do not arrive at n3");
            if known && peers["answering"] == 1 { Ok(()) } else { Err(peers.to_string()) }
        })?;
        let text = near.shoal(&["status"])?;
        ensure!(text.contains("peers 1/2") && text.contains("do not arrive at n3"), "{text}");
        let answering = near.metric("shoal_peer_reachable")?;
        ensure!((answering - 1.0).abs() < 0.1, "of two peers {answering} can be reached");
        wait_for("the manager to tell of it", PATIENCE, || {
            let text = first.shoal(&["status"]).map_err(|error| format!("{error:#}"))?;
            let known = text.contains("Warning: seen from n2: frames from here do not arrive at n3");
            if known { Ok(()) } else { Err(text) }
        })?;
        ensure_well(first)
    };
    let outcome = told();
    nft("delete table inet cut")?;
    outcome?;
    ensure_well(near)?;
    ensure_well(far)
}

/// A link on the way carries less than the nodes' own do, and says nothing of it.
fn too_narrow(swarm: &mut Swarm) -> anyhow::Result<()> {
    wait_answered(swarm)?;
    let (near, far) = (&swarm.nodes[1], &swarm.nodes[2]);
    let cable = |mtu: u32| swarm.lan.narrow(far.place, mtu);
    cable(1460)?;
    let found = failed(near, &[]);
    cable(1500)?;
    let found = found?;
    ensure_only(&found, "tunnels", &["n3", "1400", "1450"])?;
    ensure!(found[0]["fix"].as_str().is_some_and(|fix| fix.contains("1500")), "{found:?}");
    ensure_well(near)
}
