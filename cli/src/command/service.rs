//! `shoal service`

use serde_json::Value;
use shoal_api::pb;

use super::change::{Results, diff};
use super::cluster::{print_tasks, tasks};
use super::{filtered, find, for_each, logs, lookup};
use crate::args::{
    ChangeFlags, CreateArgs, InspectArgs, ListFlags, PsArgs, RemoveArgs, Runtime, ScaleTarget,
    ServiceCommand, UpdateArgs,
};
use crate::client::{Control, Ctx, request_id};
use crate::failure::{Failure, one_line};
use crate::output::listing::{Row, print_list, print_objects};
use crate::spec;
use crate::view::{
    Lookup, SERVICE_COLUMNS, chosen, service_object, service_row, spec_item, spec_ports_texts,
};
use crate::wait::{Goal, wait};

pub(super) async fn run(ctx: &Ctx, command: ServiceCommand) -> Result<(), Failure> {
    match command {
        ServiceCommand::Create(args) => create(ctx, &args).await,
        ServiceCommand::Ls { list } => ls(ctx, &list).await,
        ServiceCommand::Ps(args) => ps(ctx, &args).await,
        ServiceCommand::Inspect(args) => inspect(ctx, &args).await,
        ServiceCommand::Update(args) => Box::pin(update(ctx, &args)).await,
        ServiceCommand::Scale { change, targets } => scale(ctx, change, &targets).await,
        ServiceCommand::Logs(args) => logs::logs(ctx, args).await,
        ServiceCommand::Rm { detach, remove } => rm(ctx, detach, &remove).await,
    }
}

fn name_of(info: &pb::ServiceInfo) -> String {
    info.spec.as_ref().map(|spec| spec.name.clone()).unwrap_or_default()
}

async fn services(control: &Control) -> Result<Vec<pb::ServiceInfo>, Failure> {
    let list = control.call(pb::Empty {}, |mut api, r| async move { api.list_services(r).await }).await?;
    Ok(list.services)
}

async fn create(ctx: &Ctx, args: &CreateArgs) -> Result<(), Failure> {
    // There is one runtime; the flag says so in scripts that will meet others.
    let Runtime::Process = args.runtime;
    let wanted = spec::created(args)?;
    let request = pb::CreateServiceRequest {
        spec: Some(wanted),
        request_id: request_id(),
        dry_run: args.change.dry_run,
    };
    let control = ctx.control().await?;
    let made = control.call(request, |mut api, r| async move { api.create_service(r).await }).await?;
    let name = name_of(&made);
    let mut results = Results::new(ctx, "Service", args.change.dry_run);
    if args.change.dry_run {
        let outcome = results.would_change(&name, &[format!("+ service '{name}'")]);
        return results.finish(outcome);
    }
    note_chosen_ports(ctx, &made, &[]);
    let waited = wait_unless(ctx, &control, args.change.detach, &made.id, &name, Goal::Running).await;
    warn_of_ports(ctx, &control, &made).await;
    // The change itself was made, whatever the wait says.
    results.changed(&made.id, &name, &made.id)?;
    results.finish(waited)
}

/// What nodes say by now of the service's ports. It was made or changed, so failing to ask is no failure of that.
async fn warn_of_ports(ctx: &Ctx, control: &Control, made: &pb::ServiceInfo) {
    if made.ports.is_empty() {
        return;
    }
    let cluster = control.call(pb::Empty {}, |mut api, r| async move { api.get_cluster(r).await }).await;
    let about = format!("service '{}' publishes ", name_of(made));
    for warning in cluster.iter().flat_map(|cluster| &cluster.warnings).filter(|line| line.contains(&about)) {
        ctx.out.warn(&one_line(warning));
    }
}

fn note_chosen_ports(ctx: &Ctx, made: &pb::ServiceInfo, before: &[pb::PublishedPort]) {
    let asked = made.spec.as_ref().map_or(&[][..], |spec| &spec.ports);
    for note in chosen(asked, &made.ports, before) {
        ctx.out.note(&note);
    }
}

