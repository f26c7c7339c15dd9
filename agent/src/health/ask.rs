//! Putting the question: a program in the task's namespaces, or a connection from inside its network.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shoal_types::TaskId;
use shoal_types::spec::{HealthProbe, HealthTarget};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::drivers::runtime::{ProbeEnd, Runtime};
use crate::netns::Netns;
use crate::reconciler::chain;

/// What is read of an answer.
const MAX_ANSWER: usize = 8 << 10;
/// What is shown of a line.
const MAX_LINE: usize = 200;
/// A refusal's body may take so long; its status line has said what counts.
const BODY: Duration = Duration::from_millis(200);

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Good,
    /// Why it is none, in one line.
    Wrong(String),
    /// Nothing in time; the last line that was said until then.
    Silent(String),
    /// The question could not be put, which says nothing of the task; why.
    Unasked(String),
}

/// Whether it is this node that lacks what it takes to ask.
fn is_want(error: &io::Error) -> bool {
    use nix::libc::{EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOMEM};
    error.raw_os_error().is_some_and(|errno| [EMFILE, ENFILE, ENOBUFS, ENOMEM, EAGAIN].contains(&errno))
}

/// What an error on the way to a question comes to.
fn unasked_or_wrong(error: &(dyn Error + 'static)) -> Reply {
    let mut causes = std::iter::successors(Some(error), |error| (*error).source());
    if causes.any(|cause| cause.downcast_ref().is_some_and(is_want)) {
        Reply::Unasked(chain(error))
    } else {
        Reply::Wrong(chain(error))
    }
}

/// Asks once. Programs are ended when the limit is over; the other questions are the caller's to end.
pub(super) async fn ask(
    runtime: &dyn Runtime,
    id: &TaskId,
    netns: &Path,
    probe: &HealthProbe,
    limit: Duration,
) -> Reply {
    match probe {
        HealthProbe::Command(words) => command(runtime, id, words, limit).await,
        HealthProbe::Tcp(target) => match connect(netns, *target).await {
            Ok(_stream) => Reply::Good,
            Err(reply) => reply,
        },
        HealthProbe::Http { to, path } => http(netns, *to, path).await.unwrap_or_else(|reply| reply),
    }
}

async fn command(runtime: &dyn Runtime, id: &TaskId, words: &[String], limit: Duration) -> Reply {
    let outcome = match runtime.probe(id.as_str(), words, limit).await {
        Ok(outcome) => outcome,
        Err(error) => return unasked_or_wrong(&error),
    };
    let line = last_line(&outcome.output);
    let wrong = |how: String| Reply::Wrong(if line.is_empty() { how } else { format!("{how}: {line}") });
    match outcome.end {
        ProbeEnd::Exited { code: 0 } => Reply::Good,
        ProbeEnd::Exited { code } => wrong(format!("exited with {code}")),
        ProbeEnd::Killed { signal } => wrong(format!("killed by signal {signal}")),
        ProbeEnd::Failed { reason } => Reply::Wrong(reason),
        ProbeEnd::TimedOut => Reply::Silent(line),
    }
}

/// The last line of some output that says anything, as it can be printed.
fn last_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    let printable = line.chars().filter(|c| !c.is_control());
    printable.take(MAX_LINE).collect()
}

/// A connection from inside a namespace: a socket belongs for life to the namespace it was made in.
async fn connect(netns: &Path, target: HealthTarget) -> Result<TcpStream, Reply> {
    let mut refused = None;
    for address in target.addresses() {
        let path: PathBuf = netns.to_owned();
        let made = tokio::task::spawn_blocking(move || {
            let make = if address.is_ipv4() { TcpSocket::new_v4 } else { TcpSocket::new_v6 };
            Netns::open(&path).and_then(|netns| netns.run(make))
        });
        let socket = made.await.map_err(|error| Reply::Unasked(error.to_string()))?;
        let connected = match socket.map_err(|error| unasked_or_wrong(&error))? {
            Ok(socket) => socket.connect(address).await,
            Err(error) => Err(error),
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) if is_want(&error) || is_out_of_ports(&error, address) => {
                return Err(Reply::Unasked(format!("{target}: {error}")));
            }
            // The first address is the one most servers listen on.
            Err(error) => drop(refused.get_or_insert_with(|| format!("{target}: {error}"))),
        }
    }
    Err(Reply::Wrong(refused.unwrap_or_default()))
}

