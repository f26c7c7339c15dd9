//! The way to the daemon: local socket first, then the manager's socket it names. Transport errors become
//! [`Failure`]s here; no RPC text gets further.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use shoal_api::pb;
use shoal_api::pb::control_client::ControlClient;
use shoal_api::pb::node_client::NodeClient;
use shoal_api::status::ApiError;
use shoal_types::ErrorCode;
use tokio::net::UnixStream;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::failure::Failure;
use crate::output::Output;

/// Lists of thousands of tasks are larger than tonic's default of 4 MiB.
const MAX_MESSAGE: usize = 64 << 20;
/// How long a manager that restarts or elects a leader is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between attempts.
const RETRY_EVERY: Duration = Duration::from_millis(250);
/// Remedy when nothing answers on the local socket.
const START_HELP: &str = "is shoald running? 'systemctl status shoald' shows it; -H names another socket";

/// What every command gets.
#[derive(Debug)]
pub(crate) struct Ctx {
    /// Where to print.
    pub(crate) out: Output,
    /// `--yes`.
    pub(crate) yes: bool,
    socket: PathBuf,
    timeout: Duration,
    deadline: Instant,
    goes_on: Mutex<String>,
}

/// A manager's API.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    client: ControlClient<Channel>,
    socket: PathBuf,
    deadline: Instant,
    /// The node that was asked for the way.
    pub(crate) local: pb::LocalNode,
}

/// A fresh request id: a retry of the same request is applied once.
pub(crate) fn request_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// `unix:///run/shoal/api.sock`, or a path.
pub(crate) fn parse_host(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    if path.starts_with('/') {
        return Ok(PathBuf::from(path));
    }
    Err(format!("'{text}' is not a socket of this machine; write it as unix:///run/shoal/api.sock"))
}

impl Ctx {
    /// Starts the clock of `--timeout`.
    pub(crate) fn new(out: Output, socket: PathBuf, timeout: Duration, yes: bool) -> Self {
        let deadline = Instant::now() + timeout;
        let goes_on = Mutex::new("nothing goes on in the background".to_owned());
        Self { out, yes, socket, timeout, deadline, goes_on }
    }

    /// End of the time given by `--timeout`.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The time given, as text.
    pub(crate) fn timeout_text(&self) -> String {
        format!("{:?}", self.timeout)
    }

    /// Notes what goes on if the command is interrupted from here on.
    pub(crate) fn set_goes_on(&self, what: impl Into<String>) {
        if let Ok(mut text) = self.goes_on.lock() {
            *text = what.into();
        }
    }

    /// What goes on after Ctrl-C.
    pub(crate) fn goes_on(&self) -> String {
        self.goes_on.lock().map(|text| text.clone()).unwrap_or_default()
    }

    /// The local socket's path.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// A client of the node daemon.
    pub(crate) async fn node(&self) -> Result<NodeClient<Channel>, Failure> {
        self.out.detail(&format!("connecting to {}", self.socket.display()));
        let channel = connect(&self.socket).await.map_err(|error| refused(&self.socket, io_kind(&error)))?;
        Ok(NodeClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
    }

    /// One call to the node daemon, under the time limit.
    pub(crate) async fn node_call<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        let answer = within(self.deadline, call).await?;
        answer.map(Response::into_inner).map_err(|status| {
            self.out.detail(&format!("answer: {status:?}"));
            from_status(&status, &self.socket)
        })
    }

    /// The next message of a stream of the node daemon, under the time limit.
    pub(crate) async fn node_stream<T>(
        &self,
        next: impl Future<Output = Result<Option<T>, Status>>,
    ) -> Result<Option<T>, Failure> {
        within(self.deadline, next).await?.map_err(|status| from_status(&status, &self.socket))
    }

    /// What the node says about itself.
    pub(crate) async fn local(&self) -> Result<pb::LocalNode, Failure> {
        let mut node = self.node().await?;
        self.node_call(node.info(pb::Empty {})).await
    }

