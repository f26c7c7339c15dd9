//! All that the reconciler changes on a node, tasks aside, behind one narrow trait: observe, ensure, remove.

mod balancers;
mod carried;
mod clients;
mod engine;
mod former;
mod look;
mod mesh;
mod names;
mod reserved;
mod tables;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use netlink_packet_route::link::InfoKind;
use shoal_plan::desired::RESERVED_PORTS;
use shoal_plan::doors::Addresses;
use shoal_plan::object::{Firewall, Object, Resolver};
use shoal_plan::{Engine, Facts, IfName, Objects, Slice};
use shoal_types::assignment::Assignment;
use shoal_types::lb::LbInUse;
use shoal_types::{LbEngine, NodeId, TaskId};

use crate::drivers::bpf::{self, BpfDriver, BpfError};
use crate::drivers::dns::{DnsDriver, DnsError};
use crate::drivers::egress::{Egress, EgressError};
use crate::drivers::ipvs::IpvsError;
use crate::drivers::link::{Link, LinkError, LinkTable, Writes};
use crate::drivers::overlay::Overlay;
use crate::facts::{self, EgressBook, EgressBookError};
use crate::in_use::InUse;

use balancers::Balancers;
use clients::Clients;
use engine::EngineChoice;
use names::ZoneCache;

pub use former::{FormerError, FormerValues};
pub use reserved::{ReservedError, ReservedPorts};

