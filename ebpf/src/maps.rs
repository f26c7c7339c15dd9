//! The maps, pinned by name; the agent sizes some of them when it loads the object.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::helpers::generated::{
    bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_coarse_ns,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap};
use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::fragment::{DATAGRAMS, FragmentKey, FragmentVal};
use shoal_ebpf_common::keys::{ClientKey, DoorKey, FlowKey, LocalKey, PortKey, RouterKey, VipKey};
use shoal_ebpf_common::lane::BULK_SLOTS;
use shoal_ebpf_common::life::{PROPOSALS, TICK_SHIFT, is_counted};
use shoal_ebpf_common::reason::{Event, Program, Reason, stat_index};
use shoal_ebpf_common::tables::Tables;
use shoal_ebpf_common::values::{
    BalancerIf, ClientVal, EndpointVal, FlowVal, LocalVal, NodeConfig, Parked, PeerName, PeerVal, PortVal,
    Proposal, ReplyVal, ServiceVal, TaskIf, TotalKey, TotalVal, VipVal,
};
use shoal_ebpf_common::verdict::Work;

use crate::memo;

/// Tables only the agent writes take memory for what is in them, not for their limit.
const SPARSE: u32 = BPF_F_NO_PREALLOC;

#[map]
static CONFIG: Array<NodeConfig> = Array::pinned(1, 0);
#[map]
static PORTS: HashMap<PortKey, PortVal> = HashMap::pinned(65_536, SPARSE);
#[map]
static SERVICES: HashMap<u64, ServiceVal> = HashMap::pinned(65_536, SPARSE);
/// Written as memory by the agent: there are millions of them.
#[map]
static SLOTS: Array<u64> = Array::pinned(1 << 22, BPF_F_MMAPABLE);
#[map]
static ENDPOINTS: HashMap<u64, EndpointVal> = HashMap::pinned(1 << 17, SPARSE);
#[map]
static LOCAL: HashMap<LocalKey, LocalVal> = HashMap::pinned(16_384, SPARSE);
#[map]
static ROUTERS: HashMap<RouterKey, u32> = HashMap::pinned(16_384, SPARSE);
#[map]
static MEMBERS: HashMap<Addr, u32> = HashMap::pinned(65_536, SPARSE);
#[map]
static LOCAL_ADDRS: HashMap<Addr, u32> = HashMap::pinned(4_096, SPARSE);
#[map]
static DOORS: HashMap<DoorKey, Addr> = HashMap::pinned(1 << 17, SPARSE);
#[map]
static OUTWARD: HashMap<u32, u32> = HashMap::pinned(1_024, SPARSE);
#[map]
static TASK_IFS: HashMap<u32, TaskIf> = HashMap::pinned(16_384, SPARSE);
#[map]
static VIPS: HashMap<VipKey, VipVal> = HashMap::pinned(65_536, SPARSE);
#[map]
static CLIENTS: HashMap<ClientKey, ClientVal> = HashMap::pinned(16_384, SPARSE);
/// A socket whose entry had to make room for others shows the endpoint's address, which it is connected to.
#[map]
static PEER_NAMES: LruHashMap<u64, PeerName> = LruHashMap::pinned(1 << 16, 0);
/// Connections that were led to an endpoint: IPv4, IPv6.
#[map]
static CONNECTS: PerCpuArray<u64> = PerCpuArray::pinned(2, 0);
#[map]
static BALANCER_IFS: HashMap<u32, BalancerIf> = HashMap::pinned(16_384, SPARSE);
#[map]
static TUNNELS: HashMap<u32, u32> = HashMap::pinned(16_384, SPARSE);
#[map]
static PEERS: HashMap<LocalKey, PeerVal> = HashMap::pinned(1 << 17, SPARSE);
#[map]
static BULK: Array<u64> = Array::pinned(BULK_SLOTS, 0);
#[map]
static FLOWS: LruHashMap<FlowKey, FlowVal> = LruHashMap::pinned(1 << 18, 0);
#[map]
static REPLIES: LruHashMap<FlowKey, ReplyVal> = LruHashMap::pinned(1 << 18, 0);
#[map]
static TOTALS: PerCpuHashMap<TotalKey, TotalVal> = PerCpuHashMap::pinned(1 << 17, SPARSE);
#[map]
static PARKED: Array<Parked> = Array::pinned(1 << 16, 0);
#[map]
static PROPOSED: Array<Proposal> = Array::pinned(PROPOSALS, 0);
#[map]
static DROPS: PerCpuArray<u64> = PerCpuArray::pinned(Reason::ALL.len() as u32, 0);
#[map]
static STATS: PerCpuArray<u64> = PerCpuArray::pinned((Program::ALL.len() * Event::ALL.len()) as u32, 0);
#[map]
static CONNECTIONS: PerCpuHashMap<u64, u64> = PerCpuHashMap::pinned(65_536, SPARSE);

