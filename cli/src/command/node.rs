//! `shoal node`

use shoal_api::pb;
use shoal_types::ErrorCode;

use super::change::{Results, diff};
use super::cluster::{nodes, print_tasks, tasks};
use super::{filtered, find, for_each, lookup};
use crate::args::{InspectArgs, ListFlags, NodeCommand, NodeUpdateArgs, RemoveArgs};
use crate::client::{Ctx, request_id};
use crate::failure::Failure;
use crate::output::listing::{Row, print_list, print_objects};
use crate::view::{NODE_COLUMNS, node_object, node_row};

pub(super) async fn run(ctx: &Ctx, command: NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::Ls { list } => ls(ctx, &list).await,
        NodeCommand::Inspect(args) => inspect(ctx, &args).await,
        NodeCommand::Ps { list, all, targets } => ps(ctx, &list, all, targets).await,
        NodeCommand::Update(args) => update(ctx, &args).await,
        NodeCommand::Rm { force, remove } => rm(ctx, force, &remove).await,
    }
}

async fn ls(ctx: &Ctx, list: &ListFlags) -> Result<(), Failure> {
    let control = ctx.control().await?;
    let (mut nodes, lookup) = tokio::try_join!(nodes(&control), lookup(&control, list.no_trunc))?;
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let rows: Vec<Row> = nodes.iter().map(|n| node_row(n, &control.local.node_id, &lookup)).collect();
    let keys = [
        ("id", "/id"),
        ("name", "/name"),
        ("role", "/role"),
        ("status", "/state"),
        ("availability", "/availability"),
        ("label", "/labels"),
    ];
    let rows = filtered(list, &keys, rows)?;
    print_list(&ctx.out, "NodeList", list.format.as_deref(), NODE_COLUMNS, &rows)
}

async fn inspect(ctx: &Ctx, args: &InspectArgs) -> Result<(), Failure> {
    let control = ctx.control().await?;
    let (nodes, lookup) = tokio::try_join!(nodes(&control), lookup(&control, true))?;
    let own = control.local.node_id.as_str();
    let found: Vec<Row> = args
        .targets
        .iter()
        .map(|target| find(&nodes, if target == "self" { own } else { target }))
        .map(|node| node.map(|node| node_object(node, &lookup)))
        .collect::<Result<_, _>>()?;
    print_objects(&ctx.out, "Node", args.format.as_deref(), &found)
}

async fn ps(ctx: &Ctx, list: &ListFlags, all: bool, targets: Vec<String>) -> Result<(), Failure> {
    let control = ctx.control().await?;
    let lookup = lookup(&control, list.no_trunc).await?;
    let targets = if targets.is_empty() { vec![control.local.node_id.clone()] } else { targets };
    let mut found = Vec::new();
    for target in targets {
        let node = if target == "self" { control.local.node_id.clone() } else { target };
        found.extend(tasks(&control, pb::ListTasksRequest { node, all, ..Default::default() }).await?);
    }
    print_tasks(ctx, list, &lookup, found)
}

async fn update(ctx: &Ctx, args: &NodeUpdateArgs) -> Result<(), Failure> {
    let control = ctx.control().await?;
    let mut results = Results::new(ctx, "Node", args.dry_run);
    let outcome = for_each(ctx, &args.targets, async |target| {
        let (nodes, lookup) = tokio::try_join!(nodes(&control), lookup(&control, true))?;
        let before = find(&nodes, if target == "self" { control.local.node_id.as_str() } else { target })?;
        if args.weight.is_some() && before.weight.is_none() {
            return Err(Failure::new(
                ErrorCode::InvalidField,
                "the manager that was asked is of a version without weights",
                "bring the managers to this version first; 'shoal node ls' shows theirs",
            ));
        }
        let missing = args.label_rm.iter().filter(|key| !before.labels.contains_key(*key));
        missing.for_each(|key| ctx.out.warn(&format!("--label-rm {key}: there is none")));
        let availability = args.availability.map_or(pb::Availability::Unspecified, pb::Availability::from);
        let request = pb::UpdateNodeRequest {
            target: before.id.clone(),
            request_id: request_id(),
            dry_run: args.dry_run,
            availability: availability.into(),
            labels_add: args.label_add.iter().cloned().collect(),
            labels_remove: args.label_rm.clone(),
            weight: args.weight,
        };
        let after = control.call(request, |mut api, r| async move { api.update_node(r).await }).await?;
        after.notes.iter().for_each(|note| ctx.out.warn(note));
        if args.dry_run {
            let item = |node: &pb::NodeInfo| {
                let item = node_object(node, &lookup).item;
                let fields = ["availability", "weight", "labels"];
                fields.map(|field| (field, item[field].clone())).into_iter().collect::<serde_json::Value>()
            };
            return results.would_change(&after.name, &diff(&item(before), &item(&after)));
        }
        results.changed(&after.id, &after.name, &after.name)
    })
    .await;
    results.finish(outcome)
}

async fn rm(ctx: &Ctx, force: bool, args: &RemoveArgs) -> Result<(), Failure> {
    let control = ctx.control().await?;
    let mut results = Results::new(ctx, "Node", args.dry_run);
    let outcome = for_each(ctx, &args.targets, async |target| {
        let request = pb::RemoveNodeRequest {
            target: target.to_owned(),
            request_id: request_id(),
            dry_run: args.dry_run,
            force,
        };
        let gone = control.call(request, |mut api, r| async move { api.remove_node(r).await }).await?;
        if args.dry_run {
            return results.would_change(&gone.name, &[format!("- node '{}'", gone.name)]);
        }
        results.changed(&gone.id, &gone.name, &gone.name)
    })
    .await;
    results.finish(outcome)
}