/// What went wrong with an object.
#[derive(Debug, thiserror::Error)]
pub enum FacilityError {
    /// Links and what hangs on them.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The nftables table.
    #[error(transparent)]
    Egress(#[from] EgressError),
    /// The data plane.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// Virtual services.
    #[error(transparent)]
    Ipvs(#[from] IpvsError),
    /// A task's resolver.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// Kernel parameters.
    #[error(transparent)]
    Former(#[from] FormerError),
    /// Reserved ports.
    #[error(transparent)]
    Reserved(#[from] ReservedError),
    /// The egress network.
    #[error(transparent)]
    EgressBook(#[from] EgressBookError),
}

/// The node as the reconciler sees it.
#[async_trait]
pub trait Facility: Send + 'static {
    /// What only the host can tell, for this assignment.
    async fn facts(&mut self, assignment: &Assignment, node: &NodeId) -> Result<Facts, FacilityError>;

    /// Everything of ours that is there in a slice. `desired` helps to read what the kernel holds only as a digest. Reads in
    /// pieces, between which a look may be given up.
    async fn observe(&mut self, desired: &Objects, look: Look) -> Result<Objects, FacilityError>;

    /// Makes an object, or makes it so.
    async fn ensure(&mut self, object: &Object) -> Result<(), FacilityError>;

    /// Makes many objects of one kind at once, where that is quicker. Returns how many of the first of them are made; the
    /// others are for [`Facility::ensure`] to make, or to say why not.
    async fn ensure_many(&mut self, _objects: &[&Object]) -> usize {
        0
    }

    /// Removes an object; what is gone is removed.
    async fn remove(&mut self, object: &Object) -> Result<(), FacilityError>;

    /// What is done once after the operations of a phase, rather than for each.
    async fn phase_done(&mut self) -> Result<(), FacilityError> {
        Ok(())
    }

    /// What is done now and then, whatever is wanted. Tells what there is in use.
    fn tend(&mut self) -> InUse {
        InUse::default()
    }

    /// Whether something was taken away that nobody tells of, since it was looked at: asked often, so quick to say.
    fn is_touched(&self) -> bool {
        false
    }

    /// Where a task's namespace is.
    fn sandbox_path(&self, task: &TaskId) -> std::path::PathBuf;

    /// The domains that a task tries unqualified names in.
    fn search_domains(&self, task: &TaskId) -> Vec<String>;

    /// Packets that the programs dropped, by reason.
    fn drops(&self) -> BTreeMap<&'static str, u64>;

    /// What each program did with how many packets: program, event, packets.
    fn packets(&self) -> Vec<(&'static str, &'static str, u64)>;

    /// Connections that were led to an endpoint when they were made, by family; `None` while none are led.
    fn connects(&self) -> Option<BTreeMap<&'static str, u64>> {
        None
    }

    /// The addresses of other nodes that an earlier run left in place, by the low half of their routers' addresses.
    fn doors(&self) -> BTreeMap<u32, Addresses> {
        BTreeMap::new()
    }

    /// What balances, as of the last facts.
    fn lb(&self) -> LbInUse;
}

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// At what.
    pub slice: Slice,
    /// Of the few, also at what is costly to read and rarely changes.
    pub thorough: bool,
}

/// The real node.
pub struct HostFacility {
    overlay: Overlay,
    egress: Egress,
    bpf: BpfDriver,
    dns: DnsDriver,
    balancers: Balancers,
    clients: Clients,
    engine: EngineChoice,
    /// Whether the kernel takes the nftables table, once it was asked.
    takes_table: Option<bool>,
    fast_lane: bool,
    book: EgressBook,
    reserved: ReservedPorts,
    former: FormerValues,
    data_addr: std::net::IpAddr,
    mtu: Option<u32>,
    writes: Writes,
    links: LinkTable,
    firewall: Option<Firewall>,
    resolvers: BTreeMap<TaskId, Resolver>,
    zones: ZoneCache,
    /// Of services, whose slots are to be compared.
    turn: tables::Turn,
}

/// The parts of a real node.
pub struct Parts {
    /// Links.
    pub overlay: Overlay,
    /// Masquerade.
    pub egress: Egress,
    /// Data plane.
    pub bpf: BpfDriver,
    /// Resolvers.
    pub dns: DnsDriver,
    /// What the node is to balance by.
    pub lb_engine: LbEngine,
    /// Whether the programs may open and make tunnel packets themselves.
    pub fast_lane: bool,
    /// Whether connections of tasks to virtual IPs are to be led to endpoints; `None`: where the kernel can.
    pub connect_hooks: Option<bool>,
    /// Directory of the control group of the node's tasks in the unified hierarchy, if there is one.
    pub group: Option<PathBuf>,
    /// Egress places.
    pub book: EgressBook,
    /// Published ports among the reserved ones.
    pub reserved: ReservedPorts,
    /// Kernel parameters as they were.
    pub former: FormerValues,
    /// Source address of tunnel packets.
    pub data_addr: std::net::IpAddr,
    /// MTU of the way to the peers, if the operator knows better than the link.
    pub mtu: Option<u32>,
    /// The counter of kernel writes.
    pub writes: Writes,
}

impl HostFacility {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Self {
        let Parts {
            overlay,
            egress,
            bpf,
            dns,
            lb_engine,
            fast_lane,
            connect_hooks,
            group,
            book,
            reserved,
            former,
            data_addr,
            mtu,
            writes,
        } = parts;
        let clients = Clients::new(connect_hooks, group, &bpf);
        Self {
            overlay,
            egress,
            bpf,
            dns,
            balancers: Balancers::new(writes.clone()),
            clients,
            engine: EngineChoice::new(lb_engine),
            takes_table: None,
            fast_lane,
            book,
            reserved,
            former,
            data_addr,
            mtu,
            writes,
            links: LinkTable::default(),
            firewall: None,
            resolvers: BTreeMap::new(),
            zones: ZoneCache::default(),
            turn: tables::Turn::default(),
        }
    }

    /// Ends the resolvers; everything in the kernel stays.
    pub async fn shut_down(&self) {
        self.dns.shutdown().await;
    }

    /// Takes the whole data plane out of the kernel.
    pub async fn tear_down(self) -> Result<(), FacilityError> {
        self.dns.shutdown().await;
        let (reserved, former) = (self.reserved.restore(), self.former.restore());
        self.bpf.remove_all()?;
        reserved?;
        Ok(former?)
    }

    async fn refresh_links(&mut self) -> Result<(), LinkError> {
        self.links = self.overlay.netlink().links().await?;
        Ok(())
    }

    async fn link_index(&mut self, name: &IfName) -> Result<u32, LinkError> {
        if let Some(index) = name.gone_index() {
            return Ok(index);
        }
        if self.links.get(name).is_none() {
            self.refresh_links().await?;
        }
        self.links.index(name)
    }
}

#[async_trait]
impl Facility for HostFacility {
    async fn facts(&mut self, assignment: &Assignment, node: &NodeId) -> Result<Facts, FacilityError> {
        self.refresh_links().await?;
        let addresses = self.overlay.netlink().addresses().await?;
        let egress = self.book.facts(self.overlay.netlink(), &self.links, assignment, node).await?;
        Ok(Facts {
            data_addr: self.data_addr,
            underlay_mtu: self
                .mtu
                .unwrap_or_else(|| facts::underlay_mtu(&self.links, &addresses, self.data_addr)),
            uplinks: facts::uplinks(&self.links, &addresses),
            egress,
            engine: self.choose_engine(assignment)?,
            firewall: self.has_firewall().await,
            fast_lane: self.fast_lane,
            connect_hooks: self.clients.enabled(),
            // Probes tell them.
            peers: Arc::default(),
        })
    }

    async fn observe(&mut self, desired: &Objects, look: Look) -> Result<Objects, FacilityError> {
        if look.slice != Slice::Few {
            return self.look_at_many(look.slice).await;
        }
        let (found, failures) = self.look_at_few(desired, look.thorough).await;
        // Without nft the mesh goes on, and writing the table says what is wrong with it.
        let failure = failures.into_iter().find(|error| !matches!(error, FacilityError::Egress(_)));
        failure.map_or(Ok(found), Err)
    }

    async fn ensure(&mut self, object: &Object) -> Result<(), FacilityError> {
        match object {
            Object::Sysctl(sysctl) if sysctl.path == RESERVED_PORTS => {
                if self.reserved.ensure(&sysctl.value)? {
                    self.writes.count();
                }
            }
            Object::Sysctl(sysctl) => {
                self.former.set(&sysctl.path, &sysctl.value)?;
                self.writes.count();
            }
            Object::Firewall(firewall) => {
                self.egress.ensure(firewall).await?;
                self.firewall = Some(firewall.clone());
            }
            Object::Bridge(bridge) => self.overlay.ensure_bridge(bridge).await?,
            Object::Vxlan(vxlan) => {
                self.overlay.ensure_vxlan(vxlan).await?;
                self.refresh_links().await?;
            }
            Object::Fdb(fdb) => {
                self.link_index(&fdb.link).await?;
                self.overlay.ensure_fdb(&self.links, fdb).await?;
            }
            Object::Neighbor(neighbor) => {
                self.link_index(&neighbor.link).await?;
                self.overlay.ensure_neighbor(&self.links, neighbor).await?;
            }
            Object::Sandbox(sandbox) => self.overlay.ensure_sandbox(sandbox).await?,
            Object::Leg(leg) => {
                self.overlay.ensure_leg(leg).await?;
                self.refresh_links().await?;
            }
            Object::Balancer(balancer) => {
                self.balancers.ensure_balancer(&self.overlay, balancer).await?;
                self.refresh_links().await?;
            }
            Object::Pins => {
                if self.bpf.restore_pins()? {
                    self.writes.count();
                }
            }
            Object::Virtual(service) => self.balancers.ensure(&self.overlay, service)?,
            Object::Resolver(resolver) => self.ensure_resolver(resolver).await?,
            Object::Task(_) => {}
            Object::Client(_) | Object::Connecting(_) => {
                if self.clients.ensure(&self.overlay, &mut self.bpf, object)? {
                    self.writes.count();
                }
            }
            mesh => {
                for name in mesh::links_of(mesh) {
                    self.link_index(name).await?;
                }
                let wrote = mesh::ensure(&mut self.bpf, &self.links, mesh);
                self.writes.add(self.bpf.take_slot_writes());
                if wrote? {
                    self.writes.count();
                }
            }
        }
        Ok(())
    }

    async fn ensure_many(&mut self, objects: &[&Object]) -> usize {
        let made = match objects.first() {
            Some(Object::Fdb(_) | Object::Neighbor(_)) => {
                Overlay::ensure_many(&self.links, objects).map_err(FacilityError::from)
            }
            _ => mesh::ensure_many(&mut self.bpf, &self.links, objects),
        };
        let made = made.unwrap_or_else(|error| {
            tracing::debug!(error = &error as &dyn std::error::Error, "not at once: one by one");
            0
        });
        self.writes.add(u64::try_from(made).unwrap_or(0));
        made
    }

    async fn remove(&mut self, object: &Object) -> Result<(), FacilityError> {
        match object {
            Object::Sysctl(_) | Object::Task(_) | Object::Pins => {}
            Object::Firewall(_) => {
                self.egress.remove().await?;
                self.firewall = None;
            }
            Object::Bridge(bridge) => self.overlay.remove_link(&bridge.name).await?,
            Object::Vxlan(vxlan) => self.overlay.remove_link(&vxlan.name).await?,
            Object::Leg(leg) => self.overlay.remove_link(&leg.host).await?,
            Object::Fdb(fdb) => self.overlay.remove_fdb(&self.links, fdb).await?,
            Object::Neighbor(neighbor) => self.overlay.remove_neighbor(&self.links, neighbor).await?,
            Object::Sandbox(sandbox) => self.overlay.remove_sandbox(sandbox)?,
            Object::Balancer(balancer) => self.balancers.remove_balancer(&self.overlay, balancer).await?,
            Object::Virtual(service) => self.balancers.remove(&self.overlay, service)?,
            Object::Resolver(resolver) => {
                self.dns.remove(resolver.task.as_str()).await;
                self.resolvers.remove(&resolver.task);
            }
            Object::Client(_) | Object::Connecting(_) => {
                if self.clients.remove(&self.overlay, &mut self.bpf, object)? {
                    self.writes.count();
                }
            }
            mesh => {
                if mesh::remove(&mut self.bpf, &self.links, mesh)? {
                    self.writes.count();
                }
            }
        }
        Ok(())
    }

    async fn phase_done(&mut self) -> Result<(), FacilityError> {
        let purged = self.bpf.purge_withdrawn()?;
        if purged > 0 {
            tracing::debug!(purged, "UDP flows of withdrawn ports and removed endpoints");
        }
        Ok(())
    }

    fn tend(&mut self) -> InUse {
        let collected = self.bpf.collect(bpf::clock());
        let counted = collected.and_then(|collected| {
            if collected.proposed > 0 {
                tracing::debug!(?collected, "flows");
            }
            Ok((self.bpf.connections()?, collected))
        });
        let unread = |error: &BpfError| {
            let error = error as &dyn std::error::Error;
            tracing::warn!(error, "flows that ended are not taken away, or flows not counted");
        };
        let counted = counted.inspect_err(unread).ok();
        let maps = self.bpf.fills(counted.as_ref().map_or(0, |(new, _)| new.len()));
        let Some((new, collected)) = counted else { return InUse { maps, ..InUse::default() } };
        let (mut flows, mut endpoints) = (mesh::flows(&new, &collected), mesh::by_endpoint(&collected));
        self.balancers.carried().add_to(&mut flows, &mut endpoints);
        InUse { maps, flows: Some(flows), endpoints }
    }

    fn is_touched(&self) -> bool {
        let touched =
            self.bpf.is_touched().and_then(|touched| Ok(touched || self.clients.is_touched(&self.bpf)?));
        touched.unwrap_or_else(|error| {
            // The next sweep says what is wrong.
            tracing::debug!(error = &error as &dyn std::error::Error, "the attachments can't be looked at");
            false
        })
    }

    fn sandbox_path(&self, task: &TaskId) -> std::path::PathBuf {
        self.overlay.namespaces().root().join(task.as_str())
    }

    /// None for a task that may ask nothing outside: all it would get is refusals.
    fn search_domains(&self, task: &TaskId) -> Vec<String> {
        match self.resolvers.get(task) {
            Some(resolver) if resolver.forward => self.dns.search_domains(),
            _ => Vec::new(),
        }
    }

    fn doors(&self) -> BTreeMap<u32, Addresses> {
        mesh::doors(&self.bpf)
    }

    fn lb(&self) -> LbInUse {
        self.engine.in_force()
    }

    fn packets(&self) -> Vec<(&'static str, &'static str, u64)> {
        match self.bpf.stats() {
            Ok(stats) => stats
                .into_iter()
                .map(|((program, event), packets)| (program.name(), event.name(), packets))
                .collect(),
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "the packet counters can't be read"
                );
                Vec::new()
            }
        }
    }

