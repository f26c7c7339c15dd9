//! Names and virtual IPs, as a task sees them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, ensure};
use shoal_netns::{Run, Swarm, Task, dig, wait_for};

use crate::harness::{PATIENCE, Scenario, WHOAMI, create, ensure_same, host_names, running, scenario, web};
use crate::upstream::{ANSWER, Upstream};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("the_name_is_the_vip_and_the_vip_answers", vip),
    scenario("tasks_and_addresses_have_names", task_names),
    scenario("networks_don_t_know_each_other_s_names", isolation),
    scenario("other_names_are_forwarded_from_the_host", forwarding),
];

fn set<T: Ord, const N: usize>(items: [T; N]) -> BTreeSet<T> {
    items.into_iter().collect()
}

/// Another service on the network of `web`; its task asks the questions.
fn asker(swarm: &Swarm, name: &str, network: &str) -> anyhow::Result<Task> {
    create(swarm, name, network, &[])?;
    running(swarm, name, 1)?.pop().context("one task")
}

fn vip(swarm: &mut Swarm) -> anyhow::Result<()> {
    const QUESTIONS: usize = 60;
    let tasks = web(swarm, 3)?;
    let vip = swarm.manager().vip("web", "front")?;
    let asker = asker(swarm, "asker", "front")?;
    let own = asker.attachment("front")?.clone();
    for (kind, address) in [("A", IpAddr::from(vip.v4)), ("AAAA", vip.v6.into())] {
        for name in ["web", "web.front"] {
            for tcp in [false, true] {
                ensure_same(name, &dig(&asker, name, kind, tcp)?.addresses()?, &set([address]))?;
            }
        }
        let pointer = dig(&asker, &address.to_string(), "PTR", false)?;
        ensure!(
            pointer.data.iter().any(|name| name == "web" || name == "web.front"),
            "the VIP's name: {pointer:?}"
        );
        for udp in [false, true] {
            let target = SocketAddr::new(address, WHOAMI).to_string();
            let run = Run::new(&swarm.programs.load).netns(asker.netns()?);
            let run = run.args(["ask", "--target", &target, "--count", &QUESTIONS.to_string()]);
            let text = run
                .args(udp.then_some("--udp"))
                .stdout()
                .with_context(|| format!("VIP {target} udp {udp}"))?;
            let answers: shoal_netns::Answers = serde_json::from_str(&text)?;
            let seen: IpAddr = if address.is_ipv4() { own.v4.into() } else { own.v6.into() };
            ensure_same("who the tasks saw", &answers.peers, &vec![seen])?;
            ensure_same("who answered", &answers.hosts.keys().cloned().collect(), &host_names(&tasks))?;
        }
    }
    Ok(())
}

fn task_names(swarm: &mut Swarm) -> anyhow::Result<()> {
    let asker = {
        web(swarm, 3)?;
        asker(swarm, "asker", "front")?
    };
    for count in [3, 5, 2] {
        swarm.manager().shoal(&["service", "scale", &format!("web={count}")])?;
        let tasks = running(swarm, "web", count)?;
        for (kind, v4) in [("A", true), ("AAAA", false)] {
            let address = |task: &Task| -> anyhow::Result<IpAddr> {
                let place = task.attachment("front")?;
                Ok(if v4 { place.v4.into() } else { place.v6.into() })
            };
            let all = tasks.iter().map(address).collect::<anyhow::Result<BTreeSet<_>>>()?;
            wait_for(&format!("tasks.web to be {all:?}"), PATIENCE, || {
                let names = dig(&asker, "tasks.web", kind, false).and_then(|names| names.addresses());
                let names = names.map_err(|error| format!("{error:#}"))?;
                if names == all { Ok(()) } else { Err(format!("{names:?}")) }
            })?;
            for task in &tasks {
                let own = address(task)?;
                ensure_same(&task.name, &dig(&asker, &task.name, kind, false)?.addresses()?, &set([own]))?;
                let pointer = dig(&asker, &own.to_string(), "PTR", false)?;
                ensure!(
                    pointer.data.iter().any(|name| name.starts_with(&task.name)),
                    "the name of {own}: {pointer:?}"
                );
            }
        }
    }
    Ok(())
}

fn isolation(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 2)?;
    let stranger = asker(swarm, "stranger", "back")?;
    for name in ["web", "tasks.web", "web.1"] {
        let answer = dig(&stranger, name, "A", false)?;
        ensure_same(&format!("'{name}' from another network"), &answer.status.as_str(), &"NXDOMAIN")?;
    }
    // A node that has no task on a network doesn't know the network's name either, so this one is for the outside.
    let answer = dig(&stranger, "web.front", "A", false)?;
    ensure!(answer.data.is_empty(), "'web.front' from another network: {answer:?}");
    // Not by address either.
    let vip = swarm.manager().vip("web", "front")?;
    let mut targets: Vec<IpAddr> = vip.addresses().into();
    for task in &tasks {
        targets.extend(task.attachment("front")?.addresses());
    }
    for address in targets {
        let target = SocketAddr::new(address, WHOAMI).to_string();
        let run = Run::new(&swarm.programs.load).netns(stranger.netns()?);
        let output = run.args(["ask", "--target", &target, "--timeout-ms", "400"]).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let answers: shoal_netns::Answers =
            serde_json::from_str(&text).with_context(|| format!("asking {target}"))?;
        ensure!(answers.ok == 0, "{target} answers a task of another network: {answers:?}");
    }
    Ok(())
}

fn forwarding(swarm: &mut Swarm) -> anyhow::Result<()> {
    create(swarm, "asker", "front", &["--replicas", "3"])?;
    let askers = running(swarm, "asker", 3)?;
    let upstream = Upstream::start(swarm)?;
    for asker in &askers {
        for tcp in [false, true] {
            let answer = dig(asker, "www.example.org", "A", tcp)?;
            ensure_same("a name of the outside", &answer.addresses()?, &set([IpAddr::from(ANSWER)]))?;
        }
    }
    ensure!(upstream.questions() >= 6, "the server outside was asked {} times", upstream.questions());
    // What can only mean something of the cluster never leaves it.
    let before = upstream.questions();
    for name in ["nosuch", "tasks.nosuch", "nosuch.front", "nosuch.1"] {
        let answer = dig(&askers[0], name, "A", false)?;
        ensure_same(&format!("'{name}'"), &answer.status.as_str(), &"NXDOMAIN")?;
    }
    ensure_same("questions that left the cluster", &(upstream.questions() - before), &0)
}
