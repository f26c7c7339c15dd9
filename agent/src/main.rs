//! shoald: reads its settings, recovers what it was, serves its socket, and ends on a signal leaving everything in
//! place.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program speaks to whoever started it")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use shoal_agent::config::{Config, LogFormat, Settings};
use shoal_agent::drivers::runtime::process;
use shoal_agent::metrics::Exporter;
use shoal_agent::node::{Node, VERSION};
use shoal_agent::notify::Notify;
use shoal_agent::stats::Stats;
use shoal_agent::{api, cleanup, durable, limits, memory, mounts, supervisor};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The file that is read when none is named.
const CONFIG_FILE: &str = "/etc/shoal/shoal.toml";
/// Ending may take so long; what isn't done then is found at the next start.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// The node daemon of shoal.
#[derive(Debug, Parser)]
#[command(name = "shoald", version)]
struct Args {
    /// Settings; drop-ins are read from conf.d beside it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What must survive a restart.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// Sockets and namespaces.
    #[arg(long, value_name = "DIR")]
    run_dir: Option<String>,
    /// Pins of the data plane, on a bpffs.
    #[arg(long, value_name = "DIR")]
    bpf_dir: Option<String>,
    /// Level in the control group hierarchies.
    #[arg(long, value_name = "NAME")]
    cgroup: Option<String>,
    /// The node's name; the host's if absent.
    #[arg(long, value_name = "HOSTNAME")]
    name: Option<String>,
    /// Log filter: error, warn, info, debug, trace, or target=level.
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Log format: text or json.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Settings.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Removes every kernel object this node owns, with or without state on disk.
    Cleanup {
        /// Only list what is left; exit 0 if nothing is.
        #[arg(long)]
        check: bool,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Checks them.
    Check,
    /// Prints them.
    Show {
        /// With where each comes from.
        #[arg(long)]
        origin: bool,
    },
}

fn main() -> ExitCode {
    // Before there is any thread: these replace the process.
    if let Some(code) = process::run_subcommand(std::env::args_os()) {
        return code;
    }
    memory::share();
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == supervisor::SUBCOMMAND) {
        return match supervisor::exec_control(arguments) {
            Ok(never) => match never {},
            Err(error) => {
                eprintln!("shoald: cannot become shoal-control: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let args = Args::parse();
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("shoald: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn settings(args: &Args) -> anyhow::Result<Settings> {
    let mut settings = Settings::default();
    match &args.config {
        Some(path) => settings.read_file(path)?,
        None => settings.read_file_if_any(CONFIG_FILE.as_ref())?,
    }
    settings.take_env(|name| std::env::var(name).ok());
    settings.take_flag("state_dir", args.state_dir.clone());
    settings.take_flag("run_dir", args.run_dir.clone());
    settings.take_flag("bpf_dir", args.bpf_dir.clone());
    settings.take_flag("cgroup", args.cgroup.clone());
    settings.take_flag("node.name", args.name.clone());
    settings.take_flag("observe.log", args.log.clone());
    settings.take_flag("observe.log_format", args.log_format.clone());
    Ok(settings)
}

fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let settings = settings(args)?;
    let mut config = Config::from_settings(&settings)?;
    match &args.command {
        Some(Command::Config { command: ConfigCommand::Check }) => {
            println!("ok");
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Config { command: ConfigCommand::Show { origin } }) => {
            show(&settings, *origin);
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Cleanup { check }) => {
            log(&config)?;
            mounts::return_to_host().context("cannot go back to the host's mounts")?;
            runtime()?.block_on(clean(&config, *check))
        }
        None => {
            log(&config)?;
            config.resolv_conf = mounts::return_to_host().context("cannot go back to the host's mounts")?;
            match limits::raise_open_files() {
                Ok(before) => config.task_files = Some(before),
                Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
            }
            runtime()?.block_on(daemon(config))
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

fn show(settings: &Settings, origin: bool) {
    for (info, value) in settings.iter() {
        if origin {
            println!("{} = {:?}  # {}", info.key, value.text, value.origin);
        } else {
            println!("{} = {:?}", info.key, value.text);
        }
    }
}

fn log(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log).context("observe.log is no log filter")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

async fn clean(config: &Config, check: bool) -> anyhow::Result<ExitCode> {
    if !check {
        cleanup::clean(config).await?;
    }
    let left = cleanup::leftovers(config).await?;
    for object in &left {
        println!("{object}");
    }
    Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A daemon of which a part is dead looks alive and does nothing: better to end whole. The next start adopts all that
/// is there.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

async fn daemon(config: Config) -> anyhow::Result<ExitCode> {
    abort_on_panic();
    let config = Arc::new(config);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    durable::ensure_dir(&config.state_dir, 0o711)?;
    durable::ensure_dir(&config.run_dir, 0o755)?;
    let _claimed = (durable::claim_dir(&config.state_dir)?, durable::claim_dir(&config.run_dir)?);
    let notify = Notify::new(std::env::var("NOTIFY_SOCKET").ok(), &config.run_dir);
    tracing::info!(version = VERSION, name = %config.name, "shoald");
    let (stats, closing) = (Arc::new(Stats::default()), CancellationToken::new());
    let node = Node::open(Arc::clone(&config), Arc::clone(&stats))?;
    let serving = tokio::spawn(api::serve(
        api::listen(&config.api_socket()).context("cannot open the local socket")?,
        Arc::clone(&node),
        closing.clone(),
    ));
    if let Some(address) = config.metrics {
        let exporter = Exporter::new(Arc::clone(&node), Arc::clone(&stats));
        let closing = closing.clone();
        tokio::spawn(async move {
            if let Err(error) = exporter.serve(address, closing).await {
                tracing::error!(%error, %address, "metrics are not served");
            }
        });
    }
    notify.status("recovering");
    // A signal ends the wait for recovery as well; what was begun is found at the next start.
    let ended = tokio::select! {
        recovered = node.recover() => { recovered.context("cannot take up the membership")?; false }
        _ = terminate.recv() => true,
        _ = interrupt.recv() => true,
    };
    if !ended {
        notify.ready("ready");
        tracing::info!("ready");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    tracing::info!("ending; tasks and data path stay");
    notify.stopping();
    closing.cancel();
    if tokio::time::timeout(SHUTDOWN, node.shut_down()).await.is_err() {
        tracing::warn!("something does not end; leaving it");
    }
    drop(tokio::time::timeout(Duration::from_secs(1), serving).await);
    durable::remove(&config.api_socket())?;
    Ok(ExitCode::SUCCESS)
}
