//! `shoal service logs`

use serde_json::json;
use shoal_api::pb;
use std::io::{self, Write};

use crate::args::LogsArgs;
use crate::client::Ctx;
use crate::failure::Failure;
use crate::output::time::rfc3339;

/// Prints lines as they come: what a task wrote to its standard error goes to ours, gaps too.
pub(super) async fn logs(ctx: &Ctx, args: LogsArgs) -> Result<(), Failure> {
    let control = ctx.control().await?;
    let request = pb::LogsRequest { target: args.target.clone(), follow: args.follow, tail: args.tail.0 };
    let mut stream =
        control.call(request, |mut api, request| async move { api.service_logs(request).await }).await?;
    // Following ends by Ctrl-C, and nothing was started.
    ctx.set_goes_on("");
    let mut collected = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(entry)) if !entry.gap.is_empty() => ctx.out.warn(&entry.gap),
            Ok(Some(entry)) if ctx.out.json && args.follow => ctx.out.result(&item(&entry).to_string())?,
            Ok(Some(entry)) if ctx.out.json => collected.push(item(&entry)),
            Ok(Some(entry)) => print(ctx, &args, &entry)?,
            Ok(None) => break,
            Err(status) => return Err(control.stream_failure(&status)),
        }
    }
    if ctx.out.json && !args.follow {
        ctx.out.document("LogEntryList", &collected)?;
    }
    Ok(())
}

fn item(entry: &pb::LogEntry) -> serde_json::Value {
    json!({
        "task": entry.task_name,
        "node": entry.node_name,
        "time": rfc3339(entry.time_ms),
        "stream": if entry.stderr { "stderr" } else { "stdout" },
        "line": String::from_utf8_lossy(&entry.line),
    })
}

fn prefix(args: &LogsArgs, entry: &pb::LogEntry) -> String {
    let time = if args.timestamps { format!("{} ", rfc3339(entry.time_ms)) } else { String::new() };
    if args.raw { time } else { format!("{time}{}.{} | ", entry.task_name, entry.node_name) }
}

fn print(ctx: &Ctx, args: &LogsArgs, entry: &pb::LogEntry) -> Result<(), Failure> {
    let prefix = prefix(args, entry);
    if !entry.stderr {
        return ctx.out.result_bytes(&prefix, &entry.line);
    }
    let mut line = prefix.into_bytes();
    line.extend_from_slice(&entry.line);
    line.push(b'\n');
    Ok(io::stderr().lock().write_all(&line)?)
}
