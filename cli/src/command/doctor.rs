//! `shoal doctor`

use std::net::SocketAddr;

use serde_json::{Value, json};
use shoal_api::pb;

use crate::client::Ctx;
use crate::failure::{Failure, one_line};

/// Exit code when a check failed.
const EXIT_UNHEALTHY: u8 = 9;

/// What the node finds about itself and its host. Every check is printed; `-q` leaves out those that are ok.
pub(super) async fn doctor(ctx: &Ctx, peers: Vec<SocketAddr>) -> Result<(), Failure> {
    let peers = peers.iter().map(ToString::to_string).collect();
    let mut node = ctx.node().await?;
    let checks = ctx.node_call(node.diagnose(pb::DiagnoseRequest { peers })).await?.checks;
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
