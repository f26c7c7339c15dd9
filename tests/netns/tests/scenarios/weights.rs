//! Weights of nodes: what share of new connections their tasks get.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, ensure};
use shoal_netns::{Answers, Run, Swarm, Task, Traffic, ask_by, wait_for};

use crate::harness::{
    ECHO, PATIENCE, PUBLISHED_ECHO, PUBLISHED_WHOAMI, WHOAMI, ask_node, create, create_web, ensure_same,
    host_names, running,
};

/// Questions that shares are counted over.
const COUNT: usize = 200;
/// By how many answers a share may be off: five and a half deviations of one that is drawn.
const DRAWN: usize = 34;
/// The same where endpoints take turns: each of the programs' CPUs has a turn of its own.
const TURNS: usize = 16;
/// A published port that each node answers on by its own task.
const OWN: u16 = 8190;

/// As shares are counted; whatever comes of it, the nodes weigh what they did before.
pub(crate) fn shares(swarm: &mut Swarm) -> anyhow::Result<()> {
    let result = weigh_and_count(swarm);
    let back = weigh(swarm, [1, 1, 1]);
    result.and(back)
}

fn weigh(swarm: &Swarm, weights: [u32; 3]) -> anyhow::Result<()> {
    swarm.nodes.iter().zip(weights).try_for_each(|(node, weight)| {
        let weight = weight.to_string();
        swarm.manager().shoal(&["node", "update", "--weight", &weight, node.name()]).map(drop)
    })
}

/// The ways to a service: an address and port that the client asks, or that a task does, which is the asker.
struct Ways {
    ports: Vec<IpAddr>,
    vips: [IpAddr; 2],
    asker: Task,
}

impl Ways {
    /// Who answers by each, and by these protocols: of datagrams or not.
    fn ask(
        &self,
        swarm: &Swarm,
        protocols: &[bool],
        count: usize,
        mut see: impl FnMut(String, Answers) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for &udp in protocols {
            for address in &self.ports {
                let answers = ask_node(swarm, *address, PUBLISHED_WHOAMI, udp, count)?;
                see(format!("published at {address} (udp: {udp})"), answers)?;
            }
            for address in self.vips {
                let run = Run::in_group(&self.asker.control_group()?, &swarm.programs.load);
                let target = SocketAddr::new(address, WHOAMI);
                let answers = ask_by(run.netns(self.asker.netns()?), target, udp, count)?;
                see(format!("virtual IP {address} (udp: {udp})"), answers)?;
            }
        }
        Ok(())
    }

    /// Waits until exactly these hosts answer by every way. Datagrams are not asked for it: those from a port that was used
    /// before go where they went then.
    fn wait(&self, swarm: &Swarm, hosts: &[&str]) -> anyhow::Result<()> {
        wait_for(&format!("{hosts:?} to answer"), PATIENCE, || {
            let is_so = |way: String, answers: Answers| {
                let found: Vec<&str> = answers.hosts.keys().map(String::as_str).collect();
                ensure!(answers.failed == 0 && found == hosts, "{way}: {found:?}, {} failed", answers.failed);
                Ok(())
            };
            self.ask(swarm, &[false], 30, is_so).map_err(|error| format!("{error:#}"))
        })
    }

    /// Fails unless each host has so many of all answers, give or take some.
    fn count(&self, swarm: &Swarm, expected: &BTreeMap<&str, usize>, off: usize) -> anyhow::Result<()> {
        self.ask(swarm, &[false, true], COUNT, |way, answers| {
            let found = answers.complete().with_context(|| way.clone())?.hosts;
            let is_near = |(host, want): (&&str, &usize)| {
                found.get(*host).copied().unwrap_or_default().abs_diff(*want) <= off
            };
            ensure!(
                found.len() == expected.len() && expected.iter().all(is_near),
                "{way}: {found:?}, expected {expected:?} give or take {off}"
            );
            Ok(())
        })
    }
}

/// Names of the hosts of the tasks of `web`, by node.
fn hosts(swarm: &Swarm, tasks: &[Task]) -> anyhow::Result<[String; 3]> {
    let on = |node: &shoal_netns::Node| {
        let task = tasks.iter().find(|task| task.node == node.name());
        task.and_then(|task| host_names(std::slice::from_ref(task)).pop_first())
    };
    let found: Option<Vec<String>> = swarm.nodes.iter().map(on).collect();
    found.and_then(|hosts| hosts.try_into().ok()).context("a task of web on each of three nodes")
}

