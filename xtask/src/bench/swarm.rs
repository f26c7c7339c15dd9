//! The chain with Docker's swarm mode itself on nodes A and B: Debian's `docker.io`, the servers as services.
//!
//! Every daemon has a node's network namespace, mounts and a host name of its own; the image is made of the host's own
//! programs, so nothing is pulled.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use shoal_netns::{Host, Process, Run, wait_for};

use super::chain::{A_BACK, A_FRONT, B_BACK, Hosts, Ports, TASK_PORTS, server_arguments};
use super::measure::Loader;
use super::path::{Case, Client, Kept, Open};
use crate::vm;

/// The task on B is published by the servers' own ports, that on A by these.
const LOCAL_PORTS: Ports = Ports { whoami: 7200, conn: 7201, echo: 7202, iperf: 5401 };
/// An emulated daemon takes its time, and is asked seldom: every question costs it a second.
const PATIENCE: Duration = Duration::from_mins(8);
const IMAGE: &str = "bench";
/// What a task runs.
const PROGRAMS: [(&str, &str); 3] =
    [("/bin/sh", "sh"), ("/usr/bin/iperf3", "iperf3"), ("/usr/bin/taskset", "taskset")];

/// A swarm of the two nodes.
pub(crate) struct Swarm {
    client: Host,
    a: Engine,
    b: Engine,
}

/// Docker's daemon on a node.
struct Engine {
    host: Host,
    daemon: Process,
    docker: PathBuf,
}

impl Swarm {
    pub(crate) fn start(load: &Loader) -> anyhow::Result<Self> {
        let programs = vm::docker_programs()?;
        // It would load them itself, if there were a daemon of the system's to ask.
        Run::line("modprobe -a -q br_netfilter overlay xt_addrtype xt_conntrack xt_ipvs xt_MASQUERADE")
            .output()?;
        let Hosts { client, a, b } = Hosts::cabled()?;
        // Namespaces begin with what the machine's own has. Docker counts on that for its sandboxes, and sets it in the
        // namespace that it runs in, which is a node's here.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        let elsewhere = load.cpu.filter(|&cpu| cpu > 0).map(|_| 0);
        let (a, b) = (Engine::start(a, &programs, elsewhere)?, Engine::start(b, &programs, elsewhere)?);
        let this = Self { client, a, b };
        let image = make_image(this.client.scratch(), &load.program)?;
        for engine in [&this.a, &this.b] {
            engine.wait_until_up()?;
            engine.docker(&["import", &image.display().to_string(), IMAGE])?;
        }
        this.a.docker(&[
            "swarm",
            "init",
            "--advertise-addr",
            A_BACK,
            "--default-addr-pool",
            "10.79.0.0/16",
        ])?;
        let token = this.a.docker(&["swarm", "join-token", "-q", "worker"])?;
        let manager = format!("{A_BACK}:2377");
        this.b.docker(&["swarm", "join", "--token", token.trim(), "--advertise-addr", B_BACK, &manager])?;
        this.serve(load, Case::Remote, "b", TASK_PORTS)?;
        this.serve(load, Case::Local, "a", LOCAL_PORTS)?;
        Ok(this)
    }

    /// The servers as a service on one node.
    fn serve(&self, load: &Loader, case: Case, node: &str, published: Ports) -> anyhow::Result<()> {
        let pin = load.cpu.map(|cpu| format!("taskset -c {cpu} ")).unwrap_or_default();
        let servers = server_arguments(TASK_PORTS).join(" ");
        let script = format!("{pin}iperf3 -s -p {} & exec {pin}shoal-load {servers}", TASK_PORTS.iperf);
        let (name, constraint) = (case.name(), format!("node.hostname=={node}"));
        let hostname = format!("{name}-1");
        let mut arguments = vec!["service", "create", "--detach", "--no-resolve-image", "--name", name];
        // As in the other chain: no path pays for another's TIME_WAIT.
        arguments.extend(["--sysctl", "net.ipv4.tcp_max_tw_buckets=0"]);
        arguments.extend(["--hostname", &hostname, "--constraint", &constraint]);
        let ports: Vec<_> = published
            .all()
            .iter()
            .zip(TASK_PORTS.all())
            .map(|(public, own)| format!("{public}:{own}"))
            .collect();
        for port in &ports {
            arguments.extend(["-p", port]);
        }
        arguments.extend([IMAGE, "/bin/sh", "-c", &script]);
        self.a.docker(&arguments)?;
        wait_for(&format!("a running task of '{name}'"), PATIENCE, || {
            let format = ["service", "ps", name, "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}"];
            let states = self.a.docker(&format).map_err(|error| format!("{error:#}"))?;
            if states.lines().any(|state| state.starts_with("Running")) { Ok(()) } else { Err(states) }
        })
        .with_context(|| last_lines(&self.a.daemon))
    }

