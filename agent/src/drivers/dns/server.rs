//! One task's resolver: a UDP and a TCP socket made inside the task's namespace, served from ours.

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::netns::Netns;

use super::forward::Forwarder;
use super::message::{Incoming, MAX_QUERY, Request, Transport, read};
use super::metrics::AnsweredBy;
use super::resolv::RESOLVER_ADDRESS;
use super::zone::{Decision, Zone};
use super::{DnsError, DnsMetrics, Told};

/// TCP connections of one task; beyond, they are closed at once.
const MAX_CONNECTIONS: usize = 32;
/// Queries on one connection, after which the client may make another.
const MAX_QUERIES: usize = 256;
/// How long a connection may be silent between queries.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a query may take to arrive once it began, and a response to be taken.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(3);

/// What a server answers from.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) view: Arc<ArcSwap<Zone>>,
    pub(super) forwarder: Arc<Forwarder>,
    pub(super) metrics: DnsMetrics,
    pub(super) told: Told,
}

/// A running resolver. Dropping it without [`Server::stop`] ends it a little later.
#[derive(Debug)]
pub(super) struct Server {
    stop: CancellationToken,
    tasks: TaskTracker,
    alive: Arc<()>,
}

impl Server {
    /// Makes the sockets and starts to serve them. A query that arrives in between waits in the socket.
    pub(super) fn start(
        task: &str,
        netns: &Netns,
        shared: Shared,
        max_forwards: usize,
    ) -> Result<Self, DnsError> {
        let address = SocketAddr::from((RESOLVER_ADDRESS, 53));
        let failed = |protocol| move |source| DnsError::Listen { task: task.to_owned(), protocol, source };
        let (udp, tcp) = netns
            .run(|| {
                let udp = StdUdpSocket::bind(address).and_then(|socket| {
                    socket.set_nonblocking(true)?;
                    Ok(socket)
                });
                // The standard library sets SO_REUSEADDR, so connections of the past don't block a restart.
                let tcp = StdTcpListener::bind(address).and_then(|socket| {
                    socket.set_nonblocking(true)?;
                    Ok(socket)
                });
                (udp, tcp)
            })
            .map_err(|source| DnsError::Netns { task: task.to_owned(), source })?;
        let udp = udp.and_then(UdpSocket::from_std).map_err(failed("udp"))?;
        let tcp = tcp.and_then(TcpListener::from_std).map_err(failed("tcp"))?;

        let (stop, tasks, alive) = (CancellationToken::new(), TaskTracker::new(), Arc::new(()));
        let context = Arc::new(Context {
            shared,
            rotation: AtomicUsize::new(0),
            forwards: Semaphore::new(max_forwards),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            stop: stop.clone(),
            tasks: tasks.clone(),
        });
        let span = tracing::info_span!("dns", task);
        let udp_loop = serve_udp(Arc::clone(&context), Arc::new(udp), Arc::clone(&alive));
        tasks.spawn(stop.clone().run_until_cancelled_owned(udp_loop).instrument(span.clone()));
        let tcp_loop = serve_tcp(context, tcp, Arc::clone(&alive));
        tasks.spawn(stop.clone().run_until_cancelled_owned(tcp_loop).instrument(span));
        Ok(Self { stop, tasks, alive })
    }

    /// Whether both sockets are served.
    pub(super) fn is_alive(&self) -> bool {
        // One of ours and one in each loop.
        Arc::strong_count(&self.alive) == 3
    }

    /// Stops serving and returns when all sockets are closed.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Context {
    shared: Shared,
    rotation: AtomicUsize,
    forwards: Semaphore,
    connections: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What to do about a message.
enum Action {
    Respond(Vec<u8>),
    Forward(Request, Instant),
    Nothing,
}

impl Context {
    fn decide(&self, bytes: &[u8], transport: Transport) -> Action {
        let (metrics, begun) = (&self.shared.metrics, Instant::now());
        let request = match read(bytes) {
            Incoming::Query(request) => request,
            Incoming::Refuse(response) => {
                metrics.count_malformed();
                return Action::Respond(response);
            }
            Incoming::Ignore => {
                metrics.count_malformed();
                return Action::Nothing;
            }
        };
        let rotation = self.rotation.fetch_add(1, Ordering::Relaxed);
        let view = self.shared.view.load();
        let decision = view.decide(request.question().name(), request.qtype(), request.class(), rotation);
        let refuse =
            |code| (code, request.respond(code, Vec::new(), code == ResponseCode::NXDomain, transport));
        let (code, response) = match decision {
            Decision::Forward => return Action::Forward(request, begun),
            Decision::Answer(records) => {
                (ResponseCode::NoError, request.answer(records, Vec::new(), transport))
            }
            Decision::AnswerWith(records, more) => {
                (ResponseCode::NoError, request.answer(records, more, transport))
            }
            // It may have been made since managers were heard last.
            Decision::NxDomain if !self.shared.told.get() => refuse(ResponseCode::ServFail),
            Decision::NxDomain => refuse(ResponseCode::NXDomain),
            Decision::ServFail => refuse(ResponseCode::ServFail),
            Decision::Refused => refuse(ResponseCode::Refused),
            Decision::NotImplemented => refuse(ResponseCode::NotImp),
        };
        metrics.answered(request.qtype(), code, AnsweredBy::Own, begun.elapsed());
        Action::Respond(response)
    }

