use proptest::prelude::*;

use super::*;

#[test]
fn durations() {
    for (text, ms) in [
        ("0", 0),
        ("10s", 10_000),
        ("1m30s", 90_000),
        ("500ms", 500),
        ("1.5s", 1_500),
        (".5s", 500),
        ("24h", 86_400_000),
        ("1d2h", 93_600_000),
        ("10us", 1),
    ] {
        assert_eq!(millis(text), Ok(ms), "{text}");
    }
    for bad in ["", "10", "s", "10 s", "-1s", "1.2.3s", "10parsecs", "1s5", "999999999999h", "."] {
        assert!(millis(bad).is_err(), "{bad}");
    }
    assert_eq!(duration("10").unwrap_err(), "'10' has no unit; write it as 10s, 1m30s, 500ms or 24h");
}

#[test]
fn sizes() {
    for (text, want) in [
        ("0", 0),
        ("64m", 64 << 20),
        ("1GiB", 1 << 30),
        ("1.5g", 3 << 29),
        ("512KB", 512 << 10),
        ("7b", 7),
        ("2 MiB", 2 << 20),
    ] {
        assert_eq!(bytes(text), Ok(want), "{text}");
    }
    for bad in ["", "m", "1x", "-1m", "99999999999t", "1..5g"] {
        assert!(bytes(bad).is_err(), "{bad}");
    }
}

#[test]
fn cpu_shares() {
    for (text, want) in [("0.5", 500), ("2", 2000), ("1.25", 1250), ("0.001", 1)] {
        assert_eq!(cpus(text), Ok(want), "{text}");
    }
    for bad in ["", "half", "-1", "0.0001", "1e3"] {
        assert!(cpus(bad).is_err(), "{bad}");
    }
}

#[test]
fn signals() {
    for (text, want) in [("SIGTERM", 15), ("term", 15), ("9", 9), ("HUP", 1), ("sigusr1", 10), ("SYS", 31)] {
        assert_eq!(signal(text), Ok(want), "{text}");
    }
    for bad in ["", "SIG", "0", "65", "TERMINATE"] {
        assert!(signal(bad).is_err(), "{bad}");
    }
}

#[test]
fn environments() {
    let lookup = |key: &str| (key == "HOME").then(|| "/root".to_owned());
    assert_eq!(env_with("A=b=c", lookup), Ok(Some("A=b=c".to_owned())));
    assert_eq!(env_with("HOME", lookup), Ok(Some("HOME=/root".to_owned())));
    assert_eq!(env_with("NONE", lookup), Ok(None));
    assert!(env_with("=x", lookup).is_err());
    assert!(env_with("A B=x", lookup).is_err());
    let own = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(merge_env(own(&["A=1", "B=2"]), own(&["A=3", "C=4"])), own(&["A=3", "B=2", "C=4"]));
}

#[test]
fn an_environment_file_names_the_bad_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("env");
    std::fs::write(&path, "# comment\n\nA=1\n B=two words\n").unwrap();
    assert_eq!(env_file(&path), Ok(vec!["A=1".to_owned(), "B=two words".to_owned()]));
    std::fs::write(&path, "A=1\n=2\n").unwrap();
    assert!(env_file(&path).unwrap_err().ends_with("line 2: '=2' is not KEY=value"));
    assert!(env_file(&dir.path().join("none")).unwrap_err().starts_with("cannot read"));
}

#[test]
fn networks_and_aliases() {
    let alias = |network: &str, aliases: &[&str]| pb::AttachmentSpec {
        network: network.to_owned(),
        aliases: aliases.iter().map(ToString::to_string).collect(),
    };
    assert_eq!(network("app"), Ok(alias("app", &[])));
    assert_eq!(network("app,alias=db"), Ok(alias("app", &["db"])));
    assert_eq!(network("name=app,alias=db,alias=sql"), Ok(alias("app", &["db", "sql"])));
    for bad in ["", "app,db", "alias=db", "app,alias=", "app,driver=x", "a,name=b"] {
        assert!(network(bad).is_err(), "{bad}");
    }
}

