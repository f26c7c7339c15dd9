//! What a runtime is told about a task. Validated before anything is made of it.

use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::RuntimeError;

/// Everything a runtime needs to run one task. It is kept on disk while the task lives, across upgrades of the
/// agent: a new field needs a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuntimeSpec {
    /// The task's id: names its directory and control group.
    pub task: String,
    /// The service it belongs to, for logs and listings.
    pub service: String,
    /// Its slot in the service, for logs and listings.
    pub slot: u64,
    /// The host name the task sees.
    pub hostname: String,
    /// The program and its arguments. A program without a slash is looked up in the task's `PATH`.
    pub command: Vec<String>,
    /// The environment, whole: nothing of the agent's reaches the task. `PATH`, `HOME` and `HOSTNAME` are
    /// added when absent.
    pub env: Vec<(String, String)>,
    /// The working directory, as the task sees it; `/` if none is given.
    pub workdir: Option<PathBuf>,
    /// `user`, `uid`, `user:group` or `uid:gid`, by the task's own `/etc/passwd` and `/etc/group`; root (without
    /// capabilities) if none is given.
    pub user: Option<String>,
    /// A directory to be the task's root. Without one it sees the host's file system, with `/usr`, `/etc` and
    /// `/boot` read-only and its own `/dev`, `/proc` and `/sys`.
    pub root: Option<PathBuf>,
    /// Resource limits.
    pub limits: Limits,
    /// The only capabilities the task has (`CAP_NET_RAW` or `NET_RAW`); none by default.
    pub capabilities: Vec<String>,
    /// Per-process resource limits.
    pub ulimits: Vec<Ulimit>,
    /// Whether the root file system is read-only as a whole.
    pub read_only: bool,
    /// The signal that asks the task to end, by name or number.
    pub stop_signal: String,
    /// The network namespace to run in.
    pub netns: PathBuf,
    /// The content of the task's `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// The content of the task's `/etc/hosts`.
    pub hosts: String,
}

impl RuntimeSpec {
    /// A spec with defaults for all that is optional.
    pub fn new(task: impl Into<String>, command: Vec<String>, netns: impl Into<PathBuf>) -> Self {
        let task = task.into();
        Self {
            service: String::new(),
            slot: 0,
            hostname: task.clone(),
            task,
            command,
            env: Vec::new(),
            workdir: None,
            user: None,
            root: None,
            limits: Limits::default(),
            capabilities: Vec::new(),
            ulimits: Vec::new(),
            read_only: false,
            stop_signal: "SIGTERM".to_owned(),
            netns: netns.into(),
            resolv_conf: String::new(),
            hosts: String::new(),
        }
    }

    /// Checks all that can be known without looking at the machine.
    pub fn validate(&self) -> Result<(), RuntimeError> {
        let refuse = |field: &'static str, reason: String| {
            Err(RuntimeError::InvalidSpec { task: self.task.clone(), field, reason })
        };
        if !is_task_id(&self.task) {
            return refuse("task", "use 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.'".to_owned());
        }
        if self.hostname.is_empty() || self.hostname.len() > 64 || self.hostname.contains('\0') {
            return refuse("hostname", "use 1 to 64 bytes".to_owned());
        }
        if self.command.first().is_none_or(String::is_empty) {
            return refuse("command", "name the program to run".to_owned());
        }
        if self.command.iter().any(|argument| argument.contains('\0')) {
            return refuse("command", "arguments can't contain a NUL byte".to_owned());
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return refuse("env", format!("'{}' is not NAME=VALUE", name.escape_default()));
            }
        }
        if self.user.as_deref().is_some_and(|user| user.is_empty() || user.contains('\0')) {
            return refuse("user", "use user, uid, user:group or uid:gid".to_owned());
        }
        for (field, path) in
            [("workdir", self.workdir.as_ref()), ("root", self.root.as_ref()), ("netns", Some(&self.netns))]
        {
            if path.is_some_and(|path| !is_clean_absolute(path)) {
                return refuse(field, "use an absolute path without '..'".to_owned());
            }
        }
        if let Some(name) = self.capabilities.iter().find(|name| super::process::capability(name).is_none()) {
            return refuse("capabilities", format!("no capability is called '{}'", name.escape_default()));
        }
        for ulimit in &self.ulimits {
            if ulimit.resource().is_none() {
                return refuse("ulimits", format!("no limit is called '{}'", ulimit.name.escape_default()));
            }
            if ulimit.soft > ulimit.hard {
                return refuse("ulimits", format!("'{}': soft is above hard", ulimit.name));
            }
        }
        if let Err(reason) = parse_signal(&self.stop_signal) {
            return refuse("stop_signal", reason);
        }
        self.limits.validate().or_else(|(field, reason)| refuse(field, reason.to_owned()))
    }
}

/// Limits on what a task as a whole may use. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Processor time, in thousandths of one CPU.
    pub cpu_millis: Option<u64>,
    /// Memory, without swap.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

