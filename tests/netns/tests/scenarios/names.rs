//! Names and virtual IPs, as a task sees them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, ensure};
use shoal_netns::{Run, Swarm, Task, dig, wait_for};

use crate::harness::{
    CONN, ECHO, PATIENCE, Scenario, WHOAMI, create, ensure_same, host_names, running, scenario, web,
};
use crate::{outside, rotation};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("networks_don_t_know_each_other_s_names", isolation),
    scenario("other_names_are_forwarded_from_the_host", outside::forwarding),
];

/// What is only about what a resolver answers, whatever the kernel.
pub(crate) const ANSWERS: &[Scenario] = &[
    scenario("tasks_and_addresses_have_names", task_names),
    scenario("tasks_of_global_services_have_names_too", global),
    scenario("aliases_are_names_in_one_network", aliases),
    scenario("services_are_located_with_their_ports", located),
    scenario("a_rotated_name_is_its_tasks_and_ports_are_published_all_the_same", rotation::tasks),
    scenario("a_service_changes_between_virtual_ip_and_rotation", rotation::switch),
    scenario("names_of_networks_elsewhere_stay_inside", outside::elsewhere),
    scenario("internal_networks_ask_nothing_outside", outside::internal),
    scenario("a_service_may_have_resolver_settings_of_its_own", outside::settings),
    scenario("names_are_answered_without_managers_and_none_is_denied", outside::without_managers),
];

pub(crate) fn set<T: Ord, const N: usize>(items: [T; N]) -> BTreeSet<T> {
    items.into_iter().collect()
}

/// Another service on the network of `web`; its task asks the questions.
pub(crate) fn asker(swarm: &Swarm, name: &str, network: &str) -> anyhow::Result<Task> {
    create(swarm, name, network, &[])?;
    running(swarm, name, 1)?.pop().context("one task")
}

/// Addresses of tasks in a network, of one family.
pub(crate) fn addresses(tasks: &[Task], network: &str, v4: bool) -> anyhow::Result<BTreeSet<IpAddr>> {
    let address = |task: &Task| -> anyhow::Result<IpAddr> {
        let place = task.attachment(network)?;
        Ok(if v4 { place.v4.into() } else { place.v6.into() })
    };
    tasks.iter().map(address).collect()
}

/// Waits until a name has these addresses.
pub(crate) fn resolves(
    asker: &Task,
    name: &str,
    kind: &str,
    expected: &BTreeSet<IpAddr>,
) -> anyhow::Result<()> {
    wait_for(&format!("{name} to be {expected:?}"), PATIENCE, || {
        let found = dig(asker, name, kind, false).and_then(|names| names.addresses());
        let found = found.map_err(|error| format!("{error:#}"))?;
        if found == *expected { Ok(()) } else { Err(format!("{found:?}")) }
    })
}

