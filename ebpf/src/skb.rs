//! The one place that reads and writes packets. What every packet is asked for is read where it lies; all else, and what
//! lies elsewhere than in the packet's first part, through helpers, which check bounds and take packets apart that are not
//! linear. Written is by helpers alone: a program that writes itself is made to copy what others have, too, and drops what
//! can't be copied without a word (`bpf_unclone_prologue` in `net/core/filter.c`).

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_MARK_MANGLED_0,
    BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
};
use aya_ebpf::helpers::generated::{
    bpf_clone_redirect, bpf_csum_update, bpf_get_hash_recalc, bpf_get_prandom_u32, bpf_l3_csum_replace,
    bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_proto, bpf_skb_change_tail, bpf_skb_change_type,
    bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::lane::{self, Form, Inside, OVERHEAD, Parcel};
use shoal_ebpf_common::packet::{ETH_IPV6, ETH_LEN, Header, Packet};
use shoal_ebpf_common::proxy::Resize;
use shoal_ebpf_common::rewrite::{Cover, PSEUDO, PacketMut};
use shoal_ebpf_common::values::PeerVal;
use shoal_ebpf_common::verdict::{IMAGE_AT, Image, Out, Work};

use crate::hop::{self, Hop};
use crate::{helpers, maps};

/// `PACKET_HOST` of `linux/if_packet.h`.
const PACKET_HOST: u32 = 0;

/// `BPF_ADJ_ROOM_MAC` of `linux/bpf.h`: make or take room after the Ethernet header.
const AFTER_ETHERNET: u32 = 1;
/// What IPv6's header has more than IPv4's.
const IPV6_MORE: u32 = 20;

/// What became of a frame that was to be put into a tunnel packet.
pub enum Wrapped {
    /// It is in.
    Whole,
    /// There is room for the packet, and nothing in it.
    Half,
    /// It is as it was.
    Not,
}

/// Not 0: the kernel knows no `BPF_F_IPV6`.
static mut REFUSED: u32 = 0;

/// The packet a program was called for.
pub struct Skb {
    raw: *mut __sk_buff,
}

impl Skb {
    #[inline(always)]
    pub fn new(ctx: TcContext) -> Self {
        Self { raw: ctx.skb.skb }
    }

    /// The same packet, for a function of its own.
    #[inline(always)]
    pub fn copied(&self) -> Self {
        Self { raw: self.raw }
    }

    /// The device the program is attached to.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: the kernel's context is valid for the whole run of the program.
        unsafe { (*self.raw).ifindex }
    }

    /// Whether the packet was received by the device the program is attached to. Else it is just being sent, by the other
    /// side of a netkit device.
    #[inline(always)]
    pub fn is_received(&self) -> bool {
        // SAFETY: the kernel's context is valid for the whole run of the program.
        unsafe { (*self.raw).ingress_ifindex != 0 }
    }

    /// The MTU of a device.
    #[inline(always)]
    pub fn mtu(&self, ifindex: u32) -> Option<u32> {
        helpers::mtu(self.raw, ifindex)
    }

    /// The device by which the kernel would forward the packet.
    #[inline(always)]
    pub fn route(&self, header: &Header) -> Option<u32> {
        helpers::route(self.raw, self.ifindex(), header, onward(header), &helpers::ROUTED)
    }

    /// Whether the packet is of a VLAN, whose device sees it again without the tag. The kernel takes the tag off before this
    /// (`skb_vlan_untag` in `__netif_receive_skb_core`), and looks for the VLAN's device only behind it. A tag with
    /// number 0 is a priority and no VLAN.
    #[inline(always)]
    pub fn is_tagged(&self) -> bool {
        const NUMBER: u32 = 0x0fff;
        // SAFETY: as above.
        let (tagged, tag) = unsafe { ((*self.raw).vlan_present, (*self.raw).vlan_tci) };
        tagged != 0 && tag & NUMBER != 0
    }

    /// How a tunnel packet came.
    #[inline(always)]
    pub fn form(&self) -> Form {
        // SAFETY: as above.
        let (merged, tagged) = unsafe { ((*self.raw).gso_size, (*self.raw).vlan_present) };
        match (tagged, merged) {
            (0, 0) => Form::Single,
            (0, _) => Form::Merged,
            _ => Form::Other,
        }
    }

    /// Takes a frame out of its tunnel packet.
    #[inline(always)]
    pub fn unwrap(&mut self, v4: bool) -> Option<()> {
        let ethernet = Inside(&*self).load::<14>(0)?;
        let mut more = 0;
        if !v4 {
            // What is inside is of another family: the kernel must take the packet for one of it.
            // SAFETY: takes no pointers but the context.
            let result = unsafe { bpf_skb_change_proto(self.raw, ETH_IPV6.to_be(), 0) };
            if result != 0 {
                return None;
            }
            more = IPV6_MORE;
        }
        // SAFETY: as above.
        let result = unsafe { bpf_skb_adjust_room(self.raw, -((OVERHEAD + more) as i32), AFTER_ETHERNET, 0) };
        if result != 0 {
            return None;
        }
        self.store(0, &ethernet)
    }

    /// Whether a tunnel can take the packet as it is: it is one, and not larger than the network's.
    #[inline(always)]
    pub fn fits(&self, peer: &PeerVal) -> bool {
        // SAFETY: as above.
        let length = unsafe { (*self.raw).len };
        self.form() == Form::Single && length <= peer.mtu + ETH_LEN
    }

    /// Puts a frame into a tunnel packet, still without its Ethernet addresses.
    #[inline(always)]
    pub fn wrap(&mut self, head: [u8; 16], peer: &PeerVal, data_port: u16) -> Wrapped {
        const FLAGS: u32 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
        /// Length of the inner Ethernet header, where the kernel looks for it in the flags.
        const INNER_ETHERNET: u64 = (ETH_LEN as u64) << 56;
        // SAFETY: takes no pointers but the context.
        let (hash, id) = unsafe { (bpf_get_hash_recalc(self.raw), bpf_get_prandom_u32()) };
        // SAFETY: as above. It was found to fit, far below 2^16.
        let length = unsafe { (*self.raw).len } as u16;
        let parcel = Parcel { head, length, port: lane::source_port(hash), id: id as u16 };
        // SAFETY: as above.
        let result = unsafe {
            bpf_skb_adjust_room(self.raw, OVERHEAD as i32, AFTER_ETHERNET, u64::from(FLAGS) | INNER_ETHERNET)
        };
        if result != 0 {
            return Wrapped::Not;
        }
        let words = lane::wrap(&parcel, peer, data_port);
        // SAFETY: words have no byte that is not one.
        let bytes = unsafe { &*(&raw const words).cast::<[u8; 52]>() };
        match self.store(lane::WRAP_AT, bytes) {
            Some(()) => Wrapped::Whole,
            None => Wrapped::Half,
        }
    }

    /// The way to the other end of a tunnel, if there is one that its packets can take.
    #[inline(always)]
    pub fn way(&self, peer: &PeerVal) -> Option<&'static Hop> {
        hop::to_peer(self.raw, self.ifindex(), peer).filter(|hop| hop.takes_tunnels())
    }

    /// Sends the packet, which is as [`Work::forward`] says, out of a device for its next hop. Returns the program's verdict.
    #[inline(always)]
    pub fn send_by(&self, work: &Work, device: u32) -> i32 {
        hop::send(self.raw, work, device)
    }

    /// Sets the packet's mark, which it keeps on its way into another namespace.
    #[inline(always)]
    pub fn set_mark(&self, mark: u32) {
        // SAFETY: the context is valid, and the mark is one of the fields a classifier may write.
        unsafe { (*self.raw).mark = mark };
    }

    /// Makes the receiving stack take the packet for its own.
    #[inline(always)]
    pub fn claim_for_host(&self) {
        // SAFETY: the context is valid. It fails only for packets that are not being received.
        unsafe {
            if (*self.raw).pkt_type != PACKET_HOST {
                bpf_skb_change_type(self.raw, PACKET_HOST);
            }
        }
    }
}

