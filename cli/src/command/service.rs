//! `shoal service`

use shoal_api::pb;

use super::change::{diff, end_dry_run};
use super::cluster::{print_tasks, tasks};
use super::{filtered, find, for_each, logs, lookup};
use crate::args::{
    ChangeFlags, CreateArgs, InspectArgs, ListFlags, PsArgs, RemoveArgs, Runtime, ScaleTarget,
    ServiceCommand, UpdateArgs,
};
use crate::client::{Control, Ctx, request_id};
use crate::failure::Failure;
use crate::output::listing::{Row, print_list, print_objects};
use crate::spec;
use crate::view::{SERVICE_COLUMNS, service_object, service_row, spec_item};
use crate::wait::{Goal, wait};

pub(super) async fn run(ctx: &Ctx, command: ServiceCommand) -> Result<(), Failure> {
    match command {
        ServiceCommand::Create(args) => create(ctx, &args).await,
        ServiceCommand::Ls { list } => ls(ctx, &list).await,
        ServiceCommand::Ps(args) => ps(ctx, &args).await,
        ServiceCommand::Inspect(args) => inspect(ctx, &args).await,
        ServiceCommand::Update(args) => update(ctx, &args).await,
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
    if args.change.dry_run {
        return end_dry_run(ctx, "ServiceDryRun", &name, &[format!("+ service '{name}'")]);
    }
    for port in made.ports.iter().filter(|p| args.publish.iter().all(|given| given.published != p.published))
    {
        ctx.out.note(&format!("port {} was chosen for target port {}", port.published, port.target));
    }
    finish(ctx, &control, args.change.detach, &made, Goal::Running, &made.id).await
}

/// Waits unless detached, then prints the result.
async fn finish(
    ctx: &Ctx,
    control: &Control,
    detach: bool,
    info: &pb::ServiceInfo,
    goal: Goal,
    shown: &str,
) -> Result<(), Failure> {
    let name = name_of(info);
    let waited = if detach { Ok(()) } else { wait(ctx, control, &info.id, &name, goal).await };
    // The change itself was made, whatever the wait says.
    ctx.out.changed("Service", &info.id, &name, shown)?;
    waited
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
    let (new, warnings) = spec::updated(args, old.clone(), &lookup.networks)?;
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
    if args.change.dry_run {
        let lines = diff(&spec_item(&old, &lookup), &spec_item(&new, &lookup));
        return end_dry_run(ctx, "ServiceDryRun", &old.name, &lines);
    }
    finish(ctx, &control, args.change.detach, &made, Goal::Updated, &name_of(&made)).await
}

async fn scale(ctx: &Ctx, change: ChangeFlags, targets: &[ScaleTarget]) -> Result<(), Failure> {
    let control = ctx.control().await?;
    let names: Vec<String> = targets.iter().map(|target| target.service.clone()).collect();
    let mut next = targets.iter();
    for_each(ctx, &names, async |service| {
        let replicas = next.next().map_or(0, |target| target.replicas);
        scale_one(ctx, &control, change, service, replicas).await
    })
    .await
}

async fn scale_one(
    ctx: &Ctx,
    control: &Control,
    change: ChangeFlags,
    service: &str,
    replicas: u32,
) -> Result<(), Failure> {
    let request = pb::ScaleServiceRequest {
        target: service.to_owned(),
        replicas,
        request_id: request_id(),
        dry_run: change.dry_run,
    };
    if change.dry_run {
        let services = services(control).await?;
        let info = find(&services, service)?;
        control.call(request, |mut api, r| async move { api.scale_service(r).await }).await?;
        let lines = match info.spec.as_ref().and_then(|spec| spec.mode) {
            Some(pb::service_spec::Mode::Replicas(old)) if old != replicas => {
                vec![format!("~ replicas: {old} -> {replicas}")]
            }
            _ => Vec::new(),
        };
        return end_dry_run(ctx, "ServiceDryRun", &name_of(info), &lines);
    }
    let made = control.call(request, |mut api, r| async move { api.scale_service(r).await }).await?;
    finish(ctx, control, change.detach, &made, Goal::Scaled, &name_of(&made)).await
}

async fn rm(ctx: &Ctx, detach: bool, args: &RemoveArgs) -> Result<(), Failure> {
    let control = ctx.control().await?;
    for_each(ctx, &args.targets, async |target| {
        let request =
            pb::RemoveRequest { target: target.to_owned(), request_id: request_id(), dry_run: args.dry_run };
        let gone = control.call(request, |mut api, r| async move { api.remove_service(r).await }).await?;
        if args.dry_run {
            return end_dry_run(ctx, "ServiceDryRun", &gone.name, &[format!("- service '{}'", gone.name)]);
        }
        let waited =
            if detach { Ok(()) } else { wait(ctx, &control, &gone.id, &gone.name, Goal::Gone).await };
        ctx.out.changed("Service", &gone.id, &gone.name, &gone.name)?;
        waited
    })
    .await
}
