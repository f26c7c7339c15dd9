//! The programs at the control group of the node's tasks: they lead connections to virtual IPs to endpoints.
//!
//! They are extras: where the kernel takes none of them, or there is no unified hierarchy of control groups, packets to
//! virtual IPs are translated one by one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::CgroupSockAddr;

use super::{BpfDriver, BpfError, load, sys};

/// A program at a control group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hook {
    name: &'static str,
    /// `BPF_CGROUP_*` of `linux/bpf.h`.
    kind: u32,
}

/// Names before connections: a socket that was led shall always be told the virtual IP.
const HOOKS: [Hook; 4] = [
    Hook { name: "getpeername4", kind: 29 },
    Hook { name: "getpeername6", kind: 30 },
    Hook { name: "connect4", kind: 10 },
    Hook { name: "connect6", kind: 11 },
];

/// How the programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connecting {
    /// Not at all.
    Off,
    /// In part, by another build, or at a control group that is gone.
    Partly,
    /// Each at the control group, and this build's.
    Whole,
}

/// Loads and pins the programs, or none of them.
pub(super) fn load(object: &mut Ebpf, dirs: &load::Dirs) -> Result<(), BpfError> {
    for hook in HOOKS {
        let path = dirs.programs.join(hook.name);
        if path.exists() {
            continue;
        }
        let loaded = (|| -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            let program = object.program_mut(hook.name).ok_or("the object has no such program")?;
            let program: &mut CgroupSockAddr = program.try_into()?;
            program.load()?;
            program.pin(&path)?;
            Ok(())
        })();
        if let Err(source) = loaded {
            for hook in HOOKS {
                remove(&dirs.programs.join(hook.name))?;
            }
            return Err(BpfError::Load { program: Some(hook.name), source });
        }
    }
    Ok(())
}

impl BpfDriver {
    /// Whether the kernel has taken the programs.
    pub fn can_lead_connections(&self) -> bool {
        are_loaded(&self.dirs)
    }

    /// How the programs are attached to a control group, by its directory.
    pub fn connecting(&self, group: &Path) -> Result<Connecting, BpfError> {
        let id = match fs::metadata(group) {
            Ok(metadata) => Some(metadata.ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(pin_error("examine", group)(error)),
        };
        let (mut pinned, mut whole) = (0, 0);
        for hook in HOOKS {
            if let Some((_, link)) = self.group_link(hook)? {
                pinned += 1;
                whole += usize::from(id == Some(link.group) && self.hook_id(hook)? == Some(link.program));
            }
        }
        Ok(match (pinned, whole) {
            (0, _) => Connecting::Off,
            (_, whole) if whole == HOOKS.len() => Connecting::Whole,
            _ => Connecting::Partly,
        })
    }

    /// Attaches the programs to a control group, which is made if it isn't there. Returns whether it wrote.
    pub fn lead_connections(&self, group: &Path) -> Result<bool, BpfError> {
        fs::create_dir_all(group).map_err(pin_error("make", group))?;
        let directory = fs::File::open(group).map_err(pin_error("open", group))?;
        let id = directory.metadata().map_err(pin_error("examine", group))?.ino();
        fs::create_dir_all(&self.dirs.groups).map_err(pin_error("make", &self.dirs.groups))?;
        let mut wrote = false;
        for hook in HOOKS {
            let pin = self.dirs.groups.join(hook.name);
            let error =
                |source: io::Error| BpfError::Group { program: hook.name, group: group.to_owned(), source };
            let program = self.hook_program(hook)?;
            let wanted = sys::program_id(program.as_fd()).map_err(error)?;
            match self.group_link(hook)? {
                Some((_, link)) if link.group == id && link.program == wanted => continue,
                Some((fd, link)) if link.group == id => {
                    sys::link_update(fd.as_fd(), program.as_fd()).map_err(error)?;
                }
                gone => {
                    if gone.is_some() {
                        remove(&pin)?;
                    }
                    let link =
                        sys::cgroup_attach(program.as_fd(), directory.as_fd(), hook.kind).map_err(error)?;
                    sys::object_pin(link.as_fd(), &pin).map_err(pin_error("make", &pin))?;
                }
            }
            wrote = true;
        }
        Ok(wrote)
    }

    /// Takes the programs from their control group. Connections that they led go on. Returns whether there were any.
    pub fn leave_connections(&self) -> Result<bool, BpfError> {
        let mut removed = false;
        // Connections before names, the reverse of attaching.
        for hook in HOOKS.iter().rev() {
            removed |= remove(&self.dirs.groups.join(hook.name))?;
        }
        Ok(removed)
    }

    /// Connections that were led to an endpoint, by family.
    pub fn connects(&self) -> Result<BTreeMap<&'static str, u64>, BpfError> {
        let read = |(index, family)| Ok((family, super::counters::sum(&self.connects, "CONNECTS", index)?));
        [(0, "ipv4"), (1, "ipv6")].into_iter().map(read).collect()
    }

    fn group_link(&self, hook: Hook) -> Result<Option<(OwnedFd, sys::GroupLink)>, BpfError> {
        let path = self.dirs.groups.join(hook.name);
        let Some(fd) = sys::object_get(&path).map_err(pin_error("open", &path))? else { return Ok(None) };
        let link = sys::group_link(fd.as_fd()).map_err(pin_error("read", &path))?;
        Ok(Some((fd, link)))
    }

    fn hook_id(&self, hook: Hook) -> Result<Option<u32>, BpfError> {
        if !self.can_lead_connections() {
            return Ok(None);
        }
        let program = self.hook_program(hook)?;
        sys::program_id(program.as_fd())
            .map(Some)
            .map_err(pin_error("read", &self.dirs.programs.join(hook.name)))
    }

    fn hook_program(&self, hook: Hook) -> Result<OwnedFd, BpfError> {
        let path = self.dirs.programs.join(hook.name);
        let error = pin_error("open", &path);
        match sys::object_get(&path) {
            Ok(Some(program)) => Ok(program),
            Ok(None) => Err(error(io::ErrorKind::NotFound.into())),
            Err(source) => Err(error(source)),
        }
    }
}

/// Whether the programs are pinned.
pub(super) fn are_loaded(dirs: &load::Dirs) -> bool {
    HOOKS.iter().all(|hook| dirs.programs.join(hook.name).exists())
}

fn pin_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> BpfError {
    let path: PathBuf = path.to_owned();
    move |source| BpfError::Pin { path: path.clone(), action, source }
}

/// Removes a pin; `false` if there is none.
fn remove(path: &Path) -> Result<bool, BpfError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(pin_error("remove", path)(error)),
    }
}
