//! What leaves the cluster, what does not, and what is said when nobody is there to ask.

use std::net::IpAddr;

use anyhow::{Context, ensure};
use shoal_netns::{Swarm, Task, dig, wait_for};

use crate::harness::{PATIENCE, create, ensure_same, running, web};
use crate::names::{addresses, asker, resolves, set};
use crate::upstream::{ANSWER, Upstream};

pub(crate) fn forwarding(swarm: &mut Swarm) -> anyhow::Result<()> {
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
    for name in ["nosuch", "tasks.nosuch", "nosuch.front", "nosuch.1", "_80._tcp.nosuch", "_tcp.nosuch.front"]
    {
        let answer = dig(&askers[0], name, "A", false)?;
        ensure_same(&format!("'{name}'"), &answer.status.as_str(), &"NXDOMAIN")?;
    }
    ensure_same("questions that left the cluster", &(upstream.questions() - before), &0)?;
    let asked = swarm.nodes.iter().map(|node| node.metric("shoal_dns_queries_total"));
    let asked = asked.collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(asked.iter().sum::<f64>() > 11.5, "counted questions: {asked:?}");
    for metric in ["shoal_dns_seconds_count", "shoal_dns_forward_inflight", "shoal_dns_malformed_total"] {
        swarm.manager().metric(metric)?;
    }
    Ok(())
}

/// A task on one node only.
fn placed(swarm: &Swarm, name: &str, network: &str, node: &str) -> anyhow::Result<Task> {
    create(swarm, name, network, &["--constraint", &format!("node.hostname=={node}")])?;
    running(swarm, name, 1)?.pop().context("one task")
}

pub(crate) fn elsewhere(swarm: &mut Swarm) -> anyhow::Result<()> {
    let hidden = placed(swarm, "hidden", "front", "n1")?;
    let stranger = placed(swarm, "stranger", "back", "n2")?;
    let upstream = Upstream::start(swarm)?;
    let vip = swarm.manager().vip("hidden", "front")?;
    let own: Vec<_> = vip.addresses().into_iter().chain(hidden.attachment("front")?.addresses()).collect();
    for name in ["hidden.front", "_80._tcp.hidden.front", "x.y.front", "hidden.FRONT"] {
        let answer = dig(&stranger, name, "A", false)?;
        ensure_same(&format!("'{name}'"), &answer.status.as_str(), &"NXDOMAIN")?;
    }
    for address in own {
        let pointer = dig(&stranger, &address.to_string(), "PTR", false)?;
        ensure_same(&format!("the name of {address}"), &pointer.status.as_str(), &"NXDOMAIN")?;
    }
    ensure_same("questions that left the cluster", &upstream.questions(), &0)?;
    // Once the network is gone, its name is anybody's.
    swarm.manager().shoal(&["--yes", "service", "rm", "hidden"])?;
    swarm.manager().shoal(&["--yes", "network", "rm", "front"])?;
    resolves(&stranger, "hidden.front", "A", &set([IpAddr::from(ANSWER)]))
}

pub(crate) fn internal(swarm: &mut Swarm) -> anyhow::Result<()> {
    swarm.manager().shoal(&["network", "create", "--internal", "inner"])?;
    let confined = asker(swarm, "confined", "inner")?;
    swarm.manager().shoal(&["network", "create", "front"])?;
    create(swarm, "bridging", "inner", &["--network", "front"])?;
    let bridging = running(swarm, "bridging", 1)?.pop().context("one task")?;
    let upstream = Upstream::start(swarm)?;
    for (name, kind) in [("www.example.org", "A"), ("192.0.2.1", "PTR"), ("_sip._tcp.example.org", "SRV")] {
        for tcp in [false, true] {
            let answer = dig(&confined, name, kind, tcp)?;
            ensure_same(&format!("'{name}'"), &answer.status.as_str(), &"REFUSED")?;
        }
    }
    ensure_same("questions that left the cluster", &upstream.questions(), &0)?;
    resolves(&confined, "bridging", "A", &set([swarm.manager().vip("bridging", "inner")?.v4.into()]))?;
    // One that is on another network too has a way out, and asks by it.
    resolves(&bridging, "www.example.org", "A", &set([IpAddr::from(ANSWER)]))
}

