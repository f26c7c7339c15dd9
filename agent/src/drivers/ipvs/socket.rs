//! The table of the kernel, over a generic netlink socket.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt,
    socket,
};
use nix::sys::time::TimeVal;

use super::model::{Destination, DestinationStatus, Info, Service, ServiceKey, ServiceStatus, Timeouts};
use super::table::{IpvsError, IpvsTable, Object};
use super::wire::{self, FAMILY, Generic, Request};
use crate::drivers::link::Writes;
use crate::netns::Netns;

/// How often a torn dump is taken again.
const ATTEMPTS: u32 = 5;
/// The kernel answers at once, or it is broken.
const ANSWER_SECONDS: i64 = 10;
/// Writes in one datagram; their failures have to fit into the socket's buffer.
const BATCH: usize = 64;
/// More than the kernel puts into one datagram of a dump.
const BUFFER_BYTES: usize = 64 * 1024;

/// A connection to the table of one network namespace. Keeps the namespace alive while it is open.
#[derive(Debug)]
pub struct KernelTable {
    socket: OwnedFd,
    family: u16,
    sequence: u32,
    buffer: Vec<u8>,
    writes: Writes,
}

/// What a request came to.
enum Answer {
    Messages(Vec<Generic>),
    /// The table changed while it was read.
    Torn,
    /// An error number.
    Refused(i32),
}

impl KernelTable {
    /// The table of the namespace. Writes are counted in `writes`.
    pub fn open(netns: &Netns, writes: Writes) -> Result<Self, IpvsError> {
        Self::on(netns.run(connected_socket)??, writes)
    }

    /// The table of the calling thread's namespace.
    pub fn open_here(writes: Writes) -> Result<Self, IpvsError> {
        Self::on(connected_socket()?, writes)
    }

    fn on(socket: OwnedFd, writes: Writes) -> Result<Self, IpvsError> {
        let mut table = Self { socket, family: 0, sequence: 0, buffer: vec![0; BUFFER_BYTES], writes };
        table.family = table.find_family()?;
        Ok(table)
    }

    fn find_family(&mut self) -> Result<u16, IpvsError> {
        match self.exchange(&Request::Family(FAMILY))? {
            Answer::Messages(messages) => Ok(wire::family_id(&only(messages, "find the family")?)?),
            Answer::Refused(libc::ENOENT) => Err(IpvsError::ModuleMissing),
            other => Err(other.unexpected("find the family")),
        }
    }

    /// A request whose refusals `explain` names; the error numbers differ in meaning from command to command.
    fn request(
        &mut self,
        request: &Request<'_>,
        action: &dyn Fn() -> String,
        explain: &dyn Fn(i32) -> Option<IpvsError>,
    ) -> Result<Vec<Generic>, IpvsError> {
        for _ in 0..ATTEMPTS {
            match self.exchange(request)? {
                Answer::Messages(messages) => {
                    if request.is_write() {
                        self.writes.count();
                    }
                    return Ok(messages);
                }
                Answer::Torn => {}
                Answer::Refused(libc::ENOENT) if self.family_moved()? => {}
                Answer::Refused(code) => {
                    return Err(explain(code).unwrap_or_else(|| Answer::Refused(code).unexpected(&action())));
                }
            }
        }
        Err(IpvsError::Interrupted { action: action(), attempts: ATTEMPTS })
    }

    /// A family that isn't there answers like an object that isn't. Whether it has another number now; an error if
    /// the module is gone.
    fn family_moved(&mut self) -> Result<bool, IpvsError> {
        let family = self.find_family()?;
        Ok(std::mem::replace(&mut self.family, family) != family)
    }

    fn exchange(&mut self, request: &Request<'_>) -> Result<Answer, IpvsError> {
        let kind = if request.is_dump() { NLM_F_DUMP } else { NLM_F_ACK };
        let bytes = self.encode(request, kind);
        self.send(&bytes)?;
        self.collect()
    }

