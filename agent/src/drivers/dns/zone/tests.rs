use super::network::MAX_RECORDS;
use super::*;
use shoal_types::Protocol;
use std::net::IpAddr;
use std::str::FromStr as _;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn task(service: &str, slot: &str, addresses: &[&str]) -> TaskRecord {
    TaskRecord {
        service: service.to_owned(),
        slot: slot.to_owned(),
        serving: true,
        idle: false,
        addresses: addresses.iter().map(|text| ip(text)).collect(),
    }
}

fn front() -> NetworkRecords {
    NetworkRecords {
        name: "Front".to_owned(),
        subnets: vec!["10.9.0.0/20".parse().expect("subnet"), "fd00:9::/64".parse().expect("subnet")],
        services: vec![
            ServiceRecord {
                name: "Web".to_owned(),
                aliases: vec!["www".to_owned()],
                vips: vec![ip("10.9.0.2"), ip("fd00:9::2")],
                targets: vec![(Protocol::Tcp, 80), (Protocol::Tcp, 443), (Protocol::Udp, 53)],
            },
            ServiceRecord {
                name: "rr".to_owned(),
                aliases: vec!["ring".to_owned()],
                ..ServiceRecord::default()
            },
            ServiceRecord { name: "down".to_owned(), vips: vec![ip("10.9.0.3")], ..ServiceRecord::default() },
            ServiceRecord { name: "idle".to_owned(), ..ServiceRecord::default() },
            ServiceRecord { name: "agents".to_owned(), ..ServiceRecord::default() },
        ],
        tasks: vec![
            task("web", "1", &["10.9.0.11", "fd00:9::11"]),
            task("web", "2", &["10.9.0.12"]),
            task("web", "3", &["10.9.0.13"]),
            TaskRecord { serving: false, ..task("web", "4", &["10.9.0.14"]) },
            task("rr", "1", &["10.9.0.31"]),
            task("rr", "2", &["10.9.0.32"]),
            task("agents", "4kq2mxz7", &["10.9.0.41"]),
        ],
    }
}

fn back() -> NetworkRecords {
    NetworkRecords {
        name: "back".to_owned(),
        subnets: vec!["10.9.16.0/20".parse().expect("subnet")],
        services: vec![ServiceRecord {
            name: "db".to_owned(),
            vips: vec![ip("10.9.16.2")],
            ..ServiceRecord::default()
        }],
        tasks: vec![task("db", "1", &["10.9.16.11"])],
    }
}

fn reserved() -> Arc<Reserved> {
    Arc::new(Reserved {
        networks: ["front", "back", "hidden"].map(str::to_owned).into(),
        slots: ["4kq2mxz7", "8fjw3c9d"].map(str::to_owned).into(),
        subnets: vec!["10.9.0.0/16".parse().expect("pool")],
    })
}

fn zone(networks: &[NetworkRecords]) -> Zone {
    Zone::new(networks.iter().map(|records| Arc::new(NetworkZone::new(records))).collect(), reserved(), true)
}

fn ask(zone: &Zone, name: &str, qtype: RecordType) -> Decision {
    zone.decide(&Name::from_str(name).expect("name"), qtype, DNSClass::IN, 0)
}

/// Answers as text, with their TTLs.
fn answers(zone: &Zone, name: &str, qtype: RecordType) -> Vec<(String, u32)> {
    match ask(zone, name, qtype) {
        Decision::Answer(records) => {
            records.iter().map(|record| (record.data.to_string(), record.ttl)).collect()
        }
        other => panic!("{name} {qtype}: {other:?}"),
    }
}

fn texts<const N: usize>(expected: [(&str, u32); N]) -> Vec<(String, u32)> {
    expected.map(|(text, ttl)| (text.to_owned(), ttl)).into()
}

#[test]
fn a_service_is_its_virtual_ip() {
    let zone = zone(&[front()]);
    for name in ["web.", "WEB.", "web.front.", "web.FRONT.", "www.", "www.front."] {
        assert_eq!(answers(&zone, name, RecordType::A), texts([("10.9.0.2", TTL_VIP)]), "{name}");
        assert_eq!(answers(&zone, name, RecordType::AAAA), texts([("fd00:9::2", TTL_VIP)]), "{name}");
    }
    assert_eq!(answers(&zone, "web.", RecordType::ANY).len(), 2);
}