    fn connects(&self) -> Option<BTreeMap<&'static str, u64>> {
        if !self.clients.enabled() {
            return None;
        }
        let unread = |error: BpfError| {
            let error = &error as &dyn std::error::Error;
            tracing::debug!(error, "the counters of connections can't be read");
        };
        Some(self.bpf.connects().map_err(unread).unwrap_or_default())
    }

    fn drops(&self) -> BTreeMap<&'static str, u64> {
        match self.bpf.drops() {
            Ok(drops) => drops.into_iter().map(|(reason, count)| (reason.name(), count)).collect(),
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "the drop counters can't be read");
                BTreeMap::new()
            }
        }
    }
}

impl HostFacility {
    async fn has_firewall(&mut self) -> bool {
        if let Some(takes) = self.takes_table {
            return takes;
        }
        let takes = self.egress.is_supported().await;
        if !takes {
            tracing::warn!(
                "this kernel has no nftables of family inet: nothing masquerades what tasks send outside"
            );
        }
        self.takes_table = Some(takes);
        takes
    }

    fn choose_engine(&mut self, assignment: &Assignment) -> Result<Engine, FacilityError> {
        let cluster = assignment.cluster().map(|cluster| cluster.lb_engine).unwrap_or_default();
        let (balancers, bpf, overlay) = (&self.balancers, &self.bpf, &self.overlay);
        // While a port or virtual IP leads to them, more flows may come at any time.
        let lingers = || -> Result<bool, FacilityError> {
            if overlay.balancers()?.is_empty() {
                return Ok(false);
            }
            Ok(mesh::leads_to_balancers(bpf)? || balancers.has_connections(overlay)?)
        };
        let is_netkit = |link: &Link| link.kind == Some(InfoKind::Netkit) && link.mark().is_some();
        self.engine.choose(cluster, self.links.iter().any(is_netkit), lingers)
    }

    async fn ensure_resolver(&mut self, resolver: &Resolver) -> Result<(), FacilityError> {
        let zone = Arc::new(self.zones.zone(resolver));
        let path = self.sandbox_path(&resolver.task);
        self.dns.ensure(resolver.task.as_str(), &path, zone).await?;
        self.resolvers.insert(resolver.task.clone(), resolver.clone());
        Ok(())
    }
}
