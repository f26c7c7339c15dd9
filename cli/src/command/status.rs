//! `shoal status` and `shoal version`

use serde_json::{Value, json};
use shoal_api::pb;

use super::cluster::nodes;
use crate::client::{Ctx, require_member, swarm_name};
use crate::failure::{Failure, one_line};
use crate::output::time::{age, now_ms, rfc3339, until};
use crate::view::{engine, local_item, node_role};

/// The swarm on a manager, and in any case this node.
pub(super) async fn status(ctx: &Ctx) -> Result<(), Failure> {
    let local = ctx.local().await?;
    require_member(&local)?;
    let manager = local.role() == pb::NodeRole::Manager;
    let swarm = if manager {
        let control = ctx.control().await?;
        let cluster = control.call(pb::Empty {}, |mut api, r| async move { api.get_cluster(r).await });
        Some(tokio::try_join!(cluster, nodes(&control))?)
    } else {
        None
    };
    if ctx.out.json {
        let swarm_item = swarm.as_ref().map(|(cluster, _)| cluster_item(cluster));
        return ctx.out.document("Status", &[json!({ "swarm": swarm_item, "node": local_item(&local) })]);
    }
    if ctx.out.quiet {
        return ctx.out.result(&swarm_name(&local));
    }
    let now = now_ms();
    if let Some((cluster, nodes)) = &swarm {
        ctx.out.result(&swarm_text(cluster, nodes, now))?;
    }
    ctx.out.result(&node_text(&local, swarm.is_none(), now))
}

fn swarm_text(cluster: &pb::ClusterInfo, nodes: &[pb::NodeInfo], now: u64) -> String {
    let leader = match &cluster.leader {
        Some(name) => format!("leader {name} (term {})", cluster.term),
        None => "no leader".to_owned(),
    };
    let workers_total = cluster.nodes_total.saturating_sub(cluster.managers_total);
    let workers_ready = cluster.nodes_ready.saturating_sub(cluster.managers_ready);
    let same = |n: &&pb::NodeInfo| n.description.as_ref().is_some_and(|d| d.version == cluster.version);
    let busy = cluster.services.saturating_sub(cluster.services_converged);
    let services = match busy {
        0 => format!("Services {} ok", cluster.services_converged),
        n => format!("Services {} ok, {n} on the way", cluster.services_converged),
    };
    let engine = match engine(&cluster.lb_engine) {
        "auto" => "auto (ebpf)",
        chosen => chosen,
    };
    let mut text = format!(
        "Swarm {}   {leader}   managers {}/{}   workers {workers_ready}/{workers_total}   version {} on {} of {}   \
         engine {engine}\n\
         {services}   tasks {}/{}   networks {}   programmed on {} of {} nodes   age {}",
        cluster.name,
        cluster.managers_ready,
        cluster.managers_total,
        cluster.version,
        nodes.iter().filter(same).count(),
        cluster.nodes_total,
        cluster.tasks_running,
        cluster.tasks_wanted,
        cluster.networks,
        cluster.nodes_programmed,
        cluster.nodes_total,
        age(cluster.created_at_ms, now),
    );
    for warning in &cluster.warnings {
        text.push_str("\nWarning: ");
        text.push_str(&one_line(warning));
    }
    text
}

