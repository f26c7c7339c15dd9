//! The broom: takes away by force what a node left, after it was proved (or not) that it leaves nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::command::{Run, kill_hard};

/// Processes in any control group whose path has this component.
pub(crate) fn processes_in_group(name: &str) -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    for group in groups(name) {
        collect_processes(&group, &mut found);
    }
    found
}

/// Control groups of this name, one for each hierarchy that has it at its top.
pub(crate) fn groups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let mut tops = vec![root.join(name)];
    if let Ok(hierarchies) = fs::read_dir(root) {
        tops.extend(hierarchies.flatten().map(|entry| entry.path().join(name)));
    }
    tops.retain(|path| path.is_dir());
    tops
}

fn collect_processes(group: &Path, found: &mut BTreeSet<i32>) {
    let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    found.extend(listed.lines().filter_map(|pid| pid.parse::<i32>().ok()));
    for child in children(group) {
        collect_processes(&child, found);
    }
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir() && !path.is_symlink()).collect()
}

/// Kills, unmounts, unpins and removes all that carries a host's unique name.
pub(crate) fn remove_all_of(unique: &str, scratch: &Path) {
    remove_groups(unique);
    unmount_below(scratch);
    drop(fs::remove_dir_all(Path::new("/sys/fs/bpf").join(unique)));
}

/// Kills what is in the control groups of this name and removes them.
pub(crate) fn remove_groups(name: &str) {
    processes_in_group(name).into_iter().for_each(kill_hard);
    for group in groups(name) {
        remove_group(&group);
    }
}

/// Mount points in a directory, in the order they were mounted.
pub(crate) fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let targets = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    targets.filter(|target| target.starts_with(directory)).collect()
}

fn unmount_below(directory: &Path) {
    // Later mounts lie on top of earlier ones.
    for target in mounts_below(directory).into_iter().rev() {
        drop(Run::line("umount -l").args([target]).stdout());
    }
}

fn remove_group(group: &Path) {
    for child in children(group) {
        remove_group(&child);
    }
    // A process that was killed a moment ago may still hold it.
    drop(crate::wait::wait_for("an empty control group", std::time::Duration::from_secs(2), || {
        fs::remove_dir(group).map_err(|error| error.to_string())
    }));
}
