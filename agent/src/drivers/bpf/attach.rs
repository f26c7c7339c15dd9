//! Programs at devices: links of netkit devices and TCX links where the kernel has them, else clsact filters.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{SchedClassifier, TcAttachType};
use nix::net::if_::if_indextoname;
use shoal_ebpf_common::reason::Program;

use super::{BpfDriver, BpfError, filter, sys, table};

/// First priority of our filters on a clsact qdisc: one for each program, by which it is found again.
const FILTER_PRIORITY: u16 = 7370;
const FILTER_HANDLE: TcHandle = TcHandle::new(0, 1);
/// The same, as the kernel tells it.
const HANDLE: u32 = 1;

/// So many milliseconds the kernel is given to detach what nobody holds any more.
const DETACHES: u32 = 100;

/// A program at a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The device, in the namespace the attachment was made in.
    pub ifindex: u32,
    /// The program.
    pub program: Program,
}

/// What is pinned for an attachment.
enum Pinned {
    /// A link, and what it says of itself.
    Link(OwnedFd, sys::LinkInfo),
    /// The program of a clsact filter.
    Filter(u32),
}

impl BpfDriver {
    /// Attaches a program to the ingress of a device. Returns whether it wrote.
    pub fn attach(&self, ifindex: u32, program: Program) -> Result<bool, BpfError> {
        let error = |source| attach_error("attach", ifindex, program, source);
        let at = Attachment { ifindex, program };
        let pinned = self.pinned(at)?;
        if let Some(pinned) = pinned {
            if is_alive(&pinned, at).map_err(|e| error(Box::new(e)))? {
                return self.replace(at, &pinned);
            }
            self.unpin(at)?;
        }
        let fd = self.program(program)?;
        match link_attach(fd.as_fd(), at) {
            Ok(link) => {
                sys::object_pin(link.as_fd(), &self.pin(at)).map_err(|e| error(Box::new(e)))?;
            }
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                self.attach_filter(at).map_err(error)?;
                sys::object_pin(fd.as_fd(), &self.pin(at)).map_err(|e| error(Box::new(e)))?;
            }
            Err(e) => return Err(error(Box::new(e))),
        }
        Ok(true)
    }

    /// Detaches a program from a device. Returns whether it was attached.
    pub fn detach(&self, ifindex: u32, program: Program) -> Result<bool, BpfError> {
        let at = Attachment { ifindex, program };
        let Some(pinned) = self.pinned(at)? else { return Ok(false) };
        let error = |source| attach_error("detach", ifindex, program, source);
        if matches!(pinned, Pinned::Filter(_)) && is_alive(&pinned, at).map_err(|e| error(Box::new(e)))? {
            detach_filter(ifindex, program).map_err(error)?;
        }
        self.unpin(at)?;
        Ok(true)
    }

    /// The live attachments that run this build's programs. Marks of those that are gone, with their devices or by
    /// somebody's doing, are cleared away on the way.
    pub fn attached(&self) -> Result<BTreeSet<Attachment>, BpfError> {
        let mut attached = BTreeSet::new();
        let mut ids = BTreeMap::new();
        for at in self.pins()? {
            let error = |e| attach_error("inspect", at.ifindex, at.program, Box::new(e));
            match self.pinned(at)? {
                Some(pinned) if is_alive(&pinned, at).map_err(error)? => {
                    let ours = match ids.entry(at.program) {
                        Entry::Vacant(entry) => *entry.insert(self.program_id(at.program)?),
                        Entry::Occupied(entry) => *entry.get(),
                    };
                    if ours.is_none_or(|ours| ours == pinned.program()) {
                        attached.insert(at);
                    }
                }
                Some(_) => self.unpin(at)?,
                None => {}
            }
        }
        self.seen.store(self.pins()?.len(), Ordering::Relaxed);
        Ok(attached)
    }

    /// Whether an attachment that is pinned is still there, as far as that is quickly told: who takes a filter away is told
    /// of by the kernel.
    pub(super) fn is_linked(&self, at: Attachment) -> Result<bool, BpfError> {
        Ok(match self.pinned(at)? {
            Some(Pinned::Link(_, info)) => info.is_alive(at.ifindex),
            Some(Pinned::Filter(_)) => true,
            None => false,
        })
    }

    /// The id of this build's program; none if it is not pinned any more.
    fn program_id(&self, program: Program) -> Result<Option<u32>, BpfError> {
        let path = self.dirs.program(program);
        let error = |source| BpfError::Pin { path: path.clone(), action: "read", source };
        let Some(fd) = sys::object_get(&path).map_err(error)? else { return Ok(None) };
        sys::program_id(fd.as_fd()).map(Some).map_err(error)
    }

    /// Makes every attachment run this build's program. Returns how many were replaced.
    pub(crate) fn replace_programs(&self) -> Result<usize, BpfError> {
        let mut replaced = 0;
        for at in self.pins()? {
            let error = |e| attach_error("inspect", at.ifindex, at.program, Box::new(e));
            if let Some(pinned) = self.pinned(at)?
                && is_alive(&pinned, at).map_err(error)?
            {
                replaced += usize::from(self.replace(at, &pinned)?);
            }
        }
        Ok(replaced)
    }

    /// Replaces an attachment's program atomically if it is not this build's.
    fn replace(&self, at: Attachment, pinned: &Pinned) -> Result<bool, BpfError> {
        let error = |source| attach_error("replace", at.ifindex, at.program, source);
        let fd = self.program(at.program)?;
        let wanted = sys::program_id(fd.as_fd()).map_err(|e| error(Box::new(e)))?;
        match pinned {
            Pinned::Link(_, info) if info.program == wanted => Ok(false),
            Pinned::Filter(program) if *program == wanted => Ok(false),
            Pinned::Link(link, _) => {
                sys::link_update(link.as_fd(), fd.as_fd()).map_err(|e| error(Box::new(e)))?;
                Ok(true)
            }
            Pinned::Filter(_) => {
                self.attach_filter(at).map_err(error)?;
                self.unpin(at)?;
                sys::object_pin(fd.as_fd(), &self.pin(at)).map_err(|e| error(Box::new(e)))?;
                Ok(true)
            }
        }
    }

    /// Puts our filter on the device's clsact qdisc, or replaces the program of the one there.
    fn attach_filter(&self, at: Attachment) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let name = interface_name(at.ifindex)?;
        // It exists already more often than not; if it could not be made, attaching says so.
        drop(qdisc_add_clsact(&name));
        let mut classifier = SchedClassifier::from_pin(self.dirs.program(at.program))?;
        let options = NlOptions { priority: priority(at.program), handle: FILTER_HANDLE, classid: None };
        let attached =
            classifier.attach_with_options(&name, TcAttachType::Ingress, TcAttachOptions::Netlink(options));
        let id = match attached {
            Ok(id) => id,
            Err(_) => classifier.attach_to_link(our_filter(&name, at.program)?)?,
        };
        // Dropping the link would detach the filter; it is found again by priority and handle.
        std::mem::forget(classifier.take_link(id)?);
        Ok(())
    }

    fn program(&self, program: Program) -> Result<OwnedFd, BpfError> {
        let path = self.dirs.program(program);
        match sys::object_get(&path) {
            Ok(Some(fd)) => Ok(fd),
            Ok(None) => Err(BpfError::Pin { path, action: "open", source: io::ErrorKind::NotFound.into() }),
            Err(source) => Err(BpfError::Pin { path, action: "open", source }),
        }
    }

    fn pin(&self, at: Attachment) -> PathBuf {
        self.dirs.links.join(format!("{}@{}", at.program.name(), at.ifindex))
    }

    fn unpin(&self, at: Attachment) -> Result<(), BpfError> {
        let path = self.pin(at);
        fs::remove_file(&path).map_err(|source| BpfError::Pin { path, action: "remove", source })?;
        self.seen.store(self.seen.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
        Ok(())
    }

    /// What our pins name, alive or not.
    pub(super) fn pins(&self) -> Result<Vec<Attachment>, BpfError> {
        let error = |source| BpfError::Pin { path: self.dirs.links.clone(), action: "list", source };
        let mut pins = Vec::new();
        let entries = match fs::read_dir(&self.dirs.links) {
            Ok(entries) => entries,
            // Somebody has removed the directory.
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(pins),
            Err(source) => return Err(error(source)),
        };
        for entry in entries {
            let name = entry.map_err(error)?.file_name();
            if let Some(at) = name.to_str().and_then(parse_pin) {
                pins.push(at);
            }
        }
        Ok(pins)
    }

    fn pinned(&self, at: Attachment) -> Result<Option<Pinned>, BpfError> {
        let path = self.pin(at);
        let error = |source| BpfError::Pin { path: path.clone(), action: "read", source };
        let Some(fd) = sys::object_get(&path).map_err(error)? else { return Ok(None) };
        match sys::link_info(fd.as_fd()).map_err(error)? {
            Some(info) => Ok(Some(Pinned::Link(fd, info))),
            None => Ok(Some(Pinned::Filter(sys::program_id(fd.as_fd()).map_err(error)?))),
        }
    }
}

