//! The eBPF data plane of a node: programs, maps and attachments, pinned under a bpffs directory.
//!
//! The driver is synchronous and holds no desired state: a reconciler observes (`dump`, [`BpfDriver::services`],
//! [`BpfDriver::attached`]), decides, and calls `upsert`/`remove`/`attach`/`detach`, which write only differences
//! and say whether they wrote. Everything stays in the kernel when the driver is dropped.
//!
//! Layout of the directory, for ABI 7:
//!
//! ```text
//! <dir>/gen-7/maps/<MAP>                  maps, by name
//! <dir>/gen-7/flows-<number>              tells the layout of the flow maps
//! <dir>/gen-7/progs-<hash>/<program>      programs; <hash> is of the embedded object
//! <dir>/gen-7/groups/<program>            links to the control group of the node's tasks
//! <dir>/gen-7/links/<program>@<ifindex>   TCX links (or, on clsact, the attached program as a mark)
//! ```
//!
//! Interface indices and names are those of the calling thread's network namespace.

mod attach;
mod carry;
mod collect;
mod connect;
mod counters;
mod filter;
mod flows;
mod load;
mod pins;
mod pod;
mod services;
mod slots;
mod sys;
mod table;
mod totals;
mod trial;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;

use aya::maps::{Array, MapData, MapError, PerCpuArray, PerCpuHashMap};
use aya::programs::{ProgramError, SchedClassifier};
use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::keys::{ClientKey, DoorKey, FlowKey, LocalKey, PortKey, RouterKey, VipKey};
use shoal_ebpf_common::values::{
    BalancerIf, ClientVal, EndpointVal, FlowVal, LocalVal, NodeConfig, PeerVal, PortVal, Proposal, ReplyVal,
    ServiceVal, TaskIf, VipVal,
};

pub use attach::Attachment;
pub use collect::{Collected, clock};
pub use connect::Connecting;
pub use load::Opened;
pub use pod::Layout;
pub use services::ServiceSpec;
pub use shoal_ebpf_common::reason::{Event, Program, Reason};
pub use table::Table;
pub use totals::Totals;
pub use trial::Trial;

use pod::Plain;
use slots::Slots;

/// The compiled programs.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SHOAL_EBPF_OBJECT_PATH"));

/// Where the data plane lives and how large its maps are.
#[derive(Clone, Debug)]
pub struct BpfConfig {
    /// Directory on a bpffs; one is mounted if there is none.
    pub dir: PathBuf,
    /// Flows each of the two flow maps holds. Sizes count when the maps are made, not when they are adopted.
    pub flow_entries: u32,
    /// Slots of all services' tables together, 8 bytes each: 251 for a service of 8 to 15 endpoints.
    pub slot_entries: u32,
    /// Endpoints, of this node and others.
    pub endpoint_entries: u32,
}

impl BpfConfig {
    /// The defaults, under a directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), flow_entries: 1 << 18, slot_entries: 1 << 22, endpoint_entries: 1 << 17 }
    }
}

/// What went wrong, and with which object.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The directory could not be prepared.
    #[error("prepare bpffs directory {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The object or one of its programs was refused.
    #[error("load the eBPF object{}", program.map(|p| format!(": program {p}")).unwrap_or_default())]
    Load {
        /// The program, if it was one.
        program: Option<&'static str>,
        /// Why; holds the verifier's log.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map could not be opened, read or written.
    #[error("{action} map {map}")]
    Map {
        /// The map.
        map: &'static str,
        /// What was being done.
        action: &'static str,
        /// Why.
        #[source]
        source: Box<MapError>,
    },
    /// A pinned object could not be opened, made or removed.
    #[error("{action} {path}")]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program could not be attached to or detached from a device.
    #[error("{action} {program} at interface {ifindex}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The device.
        ifindex: u32,
        /// What was being done.
        action: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A program could not be attached to a control group.
    #[error("attach {program} to control group {group}")]
    Group {
        /// The program.
        program: &'static str,
        /// The group's directory.
        group: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The slots array has no room for a service's table.
    #[error("no room for a table of {wanted} slots; raise slot_entries and recreate the maps")]
    SlotsFull {
        /// Slots the table needs.
        wanted: u32,
    },
    /// A pinned map does not have the layout this build expects.
    #[error("pinned map {map} has another layout; remove the directory to recreate it")]
    Layout {
        /// The map.
        map: &'static str,
    },
}

impl BpfError {
    /// Whether the same call may succeed later without anything else being changed.
    pub fn is_retryable(&self) -> bool {
        let errno = match self {
            Self::Directory { source, .. } | Self::Pin { source, .. } | Self::Group { source, .. } => {
                source.raw_os_error()
            }
            Self::Map { source, .. } => match source.as_ref() {
                MapError::SyscallError(error) => error.io_error.raw_os_error(),
                _ => None,
            },
            Self::Attach { source, .. } => {
                source.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error)
            }
            // Regions come back when other services shrink.
            Self::SlotsFull { .. } => return true,
            Self::Load { .. } | Self::Layout { .. } => None,
        };
        matches!(errno, Some(libc::EAGAIN | libc::EBUSY | libc::EINTR | libc::ENOMEM | libc::ENODEV))
    }
}

