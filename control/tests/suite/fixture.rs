//! A manager in this process, its clients, and an agent that is not one.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use shoal_api::pb;
use shoal_api::pb::bootstrap_client::BootstrapClient;
use shoal_api::pb::ca_client::CaClient;
use shoal_api::pb::control_client::ControlClient;
use shoal_api::pb::dispatcher_client::DispatcherClient;
use shoal_control::config::Args;
use shoal_control::run::{self, Running};
use shoal_control::tls::connector::channel;
use shoal_control::tls::{SwapCert, anonymous_client_config, client_config};
use shoal_types::assignment::{Assignment, Delta, Object};
use shoal_types::pki::MANAGER_SERVER_NAME;
use shoal_types::token::Token;
use shoal_types::{ErrorCode, Generation};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Status, Streaming};

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A manager that serves, in this process.
pub(crate) struct Fixture {
    pub(crate) running: Running,
    pub(crate) addr: SocketAddr,
    pub(crate) dir: TempDir,
}

/// A key with the certificate for it.
pub(crate) struct Credentials {
    pub(crate) node: String,
    pub(crate) cert: CertificateDer<'static>,
    pub(crate) key: KeyPair,
}

pub(crate) async fn wait_for<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let started = tokio::time::Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn free_port() -> SocketAddr {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    free.local_addr().expect("address")
}

pub(crate) fn command_line(dir: &Path, addr: SocketAddr) -> Vec<String> {
    let (state, socket) = (dir.join("state"), dir.join("control.sock"));
    let line = format!(
        "--state-dir {} --socket {} --listen {addr} --advertise {addr} --data-addr 10.0.0.1 --bootstrap \
         --cluster-name otter --node-name n1 --pool 10.192.0.0/10 --log debug",
        state.display(),
        socket.display()
    );
    line.split_whitespace().map(str::to_owned).collect()
}

pub(crate) async fn local_channel(dir: &Path) -> Channel {
    let path = dir.join("control.sock");
    let connect = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    Endpoint::from_static("http://local").connect_with_connector(connect).await.expect("the socket is there")
}

pub(crate) fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key")
}

pub(crate) fn csr(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).expect("request").der().to_vec()
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let addr = free_port();
        let line = std::iter::once("shoal-control".to_owned()).chain(command_line(dir.path(), addr));
        let args = Args::try_parse_from(line.chain(more.iter().copied().map(str::to_owned))).expect("parses");
        let running = run::start(&args, CancellationToken::new()).await.expect("starts");
        Self { running, addr, dir }
    }

    pub(crate) async fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(local_channel(self.dir.path()).await)
    }

    pub(crate) async fn bootstrap(&self) -> BootstrapClient<Channel> {
        BootstrapClient::new(local_channel(self.dir.path()).await)
    }

    pub(crate) fn ca(&self) -> CertificateDer<'static> {
        self.running.manager.authority().expect("is there").cert().clone()
    }

    pub(crate) fn anonymous(&self) -> Channel {
        self.dial(&anonymous_client_config(&self.ca()).expect("TLS"))
    }

    pub(crate) fn with(&self, credentials: &Credentials) -> Channel {
        let key = PrivatePkcs8KeyDer::from(credentials.key.serialize_der()).into();
        let swap = SwapCert::new(vec![credentials.cert.clone()], key).expect("fits");
        self.dial(&client_config(swap, &self.ca()).expect("TLS"))
    }

    fn dial(&self, tls: &Arc<ClientConfig>) -> Channel {
        channel(tls, &self.addr.to_string(), MANAGER_SERVER_NAME).expect("address")
    }

    pub(crate) async fn token(&self, ttl_ms: u64, uses: u32) -> Token {
        let request = pb::CreateTokenRequest {
            role: pb::NodeRole::Worker.into(),
            ttl_ms,
            uses,
            request_id: String::new(),
        };
        let made = self.control().await.create_token(request).await.expect("made").into_inner();
        made.token.parse().expect("a token")
    }

    pub(crate) async fn join_with(
        &self,
        token: &Token,
        name: &str,
        addr: &str,
    ) -> Result<Credentials, Status> {
        let key = new_key();
        let request = pb::JoinRequest {
            token_id: token.id.to_string(),
            secret: token.secret.to_vec(),
            csr_der: csr(&key),
            hostname: name.to_owned(),
            data_addr: addr.to_owned(),
            request_id: "once".to_owned(),
        };
        let issued = CaClient::new(self.anonymous()).join(request).await?.into_inner();
        Ok(Credentials { node: issued.node_id, cert: CertificateDer::from(issued.cert_der), key })
    }

    pub(crate) async fn join(&self, name: &str, addr: &str) -> Credentials {
        let token = self.token(0, 0).await;
        self.join_with(&token, name, addr).await.expect("joined")
    }
}

/// The code that shoal put into a refusal.
pub(crate) fn code(status: &Status) -> Option<ErrorCode> {
    shoal_api::status::ApiError::from_status(status).map(|error| error.code)
}

pub(crate) fn network(name: &str) -> pb::CreateNetworkRequest {
    let spec = pb::NetworkSpec { name: name.to_owned(), ..pb::NetworkSpec::default() };
    pb::CreateNetworkRequest { spec: Some(spec), ..pb::CreateNetworkRequest::default() }
}

