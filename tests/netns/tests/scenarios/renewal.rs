//! Certificates of the shortest life there may be: renewed in time, and nothing notices.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use shoal_netns::{Node, Programs, Swarm, Traffic, wait_for};

use crate::harness::{
    PATIENCE, PUBLISHED_ECHO, PUBLISHED_WHOAMI, Scenario, ask_node, ensure_same, formed_with, running,
    scenario, web,
};

pub(crate) const SCENARIOS: &[Scenario] =
    &[scenario("certificates_are_renewed_under_open_sessions", renewed)];

const LIFE: Duration = Duration::from_mins(1);
/// Certificates count whole seconds, and what was seen was seen a little later.
const SLACK: Duration = Duration::from_secs(3);

/// A manager that signs for a minute, and a worker.
pub(crate) fn start(programs: &Programs) -> anyhow::Result<Swarm> {
    formed_with(programs, "[security]\ncert_lifetime = \"60s\"\n", 2)
}

/// A certificate on disk, as it was found first.
struct Watched {
    what: &'static str,
    path: std::path::PathBuf,
    first: Vec<u8>,
    issued: std::time::SystemTime,
}

impl Watched {
    fn new(what: &'static str, node: &Node, path: &str) -> anyhow::Result<Self> {
        let path = node.state_dir().join(path);
        let first = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let issued = path.metadata()?.modified()?;
        Ok(Self { what, path, first, issued })
    }

    fn is_renewed(&self) -> anyhow::Result<bool> {
        Ok(std::fs::read(&self.path)? != self.first)
    }
}

/// When a node's session began.
fn session(node: &Node) -> anyhow::Result<String> {
    let status = node.items(&["status"])?;
    let since = &status.first().context("no status")?["node"]["sessionSince"];
    Ok(since.as_str().context("no session")?.to_owned())
}

fn renewed(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 2)?;
    let nodes = &swarm.nodes[..2];
    let certificates = [
        Watched::new("the manager's", &nodes[0], "control/pki/manager.der")?,
        Watched::new("the manager's node's", &nodes[0], "pki/node.crt")?,
        Watched::new("the worker's", &nodes[1], "pki/node.crt")?,
    ];
    let sessions: Vec<_> = nodes.iter().map(session).collect::<Result<_, _>>()?;
    let echo = SocketAddr::new(nodes[1].place.v4.into(), PUBLISHED_ECHO);
    let traffic = Traffic::streams(&swarm.client, &swarm.programs, echo, 3)?;
    for certificate in &certificates {
        ensure!(!certificate.is_renewed()?, "{} was renewed at once", certificate.what);
    }
    let mut pending: Vec<_> = certificates.iter().collect();
    wait_for("all certificates to be renewed", LIFE, || {
        let mut early = None;
        pending.retain(|certificate| {
            let age = certificate.issued.elapsed().unwrap_or_default();
            let renewed = certificate.is_renewed().unwrap_or(false);
            if renewed && (age + SLACK < LIFE / 2 || age > LIFE * 4 / 5 + SLACK) {
                early = Some(format!("{} was renewed {age:?} after it was issued", certificate.what));
            }
            !renewed
        });
        match early {
            Some(early) => Ok(Err(anyhow::anyhow!(early))),
            None if pending.is_empty() => Ok(Ok(())),
            None => Err(pending.iter().map(|certificate| certificate.what).collect::<Vec<_>>().join(", ")),
        }
    })??;
    wait_for("the first certificates' end", LIFE + SLACK, || {
        let youngest = certificates.iter().filter_map(|certificate| certificate.issued.elapsed().ok()).min();
        if youngest > Some(LIFE + SLACK) { Ok(()) } else { Err(format!("age {youngest:?}")) }
    })?;
    let now: Vec<_> = swarm.nodes[..2].iter().map(session).collect::<Result<_, _>>()?;
    ensure_same("the sessions", &now, &sessions)?;
    traffic.finish()?;
    swarm.manager().shoal(&["service", "scale", "web=4"])?;
    let more = running(swarm, "web", 4)?;
    ensure!(tasks.iter().all(|task| more.contains(task)), "{tasks:?} became {more:?}");
    // What is on disk is what is used: a daemon that starts now gets a session with it.
    let worker = &mut swarm.nodes[1];
    worker.stop_daemon()?;
    worker.start_daemon()?;
    wait_for("a new session", PATIENCE, || session(&swarm.nodes[1]).map_err(|error| format!("{error:#}")))?;
    ask_node(swarm, swarm.nodes[1].place.v4.into(), PUBLISHED_WHOAMI, false, 10)?.complete().map(drop)
}
