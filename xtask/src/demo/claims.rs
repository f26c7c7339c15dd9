//! What the demo claims, and how it is verified from the client's side.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};
use shoal_netns::{Answers, Run, Swarm, Task, ask, ask_from, dig, wait_for};

pub(crate) const WEB_PORT: u16 = 8080;
pub(crate) const WHOAMI_PORT: u16 = 9090;
/// Where the servers listen inside their tasks.
const WEB_TARGET: u16 = 8000;
const WHOAMI_TARGET: u16 = 7000;
const NETWORK: &str = "front";
const PAGE: &str = "<h1>Hello from shoal</h1>\n";
const REPLICAS: u32 = 3;
const QUESTIONS: usize = 60;
/// Where the client's ports for datagrams begin, of which each address gets its own. The kernel may give out one that has just
/// gone through another node to the same task, which would then see another: datagrams have no end by which it is free.
const FIRST_PORT: u16 = 20_000;
const PATIENCE: Duration = Duration::from_secs(45);

/// Something a reader of the README may rely on.
pub(super) struct Claim {
    pub(super) text: &'static str,
    /// Says what was seen, or fails.
    pub(super) verify: fn(&Swarm) -> anyhow::Result<String>,
}

pub(super) const CLAIMS: &[Claim] = &[
    Claim { text: "every node serves the web page on IPv4 and IPv6", verify: every_node_serves },
    Claim { text: "each replica gets its share, through every node, on TCP and UDP", verify: shares },
    Claim { text: "the replica sees the client's own address and port", verify: client_address },
    Claim { text: "no conntrack entry and no firewall rule is on the path", verify: no_conntrack },
    Claim { text: "the name resolves to the virtual IP, tasks.NAME to the tasks", verify: names },
    Claim { text: "the virtual IP answers on TCP and UDP, IPv4 and IPv6", verify: vip },
    Claim { text: "scaling up and down takes effect on every node", verify: scaling },
];

/// The demo's services, running.
pub(super) struct Services {
    tasks: Vec<Task>,
    /// The process of a task that can ask for names.
    pub(super) a_process: i32,
}

impl fmt::Display for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<_> =
            self.tasks.iter().map(|task| format!("{} on {}", task.name, task.node)).collect();
        f.write_str(&places.join(", "))
    }
}

impl Services {
    /// A network, a web server and our own server that says whom it saw.
    pub(super) fn create(swarm: &Swarm) -> anyhow::Result<Self> {
        let manager = swarm.manager();
        let site = swarm.client.scratch().join("site");
        std::fs::create_dir_all(&site)?;
        std::fs::write(site.join("index.html"), PAGE)?;
        manager.shoal(&["network", "create", NETWORK])?;
        let httpd = format!("busybox httpd -f -p [::]:{WEB_TARGET} -h {}", site.display());
        create(swarm, "web", &[format!("{WEB_PORT}:{WEB_TARGET}")], &httpd)?;
        let load = format!("{} serve --whoami {WHOAMI_TARGET}", swarm.programs.load.display());
        let ports = [format!("{WHOAMI_PORT}:{WHOAMI_TARGET}"), format!("{WHOAMI_PORT}:{WHOAMI_TARGET}/udp")];
        create(swarm, "whoami", &ports, &load)?;
        let mut tasks = running(swarm, "web", REPLICAS)?;
        tasks.extend(running(swarm, "whoami", REPLICAS)?);
        let a_process = tasks[0].process()?;
        Ok(Self { tasks, a_process })
    }
}

fn create(swarm: &Swarm, name: &str, ports: &[String], program: &str) -> anyhow::Result<()> {
    let replicas = REPLICAS.to_string();
    let mut arguments =
        vec!["service", "create", "--name", name, "--network", NETWORK, "--replicas", &replicas];
    arguments.extend(["--stop-grace-period", "1s", "--drain", "0s"]);
    for port in ports {
        arguments.extend(["-p", port]);
    }
    arguments.push("--");
    arguments.extend(program.split(' '));
    swarm.manager().shoal(&arguments).map(drop)
}

fn running(swarm: &Swarm, service: &str, count: u32) -> anyhow::Result<Vec<Task>> {
    let count = usize::try_from(count)?;
    wait_for(&format!("{count} running tasks of '{service}'"), PATIENCE, || {
        let tasks = swarm.manager().running_tasks(service).map_err(|error| format!("{error:#}"))?;
        if tasks.len() == count { Ok(tasks) } else { Err(format!("{tasks:?}")) }
    })
}

fn addresses(swarm: &Swarm) -> impl Iterator<Item = IpAddr> {
    swarm.nodes.iter().flat_map(|node| node.place.addresses())
}

fn every_node_serves(swarm: &Swarm) -> anyhow::Result<String> {
    let mut served = Vec::new();
    for address in addresses(swarm) {
        let target = SocketAddr::new(address, WEB_PORT);
        let page = fetch(swarm, target).with_context(|| format!("http://{target}/"))?;
        ensure!(page.ends_with(PAGE), "http://{target}/ served {page:?}");
        served.push(target.to_string());
    }
    Ok(served.join(" "))
}

fn fetch(swarm: &Swarm, target: SocketAddr) -> anyhow::Result<String> {
    swarm.client.enter(|| {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    })
}

/// One line of a whoami server, asked through a node.
pub(super) fn ask_whoami_line(swarm: &Swarm, node: IpAddr) -> anyhow::Result<String> {
    let answer = fetch(swarm, SocketAddr::new(node, WHOAMI_PORT))?;
    Ok(answer.lines().last().unwrap_or_default().to_owned())
}