pub(crate) fn service(name: &str, networks: &[&str], replicas: u32) -> pb::ServiceSpec {
    let process =
        pb::ProcessSpec { command: vec!["sleep".into(), "1000".into()], ..pb::ProcessSpec::default() };
    let restart =
        pb::RestartPolicy { condition: pb::RestartCondition::Any.into(), ..pb::RestartPolicy::default() };
    pb::ServiceSpec {
        name: name.to_owned(),
        mode: Some(pb::service_spec::Mode::Replicas(replicas)),
        task: Some(pb::TaskSpec {
            process: Some(process),
            resources: Some(pb::Resources::default()),
            restart: Some(restart),
            stop_grace_ms: 1_000,
            stop_signal: 15,
            ..pb::TaskSpec::default()
        }),
        networks: networks
            .iter()
            .map(|n| pb::AttachmentSpec { network: (*n).to_owned(), aliases: Vec::new() })
            .collect(),
        update: Some(pb::UpdateConfig {
            parallelism: 1,
            delay_ms: 0,
            order: pb::UpdateOrder::StartFirst.into(),
        }),
        ..pb::ServiceSpec::default()
    }
}

/// The agent's end of a session, without an agent.
pub(crate) struct FakeAgent {
    pub(crate) up: mpsc::Sender<pb::AgentMessage>,
    pub(crate) down: Streaming<pb::ManagerMessage>,
    pub(crate) assignment: Assignment,
    /// Snapshots and deltas taken so far.
    pub(crate) snapshots: usize,
    pub(crate) deltas: usize,
    partial: Vec<Object>,
}

impl FakeAgent {
    pub(crate) async fn open(
        fixture: &Fixture,
        credentials: &Credentials,
        addr: &str,
    ) -> Result<Self, Status> {
        let (up, stream) = mpsc::channel(16);
        let description = pb::NodeDescription {
            hostname: "w1".into(),
            cpu_milli: 4_000,
            memory: 8 << 30,
            ..pb::NodeDescription::default()
        };
        let hello = pb::Hello { description: Some(description), data_addr: addr.to_owned(), generation: 0 };
        up.send(message(pb::agent_message::Body::Hello(hello))).await.expect("open");
        let mut client = DispatcherClient::new(fixture.with(credentials));
        let down = client.session(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Self { up, down, assignment: Assignment::default(), snapshots: 0, deltas: 0, partial: Vec::new() })
    }

    pub(crate) async fn say(&self, body: pb::agent_message::Body) {
        self.up.send(message(body)).await.expect("the session is open");
    }

    /// Takes one message; assignments are checked as an agent would.
    pub(crate) async fn step(&mut self) -> Result<Option<pb::manager_message::Body>, Status> {
        let next = tokio::time::timeout(DEADLINE, self.down.message()).await.expect("a message in time")?;
        let Some(body) = next.and_then(|m| m.body) else { return Ok(None) };
        match &body {
            pb::manager_message::Body::Snapshot(piece) => {
                for object in piece.objects.clone() {
                    self.partial.push(object.try_into().expect("valid"));
                }
                if piece.last {
                    let whole =
                        Assignment::new(Generation(piece.generation), std::mem::take(&mut self.partial));
                    self.assignment.replace(whole).expect("not older");
                    self.snapshots += 1;
                }
            }
            pb::manager_message::Body::Delta(delta) => {
                let delta = Delta::try_from(delta.clone()).expect("valid");
                self.assignment.apply(delta).expect("chained");
                self.deltas += 1;
            }
            _ => {}
        }
        Ok(Some(body))
    }

    /// Takes messages until the assignment is as wanted.
    pub(crate) async fn until(&mut self, what: &str, wanted: impl Fn(&Assignment) -> bool) {
        let started = tokio::time::Instant::now();
        while !wanted(&self.assignment) {
            assert!(started.elapsed() < DEADLINE, "{what}: {:?}", self.assignment);
            self.step()
                .await
                .unwrap_or_else(|s| panic!("{what}: {s}"))
                .unwrap_or_else(|| panic!("{what}: ended"));
        }
    }

    pub(crate) async fn applied(&self) {
        let generation = self.assignment.generation.0;
        self.say(pb::agent_message::Body::Applied(pb::Applied { generation, ..pb::Applied::default() }))
            .await;
    }

    pub(crate) async fn applied_with(&self, engine: &str, ipvs: bool) {
        let generation = self.assignment.generation.0;
        let lb = Some(pb::LbInUse { engine: engine.to_owned(), ipvs, lingering: false });
        self.say(pb::agent_message::Body::Applied(pb::Applied { generation, lb, ..pb::Applied::default() }))
            .await;
    }

    /// Says of each of its tasks that it runs.
    pub(crate) async fn report_running(&self) {
        let updates = self.assignment.tasks().map(|task| pb::TaskUpdate {
            task: task.id.to_string(),
            status: Some(pb::TaskStatus {
                state: pb::TaskState::Running.into(),
                since_ms: 1,
                pid: Some(42),
                ..pb::TaskStatus::default()
            }),
        });
        self.say(pb::agent_message::Body::Tasks(pb::TaskReport { updates: updates.collect() })).await;
    }
}

pub(crate) fn message(body: pb::agent_message::Body) -> pb::AgentMessage {
    pb::AgentMessage { body: Some(body) }
}