    /// The response to a request that is for the outside. Takes a place among the task's forwards.
    async fn forward(&self, request: &Request, begun: Instant, transport: Transport) -> Vec<u8> {
        let Ok(_permit) = self.forwards.try_acquire() else {
            return self.too_many(request, begun, transport);
        };
        let servers = self.shared.view.load().servers();
        match self.shared.forwarder.forward(request, servers, transport).await {
            Ok(reply) => {
                let code = super::message::response_code(&reply);
                self.shared.metrics.answered(request.qtype(), code, AnsweredBy::Upstream, begun.elapsed());
                reply
            }
            Err(error) => {
                let (name, error) = (request.question().name(), &error as &dyn std::error::Error);
                tracing::debug!(%name, error, "forward failed");
                self.failed(request, begun, transport)
            }
        }
    }

    /// The task has as many forwards in flight as it may have.
    fn too_many(&self, request: &Request, begun: Instant, transport: Transport) -> Vec<u8> {
        self.shared.metrics.count_rate_limited();
        self.failed(request, begun, transport)
    }

    fn failed(&self, request: &Request, begun: Instant, transport: Transport) -> Vec<u8> {
        let code = ResponseCode::ServFail;
        self.shared.metrics.answered(request.qtype(), code, AnsweredBy::Upstream, begun.elapsed());
        request.respond(code, Vec::new(), false, transport)
    }
}

async fn serve_udp(context: Arc<Context>, socket: Arc<UdpSocket>, _alive: Arc<()>) {
    // One more than allowed, to tell a message that is too long.
    let mut buffer = vec![0; MAX_QUERY + 1];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        if length > MAX_QUERY {
            context.shared.metrics.count_malformed();
            continue;
        }
        match context.decide(&buffer[..length], Transport::Udp) {
            Action::Respond(response) => send(&socket, &response, client).await,
            Action::Nothing => {}
            // Checked before a task is made for it, so that a flood makes none.
            Action::Forward(request, begun) if context.forwards.available_permits() == 0 => {
                send(&socket, &context.too_many(&request, begun, Transport::Udp), client).await;
            }
            Action::Forward(request, begun) => {
                let (context, socket) = (Arc::clone(&context), Arc::clone(&socket));
                let (tasks, stop) = (context.tasks.clone(), context.stop.clone());
                let forward = async move {
                    let response = context.forward(&request, begun, Transport::Udp).await;
                    send(&socket, &response, client).await;
                };
                tasks.spawn(stop.run_until_cancelled_owned(forward).in_current_span());
            }
        }
    }
}

async fn send(socket: &UdpSocket, response: &[u8], client: SocketAddr) {
    // A client that went away, or whose buffer is full, asks again.
    if let Err(error) = socket.send_to(response, client).await {
        tracing::debug!(%client, %error, "response not sent");
    }
}

async fn serve_tcp(context: Arc<Context>, listener: TcpListener, _alive: Arc<()>) {
    loop {
        let (stream, _client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&context.connections).try_acquire_owned() else {
            context.shared.metrics.count_rate_limited();
            continue;
        };
        let (tasks, stop) = (context.tasks.clone(), context.stop.clone());
        let context = Arc::clone(&context);
        let connection = async move {
            let _permit = permit;
            if let Err(error) = serve_connection(&context, stream).await {
                tracing::debug!(%error, "connection closed");
            }
        };
        tasks.spawn(stop.run_until_cancelled_owned(connection).in_current_span());
    }
}

/// Answers the queries on a connection, one after the other.
async fn serve_connection(context: &Context, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    for _ in 0..MAX_QUERIES {
        let Ok(first) = timeout(IDLE_TIMEOUT, stream.read_u8()).await else { return Ok(()) };
        let first = match first {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        // The whole rest under one time-out: a client that drips its bytes holds the connection no longer.
        let rest = async {
            let length = usize::from(u16::from_be_bytes([first, stream.read_u8().await?]));
            if length > MAX_QUERY {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "query too long"));
            }
            let mut query = vec![0; length];
            stream.read_exact(&mut query).await?;
            Ok(query)
        };
        let query = timeout(MESSAGE_TIMEOUT, rest).await.map_err(io::Error::from)?.inspect_err(|_| {
            context.shared.metrics.count_malformed();
        })?;
        let response = match context.decide(&query, Transport::Tcp) {
            Action::Respond(response) => response,
            Action::Forward(request, begun) => context.forward(&request, begun, Transport::Tcp).await,
            Action::Nothing => return Ok(()),
        };
        let length = u16::try_from(response.len()).map_err(io::Error::other)?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&response);
        timeout(MESSAGE_TIMEOUT, stream.write_all(&framed)).await.map_err(io::Error::from)??;
    }
    Ok(())
}

/// Receiving failed for a reason that is not the client's (out of descriptors or memory): don't spin.
async fn pause_after(error: &io::Error) {
    tracing::debug!(%error, "receive failed");
    tokio::time::sleep(Duration::from_millis(50)).await;
}
