//! Control groups: limits on a task as a whole, and a handle to find and kill all of it.
//!
//! Each task has one group `NAME/TASK` in every hierarchy that is used. Where the unified hierarchy (v2) has a
//! controller, that is used; where it hasn't, the controller's own hierarchy (v1) is. The unified one is joined
//! in any case if it is mounted: the programs that translate connections hang on it. A group of `cpu` of its own (v1) costs a
//! task 0.4 µs at each switch to or from another: without a limit it is in the root of that hierarchy. (In the agent's own group
//! it would come under a limit of the agent's.)

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::drivers::runtime::Limits;

/// The period that a quota of processor time is counted in.
const PERIOD_US: u64 = 100_000;

/// What can go wrong with a control group.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file of a group can't be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A limit was asked for that this host can't set.
    #[error(
        "this host has no '{0}' controller, neither in the unified hierarchy nor in one of its own: mount it, or ask for no such limit"
    )]
    NoController(&'static str),
}

impl CgroupError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

/// The directory of a node's control group in the unified hierarchy, if that is mounted.
pub fn unified_group(name: &str) -> Result<Option<PathBuf>, CgroupError> {
    Ok(Cgroups::detect(name)?.unified.map(|(path, _)| path))
}

/// The hierarchies of this host and where in them a node's groups are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cgroups {
    /// Directory of the node's groups in the unified hierarchy, and the controllers that has.
    unified: Option<(PathBuf, BTreeSet<String>)>,
    /// Directories of the node's groups in hierarchies of single controllers.
    legacy: Vec<(Controller, PathBuf)>,
    /// Root of the hierarchy of `cpu`, if it is one of those.
    cpu_root: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Controller {
    Cpu,
    Memory,
    Pids,
}

impl Controller {
    const ALL: [Self; 3] = [Self::Cpu, Self::Memory, Self::Pids];

    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }

    fn is_wanted(self, limits: Limits) -> bool {
        match self {
            Self::Cpu => limits.cpu_millis.is_some(),
            Self::Memory => limits.memory_bytes.is_some(),
            Self::Pids => limits.pids.is_some(),
        }
    }
}