fn weigh_and_count(swarm: &Swarm) -> anyhow::Result<()> {
    let own = format!("published={OWN},target={WHOAMI},mode=host");
    create_web(swarm, 3, &["-p", &own])?;
    let hosts = hosts(swarm, &running(swarm, "web", 3)?)?;
    let [first, second, third] = hosts.each_ref().map(String::as_str);
    create(swarm, "asker", "front", &[])?;
    let asker = running(swarm, "asker", 1)?.pop().context("one task")?;
    let vip = swarm.manager().vip("web", "front")?;
    // Of each node one family: what they share has tests of its own.
    let ports =
        swarm.nodes.iter().zip([0, 1, 0]).map(|(node, family)| node.place.addresses()[family]).collect();
    let ways = Ways { ports, vips: vip.addresses(), asker };

    // Streams that are all to the task whose node gets nothing after that.
    weigh(swarm, [0, 0, 1])?;
    ways.wait(swarm, &[third])?;
    let streams = open(swarm, &ways)?;
    weigh(swarm, [3, 1, 0])?;
    let mut expected = [first, second];
    expected.sort_unstable();
    ways.wait(swarm, &expected)?;
    let shares: BTreeMap<&str, usize> = [(first, COUNT * 3 / 4), (second, COUNT / 4)].into();
    ways.count(swarm, &shares, DRAWN)?;
    swarm.manager().shoal(&["service", "update", "--lb", "rr", "web"])?;
    wait_for("turns by weight", PATIENCE, || {
        ways.count(swarm, &shares, TURNS).map_err(|error| format!("{error:#}"))
    })?;
    // A port of its own is the node's, whatever it weighs.
    for (node, host) in swarm.nodes.iter().zip(&hosts) {
        let answers = ask_node(swarm, node.place.v4.into(), OWN, false, 10)?.complete()?;
        ensure_same(
            "who answers at a node's own port",
            &answers.hosts.into_keys().collect(),
            &vec![host.clone()],
        )?;
    }
    weigh(swarm, [3, 1, 4])?;
    let shares: BTreeMap<&str, usize> =
        [(first, COUNT * 3 / 8), (second, COUNT / 8), (third, COUNT / 2)].into();
    wait_for("the third node to have its share again", PATIENCE, || {
        ways.count(swarm, &shares, TURNS).map_err(|error| format!("{error:#}"))
    })?;
    for stream in streams {
        let report = stream.finish()?;
        ensure!(report["lines"].as_u64() > Some(5), "hardly a line was sent: {report}");
    }
    nobody(swarm, &ways)
}

/// Streams by every way.
fn open(swarm: &Swarm, ways: &Ways) -> anyhow::Result<Vec<Traffic>> {
    let by_port = ways.ports.iter().map(|address| {
        Traffic::streams(&swarm.client, &swarm.programs, SocketAddr::new(*address, PUBLISHED_ECHO), 2)
    });
    let netns = ways.asker.netns()?;
    let by_vip = ways
        .vips
        .iter()
        .map(|address| Traffic::streams_in(&netns, &swarm.programs, SocketAddr::new(*address, ECHO), 2));
    by_port.chain(by_vip).collect()
}

/// A service whose tasks are all on nodes of weight 0 refuses, and whoever brings that about is told.
fn nobody(swarm: &Swarm, ways: &Ways) -> anyhow::Result<()> {
    weigh(swarm, [0, 0, 4])?;
    let last = swarm.nodes[2].name();
    let output = swarm.manager().shoal_output(&["node", "update", "--weight", "0", last])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.contains("service 'web' takes no new connection"), "{said}");
    wait_for("every way to refuse", PATIENCE, || {
        let is_so = |way: String, answers: Answers| {
            ensure!(answers.ok == 0, "{way}: {:?}", answers.hosts);
            Ok(())
        };
        ways.ask(swarm, &[false, true], 1, is_so).map_err(|error| format!("{error:#}"))
    })?;
    let nodes = swarm.manager().items(&["node", "ls"])?;
    ensure!(nodes.iter().all(|node| node["weight"] == 0), "{nodes:?}");
    weigh(swarm, [1, 1, 1])?;
    let names = host_names(&running(swarm, "web", 3)?);
    ways.wait(swarm, &names.iter().map(String::as_str).collect::<Vec<_>>())
}
