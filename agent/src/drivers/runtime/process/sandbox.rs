//! What a task sees of the file system, built inside its own mount namespace: nothing here changes the host.
//!
//! Without a root directory of its own a task sees the host's files. It may well be root there, without
//! capabilities, and root needs none to write its own files: so `/usr`, `/etc` and `/boot` are read-only, `/dev`
//! has the harmless devices only, `/proc` is of the task's own processes with the system's knobs read-only,
//! `/sys` is a read-only new one (without control groups and BPF files), and the node's own directories, with
//! the sockets that would let it act as the operator, are hidden.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::drivers::runtime::{StartFailure, StartStage};
use crate::netns::sys;

use super::record::{Launch, TaskDir};

const NONE: Option<&str> = None;
/// Devices that tell nothing and reach nobody.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Parts of `/proc` that act on the whole machine.
const PROC_READ_ONLY: [&str; 5] = ["sys", "irq", "bus", "fs", "sysrq-trigger"];
/// Parts of `/proc` that tell about the whole machine.
const PROC_HIDDEN: [&str; 4] = ["kcore", "keys", "timer_list", "sched_debug"];
/// What is put together aside before it is mounted.
const STAGED: [&str; 2] = ["dev", "etc"];
/// Read-only for a task without a root directory of its own.
const SYSTEM: [&str; 3] = ["usr", "etc", "boot"];

/// Builds the task's view and makes it the root of the calling process.
pub(super) fn build(dir: &TaskDir, launch: &Launch) -> Result<(), StartFailure> {
    // Slave: what the host unmounts later goes here too, and nothing goes the other way.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)
        .map_err(|errno| failed("separate the mounts", Path::new("/"), &errno))?;
    let base = match &launch.spec.root {
        Some(root) => {
            enter_root(root)?;
            root.as_path()
        }
        None => Path::new("/"),
    };
    let own_root = launch.spec.root.is_some();
    // They lie on what may become read-only next.
    for name in STAGED {
        staging_dir(dir, name)?;
    }
    if launch.spec.read_only {
        sys::remount_read_only(base).map_err(|error| failed("make read-only", base, &error))?;
    }
    name_files(dir, base, own_root)?;
    if !own_root && !launch.spec.read_only {
        for name in SYSTEM {
            read_only(&base.join(name))?;
        }
    }
    devices(dir, &base.join("dev"))?;
    proc(&base.join("proc"), &base.join("dev/null"))?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    new_mount("sysfs", &base.join("sys"), flags, "")?;
    if own_root {
        return change_root(base);
    }
    for hidden in launch.hidden.iter().filter(|hidden| hidden.is_dir()) {
        new_mount("tmpfs", hidden, flags, "mode=0555,size=4k")?;
    }
    Ok(())
}

fn enter_root(root: &Path) -> Result<(), StartFailure> {
    let refuse = |reason: String| Err(StartFailure::new(StartStage::Root, reason));
    match fs::symlink_metadata(root) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return refuse(format!("root {} is not a directory", root.display())),
        Err(error) => return refuse(format!("root {}: {error}", root.display())),
    }
    bind(root, root, MsFlags::MS_REC)?;
    for name in ["dev", "proc", "sys", "etc"] {
        let path = root.join(name);
        // A link here would put our mounts somewhere else.
        if !fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
            fs::create_dir(&path).map_err(|error| {
                let reason = format!("root {} needs a directory '{name}': {error}", root.display());
                StartFailure::new(StartStage::Root, reason)
            })?;
        }
    }
    Ok(())
}

/// Makes `root` the root directory and lets go of the old one.
fn change_root(root: &Path) -> Result<(), StartFailure> {
    let change = || -> nix::Result<()> {
        nix::unistd::chdir(root)?;
        // Both the same: the old root ends up on top of the new one and is taken off from there.
        nix::unistd::pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        nix::unistd::chdir("/")
    };
    change().map_err(|errno| {
        StartFailure::new(StartStage::Root, format!("cannot make {} the root: {errno}", root.display()))
    })
}

/// Puts the task's `resolv.conf` and `hosts` in place of those in `base/etc`.
fn name_files(dir: &TaskDir, base: &Path, own_root: bool) -> Result<(), StartFailure> {
    let etc = base.join("etc");
    let (present, absent): (Vec<_>, Vec<_>) =
        ["resolv.conf", "hosts"].into_iter().partition(|name| can_be_mounted_over(&etc.join(name), own_root));
    if !absent.is_empty() {
        overlay(dir, &etc, &absent)?;
    }
    for name in present {
        bind(&dir.file(name), &etc.join(name), MsFlags::empty())?;
        sys::remount_read_only(&etc.join(name))
            .map_err(|error| failed("make read-only", &etc.join(name), &error))?;
    }
    Ok(())
}

