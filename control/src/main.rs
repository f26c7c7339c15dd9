//! The manager process.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use nix::sys::stat::{Mode, umask};
use shoal_control::config::{Args, LogFormat};
use shoal_control::{limits, run};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = Args::parse();
    // Everything made here is for this user alone, whatever the parent's mask was.
    umask(Mode::from_bits_truncate(0o077));
    if let Err(error) = init_logging(&args) {
        // There is no log yet to say it in; a closed stderr leaves the exit code.
        drop(writeln!(std::io::stderr(), "shoal-control: {error:#}"));
        return ExitCode::from(2);
    }
    if let Err(error) = limits::raise_open_files() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    match serve(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the manager failed");
            ExitCode::FAILURE
        }
    }
}

fn init_logging(args: &Args) -> anyhow::Result<()> {
    // The library reports every election step and every heartbeat that is missed; ours say what follows from it.
    let filter =
        if args.log.contains(['=', ',']) { args.log.clone() } else { format!("{},openraft=warn", args.log) };
    let filter = EnvFilter::try_new(&filter).with_context(|| format!("--log: '{filter}' is no filter"))?;
    let logs =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    match args.log_format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
    Ok(())
}

#[tokio::main]
async fn serve(args: &Args) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let signals = stop.clone();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        // Cancel safe: both only wait.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        signals.cancel();
    });
    let running = run::start(args, stop).await?;
    let mut stdout = std::io::stdout();
    // The parent may not be listening.
    drop(writeln!(stdout, "ready").and_then(|()| stdout.flush()));
    tracing::info!(node = %running.manager.own, listen = %args.listen, "ready");
    let ended = running.wait().await;
    running.shutdown().await;
    Ok(ended?)
}
