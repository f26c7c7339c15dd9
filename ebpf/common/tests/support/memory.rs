//! Packets and maps in ordinary memory, behaving as the kernel's do.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;

use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::csum;
use shoal_ebpf_common::fragment::{FragmentKey, FragmentVal};
use shoal_ebpf_common::keys::{ClientKey, DoorKey, FlowKey, LocalKey, PortKey, RouterKey, VipKey};
use shoal_ebpf_common::life;
use shoal_ebpf_common::maglev::{self, Member, Policy};
use shoal_ebpf_common::packet::{Header, Packet};
use shoal_ebpf_common::proxy::Resize;
use shoal_ebpf_common::rewrite::{Cover, PacketMut};
use shoal_ebpf_common::tables::Tables;
use shoal_ebpf_common::values::{
    BalancerIf, ClientVal, EndpointVal, FlowVal, LocalVal, NodeConfig, Parked, PeerVal, PortVal, Proposal,
    ReplyVal, ServiceVal, TaskIf, TotalKey, TotalVal, VipVal,
};
use shoal_ebpf_common::verdict::{IMAGE_AT, Image, Out};

/// A packet without a checksum offload (`CHECKSUM_NONE`), copies of it that were sent, and the device that it can leave by.
pub(crate) struct Buffer(pub(crate) Vec<u8>, pub(crate) Vec<(Out, Vec<u8>)>, pub(crate) Option<u32>);

impl Packet for Buffer {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let offset = usize::try_from(offset).ok()?;
        self.0.get(offset..)?.first_chunk().copied()
    }

    fn load_words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let mut words = [0; N];
        for (word, offset) in words.iter_mut().zip((offset..).step_by(4)) {
            *word = u32::from_ne_bytes(self.load(offset)?);
        }
        Some(words)
    }

    fn length(&self) -> u32 {
        self.0.len().try_into().unwrap()
    }

    fn outward(&self, _header: &Header) -> Option<u32> {
        self.2
    }
}

impl Buffer {
    fn change(&mut self, offset: u32, f: impl Fn(u16) -> u16) -> Option<()> {
        let offset = usize::try_from(offset).ok()?;
        let field = self.0.get_mut(offset..)?.first_chunk_mut::<2>()?;
        *field = f(u16::from_ne_bytes(*field)).to_ne_bytes();
        Some(())
    }
}

impl PacketMut for Buffer {
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        let offset = usize::try_from(offset).ok()?;
        *self.0.get_mut(offset..)?.first_chunk_mut::<N>()? = *bytes;
        Some(())
    }

    fn store_counted<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        self.store(offset, bytes)
    }

    fn begin<const N: usize>(&mut self, image: &Image) -> Option<()> {
        let bytes: Vec<u8> = image.iter().flat_map(|word| word.to_ne_bytes()).skip(IMAGE_AT).collect();
        self.store(0, bytes.first_chunk::<N>()?)
    }

    fn recount(&mut self, _diff: u32) {
        // A device counted nothing.
    }

    fn change_ip_checksum(&mut self, offset: u32, diff: u32) -> Option<()> {
        self.change(offset, |check| csum::update(check, diff))
    }

    fn change_checksum(&mut self, offset: u32, diff: u32, cover: Cover) -> Option<()> {
        self.change(offset, |check| match check {
            0 if cover.optional => 0,
            _ => match csum::update(check, diff) {
                0 if cover.optional => 0xffff,
                changed => changed,
            },
        })
    }
}

impl Resize for Buffer {
    fn resize(&mut self, length: u32) -> Option<()> {
        self.0.resize(usize::try_from(length).ok()?, 0);
        Some(())
    }

    fn send_copy(&mut self, out: Out) {
        self.1.push((out, self.0.clone()));
    }
}

/// Places of the ring of new flows: as many as a plane of the tests in the kernel has for each of two CPUs.
pub(crate) const PLACES: u32 = 512;

/// One map. Values that are looked up live as long as the test, as the kernel's live as long as the program.
pub(crate) struct Map<K, V: 'static>(RefCell<HashMap<K, &'static V>>);

impl<K, V: 'static> Default for Map<K, V> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<K: Eq + Hash + Copy, V: Copy + 'static> Map<K, V> {
    pub(crate) fn set(&self, key: K, value: V) {
        self.0.borrow_mut().insert(key, Box::leak(Box::new(value)));
    }

    pub(crate) fn remove(&self, key: &K) {
        self.0.borrow_mut().remove(key);
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.0.borrow().get(key).copied()
    }