    fn encode(&mut self, request: &Request<'_>, flags: u16) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(request.encode(self.family));
        message.header.sequence_number = self.sequence;
        message.header.flags = NLM_F_REQUEST | flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn send(&self, bytes: &[u8]) -> Result<(), IpvsError> {
        retried(|| send(self.socket.as_raw_fd(), bytes, MsgFlags::empty()))
            .map(drop)
            .map_err(|source| IpvsError::Socket { action: "send", source })
    }

    /// The messages of the next datagram.
    fn receive(&mut self) -> Result<Vec<NetlinkMessage<Generic>>, IpvsError> {
        let length = retried(|| recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC))
            .map_err(|source| IpvsError::Socket { action: "receive", source })?;
        let mut rest = self.buffer.get(..length).ok_or_else(|| bad_datagram("a datagram is too long"))?;
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let message = NetlinkMessage::deserialize(rest).map_err(bad_datagram)?;
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            messages.push(message);
        }
        Ok(messages)
    }

    /// Several writes in one datagram. Only the last one is acknowledged, and each failure is reported, so what is
    /// heard of nothing succeeded: two system calls instead of two for each.
    fn write_all(&mut self, requests: &[Request<'_>]) -> Result<Vec<Option<i32>>, IpvsError> {
        let mut refusals = vec![None; requests.len()];
        let Some(last) = requests.len().checked_sub(1) else { return Ok(refusals) };
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for (index, request) in requests.iter().enumerate() {
            bytes.extend(self.encode(request, if index == last { NLM_F_ACK } else { 0 }));
        }
        self.send(&bytes)?;
        loop {
            for message in self.receive()? {
                let index = message.header.sequence_number.wrapping_sub(first);
                let index = usize::try_from(index).unwrap_or(usize::MAX);
                let (NetlinkPayload::Error(error), Some(refusal)) =
                    (message.payload, refusals.get_mut(index))
                else {
                    continue;
                };
                *refusal = error.code.map(|code| code.get().saturating_abs());
                if index == last {
                    return Ok(refusals);
                }
            }
        }
    }

    fn collect(&mut self) -> Result<Answer, IpvsError> {
        let mut messages = Vec::new();
        let mut torn = false;
        loop {
            for message in self.receive()? {
                // An answer to a request that was given up.
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                torn |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => messages.push(message),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Ok(Answer::Refused(error.raw_code().saturating_abs()));
                    }
                    NetlinkPayload::Done(done) if done.code != 0 => {
                        return Ok(Answer::Refused(done.code.saturating_abs()));
                    }
                    // The end of a dump, or the acknowledgement.
                    NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => {
                        return Ok(if torn { Answer::Torn } else { Answer::Messages(messages) });
                    }
                    _ => {}
                }
            }
        }
    }
}

impl Answer {
    fn unexpected(self, action: &str) -> IpvsError {
        let source = match self {
            Self::Refused(code) => io::Error::from_raw_os_error(code),
            Self::Messages(_) | Self::Torn => io::Error::from(io::ErrorKind::InvalidData),
        };
        IpvsError::Refused { action: action.to_owned(), source }
    }
}

fn only(messages: Vec<Generic>, action: &str) -> Result<Generic, IpvsError> {
    messages.into_iter().next().ok_or_else(|| Answer::Torn.unexpected(action))
}

fn bad_datagram<E: Into<Box<dyn std::error::Error + Send + Sync>>>(error: E) -> IpvsError {
    IpvsError::Socket { action: "receive", source: io::Error::new(io::ErrorKind::InvalidData, error) }
}

fn connected_socket() -> Result<OwnedFd, IpvsError> {
    let failed = |action| move |errno: nix::Error| IpvsError::Socket { action, source: errno.into() };
    let protocol = SockProtocol::NetlinkGeneric;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
        .map_err(failed("open"))?;
    connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed("connect"))?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0))
        .map_err(failed("set a time-out"))?;
    Ok(socket)
}