impl Cgroups {
    /// Finds the hierarchies that are mounted.
    pub(super) fn detect(name: &str) -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mounts");
        let mounts = fs::read_to_string(path).map_err(|error| CgroupError::io("read", path, error))?;
        Ok(Self::from_mounts(&mounts, name, |file| fs::read_to_string(file)))
    }

    fn from_mounts(mounts: &str, name: &str, read: impl Fn(&Path) -> io::Result<String>) -> Self {
        let (mut unified, mut legacy, mut cpu_root) = (None, Vec::new(), None);
        let fields = |line: &str| -> Option<(PathBuf, String, String)> {
            let mut fields = line.split(' ').skip(1).map(str::to_owned);
            Some((fields.next()?.into(), fields.next()?, fields.next()?))
        };
        let found: Vec<_> = mounts.lines().filter_map(fields).collect();
        for (point, _, _) in found.iter().filter(|(_, kind, _)| kind == "cgroup2").take(1) {
            let controllers = read(&point.join("cgroup.controllers")).unwrap_or_default();
            let controllers = controllers.split_ascii_whitespace().map(str::to_owned).collect();
            unified = Some((point.join(name), controllers));
        }
        for controller in Controller::ALL {
            let has = |options: &str| options.split(',').any(|option| option == controller.name());
            let is_unified = unified
                .as_ref()
                .is_some_and(|(_, all): &(PathBuf, BTreeSet<String>)| all.contains(controller.name()));
            let point = found.iter().find(|(_, kind, options)| kind == "cgroup" && has(options));
            if let (false, Some((point, _, _))) = (is_unified, point) {
                legacy.push((controller, point.join(name)));
                if controller == Controller::Cpu {
                    cpu_root = Some(point.clone());
                }
            }
        }
        Self { unified, legacy, cpu_root }
    }

    /// The group of a task in each hierarchy that there is.
    pub(super) fn group(&self, task: &str) -> Cgroup {
        let in_task = |path: &PathBuf| path.join(task);
        Cgroup {
            unified: self.unified.as_ref().map(|(path, _)| in_task(path)),
            legacy: self.legacy.iter().map(|(controller, path)| (*controller, in_task(path))).collect(),
            root: None,
        }
    }

    /// The group of a task with such limits: in the hierarchies that it joins. It has one by which it is found.
    pub(super) fn group_within(&self, task: &str, limits: Limits) -> Cgroup {
        let mut group = self.group(task);
        let has_others = group.unified.is_some() || group.legacy.len() > 1;
        if has_others && !Controller::Cpu.is_wanted(limits) {
            group.root.clone_from(&self.cpu_root);
            group.legacy.retain(|(controller, _)| *controller != Controller::Cpu);
        }
        group
    }

    /// Whether this host can set these limits.
    pub(super) fn check(&self, limits: Limits) -> Result<(), CgroupError> {
        match self.missing(limits) {
            Some(missing) => Err(CgroupError::NoController(missing.name())),
            None => Ok(()),
        }
    }

    /// Makes a task's group with its limits. Making it again sets the limits again.
    pub(super) fn ensure(&self, group: &Cgroup, limits: Limits) -> Result<(), CgroupError> {
        self.check(limits)?;
        if let (Some((parent, controllers)), Some(path)) = (&self.unified, &group.unified) {
            make(parent)?;
            let wanted: Vec<_> = Controller::ALL
                .into_iter()
                .filter(|controller| controllers.contains(controller.name()) && controller.is_wanted(limits))
                .collect();
            // A controller must be handed down by each level above.
            for level in [parent.parent(), Some(parent)].into_iter().flatten() {
                for controller in &wanted {
                    let grant = format!("+{}", controller.name());
                    write(&level.join("cgroup.subtree_control"), &grant)?;
                }
            }
            make(path)?;
            for controller in wanted {
                limit_unified(path, controller, limits)?;
            }
        }
        for (controller, path) in &group.legacy {
            make(path)?;
            limit_legacy(path, *controller, limits)?;
        }
        Ok(())
    }

    /// The first controller that a limit needs and the host hasn't.
    fn missing(&self, limits: Limits) -> Option<Controller> {
        Controller::ALL.into_iter().filter(|controller| controller.is_wanted(limits)).find(|controller| {
            let unified = self.unified.as_ref().is_some_and(|(_, all)| all.contains(controller.name()));
            !unified && !self.legacy.iter().any(|(legacy, _)| legacy == controller)
        })
    }

    /// Names of the node's groups that no task is known for.
    pub(super) fn orphans(&self, known: &BTreeSet<String>) -> Result<BTreeSet<String>, CgroupError> {
        let mut orphans = BTreeSet::new();
        for path in self.levels() {
            let entries = match fs::read_dir(path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(CgroupError::io("list", path, error)),
            };
            let groups = entries.flatten().filter(|entry| entry.path().is_dir());
            orphans.extend(groups.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        Ok(&orphans - known)
    }

    /// Removes all that is empty: groups whose tasks are gone, and the node's own level.
    pub(super) fn remove_empty(&self) -> Result<(), CgroupError> {
        for task in self.orphans(&BTreeSet::new())? {
            self.group(&task).paths().try_for_each(|path| remove_dir(path).map(drop))?;
        }
        self.levels().try_for_each(|path| remove_dir(path).map(drop))
    }

    fn levels(&self) -> impl Iterator<Item = &PathBuf> {
        self.unified.iter().map(|(path, _)| path).chain(self.legacy.iter().map(|(_, path)| path))
    }
}

/// A task's group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cgroup {
    unified: Option<PathBuf>,
    legacy: Vec<(Controller, PathBuf)>,
    /// Root of a hierarchy that the task has no group in.
    #[serde(default)]
    root: Option<PathBuf>,
}

impl Cgroup {
    /// Moves the calling process into the group.
    pub(super) fn join(&self) -> Result<(), CgroupError> {
        // 0 is the writer, in whatever process namespace it is.
        self.paths().chain(&self.root).try_for_each(|path| write(&path.join("cgroup.procs"), "0"))
    }

    /// Whether the kernel killed a process of the group for want of memory.
    pub(super) fn had_oom_kill(&self) -> bool {
        let memory = self.legacy.iter().find(|(controller, _)| *controller == Controller::Memory);
        let file = match (memory, &self.unified) {
            (Some((_, path)), _) => path.join("memory.oom_control"),
            (None, Some(path)) => path.join("memory.events"),
            (None, None) => return false,
        };
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().filter_map(|line| line.strip_prefix("oom_kill ")).any(|count| count.trim() != "0")
    }

    /// Removes the group, or kills what is still in it: `false` means to try again in a moment. What isn't there
    /// is removed already.
    pub(super) fn try_remove(&self) -> Result<bool, CgroupError> {
        let mut gone = true;
        for path in self.paths() {
            let left = processes(path)?;
            for pid in &left {
                // Gone already is as good.
                let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            gone &= left.is_empty() && remove_dir(path)?;
        }
        Ok(gone)
    }

    /// The processes of the group, in any hierarchy.
    pub(super) fn processes(&self) -> Result<BTreeSet<i32>, CgroupError> {
        let mut all = BTreeSet::new();
        for path in self.paths() {
            all.extend(processes(path)?);
        }
        Ok(all)
    }

    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.unified.iter().chain(self.legacy.iter().map(|(_, path)| path))
    }
}

fn limit_unified(path: &Path, controller: Controller, limits: Limits) -> Result<(), CgroupError> {
    match controller {
        Controller::Cpu => match limits.cpu_millis {
            Some(millis) => write(&path.join("cpu.max"), &format!("{} {PERIOD_US}", quota_us(millis))),
            None => Ok(()),
        },
        Controller::Memory => {
            let Some(bytes) = limits.memory_bytes else { return Ok(()) };
            write(&path.join("memory.max"), &bytes.to_string())?;
            // Absent without swap accounting; then there is nothing to forbid.
            write_if_present(&path.join("memory.swap.max"), "0")
        }
        Controller::Pids => match limits.pids {
            Some(pids) => write(&path.join("pids.max"), &pids.to_string()),
            None => Ok(()),
        },
    }
}

