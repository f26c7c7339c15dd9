//! What a fixture may not leave behind.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::bail;

use crate::command::{Run, kill_hard};
use crate::scrub;

/// Things on the machine that belong to fixtures with one name prefix, and links of ours in the machine's own namespace.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Residue(BTreeSet<String>);

impl Residue {
    /// Looks at namespaces, links, pins, control groups, mounts, processes and directories.
    pub fn observe(prefix: &str) -> Self {
        let mut found = BTreeSet::new();
        let mut list = |kind: &str, names: Vec<String>| {
            found.extend(names.into_iter().map(|name| format!("{kind} {name}")));
        };
        list("namespace", children(Path::new("/run/netns"), prefix));
        list("directory", children(&std::env::temp_dir(), prefix));
        list("pin", children(Path::new("/sys/fs/bpf"), prefix));
        list("mount", mounts(prefix));
        list("process", processes(prefix));
        list("control group", control_groups(prefix));
        list("link", own_links());
        Self(found)
    }

    /// Fails naming everything that is there now and wasn't in `before`.
    pub fn ensure_none_since(before: &Self, prefix: &str) -> anyhow::Result<()> {
        let now = Self::observe(prefix);
        let left: Vec<_> = now.0.difference(&before.0).cloned().collect();
        if !left.is_empty() {
            bail!("left behind:\n  {}", left.join("\n  "));
        }
        Ok(())
    }
}

fn children(directory: &Path, prefix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

fn mounts(prefix: &str) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|target| target.contains(&format!("/{prefix}")))
        .map(str::to_owned)
        .collect()
}

/// Processes whose command line or control group carries the prefix. Zombies count: someone must reap them.
fn processes(prefix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let group = String::from_utf8_lossy(&read("cgroup")).into_owned();
        if pid != std::process::id() && (command.contains(prefix) || group.contains(prefix)) {
            found.push(format!("{pid} {command}"));
        }
    }
    found
}

/// Groups named by the prefix, at the top or below a `shoal` group, in every hierarchy.
fn control_groups(prefix: &str) -> Vec<String> {
    let root = Path::new("/sys/fs/cgroup");
    let Ok(hierarchies) = std::fs::read_dir(root) else { return Vec::new() };
    let mut tops = vec![root.to_owned()];
    tops.extend(hierarchies.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()));
    let mut found = Vec::new();
    for top in tops {
        for name in children(&top, prefix) {
            found.push(top.join(name).display().to_string());
        }
    }
    found
}

/// Links with our mark in the machine's own namespace, where no fixture may put any.
fn own_links() -> Vec<String> {
    let table = Run::line("ip -o link show").stdout().unwrap_or_default();
    table
        .lines()
        .filter(|line| line.contains("alias shoal:") || line.contains(" shoal0"))
        .filter_map(|line| Some(line.split(": ").nth(1)?.to_owned()))
        .collect()
}

/// Removes what fixtures of processes that no longer run left behind (a test run cut short by SIGKILL).
pub fn sweep_stale() {
    let mut names = BTreeSet::new();
    for directory in [Path::new("/run/netns"), &std::env::temp_dir(), Path::new("/sys/fs/bpf")] {
        names.extend(children(directory, "sh").into_iter().filter(|name| is_stale(name)));
    }
    for name in names {
        let pids = Run::line(&format!("ip netns pids {name}")).stdout().unwrap_or_default();
        pids.split_whitespace().filter_map(|pid| pid.parse().ok()).for_each(kill_hard);
        let scratch = std::env::temp_dir().join(&name);
        scrub::remove_all_of(&name, &scratch);
        drop(Run::line(&format!("ip netns del {name}")).stdout());
        drop(std::fs::remove_dir_all(scratch));
    }
}

/// Whether a name has the form of [`crate::host::prefix`] and the process in it is gone.
fn is_stale(name: &str) -> bool {
    let Some((pid, _)) = name.strip_prefix("sh").and_then(|rest| rest.split_once('x')) else { return false };
    pid.parse::<u32>().is_ok_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_fixtures_are_stale() {
        assert!(!is_stale(&format!("{}1-n1", crate::host::prefix())));
        assert!(is_stale("sh4194999x0-lan"));
        assert!(!is_stale("shared"));
        assert!(!is_stale("shoal-thing"));
    }
}
