//! `shoal network`

use ipnet::IpNet;
use shoal_api::pb;

use super::change::Results;
use super::{filtered, find, for_each};
use crate::args::{InspectArgs, ListFlags, NetworkCommand, NetworkCreateArgs, RemoveArgs};
use crate::client::{Control, Ctx, request_id};
use crate::failure::Failure;
use crate::output::listing::{Row, print_list, print_objects};
use crate::output::time::now_ms;
use crate::view::{Lookup, NETWORK_COLUMNS, network_object, network_row};

pub(super) async fn run(ctx: &Ctx, command: NetworkCommand) -> Result<(), Failure> {
    match command {
        NetworkCommand::Create(args) => create(ctx, args).await,
        NetworkCommand::Ls { list } => ls(ctx, &list).await,
        NetworkCommand::Inspect(args) => inspect(ctx, &args).await,
        NetworkCommand::Rm(args) => rm(ctx, &args).await,
    }
}

/// Sorts `--subnet` by family; each may be given once.
fn subnets(given: &[String]) -> Result<(Option<String>, Option<String>), Failure> {
    let (mut v4, mut v6) = (None, None);
    for text in given {
        let place = match text.parse::<IpNet>() {
            Ok(IpNet::V4(_)) => &mut v4,
            Ok(IpNet::V6(_)) => &mut v6,
            Err(_) => return Err(Failure::Usage(format!("--subnet: '{text}' is not a subnet"))),
        };
        if place.replace(text.clone()).is_some() {
            return Err(Failure::Usage(
                "--subnet: a network has one IPv4 and one IPv6 subnet at most".to_owned(),
            ));
        }
    }
    Ok((v4, v6))
}

async fn create(ctx: &Ctx, args: NetworkCreateArgs) -> Result<(), Failure> {
    // There is one kind of network; the flag is here for docker's users.
    let crate::args::Driver::Overlay = args.driver;
    let (subnet4, subnet6) = subnets(&args.subnet)?;
    let spec = pb::NetworkSpec {
        name: args.name,
        subnet4,
        subnet6,
        internal: args.internal,
        labels: args.label.into_iter().collect(),
    };
    let request =
        pb::CreateNetworkRequest { spec: Some(spec), request_id: request_id(), dry_run: args.dry_run };
    let control = ctx.control().await?;
    let made = control.call(request, |mut api, r| async move { api.create_network(r).await }).await?;
    let name = made.spec.as_ref().map(|spec| spec.name.clone()).unwrap_or_default();
    let mut results = Results::new(ctx, "Network", args.dry_run);
    let outcome = if args.dry_run {
        let line = format!("+ network '{name}' {} {}", made.subnet4, made.subnet6);
        results.would_change(&name, &[line.trim_end().to_owned()])
    } else {
        results.changed(&made.id, &name, &made.id)
    };
    results.finish(outcome)
}

async fn networks(control: &Control) -> Result<Vec<pb::NetworkInfo>, Failure> {
    let list = control.call(pb::Empty {}, |mut api, r| async move { api.list_networks(r).await }).await?;
    Ok(list.networks)
}

async fn ls(ctx: &Ctx, list: &ListFlags) -> Result<(), Failure> {
    let control = ctx.control().await?;
    let mut networks = networks(&control).await?;
    networks.sort_by_key(|n| n.spec.as_ref().map(|spec| spec.name.clone()));
    let lookup = Lookup::new(&networks, list.no_trunc, now_ms());
    let rows: Vec<Row> = networks.iter().map(|n| network_row(n, &lookup)).collect();
    let keys = [("id", "/id"), ("name", "/name"), ("label", "/labels"), ("internal", "/internal")];
    let rows = filtered(list, &keys, rows)?;
    print_list(&ctx.out, "NetworkList", list.format.as_deref(), NETWORK_COLUMNS, &rows)
}

async fn inspect(ctx: &Ctx, args: &InspectArgs) -> Result<(), Failure> {
    let control = ctx.control().await?;
    let networks = networks(&control).await?;
    let found: Vec<Row> = args
        .targets
        .iter()
        .map(|target| find(&networks, target).map(network_object))
        .collect::<Result<_, _>>()?;
    print_objects(&ctx.out, "Network", args.format.as_deref(), &found)
}

async fn rm(ctx: &Ctx, args: &RemoveArgs) -> Result<(), Failure> {
    let control = ctx.control().await?;
    let mut results = Results::new(ctx, "Network", args.dry_run);
    let outcome = for_each(ctx, &args.targets, async |target| {
        let request =
            pb::RemoveRequest { target: target.to_owned(), request_id: request_id(), dry_run: args.dry_run };
        let gone = control.call(request, |mut api, r| async move { api.remove_network(r).await }).await?;
        if args.dry_run {
            return results.would_change(&gone.name, &[format!("- network '{}'", gone.name)]);
        }
        results.changed(&gone.id, &gone.name, &gone.name)
    })
    .await;
    results.finish(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_subnet_of_each_family() {
        let own = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let both = subnets(&own(&["fd00::/64", "10.0.0.0/24"])).unwrap();
        assert_eq!(both, (Some("10.0.0.0/24".into()), Some("fd00::/64".into())));
        assert_eq!(subnets(&own(&["10.0.0.0/24", "10.1.0.0/24"])).unwrap_err().exit_code(), 2);
    }
}