impl Limits {
    fn validate(&self) -> Result<(), (&'static str, &'static str)> {
        if self.cpu_millis.is_some_and(|millis| !(10..=1_000_000).contains(&millis)) {
            return Err(("limits.cpu", "use 0.01 to 1000 CPUs"));
        }
        if self.memory_bytes.is_some_and(|bytes| bytes < 4 << 20) {
            return Err(("limits.memory", "use at least 4 MiB"));
        }
        if self.pids == Some(0) {
            return Err(("limits.pids", "use at least 1"));
        }
        Ok(())
    }
}

/// One limit of setrlimit(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// The name, as in `ulimit` flags of container engines: `nofile`, `core`, `nproc`, `memlock`, ...
    pub name: String,
    /// What applies.
    pub soft: u64,
    /// How far the task may raise it.
    pub hard: u64,
}

impl Ulimit {
    /// The resource of this name.
    pub(crate) fn resource(&self) -> Option<nix::sys::resource::Resource> {
        use nix::sys::resource::Resource;
        Some(match self.name.as_str() {
            "as" => Resource::RLIMIT_AS,
            "core" => Resource::RLIMIT_CORE,
            "cpu" => Resource::RLIMIT_CPU,
            "data" => Resource::RLIMIT_DATA,
            "fsize" => Resource::RLIMIT_FSIZE,
            "locks" => Resource::RLIMIT_LOCKS,
            "memlock" => Resource::RLIMIT_MEMLOCK,
            "msgqueue" => Resource::RLIMIT_MSGQUEUE,
            "nice" => Resource::RLIMIT_NICE,
            "nofile" => Resource::RLIMIT_NOFILE,
            "nproc" => Resource::RLIMIT_NPROC,
            "rtprio" => Resource::RLIMIT_RTPRIO,
            "sigpending" => Resource::RLIMIT_SIGPENDING,
            "stack" => Resource::RLIMIT_STACK,
            _ => return None,
        })
    }
}

/// Reads a signal from its name, with or without `SIG`, or its number.
pub fn parse_signal(text: &str) -> Result<Signal, String> {
    let known = if let Ok(number) = text.parse::<i32>() {
        Signal::try_from(number).ok()
    } else {
        let name = text.to_ascii_uppercase();
        Signal::from_str(&name).or_else(|_| Signal::from_str(&format!("SIG{name}"))).ok()
    };
    known.ok_or_else(|| format!("no signal is called '{}'", text.escape_default()))
}

pub(crate) fn is_task_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && !text.starts_with('.')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn is_clean_absolute(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|part| part == Component::ParentDir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> RuntimeSpec {
        RuntimeSpec::new("t1", vec!["true".to_owned()], "/run/x")
    }

    fn refused(change: impl FnOnce(&mut RuntimeSpec)) -> &'static str {
        let mut changed = spec();
        change(&mut changed);
        match changed.validate() {
            Err(RuntimeError::InvalidSpec { field, .. }) => field,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn a_plain_spec_is_valid() {
        spec().validate().expect("valid");
    }

    #[test]
    fn each_wrong_field_is_named() {
        assert_eq!(refused(|spec| spec.task = "../x".to_owned()), "task");
        assert_eq!(refused(|spec| spec.task = ".".to_owned()), "task");
        assert_eq!(refused(|spec| spec.hostname.clear()), "hostname");
        assert_eq!(refused(|spec| spec.command.clear()), "command");
        assert_eq!(refused(|spec| spec.command.push("a\0b".to_owned())), "command");
        assert_eq!(refused(|spec| spec.env.push(("A=B".to_owned(), String::new()))), "env");
        assert_eq!(refused(|spec| spec.user = Some(String::new())), "user");
        assert_eq!(refused(|spec| spec.workdir = Some("a/b".into())), "workdir");
        assert_eq!(refused(|spec| spec.root = Some("/a/../..".into())), "root");
        assert_eq!(refused(|spec| spec.capabilities.push("CAP_NONSENSE".to_owned())), "capabilities");
        assert_eq!(refused(|spec| spec.stop_signal = "SIGNONE".to_owned()), "stop_signal");
        assert_eq!(refused(|spec| spec.limits.pids = Some(0)), "limits.pids");
        assert_eq!(refused(|spec| spec.limits.memory_bytes = Some(1)), "limits.memory");
        assert_eq!(refused(|spec| spec.limits.cpu_millis = Some(1)), "limits.cpu");
        let ulimit = |name: &str, soft, hard| Ulimit { name: name.to_owned(), soft, hard };
        assert_eq!(refused(|spec| spec.ulimits.push(ulimit("files", 1, 1))), "ulimits");
        assert_eq!(refused(|spec| spec.ulimits.push(ulimit("nofile", 2, 1))), "ulimits");
    }

    #[test]
    fn signals_are_read_by_name_and_number() {
        for text in ["SIGTERM", "TERM", "term", "15"] {
            assert_eq!(parse_signal(text), Ok(Signal::SIGTERM));
        }
        assert!(parse_signal("0").is_err());
        assert!(parse_signal("-1").is_err());
    }

    #[test]
    fn a_spec_survives_its_file() {
        let text = serde_json::to_string(&spec()).expect("serialises");
        assert_eq!(serde_json::from_str::<RuntimeSpec>(&text).expect("parses"), spec());
    }
}
