//! Requests: dumps that are whole, and writes that are acknowledged and counted.

use std::io;
use std::net::IpAddr;

use futures_util::StreamExt;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::rule::RuleMessage;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use shoal_plan::IfName;

use super::{Link, LinkError, LinkTable, Writes};

/// How often an interrupted dump is taken again.
const DUMP_ATTEMPTS: u32 = 16;

/// A netlink handle that counts its writes.
#[derive(Clone, Debug)]
pub struct Nl {
    handle: Handle,
    writes: Writes,
}

impl Nl {
    /// Over a connection that somebody else keeps open.
    pub fn new(handle: &Handle, writes: &Writes) -> Self {
        Self { handle: handle.clone(), writes: writes.clone() }
    }

    /// The counter.
    pub fn writes(&self) -> &Writes {
        &self.writes
    }

    /// Every answer to a dump request, taken again when the table changed under it.
    pub async fn dump(
        &self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, LinkError> {
        self.dump_of(what, message, Some).await
    }

    /// The same, of which only so much is kept as is asked for: a message is ten times what it says.
    async fn dump_of<T>(
        &self,
        what: &str,
        message: RouteNetlinkMessage,
        kept: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, LinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut request = NetlinkMessage::from(message.clone());
            request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            let mut answers = self.request(&format!("list {what}"), request)?;
            let (mut found, mut torn) = (Vec::new(), false);
            while let Some(answer) = answers.next().await {
                torn |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => found.extend(kept(inner)),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(refused(format!("list {what}"), error.raw_code()));
                    }
                    _ => {}
                }
            }
            if !torn {
                return Ok(found);
            }
        }
        Err(LinkError::Interrupted { action: format!("list {what}"), attempts: DUMP_ATTEMPTS })
    }

    /// All links.
    pub async fn links(&self) -> Result<LinkTable, LinkError> {
        let answers = self.dump("links", RouteNetlinkMessage::GetLink(LinkMessage::default())).await?;
        Ok(answers
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) => Some(Link::from(link)),
                _ => None,
            })
            .collect())
    }

    /// One link, if it is there.
    pub async fn link(&self, name: &IfName) -> Result<Option<Link>, LinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_string()));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetLink(message));
        request.header.flags = NLM_F_REQUEST;
        let action = format!("look up link {name}");
        let mut answers = self.request(&action, request)?;
        let mut found = None;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                    found = Some(Link::from(link));
                }
                NetlinkPayload::Error(error) if error.raw_code() == -libc::ENODEV => return Ok(None),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(refused(action, error.raw_code()));
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// All addresses.
    pub async fn addresses(&self) -> Result<Vec<AddressMessage>, LinkError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump("addresses", request).await?;
        Ok(answers
            .into_iter()
            .filter_map(|m| if let RouteNetlinkMessage::NewAddress(m) = m { Some(m) } else { None })
            .collect())
    }

    /// All neighbors of a family; of the bridge family: forwarding entries.
    pub async fn neighbors(&self, family: AddressFamily) -> Result<Vec<NeighbourMessage>, LinkError> {
        self.neighbors_of(family, Some).await
    }

    /// What is asked for of them.
    pub async fn neighbors_of<T>(
        &self,
        family: AddressFamily,
        kept: impl Fn(NeighbourMessage) -> Option<T>,
    ) -> Result<Vec<T>, LinkError> {
        let mut request = NeighbourMessage::default();
        request.header.family = family;
        let kept = |message| if let RouteNetlinkMessage::NewNeighbour(m) = message { kept(m) } else { None };
        self.dump_of("neighbors", RouteNetlinkMessage::GetNeighbour(request), kept).await
    }

    /// The link by which the namespace sends to an address; none if it has no route there.
    pub async fn way_to(&self, ip: IpAddr) -> Result<Option<u32>, LinkError> {
        let mut message = RouteMessage::default();
        (message.header.address_family, message.header.destination_prefix_length) = match ip {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        message.attributes.push(RouteAttribute::Destination(ip.into()));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(message));
        request.header.flags = NLM_F_REQUEST;
        let action = format!("look up the route to {ip}");
        let mut answers = self.request(&action, request)?;
        let mut found = None;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                    found = route.attributes.iter().find_map(|attribute| match attribute {
                        RouteAttribute::Oif(index) => Some(*index),
                        _ => None,
                    });
                }
                // Unreachable, prohibited, or sent nowhere: all of them are no way.
                NetlinkPayload::Error(error) if error.code.is_some() => return Ok(None),
                _ => {}
            }
        }
        Ok(found)
    }

    /// All routes of a family, in every table.
    pub async fn routes(&self, family: AddressFamily) -> Result<Vec<RouteMessage>, LinkError> {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let answers = self.dump("routes", RouteNetlinkMessage::GetRoute(request)).await?;
        Ok(answers
            .into_iter()
            .filter_map(|m| if let RouteNetlinkMessage::NewRoute(m) = m { Some(m) } else { None })
            .collect())
    }

    /// All policy rules of a family.
    pub async fn rules(&self, family: AddressFamily) -> Result<Vec<RuleMessage>, LinkError> {
        let mut request = RuleMessage::default();
        request.header.family = family;
        let answers = self.dump("rules", RouteNetlinkMessage::GetRule(request)).await?;
        Ok(answers
            .into_iter()
            .filter_map(|m| if let RouteNetlinkMessage::NewRule(m) = m { Some(m) } else { None })
            .collect())
    }

    /// Makes what must not exist yet.
    pub async fn create(&self, action: &str, message: RouteNetlinkMessage) -> Result<(), LinkError> {
        self.write(action, message, NLM_F_CREATE | NLM_F_EXCL).await
    }

    /// Makes or overwrites.
    pub async fn replace(&self, action: &str, message: RouteNetlinkMessage) -> Result<(), LinkError> {
        self.write(action, message, NLM_F_CREATE | NLM_F_REPLACE).await
    }

    /// Changes what exists, or removes.
    pub async fn change(&self, action: &str, message: RouteNetlinkMessage) -> Result<(), LinkError> {
        self.write(action, message, 0).await
    }

    /// Removes; what is gone already (or whose link is) counts as removed.
    pub async fn remove(&self, action: &str, message: RouteNetlinkMessage) -> Result<(), LinkError> {
        match self.write(action, message, 0).await {
            Err(error)
                if matches!(
                    error.errno(),
                    Some(libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL)
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    async fn write(&self, action: &str, message: RouteNetlinkMessage, flags: u16) -> Result<(), LinkError> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = self.request(action, request)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(refused(action.to_owned(), error.raw_code()));
            }
        }
        self.writes.count();
        Ok(())
    }

    fn request(
        &self,
        action: &str,
        request: NetlinkMessage<RouteNetlinkMessage>,
    ) -> Result<impl futures_util::Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + use<>, LinkError>
    {
        self.handle
            .clone()
            .request(request)
            .map_err(|_closed| LinkError::Closed { action: action.to_owned() })
    }
}

fn refused(action: String, code: i32) -> LinkError {
    LinkError::Refused { action, source: io::Error::from_raw_os_error(code.saturating_abs()) }
}

/// A message that changes a link, addressed by index: quiet (no link-local addresses of its own), with `attributes`;
/// `up` sets it up, which has to come after the rest.
pub fn link_message(index: u32, attributes: Vec<LinkAttribute>, up: bool) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    if up {
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
    } else {
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
            AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
        ])]));
    }
    message
}