async fn wait_unless(
    ctx: &Ctx,
    control: &Control,
    detach: bool,
    id: &str,
    name: &str,
    goal: Goal,
) -> Result<(), Failure> {
    if detach { Ok(()) } else { wait(ctx, control, id, name, goal).await }
}

async fn ls(ctx: &Ctx, list: &ListFlags) -> Result<(), Failure> {
    let control = ctx.control().await?;
    let (mut services, lookup) = tokio::try_join!(services(&control), lookup(&control, list.no_trunc))?;
    services.sort_by_key(name_of);
    let rows: Vec<Row> = services.iter().map(|s| service_row(s, &lookup)).collect();
    let keys = [("id", "/id"), ("name", "/name"), ("mode", "/mode"), ("label", "/spec/labels")];
    let rows = filtered(list, &keys, rows)?;
    print_list(&ctx.out, "ServiceList", list.format.as_deref(), SERVICE_COLUMNS, &rows)
}

async fn ps(ctx: &Ctx, args: &PsArgs) -> Result<(), Failure> {
    let control = ctx.control().await?;
    let lookup = lookup(&control, args.list.no_trunc).await?;
    let mut found = Vec::new();
    for target in &args.targets {
        let request = pb::ListTasksRequest { service: target.clone(), all: args.all, ..Default::default() };
        found.extend(tasks(&control, request).await?);
    }
    print_tasks(ctx, &args.list, &lookup, found)
}

async fn inspect(ctx: &Ctx, args: &InspectArgs) -> Result<(), Failure> {
    let control = ctx.control().await?;
    let (services, lookup) = tokio::try_join!(services(&control), lookup(&control, true))?;
    let found: Vec<Row> = args
        .targets
        .iter()
        .map(|target| find(&services, target).map(|info| service_object(info, &lookup)))
        .collect::<Result<_, _>>()?;
    print_objects(&ctx.out, "Service", args.format.as_deref(), &found)
}

async fn update(ctx: &Ctx, args: &UpdateArgs) -> Result<(), Failure> {
    let control = ctx.control().await?;
    let (services, lookup) = tokio::try_join!(services(&control), lookup(&control, true))?;
    let info = find(&services, &args.target)?;
    let old = info.spec.clone().unwrap_or_default();
    let (new, warnings) = spec::updated(args, old.clone(), &info.ports, &lookup.networks)?;
    for warning in &warnings {
        ctx.out.warn(warning);
    }
    let request = pb::UpdateServiceRequest {
        target: info.id.clone(),
        spec: Some(new.clone()),
        expect_version: if args.force_version { 0 } else { info.version },
        request_id: request_id(),
        dry_run: args.change.dry_run,
    };
    let made = control.call(request, |mut api, r| async move { api.update_service(r).await }).await?;
    let mut results = Results::new(ctx, "Service", args.change.dry_run);
    if args.change.dry_run {
        let lines = diff(&compared(&old, &lookup), &compared(&new, &lookup));
        let outcome = results.would_change(&old.name, &lines);
        return results.finish(outcome);
    }
    note_chosen_ports(ctx, &made, &info.ports);
    let name = name_of(&made);
    let waited = wait_unless(ctx, &control, args.change.detach, &made.id, &name, Goal::Updated).await;
    warn_of_ports(ctx, &control, &made).await;
    results.changed(&made.id, &name, &name)?;
    results.finish(waited)
}

/// A spec as it is compared: a thousand ports in a row are one line.
fn compared(spec: &pb::ServiceSpec, lookup: &Lookup) -> Value {
    let mut item = spec_item(spec, lookup);
    item["ports"] = spec_ports_texts(&spec.ports);
    item
}

/// A service that was asked to change, to be waited for: id and name.
type Asked = (String, String);