    /// Its keys, in order.
    pub(crate) fn keys(&self) -> Vec<K>
    where
        K: Ord,
    {
        let mut keys: Vec<K> = self.0.borrow().keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    pub(crate) fn len(&self) -> usize {
        self.0.borrow().len()
    }
}

/// The maps.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) config: Map<(), NodeConfig>,
    pub(crate) ports: Map<PortKey, PortVal>,
    pub(crate) services: Map<u64, ServiceVal>,
    pub(crate) slots: Map<u32, u64>,
    pub(crate) endpoints: Map<u64, EndpointVal>,
    pub(crate) local: Map<LocalKey, LocalVal>,
    pub(crate) routers: Map<RouterKey, u32>,
    pub(crate) members: Map<Addr, u32>,
    /// The last number drawn.
    drawn: Cell<u64>,
    pub(crate) local_addrs: Map<Addr, u32>,
    pub(crate) doors: Map<DoorKey, Addr>,
    pub(crate) task_ifs: Map<u32, TaskIf>,
    pub(crate) vips: Map<VipKey, VipVal>,
    pub(crate) clients: Map<ClientKey, ClientVal>,
    pub(crate) balancer_ifs: Map<u32, BalancerIf>,
    pub(crate) tunnels: Map<u32, u32>,
    pub(crate) peers: Map<LocalKey, PeerVal>,
    pub(crate) bulk: Map<u32, ()>,
    pub(crate) flows: Map<FlowKey, FlowVal>,
    pub(crate) replies: Map<FlowKey, ReplyVal>,
    pub(crate) fragments: Map<FragmentKey, FragmentVal>,
    pub(crate) clock: Cell<u32>,
    pub(crate) cursor: Cell<u32>,
    /// Places of the ring of new flows, if not [`PLACES`].
    pub(crate) places: Cell<Option<u32>>,
    pub(crate) parked: Map<u32, Parked>,
    pub(crate) proposals: Map<u32, Proposal>,
    pub(crate) connections: RefCell<HashMap<u64, u64>>,
    pub(crate) totals: Map<TotalKey, TotalVal>,
}

impl Memory {
    /// Writes a service's table, at a place of its own.
    pub(crate) fn set_service(&self, id: u64, endpoints: &[u64], policy: Policy) {
        let seed = 7;
        let members = endpoints.iter().map(|&endpoint| Member { endpoint, weight: 1 }).collect();
        let table = policy.build(&maglev::normalize(members), seed);
        let base = u32::try_from(self.slots.len()).unwrap();
        for (slot, &endpoint) in (base..).zip(&table) {
            self.slots.set(slot, endpoint);
        }
        let len = u32::try_from(table.len()).unwrap();
        self.services
            .set(id, ServiceVal { seed, base, len, policy: policy.number(), ..ServiceVal::default() });
    }
}

