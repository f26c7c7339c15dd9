use std::net::IpAddr;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use shoal_types::assignment::{Member, Object};
use shoal_types::object::{Attachment, Health, TaskState};
use shoal_types::{ClusterId, DualAddr, EndpointId, Generation, NetworkId, NodeId, Timestamp};

use super::*;
use crate::drivers::runtime::fake::FakeRuntime;
use crate::pki::Identity;

fn credentials() -> Credentials {
    let ca_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "test CA");
    let ca = params.self_signed(&ca_key).expect("signed");
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().expect("a key");
    let cert = CertificateParams::default().signed_by(&key, &issuer).expect("signed");
    let identity =
        Identity { key_der: key.serialize_der(), cert_der: cert.der().to_vec(), ca_der: ca.der().to_vec() };
    Credentials::new(&identity, &ClusterId::from_entropy(1)).expect("TLS")
}

struct World {
    session: Session,
    inbound: Inbound,
    outbound: mpsc::Receiver<pb::AgentMessage>,
    _dir: tempfile::TempDir,
}

fn world() -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let runtime: Arc<dyn Runtime> = Arc::new(FakeRuntime::new());
    let session = Session {
        credentials: credentials(),
        managers: Arc::new(watch::Sender::new(vec!["192.0.2.1:7377".parse().expect("literal")])),
        ledger: Ledger::open(&dir.path().join("assignment")).expect("none yet"),
        assignment: Arc::new(watch::Sender::new(Arc::new(Assignment::default()))),
        reports: Reports::default(),
        runtime: Arc::clone(&runtime),
        description: NodeDescription::default(),
        data_addr: IpAddr::from([192, 0, 2, 2]),
        stats: Arc::new(Stats::default()),
        closing: CancellationToken::new(),
    };
    let (send, outbound) = mpsc::channel(64);
    World { session, inbound: Inbound::new(runtime, Outbound { send }), outbound, _dir: dir }
}

fn member(n: u8) -> pb::AssignmentObject {
    (&Object::Member(Member {
        node: NodeId::from_entropy(n.into()),
        name: format!("n{n}").parse().expect("a label"),
        data_addr: [192, 0, 2, n].into(),
        router: Attachment {
            endpoint: EndpointId(n.into()),
            network: NetworkId::from_entropy(1),
            addr: DualAddr { v4: [10, 0, 0, n].into(), v6: [0xfd, 0, 0, 0, 0, 0, 0, n.into()].into() },
        },
    }))
        .into()
}

fn message(body: pb::manager_message::Body) -> pb::ManagerMessage {
    pb::ManagerMessage { body: Some(body) }
}

fn snapshot(generation: u64, members: &[u8], last: bool) -> pb::ManagerMessage {
    let objects = members.iter().map(|n| member(*n)).collect();
    message(pb::manager_message::Body::Snapshot(pb::Snapshot { generation, objects, last }))
}

fn delta(from: u64, to: u64, members: &[u8]) -> pb::ManagerMessage {
    let upserts = members.iter().map(|n| member(*n)).collect();
    message(pb::manager_message::Body::Delta(pb::DeltaMessage { from, to, upserts, removes: vec![] }))
}

impl World {
    fn take(&mut self, message: pb::ManagerMessage) -> Result<(), SessionError> {
        self.inbound.take(&mut self.session, message)
    }

    fn members(&self) -> usize {
        self.session.assignment.borrow().members().count()
    }
}

#[tokio::test]
async fn a_snapshot_counts_when_its_last_part_is_there() {
    let mut world = world();
    world.take(snapshot(5, &[1, 2], false)).expect("a part");
    assert_eq!((world.members(), world.session.ledger.generation()), (0, Generation(0)));
    world.take(snapshot(5, &[3], true)).expect("the last part");
    assert_eq!((world.members(), world.session.ledger.generation()), (3, Generation(5)));
    world.take(delta(5, 8, &[4])).expect("follows");
    assert_eq!((world.members(), world.session.ledger.generation()), (4, Generation(8)));
}

#[tokio::test]
async fn what_does_not_follow_ends_the_session_and_changes_nothing() {
    let mut world = world();
    world.take(snapshot(5, &[1], true)).expect("the first");
    for wrong in [delta(6, 9, &[2]), delta(3, 4, &[2]), snapshot(4, &[2], true), snapshot(5, &[2], true)] {
        assert!(matches!(world.take(wrong), Err(SessionError::Ledger(LedgerError::Fence(_)))));
        assert_eq!((world.members(), world.session.ledger.generation()), (1, Generation(5)));
    }
    let half = pb::AssignmentObject { object: None };
    let body = pb::Snapshot { generation: 9, objects: vec![half], last: true };
    let wrong = message(pb::manager_message::Body::Snapshot(body));
    assert!(matches!(world.take(wrong), Err(SessionError::Invalid(_))));
    assert_eq!(world.session.ledger.generation(), Generation(5));
}

#[tokio::test]
async fn managers_are_learnt_from_acknowledgements() {
    let mut world = world();
    let ack = |addrs: &[&str]| {
        let manager_addrs = addrs.iter().map(ToString::to_string).collect();
        message(pb::manager_message::Body::HeartbeatAck(pb::HeartbeatAck { seq: 1, manager_addrs }))
    };
    world.take(ack(&["192.0.2.1:7377", "192.0.2.9:7377"])).expect("taken");
    assert_eq!(world.session.managers.borrow().len(), 2);
    // None at all is no news: the node would have nowhere to go.
    world.take(ack(&[])).expect("taken");
    assert_eq!(world.session.managers.borrow().len(), 2);
}

#[tokio::test]
async fn a_log_that_is_not_there_is_answered_with_the_reason() {
    let mut world = world();
    let start = pb::LogStart { request: 7, task: "absent".into(), follow: false, tail: None };
    world.take(message(pb::manager_message::Body::LogStart(start))).expect("taken");
    let answer = world.outbound.recv().await.expect("an answer");
    let Some(Body::Log(chunk)) = answer.body else { panic!("{answer:?}") };
    assert!(chunk.end && chunk.request == 7 && chunk.error.contains("absent"), "{chunk:?}");
}

#[test]
fn a_status_is_said_once_a_session() {
    let status = |state| TaskStatus {
        state,
        since: Timestamp(1),
        message: String::new(),
        exit_code: None,
        pid: None,
        connections: None,
        health: Health::Unchecked,
    };
    let id = TaskId::from_entropy(1);
    let mut statuses = BTreeMap::from([(id.clone(), status(TaskState::Running))]);
    let mut said = BTreeMap::new();
    assert_eq!(task_updates(&statuses, &mut said).len(), 1);
    assert!(task_updates(&statuses, &mut said).is_empty());
    statuses.insert(id, status(TaskState::Failed));
    assert_eq!(task_updates(&statuses, &mut said).len(), 1);
    // A new session says all of it again.
    assert_eq!(task_updates(&statuses, &mut BTreeMap::new()).len(), 1);
}

#[test]
fn a_report_tells_how_the_node_balances() {
    let lb = shoal_types::LbInUse { engine: shoal_types::LbEngine::Ipvs, ipvs: true, lingering: false };
    let report = Applied { generation: Generation(7), lb, ..Applied::default() };
    let message = applied_message(&report);
    assert_eq!(message.lb.map(TryInto::try_into), Some(Ok(lb)));
    assert_eq!(message.generation, 7);
}
