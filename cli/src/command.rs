//! What each command does.

mod change;
mod cluster;
mod doctor;
mod logs;
mod network;
mod node;
mod service;
mod status;
mod swarm;

use shoal_api::pb;
use shoal_api::status::ApiError;
use shoal_types::ErrorCode;

use crate::args::{Cli, Command, ListFlags, Shell};
use crate::client::{Control, Ctx};
use crate::explain;
use crate::failure::Failure;
use crate::output::listing::Row;
use crate::output::time::now_ms;
use crate::view::Lookup;

/// Runs the command.
pub(crate) async fn run(ctx: &Ctx, command: Command) -> Result<(), Failure> {
    match command {
        Command::Swarm(command) => swarm::run(ctx, command).await,
        Command::Node(command) => node::run(ctx, command).await,
        Command::Network(command) => network::run(ctx, command).await,
        Command::Service(command) => service::run(ctx, command).await,
        Command::Status => status::status(ctx).await,
        Command::Doctor { peers } => doctor::doctor(ctx, peers).await,
        Command::Version => status::version(ctx).await,
        Command::Explain { code } => match explain::find(&code)? {
            code if ctx.out.json => ctx.out.document("ErrorCode", &[explain::item(code)]),
            code => ctx.out.result(&explain::text(code)),
        },
        Command::Completion { shell } => completion(ctx, shell),
    }
}

fn completion(ctx: &Ctx, shell: Shell) -> Result<(), Failure> {
    if ctx.out.json {
        return Err(Failure::Usage("a completion script has no JSON form; leave --json out".to_owned()));
    }
    let mut command = <Cli as clap::CommandFactory>::command();
    let mut script = Vec::new();
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    clap_complete::generate(shell, &mut command, "shoal", &mut script);
    ctx.out.result(&String::from_utf8_lossy(&script))
}

/// Networks, for their names.
async fn lookup(control: &Control, no_trunc: bool) -> Result<Lookup, Failure> {
    let list = control.call(pb::Empty {}, |mut api, r| async move { api.list_networks(r).await }).await?;
    Ok(Lookup::new(&list.networks, no_trunc, now_ms()))
}

/// Something that is found by id, unique id prefix or name.
trait Named {
    const KIND: &'static str;
    fn id(&self) -> &str;
    fn name(&self) -> &str;
}

impl Named for pb::ServiceInfo {
    const KIND: &'static str = "service";
    fn id(&self) -> &str {
        &self.id
    }
    fn name(&self) -> &str {
        self.spec.as_ref().map_or("", |spec| &spec.name)
    }
}

impl Named for pb::NetworkInfo {
    const KIND: &'static str = "network";
    fn id(&self) -> &str {
        &self.id
    }
    fn name(&self) -> &str {
        self.spec.as_ref().map_or("", |spec| &spec.name)
    }
}

impl Named for pb::NodeInfo {
    const KIND: &'static str = "node";
    fn id(&self) -> &str {
        &self.id
    }
    fn name(&self) -> &str {
        &self.name
    }
}

/// Finds one object the way the managers do: whole id, then name, then unique prefix of an id.
fn find<'a, T: Named>(objects: &'a [T], target: &str) -> Result<&'a T, Failure> {
    let exact =
        objects.iter().find(|o| o.id() == target).or_else(|| objects.iter().find(|o| o.name() == target));
    if let Some(object) = exact {
        return Ok(object);
    }
    let matches: Vec<&T> =
        objects.iter().filter(|o| !target.is_empty() && o.id().starts_with(target)).collect();
    match matches.as_slice() {
        [one] => Ok(one),
        [] => Err(Failure::new(
            ErrorCode::NotFound,
            format!("no {} has the name, id or id prefix '{target}'", T::KIND),
            format!("'shoal {} ls' lists them", T::KIND),
        )),
        many => {
            let list: Vec<String> = many.iter().map(|o| format!("{} ({})", o.name(), o.id())).collect();
            Err(ApiError::new(ErrorCode::Ambiguous, format!("'{target}' is the start of several ids"))
                .with_context(format!("matches: {}", list.join(", ")))
                .with_help("give more characters, or the name")
                .into())
        }
    }
}

