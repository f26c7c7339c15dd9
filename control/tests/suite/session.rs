//! A node's session, with an agent that only pretends.

use shoal_api::pb;
use shoal_api::pb::agent_message::Body as Up;
use shoal_api::pb::manager_message::Body as Down;
use shoal_types::ErrorCode;
use tonic::Code;

use crate::fixture::{FakeAgent, Fixture, code, network, service, wait_for};

async fn node(fixture: &Fixture, id: &str) -> Option<pb::NodeInfo> {
    let nodes = fixture.control().await.list_nodes(pb::Empty {}).await.ok()?.into_inner().nodes;
    nodes.into_iter().find(|n| n.id == id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_brings_a_snapshot_then_chained_deltas_and_takes_reports() {
    let fixture = Fixture::start().await;
    let credentials = fixture.join("w1", "10.0.0.2").await;
    let mut agent = FakeAgent::open(&fixture, &credentials, "10.0.0.2").await.expect("session");
    agent.until("a snapshot", |a| a.cluster().is_some()).await;
    assert_eq!((agent.snapshots, agent.deltas), (1, 0));
    assert_eq!(agent.assignment.members().count(), 2);
    agent.applied().await;

    agent.say(Up::Heartbeat(pb::Heartbeat { seq: 7 })).await;
    let ack = loop {
        if let Down::HeartbeatAck(ack) = agent.step().await.expect("open").expect("open") {
            break ack;
        }
    };
    assert_eq!((ack.seq, ack.manager_addrs), (7, vec![fixture.addr.to_string()]));
    let seen = node(&fixture, &credentials.node).await.expect("there");
    assert_eq!((seen.state(), seen.description.expect("told").cpu_milli), (pb::NodeState::Ready, 4_000));

    let mut control = fixture.control().await;
    control.create_network(network("back")).await.expect("network");
    let request = pb::CreateServiceRequest {
        spec: Some(service("web", &["back"], 2)),
        ..pb::CreateServiceRequest::default()
    };
    control.create_service(request).await.expect("service");
    let target = pb::WatchServiceRequest { target: "web".into() };
    let mut progress = control.watch_service(target).await.expect("watch").into_inner();
    assert!(!progress.message().await.expect("open").expect("at once").converged);
    agent.until("two tasks", |a| a.tasks().count() == 2).await;
    assert!(agent.deltas > 0 && agent.snapshots == 1);
    agent.applied().await;
    agent.report_running().await;
    agent.until("endpoints that serve", |a| a.endpoints().filter(|e| e.serving).count() == 2).await;
    agent.applied().await;
    let last = loop {
        let now = progress.message().await.expect("open").expect("not before it has converged");
        if now.converged {
            break now;
        }
    };
    assert_eq!(last.tasks.len(), 2);
    assert!(
        last.tasks
            .iter()
            .all(|t| t.node_name == "w1" && t.status.as_ref().is_some_and(|s| s.pid == Some(42)))
    );
    assert_eq!(progress.message().await.expect("ends well"), None);

    // The manager's assignment and the one built from snapshot and deltas are the same.
    let view = fixture.running.manager.now();
    let id = credentials.node.parse().expect("an id");
    let told = shoal_core::assignment::for_node(&view.state, &id, view.index).expect("a member");
    assert_eq!(told.objects, agent.assignment.objects);
    fixture.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_reach_the_nodes_with_or_without_a_virtual_ip() {
    let fixture = Fixture::start().await;
    let credentials = fixture.join("w1", "10.0.0.2").await;
    let mut agent = FakeAgent::open(&fixture, &credentials, "10.0.0.2").await.expect("session");
    let mut control = fixture.control().await;
    control.create_network(network("back")).await.expect("made");
    control.create_network(network("far")).await.expect("made");
    // Nothing of the node's is on them; their names are not for the outside all the same.
    agent
        .until("the names of networks", |a| a.cluster().is_some_and(|c| c.reserved.networks.len() == 2))
        .await;
    let mut spec = pb::ServiceSpec { endpoint_mode: "round".into(), ..service("web", &["back"], 1) };
    spec.networks[0].aliases.push("db".into());
    let mut create = pb::CreateServiceRequest { spec: Some(spec.clone()), ..Default::default() };
    let refused = control.create_service(create.clone()).await.expect_err("no such mode");
    assert_eq!(code(&refused), Some(ErrorCode::InvalidField), "{refused}");
    assert!(refused.message().contains("endpoint_mode") && refused.message().contains("dnsrr"), "{refused}");
    spec.endpoint_mode = "dnsrr".into();
    create.spec = Some(spec.clone());
    let made = control.create_service(create).await.expect("made").into_inner();
    assert_eq!((made.vips.len(), made.spec.expect("shown").endpoint_mode), (0, "dnsrr".to_owned()));
    let told = |a: &shoal_types::assignment::Assignment| {
        a.services().map(|s| (s.vips.len(), s.dnsrr.len())).collect::<Vec<_>>()
    };
    agent.until("the service", |a| told(a) == [(0, 1)]).await;
    spec.endpoint_mode = "vip".into();
    let update = pb::UpdateServiceRequest { target: "web".into(), spec: Some(spec), ..Default::default() };
    let made = control.update_service(update).await.expect("changed").into_inner();
    assert_eq!(made.vips.len(), 1);
    agent.until("its virtual IP", |a| told(a) == [(1, 0)]).await;
    let alias =
        agent.assignment.services().flat_map(|s| &s.vips[0].aliases).map(shoal_types::id::Name::as_str);
    assert_eq!(alias.collect::<Vec<_>>(), ["db"]);
    fixture.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_reaches_the_nodes_and_how_they_balance_comes_back() {
    let fixture = Fixture::start().await;
    let credentials = fixture.join("w1", "10.0.0.2").await;
    let mut agent = FakeAgent::open(&fixture, &credentials, "10.0.0.2").await.expect("session");
    agent.until("a snapshot", |a| a.cluster().is_some()).await;
    let mut control = fixture.control().await;
    let port = pb::PortSpec {
        protocol: pb::Protocol::Tcp.into(),
        published: 8080,
        target: 80,
        ..Default::default()
    };
    let least = pb::ServiceSpec { lb: "leastconn".into(), ports: vec![port], ..service("web", &[], 1) };
    let create = pb::CreateServiceRequest { spec: Some(least), ..pb::CreateServiceRequest::default() };
    let refused = control.create_service(create.clone()).await.expect_err("auto is ebpf");
    assert_eq!(code(&refused), Some(ErrorCode::PolicyUnsupported), "{refused}");

    let mut request = pb::UpdateClusterRequest {
        lb_engine: "nft".into(),
        dry_run: true,
        ..pb::UpdateClusterRequest::default()
    };
    let refused = control.update_cluster(request.clone()).await.expect_err("no engine");
    assert_eq!(code(&refused), Some(ErrorCode::InvalidField), "{refused}");
    request.lb_engine = "ipvs".into();
    let shown = control.update_cluster(request.clone()).await.expect("possible").into_inner();
    assert_eq!(shown.lb_engine, "ipvs");
    let now = control.get_cluster(pb::Empty {}).await.expect("cluster").into_inner();
    assert_eq!((now.lb_engine.as_str(), now.direct_routing.as_str()), ("auto", "off"));
    request.dry_run = false;
    control.update_cluster(request).await.expect("set");
    let told = |a: &shoal_types::assignment::Assignment| a.cluster().map(|c| (c.lb_engine, c.direct));
    let ipvs = shoal_types::LbEngine::Ipvs;
    agent.until("the engine", |a| told(a).is_some_and(|(engine, _)| engine == ipvs)).await;

    agent.applied_with("ebpf", false).await;
    let differs = wait_for("a warning", async || {
        let now = fixture.control().await.get_cluster(pb::Empty {}).await.ok()?.into_inner();
        (!now.warnings.is_empty()).then_some(now.warnings)
    })
    .await;
    assert_eq!(differs, ["engine ipvs is not possible, the kernel has no IPVS ('modprobe ip_vs'): w1"]);
    agent.applied_with("ipvs", true).await;
    wait_for("the node's engine", async || {
        let description = node(&fixture, &credentials.node).await?.description?;
        (description.lb_engine == "ipvs" && description.ipvs).then_some(())
    })
    .await;
    control.create_service(create).await.expect("possible now");
    // Said again, or in words nobody here knows, nothing changes and the session goes on.
    agent
        .until("the service", |a| a.services().any(|s| s.lb == shoal_types::LbPolicy::LeastConnections))
        .await;
    agent.applied_with("ipvs", true).await;
    agent.applied_with("nft", true).await;
    agent.say(Up::Heartbeat(pb::Heartbeat { seq: 9 })).await;
    while !matches!(agent.step().await.expect("open"), Some(Down::HeartbeatAck(_))) {}
    let said = node(&fixture, &credentials.node).await.and_then(|n| n.description).expect("there");
    assert_eq!((said.lb_engine.as_str(), said.ipvs), ("ipvs", true));
    fixture.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_can_be_founded_with_an_engine() {
    let fixture = Fixture::start_with(&["--lb-engine", "ipvs"]).await;
    let found = fixture.control().await.get_cluster(pb::Empty {}).await.expect("cluster").into_inner();
    assert_eq!((found.name.as_str(), found.lb_engine.as_str()), ("otter", "ipvs"));
    fixture.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_session_replaces_the_first_and_removal_cuts_it() {
    let fixture = Fixture::start().await;
    let credentials = fixture.join("w1", "10.0.0.2").await;
    let mut first = FakeAgent::open(&fixture, &credentials, "10.0.0.2").await.expect("session");
    first.until("a snapshot", |a| a.cluster().is_some()).await;
    let mut second = FakeAgent::open(&fixture, &credentials, "10.0.0.2").await.expect("session");
    second.until("a snapshot", |a| a.cluster().is_some()).await;
    let ended = loop {
        match first.step().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the end has a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Aborted, "{ended}");
    second.applied().await;
    let told = second.assignment.generation.0;
    wait_for("the report of the second counts", async || {
        (node(&fixture, &credentials.node).await?.applied_generation == told).then_some(())
    })
    .await;

    let target = credentials.node.clone();
    let request = pb::RemoveNodeRequest { target, force: true, ..pb::RemoveNodeRequest::default() };
    fixture.control().await.remove_node(request).await.expect("removed");
    let cut = loop {
        match second.step().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the end has a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(code(&cut), Some(ErrorCode::PermissionDenied), "{cut}");
    let refused = FakeAgent::open(&fixture, &credentials, "10.0.0.2").await.err().expect("denied");
    assert_eq!(refused.code(), Code::PermissionDenied);
    fixture.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_suspect_then_down_and_ready_again_when_heard() {
    let fixture = Fixture::start().await;
    let credentials = fixture.join("w1", "10.0.0.2").await;
    let mut agent = FakeAgent::open(&fixture, &credentials, "10.0.0.2").await.expect("session");
    agent.until("a snapshot", |a| a.cluster().is_some()).await;
    let state = async |wanted: pb::NodeState| {
        let begun = tokio::time::Instant::now();
        wait_for(wanted.as_str_name(), async || {
            (node(&fixture, &credentials.node).await?.state() == wanted).then_some(())
        })
        .await;
        begun.elapsed().as_secs_f32()
    };
    state(pb::NodeState::Ready).await;
    let silence = state(pb::NodeState::Suspect).await;
    assert!((1.5..4.0).contains(&silence), "suspect after {silence} s");
    agent.say(Up::Heartbeat(pb::Heartbeat { seq: 1 })).await;
    assert!(state(pb::NodeState::Ready).await < 1.0);
    drop(agent);
    let silence = state(pb::NodeState::Down).await;
    assert!((9.0..13.0).contains(&silence), "down after {silence} s");
    let mut agent = FakeAgent::open(&fixture, &credentials, "10.0.0.2").await.expect("session");
    agent.until("a snapshot", |a| a.cluster().is_some()).await;
    assert!(state(pb::NodeState::Ready).await < 1.0);
    fixture.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_is_gone() {
    let fixture = Fixture::start().await;
    let credentials = fixture.join("w1", "10.0.0.2").await;
    let mut client = pb::dispatcher_client::DispatcherClient::new(fixture.with(&credentials));
    client.leave(pb::Empty {}).await.expect("left");
    assert!(node(&fixture, &credentials.node).await.is_none());
    assert!(client.leave(pb::Empty {}).await.is_err_and(|s| s.code() == Code::PermissionDenied));
    fixture.running.shutdown().await;
}
