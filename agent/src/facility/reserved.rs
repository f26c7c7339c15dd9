//! Published ports kept from being chosen as a local port by the node's own connections: a reply to such a connection
//! would be taken for a client's packet.
//!
//! The kernel has one set for the whole namespace, and the operator may have ports of his own in it. Which are ours
//! stands in a file, written before a port is added and after one is taken out: a crash in between leaves too many in
//! the file, which takes nothing away from anybody.

use std::fs;
use std::path::{Path, PathBuf};

use shoal_plan::desired::RESERVED_PORTS;
use shoal_plan::ports::{self, PortSet};

use crate::drivers::link::LinkError;
use crate::durable::{self, FileError};

/// What can go wrong with reserved ports.
#[derive(Debug, thiserror::Error)]
pub enum ReservedError {
    /// The kernel's set.
    #[error(transparent)]
    Kernel(#[from] LinkError),
    /// Our own file.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The kernel's set, and which of it is ours.
#[derive(Debug)]
pub struct ReservedPorts {
    kernel: PathBuf,
    path: PathBuf,
    ours: PortSet,
}

impl ReservedPorts {
    /// Reads which are ours from a file.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let text = durable::read(path)?.unwrap_or_default();
        let ours = ports::parse(&String::from_utf8_lossy(&text));
        Ok(Self { kernel: Path::new("/proc/sys").join(RESERVED_PORTS), path: path.to_owned(), ours })
    }

    /// The ports in the kernel's set that are wanted or ours: an operator's other ones are none of our business.
    pub fn observe(&self, wanted: &str) -> Result<String, ReservedError> {
        let relevant = &self.ours | &ports::parse(wanted);
        Ok(ports::format(&(&self.read()? & &relevant)))
    }

    /// Makes the set hold the wanted ports and the operator's. Says whether it was written.
    pub fn ensure(&mut self, wanted: &str) -> Result<bool, ReservedError> {
        let found = self.read()?;
        let others = &found - &self.ours;
        let ours = &ports::parse(wanted) - &others;
        self.note(&self.ours | &ours)?;
        let next = &others | &ours;
        let due = next != found;
        if due {
            let failed = |source| LinkError::File { action: "write", path: self.kernel.clone(), source };
            // Nothing at all would not be written.
            fs::write(&self.kernel, format!("{}\n", ports::format(&next))).map_err(failed)?;
        }
        self.note(ours)?;
        Ok(due)
    }

    /// Takes out what is ours.
    pub fn restore(mut self) -> Result<(), ReservedError> {
        self.ensure("")?;
        Ok(durable::remove(&self.path)?)
    }

    fn read(&self) -> Result<PortSet, LinkError> {
        match fs::read_to_string(&self.kernel) {
            Ok(text) => Ok(ports::parse(&text)),
            Err(source) => Err(LinkError::File { action: "read", path: self.kernel.clone(), source }),
        }
    }

    fn note(&mut self, ours: PortSet) -> Result<(), FileError> {
        if ours != self.ours {
            durable::write(&self.path, ports::format(&ours).as_bytes(), 0o600)?;
            self.ours = ours;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> ReservedPorts {
        let opened = ReservedPorts::open(&dir.join("reserved-ports")).expect("readable");
        ReservedPorts { kernel: dir.join("kernel"), ..opened }
    }

    #[test]
    fn an_operator_s_ports_stay_and_ours_come_and_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let kernel = || fs::read_to_string(dir.path().join("kernel")).expect("there").trim().to_owned();
        let operator = |text: &str| fs::write(dir.path().join("kernel"), text).expect("written");
        operator("80,8000-8100\n");
        let mut reserved = open(dir.path());
        assert_eq!(reserved.observe("443").expect("read"), "");
        assert!(reserved.ensure("80,443,8101").expect("written"));
        assert_eq!(kernel(), "80,443,8000-8101");
        assert_eq!(reserved.observe("80,443,8101").expect("read"), "80,443,8101");
        assert!(!reserved.ensure("80,443,8101").expect("nothing to do"), "written again");
        // Restarted, with another port of the operator's and one of ours taken out by hand.
        operator("80,8000-8101,9000\n");
        let mut reserved = open(dir.path());
        assert_eq!(reserved.observe("80,443,8101").expect("read"), "80,8101");
        assert!(reserved.ensure("80,443,8101").expect("written"));
        assert_eq!(kernel(), "80,443,8000-8101,9000");
        // One that is no longer published, and the operator's that was never ours.
        assert_ne!(reserved.observe("443").expect("read"), "443");
        assert!(reserved.ensure("443").expect("written"));
        assert_eq!(kernel(), "80,443,8000-8100,9000");
        open(dir.path()).restore().expect("restored");
        assert_eq!(kernel(), "80,8000-8100,9000");
        assert!(!dir.path().join("reserved-ports").exists());
    }
}