fn port(protocol: pb::Protocol, published: u32, target: u32) -> pb::PortSpec {
    let mode = pb::PublishMode::Ingress.into();
    pb::PortSpec { protocol: protocol.into(), published, target, mode, ..Default::default() }
}

fn bound(port: &pb::PortSpec, mode: pb::PublishMode, ip: &str) -> pb::PortSpec {
    pb::PortSpec { mode: mode.into(), ip: ip.to_owned(), ..port.clone() }
}

fn headed(port: &pb::PortSpec) -> pb::PortSpec {
    pb::PortSpec { proxy: pb::ProxyProtocol::V2.into(), ..port.clone() }
}

fn direct(port: &pb::PortSpec) -> pb::PortSpec {
    pb::PortSpec { dsr: true, ..port.clone() }
}

#[test]
fn published_ports() {
    use pb::Protocol::{Sctp, Tcp, Udp};
    use pb::PublishMode::{Host, Ingress};
    for (text, want) in [
        ("8080:80", port(Tcp, 8080, 80)),
        ("8080:80/udp", port(Udp, 8080, 80)),
        ("80", port(Tcp, 0, 80)),
        (":80/UDP", port(Udp, 0, 80)),
        ("published=8080,target=80", port(Tcp, 8080, 80)),
        ("target=53,protocol=udp,mode=ingress", port(Udp, 0, 53)),
        ("5060:5060/sctp", port(Sctp, 5060, 5060)),
        ("published=5060,target=5060,protocol=SCTP", port(Sctp, 5060, 5060)),
        ("10.0.0.1:8080:80", bound(&port(Tcp, 8080, 80), Ingress, "10.0.0.1")),
        ("10.0.0.1::80/udp", bound(&port(Udp, 0, 80), Ingress, "10.0.0.1")),
        ("[2001:DB8::1]:8080:80", bound(&port(Tcp, 8080, 80), Ingress, "2001:db8::1")),
        ("target=80,mode=host,published=8080", bound(&port(Tcp, 8080, 80), Host, "")),
        ("target=80,mode=host,ip=2001:db8:0::1", bound(&port(Tcp, 0, 80), Host, "2001:db8::1")),
        ("target=80,ip=::ffff:192.0.2.1", bound(&port(Tcp, 0, 80), Ingress, "192.0.2.1")),
        ("published=8080,target=80,proxy-protocol=v2", headed(&port(Tcp, 8080, 80))),
        ("target=80,proxy-protocol=v2,mode=host", headed(&bound(&port(Tcp, 0, 80), Host, ""))),
        ("published=8080,target=80,dsr=true", direct(&port(Tcp, 8080, 80))),
        (
            "dsr=true,protocol=udp,target=53,ip=10.0.0.1",
            direct(&bound(&port(Udp, 0, 53), Ingress, "10.0.0.1")),
        ),
        ("published=8080,target=80,dsr=false", port(Tcp, 8080, 80)),
    ] {
        assert_eq!(publish(text), Ok(Publish(vec![want])), "{text}");
    }
    for (text, first, last, count) in [
        ("8000-8010:80-90", port(Tcp, 8000, 80), port(Tcp, 8010, 90), 11),
        ("8000-8010:8000-8010/udp", port(Udp, 8000, 8000), port(Udp, 8010, 8010), 11),
        ("80-81", port(Tcp, 0, 80), port(Tcp, 0, 81), 2),
        (
            "published=10000-20000,target=10000-20000",
            port(Tcp, 10_000, 10_000),
            port(Tcp, 20_000, 20_000),
            10_001,
        ),
        (
            "10.0.0.1:1-2:3-4",
            bound(&port(Tcp, 1, 3), Ingress, "10.0.0.1"),
            bound(&port(Tcp, 2, 4), Ingress, "10.0.0.1"),
            2,
        ),
        ("published=1-2,target=3-4,dsr=true", direct(&port(Tcp, 1, 3)), direct(&port(Tcp, 2, 4)), 2),
        ("published=1-2,target=3-4,proxy-protocol=v2", headed(&port(Tcp, 1, 3)), headed(&port(Tcp, 2, 4)), 2),
    ] {
        let Publish(ports) = publish(text).unwrap();
        assert_eq!((ports.first(), ports.last(), ports.len()), (Some(&first), Some(&last), count), "{text}");
    }
}