/// Runs a command for each of several targets: all are tried, each failure is reported, the first one's exit code
/// is the command's.
async fn for_each<'t, F>(ctx: &Ctx, targets: &'t [String], mut run: F) -> Result<(), Failure>
where
    F: AsyncFnMut(&'t str) -> Result<(), Failure>,
{
    let mut first = None;
    for target in targets {
        match run(target).await {
            Ok(()) => {}
            Err(failure @ (Failure::Output(_) | Failure::Interrupted(_))) => return Err(failure),
            Err(failure) if targets.len() == 1 => return Err(failure),
            Err(failure) => {
                ctx.out.error_stream(&failure.render(ctx.out.color));
                first.get_or_insert(failure.exit_code());
            }
        }
    }
    first.map_or(Ok(()), |code| Err(Failure::Reported(code)))
}

/// Keeps the rows that match every filter. `id` and `name` match by their start, the rest whole; several values of
/// one key are alternatives.
fn filtered(list: &ListFlags, known: &[(&str, &str)], rows: Vec<Row>) -> Result<Vec<Row>, Failure> {
    for (key, _) in &list.filter {
        if !known.iter().any(|(name, _)| name == key) {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            return Err(Failure::Usage(format!("--filter: no key '{key}'; there are {}", names.join(", "))));
        }
    }
    let matches = |row: &Row, key: &str, value: &str| {
        let field =
            known.iter().find(|(name, _)| *name == key).and_then(|(_, field)| row.item.pointer(field));
        match (key, field) {
            ("label", Some(labels)) => match value.split_once('=') {
                Some((key, value)) => labels.get(key).is_some_and(|v| v == value),
                None => labels.get(value).is_some(),
            },
            ("id" | "name", Some(serde_json::Value::String(text))) => text.starts_with(value),
            (_, Some(serde_json::Value::String(text))) => text.eq_ignore_ascii_case(value),
            (_, Some(serde_json::Value::Bool(is))) => value.parse() == Ok(*is),
            (_, Some(_) | None) => false,
        }
    };
    let keep = |row: &Row| {
        list.filter.iter().all(|(key, _)| {
            list.filter.iter().filter(|(k, _)| k == key).any(|(_, value)| matches(row, key, value))
        })
    };
    Ok(rows.into_iter().filter(keep).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(id: &str, name: &str) -> pb::NodeInfo {
        pb::NodeInfo { id: id.into(), name: name.into(), ..Default::default() }
    }

    #[test]
    fn an_object_is_found_by_id_name_or_unique_prefix() {
        let nodes = [node("abc1", "n1"), node("abd2", "n2"), node("xyz3", "abc")];
        for (target, want) in [("abc1", "n1"), ("n2", "n2"), ("abd", "n2"), ("abc", "abc"), ("x", "abc")] {
            assert_eq!(find(&nodes, target).unwrap().name, want, "{target}");
        }
        let ambiguous = find(&nodes, "ab").unwrap_err();
        assert_eq!(ambiguous.code(), Some(ErrorCode::Ambiguous));
        assert!(ambiguous.render(false).contains("matches: n1 (abc1), n2 (abd2)"));
        for missing in ["n9", ""] {
            assert_eq!(find(&nodes, missing).unwrap_err().exit_code(), 4);
        }
    }

    #[test]
    fn filters_of_one_key_are_alternatives_of_several_keys_conditions() {
        let row = |name: &str, mode: &str| Row {
            id: name.into(),
            fields: json!({}),
            item: json!({ "name": name, "mode": mode, "labels": { "team": "blue" } }),
        };
        let rows = || vec![row("web", "replicated"), row("webapp", "global"), row("db", "replicated")];
        let known = [("name", "/name"), ("mode", "/mode"), ("label", "/labels")];
        let names = |filters: &[(&str, &str)]| {
            let filter = filters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let kept = filtered(&ListFlags { filter, ..Default::default() }, &known, rows());
            kept.map(|rows| rows.into_iter().map(|row| row.id).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap().len(), 3);
        assert_eq!(names(&[("name", "web")]).unwrap(), ["web", "webapp"]);
        assert_eq!(names(&[("name", "web"), ("name", "db"), ("mode", "replicated")]).unwrap(), ["web", "db"]);
        assert_eq!(names(&[("label", "team=blue")]).unwrap().len(), 3);
        assert_eq!(names(&[("label", "team=red")]).unwrap().len(), 0);
        assert_eq!(names(&[("color", "red")]).unwrap_err().exit_code(), 2);
    }
}