    /// The manager's API; fails on a worker and outside a swarm.
    pub(crate) async fn control(&self) -> Result<Control, Failure> {
        let give_up = self.deadline.min(Instant::now() + PATIENCE);
        let mut told = false;
        loop {
            let local = self.local().await?;
            require_manager(&local)?;
            let socket = PathBuf::from(&local.control_socket);
            self.out.detail(&format!("connecting to {}", socket.display()));
            match connect(&socket).await {
                Ok(channel) => {
                    let client = ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
                    return Ok(Control { client, socket, deadline: self.deadline, local });
                }
                // Also while the daemon names no socket yet: the manager process is on its way.
                Err(_) if Instant::now() + RETRY_EVERY < give_up => {
                    if !told {
                        self.out.note("waiting for the manager process on this node");
                    }
                    told = true;
                    tokio::time::sleep(RETRY_EVERY).await;
                }
                Err(error) => {
                    self.out.detail(&format!("{error:?}"));
                    return Err(manager_silent(&local));
                }
            }
        }
    }
}

impl Control {
    /// One call. A manager that is restarting or has no leader yet is asked again for a while; requests that change
    /// something carry a request id, so asking twice changes it once.
    pub(crate) async fn call<R, T, F, Fut>(&self, request: R, call: F) -> Result<T, Failure>
    where
        R: Clone,
        F: Fn(ControlClient<Channel>, R) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let give_up = self.deadline.min(Instant::now() + PATIENCE);
        loop {
            match within(self.deadline, call(self.client.clone(), request.clone())).await? {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => {
                    let failure = from_status(&status, &self.socket);
                    if failure.code() != Some(ErrorCode::NoLeader) || Instant::now() + RETRY_EVERY >= give_up
                    {
                        return Err(failure);
                    }
                    tokio::time::sleep(RETRY_EVERY).await;
                }
            }
        }
    }

    /// Makes sense of an error in the middle of a stream.
    pub(crate) fn stream_failure(&self, status: &Status) -> Failure {
        from_status(status, &self.socket)
    }
}

fn require_manager(local: &pb::LocalNode) -> Result<(), Failure> {
    require_member(local)?;
    if local.role() == pb::NodeRole::Manager {
        return Ok(());
    }
    let mut error = ApiError::new(ErrorCode::NotManager, "this node is a worker; run it on a manager")
        .with_context(format!("asked: node '{}' of swarm '{}'", local.node_name, swarm_name(local)));
    if !local.manager_addrs.is_empty() {
        error = error.with_help(format!("managers: {}", local.manager_addrs.join(", ")));
    }
    Err(error.into())
}

/// The swarm's name, or the start of its id on a node that has not learnt the name.
pub(crate) fn swarm_name(local: &pb::LocalNode) -> String {
    if local.cluster_name.is_empty() {
        return local.cluster_id.chars().take(8).collect();
    }
    local.cluster_name.clone()
}

/// Fails outside a swarm.
pub(crate) fn require_member(local: &pb::LocalNode) -> Result<(), Failure> {
    if matches!(local.membership(), pb::Membership::None | pb::Membership::Unspecified) {
        return Err(Failure::new(
            ErrorCode::NotMember,
            "this node is in no swarm",
            "'shoal swarm init' makes one, 'shoal swarm join --token TOKEN HOST' joins one",
        ));
    }
    Ok(())
}

async fn connect(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = path.to_path_buf();
    // The URI only fills in the request line; the connector decides where it goes.
    let endpoint = Endpoint::from_static("http://shoal.local").connect_timeout(Duration::from_secs(5));
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await
}

async fn within<T>(deadline: Instant, work: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::time::timeout_at(deadline, work).await.map_err(|_| {
        Failure::new(
            ErrorCode::Timeout,
            "no answer within the given time; what was asked for may still be carried out",
            "look with 'shoal status', or give more time with --timeout",
        )
    })
}

fn io_kind(error: &tonic::transport::Error) -> Option<io::ErrorKind> {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        source = cause.source();
    }
    None
}

/// The local socket could not be opened.
fn refused(socket: &Path, kind: Option<io::ErrorKind>) -> Failure {
    let shown = socket.display();
    match kind {
        Some(io::ErrorKind::PermissionDenied) => Failure::new(
            ErrorCode::PermissionDenied,
            format!("no permission to open {shown}"),
            "run it as root or as a member of group shoal",
        ),
        Some(io::ErrorKind::NotFound) => Failure::new(
            ErrorCode::NoLeader,
            format!("no shoald at {shown}: there is no such socket"),
            START_HELP,
        ),
        Some(io::ErrorKind::ConnectionRefused) => {
            Failure::new(ErrorCode::NoLeader, format!("no shoald at {shown}: nobody listens"), START_HELP)
        }
        _ => Failure::new(ErrorCode::NoLeader, format!("no shoald answers at {shown}"), START_HELP),
    }
}