fn ask_all(swarm: &Swarm) -> anyhow::Result<Vec<(IpAddr, Answers)>> {
    let mut all = Vec::new();
    for (address, first) in addresses(swarm).zip((FIRST_PORT..).step_by(QUESTIONS)) {
        let target = SocketAddr::new(address, WHOAMI_PORT);
        let (client, programs) = (&swarm.client, &swarm.programs);
        let tcp = ask(client, programs, target, false, QUESTIONS)?;
        let udp = ask_from(client, programs, target, first, QUESTIONS)?;
        for (answers, of) in [(tcp, "TCP"), (udp, "UDP")] {
            all.push((address, answers.complete().with_context(|| format!("{target} by {of}"))?));
        }
    }
    Ok(all)
}

fn shares(swarm: &Swarm) -> anyhow::Result<String> {
    let mut least = QUESTIONS;
    for (address, answers) in ask_all(swarm)? {
        ensure!(answers.hosts.len() == 3, "through {address} only {:?} answered", answers.hosts);
        least = least.min(answers.hosts.values().min().copied().unwrap_or_default());
    }
    ensure!(least >= QUESTIONS / 10, "a replica got {least} of {QUESTIONS}");
    Ok(format!("at least {least} of {QUESTIONS} each"))
}

fn client_address(swarm: &Swarm) -> anyhow::Result<String> {
    let client = swarm.client_place;
    for (address, answers) in ask_all(swarm)? {
        let own: IpAddr = if address.is_ipv4() { client.v4.into() } else { client.v6.into() };
        ensure!(answers.peers == [own], "through {address} the replicas saw {:?}, not {own}", answers.peers);
        ensure!(
            answers.port_kept == QUESTIONS,
            "through {address} {} of {QUESTIONS} ports",
            answers.port_kept
        );
    }
    Ok(format!("{} and {}", client.v4, client.v6))
}

fn no_conntrack(swarm: &Swarm) -> anyhow::Result<String> {
    ask_all(swarm)?;
    let client = swarm.client_place;
    for node in &swarm.nodes {
        for family in ["ipv4", "ipv6"] {
            let table = node.host.run_line(&format!("conntrack -L -f {family}")).stdout()?;
            let own = client.addresses().map(|address| format!("={address} "));
            let entry = table.lines().find(|line| own.iter().any(|address| line.contains(address)));
            ensure!(entry.is_none(), "conntrack of {} has the client: {entry:?}", node.name());
        }
        let rules = node.host.run_line("nft list ruleset").stdout()?;
        let port = rules.lines().find(|line| line.contains(&WHOAMI_PORT.to_string()));
        ensure!(port.is_none(), "a rule on {} knows the port: {port:?}", node.name());
    }
    Ok("neither on any node".into())
}

fn names(swarm: &Swarm) -> anyhow::Result<String> {
    let tasks = running(swarm, "whoami", REPLICAS)?;
    let vip = swarm.manager().vip("whoami", NETWORK)?;
    // Asked by a task of the other service.
    let asker = &running(swarm, "web", REPLICAS)?[0];
    for (kind, v4) in [("A", true), ("AAAA", false)] {
        let pick = |addresses: [IpAddr; 2]| addresses[usize::from(!v4)];
        let name = dig(asker, "whoami", kind, false)?.addresses()?;
        ensure!(name == BTreeSet::from([pick(vip.addresses())]), "whoami {kind} is {name:?}, not {vip:?}");
        let mut all = BTreeSet::new();
        for task in &tasks {
            all.insert(pick(task.attachment(NETWORK)?.addresses()));
        }
        let names = dig(asker, "tasks.whoami", kind, false)?.addresses()?;
        ensure!(names == all, "tasks.whoami {kind} is {names:?}, not {all:?}");
    }
    Ok(format!("whoami is {} and {}", vip.v4, vip.v6))
}

fn vip(swarm: &Swarm) -> anyhow::Result<String> {
    let vip = swarm.manager().vip("whoami", NETWORK)?;
    let asker = &running(swarm, "web", REPLICAS)?[0];
    for address in vip.addresses() {
        for udp in [false, true] {
            let target = SocketAddr::new(address, WHOAMI_TARGET).to_string();
            let run = Run::new(&swarm.programs.load).netns(asker.netns()?);
            let run = run.args(["ask", "--target", &target, "--count", &QUESTIONS.to_string()]);
            let text =
                run.args(udp.then_some("--udp")).stdout().with_context(|| format!("{target} udp {udp}"))?;
            let answers: Answers = serde_json::from_str(&text)?;
            ensure!(answers.hosts.len() == 3, "behind {target} only {:?} answered", answers.hosts);
        }
    }
    Ok(format!("asked {QUESTIONS} times each by {}", asker.name))
}

fn scaling(swarm: &Swarm) -> anyhow::Result<String> {
    for count in [5, 2, REPLICAS] {
        swarm.manager().shoal(&["service", "scale", &format!("whoami={count}")])?;
        let tasks = running(swarm, "whoami", count)?;
        for address in addresses(swarm) {
            let target = SocketAddr::new(address, WHOAMI_PORT);
            wait_for(&format!("{target} to be answered by {count}"), PATIENCE, || {
                let answers = ask(&swarm.client, &swarm.programs, target, false, QUESTIONS);
                let answers = answers.map_err(|error| format!("{error:#}"))?;
                if answers.failed == 0 && answers.hosts.len() == tasks.len() {
                    Ok(())
                } else {
                    Err(format!("{answers:?}"))
                }
            })?;
        }
    }
    Ok(format!("{REPLICAS} to 5, 2 and back to {REPLICAS}"))
}
