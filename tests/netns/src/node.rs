//! A node: a host with a `shoald` of its own, and the command line that drives it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::capabilities::ENGINE_SETTING;
use crate::command::{Process, Run, kill_hard};
use crate::host::{Host, prefix};
use crate::lan::Place;
use crate::scrub;
use crate::wait::wait_for;

/// Long enough for a debug build on a busy machine.
const START: Duration = Duration::from_secs(30);
const METRICS_PORT: u16 = 7379;

/// The programs under test.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `shoald`; `shoal-control` lies beside it.
    pub shoald: PathBuf,
    /// `shoal`.
    pub shoal: PathBuf,
    /// `shoal-load`.
    pub load: PathBuf,
    /// The engine setting that nodes are given instead of the environment's.
    engine: Option<&'static str>,
    _copy: Option<Arc<Copy>>,
}

/// A directory of programs that ends with its last user.
#[derive(Debug)]
struct Copy(PathBuf);

impl Drop for Copy {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

impl Programs {
    /// All of them in one directory, as cargo builds them.
    ///
    /// Managers run as a user of their own. Where that user can't go (a checkout below `/root`), a copy is run.
    pub fn in_directory(directory: &Path) -> anyhow::Result<Self> {
        const NAMES: [&str; 4] = ["shoald", "shoal-control", "shoal", "shoal-load"];
        for name in NAMES {
            ensure!(directory.join(name).exists(), "{} isn't built", directory.join(name).display());
        }
        let open = directory
            .ancestors()
            .all(|path| path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0));
        let copy =
            if open { None } else { Some(Copy(std::env::temp_dir().join(format!("{}bin", prefix())))) };
        if let Some(Copy(place)) = &copy {
            std::fs::create_dir_all(place)?;
            for name in NAMES {
                std::fs::copy(directory.join(name), place.join(name))?;
            }
        }
        let place = copy.as_ref().map_or(directory, |Copy(place)| place);
        Ok(Self {
            shoald: place.join("shoald"),
            shoal: place.join("shoal"),
            load: place.join("shoal-load"),
            engine: None,
            _copy: copy.map(Arc::new),
        })
    }

    /// The same for nodes that have this engine setting, whatever the environment says.
    pub fn with_engine(&self, engine: &'static str) -> Self {
        Self { engine: Some(engine), ..self.clone() }
    }
}

/// A host with a `shoald`.
pub struct Node {
    /// Where it runs.
    pub host: Host,
    /// Its addresses on the LAN.
    pub place: Place,
    programs: Programs,
    cpu: Option<usize>,
    daemon: Option<Process>,
    parameters: Vec<String>,
}

impl Node {
    /// Starts `shoald` on a host and waits until it answers on its socket.
    pub fn start(host: Host, place: Place, programs: &Programs) -> anyhow::Result<Self> {
        Self::start_on(host, place, programs, None)
    }

    /// As [`Self::start`], the daemons (and tasks that don't choose otherwise) on one CPU only.
    pub fn start_on(
        host: Host,
        place: Place,
        programs: &Programs,
        cpu: Option<usize>,
    ) -> anyhow::Result<Self> {
        ensure_bpffs()?;
        let programs = programs.clone();
        let mut node = Self { host, place, programs, cpu, daemon: None, parameters: Vec::new() };
        node.parameters = node.kernel_parameters()?;
        node.start_daemon()?;
        Ok(node)
    }

    /// Kernel parameters of the host that `shoald` changes.
    fn kernel_parameters(&self) -> anyhow::Result<Vec<String>> {
        ["ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/ip_local_reserved_ports"]
            .iter()
            .map(|path| Ok(format!("{path} = {}", self.host.read_sysctl(path)?.trim())))
            .collect()
    }

    /// Fails unless all of them are as they were before the first start.
    pub fn ensure_parameters_restored(&self) -> anyhow::Result<()> {
        let now = self.kernel_parameters()?;
        ensure!(now == self.parameters, "{}: {:?} became {now:?}", self.name(), self.parameters);
        Ok(())
    }

    /// The node's name in the swarm.
    pub fn name(&self) -> &str {
        self.host.label()
    }

    /// Where its sockets are.
    pub fn run_dir(&self) -> PathBuf {
        self.host.scratch().join("run")
    }

    /// What survives a restart.
    pub fn state_dir(&self) -> PathBuf {
        self.host.scratch().join("state")
    }

    /// Its pins.
    pub fn bpf_dir(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(self.host.unique())
    }