fn parse_pin(name: &str) -> Option<Attachment> {
    let (program, ifindex) = name.split_once('@')?;
    let program = Program::ALL.iter().copied().find(|candidate| candidate.name() == program)?;
    Some(Attachment { ifindex: ifindex.parse().ok()?, program })
}

impl Pinned {
    /// The id of the program that is attached.
    const fn program(&self) -> u32 {
        match self {
            Self::Link(_, info) => info.program,
            Self::Filter(program) => *program,
        }
    }
}

/// Attaches a program, if it has to be once that is detached which has just lost its pin: the kernel does it a moment later,
/// and until then says that the program is there.
fn link_attach(program: BorrowedFd<'_>, at: Attachment) -> io::Result<OwnedFd> {
    let mut waited = 0;
    loop {
        match link_once(program, at) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) && waited < DETACHES => table::rest(),
            result => return result,
        }
        waited += 1;
    }
}

/// What a task sends over a netkit device is met where it is sent; everything else where it is received.
fn link_once(program: BorrowedFd<'_>, at: Attachment) -> io::Result<OwnedFd> {
    if at.program == Program::TaskTx {
        match sys::netkit_attach(program, at.ifindex) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::EINVAL)) => {}
            result => return result,
        }
    }
    sys::tcx_attach(program, at.ifindex)
}

