use shoal_api::pb::{Check, LocalNode, Verdict};

use super::*;

fn verdict(check: &Check) -> Verdict {
    // What is not ok says what to do, and only that.
    assert_eq!(check.verdict() == Verdict::Ok, check.fix.is_empty(), "{check:?}");
    assert!(!check.evidence.is_empty(), "{check:?}");
    check.verdict()
}

#[test]
fn kernels() {
    for (release, wanted) in [
        ("6.1.0-18-amd64", Verdict::Ok),
        ("5.15.0", Verdict::Ok),
        ("5.14.21-default", Verdict::Fail),
        ("4.19.0", Verdict::Fail),
        ("10.0", Verdict::Ok),
        ("", Verdict::Warn),
    ] {
        assert_eq!(verdict(&kernel(release)), wanted, "{release}");
    }
    for (setting, wanted) in [(Some("1"), Verdict::Ok), (Some("0"), Verdict::Warn), (None, Verdict::Warn)] {
        assert_eq!(verdict(&compiler(setting)), wanted);
    }
}

#[test]
fn a_parameter_that_is_not_as_needed_is_named() {
    let value = |text: &str| Some(text.to_owned());
    let path = "net/ipv4/ip_forward";
    assert_eq!(verdict(&sysctls([(path, "1", value("1"))])), Verdict::Ok);
    for found in [value("0"), None] {
        let check = sysctls([("net/a", "1", value("1")), (path, "1", found)]);
        assert_eq!(verdict(&check), Verdict::Fail);
        assert!(check.evidence.starts_with("net.ipv4.ip_forward is "), "{check:?}");
    }
}

#[test]
fn room_and_time() {
    assert_eq!(verdict(&disk(1 << 20)), Verdict::Fail);
    assert_eq!(verdict(&disk(100 << 20)), Verdict::Warn);
    assert_eq!(verdict(&disk(1 << 40)), Verdict::Ok);
    assert_eq!(verdict(&fsync(Duration::from_millis(2), 8)), Verdict::Ok);
    assert_eq!(verdict(&fsync(Duration::from_millis(200), 8)), Verdict::Warn);
    assert_eq!(verdict(&memory("MemTotal: 9 kB\nMemAvailable:   1000 kB\n")), Verdict::Warn);
    assert_eq!(verdict(&memory("MemAvailable: 1000000 kB\n")), Verdict::Ok);
    assert_eq!(verdict(&memory("")), Verdict::Warn);
}

#[test]
fn secrets_are_roots_alone() {
    let found = |mode| [("/s/pki".to_owned(), 0o700), ("/s/pki/node.key".to_owned(), mode)];
    assert_eq!(verdict(&modes(&found(0o600))), Verdict::Ok);
    for mode in [0o640, 0o604] {
        let check = modes(&found(mode));
        assert_eq!(verdict(&check), Verdict::Fail);
        assert_eq!(check.fix, "chmod go= /s/pki/node.key");
    }
}

#[test]
fn the_port_and_the_mtu_of_the_overlay() {
    let device = |name: &str, port, mtu, ours| VxlanUse { name: name.to_owned(), port, mtu, ours };
    let devices = [device("shv1", 7378, 1450, true), device("flannel.1", 8472, 1500, false)];
    assert_eq!(verdict(&vxlan_port(&devices, 7378)), Verdict::Ok);
    let taken = vxlan_port(&devices, 8472);
    assert_eq!((verdict(&taken), taken.evidence.contains("flannel.1")), (Verdict::Fail, true));
    assert_eq!(verdict(&mtu(&devices, 1500, 50)), Verdict::Ok);
    assert_eq!(verdict(&mtu(&devices, 1500, 70)), Verdict::Fail);
    assert_eq!(verdict(&mtu(&devices, 1400, 50)), Verdict::Fail);
}

#[test]
fn the_end_of_a_certificate() {
    let check = |left, cert_renewal_overdue| {
        certificate(
            &LocalNode { cert_expires_at_ms: 1 + left, cert_renewal_overdue, ..Default::default() },
            1,
        )
    };
    assert_eq!(verdict(&check(0, true)), Verdict::Fail);
    let late = check(30 * HOUR_MS, true);
    assert_eq!(verdict(&late), Verdict::Warn, "that is much, but not of a life of a week");
    assert!(late.evidence.starts_with("ends in 30 h, and was not renewed"), "{late:?}");
    // In a swarm whose certificates live for minutes.
    let short = check(5 * MINUTE_MS, false);
    assert_eq!((verdict(&short), &*short.evidence), (Verdict::Ok, "lasts 5 min"));
    assert_eq!(check(59_999, false).evidence, "lasts 59 s");
}

#[test]
fn listeners_that_get_nothing_are_warned_of() {
    assert_eq!(verdict(&published_ports(&[])), Verdict::Ok);
    let check = published_ports(&["service 'web' publishes 22/tcp".into()]);
    assert_eq!(verdict(&check), Verdict::Warn);
    assert!(check.evidence.contains("22/tcp"), "{check:?}");
}

#[test]
fn a_membership() {
    let verdicts = |info: &LocalNode| membership(info).iter().map(verdict).collect::<Vec<_>>();
    let well = LocalNode { connected: true, generation: 3, applied_generation: 3, ..Default::default() };
    assert_eq!(verdicts(&well), [Verdict::Ok; 3]);
    let behind =
        LocalNode { applied_generation: 2, drift_repairs_total: 1, connected: false, ..well.clone() };
    assert_eq!(verdicts(&behind), [Verdict::Fail, Verdict::Warn, Verdict::Warn]);
    let wrong = LocalNode { warnings: vec!["link shx: gone".into()], ..well };
    assert_eq!(verdicts(&wrong)[1], Verdict::Fail);
}

#[test]
fn maps_that_fill() {
    let fill = |map: &str, entries| pb::MapFill { map: map.into(), entries, limit: 1000 };
    assert_eq!(verdict(&maps(&[])), Verdict::Ok);
    let well = maps(&[fill("PORTS", 3), fill("FLOWS", 799)]);
    assert_eq!((verdict(&well), &*well.evidence), (Verdict::Ok, "FLOWS holds 799 of 1000 entries (79 %)"));
    let flows = maps(&[fill("PORTS", 3), fill("FLOWS", 800)]);
    assert_eq!(verdict(&flows), Verdict::Warn);
    assert!(flows.fix.contains("network.flow_entries"), "{flows:?}");
    let ports = maps(&[fill("PORTS", 1000), fill("FLOWS", 800)]);
    assert!(ports.evidence.contains("PORTS") && ports.evidence.contains("FLOWS"), "{ports:?}");
    assert!(ports.fix.contains("network.flow_entries") && ports.fix.contains("services"), "{ports:?}");
    let ports = maps(&[fill("PORTS", 1000), fill("FLOWS", 8)]);
    assert!(!ports.fix.contains("flow_entries"), "{ports:?}");
}

#[test]
fn what_can_be_reached() {
    let address = "10.0.0.1:7377".parse().expect("literal");
    let found = managers(&[(address, Ok(())), (address, Err("refused".into()))]);
    assert_eq!(found.iter().map(verdict).collect::<Vec<_>>(), [Verdict::Ok, Verdict::Fail]);
    assert_eq!(verdict(&resolvers("nameserver 10.0.0.1\n")), Verdict::Ok);
    assert_eq!(verdict(&resolvers("# nameserver 10.0.0.1\n")), Verdict::Warn);
    assert_eq!(verdict(&leftovers(&[])), Verdict::Ok);
    assert_eq!(verdict(&leftovers(&["link shx".into()])), Verdict::Warn);
}