fn manager_silent(local: &pb::LocalNode) -> Failure {
    let asked = if local.control_socket.is_empty() { "its process is not up" } else { &local.control_socket };
    ApiError::new(ErrorCode::NoLeader, "the manager on this node does not answer")
        .with_context(format!("asked: {asked}"))
        .with_help("shoald starts it again by itself; if this stays, 'journalctl -u shoald' says why")
        .into()
}

/// Our errors as they are; everything else in words of ours.
fn from_status(status: &Status, socket: &Path) -> Failure {
    if let Some(error) = ApiError::from_status(status) {
        return error.into();
    }
    let shown = socket.display();
    match status.code() {
        Code::Unavailable | Code::Unknown | Code::Cancelled => {
            ApiError::new(ErrorCode::NoLeader, "the connection broke before an answer came")
                .with_context(format!("asked: {shown}"))
                .with_help(
                    "try again; if this stays, 'systemctl status shoald' and 'journalctl -u shoald' say why",
                )
                .into()
        }
        Code::DeadlineExceeded => Failure::new(
            ErrorCode::Timeout,
            "no answer in time",
            "try again, or give more time with --timeout",
        ),
        Code::PermissionDenied | Code::Unauthenticated => {
            Failure::new(ErrorCode::PermissionDenied, format!("{shown} refuses this call"), "run it as root")
        }
        Code::Unimplemented => Failure::new(
            ErrorCode::Internal,
            "the daemon does not know this call",
            "shoal and shoald are of different versions: compare with 'shoal version'",
        ),
        _ => Failure::new(
            ErrorCode::Internal,
            format!("the daemon at {shown} failed without saying why"),
            "its log has the reason: 'journalctl -u shoald'",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        assert_eq!(parse_host("unix:///run/x.sock"), Ok(PathBuf::from("/run/x.sock")));
        assert_eq!(parse_host("/run/x.sock"), Ok(PathBuf::from("/run/x.sock")));
        for bad in ["", "tcp://10.0.0.1:7377", "unix://x.sock", "x.sock"] {
            assert!(parse_host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn request_ids_are_128_bits_and_differ() {
        let (a, b) = (request_id(), request_id());
        assert_eq!((a.len(), b.len()), (32, 32));
        assert_ne!(a, b);
    }

    #[test]
    fn no_transport_text_gets_through() {
        for code in 0..=16 {
            let status = Status::new(Code::from_i32(code), "h2 protocol error: transport goo");
            let text = from_status(&status, Path::new("/run/s")).render(false);
            assert!(text.starts_with("error[E0") && !text.contains("goo"), "{text}");
        }
        let own = Status::from(ApiError::new(ErrorCode::NameTaken, "taken"));
        assert_eq!(from_status(&own, Path::new("/")).code(), Some(ErrorCode::NameTaken));
    }

    #[test]
    fn why_the_local_socket_does_not_open() {
        for (kind, says, exit) in [
            (Some(io::ErrorKind::PermissionDenied), "no permission to open /run/s", 7),
            (Some(io::ErrorKind::NotFound), "there is no such socket", 6),
            (Some(io::ErrorKind::ConnectionRefused), "nobody listens", 6),
            (None, "no shoald answers at /run/s", 6),
        ] {
            let failure = refused(Path::new("/run/s"), kind);
            assert!(failure.render(false).contains(says));
            assert_eq!(failure.exit_code(), exit);
        }
    }

    #[test]
    fn outside_a_swarm_and_on_a_worker() {
        let mut local = pb::LocalNode::default();
        assert_eq!(require_manager(&local).unwrap_err().code(), Some(ErrorCode::NotMember));
        local.set_membership(pb::Membership::Active);
        local.set_role(pb::NodeRole::Worker);
        local.manager_addrs = vec!["10.0.0.1:7377".into()];
        let failure = require_manager(&local).unwrap_err();
        assert_eq!((failure.code(), failure.exit_code()), (Some(ErrorCode::NotManager), 1));
        assert!(failure.render(false).contains("managers: 10.0.0.1:7377"));
        local.set_role(pb::NodeRole::Manager);
        assert!(require_manager(&local).is_ok());
    }
}
