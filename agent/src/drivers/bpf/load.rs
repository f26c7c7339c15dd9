//! Loading, pinning, adopting and removing the data plane.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use aya::maps::{Array, IterableMap, MapData};
use aya::programs::SchedClassifier;
use aya::sys::SyscallError;
use aya::{Ebpf, EbpfLoader};
use shoal_ebpf_common::ABI_VERSION;
use shoal_ebpf_common::reason::Program;
use shoal_ebpf_common::values::{Parked, ServiceVal};

use super::carry::{self, Moment};
use super::pod::Plain;
use super::slots::Slots;
use super::table::{Table, map_error, open_map};
use super::totals::TOTALS;
use super::window::Window;
use super::{BpfConfig, BpfDriver, BpfError, OBJECT, connect, pins, sys};

/// Every map, by the name it has in the object and on bpffs.
pub(super) const MAPS: [&str; 29] = [
    "CONFIG",
    "PORTS",
    "SERVICES",
    "SLOTS",
    "ENDPOINTS",
    "LOCAL",
    "ROUTERS",
    "MEMBERS",
    "LOCAL_ADDRS",
    "DOORS",
    "OUTWARD",
    "TASK_IFS",
    "VIPS",
    "CLIENTS",
    "PEER_NAMES",
    "CONNECTS",
    "BALANCER_IFS",
    "TUNNELS",
    "PEERS",
    "BULK",
    "FLOWS",
    "REPLIES",
    TOTALS,
    "PARKED",
    "PROPOSED",
    "DROPS",
    "STATS",
    "CONNECTIONS",
    EPOCH,
];

/// What programs remember of some tables, they remember under this number.
const EPOCH: &str = "EPOCH";

/// Where the table of each service begins, and how many slots it has.
type Regions = BTreeMap<u64, (u32, u32)>;

/// What opening found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Nothing, or programs of another build: the object was loaded.
    Loaded {
        /// Attachments whose program was replaced in place.
        replaced: usize,
    },
    /// This build's programs and maps: nothing was written.
    Adopted,
}

/// Where things are pinned.
#[derive(Clone, Debug)]
pub(crate) struct Dirs {
    pub(crate) base: PathBuf,
    pub(crate) generation: PathBuf,
    pub(crate) maps: PathBuf,
    pub(crate) programs: PathBuf,
    pub(crate) links: PathBuf,
    pub(crate) groups: PathBuf,
}

impl Dirs {
    fn new(base: &Path) -> Self {
        let mut hasher = DefaultHasher::new();
        OBJECT.hash(&mut hasher);
        let generation = base.join(format!("gen-{ABI_VERSION}"));
        Self {
            base: base.to_owned(),
            maps: generation.join("maps"),
            programs: generation.join(format!("progs-{:016x}", hasher.finish())),
            links: generation.join("links"),
            groups: generation.join("groups"),
            generation,
        }
    }

    /// Makes those that are not there.
    pub(super) fn make(&self) -> io::Result<()> {
        [&self.maps, &self.programs, &self.links, &carry::mark(&self.generation)]
            .into_iter()
            .try_for_each(fs::create_dir_all)
    }

    pub(crate) fn collector(&self) -> PathBuf {
        self.programs.join(COLLECTOR)
    }

    pub(crate) fn program(&self, program: Program) -> PathBuf {
        self.programs.join(program.name())
    }
}

impl BpfDriver {
    /// Opens the data plane: adopts what is pinned if it is this build's, else loads the object over the maps that
    /// exist and replaces the program of each attachment in place, so that no packet misses one.
    pub fn open(config: &BpfConfig) -> Result<(Self, Opened), BpfError> {
        let dirs = Dirs::new(&config.dir);
        let directory = |source| BpfError::Directory { path: config.dir.clone(), source };
        sys::ensure_bpffs(&config.dir).map_err(directory)?;
        pins::recover(&dirs)?;
        let complete = MAPS.iter().all(|map| dirs.maps.join(map).exists())
            && Program::ALL.iter().all(|&program| dirs.program(program).exists())
            && dirs.collector().exists();
        if !complete {
            dirs.make().map_err(directory)?;
            load(config, &dirs)?;
        }
        let mut driver = Self::adopt(dirs, config)?;
        driver.carry_all()?;
        let replaced = driver.replace_programs()?;
        driver.remove_old_programs()?;
        let opened = if complete { Opened::Adopted } else { Opened::Loaded { replaced } };
        Ok((driver, opened))
    }

