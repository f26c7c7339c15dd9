//! What a node finds about itself, when all is well and when something is not.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, ensure};
use serde_json::Value;
use shoal_netns::{Node, Swarm};

use crate::harness::{Scenario, scenario};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("members_that_are_well_have_no_failed_check", well),
    scenario("a_vxlan_device_on_the_overlay_s_port_is_named", foreign_device),
    scenario("an_mtu_beyond_the_link_s_is_found", too_large),
    scenario("a_key_that_others_can_read_is_found", open_key),
    scenario("who_does_not_listen_is_named", silent_peer),
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
    ensure_only(&found?, "mtu", &["1500", "1550"])?;
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
