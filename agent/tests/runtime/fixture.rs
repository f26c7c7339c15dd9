//! A node for tests of the process runtime.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shoal_agent::drivers::runtime::process::{ProcessConfig, ProcessRuntime};
use shoal_agent::drivers::runtime::{
    LogQuery, Runtime, RuntimeError, RuntimeSpec, RuntimeState, StartStage, TaskExit,
};
use shoal_agent::netns::NetnsDir;

/// A node's directories, network namespaces and control groups.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) netns: NetnsDir,
    pub(crate) cgroup: String,
}

impl Node {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::Builder::new().prefix("shoal-runtime-").tempdir().expect("directory");
        let netns = NetnsDir::new(&dir.path().join("run"));
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self { netns, cgroup: format!("shoaltest-{}-{count}", std::process::id()), dir }
    }

    pub(crate) fn runtime(&self) -> ProcessRuntime {
        ProcessRuntime::open(config(self.dir.path(), &self.cgroup)).expect("runtime opens")
    }

    pub(crate) fn spec(&self, task: &str, script: &str) -> RuntimeSpec {
        spec_of(&self.netns, task, script)
    }

    /// Removes all tasks and proves that nothing is left of them.
    pub(crate) async fn finish(self, runtime: ProcessRuntime) {
        for task in runtime.observe().await.expect("observes") {
            runtime.remove(&task.spec.task).await.expect("removes");
        }
        assert_eq!(runtime.observe().await.expect("observes"), []);
        runtime.remove_own().expect("removes its own");
        self.netns.remove_all().expect("removes namespaces");
        let path = self.dir.path().to_str().expect("UTF-8").to_owned();
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        assert!(!mounts.contains(&path), "mounts left:\n{mounts}");
        assert_eq!(processes_naming(&path), [], "processes left");
        assert_eq!(groups_called(&self.cgroup), Vec::<PathBuf>::new(), "control groups left");
        assert!(!self.dir.path().join("state/tasks").exists(), "task directories left");
    }
}

impl Drop for Node {
    /// What a test that failed left behind.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let path = self.dir.path().display().to_string();
        for (pid, _) in processes_naming(&path) {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _left = self.netns.remove_all();
        for group in groups_called(&self.cgroup) {
            for task in fs::read_dir(&group).into_iter().flatten().flatten() {
                let _left = fs::remove_dir(task.path());
            }
            let _left = fs::remove_dir(group);
        }
    }
}

pub(crate) fn config(dir: &Path, cgroup: &str) -> ProcessConfig {
    let mut config = ProcessConfig::new(&dir.join("state"), &dir.join("run"), cgroup);
    config.executable = env!("CARGO_BIN_EXE_shoald").into();
    config
}

pub(crate) fn spec_of(netns: &NetnsDir, task: &str, script: &str) -> RuntimeSpec {
    let netns = netns.ensure(task).expect("namespace");
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    RuntimeSpec::new(task, command, netns.path())
}

/// Living processes whose command lines contain a text: monitors name their task's directory.
pub(crate) fn processes_naming(text: &str) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("lists /proc").flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let (true, Some(pid)) = (command.contains(text), pid) {
            found.push((pid, command));
        }
    }
    found
}

pub(crate) fn groups_called(name: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").expect("lists hierarchies").flatten();
    hierarchies
        .map(|entry| entry.path())
        .chain([PathBuf::from("/sys/fs/cgroup")])
        .map(|path| path.join(name))
        .filter(|path| path.exists())
        .collect()
}

pub(crate) async fn run(runtime: &ProcessRuntime, spec: &RuntimeSpec) -> TaskExit {
    runtime.prepare(spec).await.expect("prepares");
    runtime.start(&spec.task).await.expect("starts");
    let ended = tokio::time::timeout(Duration::from_secs(20), runtime.wait(&spec.task)).await;
    ended.expect("ends in time").expect("ends")
}

pub(crate) async fn output(runtime: &ProcessRuntime, task: &str) -> String {
    let mut text = String::new();
    let mut entries = runtime.logs(task, LogQuery::default()).await.expect("log");
    while let Some(entry) = entries.next().await {
        text.push_str(&String::from_utf8_lossy(&entry.expect("entry").line));
        text.push('\n');
    }
    text
}

pub(crate) async fn refusal(runtime: &ProcessRuntime, spec: &RuntimeSpec) -> (StartStage, String) {
    runtime.prepare(spec).await.expect("prepares");
    match runtime.start(&spec.task).await {
        Err(RuntimeError::Rejected { failure, .. }) => (failure.stage, failure.reason),
        other => panic!("expected a refused start, got {other:?}"),
    }
}

pub(crate) fn pid_of(state: &RuntimeState) -> i32 {
    match state {
        RuntimeState::Running { pid, .. } => *pid,
        other => panic!("expected a running task, got {other:?}"),
    }
}
