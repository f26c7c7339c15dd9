//! `shoal`, the command line.
//!
//! A command is parsed (`args`), turned into a request (`spec`, `parse`), sent to the node daemon or to the manager
//! it names (`client`), waited for (`wait`) and printed (`view`, `output`). Results go to standard output, all else
//! to standard error. Every way to end badly is a [`failure::Failure`]; its text and exit code are decided here.
#![forbid(unsafe_code)]

mod args;
mod client;
mod command;
mod explain;
mod failure;
mod output;
mod parse;
mod spec;
mod view;
mod wait;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;

use crate::args::Cli;
use crate::client::Ctx;
use crate::failure::Failure;
use crate::output::Output;

fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    let out = Output::new(&global);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            out.error_stream(&format!("error: cannot start: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    let ctx = Ctx::new(out, global.host, global.timeout, global.yes);
    let outcome = runtime.block_on(until_interrupted(&ctx, command::run(&ctx, command)));
    // A prompt may still sit in a blocking read; nothing waits for it.
    runtime.shutdown_timeout(Duration::ZERO);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            ctx.out.error_stream(&failure.render(ctx.out.color));
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Ctrl-C ends the command, not what it started.
async fn until_interrupted(
    ctx: &Ctx,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    tokio::select! {
        // Dropped in the middle on Ctrl-C: requests that were sent are carried out or not, which is what is said.
        outcome = work => outcome,
        _ = tokio::signal::ctrl_c() => {
            if ctx.out.live {
                ctx.out.error_stream("\n");
            }
            Err(Failure::Interrupted(ctx.goes_on()))
        }
    }
}
