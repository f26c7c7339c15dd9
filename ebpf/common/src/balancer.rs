//! The two sides of a balancer's namespace, where the kernel's virtual services (IPVS) choose for us: `balancer_tx` at
//! its leg into a network, and `gate_tx` at the way back to clients.
//!
//! A balancer only chooses (and, for published ports, translates). The programs bring packets into its namespace with
//! the mark of a virtual service, and carry what comes out past the bridge. Without them all of it but the choice
//! would travel the bridge.

use crate::choose;
use crate::icmp;
use crate::keys::{FlowKey, LocalKey};
use crate::life;
use crate::overlay;
use crate::packet::{self, ETH_IPV4, ETH_IPV6, Packet};
use crate::reason::Reason;
use crate::steer;
use crate::tables::Tables;
use crate::values::{BALANCED, BalancerIf, FlowVal};
use crate::verdict::{Out, Verdict, Work};

/// Decides on a frame that a balancer sends into its network by the leg `ifindex`.
#[inline(always)]
pub fn to_network<P: Packet, T: Tables>(packet: &P, tables: &T, ifindex: u32, work: &mut Work) -> Verdict {
    work.begin();
    let Some(leg) = tables.balancer_if(ifindex) else { return Verdict::Pass };
    let Some(ethernet) = packet::ethernet(packet) else { return Verdict::Pass };
    work.ethernet = ethernet;
    // Groups and whatever is not IP are the bridge's: a balancer asks for the neighbors it does not know.
    if work.ethernet.dst[0] & 1 != 0 || !matches!(work.ethernet.kind, ETH_IPV4 | ETH_IPV6) {
        return Verdict::Pass;
    }
    let Some(local) = tables.local(&LocalKey::new(leg.vxlan, work.ethernet.dst)) else {
        return work.redirect(Out::Device(leg.vxlan));
    };
    if packet::header(packet, work.ethernet.kind, &mut work.header).is_err() {
        return Verdict::Pass;
    }
    if leg.steers() && work.header.has_flow() {
        // Answers may leave by any leg of the task: they are to come here, as those from elsewhere do.
        let Some(config) = tables.config() else { return Verdict::Pass };
        work.answers = work.header.reverse_key(0);
        return match steer::lead(tables, work, &config.router_mac) {
            Some(port) => steer::deliver(work, port, Out::Peer(local.veth)),
            None => Verdict::Drop(Reason::NoSourcePort),
        };
    }
    if leg.steers() && icmp::is_error(packet, &work.header) {
        return Verdict::Error;
    }
    if !leg.steers() && work.header.has_flow() {
        overlay::direct(tables, work, local);
    }
    work.redirect(Out::Peer(local.veth))
}

/// Decides on a packet that the balancer of published ports sends to a client.
#[inline(always)]
pub fn to_client<P: Packet, T: Tables>(packet: &P, tables: &T, work: &mut Work) -> Verdict {
    work.begin();
    let Some(ethernet) = packet::ethernet(packet) else { return Verdict::Pass };
    if packet::header(packet, ethernet.kind, &mut work.header).is_err() {
        return Verdict::Pass;
    }
    // What is not from an address of this node was not translated: its connection is gone.
    if !tables.is_local_addr(&work.header.src) {
        return Verdict::Drop(Reason::UnknownReply);
    }
    work.redirect(Out::Route)
}

/// Hands a packet that begins a flow to a balancer, by the host side of a link into its namespace, with the mark of its virtual service.
/// Its flow stays with the balancer, whatever engine new flows get.
#[inline(always)]
pub(crate) fn hand_over<T: Tables>(tables: &T, work: &mut Work, target: Target) -> Verdict {
    work.set_flow(BALANCED, target.service, 0);
    work.flow.mark = target.mark;
    // The kernel's virtual services count their bytes.
    work.flow.bytes = 0;
    if choose::set_flow(tables, work, tables.flow(&work.key)) {
        work.request = work.key;
        work.answers = FlowKey::default();
        life::park(tables, work);
    }
    tables.count_connection(target.service);
    carry(work, target.mark, target.ifindex)
}

/// As [`hand_over`], for a packet whose flow is known.
#[inline(always)]
pub(crate) fn go_on<T: Tables>(tables: &T, work: &mut Work, flow: &FlowVal, ifindex: u32) -> Verdict {
    if !choose::is_noted(tables, work, flow) {
        // Its answers pass us by: the client's last word must stand for the endpoint's.
        let says = life::of_client(&work.header);
        let closes = if says & life::FLOW_CLIENT_FIN != 0 { life::FLOW_SERVER_FIN } else { 0 };
        tables.renew_flow(&work.key, flow, tables.clock(), life::after(flow.state, says | closes));
    }
    carry(work, flow.mark, ifindex)
}

/// Hands a packet to a balancer's namespace, with the mark of its virtual service.
#[inline(always)]
pub(crate) fn carry(work: &mut Work, mark: u32, ifindex: u32) -> Verdict {
    work.mark = mark;
    work.redirect(Out::Peer(ifindex))
}

/// A virtual service and the way to it.
#[derive(Clone, Copy)]
#[cfg_attr(feature = "host", derive(Debug))]
pub(crate) struct Target {
    /// Key in `SERVICES`, for counting.
    pub(crate) service: u64,
    /// Mark of the virtual service.
    pub(crate) mark: u32,
    /// Host side of the link into the balancer's namespace.
    pub(crate) ifindex: u32,
}

impl BalancerIf {
    /// Whether answers to what is sent here must be steered back.
    #[inline(always)]
    const fn steers(self) -> bool {
        self.steer != 0
    }
}