#[test]
fn a_service_without_virtual_ip_is_its_endpoints() {
    let zone = zone(&[front()]);
    let expected = texts([("10.9.0.31", TTL_TASK), ("10.9.0.32", TTL_TASK)]);
    assert_eq!(answers(&zone, "rr.", RecordType::A), expected);
}

#[test]
fn names_that_stand_for_tasks_leave_out_idle_ones_while_there_are_others() {
    let mut records = front();
    let set_idle = |records: &mut NetworkRecords, service: &str, slot: &str| {
        let mut found = records.tasks.iter_mut().filter(|task| task.service == service && task.slot == slot);
        found.next().expect("there").idle = true;
    };
    set_idle(&mut records, "rr", "1");
    set_idle(&mut records, "web", "1");
    let some = zone(&[records.clone()]);
    let (first, second) = (("10.9.0.31", TTL_TASK), ("10.9.0.32", TTL_TASK));
    for name in ["rr.", "ring.", "rr.front."] {
        assert_eq!(answers(&some, name, RecordType::A), texts([second]), "{name}");
    }
    // Who asks for tasks gets them all.
    assert_eq!(answers(&some, "tasks.rr.", RecordType::A), texts([first, second]));
    assert_eq!(answers(&some, "tasks.web.", RecordType::A).len(), 3);
    assert_eq!(answers(&some, "rr.1.", RecordType::A), texts([first]));
    assert_eq!(located(&some, "_80._tcp.rr.").0.len(), 2);
    set_idle(&mut records, "rr", "2");
    let all = zone(&[records]);
    assert_eq!(answers(&all, "rr.", RecordType::A), texts([first, second]));
}

#[test]
fn tasks_of_a_service_are_its_healthy_addresses_in_turn() {
    let zone = zone(&[front()]);
    let mut firsts = Vec::new();
    for rotation in 0..4 {
        let decision =
            zone.decide(&Name::from_str("tasks.web.").expect("name"), RecordType::A, DNSClass::IN, rotation);
        let Decision::Answer(records) = decision else { panic!("{decision:?}") };
        assert_eq!(records.len(), 3);
        firsts.push(records[0].data.to_string());
    }
    assert_eq!(firsts, ["10.9.0.11", "10.9.0.12", "10.9.0.13", "10.9.0.11"]);
    assert_eq!(answers(&zone, "tasks.web.front.", RecordType::AAAA), texts([("fd00:9::11", TTL_TASK)]));
    assert_eq!(answers(&zone, "tasks.down.", RecordType::A), [], "no healthy task, but a name that exists");
}

#[test]
fn tasks_have_names_whether_they_serve_or_not() {
    let zone = zone(&[front()]);
    for name in ["web.1.", "web.1.front.", "WEB.1.Front."] {
        assert_eq!(answers(&zone, name, RecordType::A), texts([("10.9.0.11", TTL_TASK)]), "{name}");
    }
    assert_eq!(answers(&zone, "web.4.", RecordType::A), texts([("10.9.0.14", TTL_TASK)]));
    assert_eq!(ask(&zone, "web.7.", RecordType::A), Decision::NxDomain);
    assert_eq!(ask(&zone, "web.7.front.", RecordType::A), Decision::NxDomain);
    // Those of a global service have their node's id in place of a number.
    for name in ["agents.4kq2mxz7.", "agents.4KQ2mxz7.front."] {
        assert_eq!(answers(&zone, name, RecordType::A), texts([("10.9.0.41", TTL_TASK)]), "{name}");
    }
    assert_eq!(ask(&zone, "agents.8fjw3c9d.", RecordType::A), Decision::NxDomain);
    assert_eq!(ask(&zone, "other.8fjw3c9d.", RecordType::A), Decision::NxDomain);
}

