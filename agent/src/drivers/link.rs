//! Route netlink, as the drivers need it: consistent dumps, acknowledged and counted writes, links by name.
//!
//! A dump that the kernel marks as interrupted (NLM_F_DUMP_INTR: the table changed under it) is taken again; acting on
//! a torn one would remove what was only missed.

mod batch;
mod request;
mod table;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shoal_plan::IfName;

use crate::netns::NetnsError;

pub(crate) use batch::replace_all;
pub use request::{Nl, link_message};
pub use table::{Link, LinkTable};

/// Counts what is written to the kernel: an unchanged node writes nothing.
#[derive(Clone, Debug, Default)]
pub struct Writes(Arc<AtomicU64>);

impl Writes {
    /// One write was done.
    pub fn count(&self) {
        self.add(1);
    }

    /// Several were.
    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What can go wrong with links and what hangs on them.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The kernel refused.
    #[error("cannot {action}")]
    Refused {
        /// What was being done to what.
        action: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The netlink connection is gone.
    #[error("cannot {action}: the netlink connection closed")]
    Closed {
        /// What was being done to what.
        action: String,
    },
    /// The table never stood still.
    #[error("cannot {action}: the table changed under each of {attempts} dumps")]
    Interrupted {
        /// What was being done to what.
        action: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// The kernel lacks the kind of device that it is told to use.
    #[error(
        "cannot make {0}: this kernel has no netkit devices, or none with addresses; set network.netkit to auto or off"
    )]
    NoNetkit(IfName),
    /// A link that something else needs is not there.
    #[error("link {0} is not there")]
    Missing(IfName),
    /// A link has our name and is not ours.
    #[error("link {name} exists and is not shoal's (its alias is '{alias}'); rename or remove it")]
    Foreign {
        /// Its name.
        name: IfName,
        /// Its alias.
        alias: String,
    },
    /// A namespace could not be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A kernel parameter or file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl LinkError {
    /// Whether trying again later may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Foreign { .. } => false,
            Self::Netns(error) => error.is_retryable(),
            _ => true,
        }
    }

    /// The error number, if the kernel said one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } | Self::File { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