/// Where words can be read as such: the target can't read one that lies across two.
#[repr(align(8))]
struct Aligned<T>(T);

/// How far into a packet it is read without a helper's help: up to the ports behind most headers.
const REACH: u32 = 255;

impl Skb {
    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: u32, bytes: &[u8; N], flags: u32) -> Option<()> {
        let from = bytes.as_ptr() as *const c_void;
        // SAFETY: the buffer has N bytes, and the helper checks the packet's bounds.
        let result = unsafe { bpf_skb_store_bytes(self.raw, offset, from, N as u32, u64::from(flags)) };
        (result == 0).then_some(())
    }

    /// What is at an offset, by a helper; `None` if the packet ends before.
    ///
    /// # Safety
    /// Any bytes must be a value of the type.
    #[inline(always)]
    unsafe fn copy<T>(&self, offset: u32) -> Option<T> {
        let mut value = Aligned(MaybeUninit::<T>::uninit());
        let to = value.0.as_mut_ptr() as *mut c_void;
        // SAFETY: the buffer is of that size, and the helper checks the packet's bounds.
        let result =
            unsafe { bpf_skb_load_bytes(self.raw as *const c_void, offset, to, size_of::<T>() as u32) };
        // SAFETY: the helper has filled the buffer (it does even when it fails), and the caller's.
        (result == 0).then(|| unsafe { value.0.assume_init() })
    }

    /// Where `length` bytes at an offset lie in memory; `None` if they lie elsewhere than in the packet's first part, or don't
    /// lie at all.
    #[inline(always)]
    fn place(&self, offset: u32, length: usize) -> Option<*const u8> {
        // SAFETY: the kernel's context is valid for the whole run of the program.
        let (data, end) = unsafe { ((*self.raw).data as usize, (*self.raw).data_end as usize) };
        if offset > REACH || data + offset as usize + length > end {
            return None;
        }
        Some((data + offset as usize) as *const u8)
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        // SAFETY: any bytes are bytes.
        unsafe { self.copy(offset) }
    }

    #[inline(always)]
    fn head<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let Some(place) = self.place(offset, N) else { return self.load(offset) };
        // SAFETY: so many bytes lie there, as just seen.
        Some(unsafe { place.cast::<[u8; N]>().read() })
    }

    #[inline(always)]
    fn load_words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        // SAFETY: any bytes are words.
        unsafe { self.copy(offset) }
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let Some(place) = self.place(offset, size_of::<[u32; N]>()) else { return self.load_words(offset) };
        // SAFETY: so many words lie there, as just seen, at an address as even as the machine asks for.
        Some(unsafe { place.cast::<[u32; N]>().read() })
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the kernel's context is valid for the whole run of the program.
        unsafe { (*self.raw).len }
    }

    #[inline(always)]
    fn outward(&self, header: &Header) -> Option<u32> {
        match outward(self.copied(), header) {
            0 => None,
            device => Some(device),
        }
    }

    #[inline(always)]
    fn back(&self, header: &Header, uplink: u32) -> u32 {
        if !maps::has_ways() {
            return uplink;
        }
        match back(self.copied(), header) {
            0 => uplink,
            device => device,
        }
    }
}

