//! Services whose name stands for their tasks (`--endpoint-mode dnsrr`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::ensure;
use shoal_netns::{Swarm, dig, kill_hard, wait_for};

use crate::harness::{
    PATIENCE, PUBLISHED_WHOAMI, WHOAMI, answered_by, ask_node, create, ensure_same, host_names, running,
};
use crate::names::{addresses, asker, resolves, set};

fn rotated(swarm: &Swarm, replicas: u32) -> anyhow::Result<Vec<shoal_netns::Task>> {
    let port = format!("{PUBLISHED_WHOAMI}:{WHOAMI}");
    let udp = format!("{port}/udp");
    let replicas_text = replicas.to_string();
    let flags = ["--endpoint-mode", "dnsrr", "--replicas", &replicas_text, "-p", &port, "-p", &udp];
    create(swarm, "web", "front", &flags)?;
    running(swarm, "web", replicas)
}

/// Addresses that a network has given out.
fn addresses_used(swarm: &Swarm) -> anyhow::Result<u64> {
    let networks = swarm.manager().items(&["network", "ls"])?;
    let used = networks.iter().find(|network| network["name"] == "front");
    Ok(used.and_then(|network| network["addressesUsed"].as_u64()).unwrap_or_default())
}

pub(crate) fn tasks(swarm: &mut Swarm) -> anyhow::Result<()> {
    let mut tasks = rotated(swarm, 3)?;
    let asker = asker(swarm, "asker", "front")?;
    let service = swarm.manager().items(&["service", "inspect", "web"])?.remove(0);
    ensure_same("its mode", &service["endpointMode"].as_str(), &Some("dnsrr"))?;
    ensure_same("its virtual IPs", &service["vips"], &serde_json::json!([]))?;
    for (kind, v4) in [("A", true), ("AAAA", false)] {
        let all = addresses(&tasks, "front", v4)?;
        for name in ["web", "web.front", "tasks.web"] {
            resolves(&asker, name, kind, &all)?;
        }
        // Each has its turn, and nobody keeps an answer for long.
        let mut firsts = BTreeSet::new();
        for _ in 0..6 {
            let answer = dig(&asker, "web", kind, false)?;
            ensure_same("how long it may be kept", &answer.ttl, &Some(5))?;
            firsts.extend(answer.ordered.first().and_then(|first| first.parse::<IpAddr>().ok()));
        }
        ensure_same("who was first", &firsts, &all)?;
    }
    // A published port does not depend on it.
    for node in &swarm.nodes {
        answered_by(swarm, node, &host_names(&tasks))?;
        for (address, udp) in [(node.place.v6.into(), false), (node.place.v4.into(), true)] {
            let answers = ask_node(swarm, address, PUBLISHED_WHOAMI, udp, 60)?.complete()?;
            ensure_same("who answered", &answers.hosts.keys().cloned().collect(), &host_names(&tasks))?;
        }
    }
    // A task that ended is not named any more, its replacement is.
    kill_hard(tasks[0].process()?);
    let gone = tasks[0].id.clone();
    wait_for("a replacement", PATIENCE, || {
        tasks = swarm.manager().running_tasks("web").map_err(|error| format!("{error:#}"))?;
        let replaced = tasks.len() == 3 && tasks.iter().all(|task| task.id != gone);
        if replaced { Ok(()) } else { Err(format!("{tasks:?}")) }
    })?;
    resolves(&asker, "web", "A", &addresses(&tasks, "front", true)?)?;
    swarm.manager().shoal(&["service", "scale", "web=0"])?;
    wait_for("a name without addresses", PATIENCE, || {
        let answer = dig(&asker, "web", "A", false).map_err(|error| format!("{error:#}"))?;
        let bare = answer.status == "NOERROR" && answer.data.is_empty();
        if bare { Ok(()) } else { Err(format!("{answer:?}")) }
    })?;
    swarm.manager().shoal(&["--yes", "service", "rm", "web"])?;
    wait_for("the name to be gone", PATIENCE, || {
        let answer = dig(&asker, "web", "A", false).map_err(|error| format!("{error:#}"))?;
        if answer.status == "NXDOMAIN" { Ok(()) } else { Err(format!("{answer:?}")) }
    })
}

pub(crate) fn switch(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = rotated(swarm, 2)?;
    let asker = asker(swarm, "asker", "front")?;
    let manager = swarm.manager();
    let without = addresses_used(swarm)?;
    let planned = ["service", "update", "--dry-run", "--endpoint-mode", "vip", "web"];
    let output = manager.shoal_output(&planned)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let line = "~ spec.endpointMode: \"dnsrr\" -> \"vip\"".replace("spec.", "");
    ensure!(output.status.code() == Some(10) && said.contains(&line), "{}: {said}", output.status);
    manager.refused(&["service", "update", "--endpoint-mode", "none", "web"], 2, &["vip or dnsrr"])?;
    for round in 0..2 {
        manager.shoal(&["service", "update", "--endpoint-mode", "vip", "web"])?;
        let vip = manager.vip("web", "front")?;
        ensure_same("addresses in use", &addresses_used(swarm)?, &(without + 1))?;
        for (kind, address) in [("A", IpAddr::from(vip.v4)), ("AAAA", vip.v6.into())] {
            resolves(&asker, "web", kind, &set([address]))?;
            let target = std::net::SocketAddr::new(address, WHOAMI).to_string();
            wait_for(&format!("the virtual IP to answer, round {round}"), PATIENCE, || {
                let run = shoal_netns::Run::new(&swarm.programs.load)
                    .netns(asker.netns().map_err(|error| format!("{error:#}"))?)
                    .args(["ask", "--target", &target, "--count", "40"]);
                let output = run.output().map_err(|error| format!("{error:#}"))?;
                let text = String::from_utf8_lossy(&output.stdout);
                let answers: shoal_netns::Answers =
                    serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
                let hosts: BTreeSet<_> = answers.hosts.keys().cloned().collect();
                let all = answers.failed == 0 && hosts == host_names(&tasks);
                if all { Ok(()) } else { Err(format!("{answers:?}")) }
            })?;
        }
        manager.shoal(&["service", "update", "--endpoint-mode", "dnsrr", "web"])?;
        ensure_same("addresses in use", &addresses_used(swarm)?, &without)?;
        resolves(&asker, "web", "A", &addresses(&tasks, "front", true)?)?;
        let pointer = dig(&asker, &vip.v4.to_string(), "PTR", false)?;
        ensure_same("who has the virtual IP", &pointer.status.as_str(), &"NXDOMAIN")?;
    }
    ensure_same("the tasks after all", &running(swarm, "web", 2)?, &tasks)
}