    /// The flags that make all names of this node its own.
    fn identity_flags(&self) -> Vec<String> {
        let flag = |name: &str, value: &Path| [format!("--{name}"), value.display().to_string()];
        [
            flag("state-dir", &self.state_dir()),
            flag("run-dir", &self.run_dir()),
            flag("bpf-dir", &self.bpf_dir()),
            flag("cgroup", Path::new(self.host.unique())),
            flag("name", Path::new(self.host.label())),
        ]
        .concat()
    }

    /// Gives `shoald` settings, for its next start.
    pub fn configure(&self, settings: &str) -> anyhow::Result<()> {
        Ok(std::fs::write(self.settings_file(), settings)?)
    }

    fn settings_file(&self) -> PathBuf {
        self.host.scratch().join("shoal.toml")
    }

    /// Puts a shell script in the place of a program that `shoald` runs, from its next start on; `None`: no more.
    pub fn stand_in(&self, program: &str, script: Option<&str>) -> anyhow::Result<()> {
        let path = self.stand_ins().join(program);
        let Some(script) = script else { return Ok(std::fs::remove_file(path)?) };
        std::fs::create_dir_all(self.stand_ins())?;
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
        Ok(std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?)
    }

    fn stand_ins(&self) -> PathBuf {
        self.host.scratch().join("bin")
    }

    /// Starts `shoald` (again) and waits until it answers on its socket.
    pub fn start_daemon(&mut self) -> anyhow::Result<()> {
        let mut run = self
            .host
            .run(&self.programs.shoald)
            .args(self.identity_flags())
            .args(["--log", "info"])
            .cpu(self.cpu);
        if let Some(engine) = self.programs.engine {
            run = run.env(ENGINE_SETTING, engine);
        }
        let settings = self.settings_file();
        if settings.exists() {
            run = run.args([Path::new("--config"), &settings]);
        }
        if self.stand_ins().exists() {
            let others = std::env::var("PATH").unwrap_or_default();
            run = run.env("PATH", format!("{}:{others}", self.stand_ins().display()));
        }
        let mut daemon = self.host.spawn("shoald", run)?;
        let socket = self.run_dir().join("api.sock");
        let listening = wait_for(&format!("shoald of {} to listen", self.name()), START, || {
            if let Ok(Some(status)) = daemon.ended() {
                return Ok(Err(anyhow::anyhow!("shoald ended with {status}")));
            }
            UnixStream::connect(&socket).map(Ok).map_err(|error| format!("{}: {error}", socket.display()))
        });
        let log = tail(&daemon.log());
        self.daemon = Some(daemon);
        listening.and_then(|outcome| outcome.map(drop)).with_context(|| format!("shoald's log:\n{log}"))
    }

    /// Whether `shoald` reports that its first full programming is done.
    pub fn is_ready(&self) -> bool {
        self.run_dir().join("ready").exists()
    }

    /// The last lines `shoald` wrote.
    pub fn log_tail(&self) -> String {
        self.daemon.as_ref().map(|daemon| tail(&daemon.log())).unwrap_or_default()
    }

    /// `shoal` against this node.
    pub fn shoal_run(&self, arguments: &[&str]) -> Run {
        let socket = format!("unix://{}", self.run_dir().join("api.sock").display());
        self.host.run(&self.programs.shoal).args(["-H", &socket]).args(arguments)
    }

    /// `shoal`, whatever comes of it.
    pub fn shoal_output(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        self.shoal_run(arguments).output()
    }

    /// `shoal`, expected to succeed; its stdout.
    pub fn shoal(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.shoal_run(arguments).stdout().with_context(|| format!("on {}", self.name()))
    }