/// Of IPv6 the same error says that the namespace has no address to ask from, which is how the task is.
fn is_out_of_ports(error: &io::Error, to: SocketAddr) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable && to.is_ipv4()
}

async fn http(netns: &Path, to: HealthTarget, path: &str) -> Result<Reply, Reply> {
    let mut stream = connect(netns, to).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: shoal-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    let failed = |error: io::Error| {
        let what = format!("GET http://{to}{path}: {error}");
        if is_want(&error) { Reply::Unasked(what) } else { Reply::Wrong(what) }
    };
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::new();
    while !answer.contains(&b'\n') && answer.len() < MAX_ANSWER {
        if stream.read_buf(&mut answer).await.map_err(failed)? == 0 {
            break;
        }
    }
    let first = answer.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let first = last_line(first);
    let Some(status) = status_of(&first) else {
        let said = if first.is_empty() {
            "closed without an answer".to_owned()
        } else {
            format!("no HTTP: {first}")
        };
        return Ok(Reply::Wrong(format!("GET http://{to}{path}: {said}")));
    };
    if (200..400).contains(&status) {
        return Ok(Reply::Good);
    }
    // Why not, if it says so at once.
    let rest = async {
        while answer.len() < MAX_ANSWER && stream.read_buf(&mut answer).await.is_ok_and(|read| read > 0) {}
    };
    let _complete = timeout(BODY, rest).await;
    let shown = first.split_once(' ').map_or("", |(_, status)| status);
    let why = match answer.windows(4).position(|end| end == b"\r\n\r\n") {
        Some(end) => last_line(answer.get(end + 4..).unwrap_or_default()),
        None => String::new(),
    };
    let separator = if why.is_empty() { "" } else { ": " };
    Ok(Reply::Wrong(format!("GET http://{to}{path}: {shown}{separator}{why}")))
}

/// The status of a line like `HTTP/1.1 204 No Content`.
fn status_of(line: &str) -> Option<u16> {
    let (version, rest) = line.split_once(' ')?;
    let code = rest.split(' ').next()?;
    (version.starts_with("HTTP/1.") && code.len() == 3).then(|| code.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::NetnsError;

    #[test]
    fn the_last_line_says_why() {
        assert_eq!(last_line(b"one\ntwo\r\n \n"), "two");
        assert_eq!(last_line(b"\x1b[31mred\x1b[0m\xff\n"), "[31mred[0m\u{fffd}");
        assert_eq!(last_line(&[b'x'; 1000]).len(), MAX_LINE);
        assert_eq!(last_line(b""), "");
    }

    #[test]
    fn what_the_node_lacks_is_told_from_what_the_task_does() {
        use nix::libc::{EADDRNOTAVAIL, ECONNREFUSED, EMFILE, ENFILE, ENOBUFS};
        let error = io::Error::from_raw_os_error;
        for (errno, want) in [(EMFILE, true), (ENFILE, true), (ENOBUFS, true), (ECONNREFUSED, false)] {
            assert_eq!(is_want(&error(errno)), want, "{errno}");
            let source = error(errno);
            let wrapped = NetnsError::Io { action: "open", path: "/run/x".into(), source };
            assert_eq!(matches!(unasked_or_wrong(&wrapped), Reply::Unasked(_)), want, "{errno}");
        }
        let (v4, v6) = (([127, 0, 0, 1], 80).into(), ([0; 16], 80).into());
        assert!(is_out_of_ports(&error(EADDRNOTAVAIL), v4), "no port is left to ask from");
        assert!(!is_out_of_ports(&error(EADDRNOTAVAIL), v6), "a task without IPv6");
        assert!(!is_out_of_ports(&error(ECONNREFUSED), v4));
    }

    #[test]
    fn only_status_lines_have_a_status() {
        assert_eq!(status_of("HTTP/1.1 204 No Content"), Some(204));
        assert_eq!(status_of("HTTP/1.0 503"), Some(503));
        for bad in ["", "SSH-2.0-x", "HTTP/1.1", "HTTP/1.1 2000", "HTTP/2 200"] {
            assert_eq!(status_of(bad), None, "{bad}");
        }
    }
}