impl Tables for Memory {
    fn config(&self) -> Option<&NodeConfig> {
        self.config.get(&())
    }
    fn port(&self, key: &PortKey) -> Option<&PortVal> {
        self.ports.get(key)
    }
    fn service(&self, id: u64) -> Option<&ServiceVal> {
        self.services.get(&id)
    }
    fn slot(&self, index: u32) -> Option<u64> {
        self.slots.get(&index).copied()
    }
    fn endpoint(&self, id: u64) -> Option<&EndpointVal> {
        self.endpoints.get(&id)
    }
    fn local(&self, key: &LocalKey) -> Option<&LocalVal> {
        self.local.get(key)
    }
    fn is_router(&self, key: &RouterKey) -> bool {
        self.routers.get(key).is_some()
    }
    fn is_member(&self, addr: &Addr) -> bool {
        self.members.get(addr).is_some()
    }
    fn is_local_addr(&self, addr: &Addr) -> bool {
        self.local_addrs.get(addr).is_some()
    }
    fn own_door(&self, addr: &Addr) -> u32 {
        self.local_addrs.get(addr).copied().unwrap_or(0)
    }
    fn door(&self, key: &DoorKey) -> Option<&Addr> {
        self.doors.get(key)
    }
    fn task_if(&self, ifindex: u32) -> Option<&TaskIf> {
        self.task_ifs.get(&ifindex)
    }
    fn client(&self, key: &ClientKey) -> Option<&ClientVal> {
        self.clients.get(key)
    }
    fn vip(&self, key: &VipKey) -> Option<&VipVal> {
        self.vips.get(key)
    }
    fn balancer_if(&self, ifindex: u32) -> Option<&BalancerIf> {
        self.balancer_ifs.get(&ifindex)
    }
    fn tunnel(&self, vni: u32) -> Option<u32> {
        self.tunnels.get(&vni).copied()
    }
    fn peer(&self, key: &LocalKey) -> Option<&PeerVal> {
        self.peers.get(key)
    }
    fn is_bulk(&self, slot: u32) -> bool {
        self.bulk.get(&slot).is_some()
    }
    fn note_bulk(&self, slot: u32) {
        self.bulk.set(slot, ());
    }
    fn flow(&self, key: &FlowKey) -> Option<&FlowVal> {
        self.flows.get(key)
    }
    fn reply(&self, key: &FlowKey) -> Option<&ReplyVal> {
        self.replies.get(key)
    }
    fn set_flow(&self, key: &FlowKey, value: &FlowVal) {
        self.flows.set(*key, *value);
    }
    fn set_reply(&self, key: &FlowKey, value: &ReplyVal) {
        self.replies.set(*key, *value);
    }
    fn touch_flow(&self, key: &FlowKey, seen: u32, state: u32) -> bool {
        let Some(known) = self.flows.get(key).copied() else { return false };
        self.flows.set(*key, FlowVal { seen, state, ..known });
        true
    }
    fn touch_reply(&self, key: &FlowKey, seen: u32, state: u32) -> bool {
        let Some(known) = self.replies.get(key).copied() else { return false };
        self.replies.set(*key, ReplyVal { seen, state, ..known });
        true
    }
    fn renew_flow(&self, key: &FlowKey, _flow: &FlowVal, seen: u32, state: u32) {
        assert!(self.touch_flow(key, seen, state), "the record that was found");
    }
    fn renew_reply(&self, key: &FlowKey, _reply: &ReplyVal, seen: u32, state: u32) {
        assert!(self.touch_reply(key, seen, state), "the record that was found");
    }
    fn count_request(&self, key: &FlowKey, _flow: &FlowVal, bytes: u64) {
        let known = *self.flows.get(key).unwrap();
        self.flows.set(*key, FlowVal { bytes: known.bytes + bytes, ..known });
    }
    fn count_answer(&self, key: &FlowKey, _reply: &ReplyVal, bytes: u64) {
        let known = *self.replies.get(key).unwrap();
        self.replies.set(*key, ReplyVal { bytes: known.bytes + bytes, ..known });
    }
    fn take_requests(&self, key: &FlowKey, _flow: &FlowVal) -> u64 {
        let known = *self.flows.get(key).unwrap();
        self.flows.set(*key, FlowVal { bytes: 0, ..known });
        known.bytes
    }
    fn take_answers(&self, key: &FlowKey, _reply: &ReplyVal) -> u64 {
        let known = *self.replies.get(key).unwrap();
        self.replies.set(*key, ReplyVal { bytes: 0, ..known });
        known.bytes
    }
    fn add_total(&self, endpoint: u64, service: u64, requests: u64, answers: u64) {
        if !life::is_counted(endpoint) || requests + answers == 0 {
            return;
        }
        let key = TotalKey { endpoint, service };
        let known = self.totals.get(&key).copied().unwrap_or_default();
        let value = TotalVal { requests: known.requests + requests, answers: known.answers + answers };
        self.totals.set(key, value);
    }
    fn fragment(&self, key: &FragmentKey) -> Option<&FragmentVal> {
        self.fragments.get(key)
    }
    fn set_fragment(&self, key: &FragmentKey, value: &FragmentVal) {
        self.fragments.set(*key, *value);
    }
    fn remove_flow(&self, key: &FlowKey) {
        self.flows.remove(key);
    }
    fn remove_reply(&self, key: &FlowKey) {
        self.replies.remove(key);
    }
    fn random(&self) -> u32 {
        let next =
            self.drawn.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.drawn.set(next);
        (next >> 32) as u32
    }
    fn clock(&self) -> u32 {
        self.clock.get()
    }
    fn next_place(&self) -> u32 {
        self.cursor.replace((self.cursor.get() + 1) % self.places.get().unwrap_or(PLACES))
    }
    fn parked(&self, place: u32) -> Option<&Parked> {
        if self.parked.get(&place).is_none() {
            self.parked.set(place, Parked::default());
        }
        self.parked.get(&place)
    }
    fn park(&self, place: u32, request: &FlowKey, answers: &FlowKey) {
        self.parked.set(place, Parked { request: *request, answers: *answers });
    }
    fn proposal(&self, index: u32) -> Option<&Proposal> {
        self.proposals.get(&index)
    }
    fn connections(&self, service: u64) -> u64 {
        self.connections.borrow().get(&service).copied().unwrap_or_default()
    }
    fn count_connection(&self, service: u64) {
        *self.connections.borrow_mut().entry(service).or_default() += 1;
    }
}
