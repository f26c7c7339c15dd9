//! `connect4`, `connect6`: a task connects to a virtual IP and gets a connection to an endpoint.
//!
//! What a task's socket is told to connect to is changed once, so that no packet of the connection needs to be. The
//! programs sit at the control group of a node's tasks, and that is not enough to tell who asks: a process of it may be
//! in any network namespace, and a task's namespace is what says which networks it is in. So a socket is known by the
//! cookie of its namespace.

use crate::addr::Addr;
use crate::choose::{self, Asked, Choice};
use crate::keys::{ClientKey, FlowKey, VipKey};
use crate::packet::TCP;
use crate::tables::Tables;
use crate::values::{ClientVal, VipVal};

/// Networks of a task that are looked at; virtual IPs of further ones are translated per packet.
pub const PLACES: u32 = 16;

/// What a socket is about to do.
#[derive(Clone, Copy)]
#[cfg_attr(feature = "host", derive(Debug))]
pub struct Ask {
    /// Cookie of the socket's network namespace.
    pub netns: u64,
    /// Where to; an IPv4-mapped address is IPv4, whatever socket it is.
    pub dst: Addr,
    /// Port, host order.
    pub port: u16,
    /// Stands for the source port, which the socket gets later: equally likely numbers.
    pub salt: u16,
}

/// The endpoint that a TCP connection is to be made with instead, on the same port.
///
/// `None` leaves the address as it is: it is no virtual IP of a network of this task's, a virtual service balances it,
/// or no endpoint takes connections. Then the packets are decided on one by one ([`crate::task`]).
#[inline(always)]
pub fn decide<'a, T: Tables>(tables: &'a T, ask: &Ask) -> Option<Choice<'a>> {
    for place in 0..PLACES {
        let client = tables.client(&ClientKey::new(ask.netns, place))?;
        let vip = VipKey { addr: ask.dst.copied(), network: client.network };
        if let Some(vip) = tables.vip(&vip) {
            return to_vip(tables, ask, client, vip);
        }
    }
    None
}

#[inline(always)]
fn to_vip<'a, T: Tables>(tables: &'a T, ask: &Ask, client: &ClientVal, vip: &VipVal) -> Option<Choice<'a>> {
    if vip.mark != 0 && vip.balancer != 0 {
        return None;
    }
    let v4 = ask.dst.is_v4();
    let key = FlowKey {
        src: if v4 { client.ip4.copied() } else { client.ip6.copied() },
        dst: ask.dst.copied(),
        sport: ask.salt,
        dport: ask.port,
        scope: FlowKey::scope(client.network, TCP),
    };
    let asked = Asked { v4, begins: true };
    let mut choice = choose::by_table(tables, vip.service, &key, &asked, &client.mac);
    if choice.is_none() {
        // Nobody else: the task is its own server.
        choice = choose::by_table(tables, vip.service, &key, &asked, &[0; 6]);
    }
    if choice.is_some() {
        tables.count_connection(vip.service);
    }
    choice
}
