use super::*;
use std::collections::BTreeSet;

/// Every RPC of the protobuf files, as its path.
fn rpcs() -> BTreeSet<String> {
    let names = ["ca", "control", "dispatcher", "node", "raft"].map(|n| format!("shoal/v1/{n}.proto"));
    let files =
        protox::compile(names, [concat!(env!("CARGO_MANIFEST_DIR"), "/api/proto")]).expect("compiles");
    let mut paths = BTreeSet::new();
    for file in files.file {
        let package = file.package.clone().unwrap_or_default();
        for service in file.service {
            let name = service.name.clone().unwrap_or_default();
            paths.extend(service.method.iter().map(|m| format!("/{package}.{name}/{}", m.name())));
        }
    }
    paths
}

#[test]
fn every_rpc_has_exactly_one_rule_and_no_rule_is_for_nothing() {
    let rules: BTreeSet<String> = RULES.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(rules.len(), RULES.len(), "a path twice");
    assert_eq!(rpcs(), rules);
}

#[test]
fn what_has_no_rule_is_refused_to_everyone() {
    let state = State::default();
    let addr = "127.0.0.1:1".parse().expect("literal");
    for path in ["/shoal.v1.Control/DropEverything", "", "/", "/shoal.v1.Node/Init"] {
        for peer in [Peer::Local { uid: 0, owner: true }, Peer::Remote { addr, identity: None }] {
            assert_eq!(decide(path, &peer, &state).err(), Some(Denial::NoRule), "{path}");
        }
    }
}

#[test]
fn without_a_certificate_only_join_is_open() {
    let state = State::default();
    let peer = Peer::Remote { addr: "127.0.0.1:1".parse().expect("literal"), identity: None };
    for path in rpcs() {
        let open = decide(&path, &peer, &state).is_ok();
        assert_eq!(open, path == "/shoal.v1.Ca/Join", "{path}");
    }
}

#[test]
fn the_local_socket_is_for_operators_and_the_own_node() {
    let state = State::default();
    for path in rpcs() {
        let open = |peer| decide(&path, &peer, &state).is_ok();
        let operators = path.starts_with("/shoal.v1.Control/");
        let own = path.starts_with("/shoal.v1.Bootstrap/");
        assert_eq!(open(Peer::Local { uid: 0, owner: true }), operators || own, "{path}");
        assert_eq!(open(Peer::Local { uid: 1000, owner: false }), operators, "{path}");
    }
}