fn limit_legacy(path: &Path, controller: Controller, limits: Limits) -> Result<(), CgroupError> {
    match controller {
        Controller::Cpu => {
            let Some(millis) = limits.cpu_millis else { return Ok(()) };
            write(&path.join("cpu.cfs_period_us"), &PERIOD_US.to_string())?;
            write(&path.join("cpu.cfs_quota_us"), &quota_us(millis).to_string())
        }
        Controller::Memory => {
            let Some(bytes) = limits.memory_bytes else { return Ok(()) };
            write(&path.join("memory.limit_in_bytes"), &bytes.to_string())?;
            write_if_present(&path.join("memory.memsw.limit_in_bytes"), &bytes.to_string())
        }
        Controller::Pids => match limits.pids {
            Some(pids) => write(&path.join("pids.max"), &pids.to_string()),
            None => Ok(()),
        },
    }
}

fn quota_us(millis: u64) -> u64 {
    // The kernel takes no quota below 1 ms.
    (millis * PERIOD_US / 1000).max(1000)
}

fn make(path: &Path) -> Result<(), CgroupError> {
    fs::create_dir_all(path).map_err(|error| CgroupError::io("make", path, error))
}

/// Group files take one whole write and must not be truncated or created.
fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| CgroupError::io("write to", path, error))
}

fn write_if_present(path: &Path, text: &str) -> Result<(), CgroupError> {
    if path.exists() { write(path, text) } else { Ok(()) }
}

/// Removes an empty group; `false` if something keeps it.
fn remove_dir(path: &Path) -> Result<bool, CgroupError> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(false),
        Err(error) => Err(CgroupError::io("remove", path, error)),
    }
}

fn processes(path: &Path) -> Result<Vec<i32>, CgroupError> {
    let file = path.join("cgroup.procs");
    match fs::read_to_string(&file) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        // The group was removed between open and read.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(Vec::new()),
        Err(error) => Err(CgroupError::io("read", &file, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
        cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n\
        cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
        cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
    const UNIFIED: &str = "cgroup2 /sys/fs/cgroup cgroup2 rw,relatime,nsdelegate 0 0\n";

    fn limits(pids: Option<u64>) -> Limits {
        Limits { cpu_millis: Some(500), memory_bytes: Some(1 << 26), pids }
    }

    #[test]
    fn a_hybrid_host_uses_each_controller_where_it_is() {
        let found = Cgroups::from_mounts(HYBRID, "shoal", |_| Ok("hugetlb\n".to_owned()));
        let group = found.group("t1");
        assert_eq!(group.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified/shoal/t1")));
        assert_eq!(
            group.legacy,
            [
                (Controller::Cpu, "/sys/fs/cgroup/cpu,cpuacct/shoal/t1".into()),
                (Controller::Memory, "/sys/fs/cgroup/memory/shoal/t1".into()),
            ]
        );
        assert_eq!(found.missing(limits(None)), None);
        assert_eq!(found.missing(limits(Some(9))), Some(Controller::Pids));
    }

    #[test]
    fn without_a_limit_of_its_processor_time_a_task_is_in_the_root_of_cpu() {
        let group =
            |limits| Cgroups::from_mounts(HYBRID, "shoal", |_| Ok(String::new())).group_within("t1", limits);
        let controllers = |group: &Cgroup| group.legacy.iter().map(|(one, _)| *one).collect::<Vec<_>>();
        let free = group(Limits { memory_bytes: Some(1 << 26), ..Limits::default() });
        assert_eq!(controllers(&free), [Controller::Memory]);
        assert_eq!(free.root.as_deref(), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        let limited = group(limits(None));
        assert_eq!((controllers(&limited), limited.root), (vec![Controller::Cpu, Controller::Memory], None));
    }

    #[test]
    fn a_unified_host_uses_one_hierarchy() {
        let found = Cgroups::from_mounts(UNIFIED, "shoal", |_| Ok("cpuset cpu io memory pids".to_owned()));
        assert_eq!(found.group("t1").legacy, []);
        assert_eq!(found.missing(limits(Some(9))), None);
    }

    #[test]
    fn a_host_without_groups_has_no_limits_to_offer() {
        let found = Cgroups::from_mounts("proc /proc proc rw 0 0\n", "shoal", |_| unreachable!());
        assert_eq!(found.missing(Limits::default()), None);
        assert_eq!(found.missing(limits(None)), Some(Controller::Cpu));
    }

    #[test]
    fn quotas_are_never_below_what_the_kernel_takes() {
        assert_eq!(quota_us(1500), 150_000);
        assert_eq!(quota_us(1), 1000);
    }
}