    /// Opens pinned maps.
    fn adopt(dirs: Dirs, config: &BpfConfig) -> Result<Self, BpfError> {
        let maps = &dirs.maps;
        let epoch = epoch(maps)?;
        let services = Table::open(maps, "SERVICES")?;
        let slots = typed(maps, "SLOTS")?;
        let (free_slots, regions) = regions(&services, aya::maps::Array::len(&slots))?;
        let open = |name: &'static str| {
            let opened = MapData::from_pin(maps.join(name));
            Ok((name, opened.map_err(|source| map_error(name, "open", source))?))
        };
        let all = MAPS.iter().copied().map(open).collect::<Result<Vec<_>, BpfError>>()?;
        Ok(Self {
            ports: Table::open(maps, "PORTS")?,
            endpoints: Table::open(maps, "ENDPOINTS")?.under(&epoch),
            local: Table::open(maps, "LOCAL")?,
            routers: Table::open(maps, "ROUTERS")?,
            members: Table::open(maps, "MEMBERS")?,
            local_addrs: Table::open(maps, "LOCAL_ADDRS")?,
            doors: Table::open(maps, "DOORS")?,
            outward: Table::open(maps, "OUTWARD")?,
            task_ifs: Table::open(maps, "TASK_IFS")?.under(&epoch),
            vips: Table::open(maps, "VIPS")?,
            clients: Table::open(maps, "CLIENTS")?,
            balancer_ifs: Table::open(maps, "BALANCER_IFS")?,
            tunnels: Table::open(maps, "TUNNELS")?,
            peers: Table::open(maps, "PEERS")?.under(&epoch),
            flows: Table::open(maps, "FLOWS")?,
            replies: Table::open(maps, "REPLIES")?,
            proposed: typed(maps, "PROPOSED")?,
            config: typed(maps, "CONFIG")?,
            drops: typed(maps, "DROPS")?,
            stats: typed(maps, "STATS")?,
            connects: typed(maps, "CONNECTS")?,
            connections: typed(maps, "CONNECTIONS")?,
            totals: typed(maps, TOTALS)?,
            told: super::totals::Told::default(),
            services,
            slots,
            free_slots,
            regions,
            slot_writes: 0,
            withdrawn: std::collections::BTreeSet::new(),
            gone: std::collections::BTreeSet::new(),
            maps: all,
            seen: AtomicUsize::new(0),
            hooks: connect::are_loaded(&dirs),
            opened: config.clone(),
            dirs,
        })
    }

    /// Takes everything out of the kernel: attachments first, then programs and maps, of every ABI version, and the
    /// bpffs if it was mounted just for them.
    pub fn remove_all(self) -> Result<(), BpfError> {
        for attachment in self.attached()? {
            self.detach(attachment.ifindex, attachment.program)?;
        }
        let base = self.dirs.base.clone();
        let error = |action, source| BpfError::Pin { path: base.clone(), action, source };
        for entry in fs::read_dir(&base).map_err(|source| error("list", source))? {
            let entry = entry.map_err(|source| error("list", source))?;
            if entry.file_name().to_string_lossy().starts_with("gen-") {
                remove_tree(&entry.path())?;
            }
        }
        sys::release_bpffs(&base).map_err(|source| error("release", source))
    }

    /// Brings over the flows of daemons with other map layouts, whose programs carry packets until this one's are attached.
    fn carry_all(&mut self) -> Result<(), BpfError> {
        for generation in self.other_generations()? {
            self.carry(&generation, Moment::Before)?;
        }
        Ok(())
    }

    /// Directories of daemons with other map layouts.
    fn other_generations(&self) -> Result<Vec<PathBuf>, BpfError> {
        let base = &self.dirs.base;
        let error = |source| BpfError::Pin { path: base.clone(), action: "list", source };
        let mut found = Vec::new();
        for entry in fs::read_dir(base).map_err(error)? {
            let path = entry.map_err(error)?.path();
            let is_layout = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("gen-"));
            if is_layout && path != self.dirs.generation {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// Removes what daemons with other map layouts left: to be called once this one's programs are attached, as theirs
    /// carry packets until then. What flows they have taken on since this one opened the maps is brought over before. (A
    /// clsact filter was replaced by the one attached in its place.) Returns whether there was any.
    pub fn remove_other_layouts(&mut self) -> Result<bool, BpfError> {
        let others = self.other_generations()?;
        for generation in &others {
            self.carry(generation, Moment::After)?;
            remove_tree(generation)?;
        }
        Ok(!others.is_empty())
    }

    /// Where a program of this build is pinned.
    pub fn program_pin(&self, program: Program) -> PathBuf {
        self.dirs.program(program)
    }

    /// Removes programs of other builds.
    fn remove_old_programs(&self) -> Result<(), BpfError> {
        let pin_error = |source| BpfError::Pin { path: self.dirs.generation.clone(), action: "list", source };
        for entry in fs::read_dir(&self.dirs.generation).map_err(pin_error)? {
            let entry = entry.map_err(pin_error)?;
            if entry.file_name().to_string_lossy().starts_with("progs-") && entry.path() != self.dirs.programs
            {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn typed<T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(
    maps: &Path,
    name: &'static str,
) -> Result<T, BpfError> {
    open_map(maps, name)?.try_into().map_err(|source| map_error(name, "open", source))
}

/// The number itself. It is raised at once: who wrote before may have been stopped between a write and this.
fn epoch(maps: &Path) -> Result<Arc<Window>, BpfError> {
    let map: Array<MapData, u64> = typed(maps, EPOCH)?;
    let fd = IterableMap::<u32, u64>::map(&map).fd().as_fd();
    let window = Window::open(fd, 0, 1)
        .map_err(|io_error| map_error(EPOCH, "open", SyscallError { call: "mmap", io_error }.into()))?;
    window.raise();
    Ok(Arc::new(window))
}

/// Which slots no service uses, and which region each service has. One that claims slots of another's was changed by
/// somebody, and has none.
fn regions(services: &Table<u64, ServiceVal>, capacity: u32) -> Result<(Slots, Regions), BpfError> {
    let (mut slots, mut regions) = (Slots::new(capacity), Regions::new());
    for (id, service) in services.dump()? {
        if slots.reserve(service.base, service.len) {
            regions.insert(id, (service.base, service.len));
        } else {
            tracing::warn!(service = id, "its table is not its own: it is made anew");
        }
    }
    Ok((slots, regions))
}

/// The program that removes flows, which is attached nowhere.
pub(super) const COLLECTOR: &str = "flow_gc";

pub(super) fn load(config: &BpfConfig, dirs: &Dirs) -> Result<(), BpfError> {
    // Flows that have only begun may take a quarter of the tables.
    let cpus = aya::util::nr_cpus().map_err(|(path, source)| BpfError::Load {
        program: None,
        source: format!("count the CPUs: {path}: {source}").into(),
    })?;
    let cpus = u32::try_from(cpus).unwrap_or(1).max(1);
    let places = match dirs.maps.join("PARKED") {
        // It is used as it is.
        pin if pin.exists() => typed::<Array<MapData, Plain<Parked>>>(&dirs.maps, "PARKED")?.len() / cpus,
        _ => (config.flow_entries / 4 / cpus).max(1),
    };
    let mut object = EbpfLoader::new()
        .default_map_pin_directory(&dirs.maps)
        .map_max_entries("FLOWS", config.flow_entries)
        .map_max_entries("REPLIES", config.flow_entries)
        .map_max_entries("PARKED", places * cpus)
        .override_global("PLACES", &places, true)
        .map_max_entries("SLOTS", config.slot_entries)
        .map_max_entries("ENDPOINTS", config.endpoint_entries)
        .map_max_entries(TOTALS, config.endpoint_entries)
        .load(OBJECT)
        .map_err(|source| BpfError::Load { program: None, source: Box::new(source) })?;
    for &program in Program::ALL {
        let path = dirs.program(program);
        if !path.exists() {
            load_program(&mut object, program.name(), &path)
                .map_err(|source| BpfError::Load { program: Some(program.name()), source })?;
        }
    }
    let path = dirs.collector();
    if !path.exists() {
        load_program(&mut object, COLLECTOR, &path)
            .map_err(|source| BpfError::Load { program: Some(COLLECTOR), source })?;
    }
    if let Err(error) = connect::load(&mut object, dirs) {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(
            error,
            "no programs at control groups: packets to virtual IPs are translated one by one"
        );
    }
    Ok(())
}

fn load_program(
    object: &mut Ebpf,
    name: &'static str,
    path: &Path,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let program = object.program_mut(name).ok_or("the object has no such program")?;
    let classifier: &mut SchedClassifier = program.try_into()?;
    classifier.load()?;
    classifier.pin(path)?;
    Ok(())
}

/// Removes a directory of pins. (On bpffs, removing a pin drops the kernel's reference to the object.)
pub(super) fn remove_tree(path: &Path) -> Result<(), BpfError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(BpfError::Pin { path: path.to_owned(), action: "remove", source }),
    }
}