/// Not pinned: what is in it is over in a moment.
#[map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentVal> = LruHashMap::with_max_entries(DATAGRAMS, 0);

/// Places of `PARKED` that each CPU fills, one after the other: the agent sets it when it loads the object.
#[unsafe(no_mangle)]
static PLACES: u32 = 0;

/// The place that a CPU filled last.
#[map]
static CURSOR: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// What each program works on: its stack is too small.
#[map]
static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(Program::ALL.len() as u32, 0);

/// How long a flow stays with the tunnel's device after a merged packet, nanoseconds.
const BULK_FOR: u64 = 1_000_000_000;

/// The time, as of the last tick.
#[inline(always)]
fn now() -> u64 {
    // SAFETY: takes nothing.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Ticks of the kernel that a reading of the clock holds for, as a power of two: up to 0.08 s.
const READING: u32 = 3;

/// The last reading: when, in the upper half, and what. One word, so that no CPU reads half of what another writes.
static mut CLOCK: u64 = 0;

/// The clock of [`shoal_ebpf_common::life`]. It is read for every packet and changes once a second: asking the kernel costs two
/// calls, its count of ticks is a load (`BPF_FUNC_jiffies64` in `do_misc_fixups` of kernel/bpf/verifier.c).
#[inline(always)]
fn clock() -> u32 {
    // SAFETY: takes nothing.
    let at = unsafe { bpf_jiffies64() } >> READING << 32;
    let clock = &raw mut CLOCK;
    // SAFETY: the program's own memory, read and written as one word.
    let last = unsafe { clock.read_volatile() };
    if last ^ at <= u64::from(u32::MAX) {
        return last as u32;
    }
    let ticks = now() >> TICK_SHIFT << 32 >> 32;
    // SAFETY: as above.
    unsafe { clock.write_volatile(at | ticks) };
    ticks as u32
}

/// A program's working memory.
#[inline(always)]
pub fn work(program: Program) -> Option<&'static mut Work> {
    // SAFETY: the map begins as zeroes, a valid value of every field, and only this function's callers write it. A
    // program is not interrupted by itself on one CPU, and each has an element of its own.
    WORK.get_ptr_mut(program.index()).map(|work| unsafe { &mut *work })
}

/// The kernel's maps.
pub struct Kernel;

/// Looks a value up in a hash map.
macro_rules! lookup {
    ($map:ident, $key:expr) => {
        // SAFETY: the value is plain data and the program runs in an RCU section, which keeps its memory. The kernel
        // replaces whole elements of the tables the agent writes; of flows, another CPU may be writing this very
        // value, so at worst a packet meets half of one update of its own flow.
        unsafe { $map.get($key) }
    };
}

impl Tables for Kernel {
    #[inline(always)]
    fn config(&self) -> Option<&NodeConfig> {
        CONFIG.get(0)
    }

    #[inline(always)]
    fn port(&self, key: &PortKey) -> Option<&PortVal> {
        lookup!(PORTS, key)
    }

