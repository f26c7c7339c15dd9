//! init, join, leave, tokens.

use shoal_api::pb;
use shoal_api::status::ApiError;
use shoal_types::ErrorCode;

use crate::fake::Fake;
use crate::run::quiet_success;

#[tokio::test]
async fn init_prints_the_line_that_joins() {
    let fake = Fake::start();
    let out =
        fake.run("swarm init --name otter --advertise-addr eth1 --default-addr-pool 10.64.0.0/12").await;
    assert_eq!(
        out,
        quiet_success(
            "Swarm 'otter' created. This node (n1, 4kq2) is a manager.\n\
             Add a worker (token valid 24 h, 10 uses):\n    \
             shoal swarm join --token SHOAL-1-digest-id-secret 10.0.3.11:7377\n"
        )
    );
    let want = pb::InitRequest {
        name: "otter".into(),
        advertise: "eth1".into(),
        data_path: String::new(),
        data_port: 7378,
        pools: vec!["10.64.0.0/12".into()],
        pool_size: 20,
        lb_engine: "auto".into(),
    };
    assert_eq!(fake.world().inits, [want]);
    let json: serde_json::Value = serde_json::from_str(&fake.run("swarm init --json").await.stdout).unwrap();
    assert_eq!(json["items"][0]["workerToken"], "SHOAL-1-digest-id-secret");
    assert_eq!(json["items"][0]["joinAddr"], "10.0.3.11:7377");
}

#[tokio::test]
async fn a_swarm_s_engine_is_chosen_at_init_and_later() {
    let fake = Fake::start();
    fake.run("swarm init --lb-engine ipvs").await;
    assert_eq!(fake.world().inits[0].lb_engine, "ipvs");
    fake.world().cluster = pb::ClusterInfo {
        id: "c1".into(),
        name: "otter".into(),
        lb_engine: "auto".into(),
        ..Default::default()
    };
    let dry = fake.run("swarm update --dry-run --lb-engine ipvs").await;
    assert_eq!((dry.stdout.as_str(), dry.code), ("otter\n  ~ lbEngine: \"auto\" -> \"ipvs\"\n", Some(10)));
    assert_eq!(fake.world().cluster.lb_engine, "auto");
    assert_eq!(fake.run("swarm update --lb-engine ipvs").await, quiet_success("otter\n"));
    assert_eq!(fake.world().cluster.lb_engine, "ipvs");
    let same = fake.run("swarm update --dry-run --lb-engine ipvs").await;
    assert_eq!(same, quiet_success("otter: no change\n"));
    assert_eq!(fake.run("-q swarm update --lb-engine ebpf").await, quiet_success("otter\n"));
    let json = fake.run("swarm update --json --lb-engine auto").await.stdout;
    let document: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(document["kind"], "Swarm");
    assert_eq!(document["items"][0], serde_json::json!({ "id": "c1", "name": "otter" }));
    let world = fake.world();
    assert!(world.cluster_requests.iter().all(|r| r.request_id.len() == 32));
    assert_eq!(world.cluster_requests.iter().filter(|r| r.dry_run).count(), 2);
}

#[tokio::test]
async fn an_engine_that_does_not_do_is_refused_with_who_and_why() {
    let fake = Fake::start();
    let error = ApiError::new(
        ErrorCode::EngineMissing,
        "the swarm cannot be set to engine ipvs: 1 of its nodes has no IPVS",
    )
    .with_context("without IPVS: n2")
    .with_help("load the module there ('modprobe ip_vs')");
    fake.world().refuse("update_cluster", error);
    let out = fake.run("swarm update --lb-engine ipvs").await;
    assert_eq!((out.stdout.as_str(), out.code), ("", Some(5)));
    assert_eq!(
        out.stderr,
        "error[E0223]: the swarm cannot be set to engine ipvs: 1 of its nodes has no IPVS\n  \
         without IPVS: n2\n  help: load the module there ('modprobe ip_vs')\n  more: shoal explain E0223\n"
    );
    let out = fake.run("swarm update --lb-engine nft").await;
    assert_eq!(out.code, Some(2));
    assert!(out.stderr.contains("'nft' is not an engine; use auto, ipvs or ebpf"), "{}", out.stderr);
}

#[tokio::test]
async fn join_waits_for_a_session() {
    let fake = Fake::start();
    let out = fake.run("swarm join --token SHOAL-1-a-b-c 10.0.3.11 10.0.3.12:7377").await;
    assert_eq!(out, quiet_success("This node (n1, 4kq2) joined swarm 'otter' as a worker.\n"));
    assert_eq!(fake.world().joins[0].managers, ["10.0.3.11", "10.0.3.12:7377"]);
    let error =
        ApiError::new(ErrorCode::TokenExpired, "the token expired 2 h ago").with_help("make a new one");
    fake.world().refuse("join", error);
    let out = fake.run("swarm join --token SHOAL-1-a-b-c 10.0.3.11").await;
    assert_eq!((out.stdout.as_str(), out.code), ("", Some(7)));
    assert!(out.stderr.starts_with("error[E0403]: the token expired 2 h ago\n  help: make a new one\n"));
}

#[tokio::test]
async fn a_manager_leaves_only_when_told_so() {
    let fake = Fake::start();
    let out = fake.run("swarm leave").await;
    assert_eq!(out.code, Some(2));
    assert!(out.stderr.contains("--yes"), "{}", out.stderr);
    assert!(fake.world().leaves.is_empty());
    for line in ["swarm leave --yes", "swarm leave --force"] {
        let out = fake.run(line).await;
        assert_eq!((out.stdout.as_str(), out.code), ("This node (n1) left swarm 'otter'.\n", Some(0)));
        assert_eq!(out.stderr, "tasks stopped\n");
    }
    assert!(fake.world().leaves.iter().all(|leave| leave.force));
    fake.world().local.set_role(pb::NodeRole::Worker);
    assert_eq!(fake.run("swarm leave -q").await, quiet_success("4kq2aaaaaaaaaaaaaaaaaaaaa\n"));
    assert!(!fake.world().leaves[2].force);
}

#[tokio::test]
async fn tokens_are_made_listed_and_revoked() {
    let fake = Fake::start();
    let out = fake.run("swarm token create --ttl 1h --uses 3").await;
    assert_eq!(out.stdout, "shoal swarm join --token SHOAL-1-digest-tok1-secret 10.0.3.11:7377\n");
    assert_eq!(out.stderr, "Add a worker (token valid 24 h, 3 uses, id tok1):\n");
    {
        let world = fake.world();
        let request = &world.token_requests[0];
        assert_eq!((request.ttl_ms, request.uses, request.role()), (3_600_000, 3, pb::NodeRole::Worker));
    }
    let list = fake.run("swarm token ls --format {{.ID}},{{.Role}},{{.UsesLeft}}").await;
    assert_eq!(list, quiet_success("tok1,worker,3\n"));
    assert_eq!(fake.run("swarm token rm tok1").await, quiet_success("tok1\n"));
    assert_eq!(fake.run("swarm token rm tok1").await.code, Some(4));
    assert_eq!(fake.run("swarm join-token worker -q").await, quiet_success("SHOAL-1-digest-tok1-secret\n"));
    assert_eq!(fake.world().token_requests[1].ttl_ms, 0);
}