fn node_text(local: &pb::LocalNode, with_swarm: bool, now: u64) -> String {
    let role = node_role(local.role());
    let mut first = vec![
        format!("Node {}", local.node_name),
        if with_swarm { format!("{role} of swarm {}", swarm_name(local)) } else { role.to_owned() },
        if local.connected {
            format!("session {}", age(local.session_since_ms, now))
        } else {
            "no session with a manager".to_owned()
        },
    ];
    first.push(format!("tasks {}", local.tasks_running));
    first.push(format!("applied generation {} of {}", local.applied_generation, local.generation));
    if let Some(peers) = &local.peers {
        first.push(format!("peers {}/{}", peers.answering, peers.total));
    }
    first.push(format!("engine {}", if local.lb_engine.is_empty() { "-" } else { &local.lb_engine }));
    first.push(format!("drift repairs {}", local.drift_repairs_total));
    let mut text = first.join("   ");
    if with_swarm && !local.manager_addrs.is_empty() {
        text.push_str("\nManagers ");
        text.push_str(&local.manager_addrs.join(", "));
    }
    let mut rest = Vec::new();
    if local.cert_expires_at_ms > 0 {
        let late = if local.cert_renewal_overdue { ", was not renewed (see 'shoal doctor')" } else { "" };
        rest.push(format!("Cert expires {}{late}", until(local.cert_expires_at_ms, now)));
    }
    let drops: Vec<String> = local
        .drops
        .iter()
        .filter(|drop| drop.packets > 0)
        .map(|drop| format!("{} {}", drop.reason, drop.packets))
        .collect();
    rest.push(format!("drops {}", if drops.is_empty() { "none".to_owned() } else { drops.join(", ") }));
    // As `shoal doctor` has it, which says what to do.
    let full =
        local.maps.iter().filter(|fill| fill.entries.saturating_mul(100) >= fill.limit.saturating_mul(80));
    let full: Vec<String> =
        full.map(|fill| format!("{} {} of {}", fill.map, fill.entries, fill.limit)).collect();
    if !full.is_empty() {
        rest.push(format!("maps filling: {}", full.join(", ")));
    }
    // The swarm's warnings have what this node finds, too.
    let of_swarm = local.shadowed.iter().cloned().chain(of_peers(local)).filter(|_| with_swarm);
    let warnings: Vec<String> = local.warnings.iter().cloned().chain(of_swarm).collect();
    if !warnings.is_empty() {
        let warnings: Vec<String> = warnings.iter().map(|w| one_line(w)).collect();
        rest.push(format!("warnings: {}", warnings.join("; ")));
    }
    format!("{text}\n{}", rest.join("   "))
}

/// What probes of the other nodes found; `shoal doctor` says what to do.
fn of_peers(local: &pb::LocalNode) -> impl Iterator<Item = String> {
    let peers = local.peers.iter();
    peers.flat_map(|peers| {
        let troubles = peers.troubles.iter().map(|trouble| trouble.evidence.clone());
        troubles.chain(peers.clocks.iter().map(|clock| format!("clock of {clock}")))
    })
}

fn cluster_item(cluster: &pb::ClusterInfo) -> Value {
    json!({
        "id": cluster.id,
        "name": cluster.name,
        "createdAt": rfc3339(cluster.created_at_ms),
        "version": cluster.version,
        "dataPort": cluster.data_port,
        "leader": cluster.leader,
        "term": cluster.term,
        "commitIndex": cluster.commit_index,
        "appliedIndex": cluster.applied_index,
        "nodesReady": cluster.nodes_ready,
        "nodesTotal": cluster.nodes_total,
        "nodesProgrammed": cluster.nodes_programmed,
        "managersReady": cluster.managers_ready,
        "managersTotal": cluster.managers_total,
        "services": cluster.services,
        "servicesConverged": cluster.services_converged,
        "tasksRunning": cluster.tasks_running,
        "tasksWanted": cluster.tasks_wanted,
        "networks": cluster.networks,
        "caDigest": cluster.ca_digest,
        "stateHash": cluster.state_hash,
        "lbEngine": engine(&cluster.lb_engine),
        "directRouting": cluster.direct_routing,
        "warnings": cluster.warnings,
    })
}