    pub(crate) fn open(&self, case: Case) -> Open<'_> {
        let ports = match case {
            Case::Remote => TASK_PORTS,
            Case::Local => LOCAL_PORTS,
        };
        let mark = format!(" host={}-1 ", case.name());
        Open {
            client: Client::Host(&self.client),
            address: A_FRONT.to_owned(),
            ports,
            mark,
            _kept: Kept::Nothing,
        }
    }

    /// Leaves the swarm on both nodes.
    pub(crate) fn dissolve(mut self) -> anyhow::Result<()> {
        self.a.docker(&["service", "rm", Case::Remote.name(), Case::Local.name()])?;
        for engine in [&mut self.b, &mut self.a] {
            engine.docker(&["swarm", "leave", "--force"])?;
            engine.daemon.terminate(PATIENCE)?;
        }
        Ok(())
    }
}

impl Engine {
    fn start(host: Host, programs: &Path, cpu: Option<usize>) -> anyhow::Result<Self> {
        let place = host.scratch().to_owned();
        for (own, shared) in [("lib", "/var/lib/docker"), ("run", "/run/docker")] {
            std::fs::create_dir_all(place.join(own))?;
            std::fs::create_dir_all(shared)?;
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let bin = programs.join("usr");
        let socket = place.join("docker.sock");
        // `ip netns exec` gives it a /sys of its own, without what is mounted there.
        let script = format!(
            "hostname {label}
             mount -t cgroup2 cgroup2 /sys/fs/cgroup
             mount --bind {place}/lib /var/lib/docker
             mount --bind {place}/run /run/docker
             export PATH={bin}/sbin:{bin}/bin:{path}
             exec dockerd -H unix://{socket} --storage-driver vfs --pidfile {place}/docker.pid",
            label = host.label(),
            place = place.display(),
            bin = bin.display(),
            socket = socket.display(),
        );
        let arguments = ["netns", "exec", host.unique(), "unshare", "--uts", "--mount", "sh", "-ec", &script];
        let daemon = host.spawn("dockerd", Run::new("ip").args(arguments).cpu(cpu))?;
        Ok(Self { host, daemon, docker: bin.join("bin/docker") })
    }

    fn wait_until_up(&self) -> anyhow::Result<()> {
        wait_for(&format!("Docker on {}", self.host.label()), PATIENCE, || {
            self.docker(&["version"]).map(drop).map_err(|error| format!("{error:#}"))
        })
        .with_context(|| last_lines(&self.daemon))
    }

    fn docker(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let socket = format!("unix://{}", self.host.scratch().join("docker.sock").display());
        Run::new(&self.docker).args(["-H", &socket]).args(arguments).stdout()
    }
}

/// The end of what a daemon said.
fn last_lines(daemon: &Process) -> String {
    let log = daemon.log();
    let lines: Vec<_> = log.lines().collect();
    format!("Docker's daemon said at last:\n{}", lines[lines.len().saturating_sub(5)..].join("\n"))
}

/// The servers with the libraries they need, as a file system to import.
fn make_image(place: &Path, load: &Path) -> anyhow::Result<PathBuf> {
    let root = place.join("image");
    // iperf3 keeps its buffers in files of /tmp.
    for directory in ["bin", "tmp"] {
        std::fs::create_dir_all(root.join(directory))?;
    }
    let own = [(load, "shoal-load")];
    let found = PROGRAMS.iter().map(|(program, name)| (Path::new(program), *name));
    for (program, name) in own.into_iter().chain(found) {
        std::fs::copy(program, root.join("bin").join(name)).with_context(|| program.display().to_string())?;
        let listed = Run::new("ldd").args([program]).stdout()?;
        for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
            let target = root.join(library.trim_start_matches('/'));
            std::fs::create_dir_all(target.parent().context("a library without a directory")?)?;
            std::fs::copy(library, target).with_context(|| library.to_owned())?;
        }
    }
    let file = place.join("image.tar");
    let made = Run::new("tar").args(["-C"]).args([&root]).args(["-c", ".", "-f"]).args([&file]).output()?;
    ensure!(made.status.success(), "tar: {}", String::from_utf8_lossy(&made.stderr));
    Ok(file)
}