#[test]
fn aliases_are_names_of_the_service_in_one_network() {
    let zone = zone(&[front(), back()]);
    let tasks = texts([("10.9.0.31", TTL_TASK), ("10.9.0.32", TTL_TASK)]);
    for name in ["ring.", "ring.front.", "tasks.ring.", "RING."] {
        assert_eq!(answers(&zone, name, RecordType::A), tasks, "{name}");
    }
    assert_eq!(answers(&zone, "tasks.www.", RecordType::A).len(), 3);
    for name in ["ring.back.", "www.back."] {
        assert_eq!(ask(&zone, name, RecordType::A), Decision::NxDomain, "{name}");
    }
}

#[test]
fn services_share_an_alias_and_a_name_goes_before_it() {
    let mut records = front();
    for (service, alias) in
        [("web", "both"), ("rr", "both"), ("web", "down"), ("down", "DOWN"), ("rr", "both")]
    {
        let found = records.services.iter_mut().find(|known| known.name.eq_ignore_ascii_case(service));
        found.expect("there").aliases.push(alias.to_owned());
    }
    let zone = zone(&[records]);
    // The virtual IP of one and the tasks of the other, kept no longer than the tasks may be.
    let both = texts([("10.9.0.2", TTL_TASK), ("10.9.0.31", TTL_TASK), ("10.9.0.32", TTL_TASK)]);
    assert_eq!(answers(&zone, "both.", RecordType::A), both);
    assert_eq!(answers(&zone, "tasks.both.", RecordType::A).len(), 5);
    assert_eq!(located(&zone, "_8080._tcp.both.").0.len(), 5);
    assert_eq!(answers(&zone, "down.", RecordType::A), texts([("10.9.0.3", TTL_VIP)]));
}

