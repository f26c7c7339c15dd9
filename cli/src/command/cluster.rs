//! Lists shared by several nouns.

use shoal_api::pb;

use crate::args::ListFlags;
use crate::client::{Control, Ctx};
use crate::command::filtered;
use crate::failure::Failure;
use crate::output::listing::{Row, print_list};
use crate::view::{Lookup, TASK_COLUMNS, task_order, task_row};

/// Tasks of a service or on a node.
pub(super) async fn tasks(
    control: &Control,
    request: pb::ListTasksRequest,
) -> Result<Vec<pb::TaskInfo>, Failure> {
    let list = control.call(request, |mut api, r| async move { api.list_tasks(r).await }).await?;
    Ok(list.tasks)
}

/// Prints tasks in their order.
pub(super) fn print_tasks(
    ctx: &Ctx,
    list: &ListFlags,
    lookup: &Lookup,
    mut tasks: Vec<pb::TaskInfo>,
) -> Result<(), Failure> {
    tasks.sort_by_key(task_order);
    let rows: Vec<Row> = tasks.iter().map(|task| task_row(task, lookup)).collect();
    let keys = [
        ("id", "/id"),
        ("name", "/name"),
        ("node", "/node"),
        ("service", "/service"),
        ("desired-state", "/desiredState"),
        ("state", "/state"),
    ];
    let rows = filtered(list, &keys, rows)?;
    print_list(&ctx.out, "TaskList", list.format.as_deref(), TASK_COLUMNS, &rows)
}

/// All nodes.
pub(super) async fn nodes(control: &Control) -> Result<Vec<pb::NodeInfo>, Failure> {
    let list = control.call(pb::Empty {}, |mut api, r| async move { api.list_nodes(r).await }).await?;
    Ok(list.nodes)
}
