//! `shoal doctor`

use std::net::SocketAddr;

use serde_json::{Value, json};
use shoal_api::pb;

use super::cluster::nodes;
use crate::client::Ctx;
use crate::failure::{Failure, one_line};

/// Exit code when a check failed.
const EXIT_UNHEALTHY: u8 = 9;

/// What the node finds about itself and its host. Every check is printed; `-q` leaves out those that are ok.
pub(super) async fn doctor(ctx: &Ctx, peers: Vec<SocketAddr>) -> Result<(), Failure> {
    let peers = peers.iter().map(ToString::to_string).collect();
    let mut node = ctx.node().await?;
    let mut checks = ctx.node_call(node.diagnose(pb::DiagnoseRequest { peers })).await?.checks;
    checks.extend(versions(ctx).await);
    if ctx.out.json {
        let items: Vec<Value> = checks.iter().map(item).collect();
        ctx.out.document("Check", &items)?;
    } else {
        for check in checks.iter().filter(|check| !ctx.out.quiet || check.verdict() != pb::Verdict::Ok) {
            ctx.out.result(&text(check))?;
        }
        if !ctx.out.quiet {
            ctx.out.result(&summary(&checks))?;
        }
    }
    // What an older program does not know is no reason to call a node healthy.
    let known = |check: &pb::Check| matches!(check.verdict(), pb::Verdict::Ok | pb::Verdict::Warn);
    if checks.iter().all(known) { Ok(()) } else { Err(Failure::Reported(EXIT_UNHEALTHY)) }
}

/// Whether all nodes run what this one runs. Only a manager knows them; what keeps it from saying so has checks of its own.
async fn versions(ctx: &Ctx) -> Option<pb::Check> {
    let local = ctx.local().await.ok()?;
    if local.role() != pb::NodeRole::Manager {
        return None;
    }
    let control = ctx.control().await.ok()?;
    compared(&local.version, &nodes(&control).await.ok()?)
}

/// So many nodes of another version are named.
const NAMED: usize = 8;

/// None if no node has told.
fn compared(own: &str, nodes: &[pb::NodeInfo]) -> Option<pb::Check> {
    let is_there = |node: &&pb::NodeInfo| node.state() != pb::NodeState::Down;
    let told =
        nodes.iter().filter(is_there).filter_map(|node| Some((&node.name, node.description.as_ref()?)));
    let told: Vec<(&String, &str)> = told
        .map(|(name, node)| (name, node.version.as_str()))
        .filter(|(_, version)| !version.is_empty())
        .collect();
    if told.is_empty() {
        return None;
    }
    let others: Vec<String> = told
        .iter()
        .filter(|(_, version)| *version != own)
        .map(|(name, version)| format!("{name} has {version}"))
        .collect();
    let (verdict, evidence, fix) = if others.is_empty() {
        let nodes = if told.len() == 1 { "1 node".to_owned() } else { format!("{} nodes", told.len()) };
        (pb::Verdict::Ok, format!("{own} on {nodes}"), "")
    } else {
        let more = match others.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let list = others.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        (
            pb::Verdict::Warn,
            format!("this node has {own}, {list}{more}"),
            "bring all nodes to one version; until then what only the newer knows is answered by no node of the older",
        )
    };
    Some(pb::Check { name: "versions".into(), verdict: verdict.into(), evidence, fix: fix.into() })
}

fn word(check: &pb::Check) -> &'static str {
    match check.verdict() {
        pb::Verdict::Ok => "ok",
        pb::Verdict::Warn => "warn",
        pb::Verdict::Fail => "fail",
        pb::Verdict::Unspecified => "unknown",
    }
}

fn text(check: &pb::Check) -> String {
    let mut text = format!("{:<5} {:<13} {}", word(check), check.name, one_line(&check.evidence));
    if !check.fix.is_empty() {
        text.push_str("\n      help: ");
        text.push_str(&one_line(&check.fix));
    }
    text
}

fn summary(checks: &[pb::Check]) -> String {
    let count = |verdict| checks.iter().filter(|check| check.verdict() == verdict).count();
    format!(
        "{} ok, {} warned of, {} failed",
        count(pb::Verdict::Ok),
        count(pb::Verdict::Warn),
        count(pb::Verdict::Fail)
    )
}

fn item(check: &pb::Check) -> Value {
    json!({ "name": check.name, "verdict": word(check), "evidence": check.evidence, "fix": check.fix })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, version: &str, state: pb::NodeState) -> pb::NodeInfo {
        let description = Some(pb::NodeDescription { version: version.into(), ..Default::default() });
        pb::NodeInfo { name: name.into(), description, state: state.into(), ..Default::default() }
    }

    #[test]
    fn nodes_of_another_version_are_named() {
        use pb::NodeState::{Down, Ready};
        let alike = [node("n1", "0.2.0", Ready), node("n2", "0.2.0", Ready), node("n3", "", Ready)];
        let check = compared("0.2.0", &alike).expect("a check");
        assert_eq!((check.verdict(), check.evidence.as_str()), (pb::Verdict::Ok, "0.2.0 on 2 nodes"));
        let mixed = [
            node("n1", "0.2.0", Ready),
            node("n2", "0.1.9", Ready),
            node("n3", "0.3.0", Ready),
            node("gone", "0.0.1", Down),
        ];
        let check = compared("0.2.0", &mixed).expect("a check");
        assert_eq!(check.verdict(), pb::Verdict::Warn);
        assert_eq!(check.evidence, "this node has 0.2.0, n2 has 0.1.9, n3 has 0.3.0");
        let many: Vec<pb::NodeInfo> = (0..20).map(|n| node(&format!("w{n}"), "0.1.0", Ready)).collect();
        let check = compared("0.2.0", &many).expect("a check");
        assert!(compared("0.2.0", &[]).is_none());
        assert!(check.evidence.ends_with("w7 has 0.1.0 and 12 more"), "{}", check.evidence);
    }
}