/// Targets with their ports, and additional records, as text.
fn located(zone: &Zone, name: &str) -> (Vec<String>, Vec<String>) {
    match ask(zone, name, RecordType::SRV) {
        Decision::AnswerWith(answers, more) => {
            let owner = Name::from_str(name).expect("name");
            assert!(answers.iter().all(|record| record.ttl == TTL_TASK && record.name == owner));
            let more = more.iter().map(|record| format!("{} {}", record.name, record.data));
            (answers.iter().map(|record| record.data.to_string()).collect(), more.collect())
        }
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn services_are_located_by_their_serving_tasks() {
    let zone = zone(&[front()]);
    let (answers, more) = located(&zone, "_8080._tcp.web.");
    assert_eq!(answers, ["0 1 8080 web.1.front.", "0 1 8080 web.2.front.", "0 1 8080 web.3.front."]);
    assert_eq!(
        more,
        [
            "web.1.front. 10.9.0.11",
            "web.1.front. fd00:9::11",
            "web.2.front. 10.9.0.12",
            "web.3.front. 10.9.0.13"
        ]
    );
    for name in ["_8080._tcp.web.front.", "_8080._TCP.WWW.", "_8080._udp.www.Front."] {
        assert_eq!(located(&zone, name).0, answers, "{name}");
    }
    let published = located(&zone, "_tcp.web.").0;
    assert_eq!(published.iter().filter(|text| text.contains(" 443 ")).count(), 3, "{published:?}");
    assert_eq!(published.len(), 6);
    assert_eq!(located(&zone, "_udp.web.").0.len(), 3);
    // Nothing is published, or nobody serves: the service is there all the same.
    for name in ["_tcp.rr.", "_80._tcp.down.", "_80._tcp.idle."] {
        assert_eq!(located(&zone, name), (vec![], vec![]), "{name}");
    }
    for qtype in [RecordType::A, RecordType::AAAA, RecordType::TXT] {
        assert_eq!(ask(&zone, "_8080._tcp.web.", qtype), Decision::Answer(Vec::new()));
    }
    assert!(matches!(ask(&zone, "_8080._tcp.web.", RecordType::ANY), Decision::AnswerWith(..)));
}

#[test]
fn who_is_not_there_is_not_located_and_not_asked_for_outside() {
    let zone = zone(&[front()]);
    for name in ["_80._tcp.nosuch.", "_tcp.db.", "_http._tcp.web.", "_80._tcp.db.back.", "_tcp.x.hidden."] {
        assert_eq!(ask(&zone, name, RecordType::SRV), Decision::NxDomain, "{name}");
    }
    for name in ["_sip._tcp.example.org.", "_443._tcp.web.example.", "_ldap._tcp.dc._msdcs.example.org."] {
        assert_eq!(ask(&zone, name, RecordType::SRV), Decision::Forward, "{name}");
    }
}

#[test]
fn located_tasks_take_turns() {
    let zone = zone(&[front()]);
    let name = Name::from_str("_80._tcp.web.").expect("name");
    let first = |rotation| match zone.decide(&name, RecordType::SRV, DNSClass::IN, rotation) {
        Decision::AnswerWith(answers, _) => answers[0].data.to_string(),
        other => panic!("{other:?}"),
    };
    let firsts: Vec<_> = (0..3).map(first).collect();
    assert_eq!(firsts, ["0 1 80 web.1.front.", "0 1 80 web.2.front.", "0 1 80 web.3.front."]);
}

#[test]
fn a_service_without_tasks_is_no_false_name() {
    let zone = zone(&[front()]);
    for name in ["idle.", "idle.front.", "tasks.idle."] {
        assert_eq!(answers(&zone, name, RecordType::A), [], "{name}");
    }
}

#[test]
fn a_name_that_exists_has_no_error_for_any_type() {
    let zone = zone(&[front()]);
    for name in ["web.", "web.1.", "tasks.rr.", "rr.front.", "front.", "down."] {
        for qtype in [RecordType::MX, RecordType::TXT, RecordType::AAAA, RecordType::SRV, RecordType::ANY] {
            assert!(matches!(ask(&zone, name, qtype), Decision::Answer(_)), "{name} {qtype}");
        }
    }
    assert_eq!(answers(&zone, "down.", RecordType::AAAA), []);
}

#[test]
fn addresses_have_names() {
    let zone = zone(&[front(), back()]);
    let ptr = |name: &str| answers(&zone, name, RecordType::PTR);
    assert_eq!(ptr("11.0.9.10.in-addr.arpa."), texts([("web.1.front.", TTL_TASK)]));
    assert_eq!(ptr("2.0.9.10.IN-ADDR.arpa."), texts([("web.front.", TTL_TASK)]));
    assert_eq!(ptr("11.16.9.10.in-addr.arpa."), texts([("db.1.back.", TTL_TASK)]));
    let v6 = format!("1.1.{}9.0.0.0.0.0.d.f.ip6.arpa.", "0.".repeat(22));
    assert_eq!(ptr(&v6), texts([("web.1.front.", TTL_TASK)]), "{v6}");
    assert_eq!(answers(&zone, "11.0.9.10.in-addr.arpa.", RecordType::A), []);
}

#[test]
fn own_addresses_are_never_asked_outside() {
    let zone = zone(&[front()]);
    // In the task's network, elsewhere in the cluster's pool, the loopback.
    for name in [
        "99.0.9.10.in-addr.arpa.",
        "1.1.9.10.in-addr.arpa.",
        "11.16.9.10.in-addr.arpa.",
        "1.0.0.127.in-addr.arpa.",
    ] {
        assert_eq!(ask(&zone, name, RecordType::PTR), Decision::NxDomain, "{name}");
    }
    // Above and below them there may be names.
    for name in ["9.10.in-addr.arpa.", "10.in-addr.arpa.", "0.9.10.in-addr.arpa."] {
        assert_eq!(ask(&zone, name, RecordType::NS), Decision::Answer(Vec::new()), "{name}");
    }
    for name in [
        "8.8.8.8.in-addr.arpa.",
        "10.10.in-addr.arpa.",
        "in-addr.arpa.",
        "x.9.10.in-addr.arpa.",
        "1.ip6.arpa.",
    ] {
        assert_eq!(ask(&zone, name, RecordType::PTR), Decision::Forward, "{name}");
    }
}

#[test]
fn own_names_are_never_asked_outside() {
    let zone = zone(&[front()]);
    for name in [
        "unknown.",
        "db.",
        "tasks.",
        "tasks.unknown.",
        "web.99.",
        "unknown.front.",
        "a.b.front.",
        "db.back.",
        "tasks.db.back.",
        "x.hidden.",
        "10.9.0.11.",
        "db.1.",
    ] {
        assert_eq!(ask(&zone, name, RecordType::A), Decision::NxDomain, "{name}");
    }
    for name in
        ["example.com.", "www.example.com.", "web.example.", "front.example.", "xfront.example.", "a.xfront."]
    {
        assert_eq!(ask(&zone, name, RecordType::A), Decision::Forward, "{name}");
    }
}

#[test]
fn networks_are_isolated() {
    let (front_only, both) = (zone(&[front()]), zone(&[front(), back()]));
    assert_eq!(answers(&both, "db.", RecordType::A), texts([("10.9.16.2", TTL_VIP)]));
    assert_eq!(answers(&both, "db.back.", RecordType::A), texts([("10.9.16.2", TTL_VIP)]));
    assert_eq!(ask(&both, "db.front.", RecordType::A), Decision::NxDomain);
    for name in ["db.", "db.back.", "tasks.db.", "db.1."] {
        assert_eq!(ask(&front_only, name, RecordType::A), Decision::NxDomain, "{name}");
    }
}

#[test]
fn the_first_network_with_such_a_record_answers() {
    let mut other = back();
    other.services.push(ServiceRecord {
        name: "down".to_owned(),
        vips: vec![ip("10.9.16.3"), ip("fd00:16::3")],
        ..ServiceRecord::default()
    });
    let zone = zone(&[front(), other]);
    assert_eq!(answers(&zone, "down.", RecordType::A), texts([("10.9.0.3", TTL_VIP)]));
    assert_eq!(answers(&zone, "down.", RecordType::AAAA), texts([("fd00:16::3", TTL_VIP)]));
    assert_eq!(answers(&zone, "down.back.", RecordType::A), texts([("10.9.16.3", TTL_VIP)]));
}

#[test]
fn internal_tasks_ask_nothing_outside() {
    let networks = vec![Arc::new(NetworkZone::new(&front()))];
    let zone = Zone::new(networks, reserved(), false);
    assert_eq!(answers(&zone, "web.", RecordType::A).len(), 1);
    for (name, qtype) in [
        ("example.com.", RecordType::A),
        ("8.8.8.8.in-addr.arpa.", RecordType::PTR),
        ("example.com.", RecordType::ANY),
    ] {
        assert_eq!(ask(&zone, name, qtype), Decision::Refused, "{name}");
    }
    assert_eq!(ask(&zone, "unknown.", RecordType::A), Decision::NxDomain);
}

#[test]
fn what_is_not_known_is_not_denied() {
    let nothing = Zone::unknown();
    for name in ["web.", "example.com.", "1.0.9.10.in-addr.arpa."] {
        assert_eq!(ask(&nothing, name, RecordType::A), Decision::ServFail, "{name}");
    }
    let subnets = vec!["10.9.16.0/20".parse().expect("subnet")];
    let networks =
        vec![Arc::new(NetworkZone::new(&front())), Arc::new(NetworkZone::unknown("back", subnets))];
    let partly = Zone::new(networks, reserved(), true);
    assert_eq!(answers(&partly, "web.", RecordType::A).len(), 1, "what is known is answered");
    for name in ["db.", "db.back.", "tasks.db.", "db.1."] {
        assert_eq!(ask(&partly, name, RecordType::A), Decision::ServFail, "{name}");
    }
    assert_eq!(ask(&partly, "11.16.9.10.in-addr.arpa.", RecordType::PTR), Decision::ServFail);
    assert_eq!(ask(&partly, "x.front.", RecordType::A), Decision::NxDomain, "this network is known");
    assert_eq!(ask(&partly, "example.com.", RecordType::A), Decision::Forward);
}

#[test]
fn localhost_is_the_loopback() {
    let zone = zone(&[front()]);
    assert_eq!(answers(&zone, "localhost.", RecordType::A), texts([("127.0.0.1", TTL_VIP)]));
    assert_eq!(answers(&zone, "x.LocalHost.", RecordType::AAAA), texts([("::1", TTL_VIP)]));
    assert_eq!(answers(&zone, "localhost.", RecordType::MX), []);
}

#[test]
fn some_questions_are_nobody_s() {
    let zone = zone(&[front()]);
    assert_eq!(ask(&zone, "example.com.", RecordType::AXFR), Decision::Refused);
    assert_eq!(ask(&zone, ".", RecordType::NS), Decision::Refused);
    assert_eq!(ask(&zone, "example.com.", RecordType::ANY), Decision::NotImplemented);
    let version = Name::from_str("version.bind.").expect("name");
    assert_eq!(zone.decide(&version, RecordType::TXT, DNSClass::CH, 0), Decision::Refused);
}

#[test]
fn a_dot_inside_a_label_is_no_boundary() {
    let zone = zone(&[front()]);
    let name = Name::from_labels([b"web.1".as_slice()]).expect("name");
    assert_eq!(zone.decide(&name, RecordType::A, DNSClass::IN, 0), Decision::NxDomain);
    let name = Name::from_labels([b"web.front".as_slice()]).expect("name");
    assert_eq!(zone.decide(&name, RecordType::A, DNSClass::IN, 0), Decision::NxDomain);
}

#[test]
fn a_task_and_its_replacement_share_a_name() {
    let mut records = front();
    records.tasks.push(task("web", "2", &["10.9.0.99"]));
    let zone = zone(&[records]);
    let both = texts([("10.9.0.12", TTL_TASK), ("10.9.0.99", TTL_TASK)]);
    assert_eq!(answers(&zone, "web.2.", RecordType::A), both);
    let (answers, more) = located(&zone, "_80._tcp.web.");
    assert_eq!(answers.len(), 3, "one name, one record");
    assert!(more.contains(&"web.2.front. 10.9.0.99".to_owned()), "{more:?}");
}

#[test]
fn huge_services_fit_an_answer() {
    let tasks =
        (0..5000_u32).map(|n| task("big", &n.to_string(), &[&Ipv4Addr::from(0x0a09_0000 + n).to_string()]));
    let records = NetworkRecords {
        name: "big".to_owned(),
        services: vec![ServiceRecord { name: "big".to_owned(), ..ServiceRecord::default() }],
        tasks: tasks.collect(),
        ..NetworkRecords::default()
    };
    let zone = zone(&[records]);
    assert_eq!(answers(&zone, "tasks.big.", RecordType::A).len(), MAX_RECORDS);
    assert_eq!(located(&zone, "_80._tcp.big.").0.len(), MAX_RECORDS);
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    fn label() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            4 => prop::sample::select(vec!["web", "tasks", "front", "back", "hidden", "1", "7", "db", "com", "arpa", "in-addr", "ip6", "10", "9", "localhost", "_tcp", "_80", "ring"])
                .prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 1..20),
        ]
    }

    fn name() -> impl Strategy<Value = Name> {
        prop::collection::vec(label(), 0..6)
            .prop_filter_map("too long", |labels| Name::from_labels(labels).ok())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn every_question_has_a_decision_that_keeps_the_rules(
            name in name(), qtype in any::<u16>(), class in any::<u16>(), rotation in any::<usize>(),
        ) {
            let (qtype, class) = (RecordType::from(qtype), DNSClass::from(class));
            let open = zone(&[front()]);
            let internal = Zone::new(vec![Arc::new(NetworkZone::new(&front()))], reserved(), false);
            let decision = open.decide(&name, qtype, class, rotation);
            let text = text_of(&name);
            if decision == Decision::Forward {
                prop_assert!(text.contains('.'), "single labels stay: {text}");
                prop_assert!(!is_below(&text, "front") && !is_below(&text, "back") && !is_below(&text, "hidden"));
                prop_assert!(!text.starts_with("tasks.") || text.split('.').count() > 2);
                prop_assert_eq!(internal.decide(&name, qtype, class, rotation), Decision::Refused);
            } else if decision != Decision::NotImplemented {
                prop_assert_eq!(&internal.decide(&name, qtype, class, rotation), &decision);
            }
            if class == DNSClass::IN && !matches!(qtype, RecordType::AXFR | RecordType::IXFR) && !name.is_root() {
                prop_assert_eq!(Zone::unknown().decide(&name, qtype, class, rotation), Decision::ServFail);
            }
            if let Decision::Answer(records) | Decision::AnswerWith(records, _) = decision {
                prop_assert!(records.iter().all(|record| record.name == name && record.ttl <= TTL_VIP));
            }
        }
    }
}
