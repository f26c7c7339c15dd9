//! Queries and responses as bytes. Pure: what arrives is hostile, and the counts in the header are checked
//! before anything is allocated for them.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Record, RecordType};

/// What a UDP response may have without EDNS.
const PLAIN_UDP_SIZE: u16 = 512;
/// What a UDP response may have at most: passes every path without fragments.
const MAX_UDP_SIZE: u16 = 1232;
/// The header's length.
pub(super) const HEADER: usize = 12;
/// No query of a sane client is longer.
pub(super) const MAX_QUERY: usize = 4096;

/// What arrived.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A question to be decided on.
    Query(Request),
    /// Not a question we can read, but one that deserves an error.
    Refuse(Vec<u8>),
    /// Nothing that may be answered: too short to have an id, or itself a response.
    Ignore,
}

/// A question with what is needed to respond.
#[derive(Clone, Debug)]
pub(super) struct Request {
    id: u16,
    recursion_desired: bool,
    checking_disabled: bool,
    edns: Option<ClientEdns>,
    question: Query,
}

#[derive(Clone, Copy, Debug)]
struct ClientEdns {
    payload: u16,
    dnssec_ok: bool,
}

/// How the client is connected, which decides how long a response may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// Reads a query.
pub(super) fn read(bytes: &[u8]) -> Incoming {
    let Some(header) = bytes.first_chunk::<HEADER>() else { return Incoming::Ignore };
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let id = count(0);
    if header[2] & 0x80 != 0 {
        return Incoming::Ignore;
    }
    let op_code = OpCode::from_u8((header[2] >> 3) & 0x0f);
    let refuse = |code| Incoming::Refuse(error(id, op_code, code));
    if op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    // One question, no records but OPT and perhaps a signature.
    if count(4) != 1 || count(6) != 0 || count(8) != 0 || count(10) > 2 {
        return refuse(ResponseCode::FormErr);
    }
    let Ok(message) = Message::from_vec(bytes) else { return refuse(ResponseCode::FormErr) };
    let Some(question) = message.queries.first().cloned() else {
        return refuse(ResponseCode::FormErr);
    };
    let request = Request {
        id,
        recursion_desired: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        edns: message
            .edns
            .as_ref()
            .map(|edns| ClientEdns { payload: edns.max_payload(), dnssec_ok: edns.flags().dnssec_ok }),
        question,
    };
    if message.edns.is_some_and(|edns| edns.version() != 0) {
        let response = request.respond(ResponseCode::BADVERS, Vec::new(), false, Transport::Udp);
        return Incoming::Refuse(response);
    }
    Incoming::Query(request)
}

impl Request {
    pub(super) fn question(&self) -> &Query {
        &self.question
    }

    pub(super) fn qtype(&self) -> RecordType {
        self.question.query_type()
    }

    pub(super) fn class(&self) -> DNSClass {
        self.question.query_class()
    }

    /// An answer of ours. What does not fit is left out: first the additional records, which nobody has to have (RFC
    /// 2181, section 9), then the answer, and then it says so.
    pub(super) fn answer(
        &self,
        answers: Vec<Record>,
        additionals: Vec<Record>,
        transport: Transport,
    ) -> Vec<u8> {
        if !additionals.is_empty() {
            let mut message = self.skeleton(self.id, MessageType::Response);
            message.metadata.authoritative = true;
            message.metadata.recursion_available = true;
            message.answers.clone_from(&answers);
            message.additionals = additionals;
            if let Ok(bytes) = message.to_vec()
                && bytes.len() <= self.limit(transport)
            {
                return bytes;
            }
        }
        self.respond(ResponseCode::NoError, answers, true, transport)
    }

    /// A response of ours. Too long for the transport, it becomes an empty one that says so.
    pub(super) fn respond(
        &self,
        code: ResponseCode,
        answers: Vec<Record>,
        authoritative: bool,
        transport: Transport,
    ) -> Vec<u8> {
        let mut message = self.skeleton(self.id, MessageType::Response);
        message.metadata.response_code = code;
        message.metadata.authoritative = authoritative;
        message.metadata.recursion_available = true;
        message.answers = answers;
        match message.to_vec() {
            Ok(bytes) if bytes.len() <= self.limit(transport) => bytes,
            _ => self.truncated(code),
        }
    }

    /// An upstream's reply, made a response to this request. Too long for the transport, it becomes an empty
    /// one that says so.
    pub(super) fn relay(&self, mut reply: Vec<u8>, transport: Transport) -> Vec<u8> {
        if reply.len() > self.limit(transport) {
            return self.truncated(ResponseCode::NoError);
        }
        if let Some(id) = reply.first_chunk_mut::<2>() {
            *id = self.id.to_be_bytes();
        }
        reply
    }

    /// This question as a query of our own: another id, none of the client's options.
    pub(super) fn upstream_query(&self, id: u16) -> Option<Vec<u8>> {
        self.skeleton(id, MessageType::Query).to_vec().ok()
    }

    /// Whether bytes are the reply to the query that [`Self::upstream_query`] made with this id.
    pub(super) fn is_reply(&self, id: u16, bytes: &[u8]) -> bool {
        let Some(header) = bytes.first_chunk::<HEADER>() else { return false };
        if header[..2] != id.to_be_bytes() || header[2] & 0x80 == 0 || header[4..6] != [0, 1] {
            return false;
        }
        // The question alone, so that records we can't read are still passed on.
        let mut head = bytes[..bytes.len().min(HEADER + 260)].to_vec();
        head[6..HEADER].fill(0);
        Message::from_vec(&head).is_ok_and(|message| {
            message.queries.first().is_some_and(|echoed| {
                echoed.name() == self.question.name()
                    && echoed.query_type() == self.qtype()
                    && echoed.query_class() == self.class()
            })
        })
    }

    /// How long a response may be.
    pub(super) fn limit(&self, transport: Transport) -> usize {
        match (transport, self.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => usize::from(PLAIN_UDP_SIZE),
            (Transport::Udp, Some(edns)) => usize::from(edns.payload.clamp(PLAIN_UDP_SIZE, MAX_UDP_SIZE)),
        }
    }

    fn truncated(&self, code: ResponseCode) -> Vec<u8> {
        let mut message = self.skeleton(self.id, MessageType::Response);
        message.metadata.response_code = code;
        message.metadata.truncation = true;
        message.metadata.recursion_available = true;
        message.to_vec().unwrap_or_else(|_| error(self.id, OpCode::Query, ResponseCode::ServFail))
    }

    fn skeleton(&self, id: u16, kind: MessageType) -> Message {
        let mut message = Message::new(id, kind, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.checking_disabled = self.checking_disabled;
        message.add_query(self.question.clone());
        if let Some(client) = self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP_SIZE).set_version(0).set_dnssec_ok(client.dnssec_ok);
            message.set_edns(edns);
        }
        message
    }
}

/// Whether a reply says that it was cut.
pub(super) fn is_truncated(reply: &[u8]) -> bool {
    reply.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// The response code in a message's header, without its EDNS part.
pub(super) fn response_code(reply: &[u8]) -> ResponseCode {
    ResponseCode::from_low(reply.get(3).map_or(2, |flags| flags & 0x0f))
}

/// A response without a question, for what could not be read.
fn error(id: u16, op_code: OpCode, code: ResponseCode) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    vec![high, low, 0x80 | (u8::from(op_code) << 3), code.low(), 0, 0, 0, 0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests;