#[test]
fn what_is_no_published_port() {
    for (bad, says) in [
        ("8080-8090:80", "published ports 8080-8090 are 11 and target ports 80 are 1"),
        ("8090-8080:80-90", "end before they begin; write 8080-8090"),
        ("8080-:80", "1 to 65535"),
        ("[::1]:8080:80", "is loopback"),
        ("[fe80::1]:8080:80", "is link-local"),
        ("2001:db8::1:8080:80", "write an IPv6 address as [2001:db8::1]:8080:80"),
        ("[2001:db8::1]8080:80", "no ports behind the address"),
        ("[2001:db8::1]:80", "has an address and one port"),
        ("localhost:8080:80", "'localhost' is not an IP address"),
        ("0.0.0.0:8080:80", "leave it out to publish on every address"),
        ("target=80,mode=mesh", "use mode=ingress or mode=host"),
        ("target=80,ip=eth0", "is not an IP address"),
        ("target=80,proxy-protocol=v1", "only v2 is; write proxy-protocol=v2"),
        ("target=80,proxy-protocol=", "only v2 is"),
        ("8080:80,proxy-protocol=v2", "'8080:80' is not key=value"),
        ("target=80,dsr=yes", "'dsr=yes' is neither on nor off; write dsr=true or dsr=false"),
        ("target=80,dsr", "'dsr' is not key=value"),
        ("80/icmp", "unknown"),
        ("0:80", "1 to 65535"),
        ("70000:80", "1 to 65535"),
        ("published=80", "no target"),
        ("target=80,color=red", "not a key"),
        ("", "1 to 65535"),
    ] {
        let error = publish(bad).unwrap_err();
        assert!(error.contains(says), "{bad}: {error}");
    }
}

#[test]
fn ports_to_remove() {
    use pb::Protocol::{Tcp, Udp};
    use pb::PublishMode::{Host, Ingress};
    let all = [
        port(Tcp, 8080, 80),
        port(Udp, 8080, 80),
        port(Tcp, 9000, 81),
        bound(&port(Tcp, 7000, 70), Host, ""),
        bound(&port(Tcp, 7001, 71), Ingress, "10.0.0.1"),
        // Chosen by the cluster: 30000.
        port(Tcp, 0, 90),
        headed(&port(Tcp, 9090, 95)),
        direct(&port(Tcp, 9091, 96)),
    ];
    for (text, gone) in [
        ("80", &[0, 1][..]),
        ("80/udp", &[1]),
        ("9000", &[2]),
        ("9000:81", &[2]),
        ("9000:80", &[]),
        ("30000", &[5]),
        ("30000:90", &[5]),
        ("70-81", &[0, 1, 2, 3, 4]),
        ("7000-7001", &[3, 4]),
        ("7000-7001:70-71", &[3, 4]),
        ("7000-7001:71-72", &[]),
        ("8000-9000", &[0, 1, 2]),
        ("published=8080", &[0, 1]),
        ("published=7000-9000,protocol=tcp", &[0, 2, 3, 4]),
        ("published=7000-9000,mode=host", &[3]),
        ("target=1-99,ip=10.0.0.1", &[4]),
        ("10.0.0.1:7001:71", &[4]),
        ("10.0.0.2:7001:71", &[]),
        ("target=8080", &[]),
        ("target=1-99,proxy-protocol=v2", &[6]),
        ("target=95-96,dsr=true", &[7]),
        ("target=95-96,dsr=false", &[6]),
        ("published=9091,dsr=true", &[7]),
        ("published=9090,dsr=true", &[]),
        ("target=96", &[7]),
    ] {
        let number = |spec: &pb::PortSpec| if spec.published == 0 { 30_000 } else { spec.published };
        let known: Vec<Known> =
            all.iter().map(|spec| Known { number: number(spec), spec: spec.clone() }).collect();
        let mut left = known.clone();
        let any = port_match(text).unwrap().remove_from(&mut left);
        let mut places = 0..;
        let mut want = known;
        want.retain(|_| places.next().is_none_or(|place| !gone.contains(&place)));
        assert_eq!((any, left), (!gone.is_empty(), want), "{text}");
    }
    for bad in ["", "mode=host", "80-79", "color=red", "0"] {
        assert!(port_match(bad).is_err(), "{bad}");
    }
}