/// The node's data plane.
pub struct BpfDriver {
    /// Published ports.
    pub ports: Table<PortKey, PortVal>,
    /// Attachments that can be chosen, by their cluster-wide 64-bit id.
    pub endpoints: Table<u64, EndpointVal>,
    /// Tasks of this node behind each VXLAN device.
    pub local: Table<LocalKey, LocalVal>,
    /// Router endpoints of the other nodes.
    pub routers: Table<RouterKey, u32>,
    /// Addresses tunnel packets may come from.
    pub members: Table<Addr, u32>,
    /// Addresses of this node at which published ports answer, with the numbers that other nodes know them by (1 to 63; 0:
    /// none).
    pub local_addrs: Table<Addr, u32>,
    /// Addresses of other nodes that this one may answer from.
    pub doors: Table<DoorKey, Addr>,
    /// Devices by which this node may answer clients of others itself.
    pub outward: Table<u32, u32>,
    /// What each task veth may send, by the host side's interface index.
    pub task_ifs: Table<u32, TaskIf>,
    /// Virtual IPs.
    pub vips: Table<VipKey, VipVal>,
    /// The networks of this node's tasks, by the cookies of their namespaces.
    pub clients: Table<ClientKey, ClientVal>,
    /// Legs of balancers into their networks, by the host side's interface index.
    pub balancer_ifs: Table<u32, BalancerIf>,
    /// Networks whose tunnel packets the programs open: VXLAN device by VNI.
    pub tunnels: Table<u32, u32>,
    /// How frames get to tasks and routers elsewhere.
    pub peers: Table<LocalKey, PeerVal>,
    pub(crate) services: Table<u64, ServiceVal>,
    pub(crate) flows: Table<FlowKey, FlowVal>,
    pub(crate) replies: Table<FlowKey, ReplyVal>,
    pub(crate) proposed: Array<MapData, Plain<Proposal>>,
    pub(crate) slots: Array<MapData, Plain<u64>>,
    pub(crate) free_slots: Slots,
    /// The region that each service's table was given: where it begins, and how many slots.
    pub(crate) regions: BTreeMap<u64, (u32, u32)>,
    /// Slots written and not yet told.
    pub(crate) slot_writes: u64,
    /// UDP ports that were withdrawn and whose flows are still to be purged.
    pub(crate) withdrawn: BTreeSet<u16>,
    /// Endpoints that were removed and whose UDP flows are still to be purged.
    pub(crate) gone: BTreeSet<u64>,
    pub(crate) config: Array<MapData, Plain<NodeConfig>>,
    pub(crate) drops: PerCpuArray<MapData, u64>,
    pub(crate) stats: PerCpuArray<MapData, u64>,
    pub(crate) connects: PerCpuArray<MapData, u64>,
    pub(crate) connections: PerCpuHashMap<MapData, u64, u64>,
    pub(crate) totals: totals::TotalMap,
    pub(crate) told: totals::Told,
    /// Every map, to be pinned again.
    pub(crate) maps: Vec<(&'static str, MapData)>,
    /// Attachments that there were when all were looked at.
    pub(crate) seen: AtomicUsize,
    /// Whether the kernel has taken the programs at control groups.
    pub(crate) hooks: bool,
    /// What it was opened with.
    pub(crate) opened: BpfConfig,
    pub(crate) dirs: load::Dirs,
}

impl BpfDriver {
    /// Whether the kernel has compiled the programs. One that interprets them is faster at what it does itself.
    pub fn is_compiled(&self) -> Result<bool, BpfError> {
        let path = self.program_pin(Program::MeshIngress);
        let info = SchedClassifier::from_pin(&path).and_then(|program| program.info());
        let error = |source: ProgramError| BpfError::Pin {
            path,
            action: "inspect",
            source: io::Error::other(source),
        };
        Ok(info.map_err(error)?.size_jitted() > 0)
    }

    /// What the node is, as the programs see it.
    pub fn config(&self) -> Result<NodeConfig, BpfError> {
        let config = self.config.get(&0, 0).map_err(|source| table::map_error("CONFIG", "read", source))?;
        Ok(config.0)
    }

    /// Sets what the node is. Returns whether it wrote.
    pub fn set_config(&mut self, config: NodeConfig) -> Result<bool, BpfError> {
        if self.config()? == config {
            return Ok(false);
        }
        self.config.set(0, Plain(config), 0).map_err(|source| table::map_error("CONFIG", "write", source))?;
        Ok(true)
    }
}
