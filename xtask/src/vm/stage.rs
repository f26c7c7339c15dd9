//! The host's file system as a guest may see it: read-only, with a few places of its own.
//!
//! All mounts are made in a mount namespace of this process, so they end with it, however it ends.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::Kind;
use super::kernel::Kernel;

/// Where a guest finds what is prepared for it: a directory that every Debian has and hardly anything uses.
const MEETING_PLACE: &str = "media";
/// Devices that user-mode Linux takes from its host.
const DEVICES: [&str; 5] = ["null", "zero", "random", "urandom", "full"];

/// A prepared file system.
pub(super) struct Stage {
    /// In memory, for this run only.
    pub(super) run: PathBuf,
    /// The guest's root.
    pub(super) root: PathBuf,
    /// Where guest and host exchange the command, its streams and its status.
    pub(super) control: PathBuf,
}

/// What is shown to the guest beside the root.
pub(super) struct Shown<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) tools: &'a Path,
    pub(super) out: Option<&'a Path>,
    /// Directories that the guest must see although they may not be on the root's file system.
    pub(super) places: &'a [PathBuf],
}

impl Stage {
    /// Leaves the host's mount namespace for good; may be called once, and before any thread is started.
    pub(super) fn set(base: &Path, kind: Kind, shown: &Shown<'_>) -> anyhow::Result<Self> {
        let run = base.join("run");
        fs::create_dir_all(&run)?;
        unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace (this needs root)")?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .context("making mounts private")?;
        memory(&run, "mode=755")?;
        let stage = Self { root: run.join("root"), control: run.join("ctl"), run };
        let out = stage.run.join("out");
        for directory in [&stage.root, &stage.control, &out] {
            fs::create_dir(directory)?;
        }
        bind(Path::new("/"), &stage.root)?;
        for place in mount_points(shown.places)? {
            let target = stage.root.join(place.strip_prefix("/").unwrap_or(&place));
            bind(&place, &target)?;
            read_only(&target)?;
        }
        let media = stage.root.join(MEETING_PLACE);
        memory(&media, "mode=755")?;
        let shared = [
            ("ctl", stage.control.as_path()),
            ("out", shown.out.unwrap_or(&out)),
            ("mods", &shown.kernel.modules),
            ("tools", shown.tools),
        ];
        for (name, source) in shared {
            let target = media.join(name);
            fs::create_dir(&target)?;
            bind(source, &target)?;
        }
        for name in ["mods", "tools"] {
            read_only(&media.join(name))?;
        }
        if kind == Kind::Uml {
            stage.add_host_parts(&media)?;
        }
        read_only(&stage.root)?;
        Ok(stage)
    }

    /// User-mode Linux is a program of this host: it needs devices, and memory to hold the guest's.
    fn add_host_parts(&self, media: &Path) -> anyhow::Result<()> {
        let shm = media.join("shm");
        fs::create_dir(&shm)?;
        memory(&shm, "mode=1777,size=90%")?;
        let devices = self.root.join("dev");
        memory(&devices, "mode=755")?;
        fs::create_dir(devices.join("shm"))?;
        for name in DEVICES {
            let target = devices.join(name);
            fs::write(&target, "")?;
            bind(&Path::new("/dev").join(name), &target)?;
        }
        Ok(())
    }
}

/// The mount points, other than the root, that show these places.
fn mount_points(places: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let root = fs::metadata("/")?.dev();
    let mut found = Vec::new();
    for place in places {
        let device = fs::metadata(place).with_context(|| place.display().to_string())?.dev();
        if device == root {
            continue;
        }
        let on_device = |path: &&Path| fs::metadata(path).is_ok_and(|metadata| metadata.dev() == device);
        if let Some(point) = place.ancestors().take_while(on_device).last()
            && !found.contains(&point.to_owned())
        {
            found.push(point.to_owned());
        }
    }
    Ok(found)
}

fn memory(target: &Path, options: &str) -> anyhow::Result<()> {
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::empty(), Some(options))
        .with_context(|| format!("a file system in memory on {}", target.display()))
}

fn bind(source: &Path, target: &Path) -> anyhow::Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("showing {} as {}", source.display(), target.display()))
}

fn read_only(target: &Path) -> anyhow::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("making {} read-only", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_on_another_file_system_is_shown_by_its_mount_point() {
        let points = mount_points(&["/".into(), "/proc/self".into(), "/proc".into()]).unwrap();
        assert_eq!(points, [PathBuf::from("/proc")]);
    }
}