#[test]
fn words_as_a_shell_splits_them() {
    for (text, want) in [
        ("", vec![]),
        ("  a  b ", vec!["a", "b"]),
        (r#"sh -c "echo \"hi\" $X""#, vec!["sh", "-c", "echo \"hi\" $X"]),
        (r"a\ b 'c\d' ''", vec!["a b", r"c\d", ""]),
        (r#""\n""#, vec![r"\n"]),
    ] {
        assert_eq!(split_words(text).unwrap(), want, "{text}");
    }
    for bad in ["'a", "\"a", "a\\"] {
        assert!(split_words(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_rest() {
    assert_eq!(label("a=b=c"), Ok(("a".into(), "b=c".into())));
    assert_eq!(label("a"), Ok(("a".into(), String::new())));
    assert!(label("=b").is_err());
    assert_eq!(capability("cap_net_raw"), Ok("NET_RAW".into()));
    assert!(capability("net raw").is_err());
    assert_eq!(constraint("node.labels.zone == a"), Ok("node.labels.zone==a".into()));
    assert!(constraint("zone=a").is_err());
    assert_eq!((tail("all"), tail("5")), (Ok(None), Ok(Some(5))));
    assert!(tail("some").is_err());
    assert!(filter("web").is_err());
}

proptest! {
    #[test]
    fn no_parser_panics(text in "\\PC*") {
        // Totality is the property: any text gives a value or a message.
        let verdicts = [
            duration(&text).is_ok(), bytes(&text).is_ok(), cpus(&text).is_ok(), signal(&text).is_ok(),
            publish(&text).is_ok(), port_match(&text).is_ok(), network(&text).is_ok(), split_words(&text).is_ok(),
            constraint(&text).is_ok(), capability(&text).is_ok(), label(&text).is_ok(), tail(&text).is_ok(),
        ];
        prop_assert_eq!(verdicts.len(), 12);
    }

    #[test]
    fn durations_of_units_add_up(h in 0u64..500, m in 0u64..60, s in 0u64..60, ms in 0u64..1000) {
        let text = format!("{h}h{m}m{s}s{ms}ms");
        prop_assert_eq!(millis(&text), Ok(((h * 60 + m) * 60 + s) * 1000 + ms));
    }

    #[test]
    fn ports_round_trip(published in 1u32..=65535, target in 1u32..=65535, transport in 0usize..3) {
        let (proto, name) =
            [(pb::Protocol::Tcp, "tcp"), (pb::Protocol::Udp, "udp"), (pb::Protocol::Sctp, "sctp")][transport];
        let want = Publish(vec![port(proto, published, target)]);
        prop_assert_eq!(publish(&format!("{published}:{target}/{name}")), Ok(want.clone()));
        prop_assert_eq!(publish(&format!("target={target},published={published},protocol={name}")), Ok(want));
    }

    #[test]
    fn quoted_words_come_back(words in proptest::collection::vec("[^']{0,12}", 0..5)) {
        let line = words.iter().map(|w| format!("'{w}'")).collect::<Vec<_>>().join(" ");
        prop_assert_eq!(split_words(&line), Ok(words));
    }
}
