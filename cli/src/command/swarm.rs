//! `shoal swarm`

use std::time::Duration;

use serde_json::{Value, json};
use shoal_api::pb;
use shoal_types::ErrorCode;

use super::change::{Results, diff};
use super::{filtered, for_each};
use crate::args::{
    InitArgs, JoinArgs, JoinTokenRole, LeaveArgs, ListFlags, RemoveArgs, SwarmCommand, SwarmUpdateArgs,
    TokenCommand, TokenCreateArgs,
};
use crate::client::{Ctx, request_id, require_member, swarm_name};
use crate::failure::Failure;
use crate::output::confirm;
use crate::output::listing::{Row, print_list};
use crate::output::time::{now_ms, rfc3339};
use crate::view::{Lookup, TOKEN_COLUMNS, engine, local_item, node_role, token_row};

/// Pause between looks at a node that is joining.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) async fn run(ctx: &Ctx, command: SwarmCommand) -> Result<(), Failure> {
    match command {
        SwarmCommand::Init(args) => init(ctx, args).await,
        SwarmCommand::Join(args) => join(ctx, args).await,
        SwarmCommand::Leave(args) => leave(ctx, &args).await,
        SwarmCommand::Update(args) => update(ctx, &args).await,
        SwarmCommand::Token(TokenCommand::Create(args)) => token_create(ctx, &args).await,
        SwarmCommand::Token(TokenCommand::Ls { list }) => token_ls(ctx, &list).await,
        SwarmCommand::Token(TokenCommand::Rm(args)) => token_rm(ctx, &args).await,
        SwarmCommand::JoinToken { role } => {
            token_create(ctx, &TokenCreateArgs { role, ttl: 0, uses: None }).await
        }
    }
}

/// The first characters of an id, enough to tell a few nodes apart at a glance.
fn glance(id: &str) -> String {
    id.chars().take(4).collect()
}

async fn init(ctx: &Ctx, args: InitArgs) -> Result<(), Failure> {
    let request = pb::InitRequest {
        name: args.name.unwrap_or_default(),
        advertise: args.advertise_addr.unwrap_or_default(),
        data_path: args.data_path_addr.unwrap_or_default(),
        data_port: args.data_path_port.into(),
        pools: args.default_addr_pool,
        pool_size: args.default_addr_pool_mask_length.into(),
        lb_engine: args.lb_engine.to_string(),
    };
    let mut node = ctx.node().await?;
    ctx.set_goes_on("the swarm may still be made; 'shoal status' shows it");
    let reply = ctx.node_call(node.init(request)).await?;
    let local = reply.node.unwrap_or_default();
    for warning in &local.warnings {
        ctx.out.warn(warning);
    }
    if ctx.out.json {
        let item = json!({
            "node": local_item(&local), "swarm": swarm_name(&local), "swarmId": local.cluster_id,
            "workerToken": reply.worker_token, "joinAddr": reply.join_addr,
            "tokenExpiresAt": rfc3339(reply.token_expires_at_ms),
            "tokenUses": Some(reply.token_uses).filter(|n| *n > 0),
        });
        return ctx.out.document("SwarmInit", &[item]);
    }
    if ctx.out.quiet {
        return ctx.out.result(&local.node_id);
    }
    let valid = validity(reply.token_expires_at_ms, Some(reply.token_uses).filter(|n| *n > 0));
    ctx.out.result(&format!(
        "Swarm '{}' created. This node ({}, {}) is a manager.\n\
         Add a worker (token {valid}):\n    shoal swarm join --token {} {}",
        swarm_name(&local),
        local.node_name,
        glance(&local.node_id),
        reply.worker_token,
        reply.join_addr
    ))
}

/// `valid 24 h, 10 uses`
fn validity(expires_at_ms: u64, uses: Option<u32>) -> String {
    // Half a minute for the way here: a token made for 24 h reads 24 h.
    let left = expires_at_ms.saturating_sub(now_ms()).saturating_add(30_000);
    let minutes = left / 60_000;
    let time = match minutes {
        0..120 => format!("{minutes} min"),
        120..2880 => format!("{} h", minutes / 60),
        _ => format!("{} d", minutes / 1440),
    };
    match uses {
        Some(1) => format!("valid {time}, 1 use"),
        Some(n) => format!("valid {time}, {n} uses"),
        None => format!("valid {time}"),
    }
}

async fn join(ctx: &Ctx, args: JoinArgs) -> Result<(), Failure> {
    let request = pb::LocalJoinRequest {
        token: args.token,
        managers: args.managers,
        advertise: args.advertise_addr.unwrap_or_default(),
        data_path: args.data_path_addr.unwrap_or_default(),
    };
    let mut node = ctx.node().await?;
    ctx.set_goes_on("the node may still join; 'shoal status' shows it");
    let mut local = ctx.node_call(node.join(request)).await?;
    while !(local.membership() == pb::Membership::Active && local.connected) {
        if tokio::time::Instant::now() >= ctx.deadline() {
            return Err(Failure::new(
                ErrorCode::Timeout,
                format!(
                    "the node has no session with a manager after {}; it goes on trying",
                    ctx.timeout_text()
                ),
                "'shoal status' shows when it has one",
            ));
        }
        tokio::time::sleep(LOOK_EVERY).await;
        local = ctx.node_call(node.info(pb::Empty {})).await?;
        require_member(&local)?;
    }
    for warning in &local.warnings {
        ctx.out.warn(warning);
    }
    if ctx.out.json {
        return ctx.out.document("SwarmJoin", &[local_item(&local)]);
    }
    if ctx.out.quiet {
        return ctx.out.result(&local.node_id);
    }
    ctx.out.result(&format!(
        "This node ({}, {}) joined swarm '{}' as a {}.",
        local.node_name,
        glance(&local.node_id),
        swarm_name(&local),
        node_role(local.role())
    ))
}

