//! A name server outside the cluster.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// A server that knows `*.example`: `a.example` has an address, `big.example` has much text, `spoof.example` is
/// answered wrongly before it is answered rightly, `silent.example` never.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    asked: Arc<AtomicUsize>,
    pub(crate) asked_tcp: Arc<AtomicUsize>,
}

impl Upstream {
    pub(crate) fn start() -> Self {
        let udp = UdpSocket::bind("127.0.0.1:0").expect("binds");
        let address = udp.local_addr().expect("address");
        let tcp = TcpListener::bind(address).expect("binds");
        let (asked, asked_tcp) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (count, count_tcp) = (Arc::clone(&asked), Arc::clone(&asked_tcp));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = udp.recv_from(&mut buffer) {
                count.fetch_add(1, Ordering::Relaxed);
                for reply in replies(&buffer[..length], false) {
                    udp.send_to(&reply, client).expect("sends");
                }
            }
        });
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = tcp.accept() {
                count_tcp.fetch_add(1, Ordering::Relaxed);
                let mut length = [0; 2];
                stream.read_exact(&mut length).expect("query");
                let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut query).expect("query");
                for reply in replies(&query, true) {
                    let length = u16::try_from(reply.len()).expect("fits").to_be_bytes();
                    stream.write_all(&length).and_then(|()| stream.write_all(&reply)).expect("sends");
                }
            }
        });
        Self { address, asked, asked_tcp }
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed) + self.asked_tcp.load(Ordering::Relaxed)
    }
}

fn replies(query: &[u8], tcp: bool) -> Vec<Vec<u8>> {
    let query = Message::from_vec(query).expect("our queries are readable");
    let question = query.queries[0].clone();
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    reply.metadata.recursion_available = true;
    reply.add_query(question.clone());
    let name = question.name().to_string();
    let address = |last| Record::from_rdata(question.name().clone(), 60, RData::A(A::new(192, 0, 2, last)));
    match name.as_str() {
        "a.example." => drop(reply.add_answer(address(1))),
        "big.example." if tcp => {
            for _ in 0..20 {
                let text = RData::TXT(TXT::new(vec!["x".repeat(200)]));
                reply.add_answer(Record::from_rdata(question.name().clone(), 60, text));
            }
        }
        "big.example." => reply.metadata.truncation = true,
        "silent.example." => return Vec::new(),
        "spoof.example." => {
            let mut wrong_id = reply.clone();
            wrong_id.metadata.id = query.metadata.id.wrapping_add(1);
            wrong_id.add_answer(address(66));
            let mut wrong_name = Message::response(query.metadata.id, OpCode::Query);
            wrong_name
                .add_query(Query::query(Name::from_str("other.example.").expect("name"), RecordType::A));
            wrong_name.add_answer(address(67));
            let mut no_reply = reply.clone();
            no_reply.metadata.message_type = MessageType::Query;
            reply.add_answer(address(2));
            return [wrong_id, wrong_name, no_reply, reply]
                .iter()
                .map(|message| message.to_vec().expect("encodes"))
                .collect();
        }
        _ => reply.metadata.response_code = ResponseCode::NXDomain,
    }
    vec![reply.to_vec().expect("encodes")]
}