    /// `shoal --json`; the items of its document.
    pub fn items(&self, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
        let text = self.shoal(&[&["--json"], arguments].concat())?;
        let document: Value = serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))?;
        match document.get("items").and_then(Value::as_array) {
            Some(items) => Ok(items.clone()),
            None => bail!("shoal {arguments:?} --json has no items: {document}"),
        }
    }

    /// `shoal --format json`; one object per line, with docker's field names.
    pub fn rows(&self, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
        let text = self.shoal(&[arguments, &["--format", "json"]].concat())?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// A command that must fail with this exit code and name these words in its error.
    pub fn refused(&self, arguments: &[&str], code: i32, words: &[&str]) -> anyhow::Result<()> {
        let output = self.shoal_output(arguments)?;
        let error = String::from_utf8_lossy(&output.stderr);
        let said = format!("shoal {}: {}\n{error}", arguments.join(" "), output.status);
        ensure!(output.status.code() == Some(code), "expected exit code {code} from {said}");
        for word in words {
            ensure!(error.to_lowercase().contains(&word.to_lowercase()), "expected '{word}' in {said}");
        }
        Ok(())
    }

    /// The process id of `shoald`, if it was started and not killed.
    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Process::pid)
    }

    /// The process id of the `shoal-control` that `shoald` supervises here.
    pub fn control_pid(&self) -> Option<i32> {
        children_of(self.daemon_pid()?, "shoal-control").first().copied()
    }

    /// SIGKILL to `shoald`. Its `shoal-control`, if any, is left to whatever `shoald` arranged.
    pub fn kill_daemon(&mut self) -> anyhow::Result<()> {
        self.daemon.take().context("shoald isn't running")?.kill()
    }

    /// SIGKILL to both daemons at once.
    pub fn kill_daemons(&mut self) -> anyhow::Result<()> {
        let control = self.control_pid();
        self.kill_daemon()?;
        control.into_iter().for_each(kill_hard);
        Ok(())
    }

    /// SIGTERM to `shoald`, and waits for it to end.
    pub fn stop_daemon(&mut self) -> anyhow::Result<()> {
        let mut daemon = self.daemon.take().context("shoald isn't running")?;
        let status = daemon.terminate(START).with_context(|| tail(&daemon.log()))?;
        ensure!(status.success(), "shoald of {} ended with {status}", self.name());
        Ok(())
    }

    /// `shoald cleanup` with this node's names.
    pub fn cleanup(&self, check: bool) -> anyhow::Result<Output> {
        let run = self.host.run(&self.programs.shoald).args(self.identity_flags()).args(["cleanup"]);
        run.args(check.then_some("--check")).output()
    }

    /// Processes of this node's tasks whose command line starts with `program`.
    pub fn task_pids(&self, program: &str) -> Vec<i32> {
        scrub::processes_in_group(self.host.unique())
            .into_iter()
            .filter(|&pid| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let words: Vec<_> = line.split(|&byte| byte == 0).map(String::from_utf8_lossy).collect();
                words.first().is_some_and(|word| word.ends_with(program))
            })
            .collect()
    }

    /// Task namespaces this node holds now.
    pub fn task_namespaces(&self) -> BTreeSet<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.run_dir().join("netns")) else { return BTreeSet::new() };
        entries.flatten().map(|entry| entry.path()).collect()
    }

    /// Everything the metrics port says.
    fn metrics(&self) -> anyhow::Result<String> {
        self.host.enter(|| {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT));
            let mut stream = TcpStream::connect(address).context("no metrics port")?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
    }

    /// What a program did with how many packets, as of the last pass: by event.
    pub fn packets(&self, program: &str) -> anyhow::Result<BTreeMap<String, u64>> {
        let head = format!("shoal_program_packets_total{{program=\"{program}\",event=\"");
        let text = self.metrics()?;
        let series = text.lines().filter_map(|line| line.strip_prefix(&head)?.split_once("\"} "));
        let packets: Result<BTreeMap<_, _>, _> = series
            .map(|(event, packets)| packets.parse().map(|packets| (event.to_owned(), packets)))
            .collect();
        let packets = packets.with_context(|| format!("the packets of {program}"))?;
        ensure!(!packets.is_empty(), "{} counts no packets of {program}", self.name());
        Ok(packets)
    }

    /// The sum of all series of a metric.
    pub fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let text = self.metrics()?;
        let series: Vec<f64> = text
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse().ok())
            .collect();
        ensure!(!series.is_empty(), "no series '{name}' in:\n{text}");
        Ok(series.iter().sum())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let control = self.control_pid();
        drop(self.daemon.take());
        control.into_iter().for_each(kill_hard);
        scrub::remove_all_of(self.host.unique(), self.host.scratch());
    }
}

/// Children of a process by the name of their program.
fn children_of(parent: u32, program: &str) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // pid (name) state ppid …, where the name may hold anything.
        let Some((head, rest)) = stat.rsplit_once(')') else { return false };
        let ppid = rest.split_whitespace().nth(1).and_then(|ppid| ppid.parse::<u32>().ok());
        ppid == Some(parent) && head.split_once('(').is_some_and(|(_, name)| name == program)
    })
    .collect()
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// The machine's BPF file system, which every node has its own directory in.
fn ensure_bpffs() -> anyhow::Result<()> {
    let mounted = std::fs::read_to_string("/proc/self/mounts")?
        .lines()
        .any(|line| line.split(' ').nth(1) == Some("/sys/fs/bpf"));
    if !mounted {
        Run::line("mount -t bpf bpf /sys/fs/bpf").stdout()?;
    }
    Ok(())
}