/// Whether there is a file to mount over. A link out of a root directory of its own would lead to the host's.
fn can_be_mounted_over(path: &Path, own_root: bool) -> bool {
    let found = if own_root { fs::symlink_metadata(path) } else { fs::metadata(path) };
    found.is_ok_and(|metadata| metadata.is_file())
}

/// Lays files over `etc` where there is nothing to mount over: missing, or a link to nowhere.
fn overlay(dir: &TaskDir, etc: &Path, names: &[&str]) -> Result<(), StartFailure> {
    let staging = staging(dir, "etc")?;
    let (upper, work) = (staging.join("upper"), staging.join("work"));
    for path in [&upper, &work] {
        fs::create_dir(path).map_err(|error| failed("make", path, &error))?;
    }
    for name in names {
        fs::copy(dir.file(name), upper.join(name))
            .map_err(|error| failed("copy", &upper.join(name), &error))?;
    }
    let options = format!("lowerdir={},upperdir={},workdir={}", escape(etc), escape(&upper), escape(&work));
    new_mount("overlay", etc, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, &options)
}

/// Overlay options are separated by commas, lower directories by colons.
fn escape(path: &Path) -> String {
    let mut escaped = String::new();
    for character in path.to_string_lossy().chars() {
        if matches!(character, ',' | ':' | '\\') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// A new `/dev`, built aside because the host's is needed for it.
fn devices(dir: &TaskDir, target: &Path) -> Result<(), StartFailure> {
    let staging = staging(dir, "dev")?;
    for name in DEVICES {
        let (host, own) = (Path::new("/dev").join(name), staging.join(name));
        File::create(&own).map_err(|error| failed("make", &own, &error))?;
        bind(&host, &own, MsFlags::empty())?;
    }
    for (name, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        let own = staging.join(name);
        symlink(to, &own).map_err(|error| failed("make", &own, &error))?;
    }
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    for (kind, name, flags, options) in [
        ("devpts", "pts", quiet, "newinstance,ptmxmode=0666,mode=0620"),
        ("tmpfs", "shm", quiet | MsFlags::MS_NODEV, "mode=1777,size=64m"),
    ] {
        let own = staging.join(name);
        fs::create_dir(&own).map_err(|error| failed("make", &own, &error))?;
        new_mount(kind, &own, flags, options)?;
    }
    mount(Some(&staging), target, NONE, MsFlags::MS_MOVE, NONE)
        .map_err(|errno| failed("mount devices on", target, &errno))
}

fn proc(target: &Path, null: &Path) -> Result<(), StartFailure> {
    new_mount("proc", target, MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, "")?;
    for name in PROC_READ_ONLY {
        read_only(&target.join(name))?;
    }
    for path in PROC_HIDDEN.iter().map(|name| target.join(name)).filter(|path| path.exists()) {
        bind(null, &path, MsFlags::empty())?;
    }
    Ok(())
}

/// The directory that a tmpfs is mounted on; made once.
fn staging_dir(dir: &TaskDir, name: &str) -> Result<PathBuf, StartFailure> {
    let path = dir.file(&format!("mount-{name}"));
    if !path.is_dir() {
        fs::create_dir_all(&path).map_err(|error| failed("make", &path, &error))?;
    }
    Ok(path)
}

/// An empty tmpfs of the task's mount namespace, on a directory of the task's own.
fn staging(dir: &TaskDir, name: &str) -> Result<PathBuf, StartFailure> {
    let path = staging_dir(dir, name)?;
    new_mount("tmpfs", &path, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=0755,size=1m")?;
    Ok(path)
}

fn read_only(path: &Path) -> Result<(), StartFailure> {
    // Not every host has a /boot, nor every kernel each part of /proc; a link leads to what is handled itself.
    if fs::symlink_metadata(path).map_or(true, |metadata| metadata.is_symlink()) {
        return Ok(());
    }
    bind(path, path, MsFlags::MS_REC)?;
    sys::remount_read_only(path).map_err(|error| failed("make read-only", path, &error))
}

fn bind(source: &Path, target: &Path, flags: MsFlags) -> Result<(), StartFailure> {
    mount(Some(source), target, NONE, MsFlags::MS_BIND | flags, NONE)
        .map_err(|errno| failed("mount over", target, &errno))
}

fn new_mount(kind: &str, target: &Path, flags: MsFlags, options: &str) -> Result<(), StartFailure> {
    mount(Some(kind), target, Some(kind), flags, Some(options))
        .map_err(|errno| failed("mount a new file system on", target, &errno))
}

fn failed(action: &str, path: &Path, error: &dyn std::error::Error) -> StartFailure {
    StartFailure::new(StartStage::Namespaces, format!("cannot {action} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_can_t_add_options() {
        assert_eq!(escape(Path::new("/a,upperdir=/b:c\\d")), "/a\\,upperdir=/b\\:c\\\\d");
    }
}