/// Waits for each of several services and prints it. All were asked before the first is waited for, so the time
/// given is for all of them together.
async fn wait_for_all(
    ctx: &Ctx,
    control: &Control,
    detach: bool,
    goal: Goal,
    asked: Vec<Asked>,
    results: &mut Results<'_>,
) -> Result<(), Failure> {
    let ids: Vec<String> = asked.iter().map(|(id, _)| id.clone()).collect();
    for_each(ctx, &ids, async |id| {
        let name = asked.iter().find(|(own, _)| own == id).map_or(id, |(_, name)| name);
        let waited = wait_unless(ctx, control, detach, id, name, goal).await;
        results.changed(id, name, name)?;
        waited
    })
    .await
}

/// The worse of two outcomes; the other one is reported on the way.
fn both(ctx: &Ctx, first: Result<(), Failure>, second: Result<(), Failure>) -> Result<(), Failure> {
    if let (Err(_), Err(failure)) = (&first, &second) {
        ctx.out.error_stream(&failure.render(ctx.out.color));
    }
    first.and(second)
}

async fn scale(ctx: &Ctx, change: ChangeFlags, targets: &[ScaleTarget]) -> Result<(), Failure> {
    let control = ctx.control().await?;
    let names: Vec<String> = targets.iter().map(|target| target.service.clone()).collect();
    let mut next = targets.iter();
    let mut results = Results::new(ctx, "Service", change.dry_run);
    let mut asked = Vec::new();
    let outcome = for_each(ctx, &names, async |service| {
        let replicas = next.next().map_or(0, |target| target.replicas);
        if change.dry_run {
            return preview_scale(&control, service, replicas, &mut results).await;
        }
        let request = scale_request(service, replicas, false);
        let made = control.call(request, |mut api, r| async move { api.scale_service(r).await }).await?;
        asked.push((made.id.clone(), name_of(&made)));
        Ok(())
    })
    .await;
    let waited = wait_for_all(ctx, &control, change.detach, Goal::Scaled, asked, &mut results).await;
    results.finish(both(ctx, outcome, waited))
}

fn scale_request(service: &str, replicas: u32, dry_run: bool) -> pb::ScaleServiceRequest {
    pb::ScaleServiceRequest { target: service.to_owned(), replicas, request_id: request_id(), dry_run }
}

async fn preview_scale(
    control: &Control,
    service: &str,
    replicas: u32,
    results: &mut Results<'_>,
) -> Result<(), Failure> {
    let services = services(control).await?;
    let info = find(&services, service)?;
    let request = scale_request(service, replicas, true);
    control.call(request, |mut api, r| async move { api.scale_service(r).await }).await?;
    let lines = match info.spec.as_ref().and_then(|spec| spec.mode) {
        Some(pb::service_spec::Mode::Replicas(old)) if old != replicas => {
            vec![format!("~ replicas: {old} -> {replicas}")]
        }
        _ => Vec::new(),
    };
    results.would_change(&name_of(info), &lines)
}

async fn rm(ctx: &Ctx, detach: bool, args: &RemoveArgs) -> Result<(), Failure> {
    let control = ctx.control().await?;
    let mut results = Results::new(ctx, "Service", args.dry_run);
    let mut asked = Vec::new();
    let outcome = for_each(ctx, &args.targets, async |target| {
        let request =
            pb::RemoveRequest { target: target.to_owned(), request_id: request_id(), dry_run: args.dry_run };
        let gone = control.call(request, |mut api, r| async move { api.remove_service(r).await }).await?;
        if args.dry_run {
            return results.would_change(&gone.name, &[format!("- service '{}'", gone.name)]);
        }
        asked.push((gone.id, gone.name));
        Ok(())
    })
    .await;
    let waited = wait_for_all(ctx, &control, detach, Goal::Gone, asked, &mut results).await;
    results.finish(both(ctx, outcome, waited))
}