fn retried(mut call: impl FnMut() -> nix::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(nix::Error::EINTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

/// The meaning of error numbers for a service.
fn service_refusal(key: ServiceKey) -> impl Fn(i32) -> Option<IpvsError> {
    move |code| match code {
        libc::EEXIST => Some(IpvsError::Exists(Object::Service(key))),
        libc::ESRCH => Some(IpvsError::NotFound(Object::Service(key))),
        _ => None,
    }
}

/// The same for a new or changed service, where ENOENT is about the scheduler.
fn scheduled_refusal(service: &Service) -> impl Fn(i32) -> Option<IpvsError> {
    let (key, scheduler) = (service.key, service.scheduler.name().to_owned());
    move |code| match code {
        libc::ENOENT => Some(IpvsError::SchedulerMissing { scheduler: scheduler.clone(), service: key }),
        other => service_refusal(key)(other),
    }
}

/// The same for a destination, where ESRCH is about its service.
fn destination_refusal(key: ServiceKey, destination: &Destination) -> impl Fn(i32) -> Option<IpvsError> {
    let object = Object::Destination(key, destination.address);
    move |code| match code {
        libc::EEXIST => Some(IpvsError::Exists(object)),
        libc::ENOENT => Some(IpvsError::NotFound(object)),
        libc::ESRCH => Some(IpvsError::NotFound(Object::Service(key))),
        _ => None,
    }
}

impl IpvsTable for KernelTable {
    fn services(&mut self) -> Result<Vec<ServiceStatus>, IpvsError> {
        let messages = self.request(&Request::DumpServices, &|| "list IPVS services".into(), &|_| None)?;
        messages.iter().map(|message| Ok(wire::service_status(message)?)).collect()
    }

    fn service(&mut self, key: &ServiceKey) -> Result<Option<ServiceStatus>, IpvsError> {
        let action = || format!("read IPVS service {key}");
        match self.request(&Request::GetService(key), &action, &service_refusal(*key)) {
            Ok(messages) => Ok(Some(wire::service_status(&only(messages, &action())?)?)),
            Err(IpvsError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn destinations(&mut self, key: &ServiceKey) -> Result<Vec<DestinationStatus>, IpvsError> {
        let action = || format!("list the destinations of IPVS service {key}");
        let messages = self.request(&Request::DumpDestinations(key), &action, &|_| None)?;
        messages.iter().map(|message| Ok(wire::destination_status(message)?)).collect()
    }

    fn create_service(&mut self, service: &Service) -> Result<(), IpvsError> {
        let action = || format!("create IPVS service {}", service.key);
        self.request(&Request::NewService(service), &action, &scheduled_refusal(service)).map(drop)
    }

    fn change_service(&mut self, service: &Service) -> Result<(), IpvsError> {
        let action = || format!("change IPVS service {}", service.key);
        self.request(&Request::SetService(service), &action, &scheduled_refusal(service)).map(drop)
    }

    fn delete_service(&mut self, key: &ServiceKey) -> Result<(), IpvsError> {
        let action = || format!("remove IPVS service {key}");
        self.request(&Request::DeleteService(key), &action, &service_refusal(*key)).map(drop)
    }

    fn create_destination(&mut self, key: &ServiceKey, destination: &Destination) -> Result<(), IpvsError> {
        let action = || format!("create destination {} of IPVS service {key}", destination.address);
        let explain = destination_refusal(*key, destination);
        self.request(&Request::NewDestination(key, destination), &action, &explain).map(drop)
    }

    fn create_destinations(
        &mut self,
        key: &ServiceKey,
        destinations: &[&Destination],
    ) -> Result<Vec<Result<(), IpvsError>>, IpvsError> {
        let mut results = Vec::with_capacity(destinations.len());
        for batch in destinations.chunks(BATCH) {
            let requests: Vec<_> = batch.iter().map(|each| Request::NewDestination(key, each)).collect();
            for (destination, refusal) in batch.iter().zip(self.write_all(&requests)?) {
                let Some(code) = refusal else {
                    self.writes.count();
                    results.push(Ok(()));
                    continue;
                };
                let explained = destination_refusal(*key, destination)(code);
                let action = format!("create destination {} of IPVS service {key}", destination.address);
                results.push(Err(explained.unwrap_or_else(|| Answer::Refused(code).unexpected(&action))));
            }
        }
        Ok(results)
    }

    fn change_destination(&mut self, key: &ServiceKey, destination: &Destination) -> Result<(), IpvsError> {
        let action = || format!("change destination {} of IPVS service {key}", destination.address);
        let explain = destination_refusal(*key, destination);
        self.request(&Request::SetDestination(key, destination), &action, &explain).map(drop)
    }

    fn delete_destination(&mut self, key: &ServiceKey, destination: &Destination) -> Result<(), IpvsError> {
        let action = || format!("remove destination {} of IPVS service {key}", destination.address);
        let explain = destination_refusal(*key, destination);
        self.request(&Request::DeleteDestination(key, destination), &action, &explain).map(drop)
    }

    fn timeouts(&mut self) -> Result<Timeouts, IpvsError> {
        let action = || "read the time-outs of IPVS".to_owned();
        let messages = self.request(&Request::GetTimeouts, &action, &|_| None)?;
        Ok(wire::timeouts(&only(messages, &action())?)?)
    }

    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<(), IpvsError> {
        let action = || "set the time-outs of IPVS".to_owned();
        self.request(&Request::SetTimeouts(timeouts), &action, &|_| None).map(drop)
    }

    fn info(&mut self) -> Result<Info, IpvsError> {
        let action = || "read the version of IPVS".to_owned();
        let messages = self.request(&Request::GetInfo, &action, &|_| None)?;
        Ok(wire::info(&only(messages, &action())?)?)
    }
}