    #[inline(always)]
    fn service(&self, id: u64) -> Option<&ServiceVal> {
        lookup!(SERVICES, &id)
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<u64> {
        SLOTS.get(index).copied()
    }

    #[inline(always)]
    fn endpoint(&self, id: u64) -> Option<&EndpointVal> {
        lookup!(ENDPOINTS, &id)
    }

    #[inline(always)]
    fn endpoint_of(&self, flow: &FlowVal) -> Option<&EndpointVal> {
        memo::endpoint(flow.endpoint, |id| lookup!(ENDPOINTS, id))
    }

    #[inline(always)]
    fn local(&self, key: &LocalKey) -> Option<&LocalVal> {
        lookup!(LOCAL, key)
    }

    #[inline(always)]
    fn is_router(&self, key: &RouterKey) -> bool {
        lookup!(ROUTERS, key).is_some()
    }

    #[inline(always)]
    fn is_member(&self, addr: &Addr) -> bool {
        lookup!(MEMBERS, addr).is_some()
    }

    #[inline(always)]
    fn is_local_addr(&self, addr: &Addr) -> bool {
        lookup!(LOCAL_ADDRS, addr).is_some()
    }

    #[inline(always)]
    fn own_door(&self, addr: &Addr) -> u32 {
        lookup!(LOCAL_ADDRS, addr).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn door(&self, key: &DoorKey) -> Option<&Addr> {
        lookup!(DOORS, key)
    }

    #[inline(always)]
    fn task_if(&self, ifindex: u32) -> Option<&TaskIf> {
        memo::task_if(ifindex, |ifindex| lookup!(TASK_IFS, ifindex))
    }

    #[inline(always)]
    fn vip(&self, key: &VipKey) -> Option<&VipVal> {
        lookup!(VIPS, key)
    }

    #[inline(always)]
    fn client(&self, key: &ClientKey) -> Option<&ClientVal> {
        lookup!(CLIENTS, key)
    }

    #[inline(always)]
    fn balancer_if(&self, ifindex: u32) -> Option<&BalancerIf> {
        lookup!(BALANCER_IFS, &ifindex)
    }

    #[inline(always)]
    fn tunnel(&self, vni: u32) -> Option<u32> {
        lookup!(TUNNELS, &vni).copied()
    }

    #[inline(always)]
    fn peer(&self, key: &LocalKey) -> Option<&PeerVal> {
        memo::peer(key, |key| lookup!(PEERS, key))
    }

    #[inline(always)]
    fn is_bulk(&self, slot: u32) -> bool {
        BULK.get(slot).is_some_and(|noted| *noted != 0 && now().wrapping_sub(*noted) < BULK_FOR)
    }

    #[inline(always)]
    fn note_bulk(&self, slot: u32) {
        if let Some(noted) = BULK.get_ptr_mut(slot) {
            // SAFETY: the pointer is into the map; other CPUs write about the same number there.
            unsafe { *noted = now() };
        }
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<&FlowVal> {
        lookup!(FLOWS, key)
    }

    #[inline(always)]
    fn reply(&self, key: &FlowKey) -> Option<&ReplyVal> {
        lookup!(REPLIES, key)
    }

    #[inline(always)]
    fn set_flow(&self, key: &FlowKey, value: &FlowVal) {
        // A full LRU map makes room; the one other error, a table being changed on this very CPU, costs this flow
        // its memory, and its next packet is led to the same endpoint by the Maglev table.
        let _ = FLOWS.insert(key, value, 0);
    }

    #[inline(always)]
    fn set_reply(&self, key: &FlowKey, value: &ReplyVal) {
        let _ = REPLIES.insert(key, value, 0);
    }

    #[inline(always)]
    fn touch_flow(&self, key: &FlowKey, seen: u32, state: u32) -> bool {
        let Some(flow) = self.flow(key) else { return false };
        self.renew_flow(key, flow, seen, state);
        true
    }

    #[inline(always)]
    fn touch_reply(&self, key: &FlowKey, seen: u32, state: u32) -> bool {
        let Some(reply) = self.reply(key) else { return false };
        self.renew_reply(key, reply, seen, state);
        true
    }

    #[inline(always)]
    fn renew_flow(&self, _key: &FlowKey, flow: &FlowVal, seen: u32, state: u32) {
        // SAFETY: of a record in the map, which the lookup that gave it found.
        unsafe {
            set_word((&raw const flow.seen).cast_mut(), seen);
            set_word((&raw const flow.state).cast_mut(), state);
        }
    }

    #[inline(always)]
    fn renew_reply(&self, _key: &FlowKey, reply: &ReplyVal, seen: u32, state: u32) {
        // SAFETY: as above.
        unsafe {
            set_word((&raw const reply.seen).cast_mut(), seen);
            set_word((&raw const reply.state).cast_mut(), state);
        }
    }

    #[inline(always)]
    fn count_request(&self, _key: &FlowKey, flow: &FlowVal, bytes: u64) {
        // SAFETY: of a record in the map, which the lookup that gave it found.
        unsafe { count_bytes((&raw const flow.bytes).cast_mut(), bytes) };
    }

    #[inline(always)]
    fn count_answer(&self, _key: &FlowKey, reply: &ReplyVal, bytes: u64) {
        // SAFETY: as above.
        unsafe { count_bytes((&raw const reply.bytes).cast_mut(), bytes) };
    }

    #[inline(always)]
    fn take_requests(&self, _key: &FlowKey, flow: &FlowVal) -> u64 {
        // SAFETY: as above.
        unsafe { take_bytes((&raw const flow.bytes).cast_mut()) }
    }

    #[inline(always)]
    fn take_answers(&self, _key: &FlowKey, reply: &ReplyVal) -> u64 {
        // SAFETY: as above.
        unsafe { take_bytes((&raw const reply.bytes).cast_mut()) }
    }

    #[inline(always)]
    fn add_total(&self, endpoint: u64, service: u64, requests: u64, answers: u64) {
        add_total(endpoint, service, requests, answers);
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<&FragmentVal> {
        lookup!(FRAGMENTS, key)
    }

    #[inline(always)]
    fn set_fragment(&self, key: &FragmentKey, value: &FragmentVal) {
        // As of flows, but nothing makes up for an error: what follows is then dropped or left to the host.
        let _ = FRAGMENTS.insert(key, value, 0);
    }

    #[inline(always)]
    fn remove_flow(&self, key: &FlowKey) {
        // It may be gone already.
        let _ = FLOWS.remove(key);
    }

    #[inline(always)]
    fn remove_reply(&self, key: &FlowKey) {
        let _ = REPLIES.remove(key);
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: takes nothing.
        unsafe { bpf_get_prandom_u32() as u32 }
    }

    #[inline(always)]
    fn clock(&self) -> u32 {
        clock()
    }

    #[inline(always)]
    fn next_place(&self) -> u32 {
        // SAFETY: the loader may have written another number there; the compiler must not believe this one.
        let places = unsafe { (&raw const PLACES).read_volatile() };
        let Some(cursor) = CURSOR.get_ptr_mut(0) else { return 0 };
        // SAFETY: the pointer is to this CPU's value, and a program is not interrupted by another here.
        let next = unsafe {
            let next = *cursor + 1;
            *cursor = if next < places { next } else { 0 };
            *cursor
        };
        // SAFETY: takes nothing.
        unsafe { bpf_get_smp_processor_id() as u32 * places + next }
    }

    #[inline(always)]
    fn parked(&self, place: u32) -> Option<&Parked> {
        PARKED.get(place)
    }

    #[inline(always)]
    fn park(&self, place: u32, request: &FlowKey, answers: &FlowKey) {
        if let Some(parked) = PARKED.get_ptr_mut(place) {
            // SAFETY: the pointer is into the map. Two CPUs that write the same place at once may leave keys of no flow
            // there, which are then found nowhere.
            unsafe {
                (*parked).request = *request;
                (*parked).answers = *answers;
            }
        }
    }

    #[inline(always)]
    fn proposal(&self, index: u32) -> Option<&Proposal> {
        PROPOSED.get(index)
    }

    #[inline(always)]
    fn connections(&self, service: u64) -> u64 {
        lookup!(CONNECTIONS, &service).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn count_connection(&self, service: u64) {
        match CONNECTIONS.get_ptr_mut(&service) {
            // SAFETY: the pointer is to this CPU's value, and a program is not interrupted by another here.
            Some(count) => unsafe { *count += 1 },
            None => {
                let _ = CONNECTIONS.insert(&service, &1, 0);
            }
        }
    }
}

/// Sets a word of a record.
///
/// # Safety
/// The pointer is to a word of a record in a map, which an RCU section keeps. Another CPU may write it, too: each of
/// them writes it whole.
#[inline(always)]
unsafe fn set_word(word: *mut u32, value: u32) {
    // SAFETY: the caller's.
    unsafe { word.write_volatile(value) };
}

/// Adds to the bytes of a record. Without a lock, as a flow's packets of one direction are nearly always on one CPU: where
/// two meet, one of them may not count.
///
/// # Safety
/// The pointer is to the bytes of a record in a map, which an RCU section keeps. Nothing is read of them but here and in
/// [`take_bytes`].
#[inline(always)]
unsafe fn count_bytes(count: *mut u64, bytes: u64) {
    // SAFETY: the caller's. Other CPUs and user space read and write them as one word.
    unsafe { count.write_volatile(count.read_volatile().wrapping_add(bytes)) };
}

/// Takes the bytes out of a record.
///
/// # Safety
/// As of [`count_bytes`].
#[inline(always)]
unsafe fn take_bytes(count: *mut u64) -> u64 {
    // SAFETY: the caller's.
    unsafe {
        let bytes = count.read_volatile();
        count.write_volatile(0);
        bytes
    }
}

/// Adds to `TOTALS`. A function of its own: packets of known flows don't pay for its stack. Returns 0.
#[inline(never)]
fn add_total(endpoint: u64, service: u64, requests: u64, answers: u64) -> u32 {
    if !is_counted(endpoint) || requests | answers == 0 {
        return 0;
    }
    let key = TotalKey { endpoint, service };
    match TOTALS.get_ptr_mut(&key) {
        // SAFETY: the pointer is to this CPU's value. The collector may be interrupted in between, at worst by what counts
        // the bytes of a flow that has just begun.
        Some(total) => unsafe {
            (*total).requests += requests;
            (*total).answers += answers;
        },
        // Where the map is full, the bytes are lost.
        None => drop(TOTALS.insert(&key, &TotalVal { requests, answers }, 0)),
    }
    0
}

/// Whether answers may have to leave by another device than the one their clients came in by.
#[inline(always)]
pub fn has_ways() -> bool {
    is_outward(0)
}

/// Whether answers may leave by a device.
#[inline(always)]
pub fn is_outward(device: u32) -> bool {
    lookup!(OUTWARD, &device).is_some()
}

/// Counts a packet.
#[inline(always)]
pub fn count(program: Program, event: Event) {
    if let Some(count) = STATS.get_ptr_mut(stat_index(program, event)) {
        // SAFETY: as above.
        unsafe { *count += 1 };
    }
}

/// Remembers what a socket is connected to in place of what it asked for. Returns whether it could.
#[inline(always)]
pub fn set_peer_name(socket: u64, name: &PeerName) -> bool {
    PEER_NAMES.insert(&socket, name, 0).is_ok()
}

/// What a socket is connected to in place of what it asked for.
#[inline(always)]
pub fn peer_name(socket: u64) -> Option<&'static PeerName> {
    // SAFETY: as in the lookups above; one socket's entry is written by whoever connects it.
    unsafe { PEER_NAMES.get(&socket) }
}

/// Counts a connection that was led to an endpoint.
#[inline(always)]
pub fn count_connect(v4: bool) {
    if let Some(count) = CONNECTS.get_ptr_mut(u32::from(!v4)) {
        // SAFETY: the pointer is to this CPU's value. The program may be interrupted by another in between, which
        // costs at worst a count.
        unsafe { *count += 1 };
    }
}

/// Counts a packet that was dropped or refused.
#[inline(always)]
pub fn count_drop(reason: Reason) {
    if let Some(count) = DROPS.get_ptr_mut(reason.index()) {
        // SAFETY: as above.
        unsafe { *count += 1 };
    }
}