/// Whether what is pinned is still attached.
fn is_alive(pinned: &Pinned, at: Attachment) -> io::Result<bool> {
    match pinned {
        // A link outlives its device, and being detached, and then names none.
        Pinned::Link(_, info) => Ok(info.is_alive(at.ifindex)),
        // The pin is a mark, and outlives the filter.
        Pinned::Filter(program) => {
            let filters = filter::at(at.ifindex)?;
            Ok(filters.iter().any(|found| {
                (found.priority, found.program) == (priority(at.program), *program) && found.handle == HANDLE
            }))
        }
    }
}

/// The name of a device of the calling thread's namespace.
fn interface_name(ifindex: u32) -> io::Result<String> {
    let name = if_indextoname(ifindex)?.into_string().map_err(io::Error::other)?;
    // nix 0.31 returns an empty name for a device that does not exist.
    if name.is_empty() { Err(io::Error::from_raw_os_error(libc::ENODEV)) } else { Ok(name) }
}

fn priority(program: Program) -> u16 {
    match program {
        Program::MeshIngress => FILTER_PRIORITY,
        Program::OverlayRx => FILTER_PRIORITY + 1,
        Program::TaskTx => FILTER_PRIORITY + 2,
        Program::BalancerTx => FILTER_PRIORITY + 3,
        Program::GateTx => FILTER_PRIORITY + 4,
        Program::HostTx => FILTER_PRIORITY + 5,
    }
}

fn our_filter(name: &str, program: Program) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(name, TcAttachType::Ingress, priority(program), FILTER_HANDLE, None)
}

fn detach_filter(ifindex: u32, program: Program) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    use aya::programs::links::Link;
    let name = interface_name(ifindex)?;
    our_filter(&name, program)?.detach()?;
    Ok(())
}

fn attach_error(
    action: &'static str,
    ifindex: u32,
    program: Program,
    source: Box<dyn std::error::Error + Send + Sync>,
) -> BpfError {
    BpfError::Attach { program: program.name(), ifindex, action, source }
}