pub(crate) fn vip(swarm: &mut Swarm) -> anyhow::Result<()> {
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
            resolves(&asker, "tasks.web", kind, &addresses(&tasks, "front", v4)?)?;
            for task in &tasks {
                let all = addresses(std::slice::from_ref(task), "front", v4)?;
                ensure_same(&task.name, &dig(&asker, &task.name, kind, false)?.addresses()?, &all)?;
                let own = all.first().context("one address")?;
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
    for name in ["web", "tasks.web", "web.1", "web.front", "_8080._tcp.web", "_tcp.web.front"] {
        let answer = dig(&stranger, name, "A", false)?;
        ensure_same(&format!("'{name}' from another network"), &answer.status.as_str(), &"NXDOMAIN")?;
    }
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

fn global(swarm: &mut Swarm) -> anyhow::Result<()> {
    create(swarm, "agents", "front", &["--mode", "global"])?;
    let tasks = running(swarm, "agents", 3)?;
    let asker = asker(swarm, "asker", "front")?;
    for task in &tasks {
        for (kind, v4) in [("A", true), ("AAAA", false)] {
            let own = addresses(std::slice::from_ref(task), "front", v4)?;
            for name in [task.name.clone(), format!("{}.front", task.name)] {
                resolves(&asker, &name, kind, &own)?;
            }
            let own = own.first().context("one address")?;
            let pointer = dig(&asker, &own.to_string(), "PTR", false)?;
            ensure_same("its name", &pointer.data, &set([format!("{}.front", task.name)]))?;
        }
    }
    Ok(())
}

/// `service update` that gives a service other aliases in a network.
fn rename(swarm: &Swarm, service: &str, network: &str) -> anyhow::Result<()> {
    swarm.manager().shoal(&["service", "update", "--network-add", network, service]).map(drop)
}

fn aliases(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 2)?;
    let (inside, stranger) = (asker(swarm, "inside", "front")?, asker(swarm, "stranger", "back")?);
    create(swarm, "green", "front", &["--network", "name=back"])?;
    let green = running(swarm, "green", 1)?;
    let [web, other] = ["web", "green"].map(|name| swarm.manager().vip(name, "front"));
    let (web, other) = (web?, other?);
    rename(swarm, "web", "name=front,alias=site,alias=db")?;
    resolves(&inside, "site", "A", &set([web.v4.into()]))?;
    resolves(&inside, "DB.front", "AAAA", &set([web.v6.into()]))?;
    resolves(&inside, "tasks.db", "A", &addresses(&tasks, "front", true)?)?;
    // Shared by two services, on one network only.
    rename(swarm, "green", "name=front,alias=db")?;
    resolves(&inside, "db", "A", &set([web.v4.into(), other.v4.into()]))?;
    ensure_same("an alias elsewhere", &dig(&stranger, "db", "A", false)?.status.as_str(), &"NXDOMAIN")?;
    // A name goes before an alias, and whoever looks is told.
    rename(swarm, "green", "name=front,alias=web")?;
    resolves(&inside, "db", "A", &set([web.v4.into()]))?;
    resolves(&inside, "web", "A", &set([web.v4.into()]))?;
    let status = swarm.manager().shoal(&["status"])?;
    ensure!(status.contains("alias 'web' of service 'green' leads to service 'web'"), "status says {status}");
    rename(swarm, "web", "front")?;
    wait_for("the aliases to be gone", PATIENCE, || {
        let answer = dig(&inside, "site", "A", false).map_err(|error| format!("{error:#}"))?;
        if answer.status == "NXDOMAIN" { Ok(()) } else { Err(format!("{answer:?}")) }
    })?;
    ensure_same("the tasks after all", &running(swarm, "web", 2)?, &tasks)?;
    ensure_same("the other service's", &running(swarm, "green", 1)?, &green)
}

fn located(swarm: &mut Swarm) -> anyhow::Result<()> {
    web(swarm, 2)?;
    let asker = asker(swarm, "asker", "front")?;
    for count in [2, 4, 1] {
        swarm.manager().shoal(&["service", "scale", &format!("web={count}")])?;
        let tasks = running(swarm, "web", count)?;
        let records = |port: u16| tasks.iter().map(move |task| format!("0 1 {port} {}.front", task.name));
        let published: BTreeSet<_> = [WHOAMI, CONN, ECHO].into_iter().flat_map(records).collect();
        let one: BTreeSet<_> = records(9200).collect();
        for (name, expected) in
            [("_tcp.web", &published), ("_9200._tcp.web", &one), ("_9200._UDP.web.front", &one)]
        {
            wait_for(&format!("{name} to be {expected:?}"), PATIENCE, || {
                let found = dig(&asker, name, "SRV", false).map_err(|error| format!("{error:#}"))?;
                if found.data == *expected { Ok(()) } else { Err(format!("{found:?}")) }
            })?;
            ensure_same("by TCP", &dig(&asker, name, "SRV", true)?.data, expected)?;
        }
        for target in dig(&asker, "_tcp.web", "SRV", false)?.data {
            let target = target.rsplit(' ').next().context("a target")?.to_owned();
            ensure!(!dig(&asker, &target, "A", false)?.addresses()?.is_empty(), "{target} has no address");
        }
    }
    for name in ["_9200._tcp.nosuch", "_http._tcp.web"] {
        ensure_same(name, &dig(&asker, name, "SRV", false)?.status.as_str(), &"NXDOMAIN")?;
    }
    Ok(())
}
