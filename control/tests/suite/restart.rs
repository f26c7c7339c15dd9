//! The real process, killed and started again.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shoal_api::pb;
use shoal_api::pb::control_client::ControlClient;
use tonic::transport::Channel;

use crate::fixture::{command_line, free_port, local_channel, network, service, wait_for};

/// A user that has nothing, as shoald starts it.
const NOBODY: u32 = 65_534;

struct Process(Child);

impl Process {
    /// Starts it and waits for its word.
    fn start(dir: &Path, line: &[String]) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).expect("log");
        let mut child = Command::new(env!("CARGO_BIN_EXE_shoal-control"))
            .args(line)
            .uid(NOBODY)
            .gid(NOBODY)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("starts");
        let mut word = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut word).expect("says something");
        let shown = std::fs::read_to_string(dir.join("log")).expect("log");
        assert_eq!(word, "ready\n", "{shown}");
        Self(child)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).expect("a pid"))
    }

    fn end(mut self, signal: Signal) -> Option<i32> {
        kill(self.pid(), signal).expect("signal");
        self.0.wait().expect("ended").code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone unless an assertion failed.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

async fn control(dir: &Path) -> ControlClient<Channel> {
    ControlClient::new(local_channel(dir).await)
}

async fn cluster(dir: &Path) -> pb::ClusterInfo {
    control(dir).await.get_cluster(pb::Empty {}).await.expect("answers").into_inner()
}

/// The cluster once the leader's own writes (a task for each slot, why it has no node) have come to rest.
async fn at_rest(dir: &Path, tasks: usize) -> pb::ClusterInfo {
    let mut last = cluster(dir).await;
    let mut same = 0;
    wait_for("the state is at rest", async || {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let listed = control(dir).await.list_tasks(pb::ListTasksRequest::default()).await.ok()?.into_inner();
        let seen = cluster(dir).await;
        same = if seen.state_hash == last.state_hash { same + 1 } else { 0 };
        last = seen;
        (same >= 5 && listed.tasks.len() == tasks).then(|| last.clone())
    })
    .await
}

fn private(dir: &Path) {
    for entry in std::fs::read_dir(dir).expect("readable") {
        let path = entry.expect("entry").path();
        let mode = std::fs::metadata(&path).expect("there").permissions().mode() & 0o777;
        if path.is_dir() {
            assert_eq!(mode, 0o700, "{}", path.display());
            private(&path);
        } else {
            assert_eq!(mode, 0o600, "{}", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_manager_comes_back_with_everything_it_acknowledged() {
    let home = tempfile::tempdir().expect("temporary directory");
    let dir = home.path();
    std::os::unix::fs::chown(dir, Some(NOBODY), Some(NOBODY)).expect("tests run as root");
    let mut line = command_line(dir, free_port());

    let process = Process::start(dir, &line);
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("runs");
    assert!(status.contains("CapEff:\t0000000000000000"), "no capability: {status}");
    let mode = std::fs::metadata(dir.join("control.sock")).expect("socket").permissions().mode() & 0o777;
    assert_eq!(mode, 0o660);
    private(&dir.join("state"));

    let mut client = control(dir).await;
    client.create_network(network("back")).await.expect("network");
    let spec = Some(service("web", &["back"], 3));
    let request = pb::CreateServiceRequest { spec, request_id: "r1".into(), dry_run: false };
    let made = client.create_service(request.clone()).await.expect("service").into_inner();
    let token = client
        .create_token(pb::CreateTokenRequest {
            role: pb::NodeRole::Worker.into(),
            ..pb::CreateTokenRequest::default()
        })
        .await
        .expect("token")
        .into_inner();
    let before = at_rest(dir, 3).await;
    drop(client);
    assert_eq!(process.end(Signal::SIGKILL), None);

    // Founding again is using what is there.
    let process = Process::start(dir, &line);
    let after = cluster(dir).await;
    assert_eq!(
        (&after.state_hash, &after.id, &after.ca_digest),
        (&before.state_hash, &before.id, &before.ca_digest)
    );
    assert_eq!((after.services, after.networks), (1, 2));
    let again = control(dir).await.create_service(request).await.expect("the same request").into_inner();
    assert_eq!(again.id, made.id, "a retry after the crash is applied once");
    assert_eq!(process.end(Signal::SIGTERM), Some(0));
    assert!(!dir.join("control.sock").exists(), "a clean stop takes the socket away");
    let log = std::fs::read_to_string(dir.join("log")).expect("log");
    assert!(
        log.contains("the state is saved whole"),
        "a clean stop leaves no log to be replayed by another version"
    );

    // And without being asked to found.
    line.retain(|word| word != "--bootstrap");
    let process = Process::start(dir, &line);
    assert_eq!(cluster(dir).await.state_hash, before.state_hash);
    drop(process);

    // Nothing secret in the log or in clear on the disk.
    let secret = token.token.rsplit('-').next().expect("a secret").to_owned();
    let log = std::fs::read_to_string(dir.join("log")).expect("log");
    assert!(!log.contains(&secret), "the join secret is in the log");
    let raft = std::fs::read(dir.join("state/raft/raft.redb")).expect("store");
    for canary in ["sleep", "web", "otter"] {
        assert!(
            !raft.windows(canary.len()).any(|w| w == canary.as_bytes()),
            "{canary} is in clear on the disk"
        );
    }
}

#[test]
fn without_a_state_it_says_what_to_do() {
    let home = tempfile::tempdir().expect("temporary directory");
    let mut line = command_line(home.path(), free_port());
    line.retain(|word| word != "--bootstrap");
    let output = Command::new(env!("CARGO_BIN_EXE_shoal-control")).args(line).output().expect("starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--bootstrap"), "{output:?}");
}