/// The ends of a packet, as they are.
#[inline(always)]
fn onward(header: &Header) -> [(&Addr, u16); 2] {
    [(&header.src, header.sport), (&header.dst, header.dport)]
}

/// As [`Packet::outward`]; 0: there is none. A function of its own: other packets don't pay for its stack.
#[inline(never)]
fn outward(skb: Skb, header: &Header) -> u32 {
    let device = helpers::route(skb.raw, skb.ifindex(), header, onward(header), &helpers::FITTING);
    device.filter(|&device| maps::is_outward(device)).unwrap_or(0)
}

/// As [`Packet::back`]; 0: the packet's own uplink. A function of its own, too.
#[inline(never)]
fn back(skb: Skb, header: &Header) -> u32 {
    hop::back(skb.raw, skb.ifindex(), header)
}

impl PacketMut for Skb {
    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        self.write(offset, bytes, 0)
    }

    #[inline(always)]
    fn store_counted<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        self.write(offset, bytes, BPF_F_RECOMPUTE_CSUM)
    }

    #[inline(always)]
    fn begin<const N: usize>(&mut self, image: &Image) -> Option<()> {
        const { assert!(N + IMAGE_AT <= size_of::<Image>()) };
        // SAFETY: the image has that many bytes, as just said, and words have no byte that is not one.
        let bytes = unsafe { &*(&raw const *image).cast::<u8>().add(IMAGE_AT).cast::<[u8; N]>() };
        self.store(0, bytes)
    }

    #[inline(always)]
    fn recount(&mut self, diff: u32) {
        // SAFETY: takes no pointers but the context. It fails where there is no such checksum.
        unsafe { bpf_csum_update(self.raw, diff) };
    }

    #[inline(always)]
    fn change_ip_checksum(&mut self, offset: u32, diff: u32) -> Option<()> {
        // SAFETY: takes no pointers but the context; size 0 says that the last value is a difference.
        let result = unsafe { bpf_l3_csum_replace(self.raw, offset, 0, diff as u64, 0) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn change_checksum(&mut self, offset: u32, diff: u32, cover: Cover) -> Option<()> {
        let pseudo = if cover.pseudo { BPF_F_PSEUDO_HDR } else { 0 };
        let optional = if cover.optional { BPF_F_MARK_MANGLED_0 } else { 0 };
        // SAFETY: takes no pointers but the context; size 0 says that the value is a difference.
        let result =
            unsafe { bpf_l4_csum_replace(self.raw, offset, 0, diff as u64, (pseudo | optional) as u64) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn change_moved(&mut self, offset: u32, diff: u32) -> Option<()> {
        /// `BPF_F_IPV6` of `linux/bpf.h`, since Linux 6.16 and in updates of older ones: what a device has summed up of the
        /// packet stays as it is, as its addresses have changed by as much the other way.
        const SETTLES: u64 = 1 << 7;
        const EINVAL: i64 = -22;
        let refused = &raw mut REFUSED;
        // SAFETY: the program's own memory, a word; whoever writes it writes the same.
        if unsafe { refused.read_volatile() } == 0 {
            let flags = u64::from(BPF_F_PSEUDO_HDR) | SETTLES;
            // SAFETY: as above. A flag that the kernel doesn't know it refuses before all else.
            match unsafe { bpf_l4_csum_replace(self.raw, offset, 0, diff as u64, flags) } {
                0 => return Some(()),
                // SAFETY: as above.
                EINVAL => unsafe { refused.write_volatile(1) },
                _ => return None,
            }
        }
        self.recount(diff);
        self.change_checksum(offset, diff, PSEUDO)
    }
}

impl Resize for Skb {
    #[inline(always)]
    fn resize(&mut self, length: u32) -> Option<()> {
        // SAFETY: takes no pointers but the context.
        let result = unsafe { bpf_skb_change_tail(self.raw, length, 0) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn send_copy(&mut self, out: Out) {
        if let Out::Peer(ifindex) | Out::Device(ifindex) = out {
            // SAFETY: as above.
            unsafe { bpf_clone_redirect(self.raw, ifindex, 0) };
        }
    }
}