/// This program's version, and the node's when it answers: no node is no error here.
pub(super) async fn version(ctx: &Ctx) -> Result<(), Failure> {
    let own = env!("CARGO_PKG_VERSION");
    let node = ctx.local().await;
    if ctx.out.json {
        let node = node.as_ref().ok().map(local_item);
        let item = json!({ "client": own, "wire": "shoal.v1", "arch": std::env::consts::ARCH, "node": node });
        return ctx.out.document("Version", &[item]);
    }
    if ctx.out.quiet {
        return ctx.out.result(own);
    }
    ctx.out.result(&format!("shoal   {own}   wire shoal.v1   {}", std::env::consts::ARCH))?;
    if let Ok(local) = node {
        return ctx.out.result(&format!("shoald  {}   {}", local.version, ctx.socket().display()));
    }
    ctx.out.note(&format!("shoald  does not answer at {}", ctx.socket().display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_status() {
        let description =
            |version: &str| Some(pb::NodeDescription { version: version.into(), ..Default::default() });
        let nodes = ["0.1.0", "0.1.0", "0.0.9"]
            .map(|v| pb::NodeInfo { description: description(v), ..Default::default() });
        let cluster = pb::ClusterInfo {
            name: "otter".into(),
            version: "0.1.0".into(),
            leader: Some("n1".into()),
            term: 12,
            nodes_ready: 2,
            nodes_total: 3,
            managers_ready: 1,
            managers_total: 1,
            services: 42,
            services_converged: 41,
            tasks_running: 212,
            tasks_wanted: 214,
            networks: 9,
            nodes_programmed: 3,
            created_at_ms: 1_000,
            ..Default::default()
        };
        let line = |engine: &str| {
            format!(
                "Swarm otter   leader n1 (term 12)   managers 1/1   workers 1/2   version 0.1.0 on 2 of 3   \
                 engine {engine}\n\
                 Services 41 ok, 1 on the way   tasks 212/214   networks 9   programmed on 3 of 3 nodes   age 2h"
            )
        };
        assert_eq!(swarm_text(&cluster, &nodes, 7_201_000), line("auto (ebpf)"));
        let cluster = pb::ClusterInfo {
            lb_engine: "ipvs".into(),
            warnings: vec!["changing over from engine ebpf to ipvs: n3".into()],
            ..cluster
        };
        assert_eq!(
            swarm_text(&cluster, &nodes, 7_201_000),
            line("ipvs") + "\nWarning: changing over from engine ebpf to ipvs: n3"
        );
    }

    #[test]
    fn the_lines_of_a_node() {
        let local = pb::LocalNode {
            node_name: "n2".into(),
            cluster_name: "otter".into(),
            role: pb::NodeRole::Worker.into(),
            connected: true,
            session_since_ms: 1_000,
            tasks_running: 4,
            generation: 9,
            applied_generation: 8,
            lb_engine: "ebpf".into(),
            manager_addrs: vec!["10.0.0.1:7377".into()],
            drops: vec![
                pb::DropCount { reason: "foreign-vtep".into(), packets: 3 },
                pb::DropCount { reason: "spoofed".into(), packets: 0 },
            ],
            warnings: vec!["no bridge".into()],
            shadowed: vec!["service 'web' publishes 22/tcp".into()],
            maps: vec![
                pb::MapFill { map: "FLOWS".into(), entries: 80, limit: 100 },
                pb::MapFill { map: "PORTS".into(), entries: 79, limit: 100 },
            ],
            peers: Some(pb::Peers {
                total: 2,
                answering: 1,
                troubles: vec![pb::PeerTrouble {
                    evidence: "nothing comes from n3 (10.0.0.3) by the tunnel".into(),
                    ..Default::default()
                }],
                clocks: vec!["n4 +310 ms".into()],
            }),
            cert_expires_at_ms: 3_601_000 + 1_000,
            cert_renewal_overdue: true,
            ..Default::default()
        };
        assert_eq!(
            node_text(&local, true, 2_000),
            "Node n2   worker of swarm otter   session 1s   tasks 4   applied generation 8 of 9   peers 1/2   engine ebpf   \
             drift repairs 0\nManagers 10.0.0.1:7377\n\
             Cert expires in 1h, was not renewed (see 'shoal doctor')   drops foreign-vtep 3   maps filling: FLOWS 80 of 100   warnings: no bridge; service 'web' publishes 22/tcp; nothing comes from n3 (10.0.0.3) \
             by the tunnel; clock of n4 +310 ms"
        );
    }
}
