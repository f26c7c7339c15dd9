//! Pairs of devices, one on the host and one inside a namespace: netkit where the kernel has it, else veth.
//!
//! Behind netkit a program meets what a task sends where the task sends it: what the program sends on doesn't go
//! through the backlog of the CPU (drivers/net/netkit.c, as of Linux 6.7). Everything else is as of veth: the device on the host is
//! a port of a bridge, and carries everything without a program.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use netlink_packet_route::link::{
    InfoData, InfoKind, InfoNetkit, InfoVeth, LinkAttribute, LinkInfo, LinkMessage, NetkitMode,
};

use super::Overlay;
use super::veth::Veth;
use crate::drivers::link::{Link, LinkError};
use crate::netns::Netns;

/// What new pairs are.
#[derive(Debug)]
pub(super) struct Pairs {
    /// Whether to try netkit.
    netkit: AtomicBool,
    /// Whether nothing else will do.
    only: bool,
}

impl Pairs {
    /// Netkit, or veth; none: what the kernel has.
    pub(super) fn new(netkit: Option<bool>) -> Self {
        Self { netkit: AtomicBool::new(netkit != Some(false)), only: netkit == Some(true) }
    }
}

impl Overlay {
    /// Makes a pair, its inner end in the namespace under its final name.
    pub(super) async fn make_pair(&self, veth: &Veth<'_>, netns: &Netns) -> Result<Link, LinkError> {
        let of_veth = || InfoData::Veth(InfoVeth::Peer(inner(veth, netns)));
        if !veth.is_leg || !self.pairs.netkit.load(Ordering::Relaxed) {
            return self.create(veth.host, outer(veth, InfoKind::Veth, of_veth())).await;
        }
        let netkit = vec![InfoNetkit::Mode(NetkitMode::L2), InfoNetkit::Peer(inner(veth, netns))];
        match self.create(veth.host, outer(veth, InfoKind::Netkit, InfoData::Netkit(netkit))).await {
            Err(error) if error.errno() != Some(libc::EOPNOTSUPP) => Err(error),
            Err(_) if self.pairs.only => Err(LinkError::NoNetkit(veth.host.clone())),
            Err(_) => {
                tracing::info!(
                    "this kernel has no netkit, or none with addresses: the interfaces of tasks are veth"
                );
                self.pairs.netkit.store(false, Ordering::Relaxed);
                self.create(veth.host, outer(veth, InfoKind::Veth, of_veth())).await
            }
            made => made,
        }
    }
}

fn outer(veth: &Veth<'_>, kind: InfoKind, data: InfoData) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(veth.host.to_string()),
        LinkAttribute::Mtu(veth.mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]),
    ];
    message
}

fn inner(veth: &Veth<'_>, netns: &Netns) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd()),
        LinkAttribute::IfName(veth.inner.to_string()),
        LinkAttribute::Mtu(veth.mtu),
    ];
    message.attributes.extend(veth.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message
}