async fn leave(ctx: &Ctx, args: &LeaveArgs) -> Result<(), Failure> {
    let local = ctx.local().await?;
    require_member(&local)?;
    let mut force = args.force;
    if local.role() == pb::NodeRole::Manager && !force {
        let question = format!(
            "This node is a manager of swarm '{}'; without managers a swarm and all it knows are gone.",
            swarm_name(&local)
        );
        confirm(&ctx.out, ctx.yes, &question).await?;
        force = true;
    }
    ctx.set_goes_on("the node goes on leaving; 'shoal status' shows when it is out");
    let mut node = ctx.node().await?;
    let mut steps = ctx.node_call(node.leave(pb::LeaveRequest { force })).await?;
    let mut done = false;
    while let Some(progress) = ctx.node_stream(steps.message()).await? {
        if !progress.step.is_empty() {
            ctx.out.note(&progress.step);
        }
        if progress.done {
            done = true;
            break;
        }
    }
    if !done {
        return Err(Failure::new(
            ErrorCode::NoLeader,
            "the daemon ended the connection before the node had left",
            "'shoal status' shows where it stands; run the command again",
        ));
    }
    if ctx.out.json {
        return ctx.out.document("SwarmLeave", &[json!({ "id": local.node_id, "name": local.node_name })]);
    }
    if ctx.out.quiet {
        return ctx.out.result(&local.node_id);
    }
    ctx.out.result(&format!("This node ({}) left swarm '{}'.", local.node_name, swarm_name(&local)))
}

async fn update(ctx: &Ctx, args: &SwarmUpdateArgs) -> Result<(), Failure> {
    let control = ctx.control().await?;
    let before = control.call(pb::Empty {}, |mut api, r| async move { api.get_cluster(r).await }).await?;
    let request = pb::UpdateClusterRequest {
        lb_engine: args.lb_engine.to_string(),
        request_id: request_id(),
        dry_run: args.dry_run,
    };
    let after = control.call(request, |mut api, r| async move { api.update_cluster(r).await }).await?;
    let mut results = Results::new(ctx, "Swarm", args.dry_run);
    let outcome = if args.dry_run {
        results.would_change(&after.name, &diff(&settings_item(&before), &settings_item(&after)))
    } else {
        results.changed(&after.id, &after.name, &after.name)
    };
    results.finish(outcome)
}

/// What `swarm update` can change.
fn settings_item(cluster: &pb::ClusterInfo) -> Value {
    json!({ "lbEngine": engine(&cluster.lb_engine) })
}

async fn token_create(ctx: &Ctx, args: &TokenCreateArgs) -> Result<(), Failure> {
    let JoinTokenRole::Worker = args.role;
    let request = pb::CreateTokenRequest {
        role: pb::NodeRole::Worker.into(),
        ttl_ms: args.ttl,
        uses: args.uses.unwrap_or(0),
        request_id: request_id(),
    };
    let control = ctx.control().await?;
    let made = control.call(request, |mut api, r| async move { api.create_token(r).await }).await?;
    let info = made.info.unwrap_or_default();
    if ctx.out.json {
        let row = token_row(&info, &Lookup { now_ms: now_ms(), ..Default::default() });
        let mut item = row.item;
        if let Some(object) = item.as_object_mut() {
            object.insert("token".to_owned(), made.token.into());
            object.insert("managers".to_owned(), made.manager_addrs.into());
        }
        return ctx.out.document("Token", &[item]);
    }
    if ctx.out.quiet {
        return ctx.out.result(&made.token);
    }
    ctx.out.note(&format!(
        "Add a {} (token {}, id {}):",
        node_role(info.role()),
        validity(info.expires_at_ms, info.uses_left),
        info.id
    ));
    ctx.out.result(&format!("shoal swarm join --token {} {}", made.token, made.manager_addrs.join(" ")))
}

async fn token_ls(ctx: &Ctx, list: &ListFlags) -> Result<(), Failure> {
    let control = ctx.control().await?;
    let mut tokens =
        control.call(pb::Empty {}, |mut api, r| async move { api.list_tokens(r).await }).await?.tokens;
    tokens.sort_by_key(|token| token.created_at_ms);
    let lookup = Lookup { now_ms: now_ms(), ..Default::default() };
    let rows: Vec<Row> = tokens.iter().map(|token| token_row(token, &lookup)).collect();
    let rows = filtered(list, &[("id", "/id"), ("role", "/role")], rows)?;
    print_list(&ctx.out, "TokenList", list.format.as_deref(), TOKEN_COLUMNS, &rows)
}

async fn token_rm(ctx: &Ctx, args: &RemoveArgs) -> Result<(), Failure> {
    let control = ctx.control().await?;
    let mut results = Results::new(ctx, "Token", args.dry_run);
    let outcome = for_each(ctx, &args.targets, async |target| {
        let request =
            pb::RemoveRequest { target: target.to_owned(), request_id: request_id(), dry_run: args.dry_run };
        let gone = control.call(request, |mut api, r| async move { api.remove_token(r).await }).await?;
        if args.dry_run {
            return results.would_change(&gone.id, &[format!("- token {}", gone.id)]);
        }
        results.changed(&gone.id, &gone.name, &gone.id)
    })
    .await;
    results.finish(outcome)
}