pub(crate) fn without_managers(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 3)?;
    create(swarm, "asker", "front", &["--replicas", "3"])?;
    let askers = running(swarm, "asker", 3)?;
    let vip = swarm.manager().vip("web", "front")?;
    let all = addresses(&tasks, "front", true)?;
    // Both workers stay, and then one of them starts anew with nobody to ask.
    swarm.nodes[0].kill_daemons()?;
    let left: Vec<_> = askers.iter().filter(|asker| asker.node != "n1").collect();
    ensure_same("askers on workers", &left.len(), &2)?;
    let known = |asker: &Task| -> anyhow::Result<()> {
        resolves(asker, "web", "A", &set([vip.v4.into()]))?;
        resolves(asker, "web.front", "AAAA", &set([vip.v6.into()]))?;
        resolves(asker, "tasks.web", "A", &all)?;
        ensure_same("who is located", &dig(asker, "_80._tcp.web", "SRV", false)?.data.len(), &3)
    };
    let absent = |asker: &Task, status: &str| {
        wait_for(&format!("'nosuch' to be {status}"), PATIENCE, || {
            let answer = dig(asker, "nosuch", "A", false).map_err(|error| format!("{error:#}"))?;
            if answer.status == status { Ok(()) } else { Err(format!("{answer:?}")) }
        })
    };
    for asker in &left {
        known(asker)?;
        absent(asker, "SERVFAIL")?;
    }
    swarm.nodes[1].stop_daemon()?;
    swarm.nodes[1].start_daemon()?;
    for asker in &left {
        known(asker)?;
        absent(asker, "SERVFAIL")?;
    }
    swarm.nodes[0].start_daemon()?;
    swarm.wait_ready(3)?;
    for asker in &askers {
        known(asker)?;
        absent(asker, "NXDOMAIN")?;
    }
    ensure_same("the tasks after all", &running(swarm, "web", 3)?, &tasks)
}

/// The `resolv.conf` that a task sees.
fn resolv_conf(task: &Task) -> anyhow::Result<String> {
    let path = format!("/proc/{}/root/etc/resolv.conf", task.process()?);
    std::fs::read_to_string(&path).with_context(|| format!("can't read {path}"))
}

pub(crate) fn settings(swarm: &mut Swarm) -> anyhow::Result<()> {
    let (nodes_own, own) = (Upstream::start(swarm)?, Upstream::on_client(swarm)?);
    let server = swarm.client_place.v4.to_string();
    let flags = ["--dns", &server, "--dns-search", "corp.example", "--dns-option", "timeout:1"];
    create(swarm, "web", "front", &flags)?;
    let task = running(swarm, "web", 1)?.pop().context("one task")?;
    let expected = "nameserver 127.0.0.11\nsearch corp.example\noptions ndots:0 timeout:1\n";
    ensure_same("its resolv.conf", &resolv_conf(&task)?.as_str(), &expected)?;
    for tcp in [false, true] {
        let answer = dig(&task, "www.example.org", "A", tcp)?;
        ensure_same("a name of the outside", &answer.addresses()?, &set([IpAddr::from(ANSWER)]))?;
    }
    ensure_same("who was asked", &(own.questions(), nodes_own.questions()), &(2, 0))?;
    ensure_same("a name of the cluster", &dig(&task, "web", "A", false)?.data.len(), &1)?;
    let manager = swarm.manager();
    let bad = ["service", "update", "--dns-option-add", "a b", "web"];
    manager.refused(&bad, 2, &["dns-option", "'a b' is not an option"])?;
    manager.shoal(&["service", "update", "--dns-rm", &server, "--dns-search-add", "lab.example", "web"])?;
    let next = running(swarm, "web", 1)?.pop().context("one task")?;
    ensure!(next.id != task.id, "the task was not replaced");
    ensure!(resolv_conf(&next)?.contains("\nsearch corp.example lab.example\n"), "{}", resolv_conf(&next)?);
    resolves(&next, "www.example.org", "A", &set([IpAddr::from(ANSWER)]))?;
    ensure_same("who was asked", &own.questions(), &2)?;
    ensure!(nodes_own.questions() > 0, "the node's own server was not asked");
    Ok(())
}
