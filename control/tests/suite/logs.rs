//! Logs from nodes to an operator; what is missing is said.

use shoal_api::pb;
use shoal_api::pb::agent_message::Body as Up;
use shoal_api::pb::manager_message::Body as Down;

use crate::fixture::{FakeAgent, Fixture, network, service};

async fn entries(mut stream: tonic::Streaming<pb::LogEntry>) -> Vec<pb::LogEntry> {
    let mut entries = Vec::new();
    while let Some(entry) = stream.message().await.expect("ends well") {
        entries.push(entry);
    }
    entries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_come_from_the_nodes_and_an_absent_node_is_a_gap() {
    let fixture = Fixture::start().await;
    let credentials = fixture.join("w1", "10.0.0.2").await;
    let mut agent = FakeAgent::open(&fixture, &credentials, "10.0.0.2").await.expect("session");
    agent.until("a snapshot", |a| a.cluster().is_some()).await;
    let mut control = fixture.control().await;
    control.create_network(network("back")).await.expect("network");
    let request = pb::CreateServiceRequest {
        spec: Some(service("web", &["back"], 1)),
        ..pb::CreateServiceRequest::default()
    };
    control.create_service(request).await.expect("service");
    agent.until("a task", |a| a.tasks().count() == 1).await;

    let request = pb::LogsRequest { target: "web".into(), follow: false, tail: Some(2) };
    let stream = control.service_logs(request.clone()).await.expect("logs").into_inner();
    let start = loop {
        if let Down::LogStart(start) = agent.step().await.expect("open").expect("open") {
            break start;
        }
    };
    assert_eq!((start.tail, start.follow), (Some(2), false));
    for n in 0..2_u8 {
        let chunk = pb::LogChunk {
            request: start.request,
            task: start.task.clone(),
            time_ms: n.into(),
            stderr: n == 1,
            line: vec![b'a' + n],
            ..pb::LogChunk::default()
        };
        agent.say(Up::Log(chunk)).await;
    }
    agent.say(Up::Log(pb::LogChunk { request: start.request, end: true, ..pb::LogChunk::default() })).await;
    let lines = entries(stream).await;
    let shown: Vec<_> = lines.iter().map(|e| (e.task_name.as_str(), e.line.as_slice(), e.stderr)).collect();
    assert_eq!(shown, [("web.1", b"a".as_slice(), false), ("web.1", b"b".as_slice(), true)]);

    drop(agent);
    crate::fixture::wait_for("the session is over", async || {
        fixture.running.manager.leader_view().applied.is_empty().then_some(())
    })
    .await;
    let stream = control.service_logs(request).await.expect("logs").into_inner();
    let gaps: Vec<_> = entries(stream).await.into_iter().map(|e| e.gap).collect();
    assert_eq!(gaps, ["w1: no session"]);
    let missing = pb::LogsRequest { target: "nothing".into(), ..pb::LogsRequest::default() };
    assert!(control.service_logs(missing).await.is_err());
    fixture.running.shutdown().await;
}
