use super::*;
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData};
use proptest::prelude::*;
use std::str::FromStr as _;

fn query(name: &str, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("name"), RecordType::A));
    if let Some(payload) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(payload).set_version(0);
        message.set_edns(edns);
    }
    message.to_vec().expect("encodes")
}

fn request(name: &str, edns: Option<u16>) -> Request {
    match read(&query(name, edns)) {
        Incoming::Query(request) => request,
        other => panic!("{other:?}"),
    }
}

fn addresses(count: u8) -> Vec<Record> {
    let name = Name::from_str("tasks.web.").expect("name");
    (0..count).map(|n| Record::from_rdata(name.clone(), 5, RData::A(A::new(10, 0, 0, n)))).collect()
}

fn refused(bytes: &[u8]) -> ResponseCode {
    match read(bytes) {
        Incoming::Refuse(response) => {
            let message = Message::from_vec(&response).expect("a readable response");
            assert_eq!(message.metadata.message_type, MessageType::Response);
            assert_eq!(response[..2], bytes[..2], "the query's id");
            message.metadata.response_code
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn responses_and_scraps_are_never_answered() {
    let mut response = query("web.", None);
    response[2] |= 0x80;
    assert!(matches!(read(&response), Incoming::Ignore));
    for length in 0..HEADER {
        assert!(matches!(read(&query("web.", None)[..length]), Incoming::Ignore));
    }
}

#[test]
fn unreadable_queries_are_refused() {
    let good = query("web.", None);
    let changed = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    assert_eq!(refused(&good[..HEADER]), ResponseCode::FormErr, "no question");
    assert_eq!(refused(&changed(5, 0)), ResponseCode::FormErr, "no question");
    assert_eq!(refused(&changed(5, 2)), ResponseCode::FormErr, "two questions");
    assert_eq!(refused(&changed(4, 0xff)), ResponseCode::FormErr, "65281 questions");
    assert_eq!(refused(&changed(7, 1)), ResponseCode::FormErr, "an answer");
    assert_eq!(refused(&changed(2, 0x28)), ResponseCode::NotImp, "an update");
    // A name that points to itself.
    assert_eq!(refused(&changed(HEADER, 0xc0)), ResponseCode::FormErr);
    let mut looped = good.clone();
    looped.splice(HEADER.., [0xc0, 0x0c, 0, 1, 0, 1]);
    assert_eq!(refused(&looped), ResponseCode::FormErr);
}

#[test]
fn a_newer_edns_is_told_so() {
    let mut bytes = query("web.", Some(1232));
    let version = bytes.len() - 5;
    bytes[version] = 1;
    // 16 is BADSIG too.
    assert_eq!(u16::from(refused(&bytes)), u16::from(ResponseCode::BADVERS));
}

#[test]
fn a_response_echoes_the_question() {
    let request = request("tasks.WEB.", Some(4096));
    let bytes = request.respond(ResponseCode::NoError, addresses(3), true, Transport::Udp);
    let message = Message::from_vec(&bytes).expect("decodes");
    assert_eq!((message.metadata.id, message.answers.len()), (7, 3));
    assert!(message.metadata.authoritative && message.metadata.recursion_available);
    assert_eq!(message.queries[0].name().to_string(), "tasks.WEB.");
    assert_eq!(message.edns.expect("EDNS").max_payload(), MAX_UDP_SIZE);
}

#[test]
fn what_is_too_long_says_so() {
    for (edns, transport, fits, exceeds) in [
        (None, Transport::Udp, 15, 40),
        (Some(100), Transport::Udp, 15, 40),
        (Some(1232), Transport::Udp, 70, 90),
        (Some(65535), Transport::Udp, 70, 90),
    ] {
        let request = request("tasks.web.", edns);
        let respond = |count| {
            let bytes = request.respond(ResponseCode::NoError, addresses(count), true, transport);
            assert!(bytes.len() <= usize::from(MAX_UDP_SIZE));
            Message::from_vec(&bytes).expect("decodes")
        };
        let whole = respond(fits);
        assert!(!whole.metadata.truncation && whole.answers.len() == usize::from(fits), "{edns:?}");
        let cut = respond(exceeds);
        assert!(cut.metadata.truncation && cut.answers.is_empty() && cut.queries.len() == 1, "{edns:?}");
        let tcp = request.respond(ResponseCode::NoError, addresses(255), true, Transport::Tcp);
        assert_eq!(Message::from_vec(&tcp).expect("decodes").answers.len(), 255);
    }
}

#[test]
fn only_the_reply_to_the_question_asked_is_taken() {
    let request = request("example.com.", None);
    let own = request.upstream_query(4711).expect("encodes");
    let mut reply = own.clone();
    reply[2] |= 0x80;
    assert!(request.is_reply(4711, &reply));
    assert!(!request.is_reply(4712, &reply), "another id");
    assert!(!request.is_reply(4711, &own), "a query");
    let mut other = reply.clone();
    other[HEADER + 1] = b'x';
    assert!(!request.is_reply(4711, &other), "another name");
    let mut other = reply.clone();
    *other.last_mut().expect("class") = 3;
    assert!(!request.is_reply(4711, &other), "another class");
    assert!(!request.is_reply(4711, &reply[..HEADER]));
    let relayed = request.relay(reply, Transport::Udp);
    assert_eq!(relayed[..2], 7_u16.to_be_bytes(), "the client's own id");
}

#[test]
fn the_client_s_options_are_not_passed_on() {
    let bytes = request("example.com.", Some(4096)).upstream_query(1).expect("encodes");
    let message = Message::from_vec(&bytes).expect("decodes");
    assert_eq!(message.edns.expect("EDNS").max_payload(), MAX_UDP_SIZE);
    assert!(message.metadata.recursion_desired);
    assert!(request("example.com.", None).upstream_query(1).is_some_and(|bytes| bytes[11] == 0), "no EDNS");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let request = request("example.com.", None);
        // Whatever it is, it is decided on; a refusal is short.
        if let Incoming::Refuse(response) = read(&bytes) {
            prop_assert!(response.len() <= bytes.len().max(64) + 32);
        }
        request.is_reply(1, &bytes);
        let relayed = request.relay(bytes, Transport::Udp);
        prop_assert!(relayed.len() <= usize::from(PLAIN_UDP_SIZE));
    }

    #[test]
    fn damaged_queries_never_panic(
        edns in prop::option::of(any::<u16>()),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = query("a.tasks.web.front.", edns);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let is_response = bytes.get(2).is_some_and(|flags| flags & 0x80 != 0);
        match read(&bytes) {
            Incoming::Ignore => prop_assert!(is_response || bytes.len() < HEADER),
            Incoming::Refuse(_) => prop_assert!(!is_response),
            Incoming::Query(request) => {
                prop_assert!(!is_response);
                let response = request.respond(ResponseCode::NoError, addresses(200), true, Transport::Udp);
                prop_assert!(response.len() <= usize::from(MAX_UDP_SIZE));
                prop_assert!(Message::from_vec(&response).is_ok());
            }
        }
    }
}
